//! Connections that get through.

use std::sync::atomic::Ordering;

use hearth_types::{routes::Transport, tunnel::proxy::ProxyHeader};
use rustls::version::{TLS12, TLS13};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use crate::fixture::{
    BOUND, Device, NAME, SingleBytes, caller_line, gateway, gateway_on, gateway_with, ping, read_all, soon, until,
};

fn pattern(length: usize, seed: usize) -> Vec<u8> {
    (0..length).map(|at| ((at * 31 + at / 251 + seed) % 256) as u8).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn megabytes_of_many_callers_come_back_as_they_were() {
    const EACH: usize = 2 << 20;
    let gateway = gateway().await;
    let mut callers = tokio::task::JoinSet::new();
    for seed in 0..8 {
        let tcp = gateway.tcp().await;
        let local = tcp.local_addr().expect("an address");
        let mut tls = gateway.tls_over(tcp, NAME).await.expect("through");
        callers.spawn(async move {
            assert_eq!(caller_line(&mut tls).await, local, "the device knows who calls");
            let sent = pattern(EACH, seed);
            let (mut reads, mut writes) = tokio::io::split(tls);
            let mut got = Vec::new();
            let send = async {
                writes.write_all(&sent).await.expect("taken");
                // Half a close: the echo of what is under way still comes.
                writes.shutdown().await.expect("ended");
            };
            let receive = async { reads.read_to_end(&mut got).await.expect("a proper end of TLS") };
            tokio::join!(send, receive);
            assert!(got == sent, "{} of {} bytes came back as they were", got.len(), sent.len());
        });
    }
    soon("all echoes", async { while callers.join_next().await.transpose().expect("no panic").is_some() {} }).await;
    gateway.wait_outcomes("passed", 8).await;
    until("no connection is left", || gateway.metric("hearth_gateway_connections_open", "") == 0).await;
    for direction in ["to_device", "to_caller"] {
        assert!(gateway.metric("hearth_gateway_bytes_total", direction) > 8 * EACH as u64, "{direction}");
    }
    until("no device serves", || gateway.devices.serving.load(Ordering::SeqCst) == 0).await;
}

#[tokio::test]
async fn both_versions_of_tls_get_through() {
    let gateway = gateway().await;
    for version in [&TLS12, &TLS13] {
        let connector = TlsConnector::from(gateway.client(&[version]));
        let name = NAME.to_owned().try_into().expect("a name");
        let mut tls = soon("the handshake", connector.connect(name, gateway.tcp().await)).await.expect("through");
        caller_line(&mut tls).await;
        ping(&mut tls).await.expect("an echo");
        tls.shutdown().await.expect("ended");
        assert_eq!(read_all(&mut tls).await, b"", "{version:?}");
    }
}

#[tokio::test]
async fn a_caller_that_sends_single_bytes_gets_through() {
    let gateway = gateway().await;
    let mut tls = gateway.tls_over(SingleBytes(gateway.tcp().await), NAME).await.expect("through");
    caller_line(&mut tls).await;
    ping(&mut tls).await.expect("an echo");
}

#[tokio::test]
async fn a_hello_is_understood_wherever_it_is_split() {
    let gateway = gateway().await;
    let hello = gateway.hello("Notes.Alice.Hearth.Internal.");
    for split in 0..=hello.len() {
        let mut tcp = gateway.tcp().await;
        tcp.write_all(&hello[..split]).await.expect("taken");
        // Lets the gateway see the first part alone, mostly; the parser's own test is exact.
        tokio::task::yield_now().await;
        tcp.write_all(&hello[split..]).await.expect("taken");
        let first = soon("an answer", tcp.read_u8()).await.expect("an answer");
        assert_eq!(first, 22, "split at {split}: a handshake record and no alert");
    }
}

#[tokio::test]
async fn the_first_device_that_answers_serves() {
    let first = [Device::Away, Device::Silent, Device::Breaks];
    for behaviour in first {
        let devices = [("first", behaviour), ("second", Device::Serves), ("third", Device::Serves)];
        let gateway = gateway_with(&devices, |limits| {
            limits.answer = std::time::Duration::from_millis(100);
            limits.connect = BOUND;
        })
        .await;
        drop(gateway.established().await);
        let dialled = gateway.devices.dialled.lock().unwrap().clone();
        // An open stream that came to nothing is tried once more: the tunnel may have died unnoticed.
        let expected: &[&str] =
            if behaviour == Device::Away { &["first", "second"] } else { &["first", "first", "second"] };
        assert_eq!(dialled, expected, "{behaviour:?}");
    }
}

#[tokio::test]
async fn a_tunnel_that_died_unnoticed_is_dialled_again() {
    let gateway = gateway_with(&[("only", Device::BreaksOnce)], |_| {}).await;
    drop(gateway.established().await);
    assert_eq!(*gateway.devices.dialled.lock().unwrap(), ["only", "only"]);
    assert_eq!(gateway.metric("hearth_gateway_dials_total", "silent"), 1);
    assert_eq!(gateway.metric("hearth_gateway_dials_total", "ok"), 2);
}

#[tokio::test]
async fn a_caller_over_ipv4_is_one_though_the_socket_is_of_both_families() {
    let gateway = gateway_on("[::]:0", &[("one", Device::Serves)], |_| {}).await;
    for loopback in ["127.0.0.1", "::1"] {
        let address = (loopback, gateway.address.port());
        let tcp = soon("connecting", TcpStream::connect(address)).await.expect("a listener");
        let local = tcp.local_addr().expect("an address");
        let mut tls = gateway.tls_over(tcp, NAME).await.expect("through");
        assert_eq!(caller_line(&mut tls).await, local);
    }
}

#[tokio::test]
async fn a_device_is_told_who_calls_whom_in_the_newest_form_it_reads() {
    let gateway = gateway().await;
    let tcp = gateway.tcp().await;
    let caller = tcp.local_addr().expect("an address");
    let mut tls = gateway.tls_over(tcp, "Notes.Alice.Hearth.Internal").await.expect("through");
    assert_eq!(caller_line(&mut tls).await, caller);
    let expected =
        ProxyHeader { transport: Transport::Tcp, caller, called: gateway.address, authority: Some(NAME.to_owned()) };
    assert_eq!(*gateway.devices.headers.lock().unwrap(), [expected]);

    let gateway = gateway_with(&[("one", Device::Old)], |_| {}).await;
    let tcp = gateway.tcp().await;
    let caller = tcp.local_addr().expect("an address");
    let mut tls = gateway.tls_over(tcp, NAME).await.expect("through to a device of the release before");
    assert_eq!(caller_line(&mut tls).await, caller);
}
