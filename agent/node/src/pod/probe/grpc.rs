//! `grpc`: the health check of gRPC (`grpc.health.v1.Health/Check`), whose two messages have a field each.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use futures_util::future::{Either, select};
use hearth_pod::Answer;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{net::TcpStream, time::timeout};

/// What is read of an answer, in bytes: more than any answer to this question has.
const MAX_ANSWER: usize = 4096;
/// `HealthCheckResponse.ServingStatus.SERVING`.
const SERVING: u64 = 1;
/// `UNIMPLEMENTED` (the status codes of gRPC).
const UNIMPLEMENTED: u32 = 12;

/// Whether the service says that it serves.
pub(super) async fn ask(address: SocketAddr, service: &str, limit: Duration) -> Answer {
    match timeout(limit, check(address, service)).await {
        Ok(Ok(SERVING)) => Answer::Good,
        Ok(Ok(status)) => {
            let name = match status {
                0 => "UNKNOWN",
                2 => "NOT_SERVING",
                3 => "SERVICE_UNKNOWN",
                _ => "another status",
            };
            Answer::Bad(format!("service unhealthy (responded with {name:?})"))
        }
        Ok(Err(error)) => Answer::Bad(error),
        Err(_) => Answer::Bad(format!("{address} did not answer within {} s", limit.as_secs())),
    }
}

async fn check(address: SocketAddr, service: &str) -> Result<u64, String> {
    let text = |error: hyper::Error| error.to_string();
    let stream = TcpStream::connect(address).await.map_err(|error| format!("dial tcp {address}: {error}"))?;
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(text)?;
    let request = Request::post(format!("http://{address}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(question(service)))
        .map_err(|error| error.to_string())?;
    let answer = Box::pin(async move {
        let answer = sender.send_request(request).await.map_err(text)?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(|error| error.to_string())?;
        // An error without a message stands in the head.
        let trailers = body.trailers().cloned().unwrap_or(head.headers);
        read(&trailers, &body.to_bytes())
    });
    match select(answer, Box::pin(connection)).await {
        Either::Left((answer, _)) => answer,
        Either::Right((_, answer)) => answer.await,
    }
}

/// `HealthCheckRequest { service }`, after its length as gRPC has it.
fn question(service: &str) -> Bytes {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        put_varint(service.len() as u64, &mut message);
        message.extend_from_slice(service.as_bytes());
    }
    let mut framed = vec![0];
    framed.extend_from_slice(&(message.len() as u32).to_be_bytes());
    framed.extend_from_slice(&message);
    framed.into()
}

fn put_varint(mut value: u64, into: &mut Vec<u8>) {
    while value >= 0x80 {
        into.push(value as u8 | 0x80);
        value >>= 7;
    }
    into.push(value as u8);
}

/// `HealthCheckResponse { status }`, where gRPC says that there is one.
fn read(trailers: &HeaderMap, body: &[u8]) -> Result<u64, String> {
    let text = |name: &str| trailers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let message = text("grpc-message");
    match text("grpc-status").parse() {
        Ok(0) => {}
        Ok(UNIMPLEMENTED) => {
            return Err(format!(
                "this server does not implement the grpc health protocol (grpc.health.v1.Health): {message}"
            ));
        }
        Ok(code) => return Err(format!("health rpc failed: code {code}: {message}")),
        Err(_) => return Err("the answer is not gRPC's".to_owned()),
    }
    let wrong = || "the answer is no HealthCheckResponse".to_owned();
    let (head, message) = body.split_at_checked(5).ok_or_else(wrong)?;
    if head[0] != 0 || u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize != message.len() {
        return Err(wrong());
    }
    match message {
        // A field that has its first value is left out.
        [] => Ok(0),
        [0x08, status @ 0..0x80] => Ok((*status).into()),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http::Response;
    use http_body_util::StreamBody;
    use hyper::{body::Frame, server::conn, service::service_fn};

    use super::*;

    /// A server of gRPC that answers with these bytes and this status.
    async fn server(body: &'static [u8], status: &'static str) -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.expect("a connection");
            let service = service_fn(move |request: Request<hyper::body::Incoming>| async move {
                assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                let asked = request.into_body().collect().await.expect("a body").to_bytes();
                assert_eq!(&asked[..], b"\0\0\0\0\x06\x0a\x04mail");
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", http::HeaderValue::from_static(status));
                let frames =
                    [Frame::data(Bytes::from_static(body)), Frame::trailers(trailers)].map(Ok::<_, Infallible>);
                Ok::<_, Infallible>(Response::new(StreamBody::new(futures_util::stream::iter(frames))))
            });
            let _ =
                conn::http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
        });
        address
    }

    #[tokio::test]
    async fn a_service_says_whether_it_serves() {
        for (body, status, expected) in [
            (&b"\0\0\0\0\x02\x08\x01"[..], "0", Ok(())),
            (b"\0\0\0\0\x02\x08\x02", "0", Err("service unhealthy (responded with \"NOT_SERVING\")")),
            (b"\0\0\0\0\0", "0", Err("service unhealthy (responded with \"UNKNOWN\")")),
            (b"", "5", Err("health rpc failed: code 5: ")),
            (b"", "12", Err("this server does not implement the grpc health protocol")),
            (b"nonsense", "0", Err("the answer is no HealthCheckResponse")),
            (b"", "none", Err("the answer is not gRPC's")),
        ] {
            let address = server(body, status).await;
            match (ask(address, "mail", Duration::from_secs(10)).await, expected) {
                (Answer::Good, Ok(())) => {}
                (Answer::Bad(text), Err(expected)) => assert!(text.starts_with(expected), "{text}"),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn long_names_have_long_lengths() {
        let asked = question(&"x".repeat(300));
        assert_eq!(&asked[..8], b"\0\0\0\x01\x2f\x0a\xac\x02");
        assert_eq!(asked.len(), 5 + 3 + 300);
    }

    proptest::proptest! {
        #[test]
        fn any_answer_is_read_without_a_panic(body in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..20)) {
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
            let _ = read(&trailers, &body);
        }
    }
}
