//! The composition root of a server: which parts there are, and how they are given to each other.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use hearth_acme::{Acme, AcmeConfig};
use hearth_api::{
    AcmeSettings, ApiConfig, ApiServer, BackupSource, CertificateAuthority, Doors, Frozen, Incoming, PeerChannels,
    ResourceService, TunnelConnector, ZoneSigning, server_name,
};
use hearth_client::Config;
use hearth_dns::{Answerer, DnsConfig, DnsServer, Keys, Resolver};
use hearth_gateway::{Gateway, GatewayConfig};
use hearth_raft::{Owner, RaftConfig, RaftStore, Start, Tuning, disk::RealDisk};
use hearth_region::{Domains, Region, ServerChannels, Timing};
use hearth_tunnel::{HubConfig, TunnelHub};
use hearth_types::{
    BoxFuture, Clock, Status,
    group::{self, CallError, Group},
    identity,
    store::Store,
};
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use super::{
    SystemClock,
    membership::{self, Wanted},
    metrics,
    relaying::{self, OwnRelay},
    server::{address, advertised, bind},
    sharing, zone,
};
use crate::{
    args::{GATEWAY, Server},
    data_dir::{DataDir, ServerReport, write_atomically},
    region_files,
};

/// The user that `client.yaml` belongs to.
const ADMIN: &str = "hearth:admin";
/// How often `client.yaml` is written anew, so that its certificate (90 days) never runs out.
const CLIENT_RENEWAL: Duration = Duration::from_secs(10 * 86_400);
/// How often the disk of a failed store is tried.
const DISK_PROBE: Duration = Duration::from_secs(5);
/// How much has to fit on it: the log needs room to go on.
const DISK_PROBE_BYTES: usize = 4 << 20;
/// The pause before the region's first objects are tried again.
const FIRST_OBJECTS_PAUSE: Duration = Duration::from_millis(200);
/// When the heap is trimmed first, once what a start needs is done with, and how often then: it is some milliseconds' work.
const FIRST_TRIM: Duration = Duration::from_secs(5);
const TRIM_INTERVAL: Duration = Duration::from_secs(60);
/// How long another server may take to lead where this one stops: longer than that takes, and no longer than an election.
const HAND_OVER_LIMIT: Duration = Duration::from_secs(2);
/// How long parts get to stop by themselves, beside the time in which the gateway's answers go on.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);

