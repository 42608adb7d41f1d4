//! What a stream promises: all bytes in order, half close, resets seen.

use std::time::Duration;

use hearth_tunnel::IDLE;
use hearth_types::tunnel::{Dialer, StreamKind};
use rand::{RngCore, SeedableRng, rngs::SmallRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::region::{Region, echo, exchange};

fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    SmallRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_streams_carry_their_own_bytes() {
    let region = Region::start(IDLE).await;
    let (name, _tunnel, incoming) = region.device("one", 1);
    let _echo = echo(incoming);
    let streams: Vec<_> = (0..100)
        .map(|number| {
            let (hub, name) = (region.hub.clone(), name.clone());
            tokio::spawn(async move {
                let bytes = noise(number, 100_000 + number as usize);
                let stream = hub.dial(&name, StreamKind::Ingress).await.expect("a stream");
                let back = exchange(stream, &bytes).await.expect("an echo");
                assert!(back == bytes, "stream {number} came back changed");
            })
        })
        .collect();
    for stream in streams {
        stream.await.expect("a stream");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_mebibytes_pass_both_ways_at_once() {
    let region = Region::start(IDLE).await;
    let (name, _tunnel, incoming) = region.device("one", 1);
    let _echo = echo(incoming);
    let bytes = noise(64, 64 << 20);
    let stream = region.hub.dial(&name, StreamKind::Ingress).await.expect("a stream");
    let back = exchange(stream, &bytes).await.expect("an echo");
    assert!(back == bytes, "the bytes came back changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_closed_stream_still_answers() {
    let region = Region::start(IDLE).await;
    let (name, _tunnel, mut incoming) = region.device("one", 1);
    let mut near = region.hub.dial(&name, StreamKind::Ingress).await.expect("a stream");
    near.write_all(b"question").await.unwrap();
    near.shutdown().await.unwrap();
    let mut far = incoming.next().await.expect("a stream").stream;
    let mut read = Vec::new();
    far.read_to_end(&mut read).await.expect("an end of file");
    assert_eq!(read, b"question");
    far.write_all(b"answer").await.unwrap();
    far.shutdown().await.unwrap();
    drop(far);
    let mut answer = Vec::new();
    near.read_to_end(&mut answer).await.expect("an end of file, though the far end is dropped");
    assert_eq!(answer, b"answer");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_dropped_before_its_end_is_an_error_at_the_other() {
    let region = Region::start(IDLE).await;
    let (name, _tunnel, mut incoming) = region.device("one", 1);
    let mut near = region.hub.dial(&name, StreamKind::Ingress).await.expect("a stream");
    near.write_all(b"half a").await.unwrap();
    let mut far = incoming.next().await.expect("a stream").stream;
    drop(near);
    let mut read = Vec::new();
    far.read_to_end(&mut read).await.expect_err("a reset, no end of file");
    let written = async {
        loop {
            if far.write_all(&[0; 1024]).await.is_err() {
                break;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(5), written).await.expect("writing fails too");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_does_not_read_holds_the_writer_back() {
    let region = Region::start(IDLE).await;
    let (name, _tunnel, mut incoming) = region.device("one", 1);
    let mut near = region.hub.dial(&name, StreamKind::Ingress).await.expect("a stream");
    let _far = incoming.next().await.expect("a stream");
    let block = vec![0; 1 << 16];
    let mut written = 0;
    while let Ok(result) = tokio::time::timeout(Duration::from_millis(500), near.write(&block)).await {
        written += result.expect("a write");
        assert!(written < 32 << 20, "nothing holds the writer back");
    }
    assert!(written >= 1 << 19, "{written} bytes are too few to fill a line");
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_nobody_takes_are_reset() {
    let region = Region::start(IDLE).await;
    let (name, _tunnel, _incoming) = region.device("one", 1);
    let mut held = Vec::new();
    for _ in 0..=hearth_tunnel::INCOMING_QUEUE {
        held.push(region.hub.dial(&name, StreamKind::Ingress).await.expect("a stream"));
    }
    let mut last = held.pop().expect("the one too many");
    let read = tokio::time::timeout(hearth_tunnel::ACCEPT_TIMEOUT * 2, last.read(&mut [0])).await;
    // Which one is left over is the device's choice: the last or an earlier one. One of them is.
    if let Ok(read) = read {
        read.expect_err("a reset");
    } else {
        let mut resets = 0;
        for mut stream in held {
            let read = tokio::time::timeout(Duration::from_millis(10), stream.read(&mut [0])).await;
            resets += usize::from(matches!(read, Ok(Err(_))));
        }
        assert_eq!(resets, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_an_unknown_kind_is_reset_and_the_tunnel_lives() {
    // A gateway of a newer release, by hand: it opens a stream of a kind that this device does not know.
    let seed = [9; 32];
    let gateway = iroh::Endpoint::builder(iroh::endpoint::presets::Minimal)
        .secret_key(iroh::SecretKey::from_bytes(&seed))
        .alpns(vec![b"hearth/tunnel/1".to_vec()])
        .clear_ip_transports()
        .bind_addr("127.0.0.1:0")
        .unwrap()
        .bind()
        .await
        .unwrap();
    let (tunnel, mut incoming) = crate::region::device(1, crate::region::key(9).0);
    let notice = hearth_types::tunnel::DialNotice {
        gateway_key: crate::region::key(9).0,
        addresses: gateway.bound_sockets(),
        relays: Vec::new(),
    };
    let accept = tokio::time::timeout(Duration::from_secs(10), async { gateway.accept().await.unwrap().await });
    let (dialled, accepted) = tokio::join!(tunnel.dial(notice), accept);
    dialled.expect("a tunnel");
    let connection = accepted.expect("in time").expect("a tunnel");
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    send.write_all(&[200]).await.unwrap();
    let error = recv.read(&mut [0]).await.expect_err("a reset");
    assert!(matches!(error, iroh::endpoint::ReadError::Reset(code) if code == 16u32.into()), "{error}");
    let (mut send, _recv) = connection.open_bi().await.unwrap();
    send.write_all(&[StreamKind::Rpc as u8]).await.unwrap();
    assert_eq!(incoming.next().await.expect("a stream").kind, StreamKind::Rpc);
    tunnel.close().await;
    assert!(incoming.next().await.is_none(), "no more streams after the end");
    gateway.close().await;
}
