//! The device's end: dials gateways when they ask for it, and hands out the streams that they open.

mod endpoint;
mod rate;
mod serve;
mod status;

use std::{
    collections::HashMap,
    fmt,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use futures_core::Stream;
use hearth_types::tunnel::{DialNotice, StreamKind};
use iroh::{
    EndpointAddr, PublicKey, TransportAddr,
    endpoint::{Connection, WeakConnectionHandle},
};
use prometheus::Registry;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::status::{LineStatus, TunnelPath, TunnelStatus};
use self::{endpoint::SharedEndpoint, rate::TokenBucket};
use crate::{
    StartError, TunnelStream, limits,
    metrics::DeviceMetrics,
    quic,
    relays::{RelaySet, Relays},
};

/// Says whether a gateway, by its key, is in the device's roster. Asked at each notice and at each stream.
pub type GatewayCheck = Arc<dyn Fn(&[u8; 32]) -> bool + Send + Sync>;

/// What a [`DeviceTunnel`] needs to know.
#[derive(Clone)]
pub struct DeviceTunnelConfig {
    /// The seed of the device's Ed25519 key (RFC 8032): the device's identity.
    pub secret_key: [u8; 32],
    /// Which gateways the device lets in.
    pub allow: GatewayCheck,
    /// After how long without a stream a tunnel is closed:
    /// [`IDLE`](crate::IDLE) + [`DEVICE_IDLE_MARGIN`](crate::DEVICE_IDLE_MARGIN) but in tests.
    pub idle: Duration,
}

impl DeviceTunnelConfig {
    /// A configuration with the usual idle time.
    pub fn new(secret_key: [u8; 32], allow: impl Fn(&[u8; 32]) -> bool + Send + Sync + 'static) -> Self {
        Self { secret_key, allow: Arc::new(allow), idle: limits::IDLE + limits::DEVICE_IDLE_MARGIN }
    }
}

impl fmt::Debug for DeviceTunnelConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the key.
        f.debug_struct("DeviceTunnelConfig").field("idle", &self.idle).finish_non_exhaustive()
    }
}

/// Why a notice did not lead to a tunnel.
#[derive(Debug, thiserror::Error)]
pub enum DeviceDialError {
    /// The gateway is not in the roster.
    #[error("gateway {0} is not in this device's roster: it is not dialled")]
    NotInRoster(String),
    /// The notice cannot be followed.
    #[error("the dial notice of gateway {gateway} is malformed: {why}")]
    BadNotice {
        /// Whose notice.
        gateway: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Too many notices.
    #[error("gateway {0} sends dial notices too fast: this one is ignored")]
    TooFast(String),
    /// Too many gateways.
    #[error("gateway {gateway} is not dialled: there are tunnels to {limit} gateways")]
    TooMany {
        /// Whose notice.
        gateway: String,
        /// The limit.
        limit: usize,
    },
    /// No socket.
    #[error("cannot make a socket to dial gateway {gateway}")]
    Socket {
        /// Who was to be dialled.
        gateway: String,
        /// What failed.
        #[source]
        source: StartError,
    },
    /// The gateway does not answer, or refuses.
    #[error("cannot open a tunnel to gateway {gateway} at {addresses:?}")]
    Connect {
        /// Who was dialled.
        gateway: String,
        /// Where.
        addresses: Vec<SocketAddr>,
        /// What failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No answer in time.
    #[error("gateway {gateway} did not answer at {addresses:?} within {seconds} s: does UDP get out of this network?")]
    Timeout {
        /// Who was dialled.
        gateway: String,
        /// Where.
        addresses: Vec<SocketAddr>,
        /// How long was waited.
        seconds: u64,
    },
    /// The gateway moved meanwhile.
    #[error("gateway {0} is not dialled where it was: a newer notice says where it is")]
    Superseded(String),
    /// The process ends.
    #[error("not dialled: the device's end is closed")]
    Closed,
}

/// A stream that a gateway opened; its kind byte has been read.
#[derive(Debug)]
pub struct IncomingStream {
    /// What it is for.
    pub kind: StreamKind,
    /// Its bytes.
    pub stream: TunnelStream,
    /// The gateway's key, which is in the roster.
    pub gateway_key: [u8; 32],
}

/// The streams that arrive, from all gateways. Holds at most [`INCOMING_QUEUE`](crate::INCOMING_QUEUE); a stream that
/// nobody takes within [`ACCEPT_TIMEOUT`](crate::ACCEPT_TIMEOUT) is reset. Ends after [`DeviceTunnel::close`].
#[derive(Debug)]
pub struct IncomingStreams {
    receiver: mpsc::Receiver<IncomingStream>,
}

impl IncomingStreams {
    /// The next stream; `None` when there will be no more.
    pub async fn next(&mut self) -> Option<IncomingStream> {
        self.receiver.recv().await
    }
}

impl Stream for IncomingStreams {
    type Item = IncomingStream;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.receiver.poll_recv(cx)
    }
}

/// The device's end of its tunnels. Clones are one.
///
/// Guarantees: nothing is open, neither socket nor task, until a gateway of the roster asks for it, and all of it is
/// closed again some time after its last stream. A stream of an unknown kind is reset.
#[derive(Clone, Debug)]
pub struct DeviceTunnel {
    inner: Arc<Inner>,
}

struct Inner {
    allow: GatewayCheck,
    idle: Duration,
    metrics: DeviceMetrics,
    relays: Relays,
    endpoint: SharedEndpoint,
    gateways: Mutex<HashMap<[u8; 32], Arc<Gateway>>>,
    sender: Mutex<Option<mpsc::Sender<IncomingStream>>>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceTunnel").field("idle", &self.idle).finish_non_exhaustive()
    }
}

