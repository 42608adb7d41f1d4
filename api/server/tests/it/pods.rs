//! Logs and exec: from the client through the region to a device and back.

use std::{collections::HashMap, pin::Pin, sync::Arc};

use futures_util::{Stream, StreamExt as _, stream};
use hearth_api::TunnelConnector;
use hearth_client::WriteOptions;
use hearth_proto::v1::{self, exec_input::Input, exec_output::Output};
use hearth_types::{
    BoxFuture, DeviceName, GroupKind, Object, Reason, Timestamp,
    store::{Expect, Op, write_one},
    tunnel::{DialError, Dialer, StreamKind},
};
use serde_json::json;
use tokio::{io::DuplexStream, sync::mpsc};
use tonic::{Request, Response, Status, Streaming};

use crate::region::{LIMIT, Region, key, pod};

/// A device's own door: says what it was asked.
struct Door;

#[tonic::async_trait]
impl v1::device_door_server::DeviceDoor for Door {
    type LogsStream = Pin<Box<dyn Stream<Item = Result<v1::LogsChunk, Status>> + Send>>;
    type ExecStream = Pin<Box<dyn Stream<Item = Result<v1::ExecOutput, Status>> + Send>>;
    type AttachStream = Self::ExecStream;
    type PortForwardStream = Pin<Box<dyn Stream<Item = Result<v1::PortForwardOutput, Status>> + Send>>;

    async fn logs(&self, request: Request<v1::LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        let request = request.into_inner();
        if request.previous {
            return Err(Status::not_found("there was no attempt before this one"));
        }
        let line = format!("{}/{}/{} tail={:?}\n", request.namespace, request.pod, request.container, request.tail);
        let chunks = [Ok(v1::LogsChunk { data: line.into() }), Ok(v1::LogsChunk { data: "end\n".into() })];
        Ok(Response::new(Box::pin(stream::iter(chunks))))
    }

    async fn exec(&self, request: Request<Streaming<v1::ExecInput>>) -> Result<Response<Self::ExecStream>, Status> {
        let outputs = request.into_inner().filter_map(async |input| {
            let output = match input.ok()?.input? {
                Input::Start(start) => {
                    Output::Stderr(format!("{}: {}", start.container, start.command.join(" ")).into())
                }
                Input::Stdin(bytes) => Output::Stdout(bytes),
                Input::StdinClosed(_) => Output::ExitCode(3),
                Input::Resize(_) => return None,
            };
            Some(Ok(v1::ExecOutput { output: Some(output) }))
        });
        Ok(Response::new(Box::pin(outputs)))
    }

    async fn attach(&self, _: Request<Streaming<v1::ExecInput>>) -> Result<Response<Self::AttachStream>, Status> {
        // As a device of an older release.
        Err(Status::unimplemented(""))
    }

    async fn port_forward(
        &self,
        request: Request<Streaming<v1::PortForwardInput>>,
    ) -> Result<Response<Self::PortForwardStream>, Status> {
        use v1::{port_forward_input::Input, port_forward_output::Output};
        let outputs = request.into_inner().filter_map(async |input| {
            let output = match input.ok()?.input? {
                Input::Start(start) => Output::Data(format!("{}:{} ", start.pod, start.port).into()),
                Input::Data(bytes) => Output::Data(bytes),
                Input::Closed(_) => Output::Closed(true),
            };
            Some(Ok(v1::PortForwardOutput { output: Some(output) }))
        });
        Ok(Response::new(Box::pin(outputs)))
    }

    async fn stats(&self, request: Request<v1::StatsRequest>) -> Result<Response<v1::StatsResponse>, Status> {
        let pod = v1::PodStats { namespace: request.into_inner().namespace, ..v1::PodStats::default() };
        Ok(Response::new(v1::StatsResponse { pods: vec![pod], device: None }))
    }

    async fn line(&self, request: Request<v1::LineRequest>) -> Result<Response<v1::LineResponse>, Status> {
        let tunnel = v1::TunnelPath { relay: request.into_inner().device, ..v1::TunnelPath::default() };
        Ok(Response::new(v1::LineResponse { tunnels: vec![tunnel], udp: Some(false), ..v1::LineResponse::default() }))
    }

    async fn metrics(&self, _: Request<v1::MetricsRequest>) -> Result<Response<v1::MetricsResponse>, Status> {
        Ok(Response::new(v1::MetricsResponse::default()))
    }
}

