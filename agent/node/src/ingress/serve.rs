//! One connection of a user: the gateway's header, the TLS handshake, HTTP.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use hearth_types::{external::ALPN, routes::Transport};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use rustls::{
    ServerConfig,
    crypto::ring,
    server::{Acceptor, ServerSessionMemoryCache},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};
use tokio_rustls::{LazyConfigAcceptor, StartHandshake};

use super::{
    Certificates, Ingress, RouteView, flow,
    header::{self, Call, HeaderError},
    place::Place,
    proxy, relay,
};

/// How long a user's client may take for header and handshake: some round trips on a bad line.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a handshake waits for the name's first certificate: it is a round trip away when the region is in reach.
const CERTIFICATE_WAIT: Duration = Duration::from_secs(5);
/// How long a client may take for the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// The largest head of a request in bytes: what nginx takes in all, and cookies fit.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// Requests at once on one connection.
const MAX_STREAMS: u32 = 128;
/// How often a silent HTTP/2 client is asked whether it is there, and how long it may take to say so.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// TLS sessions that can be resumed: one a browser tab or so.
const TLS_SESSIONS: usize = 256;

/// TLS as browsers want it: 1.2 and 1.3, HTTP/2 and HTTP/1.1.
pub(super) fn config(certificates: Certificates) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(certificates));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.session_storage = ServerSessionMemoryCache::new(TLS_SESSIONS);
    Ok(config)
}

/// Why a connection did not come as far as HTTP. Of interest while looking for faults alone.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("the gateway's header")]
    Header(#[source] HeaderError),
    #[error("the gateway says that it is for {said:?}, and the client asks for {asked:?}")]
    OtherName { said: String, asked: String },
    #[error("no Route of this device has the port that the datagrams came to")]
    NoPort,
    #[error("no handshake in time")]
    Slow,
    #[error("handshake: {0}")]
    Tls(std::io::Error),
}

pub(super) async fn connection<S>(ingress: &Ingress, stream: S)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    // Beyond the limit, the newest are refused: those that are there go on.
    let Some(place) = Place::take(ingress) else {
        tracing::warn!("too many connections of users at once: one is refused");
        return;
    };
    match timeout(HANDSHAKE_TIMEOUT + CERTIFICATE_WAIT, begin(ingress, stream)).await {
        Ok(Ok(Begun::Https { caller, name, tls })) => {
            serve(ingress.clone(), proxy::Connection { place: Arc::new(place), caller, name }, *tls).await;
        }
        Ok(Ok(Begun::Port(route, call, stream))) => relay::connection(ingress, &route, &call, stream, place).await,
        Ok(Ok(Begun::Flow(call, stream))) => {
            drop(place);
            if let Some(place) = Place::take_for_flow(ingress) {
                flow::serve(ingress, &call, stream, place).await;
            } else {
                tracing::debug!("too many flows of users' datagrams at once: one is refused");
            }
        }
        Ok(Err(error)) => tracing::debug!(error = crate::files::chain(&error), "a user's connection was refused"),
        Err(_) => tracing::debug!(error = %Refused::Slow, "a user's connection was refused"),
    }
}

/// A connection whose purpose is known.
enum Begun<S> {
    Https { caller: SocketAddr, name: String, tls: Box<tokio_rustls::server::TlsStream<S>> },
    Port(Arc<RouteView>, Call, S),
    Flow(Call, S),
}

async fn begin<S>(ingress: &Ingress, mut stream: S) -> Result<Begun<S>, Refused>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let call = header::read(&mut stream).await.map_err(Refused::Header)?;
    match (call.transport, ingress.called(&call)) {
        (Transport::Tcp, Some(route)) => return Ok(Begun::Port(route, call, stream)),
        (Transport::Tcp, None) => {}
        (Transport::Udp, Some(_)) => return Ok(Begun::Flow(call, stream)),
        (Transport::Udp, None) => return Err(Refused::NoPort),
    }
    let Call { caller, name: said, .. } = call;
    let start = LazyConfigAcceptor::new(Acceptor::default(), stream).await.map_err(Refused::Tls)?;
    let (name, tls) = end_tls(ingress, start, said).await?;
    Ok(Begun::Https { caller, name, tls })
}