/// What is known of one gateway.
#[derive(Debug)]
struct Gateway {
    bucket: Mutex<TokenBucket>,
    /// The notice that is being followed, and what gives that up.
    following: Mutex<(DialNotice, CancellationToken)>,
    /// The newest tunnel and when it was opened. The lock is held while dialling: one at a time.
    newest: tokio::sync::Mutex<Option<(WeakConnectionHandle, Instant)>>,
}

impl DeviceTunnel {
    /// Makes the device's end and the streams that will arrive on it. Opens nothing yet.
    pub fn start(config: DeviceTunnelConfig, registry: &Registry) -> Result<(Self, IncomingStreams), StartError> {
        let metrics = DeviceMetrics::register(registry)?;
        let (sender, receiver) = mpsc::channel(limits::INCOMING_QUEUE);
        let relays = Relays::default();
        let inner = Inner {
            allow: config.allow,
            idle: config.idle,
            metrics,
            endpoint: SharedEndpoint::new(config.secret_key, relays.clone()),
            relays,
            gateways: Mutex::default(),
            sender: Mutex::new(Some(sender)),
            tasks: TaskTracker::new(),
            shutdown: CancellationToken::new(),
        };
        Ok((Self { inner: Arc::new(inner) }, IncomingStreams { receiver }))
    }

    /// Dials the gateway of a notice.
    ///
    /// Guarantees: returns within [`DIAL_TIMEOUT`](crate::DIAL_TIMEOUT). Notices of one gateway are followed one at a
    /// time; one that arrives within [`NOTICE_GRACE`](crate::NOTICE_GRACE) after its tunnel was opened is answered
    /// by that tunnel. A later one means that the gateway has no usable tunnel, so another is opened, and the old
    /// one ends with its streams.
    pub async fn dial(&self, notice: DialNotice) -> Result<(), DeviceDialError> {
        let result = self.inner.dial(&notice).await;
        let label = match &result {
            Ok(true) => "dialled",
            Ok(false) => "present",
            Err(DeviceDialError::NotInRoster(_)) => "refused",
            Err(DeviceDialError::TooFast(_) | DeviceDialError::TooMany { .. }) => "limited",
            Err(_) => "failed",
        };
        self.inner.metrics.notices.with_label_values(&[label]).inc();
        result.map(|_| ())
    }