/// Tunnels in memory.
struct Tunnels {
    devices: HashMap<&'static str, mpsc::Sender<std::io::Result<DuplexStream>>>,
}

impl Dialer for Tunnels {
    type Stream = DuplexStream;
    fn dial<'a>(&'a self, device: &'a DeviceName, kind: StreamKind) -> BoxFuture<'a, Result<DuplexStream, DialError>> {
        Box::pin(async move {
            assert_eq!(kind, StreamKind::Rpc);
            if device.as_str() == "slow" {
                return Err(DialError::Timeout { device: device.clone(), seconds: 10 });
            }
            let accept = self.devices.get(device.as_str()).ok_or_else(|| DialError::Away(device.clone()))?;
            let (ours, theirs) = tokio::io::duplex(64 << 10);
            accept.send(Ok(theirs)).await.map_err(|_| DialError::Away(device.clone()))?;
            Ok(ours)
        })
    }
}

async fn region() -> Region {
    let (accept, incoming) = mpsc::channel(4);
    let incoming = stream::unfold(incoming, async |mut incoming| Some((incoming.recv().await?, incoming)));
    let door = tonic::transport::Server::builder().add_service(v1::device_door_server::DeviceDoorServer::new(Door));
    tokio::spawn(door.serve_with_incoming(incoming));
    let tunnels = Tunnels { devices: HashMap::from([("nas", accept)]) };
    let region = Region::start_with(Some(Arc::new(TunnelConnector(Arc::new(tunnels)))), None).await;
    for (name, containers, device) in [
        ("one", &["web"][..], "nas"),
        ("two", &["web", "db"], "nas"),
        ("far", &["web"], "pi"),
        ("late", &["web"], "slow"),
        ("pending", &["web"], ""),
    ] {
        let created = region.admin().create(&pod("alice", name, containers), &WriteOptions::default()).await.unwrap();
        if !device.is_empty() {
            let mut value = created.object.value();
            value["spec"]["nodeName"] = json!(device);
            let object = Object::from_value(value).unwrap();
            let op = Op::Update { object, expect: Expect::same(&created.object) };
            write_one(region.store.as_ref(), format!("bind {name}").into(), op, Timestamp(1)).await.unwrap();
        }
    }
    region
}

fn logs(pod: &str, container: &str) -> v1::LogsRequest {
    let (namespace, pod, container) = ("alice".into(), pod.into(), container.into());
    v1::LogsRequest { namespace, pod, container, tail: Some(5), ..v1::LogsRequest::default() }
}

#[tokio::test]
async fn logs_come_from_the_pods_device() {
    let region = region().await;
    let client = region.admin();
    for (pod, container, expected) in [("one", "", "web"), ("two", "db", "db")] {
        let chunks: Vec<_> = client.logs(logs(pod, container)).await.unwrap().map(Result::unwrap).collect().await;
        assert_eq!(chunks.concat(), format!("alice/{pod}/{expected} tail=Some(5)\nend\n").into_bytes());
    }
    for (request, reason, expected) in [
        (logs("none", ""), Reason::NotFound, "pods \"none\" not found"),
        (
            logs("two", ""),
            Reason::BadRequest,
            "a container name must be specified for pod two, choose one of: [web db]",
        ),
        (logs("one", "x"), Reason::BadRequest, "container \"x\" is not valid for pod one; it has [web]"),
        (logs("pending", ""), Reason::BadRequest, "pod \"pending\" is not scheduled yet"),
        (
            logs("far", ""),
            Reason::ServiceUnavailable,
            "pod \"far\" is on device \"pi\", which has no session with this region",
        ),
        (
            logs("late", ""),
            Reason::Timeout,
            "pod \"late\" is on device \"slow\", which did not open a tunnel within 10 s",
        ),
        (logs("../x", ""), Reason::BadRequest, "lowercase RFC 1123"),
        (v1::LogsRequest { previous: true, ..logs("one", "") }, Reason::NotFound, "no attempt before"),
    ] {
        let status = client.logs(request).await.err().expect("refused");
        assert_eq!(status.reason, reason, "{status}");
        assert!(status.message.contains(expected), "{expected}: {status}");
    }
    client.get(&key(GroupKind::POD, "alice", "one")).await.unwrap();
}

