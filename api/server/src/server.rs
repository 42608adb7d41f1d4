//! The API server: its services behind the TLS door.

use std::{convert::Infallible, io, sync::Arc, time::Duration};

use hearth_proto::{MAX_MESSAGE_BYTES, v1};
use hearth_types::group::{Group, PeerService};
use prometheus::Registry;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    body::Body,
    server::NamedService,
    service::{Routes, RoutesBuilder},
};

use crate::{
    BackupSource,
    acme::AcmeSettings,
    ca::{CaError, CertificateAuthority},
    dnssec::ZoneSigning,
    door::{Door, GuardLayer, Incoming, Room},
    grpc::{
        Backups, DeviceDoorConnector, EnrollmentDoor, NoBackups, NoDevices, PeersDoor, PodsDoor, RegionDoor,
        RelaysDoor, ResourcesDoor, ServersDoor,
    },
    metrics::Metrics,
    peers::{MAX_PEER_BYTES, peer_name},
    resources::ResourceService,
    servers::Servers,
    status_page::{StatusLayer, StatusPage, status_host},
    tokens::Tokens,
};

/// Requests at one time on one connection at most.
const MAX_STREAMS: u32 = 256;
/// Bytes of headers of one request at most.
const MAX_HEADER_BYTES: u32 = 16 << 10;
/// How often a connection without traffic is tried, so that a dead one gives its memory back.
const KEEPALIVE_INTERVAL: Duration = Duration::from_mins(1);
/// How long the answer may take before the connection counts as dead.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// The largest request in bytes: what one transaction holds, in several objects as somebody writes them. Only admins send them.
const MAX_REQUEST_BYTES: usize = 16 << 20;
/// The largest request to join in bytes: everybody may send one, and it holds three short texts.
const MAX_JOIN_BYTES: usize = 16 << 10;
/// Resets of streams that a client may leave waiting (CVE-2023-44487).
const MAX_PENDING_RESETS: usize = 64;
/// Connections whose handshake is done and that wait to be served.
const READY_QUEUE: usize = 64;
/// How long streams may go on after the server was asked to stop, so that a session can say goodbye.
const STREAM_GRACE: Duration = Duration::from_millis(500);
/// How long everything else may take after that before connections are cut.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// What a server is told about itself.
#[derive(Clone, Debug)]
pub struct ApiConfig {
    /// The region's name.
    pub region: String,
    /// The program's version.
    pub version: String,
    /// Where devices find the region's API, `host:port` each: written into join tokens.
    pub token_addresses: Vec<String>,
}

/// Where the server's other doors answer, for whoever looks for what is wrong on the way to an app.
#[derive(Clone, Debug, Default)]
pub struct Doors {
    /// The gateway's addresses, `ip:port` each.
    pub gateways: Vec<String>,
    /// The name server's.
    pub dns: Vec<String>,
}

/// Why the server cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The metrics are registered already.
    #[error("cannot register the API's metrics")]
    Metrics(#[from] prometheus::Error),
    /// The server's certificate cannot be made.
    #[error("cannot make the API server's certificate")]
    Certificate(#[from] CaError),
    /// The HTTP/2 server failed.
    #[error("the API server failed")]
    Server(#[from] tonic::transport::Error),
}

/// The API server of a region.
pub struct ApiServer {
    config: ApiConfig,
    resources: Arc<ResourceService>,
    ca: Arc<CertificateAuthority>,
    metrics: Arc<Metrics>,
    servers: Option<Arc<Servers>>,
    status: StatusLayer,
    routes: Routes,
}

impl std::fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiServer").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Puts a server together.
pub struct ApiServerBuilder {
    config: ApiConfig,
    resources: Arc<ResourceService>,
    ca: Arc<CertificateAuthority>,
    connector: Arc<dyn DeviceDoorConnector>,
    backups: Arc<dyn BackupSource>,
    group: Option<(Arc<dyn Group>, Arc<dyn PeerService>)>,
    signing: Option<Arc<ZoneSigning>>,
    doors: Doors,
    registry: Registry,
    more: RoutesBuilder,
}

impl std::fmt::Debug for ApiServerBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiServerBuilder").field("config", &self.config).finish_non_exhaustive()
    }
}

