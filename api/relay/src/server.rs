//! The relay itself: it listens, lets in who has a pass, and hands them to the relay protocol.

use std::{
    collections::HashMap,
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use hearth_types::{DeviceKey, relay::Pass};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Empty;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use iroh_base::EndpointId;
use iroh_relay::{
    KeyCache,
    http::{CLIENT_AUTH_HEADER, ProtocolVersion, RELAY_PATH, RELAY_PROBE_PATH},
    protos::handshake,
    server::{
        Access, AccessControl, ClientRequest, ConnectionId, OnDisconnectGuard, QuicConfig, Server, ServerConfig,
        client::Config, clients::Clients, streams::RelayedStream,
    },
};
use prometheus::Registry;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{interval, timeout},
};
use tokio_rustls::{
    TlsAcceptor,
    server::{StartHandshake, TlsStream},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    gate::Gate,
    limits,
    metrics::{Accounts, Metrics, Place},
    stream::Messages,
};

/// What every WebSocket's key is hashed with (RFC 6455 section 1.3).
const WEBSOCKET_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// The only version of WebSocket (RFC 6455 section 4.1).
const WEBSOCKET_VERSION: &str = "13";
/// The largest message of the relay protocol in bytes, and some.
const MAX_MESSAGE: usize = 1 << 20;
/// Public keys that are kept in their unpacked form: about 100 bytes each.
const KEY_CACHE: usize = 4096;

/// How much an owner's devices may send.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// Bytes a second: [`OWNER_BYTES_PER_SECOND`](crate::OWNER_BYTES_PER_SECOND) unless the operator says otherwise.
    pub bytes_per_second: u64,
    /// Bytes at once above that: [`OWNER_BURST_BYTES`](crate::OWNER_BURST_BYTES).
    pub burst_bytes: u64,
}

impl Default for Rates {
    fn default() -> Self {
        Self { bytes_per_second: limits::OWNER_BYTES_PER_SECOND, burst_bytes: limits::OWNER_BURST_BYTES }
    }
}

/// What a relay is made of.
#[derive(Clone)]
pub struct RelayConfig {
    /// Where devices and gateways connect to, TCP. Port 0 picks one; `None`: nowhere, they are handed over ([`RelayServer::with_begun`]).
    pub listen: Option<SocketAddr>,
    /// Where they learn their address, UDP. Port 0 picks one.
    pub listen_discovery: SocketAddr,
    /// The relay's certificate, by which they know it.
    pub tls: Arc<rustls::ServerConfig>,
    /// Who may use it.
    pub gate: Arc<dyn Gate>,
    /// How much each owner may send.
    pub rates: Rates,
}

impl fmt::Debug for RelayConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RelayConfig").field("listen", &self.listen).field("gate", &self.gate).finish_non_exhaustive()
    }
}

/// A connection whose hello was read by somebody else, and who called.
pub type Begun = (StartHandshake<TcpStream>, SocketAddr);

/// A connection, by how far it is.
enum Connection {
    New(TcpStream),
    Begun(Box<StartHandshake<TcpStream>>),
}

/// Why a relay does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The TCP socket.
    #[error(
        "cannot listen for devices that use the relay on TCP {listen}: is the port taken or the address another machine's?"
    )]
    Listen {
        /// The address asked for.
        listen: SocketAddr,
        /// What the socket said.
        #[source]
        source: std::io::Error,
    },
    /// The UDP socket.
    #[error("cannot listen for address discovery on UDP {listen}: is the port taken or the address another machine's?")]
    Discovery {
        /// The address asked for.
        listen: SocketAddr,
        /// What failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The metrics.
    #[error("cannot register the relay's metrics: are two of them in one registry?")]
    Metrics(#[from] prometheus::Error),
}

/// A relay that listens.
///
/// Guarantees: who has no pass gets no further than the handshake. The number of connections is bounded, by owner too, and so is how
/// long one may take to show its pass. A connection ends once its pass is no longer good; whoever has a newer one comes back with it.
pub struct RelayServer {
    listener: Option<(TcpListener, SocketAddr)>,
    begun: Option<mpsc::Receiver<Begun>>,
    discovery: Server,
    discovery_address: SocketAddr,
    shared: Arc<Shared>,
}

impl fmt::Debug for RelayServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RelayServer").field("address", &self.address()).finish_non_exhaustive()
    }
}

