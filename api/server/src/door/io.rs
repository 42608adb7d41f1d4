//! The accept loop: TCP, TLS, and what is known of a connection.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use hearth_types::{Clock, DeviceKey};
use prometheus::IntGauge;
use rustls::{ServerConfig, server::NoServerSessionStorage};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::Sleep,
};
use tokio_rustls::{
    TlsAcceptor,
    server::{StartHandshake, TlsStream},
};
use tokio_util::{
    sync::{CancellationToken, WaitForCancellationFutureOwned},
    task::TaskTracker,
};
use tonic::transport::server::Connected;

use super::{
    authn::{self, AnyClient, Peer},
    guests::{Guest, Guests},
};
use crate::{
    ca::{CaError, CertificateAuthority},
    certificate::Renewed,
    devices::{DeviceIndex, Registration},
    metrics::Metrics,
};

/// How long a TLS handshake may take, and how long the first request may be waited for after it.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections at one time at most: a region's 10,000 devices, each with a connection that has just died
/// beside the new one.
const MAX_CONNECTIONS: usize = 20_000;
/// Connections at one time at most of those who are nobody that the region knows: enough for joining, and so
/// few that they cannot take the place of the others.
const MAX_STRANGERS: usize = 1_000;
/// The same of one network: a household that joins all its devices at once.
const MAX_STRANGERS_PER_NETWORK: usize = 64;
/// How long a stranger may stay: joining takes a second or two.
const STRANGER_TIME: Duration = Duration::from_secs(30);
/// Handshakes at one time at most: each costs a signature, and two cores do some thousand a second.
const MAX_HANDSHAKES: usize = 1_024;
/// The same of one network: many households behind one address of a provider, after a power cut.
const MAX_HANDSHAKES_PER_NETWORK: usize = 512;
/// The pause after the system could not accept a connection, for want of file descriptors as a rule.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What is known of a connection; tonic puts it into every request's extensions.
#[derive(Clone, Debug)]
pub(crate) struct ConnInfo {
    pub(crate) remote: SocketAddr,
    pub(crate) peer: Arc<Peer>,
}

/// A connection whose hello was read by somebody else, and who called.
pub type Begun = (StartHandshake<TcpStream>, SocketAddr);

/// Where connections come from.
#[derive(Debug, Default)]
pub struct Incoming {
    /// A socket of the API's own.
    pub listener: Option<TcpListener>,
    /// The gateway, whose port the API shares.
    pub begun: Option<mpsc::Receiver<Begun>>,
}

impl From<TcpListener> for Incoming {
    fn from(listener: TcpListener) -> Self {
        Self { listener: Some(listener), begun: None }
    }
}

impl Incoming {
    /// The next one. Dropping the future loses none.
    async fn next(&mut self) -> io::Result<(Connection, SocketAddr)> {
        let Self { listener, begun } = self;
        let listened = async {
            match listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        let handed = async {
            match begun {
                Some(begun) => begun.recv().await,
                None => None,
            }
        };
        tokio::select! {
            listened = listened => listened.map(|(tcp, remote)| (Connection::New(tcp), remote)),
            Some((begun, remote)) = handed => Ok((Connection::Begun(Box::new(begun)), remote)),
        }
    }
}

/// A connection, by how far it is.
enum Connection {
    New(TcpStream),
    Begun(Box<StartHandshake<TcpStream>>),
}

/// The door of one listener.
pub(crate) struct Door {
    pub(crate) ca: Arc<CertificateAuthority>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) devices: Arc<DeviceIndex>,
    pub(crate) metrics: Arc<Metrics>,
    /// Ends every connection at once when cancelled.
    pub(crate) cut: CancellationToken,
    /// The names in the server's certificate.
    pub(crate) server_names: Vec<String>,
    /// Room for those whom nobody knows yet.
    pub(crate) room: Room,
}

/// Room for those whom nobody knows yet.
pub(crate) struct Room {
    handshakes: Arc<Guests>,
    strangers: Arc<Guests>,
    stranger_time: Duration,
}

impl Default for Room {
    fn default() -> Self {
        Self {
            handshakes: Guests::new(MAX_HANDSHAKES, MAX_HANDSHAKES_PER_NETWORK),
            strangers: Guests::new(MAX_STRANGERS, MAX_STRANGERS_PER_NETWORK),
            stranger_time: STRANGER_TIME,
        }
    }
}

