//! The settings by which certificates are ordered from a public authority, whose secrets are sealed.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hearth_types::{
    Object, Reason, RequestId, Status,
    acme::{Binding, Settings, Vault, binding_key, object_key},
    store::{Consistency, Expect, Op, write_one},
};

use crate::{CertificateAuthority, ca::CaError, own_object, resources::ResourceService, seal::Seal};

/// Says what the sealing key is for.
const SEAL_INFO: &[u8] = b"hearth acme secrets v1";
/// Tries of a change that others made one of meanwhile.
const MAX_ATTEMPTS: usize = 16;

/// The settings of the region.
pub struct AcmeSettings {
    resources: Arc<ResourceService>,
    seal: Seal,
}

impl std::fmt::Debug for AcmeSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AcmeSettings").finish_non_exhaustive()
    }
}

/// What a person asks for.
pub(crate) struct Asked {
    /// The settings without the binding and the account.
    pub(crate) settings: Settings,
    /// The external account's key, by name and as text.
    pub(crate) binding: Option<(String, String)>,
}

impl AcmeSettings {
    /// The settings in these resources, sealed for whoever has this CA's key.
    pub fn new(resources: Arc<ResourceService>, ca: &CertificateAuthority) -> Result<Self, CaError> {
        Ok(Self { resources, seal: Seal::new(ca, SEAL_INFO)? })
    }

    /// The settings, if there are any.
    pub(crate) async fn get(&self) -> Result<Option<Settings>, Status> {
        self.stored().await?.map(|object| read(&object)).transpose()
    }

    /// Orders are made like this from now on. The account stays where the directory does, and so does the binding where none is given.
    pub(crate) async fn set(&self, asked: Asked) -> Result<Settings, Status> {
        let bad = |why: String| Status::new(Reason::BadRequest, why);
        let binding = match &asked.binding {
            Some((kid, key)) => {
                let sealed = STANDARD.encode(self.seal(&binding_key(key).map_err(bad)?)?);
                Some(Binding { kid: kid.clone(), sealed })
            }
            None => None,
        };
        for _ in 0..MAX_ATTEMPTS {
            let old = self.stored().await?;
            // What is damaged is replaced.
            let before = old.as_ref().and_then(|old| read(old).ok());
            let mut settings = Settings { binding: binding.clone(), account: None, ..asked.settings.clone() };
            if let Some(before) = before.filter(|before| before.directory == settings.directory) {
                settings.account = before.account;
                settings.binding = settings.binding.or(before.binding);
            }
            settings.check().map_err(bad)?;
            let op = own_object::put(
                &self.resources,
                &object_key(),
                old.as_ref(),
                settings.write(old.as_ref().map(Object::value).as_ref()),
            )?;
            match self.write(op).await {
                Ok(()) => return Ok(settings),
                Err(status) if is_outdated(&status) => {}
                Err(status) => return Err(status),
            }
        }
        Err(Status::new(Reason::Conflict, "the settings kept changing; try again"))
    }

    /// No certificate is ordered any more.
    pub(crate) async fn remove(&self) -> Result<(), Status> {
        for _ in 0..MAX_ATTEMPTS {
            let Some(old) = self.stored().await? else { return Ok(()) };
            match self.write(Op::Delete { key: object_key(), expect: Expect::same(&old) }).await {
                Ok(()) => return Ok(()),
                Err(status) if is_outdated(&status) => {}
                Err(status) => return Err(status),
            }
        }
        Err(Status::new(Reason::Conflict, "the settings kept changing; try again"))
    }

    async fn stored(&self) -> Result<Option<Object>, Status> {
        self.resources.store().get(&object_key(), Consistency::Linearizable).await
    }

    async fn write(&self, op: Op) -> Result<(), Status> {
        let id = RequestId::from(uuid::Uuid::new_v4().to_string());
        write_one(self.resources.store().as_ref(), id, op, self.resources.clock().now()).await.map(drop)
    }
}

impl Vault for AcmeSettings {
    fn seal(&self, plain: &[u8]) -> Result<Vec<u8>, Status> {
        let failed = || Status::internal("cannot seal a secret of the certificate authority's account");
        self.seal.seal(plain, &[]).ok_or_else(failed)
    }

    fn open(&self, sealed: &[u8]) -> Result<Vec<u8>, Status> {
        let wrong = || {
            Status::internal(
                "a secret of the certificate authority's account was sealed by another CA, or is damaged; set it anew with `hearth region acme`",
            )
        };
        self.seal.open(sealed, &[]).ok_or_else(wrong)
    }
}

fn is_outdated(status: &Status) -> bool {
    matches!(status.reason, Reason::Conflict | Reason::NotFound | Reason::AlreadyExists)
}

fn read(object: &Object) -> Result<Settings, Status> {
    Settings::read(&object.value()).map_err(|why| {
        let key = object_key();
        Status::internal(format!("the settings in the Secret {}/{}: {why}; set them anew", key.namespace, key.name))
    })
}