struct Shared {
    tls: TlsAcceptor,
    gate: Arc<dyn Gate>,
    clients: Clients,
    relayed: Arc<iroh_relay::server::Metrics>,
    keys: KeyCache,
    metrics: Metrics,
    accounts: Accounts,
    open: Arc<Open>,
    unknown: Arc<Semaphore>,
    tasks: TaskTracker,
}

/// Who is connected.
#[derive(Debug, Default)]
struct Open(Mutex<HashMap<ConnectionId, Entry>>);

#[derive(Clone, Debug)]
struct Entry {
    key: DeviceKey,
    pass: String,
}

impl Open {
    fn table(&self) -> std::sync::MutexGuard<'_, HashMap<ConnectionId, Entry>> {
        // Every change is one step, so a poisoned table is a sound one.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hears of ended connections; who may connect was decided before.
impl AccessControl for Open {
    async fn on_connect(&self, _: &ClientRequest) -> Access {
        Access::Allow
    }

    fn on_disconnect(&self, _: EndpointId, connection: ConnectionId) {
        self.table().remove(&connection);
    }
}

impl RelayServer {
    /// Listens. Nothing is accepted before [`RelayServer::run`].
    pub async fn bind(config: RelayConfig, registry: &Registry) -> Result<Self, StartError> {
        let metrics = Metrics::register(registry)?;
        let listener = match config.listen {
            None => None,
            Some(listen) => {
                let failed = |source| StartError::Listen { listen, source };
                let listener = TcpListener::bind(listen).await.map_err(failed)?;
                let address = listener.local_addr().map_err(failed)?;
                Some((listener, address))
            }
        };
        let failed = |source| StartError::Discovery { listen: config.listen_discovery, source };
        let mut quic = QuicConfig::new(config.listen_discovery);
        quic.server_config = Some((*config.tls).clone());
        let mut server = ServerConfig::default();
        server.quic = Some(quic);
        let discovery = Server::spawn(server).await.map_err(|error| failed(error.into()))?;
        let discovery_address = discovery.quic_addr().ok_or_else(|| failed("it has no address".into()))?;
        let mut tls = (*config.tls).clone();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let shared = Arc::new(Shared {
            tls: TlsAcceptor::from(Arc::new(tls)),
            gate: config.gate,
            clients: Clients::default(),
            relayed: Arc::default(),
            keys: KeyCache::new(KEY_CACHE),
            metrics,
            accounts: Accounts::new(config.rates),
            open: Arc::default(),
            unknown: Arc::new(Semaphore::new(limits::MAX_UNKNOWN)),
            tasks: TaskTracker::new(),
        });
        Ok(Self { listener, begun: None, discovery, discovery_address, shared })
    }

    /// Takes connections also from the gateway, whose port it shares.
    #[must_use]
    pub fn with_begun(mut self, begun: mpsc::Receiver<Begun>) -> Self {
        self.begun = Some(begun);
        self
    }

    /// Where devices and gateways connect to, TCP, if it has a socket of its own.
    pub fn address(&self) -> Option<SocketAddr> {
        self.listener.as_ref().map(|(_, address)| *address)
    }

    /// Where they learn their address, UDP.
    pub fn discovery_address(&self) -> SocketAddr {
        self.discovery_address
    }

    /// Relays until `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), StartError> {
        tracing::info!(address = ?self.address(), discovery = %self.discovery_address, "relaying");
        let mut checks = interval(limits::PASS_CHECK);
        checks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut meter = tokio::time::interval_at(tokio::time::Instant::now() + limits::METER_LOG, limits::METER_LOG);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                Some((begun, _)) = handed(&mut self.begun) => self.shared.accept(Connection::Begun(Box::new(begun))),
                accepted = accept(self.listener.as_ref()) => match accepted {
                    Ok((stream, _)) => self.shared.accept(Connection::New(stream)),
                    // Of one connection, or for want of descriptors: whoever is refused comes again.
                    Err(error) => tracing::debug!(%error, "a connection to the relay cannot be accepted"),
                },
                _ = checks.tick() => self.shared.end_expired(),
                _ = meter.tick() => self.shared.log_metered(),
            }
        }
        self.shared.log_metered();
        self.shared.tasks.close();
        self.shared.clients.shutdown().await;
        if let Err(error) = self.discovery.shutdown().await {
            tracing::debug!(%error, "address discovery did not end cleanly");
        }
        Ok(())
    }
}