/// Starts every part, tells `ready` where they answer, and runs until told to stop or a part fails.
pub(super) async fn run_server(
    data: &DataDir,
    args: &Server,
    shutdown: CancellationToken,
    ready: impl FnOnce(&ServerReport) -> Result<()>,
) -> Result<()> {
    let registry = metrics::registry()?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    // Ports first: what cannot listen fails before anything was made.
    let gateway_listener = bind("--listen-gateway", "the gateway", &args.listen.listen_gateway).await?;
    let gateway_address = gateway_listener.local_addr().context("the gateway's own address")?;
    let api_listener = match args.listen.listen_api.as_str() {
        GATEWAY => None,
        text => Some(bind("--listen-api", "the API", text).await?),
    };
    let metrics_listener = bind("--listen-metrics", "metrics", &args.listen.listen_metrics).await?;
    let api_address = match &api_listener {
        Some(listener) => listener.local_addr().context("the API's own address")?,
        None => gateway_address,
    };
    let metrics_address = metrics_listener.local_addr().context("the metrics' own address")?;
    let addresses: Vec<_> = advertised(api_address, &args.listen.advertise)?.iter().map(ToString::to_string).collect();
    let own_address = addresses.first().context("the API's own address")?.clone();

    let wanted = Wanted {
        join: args.join.as_deref(),
        region: args.region.as_deref(),
        zone: args.zone.as_deref(),
        address: &own_address,
    };
    let own = membership::own(data, wanted).await?;
    let (zone, region_name) = (fixed_zone(data, &own.zone)?, own.region.clone());
    let ca = membership::authority(data, &own, Arc::clone(&clock))?;
    ca.export(&data.ca())?;
    let channels = PeerChannels::new(&ca, own.id, Arc::clone(&clock))?;
    let config = RaftConfig {
        address: own_address.clone(),
        feature_level: args.feature_level,
        tuning: Tuning { heartbeat: args.heartbeat, ..Tuning::default() },
        ..RaftConfig::new(data.raft(), own.id, &own.region)
    };
    let start = if own.begins_region() { Start::First } else { Start::Joining };
    let raft = open_store(config, start, &channels, &registry, &clock).await?;
    let group: Arc<dyn Group> = raft.clone();
    let store: Arc<dyn Store> = raft.clone();
    let resources = Arc::new(ResourceService::new(Arc::clone(&store), Arc::clone(&clock), &zone));

    let gateways = advertised(gateway_address, &args.listen.advertise)?;
    let domains = Domains {
        lookup: Arc::new(Resolver::new(args.listen.resolver)),
        gateways: gateways.iter().map(SocketAddr::ip).collect(),
    };
    let (region, handle) = Region::new(hearth_region::Config {
        domains: Some(domains),
        zone: zone.clone(),
        region: region_name.clone(),
        clock: Arc::clone(&clock),
        store,
        group: Arc::clone(&group),
        channels: Arc::new(Others(channels.clone())),
        signer: ca.clone(),
        signing: Arc::clone(ca.signing_key()),
        ports: args.listen.port_range.clone(),
        registry: registry.clone(),
        timing: Timing { lease: args.listen.volume_lease, ..Timing::default() },
    })?;
    let tunnel = match &args.listen.listen_tunnel {
        Some(text) => address("--listen-tunnel", text)?,
        None => SocketAddr::new(api_address.ip(), 0),
    };
    let hub = HubConfig::new(
        tunnel_seed(&data.server().join("tunnel.key"))?,
        tunnel,
        advertised(tunnel, &args.listen.advertise)?,
    );
    let hub = Arc::new(
        TunnelHub::start(hub, handle.dial_notifier(), &registry)
            .await
            .context("cannot listen for tunnels (--listen-tunnel)")?,
    );
    let tunnel_address = *hub.notice().addresses.first().context("the tunnel's own address")?;

    let shares_relay = args.listen.listen_relay.as_ref().map(|_| gateways.as_slice());
    let shared = sharing::Shared::new(&zone, own.id, shares_relay);
    let mut config = GatewayConfig::new(gateway_address);
    let open = CancellationToken::new();
    (config.own, config.open) = (shared.doors, Some(open.clone()));
    config.ports.clone_from(&args.listen.port_range);
    config.limits.drain = args.listen.drain;
    // Who has more time to end may also be silent for longer.
    config.limits.drain_quiet = config.limits.drain_quiet.max(args.listen.drain / 5);
    let gateway = Gateway::on(gateway_listener, config, handle.routes(), Arc::clone(&hub), &registry)?;
    let dns_listen = address("--listen-dns", &args.listen.listen_dns)?;
    let texts = |addresses: &[SocketAddr]| addresses.iter().map(ToString::to_string).collect();
    let signing = ZoneSigning::new(Arc::clone(&resources), &ca)?;
    let gateway_ips = gateways.iter().map(SocketAddr::ip).collect();
    let config = DnsConfig::new(dns_listen, &zone, gateway_ips, signing.cookie_secret());
    let signing = Arc::new(signing);
    let locations = zone::locations(args.listen.dns_locations.as_deref())?;
    let (keys, fed_keys) = watch::channel(Arc::new(Keys::none()));
    let (healthy, fed_gateways) = watch::channel(Arc::from([]));
    let (answering, fed_answering) = watch::channel(Arc::default());
    let answerer = Answerer::new(&config, handle.routes())?
        .with_keys(fed_keys)
        .with_gateways(fed_gateways)
        .with_external(fed_answering)
        .with_locations(zone::locator(locations.as_ref()));
    let dns = DnsServer::bind_with(config, answerer, Arc::clone(&clock), &registry)
        .await
        .map_err(|error| super::server::cannot_listen("--listen-dns", "DNS", dns_listen, &error))?;
    let dns_address = dns.local_addr();
    let told_dns = advertised(dns_address, &args.listen.advertise).unwrap_or_default();
    let doors = Doors { gateways: texts(&gateways), dns: texts(&told_dns) };

    let relay =
        OwnRelay::bind(args, &ca, &clock, handle.dial_notifier(), &registry, (gateway_address, shared.relay)).await?;
    let relay_name = format!("{region_name}-{}", own.id);
    let (relay_address, relay_spec) = (relay.as_ref().map(OwnRelay::address), relay.as_ref().map(OwnRelay::spec));

    let config = ApiConfig {
        region: region_name.clone(),
        version: env!("CARGO_PKG_VERSION").into(),
        token_addresses: addresses,
    };
    let api = ApiServer::builder(config, Arc::clone(&resources), Arc::clone(&ca))
        .connector(Arc::new(TunnelConnector(Arc::clone(&hub))))
        .backups(Arc::new(Backups {
            store: Arc::clone(&raft),
            owner: region_files::owner(data, &region_name)?,
            clock: Arc::clone(&clock),
        }))
        .group(Arc::clone(&group), raft.peers())
        .signing(Arc::clone(&signing))
        .doors(doors)
        .metrics(&registry)
        .add_service(handle.devices_service())
        .add_service(handle.dials_service())
        .add_service(handle.recovery_service())
        .build()?;
    write_client_config(data, &ca, api_address, &zone, &region_name)?;

    let mut parts = Parts { tasks: JoinSet::new(), patience: args.listen.drain + STOP_TIMEOUT };
    // The parts go on while this server hands over.
    let stopping = CancellationToken::new();
    let _handing_over = AbortOnDrop(tokio::spawn(hand_over(Arc::clone(&raft), shutdown, stopping.clone())));
    let (shutdown, stop) = (stopping.clone(), || stopping.clone());
    // Before the store is ready: it is only once the servers call each other.
    let incoming = Incoming { listener: api_listener, begun: Some(shared.api) };
    parts.spawn("api", api.serve(incoming, stop().cancelled_owned()));
    // For the API's name alone until the routes are known: every other name would be one that nobody has.
    parts.spawn("gateway", gateway.run(stop()));
    let client_address = own_address.clone();
    let keeping = membership::keep(data.clone(), own, own_address, group, channels, stop());
    parts.spawn("membership", keeping);
    parts.spawn("region", region.run(stop()));
    parts.spawn("store", watch_store(Arc::clone(&raft), data.server(), stop()));
    parts.spawn("metrics", metrics::serve(metrics_listener, registry.clone(), stop()));
    parts.spawn("heap", trim_heap(stop()));
    parts.spawn("zone keys", zone::feed_keys(Arc::clone(&signing), keys, stop()));
    parts.spawn("zone gateways", zone::feed_gateways(gateways, locations, handle.servers(), healthy, stop()));
    let renewal = (data.clone(), Arc::clone(&ca), zone.clone(), region_name.clone());
    parts.spawn("zone devices", zone::feed_external(handle.routes(), zone.clone(), answering, stop()));
    parts.spawn("client-config", renew_client_config(renewal, api_address, (client_address, handle.servers()), stop()));

    let (relays, clock) = (handle.clone(), Arc::clone(&clock));
    parts.spawn("relays", relaying::follow(Arc::clone(&hub), relays, Arc::clone(&ca), clock, stop()));

    let report = ServerReport {
        pid: std::process::id(),
        region: region_name,
        zone,
        api: api_address,
        gateway: gateway_address,
        dns: dns_address,
        metrics: metrics_address,
        tunnel: tunnel_address,
        relay: relay_address,
    };
    let config = AcmeConfig {
        zone: report.zone.clone(),
        store: raft.clone(),
        group: raft.clone(),
        clock: Arc::new(SystemClock),
        vault: Arc::new(AcmeSettings::new(Arc::clone(&resources), &ca)?),
        routes: handle.routes(),
        events: handle.events("certificates"),
    };
    let acme = Acme::new(config, &registry)?;
    let starting = async {
        raft.ready().await?;
        first_objects(&resources).await;
        zone::first_keys(&signing).await;
        handle.ready().await;
        Ok(())
    };
    let ended = match parts.until(starting, &shutdown).await {
        Ok(true) => {
            open.cancel();
            // As the gateway: not before the routes are known.
            parts.spawn("dns", dns.run(stop()));
            parts.spawn("certificates", acme.run(stop()));
            if let Some(relay) = relay {
                parts.spawn("relay", relay.run(stop()));
            }
            let _announcing = AbortOnDrop(tokio::spawn(async move {
                relaying::announce(&resources, &relay_name, relay_spec).await;
            }));
            match ready(&report) {
                Ok(()) => parts.run(&shutdown).await,
                Err(error) => {
                    parts.stop(&shutdown).await;
                    Err(error)
                }
            }
        }
        early => {
            parts.stop(&shutdown).await;
            early.map(drop)
        }
    };
    hub.close().await;
    raft.shutdown().await.context("cannot close the store")?;
    ended
}

