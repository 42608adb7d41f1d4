//! The agent: made of its configuration, run until it is told to end.

use std::{path::Path, path::PathBuf, sync::Arc, time::Duration};

use hearth_image::ImageError;
use hearth_network::{Network, NetworkConfig, NetworkError};
use hearth_proto::v1::device_door_server::DeviceDoorServer;
use hearth_runtime::{Runtime, RuntimeError, Zygote, ZygoteConfig};
use hearth_tunnel::{DeviceTunnel, DeviceTunnelConfig, IncomingStreams, TunnelStream};
use hearth_types::{Clock, DeviceName, InstanceId, kinds::DeviceInfo, tunnel::StreamKind};
use hearth_volume::{VolumeError, VolumeStore};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;

use crate::{
    Identity, Images, Paths,
    desired::Desired,
    door,
    files::{self, FileError, chain},
    host_paths::{HostPath, HostPaths},
    house,
    identity::IdentityError,
    ids::IdRanges,
    ingress::{Ingress, IngressError, direct, sockets_inside},
    line,
    manager::{self, lend},
    metrics::Metrics,
    pressure,
    recovery::Recovery,
    servers::Servers,
    services,
    session::{Roster, Session},
    shared::{Pods, Shared, blocking},
    usage::Totals,
};

/// Connections of the region's servers that wait for the door.
const DOOR_QUEUE: usize = 16;
/// How long one waits for a place among them: the door takes them at once, unless it has broken.
const DOOR_BOUND: Duration = Duration::from_secs(1);
/// Calls at once on one connection to the door.
const DOOR_STREAMS: u32 = 64;
/// How often a silent connection to the door is asked whether it is there.
const DOOR_KEEP_ALIVE: Duration = Duration::from_secs(30);

/// What an agent is built from.
pub struct Config {
    /// The instance's data directory: absolute, without links. The agent writes below `<data-dir>/agent` only.
    pub data_dir: PathBuf,
    /// Names the instance's host objects.
    pub instance: InstanceId,
    /// Where a server of the region is, `host:port`: tried before those that the device learned of.
    pub server: Option<String>,
    /// Forked by main before any thread existed, with [`zygote_config`].
    pub zygote: Zygote,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Where the agent's metrics are registered.
    pub registry: prometheus::Registry,
    /// The host's resolver configuration, usually `/etc/resolv.conf`.
    pub resolv_conf: PathBuf,
    /// Directories of this machine that the owner's apps may mount.
    pub host_paths: Vec<HostPath>,
    /// The TCP port at this machine's own addresses, where the Device says that they are told.
    pub lan_port: u16,
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config").field("data_dir", &self.data_dir).field("server", &self.server).finish_non_exhaustive()
    }
}

/// What the zygote of an instance is forked with.
pub fn zygote_config(data_dir: &Path, instance: &InstanceId) -> ZygoteConfig {
    ZygoteConfig {
        run_dir: Paths::new(data_dir).run(),
        instance: instance.as_str().to_owned(),
        data_dir: data_dir.to_owned(),
    }
}

