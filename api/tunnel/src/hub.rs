//! The gateway's end: accepts the tunnels that devices dial, and opens streams on them.

mod accept;
mod dial;
mod health;
mod table;

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use hearth_types::{
    BoxFuture, DeviceName,
    relay::Relay,
    tunnel::{DialError, DialNotice, DialNotifier, Dialer, HeaderVersion, StreamKind},
};
use iroh::{Endpoint, RelayUrl, Watcher as _};
use prometheus::Registry;
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    StartError, TunnelStream, limits,
    metrics::HubMetrics,
    quic,
    relays::{RelaySet, Relays},
};

/// What a [`TunnelHub`] needs to know.
#[derive(Clone)]
pub struct HubConfig {
    /// The seed of the gateway's Ed25519 key (RFC 8032), which devices find in their roster.
    pub secret_key: [u8; 32],
    /// Where to listen, UDP. Port 0 picks one; `[::]` listens on both address families.
    pub listen: SocketAddr,
    /// What devices are told to dial. Port 0 stands for the port that is listened on; empty means the address
    /// listened on.
    pub advertise: Vec<SocketAddr>,
    /// After how long without a stream a tunnel is closed: [`limits::IDLE`](crate::IDLE) but in tests.
    pub idle: Duration,
}

impl HubConfig {
    /// A configuration with the usual idle time.
    pub fn new(secret_key: [u8; 32], listen: SocketAddr, advertise: Vec<SocketAddr>) -> Self {
        Self { secret_key, listen, advertise, idle: limits::IDLE }
    }
}

impl fmt::Debug for HubConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the key.
        f.debug_struct("HubConfig")
            .field("listen", &self.listen)
            .field("advertise", &self.advertise)
            .finish_non_exhaustive()
    }
}

/// The gateway's end of all tunnels. Clones are one hub.
///
/// Guarantees: a dial ends within [`DIAL_TIMEOUT`](crate::DIAL_TIMEOUT). Dials to one device at a time share one
/// notice. Only a key that the region's table gives to a device is accepted, and a tunnel whose key was taken from
/// its device is closed when it is next asked for. Once a device has another session than when its tunnel was opened,
/// new streams wait for a new tunnel, since the old one may be that of a process that was killed; streams that are
/// open on the old one may go on. While a device has no session, its tunnel is used.
///
/// Caveats: a stream on a tunnel whose device died less than [`SUSPECT_AFTER`](crate::SUSPECT_AFTER) ago, and has no
/// new session yet, is opened and fails later, when the silence is noticed ([`SILENCE`](crate::SILENCE)).
#[derive(Clone, Debug)]
pub struct TunnelHub {
    inner: Arc<Inner>,
}

struct Inner {
    endpoint: Endpoint,
    notifier: Arc<dyn DialNotifier>,
    notice: DialNotice,
    relays: Relays,
    /// What the endpoint may have of them.
    applied: tokio::sync::Mutex<Vec<RelayUrl>>,
    /// Woken when the gateway has left a relay.
    moved: Notify,
    idle: Duration,
    metrics: HubMetrics,
    tables: Mutex<table::Tables>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TunnelHub").field("notice", &self.notice).finish_non_exhaustive()
    }
}

impl TunnelHub {
    /// Listens, and accepts tunnels until [`TunnelHub::close`].
    pub async fn start(
        config: HubConfig,
        notifier: Arc<dyn DialNotifier>,
        registry: &Registry,
    ) -> Result<Self, StartError> {
        let metrics = HubMetrics::register(registry)?;
        let relays = Relays::default();
        let endpoint = quic::bind_gateway(&config.secret_key, config.listen, &relays).await?;
        let notice = DialNotice {
            gateway_key: *endpoint.id().as_bytes(),
            addresses: advertised(config.listen.ip(), &config.advertise, &endpoint.bound_sockets()),
            relays: Vec::new(),
        };
        tracing::info!(key = %endpoint.id(), addresses = ?notice.addresses, "listening for tunnels");
        let inner = Arc::new(Inner {
            endpoint,
            notifier,
            notice,
            relays,
            applied: tokio::sync::Mutex::default(),
            moved: Notify::new(),
            idle: config.idle,
            metrics,
            tables: Mutex::default(),
            tasks: TaskTracker::new(),
            shutdown: CancellationToken::new(),
        });
        inner.tasks.spawn(accept::run(inner.clone()));
        inner.tasks.spawn(health::run(inner.clone()));
        Ok(Self { inner })
    }

