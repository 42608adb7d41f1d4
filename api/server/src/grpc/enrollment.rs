//! How a machine becomes a Device.

use std::{sync::Arc, time::Duration};

use hearth_proto::v1;
use hearth_types::{Reason, Status, identity::Identity};
use tonic::{Request, Response};

use super::convert::grpc;
use crate::{
    door::{ConnInfo, Rate},
    tokens::Tokens,
};

/// Tries to join of one network at once, and how long until one more: a household with all its devices, and a typing error in each.
const JOIN_BURST: u32 = 100;
const JOIN_INTERVAL: Duration = Duration::from_millis(100);

pub(crate) struct EnrollmentDoor {
    tokens: Arc<Tokens>,
    rate: Rate,
}

impl EnrollmentDoor {
    pub(crate) fn new(tokens: Arc<Tokens>) -> Self {
        Self { tokens, rate: Rate::new(JOIN_BURST, JOIN_INTERVAL) }
    }
}

#[tonic::async_trait]
impl v1::enrollment_server::Enrollment for EnrollmentDoor {
    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinResponse>, tonic::Status> {
        let caller = request.extensions().get::<Identity>();
        let Some(Identity::Device { key, .. } | Identity::Stranger { key: Some(key) }) = caller else {
            let text = "joining takes a client certificate with the Ed25519 key that will be the device's";
            return Err(grpc(Status::new(Reason::Unauthorized, text)));
        };
        if let Some(info) = request.extensions().get::<ConnInfo>()
            && let Err(wait) = self.rate.take(info.remote.ip())
        {
            let text = format!(
                "too many tries to join from {}; try again in {:.1} s",
                info.remote.ip(),
                wait.max(JOIN_INTERVAL).as_secs_f32()
            );
            return Err(grpc(Status::new(Reason::TooManyRequests, text)));
        }
        let answer = self.tokens.join(request.get_ref(), *key).await.map_err(grpc)?;
        Ok(Response::new(answer))
    }
}
