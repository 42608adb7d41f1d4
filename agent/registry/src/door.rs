//! One registry or mirror as one pull sees it: asks, proves who asks, and judges the answers.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use reqwest::header::{HeaderMap, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{Method, StatusCode, Url};
use serde::Deserialize;
use tokio::sync::Mutex;

use crate::PullError;
use crate::challenge::{self, Challenge};
use crate::credentials::Login;
use crate::error::clip;
use crate::http::{Answer, Ask, Http};
use crate::name::Endpoint;
use crate::token::{Authorization, TokenRequest, Tokens};

/// Bytes of a refusal's body that are looked at for its reason.
const MAX_REFUSAL_BYTES: u64 = 64 * 1024;
/// Challenges in a row that one request answers with the same login: a token may have been revoked, once.
const MAX_REFUSALS: usize = 3;

/// See the module.
pub(crate) struct Door<'a> {
    pub(crate) endpoint: Endpoint,
    http: &'a Http,
    tokens: &'a Tokens,
    /// To be tried in order, as the kubelet does. Never empty: `None` is nobody.
    logins: Vec<Option<Login>>,
    state: Mutex<State>,
    /// It failed, and further requests of this pull go to the next.
    passed_over: AtomicBool,
}

#[derive(Default)]
struct State {
    login: usize,
    authorization: Option<Authorization>,
    /// Counts changes of the two above: who was refused with older ones tries again with these.
    generation: u64,
    /// An answer was given to this authorization, so that a later refusal means that it is no longer good.
    was_accepted: bool,
}

impl<'a> Door<'a> {
    pub(crate) fn new(endpoint: Endpoint, http: &'a Http, tokens: &'a Tokens, logins: Vec<Login>) -> Self {
        let logins = if logins.is_empty() { vec![None] } else { logins.into_iter().map(Some).collect() };
        Self { endpoint, http, tokens, logins, state: Mutex::default(), passed_over: AtomicBool::new(false) }
    }

    pub(crate) fn host(&self) -> &str {
        &self.endpoint.host
    }

    pub(crate) fn pass_over(&self) {
        self.passed_over.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_passed_over(&self) -> bool {
        self.passed_over.load(Ordering::Relaxed)
    }

    /// Asks, and authenticates where the registry wants it. Any answer but 200, 206 and 416 is an error.
    pub(crate) async fn ask(
        &self,
        method: Method,
        url: Url,
        what: &str,
        accept: &'static str,
        from: Option<u64>,
    ) -> Result<Answer, PullError> {
        for _ in 0..MAX_REFUSALS + self.logins.len() {
            let (authorization, generation) = self.authorization().await;
            let (method, url, host) = (method.clone(), url.clone(), self.host());
            let ask = Ask { method, url, host, what, accept, from, authorization: authorization.clone() };
            let answer = self.http.send(ask).await?;
            match answer.status {
                StatusCode::UNAUTHORIZED if answer.is_own => self.prove(&answer.headers, what, generation).await?,
                StatusCode::FORBIDDEN if answer.is_own && self.next_login(generation).await => {}
                StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                    self.note_accepted(generation).await;
                    return Ok(answer);
                }
                _ => return Err(self.refusal(answer, what).await),
            }
        }
        Err(PullError::unauthorized(self.host(), what, "it asks for a login again and again"))
    }

    async fn authorization(&self) -> (Option<HeaderValue>, u64) {
        let state = self.state.lock().await;
        let header = state.authorization.as_ref().filter(|had| had.is_valid()).map(|had| had.header.clone());
        (header, state.generation)
    }

    async fn note_accepted(&self, generation: u64) {
        let mut state = self.state.lock().await;
        state.was_accepted |= state.generation == generation;
    }

    /// Goes on to the next login, where there is one. True also where another request has done so.
    async fn next_login(&self, generation: u64) -> bool {
        let mut state = self.state.lock().await;
        state.generation != generation || self.advance(&mut state)
    }

    fn advance(&self, state: &mut State) -> bool {
        let more = state.login + 1 < self.logins.len();
        if more {
            *state = State { login: state.login + 1, generation: state.generation + 1, ..State::default() };
        }
        more
    }