    /// Takes the relays that may be used in the place of those from before. Tunnels that are open go on; what is open by a relay that is
    /// no longer one goes on too, until another path is found or the relay ends it.
    pub async fn set_relays(&self, set: RelaySet) {
        let had = self.inner.relays.urls();
        self.inner.relays.set(set);
        self.inner.endpoint.relays_changed(&had).await;
    }

    /// How many tunnels are open.
    pub fn open_tunnels(&self) -> usize {
        usize::try_from(self.inner.metrics.tunnels.get()).unwrap_or(0)
    }

    /// Whether a socket is open: it closes [`ENDPOINT_LINGER`](crate::ENDPOINT_LINGER) after the last tunnel.
    pub async fn has_socket(&self) -> bool {
        self.inner.endpoint.is_bound().await
    }

    /// Closes all tunnels and the socket, and ends the streams that arrive. Returns when the gateways know it, or
    /// after [`CLOSE_TIMEOUT`](crate::CLOSE_TIMEOUT).
    pub async fn close(&self) {
        self.inner.shutdown.cancel();
        drop(lock(&self.inner.sender).take());
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
        self.inner.endpoint.close().await;
    }
}

/// Whether a new tunnel can be sought on the path that this one uses. What is sent to a gateway to which there is a tunnel takes that
/// one's path and no other.
fn leads_to(stale: &Connection, address: &EndpointAddr) -> bool {
    let paths = stale.paths();
    // A gateway that left its relay is met at another one.
    let left =
        paths.iter().any(|path| path.is_selected() && path.is_relay() && !address.addrs.contains(path.remote_addr()));
    !left && paths.iter().any(|path| address.addrs.contains(path.remote_addr()))
}