async fn accept(listener: Option<&(TcpListener, SocketAddr)>) -> std::io::Result<(TcpStream, SocketAddr)> {
    match listener {
        Some((listener, _)) => listener.accept().await,
        None => std::future::pending().await,
    }
}

async fn handed(begun: &mut Option<mpsc::Receiver<Begun>>) -> Option<Begun> {
    match begun {
        Some(begun) => begun.recv().await,
        None => None,
    }
}

impl Shared {
    fn accept(self: &Arc<Self>, stream: Connection) {
        let Ok(permit) = Arc::clone(&self.unknown).try_acquire_owned() else {
            self.refused("full");
            return;
        };
        let shared = Arc::clone(self);
        self.tasks.spawn(async move {
            if timeout(limits::ESTABLISH_TIMEOUT, shared.serve(stream, permit)).await.is_err() {
                shared.refused("timeout");
            }
        });
    }

    fn refused(&self, reason: &str) {
        self.metrics.refused.with_label_values(&[reason]).inc();
    }

    /// TLS and HTTP, until the connection has become one of the relay protocol or has ended.
    async fn serve(self: &Arc<Self>, stream: Connection, permit: OwnedSemaphorePermit) {
        // It carries packets that were measured out already.
        let shaken = match stream {
            Connection::New(stream) => {
                let _ = stream.set_nodelay(true);
                self.tls.accept(stream).await
            }
            Connection::Begun(begun) => {
                let _ = begun.io.set_nodelay(true);
                begun.into_stream(Arc::clone(self.tls.config())).await
            }
        };
        let stream = match shaken {
            Ok(stream) => stream,
            Err(error) => {
                self.refused("handshake");
                tracing::debug!(%error, "a connection to the relay made no TLS handshake");
                return;
            }
        };
        let shared = Arc::clone(self);
        let permit = Arc::new(permit);
        let service = service_fn(move |request| {
            let answer = shared.answer(request, &permit);
            async move { Ok::<_, std::convert::Infallible>(answer) }
        });
        let served = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        if let Err(error) = served.with_upgrades().await {
            tracing::debug!(%error, "a connection to the relay broke");
        }
    }

    fn answer(
        self: &Arc<Self>,
        mut request: Request<Incoming>,
        permit: &Arc<OwnedSemaphorePermit>,
    ) -> Response<Empty<bytes::Bytes>> {
        let plain = |status| {
            let mut response = Response::new(Empty::new());
            *response.status_mut() = status;
            response
        };
        if request.method() != Method::GET {
            return plain(StatusCode::METHOD_NOT_ALLOWED);
        }
        match request.uri().path() {
            RELAY_PROBE_PATH | "/healthz" => plain(StatusCode::OK),
            RELAY_PATH => {
                let Some((response, version)) = upgraded(request.headers()) else {
                    return plain(StatusCode::BAD_REQUEST);
                };
                let upgrade = hyper::upgrade::on(&mut request);
                let (parts, _) = request.into_parts();
                let (shared, permit) = (Arc::clone(self), Arc::clone(permit));
                self.tasks.spawn(async move {
                    let established = async {
                        let upgraded = upgrade.await.map_err(|error| error.to_string())?;
                        let io = upgraded.downcast::<TokioIo<TlsStream<TcpStream>>>();
                        let io = io.map_err(|_| "the connection is not the relay's own".to_owned())?;
                        if !io.read_buf.is_empty() {
                            return Err("it speaks before it was answered".to_owned());
                        }
                        shared.establish(io.io.into_inner(), parts, version).await
                    };
                    match timeout(limits::ESTABLISH_TIMEOUT, established).await {
                        Ok(Ok(())) => {}
                        Ok(Err(why)) => tracing::debug!(why, "a connection to the relay came to nothing"),
                        Err(_) => shared.refused("timeout"),
                    }
                    drop(permit);
                });
                response
            }
            _ => plain(StatusCode::NOT_FOUND),
        }
    }

