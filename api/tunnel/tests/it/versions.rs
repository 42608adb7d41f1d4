//! Ends of this release and the one before.

use std::{net::SocketAddr, time::Duration};

use hearth_tunnel::IDLE;
use hearth_types::{
    DeviceName,
    tunnel::{DialNotice, Dialer, HeaderVersion, StreamKind},
};
use iroh::{Endpoint, EndpointAddr, SecretKey, endpoint::presets};
use tokio::time::timeout;

use crate::region::{Known, Region, device, eventually, key};

const BOUND: Duration = Duration::from_secs(10);
/// What an end of the release before speaks.
const OLD: &[u8] = b"hearth/tunnel/1";

async fn old_end(seed: u8) -> Endpoint {
    let builder = Endpoint::builder(presets::Minimal).secret_key(SecretKey::from_bytes(&[seed; 32]));
    let builder = builder.alpns(vec![OLD.to_vec()]).clear_ip_transports();
    let local: SocketAddr = "127.0.0.1:0".parse().unwrap();
    builder.bind_addr(local).unwrap().bind().await.expect("an endpoint")
}

#[tokio::test(flavor = "multi_thread")]
async fn both_ends_of_this_release_know_the_newest_header() {
    let region = Region::start(IDLE).await;
    let (name, _tunnel, mut incoming) = region.device("one", 1);
    let stream = region.hub.dial(&name, StreamKind::Ingress).await.expect("a stream");
    assert_eq!(region.hub.header_version(&stream), HeaderVersion::Proxy);
    let arrived = timeout(BOUND, incoming.next()).await.expect("in time").expect("a stream");
    assert_eq!(arrived.stream.header_version(), HeaderVersion::Proxy);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_of_the_release_before_is_known_to_read_the_old_header_alone() {
    let region = Region::start(IDLE).await;
    let name = DeviceName::from("old");
    region.sessions.set(&name, Known { keys: vec![key(9)], ..Known::default() });
    region.sessions.hang_up(&name);
    assert!(region.hub.is_away(&name));
    let notice = region.hub.notice();
    let gateway = iroh::PublicKey::from_bytes(&notice.gateway_key).unwrap();
    let address = notice.addresses.iter().fold(EndpointAddr::new(gateway), |to, ip| to.with_ip_addr(*ip));
    let device = old_end(9).await;
    let tunnel = timeout(BOUND, device.connect(address, OLD)).await.expect("in time").expect("a tunnel");
    eventually("the tunnel is there", || async { region.hub.open_tunnels() == 1 }).await;
    assert!(!region.hub.is_away(&name), "its tunnel outlives its session");
    let stream = region.hub.dial(&name, StreamKind::Ingress).await.expect("a stream");
    assert_eq!(region.hub.header_version(&stream), HeaderVersion::Text);
    let (_, mut bytes) = timeout(BOUND, tunnel.accept_bi()).await.expect("in time").expect("a stream");
    let mut kind = [0];
    bytes.read_exact(&mut kind).await.expect("its kind");
    assert_eq!(kind, [StreamKind::Ingress as u8]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_of_the_release_before_gets_its_tunnel() {
    let gateway = old_end(7).await;
    let gateway_key = *gateway.id().as_bytes();
    let (tunnel, mut incoming) = device(1, gateway_key);
    let addresses = gateway.bound_sockets();
    let accepting = async {
        let connection = gateway.accept().await.expect("a device").await.expect("a tunnel");
        let (mut bytes, _kept) = connection.open_bi().await.expect("a stream");
        bytes.write_all(&[StreamKind::Ingress as u8]).await.expect("taken");
        let arrived = incoming.next().await.expect("a stream");
        (arrived.kind, arrived.stream.header_version(), connection)
    };
    let dialling = tunnel.dial(DialNotice { gateway_key, addresses, relays: Vec::new() });
    let ((kind, version, _connection), dialled) =
        timeout(BOUND, Box::pin(async { tokio::join!(accepting, dialling) })).await.expect("in time");
    dialled.expect("dialled");
    assert_eq!((kind, version), (StreamKind::Ingress, HeaderVersion::Text));
}
