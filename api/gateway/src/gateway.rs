//! The listener: how it starts, takes connections, and stops.

use std::{fmt, io, net::SocketAddr, ops::RangeInclusive, sync::Arc};

use hearth_types::{
    routes::{RouteEntry, RouteLookup},
    tunnel::Dialer,
};
use prometheus::Registry;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;

use crate::{
    admission::Admission,
    connection::{Shared, serve, serve_port},
    limits::{ACCEPT_PAUSE, Limits},
    metrics::{Metrics, Outcome},
    own::OwnDoors,
    ports,
};

/// What a [`Gateway`] needs to know.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct GatewayConfig {
    /// Where to listen for HTTPS and plain HTTP, TCP. Port 0 picks one; `[::]` listens on both address families.
    pub listen: SocketAddr,
    /// The TCP and UDP ports that Routes may have; `None`: no Route has one.
    pub ports: Option<RangeInclusive<u16>>,
    /// The limits.
    pub limits: Limits,
    /// Names that lead to other doors of this server.
    pub own: OwnDoors,
    /// Until this is cancelled, only those names are served, and other callers wait; `None`: all are served from the start.
    pub open: Option<CancellationToken>,
}

impl GatewayConfig {
    /// A configuration with the usual limits.
    pub fn new(listen: SocketAddr) -> Self {
        Self { listen, ports: None, limits: Limits::default(), own: OwnDoors::default(), open: None }
    }
}

/// Why a gateway does not start.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The socket.
    #[error("cannot listen on {address} (TCP) for the gateway")]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// What the kernel said, such as [`io::ErrorKind::AddrInUse`].
        #[source]
        source: io::Error,
    },
    /// The metrics.
    #[error("cannot register the gateway's metrics: are there two gateways in one registry?")]
    Metrics(#[from] prometheus::Error),
}

/// The kernel's own error where there is one, so that its kind can be told.
impl From<GatewayError> for io::Error {
    fn from(error: GatewayError) -> Self {
        match error {
            GatewayError::Listen { source, .. } => source,
            GatewayError::Metrics(_) => Self::other(error),
        }
    }
}

/// A gateway that listens; [`Gateway::run`] makes it serve.
pub struct Gateway<D> {
    listener: TcpListener,
    address: SocketAddr,
    ports: Option<RangeInclusive<u16>>,
    shared: Arc<Shared<D>>,
}

impl<D> fmt::Debug for Gateway<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway").field("address", &self.address).finish_non_exhaustive()
    }
}

