//! The ports of Routes: listened on while a Route has them.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    ops::RangeInclusive,
    sync::{Arc, PoisonError, RwLock},
};

use hearth_types::{
    routes::{PublicPort, RouteEntry, Transport},
    tunnel::Dialer,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    task::JoinSet,
    time::sleep,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    flows::Flows,
    gateway::{Takers, accept},
    limits::{MAX_PORTS, PORT_RETRY},
    socket::Socket,
};

/// A socket that listens.
enum Bound {
    Tcp(TcpListener),
    Udp(Socket),
}

/// A port that is listened on.
struct Port {
    /// Who has it now.
    route: Arc<RwLock<Arc<RouteEntry>>>,
    /// Ends the listening when dropped.
    _stop: DropGuard,
}

/// Keeps the listeners as the Routes want them.
///
/// Guarantees: a port is listened on only while a Route has it and while it lies in the range that the operator allows; at
/// most [`MAX_PORTS`]. Connections outlive the listening, flows of datagrams do not. A port that cannot be had is tried again.
pub(crate) struct Listeners<D> {
    address: SocketAddr,
    range: Option<RangeInclusive<u16>>,
    takers: Takers<D>,
    shutdown: CancellationToken,
    open: BTreeMap<PublicPort, Port>,
    tasks: JoinSet<()>,
    /// Ports that could not be listened on when they were last tried, so that it is said once.
    failed: BTreeMap<PublicPort, std::io::ErrorKind>,
}

impl<D: Dialer> Listeners<D>
where
    D::Stream: AsyncRead + AsyncWrite,
{
    /// Listens at the address's IP, on other ports than its own.
    pub(crate) fn new(
        address: SocketAddr,
        range: Option<RangeInclusive<u16>>,
        takers: Takers<D>,
        shutdown: CancellationToken,
    ) -> Self {
        let (open, failed) = (BTreeMap::new(), BTreeMap::new());
        Self { address, range, takers, shutdown, open, tasks: JoinSet::new(), failed }
    }

    /// Follows the Routes; never returns. What was opened is closed when this is dropped.
    pub(crate) async fn run(mut self) {
        let routes = Arc::clone(&self.takers.shared().routes);
        loop {
            let serial = routes.serial();
            self.follow(routes.by_port()).await;
            self.takers.shared().metrics.ports.set(self.open.len() as i64);
            tokio::select! {
                () = routes.changed(serial) => {}
                () = sleep(PORT_RETRY), if !self.failed.is_empty() => {}
                Some(_) = self.tasks.join_next(), if !self.tasks.is_empty() => {}
            }
        }
    }

    async fn follow(&mut self, routes: Vec<Arc<RouteEntry>>) {
        let Some(range) = self.range.clone() else { return };
        let own = PublicPort { transport: Transport::Tcp, number: self.address.port() };
        let wanted: BTreeMap<PublicPort, Arc<RouteEntry>> = routes
            .into_iter()
            .filter_map(|route| route.port.map(|port| (port, route)))
            .filter(|(port, _)| range.contains(&port.number) && *port != own)
            .take(MAX_PORTS)
            .collect();
        self.open.retain(|port, _| wanted.contains_key(port));
        self.failed.retain(|port, _| wanted.contains_key(port));
        for (port, route) in wanted {
            if let Some(open) = self.open.get(&port) {
                *open.route.write().unwrap_or_else(PoisonError::into_inner) = route;
                continue;
            }
            let address = SocketAddr::new(self.address.ip(), port.number);
            let bound = match port.transport {
                Transport::Tcp => TcpListener::bind(address).await.map(Bound::Tcp),
                Transport::Udp => Socket::bind(address).await.map(Bound::Udp),
            };
            match bound {
                Ok(bound) => {
                    self.failed.remove(&port);
                    self.listen(port, bound, route);
                }
                Err(error) => {
                    if self.failed.insert(port, error.kind()) != Some(error.kind()) {
                        tracing::warn!(%port, %error, route = route.hostname, "cannot listen on the port of a Route; trying on");
                    }
                }
            }
        }
    }

    fn listen(&mut self, port: PublicPort, bound: Bound, route: Arc<RouteEntry>) {
        tracing::debug!(%port, route = route.hostname, "listening on the port of a Route");
        let stop = self.shutdown.child_token();
        let route = Arc::new(RwLock::new(route));
        let (current, takers, stopped) = (Arc::clone(&route), self.takers.clone(), stop.clone());
        match bound {
            Bound::Tcp(listener) => {
                self.tasks.spawn(async move {
                    accept(&listener, &stopped, |socket, caller| {
                        let route = Arc::clone(&current.read().unwrap_or_else(PoisonError::into_inner));
                        takers.take(socket, caller, Some(route));
                    })
                    .await;
                });
            }
            Bound::Udp(socket) => {
                let flows = Flows::new(Arc::clone(takers.shared()), socket, port.number, current);
                self.tasks.spawn(flows.run(stopped));
            }
        }
        self.open.insert(port, Port { route, _stop: stop.drop_guard() });
    }
}
