//! A region's work: caches fed by the store and the routes in them, on every server; and on the one that leads controllers, placement and
//! the table of device sessions. This crate is the IO shell: what to do is decided by `hearth-controllers` and
//! `hearth-placement`, which are pure.

mod cache;
pub mod config;
mod domains;
mod hub;
mod lead;
mod leases;
mod metrics;
mod placing;
mod queue;
mod reconcile;
mod recorder;
mod recovery;
mod remote;
mod routes;
mod servers;
mod session;
mod triggers;
mod upkeep;
mod watcher;
mod writer;

use std::sync::Arc;

pub use config::{Config, Timing};
pub use domains::Domains;
use hearth_proto::v1::{devices_server::DevicesServer, dials_server::DialsServer, recovery_server::RecoveryServer};
use hearth_types::{acme::EventSink, relay::Relay, routes::RouteLookup, tunnel::DialNotifier};
pub use recovery::RecoveryService;
pub use remote::ServerChannels;
pub use session::{DevicesService, DialsService};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::hub::Hub;

/// The largest message of a hand-in in bytes: the list of copies, or one object of any size.
const MAX_RECOVERY_BYTES: usize = 4 << 20;

/// Why the loops of a region cannot start or went on no longer.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    /// The metrics could not be registered.
    #[error("register the region's metrics; is another Region using the same registry?")]
    Metrics(#[source] prometheus::Error),
    /// A loop that must not end did: a fault of the program.
    #[error("the {0} loop ended before its time; restart the server and report this")]
    LoopEnded(&'static str),
}

/// The loops of a region. Made together with its handle; does nothing until [`Region::run`].
pub struct Region {
    hub: Arc<Hub>,
}

/// What the rest of a server uses of a region. Cheap to clone.
#[derive(Clone)]
pub struct RegionHandle {
    hub: Arc<Hub>,
}

impl Region {
    /// Makes the loops and their handle.
    pub fn new(config: Config) -> Result<(Self, RegionHandle), RegionError> {
        let hub = Arc::new(Hub::new(config)?);
        Ok((Self { hub: Arc::clone(&hub) }, RegionHandle { hub }))
    }

    /// Runs until `shutdown`: fills the caches; then, whenever this server leads, reconciles, places and has sessions. Sessions are told
    /// goodbye at the end, as whenever another server comes to lead. An error means that a loop failed for good.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), RegionError> {
        self.hub.run(shutdown).await
    }
}

impl RegionHandle {
    /// The gRPC service of device sessions. Doors must put a [`hearth_types::identity::Identity`] into the
    /// extensions of every request.
    pub fn devices_service(&self) -> DevicesServer<DevicesService> {
        DevicesServer::new(DevicesService::new(Arc::clone(&self.hub)))
            .max_decoding_message_size(hearth_proto::MAX_MESSAGE_BYTES)
            .max_encoding_message_size(hearth_proto::MAX_MESSAGE_BYTES)
    }

    /// The gRPC service by which the region's other servers ask for devices whose sessions are here. Doors must put a
    /// [`hearth_types::identity::Identity`] into the extensions of every request.
    pub fn dials_service(&self) -> DialsServer<DialsService> {
        DialsServer::new(DialsService::new(Arc::clone(&self.hub)))
    }

    /// The gRPC service of recovery. Doors must put a [`hearth_types::identity::Identity`] into the extensions of every request.
    pub fn recovery_service(&self) -> RecoveryServer<RecoveryService> {
        // A message holds the list of copies, or an object with little beside it.
        RecoveryServer::new(RecoveryService::new(Arc::clone(&self.hub))).max_decoding_message_size(MAX_RECOVERY_BYTES)
    }

    /// Asks devices to dial, through their sessions, here or at the server that leads.
    pub fn dial_notifier(&self) -> Arc<dyn DialNotifier> {
        Arc::new(session::Dialling::new(Arc::clone(&self.hub)))
    }

    /// Takes events of another part of this server. They are told while it leads.
    pub fn events(&self, component: &'static str) -> Arc<dyn EventSink> {
        Arc::new(recorder::Events { hub: Arc::clone(&self.hub), component })
    }

    /// The routes as they are now, for DNS and gateway.
    pub fn routes(&self) -> Arc<dyn RouteLookup> {
        Arc::clone(&self.hub.routes) as Arc<dyn RouteLookup>
    }

    /// Waits until the caches are filled: lookups work from then on, whichever server leads. Where this server leads then, it has begun to.
    pub async fn ready(&self) {
        self.hub.ready().await;
    }

    /// Whether [`RegionHandle::ready`] is done.
    pub fn is_ready(&self) -> bool {
        self.hub.is_ready()
    }

    /// Where the region's servers answer: now, and whenever that changes. Empty while it is not known.
    pub fn servers(&self) -> watch::Receiver<Arc<[String]>> {
        self.hub.servers.subscribe()
    }

    /// The region's relays: now, and whenever that changes.
    pub fn relays(&self) -> watch::Receiver<Arc<[Relay]>> {
        self.hub.relays.subscribe()
    }

    /// Whether this server leads, and its controllers, placement and sessions run.
    pub fn is_leading(&self) -> bool {
        self.hub.leads()
    }
}