/// Why there is no agent.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The device has not joined a region.
    #[error("this device has not joined a region: run `hearth join TOKEN --data-dir {0:?}` first")]
    NotJoined(PathBuf),
    /// Its identity cannot be read.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Its files cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// Metrics of these names are registered already.
    #[error("cannot register the agent's metrics")]
    Metrics(#[source] prometheus::Error),
    /// No containers.
    #[error("cannot use the container runtime")]
    Runtime(#[source] RuntimeError),
    /// A directory cannot be given to apps.
    #[error("{0}")]
    HostPath(String),
    /// No images.
    #[error("cannot open the images of this device")]
    Images(#[source] ImageError),
    /// No volumes.
    #[error("cannot open the volumes of this device")]
    Volumes(#[source] VolumeError),
    /// No network.
    #[error("cannot start the pod network")]
    Network(#[source] NetworkError),
    /// No tunnel.
    #[error("cannot make the device's end of its tunnels")]
    Tunnel(#[source] hearth_tunnel::StartError),
    /// No ingress.
    #[error("cannot open the ingress: {0}")]
    Ingress(String),
}

impl From<IngressError> for AgentError {
    fn from(error: IngressError) -> Self {
        Self::Ingress(chain(&error))
    }
}

/// Why an agent ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentExit {
    /// It was told to. Its containers run on.
    Stopped,
    /// Its process has to execute itself again (`/proc/self/exe` with the same arguments): its zygote is gone, which only a
    /// process without threads can fork, or a part of it broke. Its containers run on.
    Reexec,
}

/// A cheap handle on a running agent.
#[derive(Clone, Debug)]
pub struct AgentHandle {
    device: DeviceName,
    registry: prometheus::Registry,
    connected: watch::Receiver<bool>,
}

impl AgentHandle {
    /// The device's name.
    pub fn device(&self) -> &DeviceName {
        &self.device
    }

    /// The agent's metrics in the Prometheus text format.
    pub fn metrics_text(&self) -> Vec<u8> {
        door::metrics_text(&self.registry)
    }

    /// Whether there is a session with the region now.
    pub fn is_connected(&self) -> bool {
        *self.connected.borrow()
    }

    /// Resolves when there is a session; never where the agent has ended.
    pub async fn connected(&self) {
        let mut connected = self.connected.clone();
        if connected.wait_for(|is| *is).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// A device's agent, before it runs.
#[derive(Debug)]
pub struct Agent {
    config: Config,
    identity: Identity,
    connected: watch::Sender<bool>,
}

impl Agent {
    /// An agent for a device that has joined.
    pub fn new(config: Config) -> Result<Self, AgentError> {
        let identity = Identity::load(&config.data_dir)?;
        let identity = identity.ok_or_else(|| AgentError::NotJoined(config.data_dir.clone()))?;
        Ok(Self { config, identity, connected: watch::channel(false).0 })
    }

    /// A handle on it.
    pub fn handle(&self) -> AgentHandle {
        AgentHandle {
            device: self.identity.device().clone(),
            registry: self.config.registry.clone(),
            connected: self.connected.subscribe(),
        }
    }

    /// Runs until `shutdown` resolves. Containers go on in either case.
    ///
    /// `ready` is called once everything that can fail at a start has not: runtime, network, images and volumes are there, and
    /// what lives is taken over.
    pub async fn run(
        self,
        shutdown: impl Future<Output = ()> + Send,
        ready: impl FnOnce() + Send,
    ) -> Result<AgentExit, AgentError> {
        let Self { config, identity, connected } = self;
        let paths = Paths::new(&config.data_dir);
        let metrics = Metrics::register(&config.registry).map_err(AgentError::Metrics)?;
        let runtime = Runtime::new(config.zygote).map_err(AgentError::Runtime)?;
        Totals::register(runtime.clone(), &config.registry).map_err(AgentError::Metrics)?;
        let incarnation = identity.incarnation().clone();
        let known = paths.desired();
        let desired = blocking(move || Desired::load(known, &incarnation)).await;
        let network = Network::start(NetworkConfig {
            instance: config.instance.as_str().to_owned(),
            state_dir: paths.network(),
            resolv_conf: config.resolv_conf,
            zone: Some(identity.zone().to_owned()),
            // Those that live on are held to it from the first moment.
            bandwidth: lend::of_device(desired.objects()).unwrap_or_default(),
        })
        .await
        .map_err(AgentError::Network)?;
        let host_paths = HostPaths::open(config.host_paths, &config.data_dir, paths.host_paths());
        let host_paths = host_paths.map_err(AgentError::HostPath)?;
        let (stores, instance) = (paths.clone(), config.instance.clone());
        let pods = Arc::new(Pods::default());
        let (served, counted) = (Arc::clone(&pods), metrics.clone());
        let reach = network.clone();
        let prover = identity.key()?.prover(hearth_types::external::ALPN);
        let prover = prover.map_err(|error| AgentError::Ingress(chain(&error)))?;
        let opened = blocking(move || open(&stores, &instance, reach, served, prover, counted)).await?;
        let (images, volumes, ids, ingress, info) = opened;
        let servers = paths.servers();
        let (clock, owner) = (config.clock, identity.owner().to_owned());
        let shared =
            Shared::new(paths, clock, owner, images, volumes, host_paths, network, runtime.clone(), ids, metrics, pods);
        let shared = Arc::new(shared);
        let roster = Arc::new(Roster::default());
        let allowed = Arc::clone(&roster);
        let tunnel_config = DeviceTunnelConfig::new(identity.seed(), move |key| allowed.has(key));
        let (tunnel, streams) = DeviceTunnel::start(tunnel_config, &config.registry).map_err(AgentError::Tunnel)?;
        let adopted = runtime.adopt().await.map_err(AgentError::Runtime)?;
        let alive = adopted.pods.iter().map(|pod| pod.uid().to_owned());
        let alive = alive.chain(adopted.failed.iter().map(|failed| failed.uid.clone())).collect();
        match runtime.sweep_scratch(shared.paths.scratch(), alive).await {
            Ok(0) => {}
            Ok(pods) => tracing::info!(pods, "deleting writable layers that pods left which do not live any more"),
            Err(error) => tracing::error!(error = chain(&error), "stale writable layers cannot be deleted"),
        }

        let mut tasks = JoinSet::new();
        let (state, door_in, session) = (Arc::clone(&shared), ingress.clone(), connected.subscribe());
        let (manager, service) = blocking(move || manager::new(state, door_in, desired, session)).await;
        let evictor = manager.clone();
        let (zone, stored) = (identity.zone().to_owned(), shared.paths.clone());
        let recovery = blocking(move || Recovery::open(&stored, &zone)).await;
        let door = door::Door::new(Arc::clone(&shared), config.registry, tunnel.clone());
        let session = Session {
            shared: Arc::clone(&shared),
            servers: Servers::load(servers, config.server, identity.addresses()),
            identity,
            recovery,
            manager,
            ingress: ingress.clone(),
            tunnel: tunnel.clone(),
            roster,
            connected,
            info,
        };
        // Each of these runs as long as the agent: one that ends has broken.
        tasks.spawn(async move { service.run(adopted).await });
        tasks.spawn(session.run());
        tasks.spawn(house::run(Arc::clone(&shared)));
        tasks.spawn(pressure::run(Arc::clone(&shared), evictor));
        tasks.spawn(services::run(Arc::clone(&shared)));
        tasks.spawn(line::run(Arc::clone(&shared), tunnel.clone()));
        let direct = direct::run(Arc::clone(&shared), ingress.clone(), shared.network.addresses(), config.lan_port);
        tasks.spawn(direct);
        tasks.spawn(accept(shared, ingress, door, streams));
        ready();
        let exit = tokio::select! {
            () = shutdown => AgentExit::Stopped,
            () = runtime.zygote_exited() => {
                tracing::error!("the zygote is gone: the agent executes itself again; containers run on");
                AgentExit::Reexec
            }
            ended = tasks.join_next() => {
                tracing::error!(?ended, "a part of the agent broke: it executes itself again; containers run on");
                AgentExit::Reexec
            }
        };
        tasks.shutdown().await;
        tunnel.close().await;
        Ok(exit)
    }
}

type Opened = (Images, VolumeStore, IdRanges, Ingress, DeviceInfo);

/// Opens what is on the disk. Blocks.
fn open(
    paths: &Paths,
    instance: &InstanceId,
    network: Network,
    pods: Arc<Pods>,
    prover: rustls::ServerConfig,
    metrics: Metrics,
) -> Result<Opened, AgentError> {
    files::private_dir(paths.root())?;
    for dir in [paths.pods(), paths.scratch(), paths.logs()] {
        files::private_dir(&dir)?;
    }
    // Whoever names an image must not have this device ask around in its own home.
    let reach = network.clone();
    let is_public = Arc::new(move |address| reach.is_public(address));
    let images = Images::open(paths, Some(is_public)).map_err(AgentError::Images)?;
    let volumes = VolumeStore::open(&paths.volumes()).map_err(AgentError::Volumes)?;
    let ids = IdRanges::open(paths.ids(), instance.as_str());
    let ingress = Ingress::open(paths.ingress(), pods, sockets_inside(network), prover, metrics)?;
    let info = crate::facts::device_info(paths);
    if !info.missing.is_empty() {
        tracing::warn!(missing = ?info.missing, "this machine lacks what isolation or limits want");
    }
    Ok((images, volumes, ids, ingress, info))
}

/// Takes the streams that gateways open.
async fn accept(shared: Arc<Shared>, ingress: Ingress, door: door::Door, mut streams: IncomingStreams) {
    let (calls, queue) = mpsc::channel::<std::io::Result<TunnelStream>>(DOOR_QUEUE);
    let server = Server::builder()
        .max_concurrent_streams(DOOR_STREAMS)
        .http2_keepalive_interval(Some(DOOR_KEEP_ALIVE))
        .add_service(DeviceDoorServer::new(door))
        .serve_with_incoming(ReceiverStream::new(queue));
    let mut users = JoinSet::new();
    let take = async {
        loop {
            tokio::select! {
                stream = streams.next() => {
                    let Some(stream) = stream else { return };
                    match stream.kind {
                        StreamKind::Ingress => {
                            shared.metrics.streams.with_label_values(&["ingress"]).inc();
                            let ingress = ingress.clone();
                            users.spawn(async move { ingress.serve(stream.stream).await });
                        }
                        StreamKind::Rpc => {
                            shared.metrics.streams.with_label_values(&["rpc"]).inc();
                            // Whoever forwards a port may open a hundred at once.
                            if calls.send_timeout(Ok(stream.stream), DOOR_BOUND).await.is_err() {
                                tracing::warn!("too many connections of servers wait for the device's door");
                            }
                        }
                    }
                }
                Some(ended) = users.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "a user's connection broke the ingress");
                    }
                }
            }
        }
    };
    tokio::select! {
        () = take => {}
        result = server => {
            if let Err(error) = result {
                tracing::error!(error = chain(&error), "the device's door broke");
            }
        }
    }
}