impl<D: Dialer> Gateway<D>
where
    D::Stream: AsyncRead + AsyncWrite,
{
    /// Listens. Callers wait in the kernel's queue until [`Gateway::run`].
    pub async fn bind(
        config: GatewayConfig,
        routes: Arc<dyn RouteLookup>,
        dialer: Arc<D>,
        registry: &Registry,
    ) -> Result<Self, GatewayError> {
        let fail = |source| GatewayError::Listen { address: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(fail)?;
        Self::on(listener, config, routes, dialer, registry)
    }

    /// The same with a socket that listens already, wherever the configuration says.
    pub fn on(
        listener: TcpListener,
        config: GatewayConfig,
        routes: Arc<dyn RouteLookup>,
        dialer: Arc<D>,
        registry: &Registry,
    ) -> Result<Self, GatewayError> {
        let GatewayConfig { listen, ports, limits, own, open } = config;
        let fail = |source| GatewayError::Listen { address: listen, source };
        let address = listener.local_addr().map_err(fail)?;
        let metrics = Metrics::register(registry)?;
        let connections = limits.connections.min(descriptors_for_callers());
        if connections < limits.connections {
            tracing::info!(
                connections,
                "fewer connections than usual: half of the file descriptors allowed (ulimit -n)"
            );
        }
        let admission = Admission::new(connections, &limits.caller, &limits.owner);
        let flows = Admission::new(limits.flows, &limits.flow_caller, &limits.flow_owner);
        let (draining, waiting, port) = (CancellationToken::new(), Arc::default(), address.port());
        let shared = Shared { routes, dialer, own, open, admission, flows, waiting, limits, metrics, port, draining };
        let shared = Arc::new(shared);
        Ok(Self { listener, address, ports, shared })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown` is cancelled. Then it takes no more connections, ends those that are silent, lets the
    /// others go on for [`Limits::drain`], and cuts off the rest. Flows of datagrams end at once.
    ///
    /// Guarantees: returns within [`Limits::drain`] of the cancellation. When the future is dropped, all connections
    /// end at once.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), GatewayError> {
        let Self { listener, address, ports, shared } = self;
        let tasks = TaskTracker::new();
        let cut = CancellationToken::new();
        let cut_when_dropped = cut.clone().drop_guard();
        let takers = Takers { shared: Arc::clone(&shared), tasks: tasks.clone(), cut };
        let listeners = ports::Listeners::new(address, ports, takers.clone(), shutdown.child_token());
        tokio::select! {
            () = listeners.run() => {}
            () = accept(&listener, &shutdown, |socket, caller| takers.take(socket, caller, None)) => {}
        }
        drop(takers);
        drop(listener);
        shared.draining.cancel();
        tasks.close();
        if timeout(shared.limits.drain, tasks.wait()).await.is_err() {
            tracing::debug!(connections = tasks.len(), "cutting off connections that go on");
        }
        drop(cut_when_dropped);
        tasks.wait().await;
        Ok(())
    }
}

/// Takes connections until told to stop.
pub(crate) async fn accept(
    listener: &TcpListener,
    shutdown: &CancellationToken,
    mut take: impl FnMut(TcpStream, SocketAddr),
) {
    let mut failing = false;
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, caller)) => {
                failing = false;
                take(socket, caller);
            }
            Err(error) if is_callers_doing(&error) => tracing::debug!(%error, "a caller left before it was taken"),
            Err(error) => {
                // Once for a row of failures: a lack of descriptors lasts.
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%error, "cannot take connections of callers; trying on");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Starts to serve connections.
pub(crate) struct Takers<D> {
    shared: Arc<Shared<D>>,
    tasks: TaskTracker,
    cut: CancellationToken,
}

impl<D> Clone for Takers<D> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), tasks: self.tasks.clone(), cut: self.cut.clone() }
    }
}

impl<D: Dialer> Takers<D>
where
    D::Stream: AsyncRead + AsyncWrite,
{
    pub(crate) fn shared(&self) -> &Arc<Shared<D>> {
        &self.shared
    }

    /// Starts to serve a connection, if there is a place for it; `route` is that of the port that it came to. One that is
    /// refused is closed without a word: it may be one of very many.
    pub(crate) fn take(&self, socket: TcpStream, caller: SocketAddr, route: Option<Arc<RouteEntry>>) {
        let caller = SocketAddr::new(caller.ip().to_canonical(), caller.port());
        let permit = match self.shared.admission.admit(caller.ip()) {
            Ok(permit) => permit,
            Err(outcome) => {
                tracing::debug!(%caller, outcome = outcome.label(), "refused a connection");
                return self.shared.metrics.ended(outcome);
            }
        };
        let (shared, cut) = (Arc::clone(&self.shared), self.cut.clone());
        let span = tracing::debug_span!("connection", %caller);
        let connection = async move {
            let _permit = permit;
            let open = OpenGuard::new(&shared.metrics);
            let serving = async {
                match &route {
                    None => serve(&shared, socket, caller).await,
                    Some(route) => serve_port(&shared, socket, caller, route).await,
                }
            };
            let outcome = cut.run_until_cancelled(serving).await;
            drop(open);
            shared.metrics.ended(outcome.unwrap_or(Outcome::Drained));
        };
        // A panic ends this connection alone; the guards give its place back.
        self.tasks.spawn(connection.instrument(span));
    }
}

/// Counts a connection as open, also if its task panics.
struct OpenGuard<'a>(&'a Metrics);

impl<'a> OpenGuard<'a> {
    fn new(metrics: &'a Metrics) -> Self {
        metrics.open.inc();
        Self(metrics)
    }
}

impl Drop for OpenGuard<'_> {
    fn drop(&mut self) {
        self.0.open.dec();
    }
}

/// Errors of accept that say something of one caller and nothing of the listener (accept(2)).
fn is_callers_doing(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(
        error.kind(),
        Kind::ConnectionAborted | Kind::ConnectionReset | Kind::ConnectionRefused | Kind::TimedOut | Kind::Interrupted
    )
}

/// How many file descriptors callers may take: half of those that the process may open, since the store and the other
/// doors live in the same process.
fn descriptors_for_callers() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.and_then(|limit| usize::try_from(limit / 2).ok()).unwrap_or(usize::MAX)
}
