//! Logs, exec, attach, forwarded ports and usage: the pod's device is asked through its tunnel, and the messages are passed on.

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
/// The answer of a device with 110 pods of 32 containers each has less than 1 MiB.
const MAX_STATS_BYTES: usize = 4 << 20;
/// The answer of a device with tunnels to all gateways of its roster and with all relays has less than 16 KiB.
const MAX_LINE_BYTES: usize = 64 << 10;
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
        let object = self.pod(namespace, pod).await?;
        let container = container_of(&object, container)?;
        Ok((device_of(&object)?, container))
    }

    async fn pod(&self, namespace: &str, pod: &str) -> Result<Object, Status> {
        let key = parse_key(&GroupKind::POD.group, &GroupKind::POD.kind, namespace, pod)?;
        let object = self.resources.store().get(&key, Consistency::Linearizable).await?;
        object.ok_or_else(|| Status::not_found(&key))
    }
    /// The door of the pod's device, and what to send through it.
    async fn session(
        &self,
        mut start: v1::ExecStart,
        rest: Streaming<v1::ExecInput>,
    ) -> Result<
        (String, DeviceName, DeviceDoorClient<Channel>, impl Stream<Item = v1::ExecInput> + Send + use<>),
        tonic::Status,
    > {
        let (device, container) = self.place(&start.namespace, &start.pod, &start.container).await.map_err(grpc)?;
        start.container = container;
        let pod = start.pod.clone();
        let door = self.door(&pod, &device).await.map_err(grpc)?;
        let start = v1::ExecInput { input: Some(v1::exec_input::Input::Start(start)) };
        Ok((pod, device, door, stream::iter([start]).chain(whole(rest))))
    }

    async fn door(&self, pod: &str, device: &DeviceName) -> Result<DeviceDoorClient<Channel>, Status> {
        let channel = self.connector.connect(device).await.map_err(|error| unreachable(pod, device, &error))?;
        Ok(DeviceDoorClient::new(channel))
    }
}

/// The device that a pod was bound to.
fn device_of(object: &Object) -> Result<DeviceName, Status> {
    let node = object.value().pointer("/spec/nodeName").and_then(Value::as_str).unwrap_or_default().to_owned();
    if node.is_empty() {
        let pod = object.name();
        let text = format!("pod {pod:?} is not scheduled yet: it is on no device (see `hearth describe pod {pod}`)");
        return Err(about(object.key(), Reason::BadRequest, text));
    }
    Ok(DeviceName::from(node))
}

fn about(key: &ObjectKey, reason: Reason, text: String) -> Status {
    Status { object: Some(Box::new(key.clone())), ..Status::new(reason, text) }
}

/// The container that a request means: the one that it names, or the only one.
fn container_of(pod: &Object, wanted: &str) -> Result<String, Status> {
    let value = pod.value();
    let containers = value.pointer("/spec/containers").and_then(Value::as_array).into_iter().flatten();
    let names: Vec<&str> = containers.filter_map(|container| container.get("name").and_then(Value::as_str)).collect();
    let lists = ["/spec/initContainers", "/spec/ephemeralContainers"].into_iter();
    let others = lists.filter_map(|list| value.pointer(list)?.as_array()).flatten();
    let mut others = others.filter_map(|container| container.get("name").and_then(Value::as_str));
    let list = names.join(" ");
    match (wanted, names.as_slice()) {
        ("", [only]) => Ok((*only).to_owned()),
        ("", _) => {
            let text = format!("a container name must be specified for pod {}, choose one of: [{list}]", pod.name());
            Err(about(pod.key(), Reason::BadRequest, text))
        }
        (wanted, names) if names.contains(&wanted) || others.any(|name| name == wanted) => Ok(wanted.to_owned()),
        (wanted, _) => {
            let text = format!("container {} is not valid for pod {}; it has [{list}]", shown(wanted), pod.name());
            Err(about(pod.key(), Reason::BadRequest, text))
        }
    }
}