    /// Takes the relays that may be used in the place of those from before. Tunnels that are open go on.
    pub async fn set_relays(&self, set: RelaySet) {
        self.inner.relays.set(set);
        self.inner.apply_relays().await;
    }

    /// The name of the relay at which devices meet this gateway now; `None` where it is at none.
    pub fn relay(&self) -> Option<String> {
        self.inner.relays_now().into_iter().next().map(|relay| relay.name)
    }

    /// What devices are told of this gateway: its key and its addresses. The relays, which change, are added to each notice.
    pub fn notice(&self) -> &DialNotice {
        &self.inner.notice
    }

    /// How many tunnels are open.
    pub fn open_tunnels(&self) -> usize {
        self.inner.tables().open()
    }

    /// Closes all tunnels and the socket; dials fail from now on. Returns when the devices know it, or after
    /// [`CLOSE_TIMEOUT`](crate::CLOSE_TIMEOUT).
    pub async fn close(&self) {
        self.inner.shutdown.cancel();
        for tunnel in self.inner.tables().drain() {
            tunnel.close(quic::code::SHUTDOWN, b"the gateway ends");
        }
        quic::close(&self.inner.endpoint).await;
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }
}

impl Dialer for TunnelHub {
    type Stream = TunnelStream;

    fn dial<'a>(&'a self, device: &'a DeviceName, kind: StreamKind) -> BoxFuture<'a, Result<TunnelStream, DialError>> {
        Box::pin(dial::dial(&self.inner, device, kind))
    }

    fn header_version(&self, stream: &TunnelStream) -> HeaderVersion {
        stream.header_version()
    }

    /// Without a session, and without a tunnel that outlives it.
    fn is_away(&self, device: &DeviceName) -> bool {
        self.inner.notifier.session_of(device).is_none() && self.inner.tables().get(device).is_none()
    }
}

impl Inner {
    /// The relays at which the gateway is now.
    fn relays_now(&self) -> Vec<Relay> {
        let home = self.endpoint.home_relay_status().get();
        home.iter().filter(|status| status.is_connected()).filter_map(|status| self.relays.get(status.url())).collect()
    }

    /// The notice as it is now.
    fn notice_now(&self) -> DialNotice {
        let mut relays = self.relays_now();
        if relays.is_empty() {
            // On its way to one of those that answer.
            relays = self.relays.alive();
        }
        let relays = relays.into_iter().map(|relay| relay.url).collect();
        DialNotice { relays, ..self.notice.clone() }
    }

    /// Brings the endpoint's relays to those that are known and answer.
    async fn apply_relays(&self) {
        let mut had = self.applied.lock().await;
        self.relays.apply(&self.endpoint, &had).await;
        *had = self.relays.urls();
    }

    fn tables(&self) -> std::sync::MutexGuard<'_, table::Tables> {
        // A panic cannot happen between two writes that belong together, so a poisoned table is a sound one.
        self.tables.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// The addresses of the notice.
fn advertised(listen: IpAddr, asked: &[SocketAddr], bound: &[SocketAddr]) -> Vec<SocketAddr> {
    let port = bound.first().map_or(0, SocketAddr::port);
    if asked.is_empty() {
        // An unspecified address reaches this machine alone, which is what it means to dial one.
        let ip = match listen {
            IpAddr::V4(ip) if ip.is_unspecified() => std::net::Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => std::net::Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        return vec![SocketAddr::new(ip, port)];
    }
    let fill = |address: &SocketAddr| {
        if address.port() == 0 { SocketAddr::new(address.ip(), port) } else { *address }
    };
    asked.iter().take(limits::MAX_ADDRESSES).map(fill).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().expect("an address")).collect()
    }

    #[test]
    fn a_notice_names_the_port_that_is_listened_on() {
        let bound = addresses(&["0.0.0.0:4433"]);
        let cases: [(&str, &[&str], &[&str]); 4] = [
            ("0.0.0.0", &["192.0.2.1:0", "[2001:db8::1]:7"], &["192.0.2.1:4433", "[2001:db8::1]:7"]),
            ("0.0.0.0", &[], &["127.0.0.1:4433"]),
            ("::", &[], &["[::1]:4433"]),
            ("192.0.2.7", &[], &["192.0.2.7:4433"]),
        ];
        for (listen, asked, expected) in cases {
            let listen = listen.parse().expect("an address");
            assert_eq!(advertised(listen, &addresses(asked), &bound), addresses(expected), "{listen} {asked:?}");
        }
    }
}
