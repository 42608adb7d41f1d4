//! Plain HTTP on the port of HTTPS.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::fixture::{Fixture, NAME, gateway, gateway_with, read_all, soon};

async fn ask(gateway: &Fixture, request: &str) -> String {
    let mut tcp = gateway.tcp().await;
    tcp.write_all(request.as_bytes()).await.expect("taken");
    let mut answer = String::new();
    // A reset instead of an end could overtake the answer.
    soon("the answer", tcp.read_to_string(&mut answer)).await.expect("a proper end");
    answer
}

#[tokio::test]
async fn a_request_is_redirected_to_the_same_place_over_https() {
    let gateway = gateway().await;
    let port = gateway.address.port();
    for (request, location) in [
        (format!("GET /a/b?c=d HTTP/1.1\r\nHost: {NAME}:{port}\r\n\r\n"), "/a/b?c=d"),
        ("POST / HTTP/1.1\r\nHost: NOTES.alice.hearth.internal.\r\nContent-Length: 4\r\n\r\nbody".to_owned(), "/"),
        (format!("GET http://{NAME} HTTP/1.1\r\nHost: other\r\n\r\n"), "/"),
    ] {
        let answer = ask(&gateway, &request).await;
        assert!(answer.starts_with("HTTP/1.1 308 "), "{answer}");
        assert!(answer.contains(&format!("\r\nLocation: https://{NAME}:{port}{location}\r\n")), "{answer}");
        assert!(answer.contains("\r\nConnection: close\r\n"), "{answer}");
    }
    gateway.wait_outcomes("redirected", 3).await;
    assert!(gateway.devices.dialled.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_name_that_nobody_has_is_not_found() {
    let gateway = gateway().await;
    for host in ["nobody.hearth.internal", "127.0.0.1", "[::1]:80"] {
        let answer = ask(&gateway, &format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
        assert!(!answer.contains("Location") && !answer.contains(host), "nothing is repeated: {answer}");
    }
}

#[tokio::test]
async fn garbage_is_answered_at_once() {
    let gateway = gateway().await;
    let long = format!("GET / HTTP/1.1\r\nHost: {}", "a".repeat(200_000));
    let cases = [
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
        ("SSH-2.0-OpenSSH_9.6\r\n", 400),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        ("\u{0}\u{1}\u{2}", 400),
        (&long, 431),
    ];
    for (request, status) in cases {
        let answer = ask(&gateway, request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request:.40?}: {answer}");
    }
    gateway.wait_outcomes("malformed", cases.len() as u64).await;
}

#[tokio::test]
async fn a_caller_that_sends_on_can_still_read_the_answer() {
    let gateway = gateway().await;
    let mut tcp = gateway.tcp().await;
    tcp.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("taken");
    soon("the answer", tcp.readable()).await.expect("open");
    // A closed socket would answer this with a reset, which takes the answer with it.
    for _ in 0..20 {
        tcp.write_all(&[b'x'; 4096]).await.expect("taken, though nobody wants it");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    tcp.shutdown().await.expect("ended");
    let mut answer = String::new();
    soon("the answer", tcp.read_to_string(&mut answer)).await.expect("a proper end");
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}

#[tokio::test]
async fn a_slow_head_is_given_up_with_a_page() {
    let gateway = gateway_with(&[], |limits| limits.opening = Duration::from_millis(100)).await;
    let mut tcp = gateway.tcp().await;
    tcp.write_all(b"GET / HTTP/1.1\r\nHost:").await.expect("taken");
    let answer = String::from_utf8(read_all(&mut tcp).await).expect("text");
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    gateway.wait_outcomes("opening_timeout", 1).await;
}