/// A name and the TLS that was ended for it.
type Https<S> = (String, Box<tokio_rustls::server::TlsStream<S>>);

/// Ends the TLS of a connection that is for this name, where that is said.
async fn end_tls<S>(ingress: &Ingress, start: StartHandshake<S>, said: Option<String>) -> Result<Https<S>, Refused>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let name = start.client_hello().server_name().unwrap_or_default().trim_end_matches('.').to_ascii_lowercase();
    if let Some(said) = said.filter(|said| *said != name) {
        return Err(Refused::OtherName { said, asked: name });
    }
    wait_for_certificate(&ingress.inner.certificates, &name).await;
    let tls = start.into_stream(Arc::clone(&ingress.inner.tls)).await.map_err(Refused::Tls)?;
    Ok((name, Box::new(tls)))
}

/// Serves a connection at an address of the device's own, which comes without a gateway and its header.
pub(super) async fn direct<S>(ingress: &Ingress, stream: S, caller: SocketAddr)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let caller = SocketAddr::new(caller.ip().to_canonical(), caller.port());
    let Some(place) = Place::take_for_direct(ingress, caller.ip()) else {
        tracing::warn!("too many connections at once at this device's own addresses: one is refused");
        return;
    };
    match timeout(HANDSHAKE_TIMEOUT + CERTIFICATE_WAIT, begin_direct(ingress, stream)).await {
        Ok(Ok(Some((name, tls)))) => {
            serve(ingress.clone(), proxy::Connection { place: Arc::new(place), caller, name }, *tls).await;
        }
        Ok(Ok(None)) => {}
        Ok(Err(error)) => tracing::debug!(error = crate::files::chain(&error), "a direct connection was refused"),
        Err(_) => tracing::debug!(error = %Refused::Slow, "a direct connection was refused"),
    }
}

/// Ends the TLS of a connection without a gateway; nothing is left of one that asks who is here. Who comes by a gateway is not told that: the
/// gateway's address is not the device's.
async fn begin_direct<S>(ingress: &Ingress, stream: S) -> Result<Option<Https<S>>, Refused>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let start = LazyConfigAcceptor::new(Acceptor::default(), stream).await.map_err(Refused::Tls)?;
    let asks_who = start.client_hello().alpn().is_some_and(|mut offered| offered.any(|one| one == ALPN));
    if asks_who && ingress.inner.direct.borrow().is_external() {
        start.into_stream(Arc::clone(&ingress.inner.prover)).await.map_err(Refused::Tls)?;
        return Ok(None);
    }
    end_tls(ingress, start, None).await.map(Some)
}

/// A name that was just installed has its certificate in a moment.
async fn wait_for_certificate(certificates: &Certificates, name: &str) {
    let mut changes = certificates.watch();
    let there = async {
        while matches!(certificates.get(name), (true, None)) {
            if changes.changed().await.is_err() {
                return;
            }
        }
    };
    // Where it does not come, the handshake says so.
    let _ = timeout(CERTIFICATE_WAIT, there).await;
}

async fn serve<T>(ingress: Ingress, connection: proxy::Connection, tls: T)
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let connection = Arc::new(connection);
    let service = hyper::service::service_fn(move |request| {
        let (ingress, connection) = (ingress.clone(), Arc::clone(&connection));
        async move { Ok::<_, std::convert::Infallible>(proxy::answer(&ingress, &connection, request).await) }
    });
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(MAX_HEAD_BYTES);
    http.http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEAD_BYTES as u32)
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE);
    if let Err(error) = http.serve_connection_with_upgrades(TokioIo::new(tls), service).await {
        tracing::debug!(error, "a user's connection broke");
    }
}
