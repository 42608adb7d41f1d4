//! What a region says of itself, and the making of join tokens.

use std::{sync::Arc, time::Duration};

use hearth_proto::v1;
use hearth_types::{
    GroupKind, Reason, Status,
    store::{Consistency, Query},
};
use tonic::{Request, Response};

use super::{
    backup::{self, Backups},
    convert::grpc,
};
use crate::{
    resources::ResourceService,
    tokens::{Joiner, Tokens},
};

pub(crate) struct RegionDoor {
    pub(crate) resources: Arc<ResourceService>,
    pub(crate) tokens: Arc<Tokens>,
    pub(crate) region: String,
    pub(crate) version: String,
    pub(crate) backups: Backups,
}

fn joiner(request: &v1::CreateTokenRequest) -> Result<Joiner<'_>, Status> {
    let bad = |text: &str| Err(Status::new(Reason::BadRequest, text));
    match (request.owner.as_str(), request.any_owner, request.server) {
        ("", false, true) => Ok(Joiner::Server),
        (_, _, true) => bad("server and owner exclude each other: a server is nobody's"),
        ("", true, false) => Ok(Joiner::Device),
        ("", false, false) => bad(
            "owner: required: whose device joins by the token; a token by which the device says itself whose it is, be it anybody, has to \
             be asked for in so many words (any_owner)",
        ),
        (_, true, false) => bad("owner and any_owner exclude each other"),
        (owner, false, false) => Ok(Joiner::DeviceOf(owner)),
    }
}

#[tonic::async_trait]
impl v1::region_server::Region for RegionDoor {
    type BackupStream = backup::Chunks;

    async fn info(&self, _: Request<v1::InfoRequest>) -> Result<Response<v1::InfoResponse>, tonic::Status> {
        // A page of one answers with the revision too.
        let query = Query::all(GroupKind::NAMESPACE);
        let page = self.resources.list(&query, 1, None, Consistency::Linearizable).await.map_err(grpc)?;
        Ok(Response::new(v1::InfoResponse {
            version: self.version.clone(),
            region: self.region.clone(),
            zone: self.resources.zone().to_owned(),
            incarnation: self.resources.store().incarnation().to_string(),
            revision: page.revision.0,
        }))
    }

    async fn create_token(
        &self,
        request: Request<v1::CreateTokenRequest>,
    ) -> Result<Response<v1::CreateTokenResponse>, tonic::Status> {
        let request = request.into_inner();
        let valid = Duration::from_secs(request.valid_seconds);
        let joiner = joiner(&request).map_err(grpc)?;
        let (token, expires) = self.tokens.create(joiner, valid).await.map_err(grpc)?;
        let id = token.secret.split_once('.').map_or("", |(id, _)| id).to_owned();
        Ok(Response::new(v1::CreateTokenResponse { token: token.to_string(), expires_millis: expires.0, id }))
    }

    async fn list_tokens(
        &self,
        _: Request<v1::ListTokensRequest>,
    ) -> Result<Response<v1::ListTokensResponse>, tonic::Status> {
        let tokens = self.tokens.list().await.map_err(grpc)?;
        Ok(Response::new(v1::ListTokensResponse { tokens }))
    }

    async fn delete_token(
        &self,
        request: Request<v1::DeleteTokenRequest>,
    ) -> Result<Response<v1::DeleteTokenResponse>, tonic::Status> {
        self.tokens.delete(&request.get_ref().id).await.map_err(grpc)?;
        Ok(Response::new(v1::DeleteTokenResponse {}))
    }

    async fn backup(&self, _: Request<v1::BackupRequest>) -> Result<Response<backup::Chunks>, tonic::Status> {
        Ok(Response::new(self.backups.begin().await.map_err(grpc)?))
    }
}