fn is_open(connection: &WeakConnectionHandle) -> bool {
    connection.upgrade().is_some_and(|connection| connection.close_reason().is_none())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Nothing is left half done under these locks, so a poisoned one is sound.
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn hex(key: &[u8; 32]) -> String {
    hearth_types::DeviceKey(*key).to_string()
}

impl Inner {
    /// Whether a tunnel was opened (or one was there).
    async fn dial(self: &Arc<Self>, notice: &DialNotice) -> Result<bool, DeviceDialError> {
        let gateway = || hex(&notice.gateway_key);
        if self.shutdown.is_cancelled() {
            return Err(DeviceDialError::Closed);
        }
        if !(self.allow)(&notice.gateway_key) {
            return Err(DeviceDialError::NotInRoster(gateway()));
        }
        let address = self.address(notice)?;
        let state = self.gateway(notice)?;
        if !lock(&state.bucket).take(Instant::now()) {
            return Err(DeviceDialError::TooFast(gateway()));
        }
        let timed_out = || DeviceDialError::Timeout {
            gateway: gateway(),
            addresses: notice.addresses.clone(),
            seconds: limits::DIAL_TIMEOUT.as_secs(),
        };
        let opened = async {
            let mut newest = state.newest.lock().await;
            if let Some((connection, since)) = &*newest
                && is_open(connection)
                && since.elapsed() < limits::NOTICE_GRACE
            {
                return Ok(false);
            }
            if let Some(stale) = newest.as_ref().and_then(|(connection, _)| connection.upgrade())
                && !leads_to(&stale, &address)
            {
                // The gateway was started anew at another address; the new tunnel would be sought on the old path.
                stale.close(quic::code::REPLACED, b"the gateway moved");
            }
            let heard = newest.is_some();
            let connection = self.connect(notice, address, heard).await?;
            *newest = Some((connection.weak_handle(), Instant::now()));
            Ok(true)
        };
        let superseded = state.follow(notice);
        tokio::select! {
            () = self.shutdown.cancelled() => Err(DeviceDialError::Closed),
            () = superseded.cancelled() => Err(DeviceDialError::Superseded(gateway())),
            result = timeout(limits::DIAL_TIMEOUT, opened) => result.map_err(|_| timed_out())?,
        }
    }

    /// `heard`: this gateway had a tunnel before, by a relay that may not be the one it is at now.
    async fn connect(
        self: &Arc<Self>,
        notice: &DialNotice,
        address: EndpointAddr,
        heard: bool,
    ) -> Result<Connection, DeviceDialError> {
        let gateway = || hex(&notice.gateway_key);
        let socket = || async {
            let socket = self.endpoint.get(&self.tasks, &self.shutdown).await;
            socket.map_err(|source| DeviceDialError::Socket { gateway: gateway(), source })
        };
        let mut endpoint = socket().await?;
        if heard {
            endpoint.be_at_relays_of(&address).await;
        }
        let mut connected = endpoint.connect(address.clone()).await;
        if connected.as_ref().is_err_and(endpoint::has_ended) {
            // By an error of the network or a fault of its own; a device must not be out of reach for that.
            self.endpoint.discard(&endpoint).await;
            endpoint = socket().await?;
            connected = endpoint.connect(address).await;
        }
        let connection = connected.map_err(|error| DeviceDialError::Connect {
            gateway: gateway(),
            addresses: notice.addresses.clone(),
            source: error.into(),
        })?;
        let sender = lock(&self.sender).clone().ok_or(DeviceDialError::Closed)?;
        self.metrics.tunnels.inc();
        self.tasks.spawn(serve::serve(self.clone(), connection.clone(), endpoint, sender));
        tracing::debug!(gateway = gateway(), "opened a tunnel");
        Ok(connection)
    }

    /// The gateway's entry, made if there is room.
    fn gateway(&self, notice: &DialNotice) -> Result<Arc<Gateway>, DeviceDialError> {
        let key = &notice.gateway_key;
        let mut gateways = lock(&self.gateways);
        if let Some(gateway) = gateways.get(key) {
            return Ok(gateway.clone());
        }
        if gateways.len() >= limits::MAX_GATEWAYS {
            gateways.retain(|_, gateway| !gateway.is_unused());
        }
        if gateways.len() >= limits::MAX_GATEWAYS {
            return Err(DeviceDialError::TooMany { gateway: hex(key), limit: limits::MAX_GATEWAYS });
        }
        let gateway = Arc::new(Gateway {
            bucket: Mutex::new(TokenBucket::new(limits::NOTICE_BURST, limits::NOTICE_INTERVAL, Instant::now())),
            following: Mutex::new((notice.clone(), CancellationToken::new())),
            newest: tokio::sync::Mutex::default(),
        });
        gateways.insert(*key, gateway.clone());
        Ok(gateway)
    }

    /// Where iroh shall dial to.
    fn address(&self, notice: &DialNotice) -> Result<EndpointAddr, DeviceDialError> {
        let bad = |why| DeviceDialError::BadNotice { gateway: hex(&notice.gateway_key), why };
        let key = PublicKey::from_bytes(&notice.gateway_key).map_err(|_| bad("its key is no Ed25519 public key"))?;
        let relays = self.relays.among(&notice.relays);
        if notice.addresses.is_empty() && relays.is_empty() {
            return Err(bad("it names no address"));
        }
        if notice.addresses.len() > limits::MAX_ADDRESSES {
            return Err(bad("it names too many addresses"));
        }
        if notice.addresses.iter().any(|it| it.port() == 0 || it.ip().is_multicast() || it.ip().is_unspecified()) {
            return Err(bad("an address of it is none of a machine"));
        }
        let address = EndpointAddr::new(key).with_addrs(relays.into_iter().map(TransportAddr::Relay));
        Ok(notice.addresses.iter().fold(address, |address, ip| address.with_ip_addr(*ip)))
    }
}

impl Gateway {
    /// Follows a notice from now on. Another one that is being followed is given up: it says where the gateway was.
    fn follow(&self, notice: &DialNotice) -> CancellationToken {
        let mut following = lock(&self.following);
        if following.0 != *notice {
            following.1.cancel();
            *following = (notice.clone(), CancellationToken::new());
        }
        following.1.clone()
    }

    /// Nobody dials it and its tunnel has ended. (Its bucket is forgotten: it takes as many keys as there are
    /// places to make use of that, and all of them in the roster.)
    fn is_unused(&self) -> bool {
        self.newest.try_lock().is_ok_and(|newest| newest.as_ref().is_none_or(|(connection, _)| !is_open(connection)))
    }
}