    /// Answers a challenge. Requests that were refused at the same time wait for one answer.
    async fn prove(&self, headers: &HeaderMap, what: &str, generation: u64) -> Result<(), PullError> {
        let challenges = self.challenges(headers, what)?;
        let mut state = self.state.lock().await;
        if state.generation != generation {
            return Ok(());
        }
        if let Some(had) = state.authorization.take() {
            self.tokens.forget(&had);
            // Refused though fresh: it is the login that is wrong.
            let may_be_old = state.was_accepted || had.was_kept || !had.is_valid();
            if !may_be_old && !self.advance(&mut state) {
                return Err(PullError::unauthorized(self.host(), what, "the login was refused"));
            }
        }
        loop {
            match self.authorize(&challenges, what, self.logins[state.login].as_ref()).await {
                Ok(authorization) => {
                    state.authorization = Some(authorization);
                    state.generation += 1;
                    state.was_accepted = false;
                    return Ok(());
                }
                Err(PullError::Unauthorized { .. }) if self.advance(&mut state) => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn challenges(&self, headers: &HeaderMap, what: &str) -> Result<Vec<Challenge>, PullError> {
        let mut all = Vec::new();
        for header in headers.get_all(WWW_AUTHENTICATE) {
            let read = challenge::parse(header.as_bytes());
            all.extend(read.map_err(|error| PullError::invalid(self.host(), what, error.to_string()))?);
        }
        Ok(all)
    }

    /// Bearer before Basic: a password is shown to as few as possible.
    async fn authorize(
        &self,
        challenges: &[Challenge],
        what: &str,
        login: Option<&Login>,
    ) -> Result<Authorization, PullError> {
        let of = |scheme: &str| challenges.iter().find(|challenge| challenge.scheme == scheme);
        if let Some(challenge) = of("bearer") {
            let request = TokenRequest::new(challenge, &self.endpoint, login, what)?;
            return self.tokens.get(self.http, &request).await;
        }
        match (of("basic"), login) {
            (Some(_), Some(login)) => Ok(Authorization::basic(login)),
            (Some(_), None) => Err(PullError::unauthorized(self.host(), what, "it wants a login")),
            (None, _) => {
                let reason = "it wants a login, and not by Bearer or Basic";
                Err(PullError::unauthorized(self.host(), what, reason))
            }
        }
    }

    async fn refusal(&self, mut answer: Answer, what: &str) -> PullError {
        let (host, status) = (self.host().to_owned(), answer.status);
        let body = answer.body.read(MAX_REFUSAL_BYTES).await.ok().flatten().unwrap_or_default();
        let state = self.state.lock().await;
        let says = self.without_secrets(says(status, &body), &state);
        match status.as_u16() {
            404 => PullError::NotFound { host, what: what.into() },
            401 | 403 => PullError::unauthorized(&host, what, says),
            429 => PullError::TooManyRequests { host, retry_after: retry_after(&answer.headers, SystemTime::now()) },
            408 | 500..=599 => PullError::unreachable(&host, format!("it says {says}")),
            _ => PullError::Refused { host, what: what.into(), says },
        }
    }

    /// A registry may repeat what it was sent.
    fn without_secrets(&self, says: String, state: &State) -> String {
        let password = self.logins[state.login].as_ref().map(|login| login.password.as_str());
        let sent =
            state.authorization.as_ref().and_then(|had| had.header.to_str().ok()?.split_once(' ')).map(|it| it.1);
        let tells = password.into_iter().chain(sent).any(|secret| !secret.is_empty() && says.contains(secret));
        if tells { "(words that repeat a secret)".into() } else { says }
    }
}

impl fmt::Debug for Door<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Door").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

/// The status, and the codes and messages of the body where it has the form of the specification ("Error Codes").
pub(crate) fn says(status: StatusCode, body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Body {
        errors: Vec<Item>,
    }
    #[derive(Deserialize)]
    struct Item {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let words = match serde_json::from_slice::<Body>(body) {
        Ok(body) => {
            body.errors.iter().map(|item| format!("{} {}", item.code, item.message)).collect::<Vec<_>>().join("; ")
        }
        Err(_) => String::new(),
    };
    let words = clip(words.trim());
    if words.is_empty() { status.to_string() } else { format!("{status}: {words}") }
}

/// Seconds or a date (RFC 9110, 10.2.3).
pub(crate) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let at = httpdate::parse_http_date(text).ok()?;
    Some(at.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retry_after_is_seconds_or_a_date() {
        let now = httpdate::parse_http_date("Fri, 01 Jan 2027 00:00:00 GMT").expect("a date");
        for (text, seconds) in [
            ("7", Some(7)),
            ("Fri, 01 Jan 2027 00:00:09 GMT", Some(9)),
            ("Fri, 01 Jan 2021 00:00:00 GMT", Some(0)),
            ("-1", None),
            ("soon", None),
        ] {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static(text))]);
            assert_eq!(retry_after(&headers, now), seconds.map(Duration::from_secs), "{text}");
        }
    }

    #[test]
    fn a_refusal_is_repeated_clipped_and_in_one_line() {
        let body = format!("{{\"errors\":[{{\"code\":\"DENIED\",\"message\":\"a\\nb{}\"}}]}}", "x".repeat(1000));
        let said = says(StatusCode::FORBIDDEN, body.as_bytes());
        assert!(said.starts_with("403 Forbidden: DENIED abx") && said.len() < 400, "{said}");
        assert_eq!(says(StatusCode::BAD_REQUEST, b"<html>"), "400 Bad Request");
    }
}
