//! Ports of Routes.

use std::io;

use hearth_types::{routes::Transport, tunnel::proxy::ProxyHeader};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::fixture::{Device, Fixture, RAW_NAME, caller_line, gateway, gateway_with, ping, read_all, soon, until};

/// Ports that nobody listens on.
async fn free_ports<const N: usize>() -> [u16; N] {
    let mut held = Vec::new();
    for _ in 0..N {
        held.push(TcpListener::bind("127.0.0.1:0").await.expect("a port"));
    }
    std::array::from_fn(|at| held[at].local_addr().expect("an address").port())
}

async fn dial(port: u16) -> io::Result<TcpStream> {
    soon("connecting", TcpStream::connect(("127.0.0.1", port))).await
}

async fn listens(gateway: &Fixture, count: u64) {
    until("the ports", || gateway.metric("hearth_gateway_ports_open", "") == count).await;
}

#[tokio::test]
async fn bytes_go_through_as_they_are_and_the_device_knows_who_calls_which_port() {
    let gateway = gateway().await;
    let [port] = free_ports().await;
    gateway.set_ports(&[port]);
    listens(&gateway, 1).await;
    let mut tcp = dial(port).await.expect("a listener");
    let caller = tcp.local_addr().expect("an address");
    // The device speaks first.
    assert_eq!(caller_line(&mut tcp).await, caller);
    ping(&mut tcp).await.expect("an echo");
    tcp.shutdown().await.expect("half a close");
    assert_eq!(read_all(&mut tcp).await, b"");
    let called = ([127, 0, 0, 1], port).into();
    let expected = ProxyHeader { transport: Transport::Tcp, caller, called, authority: Some(RAW_NAME.to_owned()) };
    assert_eq!(*gateway.devices.headers.lock().unwrap(), [expected]);
    gateway.wait_outcomes("passed", 1).await;
}

#[tokio::test]
async fn ports_are_listened_on_while_a_route_has_them_and_connections_outlive_that() {
    let gateway = gateway().await;
    let [one, two] = free_ports().await;
    gateway.set_ports(&[one, two]);
    listens(&gateway, 2).await;
    let mut kept = dial(one).await.expect("a listener");
    caller_line(&mut kept).await;
    gateway.set_ports(&[two]);
    listens(&gateway, 1).await;
    until("nobody listens", || std::net::TcpStream::connect(("127.0.0.1", one)).is_err()).await;
    ping(&mut kept).await.expect("it goes on");
    caller_line(&mut dial(two).await.expect("a listener")).await;
    gateway.set_ports(&[one, two]);
    listens(&gateway, 2).await;
    caller_line(&mut dial(one).await.expect("a listener again")).await;
}

#[tokio::test]
async fn ports_beyond_the_range_and_the_gateways_own_are_left_alone() {
    let gateway = gateway().await;
    let [port] = free_ports().await;
    // The fixture allows ports from 2 on.
    gateway.set_ports(&[1, gateway.address.port(), port]);
    listens(&gateway, 1).await;
    caller_line(&mut dial(port).await.expect("a listener")).await;
}

#[tokio::test]
async fn a_device_that_cannot_be_told_the_port_gets_nothing() {
    let gateway = gateway_with(&[("one", Device::Old)], |_| {}).await;
    let [port] = free_ports().await;
    gateway.set_ports(&[port]);
    listens(&gateway, 1).await;
    let mut tcp = dial(port).await.expect("a listener");
    assert_eq!(read_all(&mut tcp).await, b"");
    gateway.wait_outcomes("unreachable", 1).await;
}

#[tokio::test]
async fn a_caller_that_speaks_first_is_heard_and_stopping_ends_ports_too() {
    let mut gateway = gateway().await;
    let [port] = free_ports().await;
    gateway.set_ports(&[port]);
    listens(&gateway, 1).await;
    let mut tcp = dial(port).await.expect("a listener");
    tcp.write_all(b"\x16\x03\x01first").await.expect("taken");
    caller_line(&mut tcp).await;
    let mut got = [0; 8];
    soon("the echo", tcp.read_exact(&mut got)).await.expect("an echo");
    assert_eq!(&got, b"\x16\x03\x01first");
    gateway.stop();
    assert_eq!(read_all(&mut tcp).await, b"", "it was silent");
    gateway.stopped().await;
    dial(port).await.expect_err("nobody listens");
}
