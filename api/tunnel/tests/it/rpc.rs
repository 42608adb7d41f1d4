//! gRPC over tunnels.

use std::time::{Duration, Instant};

use hearth_proto::v1::{
    ExecInput, ExecOutput, LogsChunk, LogsRequest, MetricsRequest, MetricsResponse,
    device_door_client::DeviceDoorClient,
    device_door_server::{DeviceDoor, DeviceDoorServer},
};
use hearth_tunnel::{IDLE, IncomingStreams, StreamPeer};
use hearth_types::tunnel::{DialError, StreamKind};
use tokio::sync::mpsc;
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

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

#[tokio::test(flavor = "multi_thread")]
async fn calls_share_a_channel_and_the_tunnel_closes_after_them() {
    let region = Region::start(Duration::from_secs(1)).await;
    let (name, tunnel, incoming) = region.device("one", 1);
    serve(incoming, Duration::ZERO);
    for _ in 0..3 {
        let channel = region.hub.device_channel(&name).await.expect("a channel");
        DeviceDoorClient::new(channel).metrics(MetricsRequest::default()).await.expect("an answer");
    }
    assert_eq!(region.sessions.notices(), 1);
    assert_eq!(region.count("hearth_tunnel_dials_total", "ok"), 1, "one stream for all");
    let begun = Instant::now();
    let limit = hearth_tunnel::CHANNEL_LINGER + Duration::from_secs(5);
    while region.hub.open_tunnels() + tunnel.open_tunnels() > 0 {
        assert!(begun.elapsed() < limit, "an unused channel holds the tunnel open");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_call_outlives_channel_and_idle_time() {
    let region = Region::start(Duration::from_secs(1)).await;
    let (name, _tunnel, incoming) = region.device("one", 1);
    serve(incoming, Duration::from_millis(1500));
    let channel = region.hub.device_channel(&name).await.expect("a channel");
    let mut client = DeviceDoorClient::new(channel);
    let mut logs = client.logs(LogsRequest::default()).await.expect("logs").into_inner();
    drop(client);
    for number in 0..10u8 {
        let chunk = logs.next().await.expect("a chunk").expect("a chunk");
        assert_eq!(chunk.data, vec![number; 1000]);
    }
    assert!(logs.next().await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_is_made_anew_when_the_device_was_restarted() {
    let region = Region::start(IDLE).await;
    let (name, old, incoming) = region.device("one", 1);
    serve(incoming, Duration::ZERO);
    let channel = region.hub.device_channel(&name).await.expect("a channel");
    DeviceDoorClient::new(channel).metrics(MetricsRequest::default()).await.expect("an answer");
    old.close().await;
    let (_, _new, incoming) = region.device("one", 1);
    serve(incoming, Duration::ZERO);
    eventually("the device answers again", || async {
        let Ok(channel) = region.hub.device_channel(&name).await else { return false };
        DeviceDoorClient::new(channel).metrics(MetricsRequest::default()).await.is_ok()
    })
    .await;
    region.sessions.devices.lock().unwrap().clear();
    let error = region.hub.device_channel(&name).await.expect_err("it is gone");
    assert_eq!(error, DialError::Unknown(name));
}
