//! How a relay that runs by itself becomes one of the region, and stays one.

use std::sync::Arc;

use hearth_proto::v1;
use tonic::{Request, Response};

use super::{convert::grpc, join_rate, joining_key};
use crate::{door::Rate, tokens::Tokens};

pub(crate) struct RelaysDoor {
    tokens: Arc<Tokens>,
    rate: Rate,
}

impl RelaysDoor {
    pub(crate) fn new(tokens: Arc<Tokens>) -> Self {
        Self { tokens, rate: join_rate() }
    }

    async fn with_servers(&self, mut admission: v1::RelayAdmission) -> Response<v1::RelayAdmission> {
        admission.servers = self.tokens.known_addresses().await;
        Response::new(admission)
    }
}

#[tonic::async_trait]
impl v1::relay_enrollment_server::RelayEnrollment for RelaysDoor {
    async fn join(
        &self,
        request: Request<v1::JoinRelayRequest>,
    ) -> Result<Response<v1::RelayAdmission>, tonic::Status> {
        let key = joining_key(&request, &self.rate, "relay").map_err(grpc)?;
        let answer = self.tokens.join_relay(request.get_ref(), key).await.map_err(grpc)?;
        Ok(self.with_servers(answer).await)
    }

    async fn renew(
        &self,
        request: Request<v1::RenewRelayRequest>,
    ) -> Result<Response<v1::RelayAdmission>, tonic::Status> {
        let key = joining_key(&request, &self.rate, "relay").map_err(grpc)?;
        let request = request.into_inner();
        let answer = self.tokens.renew_relay(&request.url, request.discovery_port, key).await.map_err(grpc)?;
        Ok(self.with_servers(answer).await)
    }
}
