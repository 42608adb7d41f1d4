//! How a machine becomes a Device.

use std::{sync::Arc, time::Duration};

use hearth_proto::v1;
use hearth_types::{DeviceKey, Reason, Status, identity::Identity};
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
        Self { tokens, rate: join_rate() }
    }
}

/// How often somebody may try to join.
pub(crate) fn join_rate() -> Rate {
    Rate::new(JOIN_BURST, JOIN_INTERVAL)
}

/// The key that somebody who joins has proved, unless they try too often. `whose` it will be is for the refusal.
pub(crate) fn joining_key<T>(request: &Request<T>, rate: &Rate, whose: &str) -> Result<DeviceKey, Status> {
    let caller = request.extensions().get::<Identity>();
    let Some(Identity::Device { key, .. } | Identity::Stranger { key: Some(key) }) = caller else {
        let text = format!("joining takes a client certificate with the Ed25519 key that will be the {whose}'s");
        return Err(Status::new(Reason::Unauthorized, text));
    };
    if let Some(info) = request.extensions().get::<ConnInfo>()
        && let Err(wait) = rate.take(info.remote.ip(), tokio::time::Instant::now())
    {
        let (who, wait) = (info.remote.ip(), wait.max(JOIN_INTERVAL).as_secs_f32());
        let text = format!("too many tries to join from {who}; try again in {wait:.1} s");
        return Err(Status::new(Reason::TooManyRequests, text));
    }
    Ok(*key)
}

#[tonic::async_trait]
impl v1::enrollment_server::Enrollment for EnrollmentDoor {
    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinResponse>, tonic::Status> {
        let key = joining_key(&request, &self.rate, "device").map_err(grpc)?;
        let answer = self.tokens.join(request.get_ref(), key).await.map_err(grpc)?;
        Ok(Response::new(answer))
    }
}
