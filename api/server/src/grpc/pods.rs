//! Logs and exec: the pod's device is asked through its tunnel, and the messages are passed on.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_core::Stream;
use futures_util::{StreamExt as _, stream};
use hearth_proto::v1::{self, device_door_client::DeviceDoorClient};
use hearth_types::{
    BoxFuture, DeviceName, GroupKind, Object, ObjectKey, Reason, Status,
    store::Consistency,
    tunnel::{DialError, Dialer, StreamKind},
};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::{
    Request, Response, Streaming,
    transport::{Channel, Endpoint},
};

use super::convert::grpc;
use crate::resources::{ResourceService, parse_key, shown};

/// How long the first message of an exec may be waited for.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a device may take to answer on a stream that is open.
const DOOR_TIMEOUT: Duration = Duration::from_secs(15);
/// Words of a command at most, and bytes of all of them: what Linux takes (`execve(2)`: `MAX_ARG_STRLEN`).
const MAX_COMMAND_WORDS: usize = 1_000;
const MAX_COMMAND_BYTES: usize = 128 << 10;

/// Reaches the gRPC door of a device.
pub trait DeviceDoorConnector: Send + Sync + 'static {
    /// A channel to the device's `DeviceDoor`. Bounded in time: an unreachable device fails.
    fn connect<'a>(&'a self, device: &'a DeviceName) -> BoxFuture<'a, Result<Channel, DialError>>;
}

/// For a region without tunnels: every device is away.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoDevices;

impl DeviceDoorConnector for NoDevices {
    fn connect<'a>(&'a self, device: &'a DeviceName) -> BoxFuture<'a, Result<Channel, DialError>> {
        Box::pin(std::future::ready(Err(DialError::Away(device.clone()))))
    }
}

/// Opens a stream of a device's tunnel for each call and speaks gRPC on it.
#[derive(Debug)]
pub struct TunnelConnector<D>(pub Arc<D>);

impl<D> DeviceDoorConnector for TunnelConnector<D>
where
    D: Dialer,
    D::Stream: AsyncRead + AsyncWrite,
{
    fn connect<'a>(&'a self, device: &'a DeviceName) -> BoxFuture<'a, Result<Channel, DialError>> {
        Box::pin(async move {
            let stream = self.0.dial(device, StreamKind::Rpc).await?;
            let broken = |why: String| DialError::Broken { device: device.clone(), why };
            // The channel connects once, over the stream that is open; a second time it fails.
            let stream = Arc::new(Mutex::new(Some(TokioIo::new(stream))));
            let connector = tower::service_fn(move |_: http::Uri| {
                let stream = stream.lock().unwrap_or_else(PoisonError::into_inner).take();
                std::future::ready(stream.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::BrokenPipe)))
            });
            let endpoint = Endpoint::from_static("http://device");
            match tokio::time::timeout(DOOR_TIMEOUT, endpoint.connect_with_connector(connector)).await {
                Ok(connected) => connected.map_err(|error| broken(error.to_string())),
                Err(_) => Err(broken(format!("no answer within {} s", DOOR_TIMEOUT.as_secs()))),
            }
        })
    }
}

pub(crate) struct PodsDoor {
    pub(crate) resources: Arc<ResourceService>,
    pub(crate) connector: Arc<dyn DeviceDoorConnector>,
}

impl PodsDoor {
    /// The device of a pod and the container that is meant.
    async fn place(&self, namespace: &str, pod: &str, container: &str) -> Result<(DeviceName, String), Status> {
        let key = parse_key(&GroupKind::POD.group, &GroupKind::POD.kind, namespace, pod)?;
        let object = self.resources.store().get(&key, Consistency::Linearizable).await?;
        let object = object.ok_or_else(|| Status::not_found(&key))?;
        let container = container_of(&object, container)?;
        let node = object.value().pointer("/spec/nodeName").and_then(Value::as_str).unwrap_or_default().to_owned();
        if node.is_empty() {
            let text =
                format!("pod {pod:?} is not scheduled yet: it is on no device (see `hearth describe pod {pod}`)");
            return Err(about(&key, Reason::BadRequest, text));
        }
        Ok((DeviceName::from(node), container))
    }

    async fn door(&self, pod: &str, device: &DeviceName) -> Result<DeviceDoorClient<Channel>, Status> {
        let channel = self.connector.connect(device).await.map_err(|error| unreachable(pod, device, &error))?;
        Ok(DeviceDoorClient::new(channel))
    }
}

fn about(key: &ObjectKey, reason: Reason, text: String) -> Status {
    Status { object: Some(Box::new(key.clone())), ..Status::new(reason, text) }
}

