//! Names of the server itself: its other doors get the connection as it is.

use std::time::Duration;

use hearth_gateway::{Handed, OwnDoors};
use rustls::AlertDescription;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;

use crate::{
    fixture::{Device, Fixture, NAME, SingleBytes, caller_line, gateway_of, ping, read_all, soon, until},
    refused::alert,
};

const API: &str = "api.hearth.internal";

/// A gateway that hands over what comes for [`API`].
async fn sharing(open: Option<CancellationToken>, opening: Duration) -> (Fixture, mpsc::Receiver<Handed>) {
    let (door, handed) = mpsc::channel(1);
    let gateway = gateway_of("127.0.0.1:0", &[("one", Device::Serves)], |config| {
        config.own = OwnDoors::default().with(API, &door);
        config.open = open;
        config.limits.opening = opening;
        config.limits.idle = Duration::from_millis(300);
    })
    .await;
    (gateway, handed)
}

#[tokio::test]
async fn a_connection_for_the_server_itself_is_handed_over_as_it_is_in_whatever_pieces_its_hello_comes() {
    let (mut gateway, mut handed) = sharing(None, Duration::from_secs(5)).await;
    let hello = gateway.hello(API);
    for (silent, pieces) in [1, 7, hello.len()].into_iter().enumerate() {
        let mut tcp = gateway.tcp().await;
        let caller = tcp.local_addr().expect("an address");
        let sending = async {
            for piece in hello.chunks(hello.len().div_ceil(pieces)) {
                tcp.write_all(piece).await.expect("taken");
                tokio::task::yield_now().await;
            }
        };
        let (mut door, ()) = soon("handed over", async { tokio::join!(handed.recv(), sending) }).await;
        let door = door.as_mut().expect("a connection");
        assert_eq!((&door.hello, door.caller), (&hello, caller));
        // From here on it is the door's: silence longer than the gateway's own limit does not end it.
        until("it counts as handed over, and takes no place", || {
            gateway.metric("hearth_gateway_connections_open", "") == 0
        })
        .await;
        let _other = gateway.established().await;
        gateway.wait_outcomes("idle", silent as u64 + 1).await;
        tcp.write_all(b"more").await.expect("open");
        door.socket.write_all(b"answer").await.expect("open");
        let mut more = [0; 4];
        door.socket.read_exact(&mut more).await.expect("open");
        let mut answer = [0; 6];
        tcp.read_exact(&mut answer).await.expect("open");
        assert_eq!((&more, &answer), (b"more", b"answer"));
    }
    gateway.wait_outcomes("own", 3).await;
    // In another case, and with a dot at the end, it is the same name.
    let mut tcp = gateway.tcp().await;
    tcp.write_all(&gateway.hello("API.Hearth.Internal")).await.expect("taken");
    let kept = soon("handed over", handed.recv()).await.expect("a connection");
    // The gateway's end is not the connection's.
    gateway.stop();
    gateway.stopped().await;
    let Handed { mut socket, .. } = kept;
    socket.write_all(b"!").await.expect("open");
    assert_eq!(tcp.read_u8().await.expect("open"), b'!');
}

#[tokio::test]
async fn every_other_name_is_as_before_and_a_door_that_takes_nothing_holds_nobody_else() {
    let (gateway, mut handed) = sharing(None, Duration::from_millis(200)).await;
    for name in
        ["www.api.hearth.internal", "api.hearth.internal.example.com", "xapi.hearth.internal", "hearth.internal"]
    {
        assert_eq!(alert(&gateway, name).await, AlertDescription::UnrecognisedName, "{name}");
    }
    assert_eq!(alert(&gateway, "127.0.0.1").await, AlertDescription::MissingExtension, "no name");
    let mut plain = gateway.tcp().await;
    plain.write_all(format!("GET / HTTP/1.1\r\nHost: {API}\r\n\r\n").as_bytes()).await.expect("taken");
    assert!(read_all(&mut plain).await.starts_with(b"HTTP/1.1 404 "), "plain HTTP is for apps alone");
    // Half a hello is held to the gateway's time, also where it would be for the server itself.
    let mut half = gateway.tcp().await;
    let hello = gateway.hello(API);
    half.write_all(&hello[..hello.len() - 1]).await.expect("taken");
    assert!(read_all(&mut half).await.is_empty());
    gateway.wait_outcomes("opening_timeout", 1).await;
    // One waits in the queue, and for the next there is no room.
    let mut callers = Vec::new();
    for _ in 0..2 {
        let mut tcp = gateway.tcp().await;
        tcp.write_all(&hello).await.expect("taken");
        callers.push(tcp);
    }
    gateway.wait_outcomes("own_busy", 1).await;
    let tcp = SingleBytes(gateway.tcp().await);
    let mut tls = gateway.tls_over(tcp, NAME).await.expect("through");
    caller_line(&mut tls).await;
    ping(&mut tls).await.expect("an echo");
    assert!(soon("the first", handed.recv()).await.is_some());
}

#[tokio::test]
async fn before_it_is_open_only_the_server_itself_is_reached() {
    let open = CancellationToken::new();
    let (gateway, mut handed) = sharing(Some(open.clone()), Duration::from_secs(5)).await;
    let early = tokio::spawn({
        let (tcp, connector) =
            (gateway.tcp().await, tokio_rustls::TlsConnector::from(gateway.client(rustls::ALL_VERSIONS)));
        connector.connect(NAME.try_into().expect("a name"), tcp)
    });
    let mut tcp = gateway.tcp().await;
    tcp.write_all(&gateway.hello(API)).await.expect("taken");
    assert!(soon("handed over", handed.recv()).await.is_some());
    assert!(gateway.devices.dialled.lock().unwrap().is_empty() && !early.is_finished());
    open.cancel();
    let mut tls = soon("the handshake", early).await.expect("no panic").expect("through");
    caller_line(&mut tls).await;
}