impl Door {
    /// Accepts connections and sends those whose handshake is done, until it is dropped or nobody takes
    /// them any more.
    pub(crate) async fn run(
        self: Arc<Self>,
        mut incoming: Incoming,
        ready: mpsc::Sender<io::Result<DoorIo>>,
    ) -> Result<(), CaError> {
        let acceptor = TlsAcceptor::from(Arc::new(self.tls()?));
        let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let tasks = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                () = ready.closed() => return Ok(()),
                accepted = accept(&mut incoming, &connections) => accepted,
            };
            match accepted {
                Ok((connection, remote, permit)) => {
                    let Some(guest) = self.room.handshakes.admit(remote.ip()) else {
                        self.metrics.turned_away.inc();
                        tracing::debug!(%remote, "too many handshakes of one network");
                        continue;
                    };
                    let (door, acceptor, ready) = (self.clone(), acceptor.clone(), ready.clone());
                    tasks.spawn(
                        async move { door.handshake(connection, remote, (permit, guest), acceptor, ready).await },
                    );
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn tls(&self) -> Result<ServerConfig, CaError> {
        let (ca, names) = (self.ca.clone(), self.server_names.clone());
        let certificate = Renewed::new("serving", self.clock.clone(), move || ca.issue_server(&names))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(|error| CaError::Request(error.to_string()))?
            .with_client_cert_verifier(Arc::new(AnyClient::new(provider)))
            .with_cert_resolver(Arc::new(certificate));
        config.alpn_protocols = vec![b"h2".to_vec()];
        // A resumed session would show a certificate without proving its key anew.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    async fn handshake(
        self: Arc<Self>,
        connection: Connection,
        remote: SocketAddr,
        (permit, handshake): (OwnedSemaphorePermit, Guest),
        acceptor: TlsAcceptor,
        ready: mpsc::Sender<io::Result<DoorIo>>,
    ) {
        let handshaking = async {
            match connection {
                Connection::New(tcp) => {
                    let _ = tcp.set_nodelay(true);
                    acceptor.accept(tcp).await
                }
                Connection::Begun(begun) => {
                    let _ = begun.io.set_nodelay(true);
                    begun.into_stream(Arc::clone(acceptor.config())).await
                }
            }
        };
        let shaken = tokio::select! {
            shaken = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshaking) => shaken,
            () = handshake.end.cancelled() => {
                self.metrics.turned_away.inc();
                tracing::debug!(%remote, "a TLS handshake had to make room for a newer one");
                return;
            }
        };
        let tls = match shaken {
            Ok(Ok(tls)) => tls,
            Ok(Err(error)) => {
                self.metrics.handshake_failures.inc();
                tracing::debug!(%remote, %error, "a TLS handshake failed");
                return;
            }
            Err(_) => {
                self.metrics.handshake_failures.inc();
                tracing::debug!(%remote, "a TLS handshake took too long");
                return;
            }
        };
        drop(handshake);
        let chain = tls.get_ref().1.peer_certificates().unwrap_or_default();
        let peer = authn::classify(chain, &self.ca, self.clock.now());
        let stranger = match &peer {
            Peer::User { .. } => None,
            Peer::Nobody => Some(None),
            Peer::Key(key) => (self.devices.is_primed() && self.devices.lookup(key).is_none()).then_some(Some(*key)),
        };
        let stranger = match stranger {
            Some(key) => {
                let Some(guest) = self.room.strangers.admit(remote.ip()) else {
                    self.metrics.turned_away.inc();
                    tracing::debug!(%remote, "there is no more room for strangers of one network");
                    return;
                };
                let ends = Box::pin(guest.end.clone().cancelled_owned());
                let time = Box::pin(tokio::time::sleep(self.room.stranger_time));
                Some(Stranger { key, devices: self.devices.clone(), ends, time, _guest: guest })
            }
            None => None,
        };
        let (revoked, registration) = match &peer {
            Peer::Key(key) => {
                let (token, registration) = self.devices.register(*key);
                (Some(Box::pin(token.cancelled_owned())), Some(registration))
            }
            _ => (None, None),
        };
        self.metrics.connections.inc();
        let io = DoorIo {
            tls,
            info: ConnInfo { remote, peer: Arc::new(peer) },
            revoked,
            stranger,
            cut: Box::pin(self.cut.clone().cancelled_owned()),
            first: Some(Box::pin(tokio::time::sleep(HANDSHAKE_TIMEOUT))),
            _held: Held { _registration: registration, _permit: permit, open: self.metrics.connections.clone() },
        };
        // Nobody takes it: the server is stopping.
        let _ = ready.send(Ok(io)).await;
    }
}

/// Waits for room, then for a connection, so that what there is no room for waits in the kernel. Those whom nobody knows cannot take
/// all of that room: there are far fewer places for them.
async fn accept(
    incoming: &mut Incoming,
    connections: &Arc<Semaphore>,
) -> io::Result<(Connection, SocketAddr, OwnedSemaphorePermit)> {
    let connection = connections.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (accepted, remote) = incoming.next().await?;
    Ok((accepted, remote, connection))
}

/// A connection of somebody whom nobody knows: it ends after a while, unless its key has become a device's.
struct Stranger {
    key: Option<DeviceKey>,
    devices: Arc<DeviceIndex>,
    ends: Pin<Box<WaitForCancellationFutureOwned>>,
    time: Pin<Box<Sleep>>,
    _guest: Guest,
}

impl Stranger {
    /// Ready once the place or the time is used up: whether it is still a stranger.
    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        if self.ends.as_mut().poll(cx).is_pending() && self.time.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        Poll::Ready(self.key.is_none_or(|key| self.devices.lookup(&key).is_none()))
    }
}

