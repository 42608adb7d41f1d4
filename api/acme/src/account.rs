//! The region's account at an authority: made once, kept sealed in the settings.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hearth_types::{
    Status,
    acme::{self, Settings, Vault},
};
use instant_acme::{Account, AccountCredentials, Error, ExternalAccountKey, NewAccount};
use serde::Deserialize;

use crate::{
    http::Http,
    order::{OrderError, failure},
    pace::Failure,
};

/// The authority's names in CAA records at most that are taken from its directory.
const MAX_ISSUERS: usize = 8;

/// An authority, by the region's account there.
pub(crate) struct Authority {
    pub(crate) account: Account,
    pub(crate) http: Http,
    pub(crate) directory: String,
    /// Whether it suggests times of renewal (RFC 9773).
    pub(crate) suggests: bool,
}

/// What of a directory `instant-acme` does not tell.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Directory {
    renewal_info: Option<String>,
    #[serde(default)]
    meta: Meta,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Meta {
    #[serde(default)]
    caa_identities: Vec<String>,
    #[serde(default)]
    external_account_required: bool,
}

/// Opens the account of the settings, or makes one, which is returned to be kept.
pub(crate) async fn open(
    settings: &Settings,
    vault: &dyn Vault,
) -> Result<(Authority, Option<acme::Account>), OrderError> {
    let refused = |message: String| OrderError::new(Failure::Account, message);
    let http = Http::new(settings).map_err(|error| refused(crate::order::chain(&error)))?;
    let failed = |error| failure(error, &http, "the authority's account");
    let directory = http.get(&settings.directory).await.map_err(failed)?;
    let directory: Directory = serde_json::from_slice(&directory).map_err(|error| failed(error.into()))?;
    let builder = Account::builder_with_http(Box::new(http.clone()));
    let known = settings.own_account();
    let (account, made) = if let Some(known) = known {
        let credentials = unseal(&known.sealed, vault).map_err(|status| refused(status.message))?;
        let credentials: AccountCredentials =
            serde_json::from_slice(&credentials).map_err(|error| refused(format!("its credentials: {error}")))?;
        (builder.from_credentials(credentials).await.map_err(failed)?, None)
    } else {
        let binding = match &settings.binding {
            Some(binding) => {
                let key = unseal(&binding.sealed, vault).map_err(|status| refused(status.message))?;
                Some(ExternalAccountKey::new(binding.kid.clone(), &key))
            }
            None if directory.meta.external_account_required => {
                let text = "the authority wants an external account: give --eab-kid and --eab-key-file with `hearth region acme`";
                return Err(refused(text.into()));
            }
            None => None,
        };
        let contact: Vec<&str> = settings.contacts.iter().map(String::as_str).collect();
        // The operator agreed when they named the directory.
        let new = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
        let made = builder.create(&new, settings.directory.clone(), binding.as_ref()).await;
        let (account, credentials) = made.map_err(|error| match error {
            Error::Api(problem) => refused(problem.to_string()).after(http.take_asked_pause()),
            other => failed(other),
        })?;
        let plain = serde_json::to_vec(&credentials).map_err(|error| refused(error.to_string()))?;
        let sealed = vault.seal(&plain).map_err(|status| refused(status.message))?;
        let mut issuers = directory.meta.caa_identities;
        issuers.truncate(MAX_ISSUERS);
        let made = acme::Account {
            directory: settings.directory.clone(),
            uri: account.id().to_owned(),
            sealed: STANDARD.encode(sealed),
            issuers,
        };
        (account, Some(made))
    };
    let suggests = directory.renewal_info.is_some();
    Ok((Authority { account, http, directory: settings.directory.clone(), suggests }, made))
}

fn unseal(text: &str, vault: &dyn Vault) -> Result<Vec<u8>, Status> {
    let sealed = STANDARD.decode(text).map_err(|error| Status::internal(error.to_string()))?;
    vault.open(&sealed)
}
