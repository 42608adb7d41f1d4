//! One caller's connection, from its first byte to its last.

mod plain;
mod tls;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use hearth_types::{routes::RouteLookup, tunnel::Dialer};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    alert::Alert,
    client_hello, http,
    limits::{self, Limits},
    metrics::Metrics,
};

/// What all connections share.
pub(crate) struct Shared<D> {
    pub(crate) routes: Arc<dyn RouteLookup>,
    pub(crate) dialer: Arc<D>,
    pub(crate) metrics: Metrics,
    pub(crate) limits: Limits,
    /// The port that redirects name.
    pub(crate) https_port: u16,
    /// Cancelled when open connections have to end.
    pub(crate) cut: CancellationToken,
}

/// How much is read at a time while the first flight is put together.
const FIRST_READ: usize = 2048;

/// Serves a connection that may be TLS or plain HTTP (on the redirect's own port: the latter alone).
pub(crate) async fn serve<D>(shared: Arc<Shared<D>>, mut socket: TcpStream, caller: SocketAddr, plain_only: bool)
where
    D: Dialer,
    D::Stream: tokio::io::AsyncRead + tokio::io::AsyncWrite,
{
    // Small writes are a handshake's and must not wait for one another. An error means that it is closed already.
    let _ = socket.set_nodelay(true);
    let mut flight = Vec::with_capacity(FIRST_READ);
    let first = timeout(shared.limits.first_flight, first_flight(&mut socket, &mut flight, plain_only));
    let first = tokio::select! {
        () = shared.cut.cancelled() => return,
        first = first => first,
    };
    let result = match first {
        Err(_) => "timeout",
        Ok(Err(_) | Ok(First::Closed)) => "closed",
        Ok(Ok(First::Unreadable)) => "malformed",
        Ok(Ok(First::Hello(name))) => tls::serve(&shared, socket, caller, flight, name).await,
        Ok(Ok(First::BadHello)) => {
            refuse(socket, &Alert::DecodeError.record()).await;
            "malformed"
        }
        Ok(Ok(First::Http(head))) => plain::serve(&shared, socket, head).await,
    };
    shared.metrics.connections.with_label_values(&[result]).inc();
}

/// What a connection begins with.
enum First {
    /// A whole ClientHello, with its name if it has one.
    Hello(Option<String>),
    /// What is TLS but no ClientHello.
    BadHello,
    /// A whole head of an HTTP request, or a malformed one.
    Http(Option<http::Request>),
    /// Neither TLS nor HTTP.
    Unreadable,
    /// The caller left before.
    Closed,
}

/// Reads until it is clear what the connection is.
async fn first_flight(socket: &mut TcpStream, flight: &mut Vec<u8>, plain_only: bool) -> io::Result<First> {
    loop {
        if let Some(first) = classify(flight, plain_only) {
            return Ok(first);
        }
        flight.reserve(FIRST_READ);
        if socket.read_buf(flight).await? == 0 {
            return Ok(First::Closed);
        }
    }
}

/// What the bytes are, once they say it.
fn classify(flight: &[u8], plain_only: bool) -> Option<First> {
    let byte = *flight.first()?;
    if byte == client_hello::HANDSHAKE_RECORD && !plain_only {
        return match client_hello::server_name(flight) {
            client_hello::ServerName::Found(name) => Some(First::Hello(Some(name))),
            client_hello::ServerName::None => Some(First::Hello(None)),
            client_hello::ServerName::Malformed => Some(First::BadHello),
            client_hello::ServerName::Partial => (flight.len() >= limits::MAX_CLIENT_HELLO).then_some(First::BadHello),
        };
    }
    if !http::may_begin(byte) {
        return Some(First::Unreadable);
    }
    match http::read(flight) {
        http::Head::Request(request) => Some(First::Http(Some(request))),
        http::Head::Malformed => Some(First::Http(None)),
        http::Head::Partial => (flight.len() >= limits::MAX_HTTP_HEAD).then_some(First::Http(None)),
    }
}

/// Sends a last word and closes, in a bounded time.
async fn refuse(mut socket: TcpStream, bytes: &[u8]) {
    let farewell = async {
        socket.write_all(bytes).await?;
        socket.shutdown().await?;
        discard(&mut socket).await
    };
    // An error means that the caller has gone, which is what is wanted.
    let _ = timeout(limits::FAREWELL, farewell).await;
}

/// Reads what the caller still sends: closing a socket with unread bytes resets it, and the reset may overtake the
/// last word (RFC 9112 section 9.6).
async fn discard(socket: &mut TcpStream) -> io::Result<()> {
    let mut buffer = [0; 1024];
    let mut left = limits::MAX_DISCARDED;
    loop {
        let read = socket.read(&mut buffer).await?;
        if read == 0 || read > left {
            return Ok(());
        }
        left -= read;
    }
}

/// The bound for something that must not take longer, in whole.
fn bounded<F: Future>(bound: Duration, future: F) -> impl Future<Output = Option<F::Output>> {
    let timed = timeout(bound, future);
    async move { timed.await.ok() }
}
