//! gRPC over tunnels.

use std::time::Duration;

use hearth_proto::v1::{
    ExecInput, ExecOutput, LineRequest, LineResponse, LogsChunk, LogsRequest, MetricsRequest, MetricsResponse,
    PortForwardInput, PortForwardOutput, StatsRequest, StatsResponse,
    device_door_client::DeviceDoorClient,
    device_door_server::{DeviceDoor, DeviceDoorServer},
};
use hearth_tunnel::{IncomingStreams, StreamPeer};
use hearth_types::{
    DeviceName,
    tunnel::{Dialer, StreamKind},
};
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Channel, Endpoint, Uri},
};

use crate::region::{Region, eventually};

/// A door that counts to a million in its logs, slowly or not.
struct Door {
    pause: Duration,
}

type Chunks<T> = ReceiverStream<Result<T, Status>>;

#[tonic::async_trait]
impl DeviceDoor for Door {
    type LogsStream = Chunks<LogsChunk>;
    type ExecStream = Chunks<ExecOutput>;
    type AttachStream = Chunks<ExecOutput>;
    type PortForwardStream = Chunks<PortForwardOutput>;

    async fn logs(&self, request: Request<LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        let peer = request.extensions().get::<StreamPeer>().expect("who calls is known").key;
        assert_eq!(peer, crate::region::key(7).0);
        let (sender, receiver) = mpsc::channel(4);
        let pause = self.pause;
        tokio::spawn(async move {
            for number in 0..10u8 {
                tokio::time::sleep(pause).await;
                if sender.send(Ok(LogsChunk { data: vec![number; 1000].into() })).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn exec(&self, _: Request<Streaming<ExecInput>>) -> Result<Response<Self::ExecStream>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn attach(&self, _: Request<Streaming<ExecInput>>) -> Result<Response<Self::AttachStream>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn port_forward(
        &self,
        _: Request<Streaming<PortForwardInput>>,
    ) -> Result<Response<Self::PortForwardStream>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn stats(&self, _: Request<StatsRequest>) -> Result<Response<StatsResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn line(&self, _: Request<LineRequest>) -> Result<Response<LineResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn metrics(&self, _: Request<MetricsRequest>) -> Result<Response<MetricsResponse>, Status> {
        Ok(Response::new(MetricsResponse::default()))
    }
}

fn serve(mut incoming: IncomingStreams, pause: Duration) {
    let (sender, receiver) = mpsc::channel(8);
    tokio::spawn(async move {
        while let Some(stream) = incoming.next().await {
            assert_eq!(stream.kind, StreamKind::Rpc);
            if sender.send(Ok::<_, std::io::Error>(stream.stream)).await.is_err() {
                return;
            }
        }
    });
    let server = tonic::transport::Server::builder().add_service(DeviceDoorServer::new(Door { pause }));
    tokio::spawn(server.serve_with_incoming(ReceiverStream::new(receiver)));
}

/// A client over a stream of its own, as the API server has one.
async fn door(region: &Region, name: &DeviceName) -> DeviceDoorClient<Channel> {
    let stream = region.hub.dial(name, StreamKind::Rpc).await.expect("a stream");
    let mut once = Some(TokioIo::new(stream));
    let connector = tower::service_fn(move |_: Uri| {
        std::future::ready(once.take().ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected)))
    });
    let channel = Endpoint::from_static("http://device").connect_with_connector(connector).await;
    DeviceDoorClient::new(channel.expect("a channel"))
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_share_a_tunnel_and_it_closes_after_them() {
    let region = Region::start(Duration::from_secs(1)).await;
    let (name, tunnel, incoming) = region.device("one", 1);
    serve(incoming, Duration::ZERO);
    for _ in 0..3 {
        door(&region, &name).await.metrics(MetricsRequest::default()).await.expect("an answer");
    }
    assert_eq!(region.sessions.notices(), 1);
    eventually("no client holds it open", || async { region.hub.open_tunnels() + tunnel.open_tunnels() == 0 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_call_outlives_client_and_idle_time() {
    let region = Region::start(Duration::from_secs(1)).await;
    let (name, _tunnel, incoming) = region.device("one", 1);
    serve(incoming, Duration::from_millis(1500));
    let mut client = door(&region, &name).await;
    let mut logs = client.logs(LogsRequest::default()).await.expect("logs").into_inner();
    drop(client);
    for number in 0..10u8 {
        let chunk = logs.next().await.expect("a chunk").expect("a chunk");
        assert_eq!(chunk.data, vec![number; 1000]);
    }
    assert!(logs.next().await.is_none());
}
