//! Where users' TLS ends: on the device, with keys made here. A connection comes from a gateway as a stream of bytes; the
//! ingress ends its TLS, and passes its requests on to the pod behind the name.

mod certs;
pub(crate) mod direct;
mod flow;
mod header;
mod headers;
mod origin;
mod page;
mod place;
mod proxy;
mod public;
mod relay;
mod serve;
mod target;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
};

use hearth_types::{
    GroupKind, Object,
    callers::Slots,
    external,
    kinds::{Device, IntOrString, ProxyProtocol, Route, RouteProtocol},
    lan::name_of,
    names::dns_subdomain,
    routes::{PublicPort, Transport},
};
use tokio::sync::{Semaphore, watch};

use direct::Direct;
use header::Call;

pub(crate) use certs::Certificates;
pub(crate) use flow::{Sockets, sockets_inside};

use crate::{
    desired::{self, Objects},
    metrics::Metrics,
    shared::Pods,
};

/// Connections of users at once: bounds memory to some 100 MB at worst, far above what a household has.
const MAX_CONNECTIONS: usize = 512;
/// Connections at once from inside the home, beside those that come by gateways.
const MAX_NEIGHBOURS: usize = 256;
/// Connections at once that come from the internet without a gateway, beside both: as many as by gateways.
const MAX_OUTSIDERS: usize = 512;
/// Of those from one address, or one /64 of IPv6: a household's browsers, or some customers of a carrier.
const MAX_OF_ONE_OUTSIDER: usize = 64;
/// Flows of datagrams at once: a socket each, and some 5 KB.
const MAX_FLOWS: usize = 512;
/// Routes that a device serves at most.
const MAX_ROUTES: usize = 1024;

/// What a hostname leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RouteView {
    pub(crate) namespace: String,
    pub(crate) selector: BTreeMap<String, String>,
    pub(crate) port: Port,
    pub(crate) stopped: bool,
    /// Whether the app is told who calls, by a PROXY header of version 2.
    pub(crate) proxy: bool,
}

impl RouteView {
    /// Whether both lead to one app.
    fn same_app(&self, other: &Self) -> bool {
        (&self.namespace, &self.selector) == (&other.namespace, &other.selector)
    }
}

/// A container port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Port {
    Number(u16),
    Name(String),
}

/// The Routes of this device.
#[derive(Default)]
struct Table {
    /// Those of HTTPS, by hostname.
    names: BTreeMap<String, Arc<RouteView>>,
    /// Those that have a public port of their own, by hostname and that port.
    ports: BTreeMap<(String, PublicPort), Arc<RouteView>>,
}

/// A handle on the ingress; cheap to clone.
#[derive(Clone)]
pub(crate) struct Ingress {
    inner: Arc<Inner>,
}

struct Inner {
    table: RwLock<Arc<Table>>,
    certificates: Certificates,
    connections: Arc<Semaphore>,
    flows: Arc<Semaphore>,
    neighbours: Arc<Semaphore>,
    outsiders: Slots,
    /// At which addresses of its own this device serves.
    direct: watch::Sender<Direct>,
    tls: Arc<rustls::ServerConfig>,
    /// Shows who this device is.
    prover: Arc<rustls::ServerConfig>,
    upstream: proxy::Upstream,
    pods: Arc<Pods>,
    sockets: Sockets,
    metrics: Metrics,
}

