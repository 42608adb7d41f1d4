//! Datagrams to ports of Routes.

use std::{net::SocketAddr, sync::atomic::Ordering, time::Duration};

use hearth_gateway::{Limits, Share};
use hearth_types::{DeviceName, routes::Transport, tunnel::proxy::ProxyHeader};
use tokio::net::UdpSocket;

use crate::fixture::{Device, Fixture, RAW_NAME, gateway_on, gateway_with, raw, soon, until};

const SHORT: Duration = Duration::from_millis(300);

/// A gateway with a UDP port, which leads to a device that sends everything back.
async fn with_port(adjust: impl FnOnce(&mut Limits)) -> (Fixture, u16) {
    let gateway = gateway_with(&[("one", Device::Serves)], adjust).await;
    let port = open(&gateway).await;
    (gateway, port)
}

async fn open(gateway: &Fixture) -> u16 {
    let port = UdpSocket::bind("[::]:0").await.expect("a port").local_addr().expect("an address").port();
    gateway.set_routes(vec![raw(Transport::Udp, port)]);
    until("the port", || gateway.metric("hearth_gateway_ports_open", "") == 1).await;
    port
}

async fn caller(port: u16) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    socket.connect(("127.0.0.1", port)).await.expect("an address");
    socket
}

async fn heard(socket: &UdpSocket) -> Vec<u8> {
    let mut got = vec![0; 70_000];
    let length = soon("an answer", socket.recv(&mut got)).await.expect("an answer");
    got.truncate(length);
    got
}

async fn echo(socket: &UdpSocket, datagram: &[u8]) {
    socket.send(datagram).await.expect("sent");
    let got = heard(socket).await;
    assert_eq!((got.len(), got == datagram), (datagram.len(), true));
}

fn dropped(gateway: &Fixture, reason: &str) -> u64 {
    gateway.metric("hearth_gateway_datagrams_dropped_total", reason)
}

fn open_flows(gateway: &Fixture) -> u64 {
    gateway.metric("hearth_gateway_flows_open", "")
}

#[tokio::test]
async fn datagrams_of_any_length_come_back_to_whom_they_belong_and_the_device_knows_who_calls() {
    let (gateway, port) = with_port(|_| {}).await;
    let (one, two) = (caller(port).await, caller(port).await);
    for length in [0, 1, 1200, 9000, 65_507] {
        echo(&one, &vec![1; length]).await;
        echo(&two, &vec![2; length]).await;
    }
    let called = SocketAddr::from(([127, 0, 0, 1], port));
    let header = |socket: &UdpSocket| ProxyHeader {
        transport: Transport::Udp,
        caller: socket.local_addr().expect("an address"),
        called,
        authority: Some(RAW_NAME.to_owned()),
    };
    assert_eq!(*gateway.devices.headers.lock().unwrap(), [header(&one), header(&two)], "a flow each");
    let passed = |direction| gateway.metric("hearth_gateway_datagrams_total", direction);
    assert_eq!((open_flows(&gateway), passed("to_device"), passed("to_caller")), (2, 10, 10));
}

#[tokio::test]
async fn answers_come_from_the_address_that_was_called() {
    let gateway = gateway_on("[::]:0", &[("one", Device::Serves)], |_| {}).await;
    let port = open(&gateway).await;
    // A connected socket takes answers from no other address; without being told the kernel would answer from 127.0.0.1 and ::1.
    for (from, called) in [("127.0.0.1:0", "127.0.0.5"), ("[::1]:0", "::1")] {
        let socket = UdpSocket::bind(from).await.expect("a port");
        socket.connect((called, port)).await.expect("an address");
        echo(&socket, b"hello").await;
        let headers = gateway.devices.headers.lock().unwrap();
        let last = headers.last().expect("a header");
        let expected = SocketAddr::new(called.parse().expect("an address"), port);
        assert_eq!((last.called, last.caller), (expected, socket.local_addr().expect("an address")));
    }
}