/// What a connection occupies while it is open.
struct Held {
    _registration: Option<Registration>,
    _permit: OwnedSemaphorePermit,
    open: IntGauge,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.open.dec();
    }
}

/// A connection whose handshake is done. It breaks when its device's key is revoked, when the server cuts
/// it, and when nothing comes at first.
pub(crate) struct DoorIo {
    tls: TlsStream<TcpStream>,
    info: ConnInfo,
    revoked: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    /// `None` for somebody whom the region knows.
    stranger: Option<Stranger>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    first: Option<Pin<Box<Sleep>>>,
    _held: Held,
}

impl Connected for DoorIo {
    type ConnectInfo = ConnInfo;
    fn connect_info(&self) -> ConnInfo {
        self.info.clone()
    }
}

impl AsyncRead for DoorIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the server is stopping")));
        }
        if this.revoked.as_mut().is_some_and(|revoked| revoked.as_mut().poll(cx).is_ready()) {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the device's key was revoked")));
        }
        match this.stranger.as_mut().map(|stranger| stranger.poll_over(cx)) {
            Some(Poll::Ready(true)) => return Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Some(Poll::Ready(false)) => this.stranger = None,
            Some(Poll::Pending) | None => {}
        }
        let read = Pin::new(&mut this.tls).poll_read(cx, buf);
        if read.is_ready() {
            this.first = None;
        } else if this.first.as_mut().is_some_and(|first| first.as_mut().poll(cx).is_ready()) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl AsyncWrite for DoorIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SystemClock;

    fn door(directory: &std::path::Path, clock: Arc<dyn Clock>, room: Room) -> Door {
        let ca = CertificateAuthority::load_or_create(directory, "hearth.internal", clock.clone()).expect("a CA");
        Door {
            ca: Arc::new(ca),
            clock,
            devices: Arc::default(),
            metrics: Arc::new(Metrics::new(&prometheus::Registry::new()).expect("metrics")),
            cut: CancellationToken::new(),
            server_names: vec!["api.hearth.internal".into()],
            room,
        }
    }

    async fn from(source: &str, server: SocketAddr) -> TcpStream {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.bind(format!("{source}:0").parse().expect("an address")).expect("an address of this host");
        socket.connect(server).await.expect("connected")
    }

    #[tokio::test]
    async fn those_whom_nobody_knows_cannot_keep_others_out() {
        use tokio::io::AsyncReadExt as _;
        const PATIENCE: Duration = Duration::from_secs(20);
        let directory = tempfile::tempdir().expect("a directory");
        let room = Room {
            handshakes: Guests::new(4, 2),
            strangers: Guests::new(3, 1),
            stranger_time: Duration::from_millis(100),
        };
        let door = Arc::new(door(directory.path(), Arc::new(SystemClock), room));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let server = listener.local_addr().expect("an address");
        let mut roots = rustls::RootCertStore::empty();
        roots.add(door.ca.certificate().clone()).expect("a root");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let tls = tls.expect("versions").with_root_certificates(roots).with_no_client_auth();
        let client = tokio_rustls::TlsConnector::from(Arc::new(tls));
        let name = rustls_pki_types::ServerName::try_from("api.hearth.internal").expect("a name");
        let (sender, mut ready) = mpsc::channel(8);
        let running = tokio::spawn(door.clone().run(listener.into(), sender));
        // All places are taken by two networks that say nothing.
        let mut silent = Vec::new();
        for source in ["127.0.0.2", "127.0.0.2", "127.0.0.3", "127.0.0.3"] {
            silent.push(from(source, server).await);
        }
        // One of them wants more than its share, and is turned away at once.
        let mut more = from("127.0.0.2", server).await;
        let read = tokio::time::timeout(PATIENCE, more.read(&mut [0; 1])).await.expect("closed");
        assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
        // Another comes in, and the oldest has made room.
        let connected = client.connect(name.clone(), from("127.0.0.4", server).await);
        let _client = tokio::time::timeout(PATIENCE, connected).await.expect("in time").expect("let in");
        let read = tokio::time::timeout(PATIENCE, silent[0].read(&mut [0; 1])).await.expect("closed");
        assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
        // As a stranger it has its time, and no more of them.
        let mut io =
            tokio::time::timeout(PATIENCE, ready.recv()).await.expect("in time").expect("open").expect("let in");
        let over = tokio::time::timeout(PATIENCE, io.read(&mut [0; 1])).await.expect("in time");
        assert_eq!(over.expect_err("its time is over").kind(), io::ErrorKind::TimedOut);
        let mut second = client.connect(name, from("127.0.0.4", server).await).await.expect("the handshake");
        let read = tokio::time::timeout(PATIENCE, second.read(&mut [0; 1])).await.expect("closed");
        assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
        drop(io);
        assert_eq!(door.metrics.turned_away.get(), 3, "by share, by age, and a stranger too many");
        running.abort();
    }
}
