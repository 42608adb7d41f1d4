//! The listeners, and how they start and stop.

use std::{io, net::SocketAddr, sync::Arc};

use hearth_types::{routes::RouteLookup, tunnel::Dialer};
use prometheus::Registry;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    connection::{Shared, serve},
    limits::{self, Limits},
    metrics::Metrics,
    slots::Slots,
};

/// What a [`Gateway`] needs to know.
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    /// Where to listen for TLS (and for plain HTTP, which is redirected). Port 0 picks one.
    pub listen: SocketAddr,
    /// Where to listen for plain HTTP alone, such as port 80.
    pub http_redirect: Option<SocketAddr>,
    /// The port that redirects name, where callers reach the gateway on another one than it listens on.
    pub https_port: Option<u16>,
    /// The limits.
    pub limits: Limits,
}

impl GatewayConfig {
    /// A configuration with the usual limits and without a listener for plain HTTP alone.
    pub fn new(listen: SocketAddr) -> Self {
        Self { listen, http_redirect: None, https_port: None, limits: Limits::default() }
    }
}

/// Why a gateway does not start.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The socket.
    #[error("the gateway cannot listen on TCP {listen}: is the port taken or the address another machine's?")]
    Listen {
        /// The address asked for.
        listen: SocketAddr,
        /// What the socket said.
        #[source]
        source: io::Error,
    },
    /// The metrics.
    #[error("cannot register the gateway's metrics: are two gateways in one registry?")]
    Metrics(#[from] prometheus::Error),
}

/// A gateway that listens; [`Gateway::run`] makes it serve.
pub struct Gateway<D> {
    listener: TcpListener,
    address: SocketAddr,
    redirect: Option<(TcpListener, SocketAddr)>,
    slots: Slots,
    shared: Arc<Shared<D>>,
}

impl<D> std::fmt::Debug for Gateway<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gateway").field("address", &self.address).finish_non_exhaustive()
    }
}

impl<D> Gateway<D>
where
    D: Dialer,
    D::Stream: AsyncRead + AsyncWrite,
{
    /// Listens. Callers wait in the kernel's queue until [`Gateway::run`].
    pub async fn bind(
        config: GatewayConfig,
        routes: Arc<dyn RouteLookup>,
        dialer: Arc<D>,
        registry: &Registry,
    ) -> Result<Self, BindError> {
        let metrics = Metrics::register(registry)?;
        let (listener, address) = listen(config.listen).await?;
        let redirect = match config.http_redirect {
            Some(address) => Some(listen(address).await?),
            None => None,
        };
        let shared = Shared {
            routes,
            dialer,
            metrics,
            limits: config.limits,
            https_port: config.https_port.unwrap_or(address.port()),
            cut: CancellationToken::new(),
        };
        let slots = Slots::new(config.limits.connections, config.limits.connections_per_caller);
        Ok(Self { listener, address, redirect, slots, shared: Arc::new(shared) })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Where it listens for plain HTTP alone.
    pub fn redirect_addr(&self) -> Option<SocketAddr> {
        self.redirect.as_ref().map(|(_, address)| *address)
    }

    /// Serves until `shutdown` ends; then accepts no more, lets open connections finish for
    /// [`Limits::drain`], and cuts the rest.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let Self { listener, redirect, slots, shared, .. } = self;
        let tasks = TaskTracker::new();
        let redirects = async {
            match &redirect {
                Some((listener, _)) => accept(listener, &slots, &shared, &tasks, true).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = shutdown => {}
            () = accept(&listener, &slots, &shared, &tasks, false) => {}
            () = redirects => {}
        }
        drop((listener, redirect));
        tasks.close();
        if tokio::time::timeout(shared.limits.drain, tasks.wait()).await.is_err() {
            tracing::info!(open = tasks.len(), "cutting connections that did not finish in time");
            shared.cut.cancel();
            tasks.wait().await;
        }
    }
}

async fn listen(listen: SocketAddr) -> Result<(TcpListener, SocketAddr), BindError> {
    let failed = |source| BindError::Listen { listen, source };
    let listener = TcpListener::bind(listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

/// Accepts for ever.
async fn accept<D>(
    listener: &TcpListener,
    slots: &Slots,
    shared: &Arc<Shared<D>>,
    tasks: &TaskTracker,
    plain_only: bool,
) where
    D: Dialer,
    D::Stream: AsyncRead + AsyncWrite,
{
    loop {
        match listener.accept().await {
            Ok((socket, caller)) => admit(socket, caller, slots, shared, tasks, plain_only),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(limits::ACCEPT_PAUSE).await;
            }
        }
    }
}

fn admit<D>(
    socket: TcpStream,
    caller: SocketAddr,
    slots: &Slots,
    shared: &Arc<Shared<D>>,
    tasks: &TaskTracker,
    plain_only: bool,
) where
    D: Dialer,
    D::Stream: AsyncRead + AsyncWrite,
{
    match slots.take(caller.ip()) {
        Ok(slot) => {
            let shared = shared.clone();
            tasks.spawn(async move {
                let _slot = slot;
                let open = Open::new(&shared.metrics.open);
                serve(shared, socket, caller, plain_only).await;
                drop(open);
            });
        }
        // Dropping it closes it, which costs nothing.
        Err(full) => shared.metrics.refused.with_label_values(&[full.label()]).inc(),
    }
}

/// Counts an open connection.
struct Open(prometheus::IntGauge);

impl Open {
    fn new(gauge: &prometheus::IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}