    /// Has the caller prove its key and show its pass, and hands it to the relay protocol.
    async fn establish(
        &self,
        io: TlsStream<TcpStream>,
        parts: http::request::Parts,
        version: ProtocolVersion,
    ) -> Result<(), String> {
        let limits = tokio_websockets::Limits::default().max_payload_len(Some(MAX_MESSAGE));
        let socket = tokio_websockets::ServerBuilder::new().limits(limits).serve(io);
        let mut messages = Messages::new(socket);
        let proof = parts.headers.get(CLIENT_AUTH_HEADER).cloned();
        let proven = handshake::serverside(&mut messages, proof).await.map_err(|error| {
            self.refused("handshake");
            error.to_string()
        })?;
        let request = ClientRequest::new(proven.client_key, version, parts);
        let key = DeviceKey(*request.endpoint_id().as_bytes());
        let text = request.auth_token().unwrap_or_default();
        let admitted = self.admit(&key, &text);
        let access = match &admitted {
            Ok(_) => Access::Allow,
            Err(reason) => Access::Deny { reason: Some(reason.clone()) },
        };
        if let Err(error) = proven.authorize_if(access, &mut messages).await {
            return Err(admitted.err().unwrap_or_else(|| error.to_string()));
        }
        let (pass, place) = admitted?;
        let account = self.accounts.of(&pass.holder, &self.metrics);
        messages.charge(account, place);
        tracing::debug!(%key, holder = ?pass.holder, "somebody uses the relay");
        self.open.table().insert(request.connection_id(), Entry { key, pass: text });
        let guard = OnDisconnectGuard::for_access_control(self.open.clone(), &request);
        let stream = RelayedStream::new(messages, self.keys.clone());
        self.clients.register(Config::new(guard, stream, version), Arc::clone(&self.relayed));
        self.count();
        Ok(())
    }

    /// The caller's pass and a place, or what it is told.
    fn admit(&self, key: &DeviceKey, pass: &str) -> Result<(Pass, Place), String> {
        let pass = self.gate.admit(key, pass).map_err(|bad| {
            self.refused("pass");
            bad.to_string()
        })?;
        if self.open.table().len() >= limits::MAX_CLIENTS {
            self.refused("full");
            return Err(format!("the relay has {} connections and takes no more", limits::MAX_CLIENTS));
        }
        let place = self.accounts.of(&pass.holder, &self.metrics).place().ok_or_else(|| {
            self.refused("owner_full");
            format!("devices of this owner have {} connections to the relay", limits::MAX_CLIENTS_PER_OWNER)
        })?;
        Ok((pass, place))
    }

    fn count(&self) {
        self.metrics.clients.set(i64::try_from(self.open.table().len()).unwrap_or(i64::MAX));
    }

    /// Says what went over the relay for each owner since this was said last.
    fn log_metered(&self) {
        for one in self.accounts.metered(&self.metrics) {
            tracing::info!(owner = one.owner, received = one.received, sent = one.sent, "bytes relayed");
        }
    }

    fn end_expired(&self) {
        let all = self.open.table().clone();
        for (connection, Entry { key, pass }) in all {
            if let Err(why) = self.gate.admit(&key, &pass) {
                tracing::debug!(%key, %why, "a pass is no longer good; ending its connection");
                self.metrics.expired.inc();
                if let Ok(key) = EndpointId::from_bytes(&key.0) {
                    self.clients.disconnect(key, Some(connection));
                }
            }
        }
        self.count();
    }
}

/// The answer to a request to become a WebSocket of the relay protocol, if it is one that can be answered.
fn upgraded(headers: &HeaderMap) -> Option<(Response<Empty<bytes::Bytes>>, ProtocolVersion)> {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let is_upgrade = text(header::UPGRADE)?.eq_ignore_ascii_case("websocket");
    if !is_upgrade || text(header::SEC_WEBSOCKET_VERSION)? != WEBSOCKET_VERSION {
        return None;
    }
    let offered = text(header::SEC_WEBSOCKET_PROTOCOL)?;
    let version = offered.split(',').filter_map(|one| ProtocolVersion::match_from_str(one.trim())).max()?;
    let mut digest = ring::digest::Context::new(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY);
    digest.update(headers.get(header::SEC_WEBSOCKET_KEY)?.as_bytes());
    digest.update(WEBSOCKET_GUID);
    let mut response = Response::new(Empty::new());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let accept = HeaderValue::from_str(&BASE64.encode(digest.finish())).ok()?;
    let answer = response.headers_mut();
    answer.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    answer.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    answer.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    answer.insert(header::SEC_WEBSOCKET_PROTOCOL, version.to_header_value());
    Some((response, version))
}
