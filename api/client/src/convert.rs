//! Between the wire's messages and `hearth-types`.

use hearth_proto::v1;
use hearth_types::{Object, ObjectKey, Reason, Revision, Status, store::WatchEvent};
use tonic::Code;

use crate::connect::ConnectError;

/// The most bytes of a server's error details that are read.
const MAX_DETAILS_BYTES: usize = 64 << 10;

/// Whether a request was surely never sent, since no connection could be made.
pub(crate) fn was_never_sent(grpc: &tonic::Status) -> bool {
    let mut source = std::error::Error::source(grpc);
    while let Some(error) = source {
        if error.is::<ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// The error that a gRPC status carries: the [`Status`] in its details, else what its code says.
pub fn status(grpc: &tonic::Status) -> Status {
    if !grpc.details().is_empty()
        && grpc.details().len() <= MAX_DETAILS_BYTES
        && let Ok(status) = serde_json::from_slice(grpc.details())
    {
        return status;
    }
    let mut source = std::error::Error::source(grpc);
    let from_transport = source.is_some();
    let mut deepest = String::new();
    while let Some(error) = source {
        if let Some(connect) = error.downcast_ref::<ConnectError>() {
            return Status::unavailable(connect.to_string());
        }
        deepest = error.to_string();
        source = error.source();
    }
    if from_transport && matches!(grpc.code(), Code::Unknown | Code::Unavailable | Code::Internal | Code::Cancelled) {
        return Status::unavailable(format!("the connection to the region's API broke: {deepest}"));
    }
    // The region's own errors of these codes have details, and a server that is flooded breaks the connection. Else it is a message
    // that is larger than its reader takes.
    if grpc.code() == Code::OutOfRange || (grpc.code() == Code::ResourceExhausted && !from_transport) {
        let text = format!("the request, or the answer to it, is too large to be sent: {}", grpc.message());
        return Status::new(Reason::BadRequest, text);
    }
    let reason = match grpc.code() {
        Code::InvalidArgument | Code::FailedPrecondition | Code::Unimplemented | Code::OutOfRange => Reason::BadRequest,
        Code::Unauthenticated => Reason::Unauthorized,
        Code::PermissionDenied => Reason::Forbidden,
        Code::NotFound => Reason::NotFound,
        Code::AlreadyExists => Reason::AlreadyExists,
        Code::Aborted => Reason::Conflict,
        Code::ResourceExhausted => Reason::TooManyRequests,
        Code::Unavailable | Code::Cancelled => Reason::ServiceUnavailable,
        Code::DeadlineExceeded => Reason::Timeout,
        Code::Ok | Code::Unknown | Code::Internal | Code::DataLoss => Reason::InternalError,
    };
    Status::new(reason, grpc.message())
}

/// The reference of a key.
pub fn reference(key: &ObjectKey) -> v1::ObjectRef {
    v1::ObjectRef {
        group: key.kind.group.to_string(),
        kind: key.kind.kind.to_string(),
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
    }
}

/// The object that an envelope carries.
pub fn object(envelope: &v1::Object) -> Result<Object, Status> {
    Object::from_json(&envelope.json).map_err(|error| {
        Status::internal(format!("the server sent {} {:?}, which is no object: {error}", envelope.kind, envelope.name))
    })
}

/// The object that a message must have.
pub(crate) fn required(envelope: Option<v1::Object>) -> Result<Object, Status> {
    object(&envelope.ok_or_else(|| Status::internal("the server's answer has no object"))?)
}

/// The change that a message tells.
pub fn watch_event(event: v1::WatchEvent) -> Result<WatchEvent, Status> {
    use v1::watch_event::Type;
    Ok(match event.r#type() {
        Type::Added => WatchEvent::Added(required(event.object)?),
        Type::Modified => WatchEvent::Modified(required(event.object)?),
        Type::Deleted => WatchEvent::Deleted(required(event.object)?),
        Type::Bookmark => WatchEvent::Bookmark(Revision(event.revision)),
        Type::Unspecified => return Err(Status::internal("the server sent a change of an unknown type")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_from_the_details_and_else_from_the_code() {
        let sent = Status::new(Reason::Expired, "too old");
        let details = serde_json::to_vec(&sent).expect("JSON");
        let grpc = tonic::Status::with_details(Code::OutOfRange, "too old", details.into());
        assert_eq!(status(&grpc), sent);
        let grpc = tonic::Status::with_details(Code::NotFound, "none", b"{nonsense".to_vec().into());
        assert_eq!(status(&grpc), Status::new(Reason::NotFound, "none"));
        assert_eq!(status(&tonic::Status::deadline_exceeded("slow")).reason, Reason::Timeout);
        for large in
            [tonic::Status::out_of_range("the limit is: 7 bytes"), tonic::Status::resource_exhausted("limit 7")]
        {
            let status = status(&large);
            assert_eq!(status.reason, Reason::BadRequest, "{status}");
            assert!(status.message.contains("too large") && status.message.contains('7'), "{status}");
        }
    }

    #[test]
    fn an_envelope_without_an_object_is_an_error() {
        object(&v1::Object { json: b"[]".to_vec().into(), ..v1::Object::default() }).expect_err("no object");
        watch_event(v1::WatchEvent::default()).expect_err("no type");
    }
}
