//! The one error that crosses doors, shaped as Kubernetes' `meta/v1 Status`, so that a message reads the
//! same through gRPC, REST and the CLI.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{ObjectKey, registry::KindInfo};

/// Why a request failed: the machine-readable reasons of Kubernetes that Hearth uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Reason {
    /// 400: the request cannot be understood.
    BadRequest,
    /// 401: nobody that the region knows.
    Unauthorized,
    /// 403: known, but may not.
    Forbidden,
    /// 404: there is no such thing.
    NotFound,
    /// 409: there is one of that name already.
    AlreadyExists,
    /// 409: it changed since it was read.
    Conflict,
    /// 410: the revision asked for is no longer in the history; list anew.
    Expired,
    /// 422: understood, and wrong; the causes say which fields.
    Invalid,
    /// 429: too much at once; try again later.
    TooManyRequests,
    /// 500: a fault of the region.
    InternalError,
    /// 503: not now (no leader, a full disk); the request can be repeated.
    ServiceUnavailable,
    /// 504: it took too long; whether it happened is unknown.
    Timeout,
}

impl Reason {
    /// The HTTP status code that Kubernetes gives it.
    pub fn code(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::AlreadyExists | Self::Conflict => 409,
            Self::Expired => 410,
            Self::Invalid => 422,
            Self::TooManyRequests => 429,
            Self::InternalError => 500,
            Self::ServiceUnavailable => 503,
            Self::Timeout => 504,
        }
    }
}

/// One field that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// The field's path, as `spec.containers[0].image`.
    pub field: String,
    /// What is wrong with it and what to do.
    pub message: String,
}

impl Cause {
    /// A field and what is wrong with it.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() { f.write_str(&self.message) } else { write!(f, "{}: {}", self.field, self.message) }
    }
}

/// What went wrong, with which object, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Status {
    /// The machine-readable reason.
    pub reason: Reason,
    /// The text for people: what was tried, with which object, why it failed, what to do.
    pub message: String,
    /// The object, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<Box<ObjectKey>>,
    /// The fields that are wrong.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<Cause>,
}

impl Status {
    /// A failure with a reason and a text.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), object: None, causes: Vec::new() }
    }

    /// There is no such object: `deployments.apps "x" not found`, as kubectl's users know it.
    pub fn not_found(key: &ObjectKey) -> Self {
        let what = resource_of(key);
        Self {
            object: Some(Box::new(key.clone())),
            ..Self::new(Reason::NotFound, format!("{what} \"{}\" not found", key.name))
        }
    }

    /// There is one of that name already.
    pub fn already_exists(key: &ObjectKey) -> Self {
        let what = resource_of(key);
        let text = format!("{what} \"{}\" already exists", key.name);
        Self { object: Some(Box::new(key.clone())), ..Self::new(Reason::AlreadyExists, text) }
    }

    /// It changed since it was read.
    pub fn conflict(key: &ObjectKey, why: &str) -> Self {
        let what = resource_of(key);
        let text = format!("Operation cannot be fulfilled on {what} \"{}\": {why}", key.name);
        Self { object: Some(Box::new(key.clone())), ..Self::new(Reason::Conflict, text) }
    }

    /// Understood, and wrong: the text lists every field.
    pub fn invalid(key: &ObjectKey, causes: Vec<Cause>) -> Self {
        let list = causes.iter().map(Cause::to_string).collect::<Vec<_>>();
        let list = if list.len() == 1 { list.concat() } else { format!("[{}]", list.join(", ")) };
        let text = format!("{} \"{}\" is invalid: {list}", key.kind, key.name);
        Self { object: Some(Box::new(key.clone())), causes, ..Self::new(Reason::Invalid, text) }
    }

    /// Not now; the request can be repeated.
    pub fn unavailable(why: impl Into<String>) -> Self {
        Self::new(Reason::ServiceUnavailable, why)
    }

    /// A fault of the region.
    pub fn internal(why: impl Into<String>) -> Self {
        Self::new(Reason::InternalError, why)
    }
}

fn resource_of(key: &ObjectKey) -> String {
    crate::registry::of_kind(&key.kind).map_or_else(|| key.kind.to_string(), KindInfo::resource)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::GroupKind;

    #[test]
    fn messages_read_like_kubectls() {
        let key = ObjectKey::new(GroupKind::DEPLOYMENT, "alice", "web");
        assert_eq!(Status::not_found(&key).to_string(), r#"deployments.apps "web" not found"#);
        assert_eq!(
            Status::invalid(&key, vec![Cause::new("spec.replicas", "must not be negative")]).to_string(),
            r#"Deployment.apps "web" is invalid: spec.replicas: must not be negative"#
        );
    }
}
