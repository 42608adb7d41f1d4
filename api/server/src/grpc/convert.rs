//! Between the wire's messages and `hearth-types`.

use bytes::Bytes;
use hearth_proto::v1;
use hearth_types::{Object, ObjectKey, Reason, Status, store::WatchEvent};
use serde_json::Value;
use tonic::Code;

use crate::resources::{Outcome, Written, parse_key};

/// The most bytes of a message that go into a gRPC status. It travels in a header, percent-encoded, and
/// clients take 16 KiB of headers.
const MAX_MESSAGE: usize = 1024;
/// The most bytes of JSON details that go into a gRPC status, for the same reason (base64 adds a third).
const MAX_DETAILS: usize = 7 << 10;

/// The gRPC status of an error: its code, its text, and the whole of it as JSON in the details. What is too
/// long for a header is cut; of the causes the first ones stay.
pub(crate) fn to_grpc(status: &Status) -> tonic::Status {
    let code = match status.reason {
        Reason::BadRequest | Reason::Invalid => Code::InvalidArgument,
        Reason::Unauthorized => Code::Unauthenticated,
        Reason::Forbidden => Code::PermissionDenied,
        Reason::NotFound => Code::NotFound,
        Reason::AlreadyExists => Code::AlreadyExists,
        Reason::Conflict => Code::Aborted,
        Reason::Expired => Code::OutOfRange,
        Reason::TooManyRequests => Code::ResourceExhausted,
        Reason::InternalError => Code::Internal,
        Reason::ServiceUnavailable => Code::Unavailable,
        Reason::Timeout => Code::DeadlineExceeded,
    };
    let mut status = status.clone();
    let mut details = serde_json::to_vec(&status).unwrap_or_default();
    while details.len() > MAX_DETAILS {
        if status.causes.len() > 1 {
            status.causes.truncate(status.causes.len() / 2);
        } else {
            status.causes.clear();
        }
        let longest = MAX_DETAILS / 2;
        if status.message.len() > longest {
            status.message = format!("{} ...", cut(&status.message, longest));
        } else if status.causes.is_empty() {
            status.object = None;
            status.message = cut(&status.message, MAX_MESSAGE).to_owned();
        }
        details = serde_json::to_vec(&status).unwrap_or_default();
    }
    tonic::Status::with_details(code, cut(&status.message, MAX_MESSAGE), details.into())
}

fn cut(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

pub(super) fn grpc(status: Status) -> tonic::Status {
    to_grpc(&status)
}

pub(super) fn object(object: &Object) -> v1::Object {
    v1::Object {
        api_version: object.api_version().to_owned(),
        kind: object.kind().kind.to_string(),
        namespace: object.namespace().to_owned(),
        name: object.name().to_owned(),
        uid: object.uid().to_string(),
        revision: object.revision().0,
        json: Bytes::copy_from_slice(object.json()),
    }
}

pub(super) fn key(reference: Option<v1::ObjectRef>) -> Result<ObjectKey, Status> {
    let reference = reference.ok_or_else(|| Status::new(Reason::BadRequest, "ref: required"))?;
    parse_key(&reference.group, &reference.kind, &reference.namespace, &reference.name)
}

/// The JSON of a message. Bounded by the size of messages, its depth by serde_json.
pub(super) fn json(bytes: &[u8]) -> Result<Value, Status> {
    serde_json::from_slice(bytes).map_err(|error| Status::new(Reason::BadRequest, format!("not JSON: {error}")))
}

pub(super) fn event(event: &WatchEvent) -> v1::WatchEvent {
    use v1::watch_event::Type;
    let (kind, changed) = match event {
        WatchEvent::Added(object) => (Type::Added, object),
        WatchEvent::Modified(object) => (Type::Modified, object),
        WatchEvent::Deleted(object) => (Type::Deleted, object),
        WatchEvent::Bookmark(revision) => {
            return v1::WatchEvent { r#type: Type::Bookmark.into(), object: None, revision: revision.0 };
        }
    };
    v1::WatchEvent { r#type: kind.into(), object: Some(object(changed)), revision: changed.revision().0 }
}

pub(super) fn written(written: &Written) -> v1::WriteResponse {
    use v1::write_response::Outcome as Wire;
    let outcome = match written.outcome {
        Outcome::Created => Wire::Created,
        Outcome::Configured => Wire::Configured,
        Outcome::Unchanged => Wire::Unchanged,
    };
    v1::WriteResponse {
        object: Some(object(&written.object)),
        outcome: outcome.into(),
        warnings: written.warnings.clone(),
    }
}

#[cfg(test)]
mod tests {
    use hearth_types::{GroupKind, status::Cause};

    use super::*;

    #[test]
    fn a_status_travels_whole_and_a_huge_one_fits_a_header() {
        let key = ObjectKey::new(GroupKind::POD, "alice", "p");
        let small = Status::invalid(&key, vec![Cause::new("spec.x", "wrong")]);
        let sent = to_grpc(&small);
        assert_eq!(sent.code(), Code::InvalidArgument);
        assert_eq!(serde_json::from_slice::<Status>(sent.details()).expect("JSON"), small);
        let causes = (0..50).map(|n| Cause::new(format!("spec.f{n}"), "ü".repeat(400))).collect();
        for huge in [Status::invalid(&key, causes), Status::internal("ü".repeat(100_000))] {
            let sent = to_grpc(&huge);
            assert!(sent.details().len() <= MAX_DETAILS && sent.message().len() <= MAX_MESSAGE);
            let read: Status = serde_json::from_slice(sent.details()).expect("JSON");
            assert_eq!(read.reason, huge.reason);
            assert!(huge.message.starts_with(read.message.trim_end_matches(" ...")));
        }
    }
}
