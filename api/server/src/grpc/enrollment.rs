//! How a machine becomes a Device.

use std::sync::Arc;

use hearth_proto::v1;
use hearth_types::{Reason, Status, identity::Identity};
use tonic::{Request, Response};

use super::convert::grpc;
use crate::tokens::Tokens;

pub(crate) struct EnrollmentDoor(pub(crate) Arc<Tokens>);

#[tonic::async_trait]
impl v1::enrollment_server::Enrollment for EnrollmentDoor {
    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinResponse>, tonic::Status> {
        let caller = request.extensions().get::<Identity>();
        let Some(Identity::Device { key, .. } | Identity::Stranger { key: Some(key) }) = caller else {
            let text = "joining takes a client certificate with the Ed25519 key that will be the device's";
            return Err(grpc(Status::new(Reason::Unauthorized, text)));
        };
        let answer = self.0.join(request.get_ref(), *key).await.map_err(grpc)?;
        Ok(Response::new(answer))
    }
}
