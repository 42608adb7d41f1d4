//! Bearer tokens (distribution's "Token Authentication Specification"): asked for once for a scope, kept until they expire.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use reqwest::header::HeaderValue;
use reqwest::{Method, Url};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use crate::PullError;
use crate::challenge::Challenge;
use crate::credentials::Login;
use crate::door::{retry_after, says};
use crate::http::{Ask, Http};
use crate::name::Endpoint;

/// Bytes of a token server's answer. Real tokens have one to four KiB.
const MAX_ANSWER_BYTES: u64 = 64 * 1024;
/// Seconds that a token is good for where its server does not say, and at least (the specification's default and minimum).
const MIN_EXPIRES_IN: u64 = 60;
/// Longest time a token is kept, whatever its server says.
const MAX_EXPIRES_IN: u64 = 24 * 3600;
/// A token is not used in the last part of its time: it must still be good when it arrives.
const MARGIN: Duration = Duration::from_secs(10);
/// Tokens kept: one for each repository and login in use.
const MAX_TOKENS: usize = 256;

type Key = [u8; 32];

/// The tokens of a puller, for all its pulls. Nobody gets one that another login was given.
#[derive(Default)]
pub(crate) struct Tokens {
    kept: Mutex<HashMap<Key, Authorization>>,
}

/// The value of an `Authorization` header. Its `Debug` does not show it.
#[derive(Clone)]
pub(crate) struct Authorization {
    pub(crate) header: HeaderValue,
    /// It was got for an earlier request, and may have been revoked since.
    pub(crate) was_kept: bool,
    good_until: Option<Instant>,
    key: Key,
}

/// What is asked of a token server.
pub(crate) struct TokenRequest<'a> {
    endpoint: &'a Endpoint,
    login: Option<&'a Login>,
    what: &'a str,
    url: Url,
}

#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
    #[serde(default)]
    expires_in: Option<u64>,
}

impl Authorization {
    pub(crate) fn basic(login: &Login) -> Self {
        let mut header = HeaderValue::try_from(login.basic()).expect("base64 is valid in a header");
        header.set_sensitive(true);
        Self { header, was_kept: false, good_until: None, key: [0; 32] }
    }

    pub(crate) fn is_valid(&self) -> bool {
        self.good_until.is_none_or(|until| Instant::now() < until)
    }
}

impl<'a> TokenRequest<'a> {
    /// # Errors
    /// [`PullError::Invalid`] where the realm is no URL; [`PullError::Unauthorized`] where it is not HTTPS, unless the registry is one of
    /// those that plain HTTP is allowed to.
    pub(crate) fn new(
        challenge: &Challenge,
        endpoint: &'a Endpoint,
        login: Option<&'a Login>,
        what: &'a str,
    ) -> Result<Self, PullError> {
        let host = endpoint.host.as_str();
        let realm = challenge.parameter("realm").unwrap_or_default();
        let mut url = Url::parse(realm)
            .ok()
            .filter(Url::has_host)
            .ok_or_else(|| PullError::invalid(host, what, "the realm of its challenge is no URL"))?;
        let is_allowed = url.scheme() == "https" || (url.scheme() == "http" && endpoint.is_insecure());
        if !is_allowed || !url.username().is_empty() || url.password().is_some() {
            return Err(PullError::unauthorized(host, what, "it wants the login sent to a place that is not HTTPS"));
        }
        let scope = match challenge.parameter("scope") {
            Some(scope) => scope.to_owned(),
            None => format!("repository:{}:pull", endpoint.repository),
        };
        let mut query = url.query_pairs_mut();
        if let Some(service) = challenge.parameter("service") {
            query.append_pair("service", service);
        }
        query.append_pair("scope", &scope);
        drop(query);
        url.set_fragment(None);
        Ok(Self { endpoint, login, what, url })
    }

    fn key(&self) -> Key {
        let login = self.login.map(Login::basic).unwrap_or_default();
        let mut hasher = Sha256::new();
        for part in [self.endpoint.host.as_str(), self.url.as_str(), &login] {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        hasher.finalize().into()
    }

    fn invalid(&self, reason: &str) -> PullError {
        PullError::invalid(&self.endpoint.host, "the token", reason)
    }
}

impl Tokens {
    /// The token that was kept for the same request, or a new one.
    pub(crate) async fn get(&self, http: &Http, request: &TokenRequest<'_>) -> Result<Authorization, PullError> {
        let key = request.key();
        let kept = self.kept().get(&key).filter(|had| had.is_valid()).cloned();
        if let Some(had) = kept {
            return Ok(Authorization { was_kept: true, ..had });
        }
        let authorization = fetch(http, request, key).await?;
        self.keep(key, authorization.clone());
        Ok(authorization)
    }

    /// Forgets what was refused.
    pub(crate) fn forget(&self, authorization: &Authorization) {
        self.kept().remove(&authorization.key);
    }

    fn keep(&self, key: Key, authorization: Authorization) {
        let mut kept = self.kept();
        if kept.len() >= MAX_TOKENS {
            kept.retain(|_, had| had.is_valid());
        }
        if kept.len() >= MAX_TOKENS {
            kept.clear();
        }
        kept.insert(key, authorization);
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Authorization>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn fetch(http: &Http, request: &TokenRequest<'_>, key: Key) -> Result<Authorization, PullError> {
    let host = request.endpoint.host.as_str();
    let asked_at = Instant::now();
    let ask = Ask {
        method: Method::GET,
        url: request.url.clone(),
        host,
        what: "the token",
        accept: "application/json",
        from: None,
        authorization: request.login.map(|login| Authorization::basic(login).header),
    };
    let mut answer = http.send(ask).await?;
    let status = answer.status;
    match status.as_u16() {
        200 => {}
        429 => {
            let retry_after = retry_after(&answer.headers, SystemTime::now());
            return Err(PullError::TooManyRequests { host: host.into(), retry_after });
        }
        500..=599 => {
            return Err(PullError::unreachable(host, format!("its token server says {}", says(status, b""))));
        }
        // Nothing of the body: it was sent a password.
        400..=499 => {
            let reason = format!("its token server says {}", says(status, b""));
            return Err(PullError::unauthorized(host, request.what, reason));
        }
        _ => return Err(request.invalid(&format!("its server says {status}"))),
    }
    let bytes = answer.body.read(MAX_ANSWER_BYTES).await?;
    let bytes = bytes.ok_or_else(|| request.invalid(&format!("the answer is longer than {MAX_ANSWER_BYTES} bytes")))?;
    // serde's words may quote the answer.
    let answer: TokenAnswer =
        serde_json::from_slice(&bytes).map_err(|_| request.invalid("the answer is not JSON of the form expected"))?;
    let token = answer.token.filter(|token| !token.is_empty()).or(answer.access_token).unwrap_or_default();
    let header = HeaderValue::try_from(format!("Bearer {token}")).ok();
    let header = header.filter(|_| !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic()));
    let mut header = header.ok_or_else(|| request.invalid("it is empty or has characters that none can have"))?;
    header.set_sensitive(true);
    let good_for = Duration::from_secs(answer.expires_in.unwrap_or_default().clamp(MIN_EXPIRES_IN, MAX_EXPIRES_IN));
    let good_until = asked_at + good_for - MARGIN;
    Ok(Authorization { header, was_kept: false, good_until: Some(good_until), key })
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens").field("kept", &self.kept().len()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Authorization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authorization(..)")
    }
}