#[tokio::test]
async fn a_silent_callers_flow_ends_and_one_that_goes_on_keeps_its_own() {
    let (gateway, port) = with_port(|limits| {
        limits.flow_unconfirmed = SHORT;
        limits.flow_idle = Duration::from_secs(60);
    })
    .await;
    let (quick, lasting) = (caller(port).await, caller(port).await);
    echo(&quick, b"a question").await;
    echo(&lasting, b"hello").await;
    echo(&lasting, b"again").await;
    until("the flow has ended", || gateway.metric("hearth_gateway_flows_total", "idle") == 1).await;
    until("the device has let go", || gateway.devices.serving.load(Ordering::SeqCst) == 1).await;
    assert_eq!(open_flows(&gateway), 1, "that of the caller that sent again after an answer");
    echo(&quick, b"another").await;
    assert_eq!(gateway.devices.headers.lock().unwrap().len(), 3, "a flow of its own");
}

#[tokio::test]
async fn a_flood_of_made_up_callers_takes_no_more_than_a_port_may_and_no_place_of_those_that_are_known() {
    let (gateway, port) = with_port(|limits| limits.flows_per_port = 4).await;
    let known = caller(port).await;
    echo(&known, b"hello").await;
    echo(&known, b"again").await;
    for _ in 0..40 {
        let one = caller(port).await;
        echo(&one, b"x").await;
        assert!(open_flows(&gateway) <= 5, "{}", open_flows(&gateway));
    }
    until("evictions", || gateway.metric("hearth_gateway_flows_total", "evicted") == 37).await;
    assert_eq!(open_flows(&gateway), 4);
    echo(&known, b"still there").await;
    assert_eq!(gateway.devices.headers.lock().unwrap().len(), 41, "by its first flow");
}

#[tokio::test]
async fn what_a_caller_and_an_owner_may_have_is_bounded_and_takes_no_connections() {
    let none = Share { open: 0, per_second: 1, burst: 1 };
    for (reason, change) in [("refused_caller", 0), ("refused_owner", 1), ("refused_total", 2)] {
        let (gateway, port) = with_port(|limits| match change {
            0 => limits.flow_caller = none.clone(),
            1 => limits.flow_owner = none.clone(),
            _ => limits.flows = 0,
        })
        .await;
        caller(port).await.send(b"x").await.expect("sent");
        until("it is dropped", || dropped(&gateway, reason) == 1).await;
        assert!(gateway.devices.dialled.lock().unwrap().is_empty());
        gateway.established().await;
    }
}

#[tokio::test]
async fn a_device_that_is_away_or_too_old_gets_nothing_and_costs_no_flow() {
    let gateway = gateway_with(&[("gone", Device::Away)], |_| {}).await;
    let port = UdpSocket::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("an address").port();
    let mut away = raw(Transport::Udp, port);
    away.devices = vec![DeviceName::from("gone")];
    gateway.set_routes(vec![away]);
    until("the port", || gateway.metric("hearth_gateway_ports_open", "") == 1).await;
    caller(port).await.send(b"x").await.expect("sent");
    until("it is dropped", || dropped(&gateway, "away") == 1).await;
    assert!(gateway.devices.dialled.lock().unwrap().is_empty());

    let gateway = gateway_with(&[("one", Device::Old)], |_| {}).await;
    let port = open(&gateway).await;
    caller(port).await.send(b"x").await.expect("sent");
    until("the flow ends", || gateway.metric("hearth_gateway_flows_total", "unreachable") == 1).await;
    assert_eq!(open_flows(&gateway), 0);
}

#[tokio::test]
async fn a_port_that_becomes_anothers_leads_no_flow_to_the_one_before_and_ends_with_its_route() {
    let (gateway, port) = with_port(|_| {}).await;
    let one = caller(port).await;
    echo(&one, b"hello").await;
    let mut other = raw(Transport::Udp, port);
    other.owner = "bob".into();
    gateway.set_routes(vec![other]);
    until("the device lets go", || {
        let _ = one.try_send(b"again");
        gateway.metric("hearth_gateway_flows_total", "evicted") == 1
    })
    .await;
    gateway.set_routes(Vec::new());
    until("nothing is left", || open_flows(&gateway) == 0 && gateway.devices.serving.load(Ordering::SeqCst) == 0).await;
    assert_eq!(gateway.metric("hearth_gateway_ports_open", ""), 0);
}