/// Why there is no ingress.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IngressError {
    #[error(transparent)]
    File(#[from] crate::files::FileError),
    #[error("cannot set up TLS for the ingress")]
    Tls(#[source] rustls::Error),
}

impl Ingress {
    /// Makes the ingress with the keys and certificates on the disk. Blocks.
    pub(crate) fn open(
        dir: PathBuf,
        pods: Arc<Pods>,
        sockets: Sockets,
        prover: rustls::ServerConfig,
        metrics: Metrics,
    ) -> Result<Self, IngressError> {
        let certificates = Certificates::open(dir)?;
        let tls = serve::config(certificates.clone()).map_err(IngressError::Tls)?;
        Ok(Self {
            inner: Arc::new(Inner {
                table: RwLock::default(),
                certificates,
                connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
                flows: Arc::new(Semaphore::new(MAX_FLOWS)),
                neighbours: Arc::new(Semaphore::new(MAX_NEIGHBOURS)),
                outsiders: Slots::new(MAX_OUTSIDERS, MAX_OF_ONE_OUTSIDER),
                direct: watch::channel(Direct::default()).0,
                tls: Arc::new(tls),
                prover: Arc::new(prover),
                upstream: proxy::upstream(),
                pods,
                sockets,
                metrics,
            }),
        })
    }

    pub(crate) fn certificates(&self) -> &Certificates {
        &self.inner.certificates
    }

    /// The routes of this device are these now.
    pub(crate) fn routes_changed(&self, objects: &Objects) {
        let mut table = Table::default();
        let own = desired::device(objects);
        let device = own.and_then(|object| object.view::<Device>().ok()).map(|device| device.spec);
        let seen = own.map(Object::value).unwrap_or_default();
        let publish = device.as_ref().and_then(|spec| spec.publish.as_ref());
        let direct = publish.map(|publish| Direct::of(publish, external::told(&seen))).unwrap_or_default();
        let inside = device.filter(|_| direct.lan);
        for object in objects.values().filter(|object| *object.kind() == GroupKind::ROUTE) {
            let Ok(route) = object.view::<Route>() else {
                tracing::warn!(route = %object.key(), "a route cannot be read, so it is not served");
                continue;
            };
            // The name becomes a file name, too.
            let hostname = route.spec.hostname.trim_end_matches('.').to_ascii_lowercase();
            let full = table.names.len() + table.ports.len() >= MAX_ROUTES;
            // A domain outside of the zone is nobody's before it is shown whose it is.
            let domain = route.status.as_ref().and_then(|status| status.domain.as_ref());
            let unverified = domain.is_some_and(|domain| domain.verified_since.is_none());
            if dns_subdomain(&hostname).is_err() || object.is_deleting() || full || unverified {
                continue;
            }
            let port = match route.spec.target.port {
                IntOrString::Int(number) => Port::Number(u16::try_from(number).unwrap_or(0)),
                IntOrString::String(name) => name.parse().map_or(Port::Name(name), Port::Number),
            };
            let view = RouteView {
                namespace: object.namespace().to_owned(),
                selector: route.spec.target.selector,
                port,
                stopped: route.spec.stopped,
                proxy: route.spec.proxy_protocol == Some(ProxyProtocol::V2),
            };
            let transport = match route.spec.protocol {
                Some(RouteProtocol::Tcp) => Transport::Tcp,
                Some(RouteProtocol::Udp) => Transport::Udp,
                Some(RouteProtocol::Https) | None => {
                    let view = Arc::new(view);
                    // Of the owner's own apps: what others have here answers at their own names alone.
                    let owner =
                        inside.as_ref().map(|spec| spec.owner.as_str()).filter(|owner| *owner == view.namespace);
                    if let Some(name) = owner.and_then(|owner| name_of(&hostname, owner)) {
                        table.names.entry(name).or_insert_with(|| Arc::clone(&view));
                    }
                    table.names.insert(hostname, view);
                    continue;
                }
            };
            // Without a port of its own it has no door.
            if let Some(number) = route.spec.port {
                table.ports.insert((hostname, PublicPort { transport, number }), Arc::new(view));
            }
        }
        let names = table.names.keys().cloned().collect();
        *self.inner.table.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(table);
        self.inner.certificates.serve(names);
        self.inner.certificates.follow(objects);
        self.inner.direct.send_if_modified(|before| {
            let other = *before != direct;
            *before = direct;
            other
        });
    }

    fn route(&self, hostname: &str) -> Option<Arc<RouteView>> {
        self.inner.table.read().unwrap_or_else(PoisonError::into_inner).names.get(hostname).cloned()
    }

    /// The Route of the public port that was called.
    fn called(&self, call: &Call) -> Option<Arc<RouteView>> {
        let port = PublicPort { transport: call.transport, number: call.called?.port() };
        let table = self.inner.table.read().unwrap_or_else(PoisonError::into_inner);
        table.ports.get(&(call.name.clone()?, port)).cloned()
    }

    /// Serves one connection of a user, whose first bytes are the gateway's header.
    pub(crate) async fn serve<S>(&self, stream: S)
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
    {
        serve::connection(self, stream).await;
    }

    /// Changes whenever certificates come or are wanted.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.inner.certificates.watch()
    }
}