/// Gives back, now and then, what bursts of work left free in the heap: a start or ten thousand objects at once leave a third of it.
async fn trim_heap(shutdown: CancellationToken) -> Result<()> {
    let mut turns = tokio::time::interval_at(tokio::time::Instant::now() + FIRST_TRIM, TRIM_INTERVAL);
    turns.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            _ = turns.tick() => drop(tokio::task::spawn_blocking(hearth_runtime::trim_heap).await),
        }
    }
}

/// Opens the store as this server's part of the region's group.
async fn open_store(
    config: RaftConfig,
    start: Start,
    channels: &PeerChannels,
    registry: &prometheus::Registry,
    clock: &Arc<dyn Clock>,
) -> Result<Arc<RaftStore>> {
    let (disk, transport) = (Arc::new(RealDisk), Arc::new(channels.clone()));
    Ok(Arc::new(RaftStore::open_group(disk, transport, start, config, registry, Arc::clone(clock)).await?))
}

/// Once this server is to stop, has another one lead, so that nobody waits for an election; then stops the parts.
async fn hand_over(store: Arc<RaftStore>, shutdown: CancellationToken, parts: CancellationToken) {
    shutdown.cancelled().await;
    store.hand_over(HAND_OVER_LIMIT).await;
    parts.cancel();
}

