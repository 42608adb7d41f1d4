//! What is bounded: time, places, and the end.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::fixture::{BOUND, Device, NAME, gateway, gateway_with, ping, read_all, soon, until};

const SHORT: Duration = Duration::from_millis(150);

#[tokio::test]
async fn a_caller_that_says_nothing_is_dropped() {
    let gateway = gateway_with(&[], |limits| limits.opening = SHORT).await;
    let mut tcp = gateway.tcp().await;
    assert_eq!(read_all(&mut tcp).await, b"");
    gateway.wait_outcomes("opening_timeout", 1).await;
}

#[tokio::test]
async fn a_hello_in_drips_is_dropped_though_every_drip_is_in_time() {
    let gateway = gateway_with(&[("one", Device::Serves)], |limits| limits.opening = SHORT).await;
    let begun = Instant::now();
    let mut tcp = gateway.tcp().await;
    let mut drips = gateway.hello(NAME).into_iter().take(200);
    let dripped = async {
        let mut beat = tokio::time::interval(Duration::from_millis(20));
        loop {
            beat.tick().await;
            let drip = [drips.next().expect("more drips than time")];
            let closed = async { tcp.write_all(&drip).await.is_err() || matches!(tcp.try_read(&mut [0]), Ok(0)) };
            if closed.await {
                return;
            }
        }
    };
    soon("being dropped", dripped).await;
    assert!(begun.elapsed() >= SHORT);
    gateway.wait_outcomes("opening_timeout", 1).await;
    assert!(gateway.devices.dialled.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_handshake_that_is_not_finished_is_dropped() {
    let gateway = gateway_with(&[("one", Device::Serves)], |limits| limits.handshake = SHORT).await;
    let mut tcp = gateway.tcp().await;
    tcp.write_all(&gateway.hello(NAME)).await.expect("taken");
    let got = read_all(&mut tcp).await;
    assert_eq!(got.first(), Some(&22), "the device's hello came before the end");
    gateway.wait_outcomes("handshake_timeout", 1).await;
    until("the device hears of it", || gateway.devices.serving.load(Ordering::SeqCst) == 0).await;
}

#[tokio::test]
async fn a_finished_handshake_outlives_its_deadline_until_it_is_idle() {
    let gateway = gateway_with(&[("one", Device::Serves)], |limits| {
        limits.handshake = SHORT;
        limits.idle = 4 * SHORT;
    })
    .await;
    let mut tls = gateway.established().await;
    let begun = Instant::now();
    let mut beat = tokio::time::interval(SHORT / 2);
    while begun.elapsed() < 3 * SHORT {
        beat.tick().await;
        ping(&mut tls).await.expect("still open");
    }
    read_all(&mut tls).await;
    gateway.wait_outcomes("idle", 1).await;
    assert_eq!(gateway.outcomes("handshake_timeout"), 0);
}

#[tokio::test]
async fn a_caller_that_does_not_read_is_dropped_and_the_device_is_held_back() {
    let gateway = gateway_with(&[("one", Device::Serves)], |limits| limits.stall = 2 * SHORT).await;
    let tls = gateway.established().await;
    let (_reads, mut writes) = tokio::io::split(tls);
    // The echo of this is never read, so writing stops as well: memory is bounded by the kernel's buffers.
    let mut written = 0;
    let block = vec![7; 64 * 1024];
    let flood = async {
        while let Ok(count) = writes.write(&block).await {
            written += count;
            if writes.flush().await.is_err() {
                break;
            }
        }
    };
    soon("being dropped", flood).await;
    gateway.wait_outcomes("stalled", 1).await;
    assert!(written < 64 << 20, "{written} bytes were taken from a caller that reads none");
}

#[tokio::test]
async fn a_caller_has_so_many_places_and_gets_them_back() {
    let gateway = gateway_with(&[("one", Device::Serves)], |limits| limits.caller.open = 2).await;
    let first = gateway.established().await;
    let _second = gateway.established().await;
    let mut third = gateway.tcp().await;
    assert_eq!(read_all(&mut third).await, b"", "closed at once");
    gateway.wait_outcomes("refused_caller", 1).await;
    // Another address of loopback is another caller.
    let other = tokio::net::TcpSocket::new_v4().expect("a socket");
    other.bind("127.0.0.2:0".parse().expect("an address")).expect("loopback");
    let other = soon("connecting", other.connect(gateway.address)).await.expect("a listener");
    let mut other = gateway.tls_over(other, NAME).await.expect("through");
    ping_after_line(&mut other).await;
    drop(first);
    gateway.wait_outcomes("passed", 1).await;
    gateway.established().await;
}

async fn ping_after_line(tls: &mut tokio_rustls::client::TlsStream<TcpStream>) {
    let caller = crate::fixture::caller_line(tls).await;
    assert_eq!(caller.ip().to_string(), "127.0.0.2");
    ping(tls).await.expect("an echo");
}

#[tokio::test]
async fn an_owner_has_so_many_places_and_the_next_caller_is_told_so() {
    let gateway = gateway_with(&[("one", Device::Serves)], |limits| limits.owner.open = 1).await;
    let first = gateway.established().await;
    let mut second = gateway.tcp().await;
    second.write_all(&gateway.hello(NAME)).await.expect("taken");
    assert_eq!(read_all(&mut second).await, [21, 3, 3, 0, 2, 2, 80]);
    gateway.wait_outcomes("refused_owner", 1).await;
    drop(first);
    gateway.wait_outcomes("passed", 1).await;
    gateway.established().await;
}

#[tokio::test]
async fn a_caller_that_comes_too_often_is_refused() {
    let gateway = gateway_with(&[("one", Device::Serves)], |limits| {
        // One an hour would be finer than the limit can say.
        (limits.caller.per_second, limits.caller.burst) = (1, 3);
    })
    .await;
    let mut got = Vec::new();
    for _ in 0..20 {
        let mut tcp = gateway.tcp().await;
        // One that is refused may be closed before this is sent.
        let _ = tcp.write_all(b"\x16\x09").await;
        got.push(read_all(&mut tcp).await.len());
    }
    assert_eq!(got[..3], [7; 3], "an alert each");
    assert!(gateway.outcomes("refused_caller") >= 1, "{got:?}");
}

#[tokio::test]
async fn all_callers_together_have_so_many_places() {
    let gateway = gateway_with(&[("one", Device::Serves)], |limits| limits.connections = 1).await;
    let _first = gateway.established().await;
    let mut second = gateway.tcp().await;
    assert_eq!(read_all(&mut second).await, b"");
    gateway.wait_outcomes("refused_total", 1).await;
}

#[tokio::test]
async fn stopping_ends_the_silent_at_once_and_lets_the_busy_go_on() {
    let mut gateway = gateway_with(&[("one", Device::Serves)], |limits| {
        limits.drain = BOUND;
        limits.drain_quiet = 2 * SHORT;
    })
    .await;
    let mut unspoken = gateway.tcp().await;
    let mut busy = gateway.established().await;
    let mut silent = gateway.established().await;
    until("all are taken", || gateway.metric("hearth_gateway_connections_open", "") == 3).await;
    gateway.stop();
    assert_eq!(read_all(&mut unspoken).await, b"");
    let begun = Instant::now();
    let mut beat = tokio::time::interval(SHORT / 3);
    while begun.elapsed() < 4 * SHORT {
        beat.tick().await;
        ping(&mut busy).await.expect("it goes on while it is busy");
    }
    read_all(&mut silent).await;
    assert!(TcpStream::connect(gateway.address).await.is_err(), "nobody listens any more");
    busy.shutdown().await.expect("ended");
    assert_eq!(read_all(&mut busy).await, b"");
    gateway.stopped().await;
    assert_eq!((gateway.outcomes("drained"), gateway.outcomes("passed")), (2, 1));
}

#[tokio::test]
async fn stopping_cuts_off_what_goes_on_for_too_long() {
    let mut gateway = gateway_with(&[("one", Device::Serves)], |limits| {
        limits.drain = SHORT;
        limits.drain_quiet = BOUND;
    })
    .await;
    let mut tls = gateway.established().await;
    gateway.stop();
    gateway.stopped().await;
    assert_eq!(gateway.outcomes("drained"), 1);
    let mut byte = [0];
    assert!(!matches!(soon("the end", tls.read(&mut byte)).await, Ok(1..)));
    until("the device hears of it", || gateway.devices.serving.load(Ordering::SeqCst) == 0).await;
}

#[tokio::test]
async fn a_gateway_that_is_dropped_takes_its_connections_with_it() {
    let gateway = gateway().await;
    let mut tls = gateway.established().await;
    gateway.abort();
    read_all(&mut tls).await;
    until("the connection has ended", || gateway.metric("hearth_gateway_connections_open", "") == 0).await;
}
