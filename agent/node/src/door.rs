//! The device's door for the region's servers: logs, exec, attach, forwarded ports, usage and metrics over a stream of the tunnel.

mod attach;
mod exec;
mod forward;
mod line;
mod log;
mod stats;

use std::{pin::Pin, sync::Arc};

use futures_core::Stream;
use hearth_proto::v1::{self, device_door_server::DeviceDoor};
use hearth_tunnel::{DeviceTunnel, StreamPeer};
use hearth_types::{GroupKind, ObjectKey, Reason, Status as ApiStatus, status::Cause};
use tokio::sync::Semaphore;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::{
    container,
    shared::{PodEntry, Shared},
};

/// Messages that wait for a slow client, per call.
const QUEUE: usize = 8;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service.
#[derive(Clone)]
pub(crate) struct Door {
    shared: Arc<Shared>,
    registry: prometheus::Registry,
    tunnel: DeviceTunnel,
    forwards: Arc<Semaphore>,
    questions: Arc<Semaphore>,
}

impl Door {
    pub(crate) fn new(shared: Arc<Shared>, registry: prometheus::Registry, tunnel: DeviceTunnel) -> Self {
        let room = |places| Arc::new(Semaphore::new(places));
        let (forwards, questions) = (room(forward::MAX_FORWARDS), room(stats::MAX_QUESTIONS));
        Self { shared, registry, tunnel, forwards, questions }
    }
}

#[tonic::async_trait]
impl DeviceDoor for Door {
    type LogsStream = Answers<v1::LogsChunk>;
    type ExecStream = Answers<v1::ExecOutput>;
    type AttachStream = Answers<v1::ExecOutput>;
    type PortForwardStream = Answers<v1::PortForwardOutput>;

    async fn logs(&self, request: Request<v1::LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        log::serve(&self.shared, request.into_inner()).map(Response::new)
    }

    async fn exec(&self, request: Request<Streaming<v1::ExecInput>>) -> Result<Response<Self::ExecStream>, Status> {
        exec::serve(&self.shared, request.into_inner()).await.map(Response::new)
    }

    async fn attach(&self, request: Request<Streaming<v1::ExecInput>>) -> Result<Response<Self::AttachStream>, Status> {
        attach::serve(&self.shared, request.into_inner()).await.map(Response::new)
    }

    async fn port_forward(
        &self,
        request: Request<Streaming<v1::PortForwardInput>>,
    ) -> Result<Response<Self::PortForwardStream>, Status> {
        forward::serve(&self.shared, &self.forwards, request.into_inner()).await.map(Response::new)
    }

    async fn stats(&self, request: Request<v1::StatsRequest>) -> Result<Response<v1::StatsResponse>, Status> {
        stats::serve(&self.shared, &self.questions, &request.into_inner().namespace).await.map(Response::new)
    }

    async fn line(&self, request: Request<v1::LineRequest>) -> Result<Response<v1::LineResponse>, Status> {
        let asking = request.extensions().get::<StreamPeer>().copied();
        line::serve(&self.tunnel, &self.questions, asking).await.map(Response::new)
    }

    async fn metrics(&self, _: Request<v1::MetricsRequest>) -> Result<Response<v1::MetricsResponse>, Status> {
        Ok(Response::new(v1::MetricsResponse { text: metrics_text(&self.registry).into() }))
    }
}

/// All metrics of a registry, in the Prometheus text format.
pub(crate) fn metrics_text(registry: &prometheus::Registry) -> Vec<u8> {
    let mut text = String::new();
    if let Err(error) = prometheus::TextEncoder::new().encode_utf8(&registry.gather(), &mut text) {
        tracing::error!(%error, "metrics cannot be written");
    }
    text.into_bytes()
}

/// An error as it crosses doors: with the whole status in its details.
fn refuse(reason: Reason, message: impl Into<String>) -> Status {
    let status = ApiStatus { causes: Vec::<Cause>::new(), ..ApiStatus::new(reason, message) };
    let code = match reason {
        Reason::NotFound => Code::NotFound,
        Reason::BadRequest => Code::InvalidArgument,
        Reason::ServiceUnavailable => Code::Unavailable,
        _ => Code::Internal,
    };
    let details = serde_json::to_vec(&status).unwrap_or_default();
    Status::with_details(code, status.message, details.into())
}

fn find_pod(shared: &Shared, namespace: &str, pod: &str) -> Result<Arc<PodEntry>, Status> {
    let found = shared.pods.get(&ObjectKey::new(GroupKind::POD, namespace, pod));
    found.ok_or_else(|| refuse(Reason::NotFound, format!("pods \"{pod}\" is not on this device (yet, or any more)")))
}

/// The pod, and the container that is meant, with kubectl's words where there is none.
fn find(shared: &Shared, namespace: &str, pod: &str, container: &str) -> Result<(Arc<PodEntry>, String), Status> {
    let entry = find_pod(shared, namespace, pod)?;
    let found = entry.pod();
    let containers = found.spec.as_ref().map(|spec| spec.containers.as_slice()).unwrap_or_default();
    let names: Vec<&str> = containers.iter().map(|one| one.name.as_str()).collect();
    let name = match (container, names.as_slice()) {
        ("", [only]) => (*only).to_owned(),
        ("", _) => {
            let text =
                format!("a container name must be specified for pod {pod}, choose one of: [{}]", names.join(" "));
            return Err(refuse(Reason::BadRequest, text));
        }
        (name, _) if container::named(&found, name).is_some() => name.to_owned(),
        (name, _) => return Err(refuse(Reason::BadRequest, format!("container {name} is not valid for pod {pod}"))),
    };
    Ok((entry, name))
}