/// How the region's loops call the other servers.
struct Others(PeerChannels);

impl ServerChannels for Others {
    fn channel(&self, to: &group::Server) -> Result<Channel, CallError> {
        self.0.channel(to)
    }
}

/// A task that ends with its owner.
struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Makes the objects that every region has. Tried until there is a leader that stores them.
async fn first_objects(resources: &ResourceService) {
    while let Err(status) = resources.ensure_defaults().await {
        tracing::warn!(%status, "cannot make the region's first objects yet");
        tokio::time::sleep(FIRST_OBJECTS_PAUSE).await;
    }
}

/// Backups of the running store, with what else makes the region.
struct Backups {
    store: Arc<RaftStore>,
    owner: Owner,
    clock: Arc<dyn Clock>,
}

impl BackupSource for Backups {
    fn freeze(&self) -> BoxFuture<'_, Result<Frozen, Status>> {
        Box::pin(async {
            let backup = self.store.backup(self.owner.clone(), self.clock.now()).await?;
            Ok(Box::new(move |out: &mut dyn std::io::Write| backup.write(out)) as Frozen)
        })
    }
}

/// The running parts of a server. Each has a name; one that ends before it was told to takes the server
/// with it, since half a server is worse than a restart.
struct Parts {
    tasks: JoinSet<(&'static str, Result<()>)>,
    /// How long they get to stop.
    patience: Duration,
}

impl Parts {
    fn spawn<E: Into<anyhow::Error>>(
        &mut self,
        name: &'static str,
        part: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        self.tasks.spawn(async move { (name, part.await.map_err(Into::into)) });
    }

    /// Waits for something that the parts bring about; `false` where this server is to stop before that.
    async fn until(&mut self, what: impl Future<Output = Result<()>>, shutdown: &CancellationToken) -> Result<bool> {
        tokio::select! {
            // Parts that were told to stop do not end by themselves.
            biased;
            () = shutdown.cancelled() => Ok(false),
            done = what => done.map(|()| true),
            Some(part) = self.tasks.join_next() => Err(early_end(part)),
        }
    }

    async fn run(mut self, shutdown: &CancellationToken) -> Result<()> {
        let ended = self.until(std::future::pending(), shutdown).await;
        self.stop(shutdown).await;
        ended.map(drop)
    }

