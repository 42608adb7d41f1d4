//! What the other servers of the region ask this one.

use std::sync::Arc;

use hearth_proto::v1;
use hearth_types::{Reason, Status, group::PeerService, identity::Identity};
use tonic::{Request, Response};

use super::convert::grpc;
use crate::servers::Servers;

pub(crate) struct PeersDoor {
    servers: Arc<Servers>,
    service: Arc<dyn PeerService>,
}

impl PeersDoor {
    pub(crate) fn new(servers: Arc<Servers>, service: Arc<dyn PeerService>) -> Self {
        Self { servers, service }
    }
}

/// The server that makes a request: one that is not this one, and that was not removed.
pub(super) fn caller<T>(request: &Request<T>, servers: &Servers) -> Result<u64, Status> {
    let Some(Identity::Server { id }) = request.extensions().get::<Identity>() else {
        return Err(Status::new(Reason::Unauthorized, "only servers of the region may call this"));
    };
    if *id == servers.group().id() {
        let text = format!(
            "two servers of the region have the number {id}: a data directory was copied; stop one, and let it join anew with an empty one"
        );
        return Err(Status::new(Reason::Forbidden, text));
    }
    servers.check(*id)?;
    Ok(*id)
}

#[tonic::async_trait]
impl v1::peers_server::Peers for PeersDoor {
    async fn call(&self, request: Request<v1::PeerCall>) -> Result<Response<v1::PeerAnswer>, tonic::Status> {
        let from = caller(&request, &self.servers).map_err(grpc)?;
        let answer = self.service.answer(from, request.into_inner().request).await.map_err(grpc)?;
        Ok(Response::new(v1::PeerAnswer { answer }))
    }
}
