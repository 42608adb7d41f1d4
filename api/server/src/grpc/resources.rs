//! The door to the resource service.

use std::{pin::Pin, sync::Arc};

use futures_core::Stream;
use futures_util::StreamExt as _;
use hearth_proto::v1;
use hearth_types::{
    Reason, Revision, Status, Uid,
    admission::Part,
    store::{Consistency, Query},
};
use tonic::{Request, Response};

use super::convert::{self, grpc};
use crate::resources::{DeleteOptions, ResourceService, WriteOptions, parse_query};

/// The longest continue token in bytes that is read: far above those that a store makes.
const MAX_CONTINUE_BYTES: usize = 4096;

pub(crate) struct ResourcesDoor(pub(crate) Arc<ResourceService>);

fn query(selection: Option<v1::Selection>) -> Result<Query, Status> {
    let one = selection.ok_or_else(|| Status::new(Reason::BadRequest, "selection: required"))?;
    parse_query(&one.group, &one.kind, &one.namespace, &one.label_selector, &one.field_selector)
}

fn consistency(local: bool) -> Consistency {
    if local { Consistency::Local } else { Consistency::Linearizable }
}

fn options(request: &v1::WriteRequest) -> WriteOptions {
    WriteOptions { request_id: request.request_id.clone(), dry_run: request.dry_run }
}

type Events = Pin<Box<dyn Stream<Item = Result<v1::WatchEvent, tonic::Status>> + Send>>;

#[tonic::async_trait]
impl v1::resources_server::Resources for ResourcesDoor {
    type WatchStream = Events;

    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::Object>, tonic::Status> {
        let request = request.into_inner();
        let key = convert::key(request.r#ref).map_err(grpc)?;
        let object = self.0.get(&key, consistency(request.local)).await.map_err(grpc)?;
        Ok(Response::new(convert::object(&object)))
    }

    async fn list(&self, request: Request<v1::ListRequest>) -> Result<Response<v1::ListResponse>, tonic::Status> {
        let request = request.into_inner();
        let query = query(request.selection).map_err(grpc)?;
        if request.continue_token.len() > MAX_CONTINUE_BYTES {
            return Err(grpc(Status::new(Reason::BadRequest, "continue_token: not one of this region")));
        }
        let token = Some(request.continue_token.as_str()).filter(|token| !token.is_empty());
        let limit = usize::try_from(request.limit).unwrap_or(usize::MAX);
        let page = self.0.list(&query, limit, token, consistency(request.local)).await.map_err(grpc)?;
        Ok(Response::new(v1::ListResponse {
            items: page.items.iter().map(convert::object).collect(),
            revision: page.revision.0,
            continue_token: page.continue_token.unwrap_or_default(),
            remaining: page.remaining.unwrap_or_default(),
        }))
    }

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Events>, tonic::Status> {
        let request = request.into_inner();
        let query = query(request.selection).map_err(grpc)?;
        let events = self.0.watch(query, Revision(request.from_revision)).await.map_err(grpc)?;
        Ok(Response::new(Box::pin(events.map(|event| event.as_ref().map(convert::event).map_err(convert::to_grpc)))))
    }

    async fn create(&self, request: Request<v1::WriteRequest>) -> Result<Response<v1::WriteResponse>, tonic::Status> {
        let request = request.into_inner();
        let object = convert::json(&request.json).map_err(grpc)?;
        let written = self.0.create(object, &options(&request)).await.map_err(grpc)?;
        Ok(Response::new(convert::written(&written)))
    }

    async fn update(&self, request: Request<v1::WriteRequest>) -> Result<Response<v1::WriteResponse>, tonic::Status> {
        let request = request.into_inner();
        let object = convert::json(&request.json).map_err(grpc)?;
        let written = self.0.update(object, &options(&request)).await.map_err(grpc)?;
        Ok(Response::new(convert::written(&written)))
    }

    async fn update_status(
        &self,
        request: Request<v1::WriteRequest>,
    ) -> Result<Response<v1::WriteResponse>, tonic::Status> {
        let request = request.into_inner();
        let object = convert::json(&request.json).map_err(grpc)?;
        let written = self.0.update_status(object, &options(&request)).await.map_err(grpc)?;
        Ok(Response::new(convert::written(&written)))
    }

    async fn update_ephemeral_containers(
        &self,
        request: Request<v1::WriteRequest>,
    ) -> Result<Response<v1::WriteResponse>, tonic::Status> {
        let request = request.into_inner();
        let object = convert::json(&request.json).map_err(grpc)?;
        let written = self.0.update_ephemeral_containers(object, &options(&request)).await.map_err(grpc)?;
        Ok(Response::new(convert::written(&written)))
    }

    async fn apply(&self, request: Request<v1::WriteRequest>) -> Result<Response<v1::WriteResponse>, tonic::Status> {
        let request = request.into_inner();
        let object = convert::json(&request.json).map_err(grpc)?;
        let written = self.0.apply(object, &options(&request)).await.map_err(grpc)?;
        Ok(Response::new(convert::written(&written)))
    }

    async fn apply_all(
        &self,
        request: Request<v1::ApplyAllRequest>,
    ) -> Result<Response<v1::ApplyAllResponse>, tonic::Status> {
        let request = request.into_inner();
        let named = |(index, bytes): (usize, &bytes::Bytes)| {
            convert::json(bytes)
                .map_err(|status| Status { message: format!("objects[{index}]: {}", status.message), ..status })
        };
        let objects = request.objects.iter().enumerate().map(named).collect::<Result<_, _>>().map_err(grpc)?;
        let options = WriteOptions { request_id: request.request_id, dry_run: request.dry_run };
        let written = self.0.apply_all(objects, &options).await.map_err(grpc)?;
        Ok(Response::new(v1::ApplyAllResponse { items: written.iter().map(convert::written).collect() }))
    }

    async fn patch(&self, request: Request<v1::PatchRequest>) -> Result<Response<v1::WriteResponse>, tonic::Status> {
        let request = request.into_inner();
        let key = convert::key(request.r#ref).map_err(grpc)?;
        let patch = convert::json(&request.patch).map_err(grpc)?;
        let part = if request.status { Part::Status } else { Part::Main };
        let options = WriteOptions { request_id: request.request_id, dry_run: request.dry_run };
        let written = self.0.patch(&key, &patch, part, &options).await.map_err(grpc)?;
        Ok(Response::new(convert::written(&written)))
    }

    async fn delete(&self, request: Request<v1::DeleteRequest>) -> Result<Response<v1::DeleteResponse>, tonic::Status> {
        let request = request.into_inner();
        let key = convert::key(request.r#ref).map_err(grpc)?;
        let options = DeleteOptions {
            request_id: request.request_id,
            grace_seconds: request.grace_seconds,
            uid: Some(request.uid).filter(|uid| !uid.is_empty()).map(Uid::from),
        };
        let deleted = self.0.delete(&key, &options).await.map_err(grpc)?;
        Ok(Response::new(v1::DeleteResponse {
            object: Some(convert::object(&deleted.object)),
            removed: deleted.removed,
        }))
    }
}