#[tokio::test]
async fn exec_goes_both_ways_and_ends_with_the_exit_code() {
    let region = region().await;
    let client = region.admin();
    let start = |pod: &str, command: &[&str]| v1::ExecInput {
        input: Some(Input::Start(v1::ExecStart {
            namespace: "alice".into(),
            pod: pod.into(),
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            stdin: true,
            ..v1::ExecStart::default()
        })),
    };
    let (send, receive) = mpsc::channel(4);
    let input = stream::unfold(receive, async |mut receive| Some((receive.recv().await?, receive)));
    send.send(start("one", &["cat", "-n"])).await.unwrap();
    let mut outputs = client.exec(input).await.unwrap();
    let mut next =
        async || tokio::time::timeout(LIMIT, outputs.next()).await.unwrap().unwrap().unwrap().output.unwrap();
    assert_eq!(next().await, Output::Stderr("web: cat -n".into()));
    // What is written is answered before the input ends: nothing is held back on the way.
    for text in ["a", "b"] {
        send.send(v1::ExecInput { input: Some(Input::Stdin(text.into())) }).await.unwrap();
        assert_eq!(next().await, Output::Stdout(text.into()));
    }
    send.send(v1::ExecInput { input: Some(Input::StdinClosed(true)) }).await.unwrap();
    assert_eq!(next().await, Output::ExitCode(3));
    for (first, expected) in [
        (start("one", &[]), "a command is required"),
        (start("one", &["a\0b"]), "NUL"),
        (start("pending", &["ls"]), "not scheduled yet"),
        (v1::ExecInput { input: Some(Input::StdinClosed(true)) }, "the first message must say what to run"),
    ] {
        let status = client.exec(stream::iter([first])).await.err().expect("refused");
        assert!(status.message.contains(expected), "{expected}: {status}");
    }
}

#[tokio::test]
async fn a_forwarded_connection_goes_both_ways_and_keeps_its_halves_apart() {
    use v1::{port_forward_input::Input, port_forward_output::Output};
    let region = region().await;
    let client = region.admin();
    let start = |pod: &str, port| v1::PortForwardInput {
        input: Some(Input::Start(v1::PortForwardStart { namespace: "alice".into(), pod: pod.into(), port })),
    };
    let data = |text: &'static str| v1::PortForwardInput { input: Some(Input::Data(text.into())) };
    let (send, receive) = mpsc::channel(4);
    let input = stream::unfold(receive, async |mut receive| Some((receive.recv().await?, receive)));
    send.send(start("two", 80)).await.unwrap();
    let mut outputs = client.port_forward(input).await.unwrap();
    let mut next =
        async || tokio::time::timeout(LIMIT, outputs.next()).await.unwrap().unwrap().unwrap().output.unwrap();
    assert_eq!(next().await, Output::Data("two:80 ".into()), "no container need be named");
    send.send(data("ping")).await.unwrap();
    assert_eq!(next().await, Output::Data("ping".into()));
    send.send(v1::PortForwardInput { input: Some(Input::Closed(true)) }).await.unwrap();
    assert_eq!(next().await, Output::Closed(true));
    for (first, expected) in [
        (start("one", 0), "the port must be from 1 to 65535"),
        (start("one", 70_000), "the port must be from 1 to 65535"),
        (start("none", 80), "pods \"none\" not found"),
        (start("pending", 80), "not scheduled yet"),
        (data("x"), "the first message must say where to"),
    ] {
        let status = client.port_forward(stream::iter([first])).await.err().expect("refused");
        assert!(status.message.contains(expected), "{expected}: {status}");
    }
}

#[tokio::test]
async fn usage_is_asked_of_the_device_and_an_older_one_is_said_to_be_so() {
    let region = region().await;
    let client = region.admin();
    let answer = client.stats("nas", "alice").await.unwrap();
    assert_eq!(answer.pods[0].namespace, "alice");
    let line = client.line("nas").await.unwrap();
    assert_eq!((line.tunnels[0].relay.as_str(), line.udp), ("nas", Some(false)));
    assert!(client.line("pi").await.expect_err("away").message.contains("has no session"));
    for (device, expected) in [("pi", "cannot ask device \"pi\", which has no session"), ("../x", "lowercase RFC 1123")]
    {
        let status = client.stats(device, "").await.expect_err("refused");
        assert!(status.message.contains(expected), "{expected}: {status}");
    }
    let start = v1::ExecStart { namespace: "alice".into(), pod: "one".into(), ..v1::ExecStart::default() };
    let start = v1::ExecInput { input: Some(Input::Start(start)) };
    let status = client.attach(stream::iter([start])).await.err().expect("refused");
    assert!(status.message.contains("device \"nas\" runs an older release"), "{status}");
}