/// Of no pod where the device itself was asked.
fn unreachable(pod: &str, device: &DeviceName, error: &DialError) -> Status {
    let place = match pod {
        "" => format!("cannot ask device {:?}", device.as_str()),
        pod => format!("pod {pod:?} is on device {:?}", device.as_str()),
    };
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
    if error.code() == tonic::Code::Unimplemented {
        let device = device.as_str();
        return grpc(Status::unavailable(format!(
            "device {device:?} runs an older release, which cannot do this: update it"
        )));
    }
    if error.details().is_empty() && std::error::Error::source(&error).is_some() {
        let why = error.message().to_owned();
        return grpc(unreachable(pod, device, &DialError::Broken { device: device.clone(), why }));
    }
    error
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, tonic::Status>> + Send>>;
type Chunks = Answers<v1::LogsChunk>;
type Outputs = Answers<v1::ExecOutput>;
type Forwarded = Answers<v1::PortForwardOutput>;

#[tonic::async_trait]
impl v1::pods_server::Pods for PodsDoor {
    type LogsStream = Chunks;
    type ExecStream = Outputs;
    type AttachStream = Outputs;
    type PortForwardStream = Forwarded;

    async fn logs(&self, request: Request<v1::LogsRequest>) -> Result<Response<Chunks>, tonic::Status> {
        let mut request = request.into_inner();
        let (device, container) =
            self.place(&request.namespace, &request.pod, &request.container).await.map_err(grpc)?;
        request.container = container;
        let pod = request.pod.clone();
        let mut door = self.door(&pod, &device).await.map_err(grpc)?;
        let answer = door.logs(request).await.map_err(|error| from_device(&pod, &device, error))?;
        Ok(passed_on(pod, device, door, answer))
    }

    async fn exec(&self, request: Request<Streaming<v1::ExecInput>>) -> Result<Response<Outputs>, tonic::Status> {
        let (start, rest) = begin(request, "exec: the first message must say what to run").await?;
        check_command(&start.command).map_err(grpc)?;
        let (pod, device, mut door, input) = self.session(start, rest).await?;
        let answer = door.exec(input).await.map_err(|error| from_device(&pod, &device, error))?;
        Ok(passed_on(pod, device, door, answer))
    }

    async fn attach(&self, request: Request<Streaming<v1::ExecInput>>) -> Result<Response<Outputs>, tonic::Status> {
        let (start, rest) = begin(request, "attach: the first message must say to what").await?;
        if !start.command.is_empty() {
            return Err(grpc(Status::new(Reason::BadRequest, "attach: there is no command to run; use exec")));
        }
        let (pod, device, mut door, input) = self.session(start, rest).await?;
        let answer = door.attach(input).await.map_err(|error| from_device(&pod, &device, error))?;
        Ok(passed_on(pod, device, door, answer))
    }

    async fn port_forward(
        &self,
        request: Request<Streaming<v1::PortForwardInput>>,
    ) -> Result<Response<Forwarded>, tonic::Status> {
        let mut input = request.into_inner();
        let first = tokio::time::timeout(START_TIMEOUT, input.message()).await;
        let first = first.map_err(|_| grpc(Status::new(Reason::Timeout, "port-forward: no message came")))??;
        let Some(v1::port_forward_input::Input::Start(start)) = first.and_then(|first| first.input) else {
            return Err(grpc(Status::new(Reason::BadRequest, "port-forward: the first message must say where to")));
        };
        if !(1..=u32::from(u16::MAX)).contains(&start.port) {
            return Err(grpc(Status::new(Reason::BadRequest, "port-forward: the port must be from 1 to 65535")));
        }
        let object = self.pod(&start.namespace, &start.pod).await.map_err(grpc)?;
        let device = device_of(&object).map_err(grpc)?;
        let pod = start.pod.clone();
        let mut door = self.door(&pod, &device).await.map_err(grpc)?;
        let start = v1::PortForwardInput { input: Some(v1::port_forward_input::Input::Start(start)) };
        let forwarded = stream::iter([start]).chain(whole(input));
        let answer = door.port_forward(forwarded).await.map_err(|error| from_device(&pod, &device, error))?;
        Ok(passed_on(pod, device, door, answer))
    }

    async fn stats(&self, request: Request<v1::StatsRequest>) -> Result<Response<v1::StatsResponse>, tonic::Status> {
        let request = request.into_inner();
        // The name of a device is that of its Node: what is none is not dialled.
        parse_key("", "Node", "", &request.device).map_err(grpc)?;
        let device = DeviceName::from(request.device.clone());
        let channel = self.connector.connect(&device).await.map_err(|error| grpc(unreachable("", &device, &error)))?;
        let mut door = DeviceDoorClient::new(channel).max_decoding_message_size(MAX_STATS_BYTES);
        let asked = tokio::time::timeout(DOOR_TIMEOUT, door.stats(request)).await;
        let late = |_| grpc(Status::new(Reason::Timeout, format!("device {:?} did not answer", device.as_str())));
        asked.map_err(late)?.map_err(|error| from_device("", &device, error))
    }

    async fn line(&self, request: Request<v1::LineRequest>) -> Result<Response<v1::LineResponse>, tonic::Status> {
        let request = request.into_inner();
        parse_key("", "Node", "", &request.device).map_err(grpc)?;
        let device = DeviceName::from(request.device.clone());
        let channel = self.connector.connect(&device).await.map_err(|error| grpc(unreachable("", &device, &error)))?;
        let mut door = DeviceDoorClient::new(channel).max_decoding_message_size(MAX_LINE_BYTES);
        let asked = tokio::time::timeout(DOOR_TIMEOUT, door.line(request)).await;
        let late = |_| grpc(Status::new(Reason::Timeout, format!("device {:?} did not answer", device.as_str())));
        asked.map_err(late)?.map_err(|error| from_device("", &device, error))
    }
}

/// The first message of an exec or attach, and the others.
async fn begin(
    request: Request<Streaming<v1::ExecInput>>,
    wrong: &'static str,
) -> Result<(v1::ExecStart, Streaming<v1::ExecInput>), tonic::Status> {
    let mut input = request.into_inner();
    let first = tokio::time::timeout(START_TIMEOUT, input.message()).await;
    let first = first.map_err(|_| grpc(Status::new(Reason::Timeout, "no message came in time")))??;
    match first.and_then(|first| first.input) {
        Some(v1::exec_input::Input::Start(start)) => Ok((start, input)),
        _ => Err(grpc(Status::new(Reason::BadRequest, wrong))),
    }
}

/// Where the caller's side breaks, the input ends, and the device ends what it does for it.
fn whole<T: Send + 'static>(input: Streaming<T>) -> impl Stream<Item = T> + Send {
    let rest = input.take_while(|message| std::future::ready(message.is_ok()));
    rest.filter_map(|message| std::future::ready(message.ok()))
}

/// A device's answers. The client of the door lives as long as the stream, or its connection would close.
fn passed_on<T: Send + 'static>(
    pod: String,
    device: DeviceName,
    door: DeviceDoorClient<Channel>,
    answer: Response<Streaming<T>>,
) -> Response<Answers<T>> {
    let outputs = answer.into_inner().map(move |output| {
        let _ = &door;
        output.map_err(|error| from_device(&pod, &device, error))
    });
    Response::new(Box::pin(outputs))
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
