//! The sockets, and what is shared by all that serves them.

use std::{
    net::{IpAddr, SocketAddr},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Instant,
};

use hearth_types::{Clock, callers::Slots, routes::RouteLookup};
use prometheus::Registry;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{Answerer, Asking, DnsConfig, DnsError, Outcome, Silence, Transport, limits, metrics::Metrics, tcp, udp};

/// A name server that has its sockets; [`DnsServer::run`] makes it serve.
pub struct DnsServer {
    udp: udp::Socket,
    tcp: TcpListener,
    address: SocketAddr,
    slots: Slots,
    responder: Arc<Responder>,
}

impl std::fmt::Debug for DnsServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DnsServer").field("address", &self.address).finish_non_exhaustive()
    }
}

impl DnsServer {
    /// Checks the configuration and takes both sockets.
    ///
    /// # Errors
    ///
    /// [`DnsError`]; the sockets' own error is its source, and is what `io::Error::from` gives.
    pub async fn bind(
        config: DnsConfig,
        routes: Arc<dyn RouteLookup>,
        clock: Arc<dyn Clock>,
        registry: &Registry,
    ) -> Result<Self, DnsError> {
        let answerer = Answerer::new(&config, routes)?;
        Self::bind_with(config, answerer, clock, registry).await
    }

    /// As [`DnsServer::bind`], with an answerer of its own.
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn bind_with(
        config: DnsConfig,
        answerer: Answerer,
        clock: Arc<dyn Clock>,
        registry: &Registry,
    ) -> Result<Self, DnsError> {
        let (udp, tcp) = take_port(config.listen).await?;
        let source_of = |source| DnsError::BindTcp { listen: config.listen, source };
        let address = tcp.local_addr().map_err(source_of)?;
        let metrics = Metrics::register(registry)?;
        let slots = Slots::new(config.tcp_connections, config.tcp_connections_per_client);
        let responder = Responder {
            answerer,
            clock,
            metrics,
            started: Instant::now(),
            tcp_idle: config.tcp_idle,
            tcp_transfer: config.tcp_transfer,
        };
        Ok(Self { udp, tcp, address, slots, responder: Arc::new(responder) })
    }

    /// Where it listens, for UDP and TCP.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown` ends, and then closes both sockets and every connection.
    ///
    /// # Errors
    ///
    /// Only a task that died: what comes from outside, and errors of the sockets, do not end it.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), DnsError> {
        let mut tasks = JoinSet::new();
        let socket = Arc::new(self.udp);
        let readers = std::thread::available_parallelism().map_or(1, usize::from).min(limits::MAX_UDP_TASKS);
        for _ in 0..readers {
            let (socket, responder, shutdown) = (Arc::clone(&socket), Arc::clone(&self.responder), shutdown.clone());
            tasks.spawn(async move {
                shutdown.run_until_cancelled(udp::serve(&socket, &responder)).await;
                Transport::Udp
            });
        }
        drop(socket);
        let (listener, slots, responder, stop) = (self.tcp, self.slots, self.responder, shutdown.clone());
        tasks.spawn(async move {
            stop.run_until_cancelled(tcp::serve(&listener, &slots, &responder)).await;
            Transport::Tcp
        });
        tracing::info!(address = %self.address, "DNS is served");
        while let Some(ended) = tasks.join_next().await {
            if !shutdown.is_cancelled() {
                let what = ended.map_or("DNS", Transport::label);
                return Err(DnsError::Died(what));
            }
        }
        Ok(())
    }
}

/// Both sockets on one port.
async fn take_port(listen: SocketAddr) -> Result<(udp::Socket, TcpListener), DnsError> {
    let mut attempts = if listen.port() == 0 { limits::PORT_ATTEMPTS } else { 1 };
    loop {
        attempts -= 1;
        let tcp = TcpListener::bind(listen).await.map_err(|source| DnsError::BindTcp { listen, source })?;
        let taken = tcp.local_addr().map_err(|source| DnsError::BindTcp { listen, source })?;
        match udp::Socket::bind(taken).await {
            Ok(udp) => return Ok((udp, tcp)),
            Err(source) if source.kind() == std::io::ErrorKind::AddrInUse && attempts > 0 => {}
            Err(source) => return Err(DnsError::BindUdp { listen: taken, source }),
        }
    }
}

/// What every task that serves needs.
pub(crate) struct Responder {
    answerer: Answerer,
    clock: Arc<dyn Clock>,
    pub(crate) metrics: Metrics,
    started: Instant,
    pub(crate) tcp_idle: std::time::Duration,
    pub(crate) tcp_transfer: std::time::Duration,
}

impl Responder {
    /// The answer to a message, counted. A panic costs this message its answer, and no other message anything: else
    /// one datagram that finds a defect would be enough to take a zone down for as long as it is repeated.
    pub(crate) fn respond(&self, message: &[u8], transport: Transport, ip: IpAddr) -> Option<Vec<u8>> {
        let steady = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let asking = Asking { ip, transport, now: self.clock.now(), steady };
        // Nothing that a panic could leave half changed is changed by answering.
        let outcome = catch_unwind(AssertUnwindSafe(|| self.answerer.respond(message, asking)))
            .unwrap_or(Outcome::Silent(Silence::Defect));
        match outcome {
            Outcome::Answer { bytes, rcode } => {
                self.metrics.answered(transport, rcode);
                Some(bytes)
            }
            Outcome::Silent(reason) => {
                if reason == Silence::Defect {
                    tracing::error!(
                        bytes = message.len(),
                        "a query found a defect of the name server and got no answer"
                    );
                }
                self.metrics.silent(transport, reason);
                None
            }
        }
    }
}