impl ApiServer {
    /// Begins a server of the resource service, with the region's CA.
    pub fn builder(
        config: ApiConfig,
        resources: Arc<ResourceService>,
        ca: Arc<CertificateAuthority>,
    ) -> ApiServerBuilder {
        let (connector, backups) = (Arc::new(NoDevices), Arc::new(NoBackups));
        let (registry, more) = (Registry::new(), Routes::builder());
        ApiServerBuilder {
            config,
            resources,
            ca,
            connector,
            backups,
            group: None,
            signing: None,
            doors: Doors::default(),
            registry,
            more,
        }
    }

    /// The names in its certificate: the one that all servers of the region have, that of the status page, and its own as one of them.
    fn names(&self) -> Vec<String> {
        let zone = self.resources.zone();
        let own = self.servers.iter().map(|servers| peer_name(servers.group().id(), zone));
        [server_name(zone), status_host(zone)].into_iter().chain(own).collect()
    }

    /// Serves who comes in by a listener, or is handed over by the gateway, until `shutdown` is done. Then it stops gracefully: no new
    /// connections, streams end with `Unavailable` after half a second, and what is left after another five seconds is cut.
    pub async fn serve(
        self,
        incoming: impl Into<Incoming>,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<(), ServeError> {
        let (stop, cut) = (CancellationToken::new(), CancellationToken::new());
        let _cut_on_return = cut.clone().drop_guard();
        let (devices, server_names) = (self.resources.devices().clone(), self.names());
        let door = Arc::new(Door {
            ca: self.ca,
            clock: self.resources.clock().clone(),
            devices: devices.clone(),
            metrics: self.metrics.clone(),
            cut: cut.clone(),
            server_names,
            room: Room::default(),
        });
        let guard = GuardLayer::new(door.clock.clone(), devices.clone(), self.metrics, stop.clone());
        let (ready, shaken) = mpsc::channel::<io::Result<_>>(READY_QUEUE);
        let closing = CancellationToken::new();
        let mut server = tonic::transport::Server::builder()
            .max_concurrent_streams(MAX_STREAMS)
            .http2_max_header_list_size(MAX_HEADER_BYTES)
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .http2_max_pending_accept_reset_streams(Some(MAX_PENDING_RESETS))
            .layer(self.status)
            .layer(guard);
        let serving = server
            .add_routes(self.routes)
            .serve_with_incoming_shutdown(ReceiverStream::new(shaken), closing.clone().cancelled_owned());
        let store = self.resources.store().clone();
        let following = async {
            let servers = async {
                match &self.servers {
                    Some(servers) => servers.follow().await,
                    None => std::future::pending().await,
                }
            };
            tokio::join!(devices.follow(store.as_ref()), servers);
        };
        let accepting = door.run(incoming.into(), ready);
        let stopping = async {
            shutdown.await;
            closing.cancel();
            tokio::time::sleep(STREAM_GRACE).await;
            stop.cancel();
            tokio::time::sleep(DRAIN_LIMIT).await;
        };
        tokio::pin!(serving, accepting);
        tokio::select! {
            served = &mut serving => Ok(served?),
            () = following => Ok(()),
            () = stopping => Ok(()),
            // The accept loop ends before the connections do when the server stops, and else only by failing.
            accepted = async {
                match (&mut accepting).await {
                    Ok(()) => std::future::pending().await,
                    Err(error) => error,
                }
            } => Err(accepted.into()),
        }
    }
}

/// The name in the server's certificate.
pub fn server_name(zone: &str) -> String {
    format!("api.{zone}")
}

impl ApiServerBuilder {
    /// The keys by which the zone is signed, for whoever looks at them or has them replaced.
    #[must_use]
    pub fn signing(mut self, signing: Arc<ZoneSigning>) -> Self {
        self.signing = Some(signing);
        self
    }

    /// Where users come in, told to whoever asks.
    #[must_use]
    pub fn doors(mut self, doors: Doors) -> Self {
        self.doors = doors;
        self
    }