/// The container that a request means: the one that it names, or the only one.
fn container_of(pod: &Object, wanted: &str) -> Result<String, Status> {
    let value = pod.value();
    let containers = value.pointer("/spec/containers").and_then(Value::as_array).into_iter().flatten();
    let names: Vec<&str> = containers.filter_map(|container| container.get("name").and_then(Value::as_str)).collect();
    let first = value.pointer("/spec/initContainers").and_then(Value::as_array).into_iter().flatten();
    let mut first = first.filter_map(|container| container.get("name").and_then(Value::as_str));
    let list = names.join(" ");
    match (wanted, names.as_slice()) {
        ("", [only]) => Ok((*only).to_owned()),
        ("", _) => {
            let text = format!("a container name must be specified for pod {}, choose one of: [{list}]", pod.name());
            Err(about(pod.key(), Reason::BadRequest, text))
        }
        (wanted, names) if names.contains(&wanted) || first.any(|name| name == wanted) => Ok(wanted.to_owned()),
        (wanted, _) => {
            let text = format!("container {} is not valid for pod {}; it has [{list}]", shown(wanted), pod.name());
            Err(about(pod.key(), Reason::BadRequest, text))
        }
    }
}

fn unreachable(pod: &str, device: &DeviceName, error: &DialError) -> Status {
    let place = format!("pod {pod:?} is on device {:?}", device.as_str());
    match error {
        DialError::Unknown(_) => Status::unavailable(format!("{place}, which this region does not know")),
        DialError::Away(_) => Status::unavailable(format!(
            "{place}, which has no session with this region: it is switched off or without network"
        )),
        DialError::Timeout { seconds, .. } => {
            Status::new(Reason::Timeout, format!("{place}, which did not open a tunnel within {seconds} s"))
        }
        DialError::Broken { why, .. } => Status::unavailable(format!("{place}, whose tunnel broke: {why}")),
    }
}

/// A device's own errors are passed on; those of the way to it say so.
fn from_device(pod: &str, device: &DeviceName, error: tonic::Status) -> tonic::Status {
    if error.details().is_empty() && std::error::Error::source(&error).is_some() {
        let why = error.message().to_owned();
        return grpc(unreachable(pod, device, &DialError::Broken { device: device.clone(), why }));
    }
    error
}

type Chunks = Pin<Box<dyn Stream<Item = Result<v1::LogsChunk, tonic::Status>> + Send>>;
type Outputs = Pin<Box<dyn Stream<Item = Result<v1::ExecOutput, tonic::Status>> + Send>>;

#[tonic::async_trait]
impl v1::pods_server::Pods for PodsDoor {
    type LogsStream = Chunks;
    type ExecStream = Outputs;

    async fn logs(&self, request: Request<v1::LogsRequest>) -> Result<Response<Chunks>, tonic::Status> {
        let mut request = request.into_inner();
        let (device, container) =
            self.place(&request.namespace, &request.pod, &request.container).await.map_err(grpc)?;
        request.container = container;
        let pod = request.pod.clone();
        let mut door = self.door(&pod, &device).await.map_err(grpc)?;
        let answer = door.logs(request).await.map_err(|error| from_device(&pod, &device, error))?;
        // The client of the door lives as long as the stream, or its connection would close.
        let chunks = answer.into_inner().map(move |chunk| {
            let _ = &door;
            chunk.map_err(|error| from_device(&pod, &device, error))
        });
        Ok(Response::new(Box::pin(chunks)))
    }

    async fn exec(&self, request: Request<Streaming<v1::ExecInput>>) -> Result<Response<Outputs>, tonic::Status> {
        let mut input = request.into_inner();
        let first = tokio::time::timeout(START_TIMEOUT, input.message()).await;
        let first = first.map_err(|_| grpc(Status::new(Reason::Timeout, "exec: no message came")))??;
        let Some(v1::exec_input::Input::Start(mut start)) = first.and_then(|first| first.input) else {
            return Err(grpc(Status::new(Reason::BadRequest, "exec: the first message must say what to run")));
        };
        check_command(&start.command).map_err(grpc)?;
        let (device, container) = self.place(&start.namespace, &start.pod, &start.container).await.map_err(grpc)?;
        start.container = container;
        let pod = start.pod.clone();
        let mut door = self.door(&pod, &device).await.map_err(grpc)?;
        let start = v1::ExecInput { input: Some(v1::exec_input::Input::Start(start)) };
        // Where the caller's side breaks, the input ends, and the device ends the command.
        let rest = input.take_while(|message| std::future::ready(message.is_ok()));
        let rest = rest.filter_map(|message| std::future::ready(message.ok()));
        let forwarded = stream::iter([start]).chain(rest);
        let answer = door.exec(forwarded).await.map_err(|error| from_device(&pod, &device, error))?;
        let outputs = answer.into_inner().map(move |output| {
            let _ = &door;
            output.map_err(|error| from_device(&pod, &device, error))
        });
        Ok(Response::new(Box::pin(outputs)))
    }
}

fn check_command(command: &[String]) -> Result<(), Status> {
    let bytes: usize = command.iter().map(|word| word.len() + 1).sum();
    let wrong = if command.is_empty() || command[0].is_empty() {
        "exec: a command is required, as `hearth exec POD -- ls`"
    } else if command.len() > MAX_COMMAND_WORDS || bytes > MAX_COMMAND_BYTES {
        "exec: the command is too long"
    } else if command.iter().any(|word| word.contains('\0')) {
        "exec: a word of the command has a NUL character"
    } else {
        return Ok(());
    };
    Err(Status::new(Reason::BadRequest, wrong))
}