    async fn stop(mut self, shutdown: &CancellationToken) {
        shutdown.cancel();
        let draining = async {
            while let Some(part) = self.tasks.join_next().await {
                if let Ok((name, Err(error))) = part {
                    tracing::warn!("{name} did not stop cleanly: {error:#}");
                }
            }
        };
        if tokio::time::timeout(self.patience, draining).await.is_err() {
            tracing::warn!("some parts did not stop within {} s and are left", self.patience.as_secs());
        }
    }
}

fn early_end(part: Result<(&'static str, Result<()>), tokio::task::JoinError>) -> anyhow::Error {
    match part {
        Ok((name, Err(error))) => error.context(format!("the {name} part of the server failed")),
        Ok((name, Ok(()))) => anyhow::anyhow!("the {name} part of the server ended by itself"),
        Err(error) => anyhow::anyhow!("a part of the server panicked: {error}"),
    }
}

/// A region's zone is fixed: names and certificates hang on it.
fn fixed_zone(data: &DataDir, wanted: &str) -> Result<String> {
    hearth_types::names::dns_subdomain(wanted).map_err(|why| anyhow::anyhow!("--zone {wanted:?}: {why}"))?;
    fs::create_dir_all(data.server()).with_context(|| format!("cannot make {}", data.server().display()))?;
    let path = data.server().join("zone");
    match fs::read_to_string(&path) {
        Ok(zone) if zone.trim() == wanted => Ok(wanted.to_owned()),
        Ok(zone) => anyhow::bail!(
            "this region's zone is {:?} and cannot be changed to {wanted:?}: its names and certificates hang on it; leave --zone as it was, or use another --data-dir",
            zone.trim()
        ),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            write_atomically(&path, wanted.as_bytes(), 0o644)?;
            Ok(wanted.to_owned())
        }
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// The seed of the gateway's tunnel key; made the first time.
pub(super) fn tunnel_seed(path: &Path) -> Result<[u8; 32]> {
    match fs::read(path) {
        Ok(bytes) => bytes
            .try_into()
            .map_err(|_| anyhow::anyhow!("{}: must hold 32 bytes; remove it to have a new key", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            use ring::rand::SecureRandom as _;
            let mut seed = [0; 32];
            ring::rand::SystemRandom::new()
                .fill(&mut seed)
                .map_err(|_| anyhow::anyhow!("the system gives no random bytes"))?;
            write_atomically(path, &seed, 0o600)?;
            Ok(seed)
        }
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

fn write_client_config(
    data: &DataDir,
    ca: &CertificateAuthority,
    api: SocketAddr,
    zone: &str,
    region: &str,
) -> Result<()> {
    let issued = ca.issue_client(ADMIN, &[identity::ADMINS])?;
    let address = super::example::reachable(api).to_string();
    let config = Config::single(
        region,
        ADMIN,
        &address,
        &server_name(zone),
        ca.pem().as_bytes(),
        issued.certificate_pem.as_bytes(),
        issued.key_pem.as_bytes(),
    );
    // The other servers that were known stay known: this one may be asked for before it hears of them again.
    let known = Config::load(&data.client_config()).map(|before| before.servers()).unwrap_or_default();
    let others = known.into_iter().filter(|one| *one != address);
    let all: Vec<String> = std::iter::once(address.clone()).chain(others).collect();
    let config = if all.len() > 1 { config.with_servers(&all) } else { config };
    Ok(config.save(&data.client_config())?)
}

/// A store that failed answers reads and takes no writes. Once its disk takes writes again, the server ends, so
/// that it is started anew and the store reads back what is really there.
async fn watch_store(store: Arc<RaftStore>, folder: PathBuf, shutdown: CancellationToken) -> Result<()> {
    let why = tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        why = store.failed() => why,
    };
    tracing::error!("the store takes no more writes: {why}");
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(DISK_PROBE) => {
                let probe = folder.join("probe");
                let probing = move || {
                    let written = write_atomically(&probe, &vec![0; DISK_PROBE_BYTES], 0o600);
                    // The room is for the log.
                    let _ = fs::remove_file(&probe);
                    written
                };
                if matches!(tokio::task::spawn_blocking(probing).await, Ok(Ok(()))) {
                    anyhow::bail!("the store had failed ({why}), and its disk takes writes again: starting anew");
                }
            }
        }
    }
}

/// Keeps `client.yaml` as it should be: its certificate, and the region's servers.
async fn renew_client_config(
    (data, ca, zone, region): (DataDir, Arc<CertificateAuthority>, String, String),
    api: SocketAddr,
    (own, mut servers): (String, watch::Receiver<Arc<[String]>>),
    shutdown: CancellationToken,
) -> Result<()> {
    let mut renewal = tokio::time::interval(CLIENT_RENEWAL);
    // The first is now, when it was just written.
    renewal.tick().await;
    loop {
        let known = servers.borrow_and_update().clone();
        if known.len() > 1 {
            // This one first, at the address by which this machine reaches it best.
            let here = super::example::reachable(api).to_string();
            let others = known.iter().filter(|one| **one != own && **one != here).cloned();
            let all: Vec<String> = std::iter::once(here.clone()).chain(others).collect();
            Config::save_servers(&data.client_config(), &all)?;
        }
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            _ = renewal.tick() => write_client_config(&data, &ca, api, &zone, &region)?,
            // The region lives longer than this; should it not, the next renewal is waited for.
            Ok(()) = servers.changed() => {}
        }
    }
}