    /// How devices are reached for logs and exec; without it every device is away.
    #[must_use]
    pub fn connector(mut self, connector: Arc<dyn DeviceDoorConnector>) -> Self {
        self.connector = connector;
        self
    }

    /// What backups are made of; without it there are none.
    #[must_use]
    pub fn backups(mut self, source: Arc<dyn BackupSource>) -> Self {
        self.backups = source;
        self
    }

    /// The group of servers that this one belongs to or shall join, and what it answers to the others; without it the region has this server
    /// alone, and no other can join.
    #[must_use]
    pub fn group(mut self, group: Arc<dyn Group>, peers: Arc<dyn PeerService>) -> Self {
        self.group = Some((group, peers));
        self
    }

    /// Where the metrics are registered.
    #[must_use]
    pub fn metrics(mut self, registry: &Registry) -> Self {
        self.registry = registry.clone();
        self
    }

    /// Mounts another service behind the door. Requests carry a `hearth_types::identity::Identity` in their
    /// extensions; methods that the door does not know are for admins alone.
    #[must_use]
    pub fn add_service<S>(mut self, service: S) -> Self
    where
        S: tower::Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>
            + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send + 'static,
    {
        self.more.add_service(service);
        self
    }

    /// The server, ready to serve.
    pub fn build(mut self) -> Result<ApiServer, ServeError> {
        use v1::{
            enrollment_server::EnrollmentServer, members_server::MembersServer, peers_server::PeersServer,
            pods_server::PodsServer, region_server::RegionServer, relay_enrollment_server::RelayEnrollmentServer,
            resources_server::ResourcesServer,
        };
        let metrics = Arc::new(Metrics::new(&self.registry)?);
        let resources = self.resources;
        let (servers, peers) =
            self.group.map(|(group, peers)| (Arc::new(Servers::new(resources.clone(), group)), peers)).unzip();
        let tokens = Arc::new(Tokens {
            resources: resources.clone(),
            ca: self.ca.clone(),
            addresses: self.config.token_addresses.clone(),
            server_name: server_name(resources.zone()),
            region: self.config.region.clone(),
            servers: servers.clone(),
        });
        let region = RegionDoor {
            resources: resources.clone(),
            tokens: tokens.clone(),
            region: self.config.region.clone(),
            version: self.config.version.clone(),
            backups: Backups::new(self.backups),
            group: servers.as_ref().map(|servers| Arc::clone(servers.group())),
            doors: self.doors,
            signing: self.signing,
            acme: AcmeSettings::new(resources.clone(), &self.ca)?,
        };
        let pods = PodsDoor { resources: resources.clone(), connector: self.connector };
        self.more
            .add_service(
                ResourcesServer::new(ResourcesDoor(resources.clone()))
                    .max_decoding_message_size(MAX_REQUEST_BYTES)
                    .max_encoding_message_size(MAX_MESSAGE_BYTES),
            )
            .add_service(PodsServer::new(pods))
            .add_service(RegionServer::new(region))
            .add_service(
                EnrollmentServer::new(EnrollmentDoor::new(tokens.clone())).max_decoding_message_size(MAX_JOIN_BYTES),
            )
            .add_service(
                RelayEnrollmentServer::new(RelaysDoor::new(tokens.clone())).max_decoding_message_size(MAX_JOIN_BYTES),
            );
        if let (Some(servers), Some(peers)) = (&servers, peers) {
            let door = ServersDoor::new(servers.clone(), tokens.clone());
            self.more
                .add_service(
                    PeersServer::new(PeersDoor::new(servers.clone(), peers))
                        .max_decoding_message_size(MAX_PEER_BYTES)
                        .max_encoding_message_size(MAX_PEER_BYTES),
                )
                .add_service(MembersServer::new(door).max_decoding_message_size(MAX_JOIN_BYTES));
        }
        let (config, ca, routes) = (self.config, self.ca, self.more.routes().prepare());
        let status = StatusLayer::new(StatusPage { resources: resources.clone(), tokens });
        Ok(ApiServer { config, resources, ca, metrics, servers, status, routes })
    }
}
