//! [`RaftStore`]: opens log, snapshots and Raft, and is a [`Store`].

use std::{collections::BTreeMap, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_core::Stream;
use hearth_state::{Command, Refusal, Response, State, check_txn};
use hearth_types::{
    BoxFuture, Clock, Incarnation, Object, ObjectKey, Reason, Revision, Status,
    group::{CallError, Group, Lane, Leadership, Member, PeerService, PeerTransport, Server},
    object::MAX_OBJECT_BYTES,
    store::{Consistency, ListPage, Op, Query, Store, Txn, TxnOutcome, WatchStream},
};
use openraft::impls::BasicNode;
use tokio::{
    sync::{Mutex, Semaphore, watch},
    task::JoinSet,
};
use tracing::Instrument as _;

use crate::{
    core::{Core, RaftHandle},
    disk::{self, Disk, RealDisk},
    forwards::Forwards,
    group::{self, Ask},
    health::Health,
    leadership::LeadershipWatch,
    log::Writer,
    machine::{Shared, StateMachine},
    metrics::Metrics,
    network::{Addresses, Caller, Network, Reach, server_in},
    open::{Opened, RaftConfig, RaftStoreError, open_files, raft_config},
    reads::Reads,
    types::Proposal,
    watch::watch,
};

/// Transactions on their way at most; more are refused with `TooManyRequests`. At 10,000 a second, half a second of them.
pub const MAX_WRITES_IN_FLIGHT: usize = 4_096;
/// Bytes of transactions on their way at most, for the same reason: they are in memory several times until they are applied.
pub const MAX_BYTES_IN_FLIGHT: usize = 64 << 20;
/// Bytes of one transaction at most: more would hold up everybody else's for the time of one long write to disk.
pub const MAX_TXN_BYTES: usize = 16 << 20;
/// Watches at most: five times what the figures ask for, some 2 KB each.
pub const MAX_WATCHERS: i64 = 50_000;
/// How long a write or a linearizable read may take before its caller is told that nobody knows.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a start may take from the log being read to the last entry being applied.
const OPEN_TIMEOUT: Duration = Duration::from_mins(2);

/// How long a store that is not ready waits before it looks again.
const READY_PAUSE: Duration = Duration::from_secs(1);

/// A region's store on this server: durable, linearizable, watched.
///
/// # Guarantees
/// A write that returned `Ok` is on disk and survives a crash at any moment. A write that failed with
/// `ServiceUnavailable` or `Timeout` may have happened: send it again under the same request id. Once the disk failed or
/// is full, no write is acknowledged until the store is opened anew (see [`RaftStore::failure`]); reads go on.
pub struct RaftStore {
    pub(crate) core: Arc<Core>,
    writes: Semaphore,
    kilobytes: Semaphore,
    bookmark_interval: Duration,
    clock: Arc<dyn Clock>,
    clean_up: Mutex<Option<CleanUp>>,
}

struct CleanUp {
    writer: Writer,
    tasks: JoinSet<()>,
    lock: Box<dyn Send + Sync>,
}

/// How a store comes to be, where there is none yet; one that is there goes on as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// It is the first of its region.
    First,
    /// It waits for the servers that there are to admit it (see [`Group::admit`]).
    Joining,
}

impl RaftStore {
    /// Opens the store of a region of one server, or makes it where there is none. Returns once everything that was acknowledged
    /// before is applied.
    pub async fn open(
        config: RaftConfig,
        registry: &prometheus::Registry,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, RaftStoreError> {
        Self::open_on(Arc::new(RealDisk), config, registry, clock).await
    }

    /// The same on a disk of the caller's.
    pub async fn open_on(
        disk: Arc<dyn Disk>,
        config: RaftConfig,
        registry: &prometheus::Registry,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, RaftStoreError> {
        let store = Self::open_group(disk, Arc::new(NoPeers), Start::First, config, registry, clock).await?;
        store.ready().await?;
        Ok(store)
    }

    /// Opens the store of a server of a region, on a disk and over a network of the caller's. From then on others may call
    /// [`RaftStore::peers`], and have to: only they make it [`RaftStore::ready`], but for the only server of a region.
    pub async fn open_group(
        disk: Arc<dyn Disk>,
        transport: Arc<dyn PeerTransport>,
        start: Start,
        config: RaftConfig,
        registry: &prometheus::Registry,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, RaftStoreError> {
        let span = tracing::info_span!("open_store", region = config.region, node = config.node_id);
        Self::open_with(disk, transport, start, config, registry, clock).instrument(span).await
    }

    async fn open_with(
        disk: Arc<dyn Disk>,
        transport: Arc<dyn PeerTransport>,
        start: Start,
        config: RaftConfig,
        registry: &prometheus::Registry,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, RaftStoreError> {
        let metrics = Metrics::register(registry).map_err(RaftStoreError::Metrics)?;
        let health = Health::new();
        let opened = {
            let (disk, config, health, metrics) = (Arc::clone(&disk), config.clone(), health.clone(), metrics.clone());
            move || Ok(open_files(&disk, &config, &health, &metrics))
        };
        let opened = disk::call(&disk, opened).await.map_err(|error| RaftStoreError::Raft(error.to_string()))?;
        let Opened { log, writer, shared, lock } = opened?;
        let found = shared.machine().state.feature_level();
        let known = shared.known;
        if found > known {
            return Err(RaftStoreError::FeatureLevel { found, known });
        }
        let here = Server { id: config.node_id, address: config.address.clone() };
        let alone = log.voters().unwrap_or_else(|| shared.machine().voters()) == [here.id];
        let raft_config = Arc::new(raft_config(&config, alone)?);
        let reach = Reach::new(shared.metrics.peers_silent.clone());
        let addresses = Addresses::new(reach.clone());
        let caller = Caller { region: config.region.as_str().into(), transport, reach };
        let network = Network { caller: caller.clone(), addresses: addresses.clone() };
        let machine = StateMachine(Arc::clone(&shared));
        let raft = RaftHandle::new(here.id, raft_config, network, log, machine)
            .await
            .map_err(|error| RaftStoreError::Raft(error.to_string()))?;
        let (reads, rounds) = Reads::new();
        let (forwards, calls) = Forwards::new();
        let core = Arc::new(Core {
            raft: raft.clone(),
            shared: Arc::clone(&shared),
            health,
            disk,
            dir: config.data_dir.clone(),
            here: here.clone(),
            caller,
            leaders: LeadershipWatch::default(),
            reads,
            forwards,
            incoming: Mutex::new(None),
            changing: Mutex::new(()),
            closed: watch::Sender::new(false),
        });
        let mut tasks = JoinSet::new();
        let gauges = shared.metrics.clone();
        tasks.spawn(take_snapshots(raft.clone(), shared));
        tasks.spawn(core.leaders.clone().follow(raft, here, addresses, gauges));
        tasks.spawn(rounds.run(Arc::downgrade(&core)));
        tasks.spawn(calls.run(Arc::downgrade(&core)));
        tasks.spawn(Arc::clone(&core).finish_changes());
        tasks.spawn(Arc::clone(&core).keep_feature_level(Arc::clone(&clock)));
        let store = Self {
            core,
            writes: Semaphore::new(MAX_WRITES_IN_FLIGHT),
            kilobytes: Semaphore::new(MAX_BYTES_IN_FLIGHT >> 10),
            bookmark_interval: config.tuning.bookmark_interval,
            clock,
            clean_up: Mutex::new(Some(CleanUp { writer, tasks, lock })),
        };
        match store.start(start, alone).await {
            Ok(()) => Ok(store),
            Err(error) => {
                let _ = store.shutdown().await;
                Err(error)
            }
        }
    }

    /// Starts the group where it is new, and waits until the log is applied where nobody else can have more.
    async fn start(&self, start: Start, alone: bool) -> Result<(), RaftStoreError> {
        let core = &self.core;
        let raft = |error: &dyn std::fmt::Display| {
            RaftStoreError::Raft(match core.health.failure() {
                Some(failure) => failure.to_string(),
                None => error.to_string(),
            })
        };
        let new = !core.raft.is_initialized().await.map_err(|error| raft(&error))?;
        if new && start == Start::First {
            let members = BTreeMap::from([(core.here.id, BasicNode::new(core.here.address.clone()))]);
            core.raft.initialize(members).await.map_err(|error| raft(&error))?;
        }
        if alone || (new && start == Start::First) {
            core.raft.wait_for_recovery(Some(OPEN_TIMEOUT)).await.map_err(|error| raft(&error))?;
        }
        Ok(())
    }

    /// Waits until this server has everything that was acknowledged, however long that takes: until it was admitted, and a majority of
    /// the servers is there.
    pub async fn ready(&self) -> Result<(), RaftStoreError> {
        let core = &self.core;
        loop {
            if let Some(why) = core.health.failure() {
                return Err(RaftStoreError::Raft(why.to_string()));
            }
            if *core.closed.borrow() {
                return Err(RaftStoreError::Raft("the store is shutting down".into()));
            }
            let caught_up = core.catch_up().await;
            let incarnation = core.shared.machine().state.incarnation().cloned();
            match (caught_up, incarnation) {
                (Ok(()), Some(incarnation)) => {
                    tracing::info!(%incarnation, revision = %self.revision(), "the store is open");
                    break;
                }
                (Ok(()), None) => {
                    let incarnation = Incarnation::from(uuid::Uuid::new_v4().to_string());
                    let command = Command::Initialize { incarnation, now: self.clock.now() };
                    core.propose(Proposal::new(command)).await.map_err(RaftStoreError::Incarnation)?;
                }
                (Err(status), _) => {
                    tracing::info!(%status, "waiting for the region's other servers");
                    let mut changes = core.leaders.listen();
                    let _ = tokio::time::timeout(READY_PAUSE, changes.raised()).await;
                }
            }
        }
        // A server alone is all servers, and reads what it writes.
        if core.alone() {
            core.raise_feature_level(&*self.clock).await.map_err(RaftStoreError::Incarnation)?;
        }
        Ok(())
    }

    /// What this server answers to the others.
    pub fn peers(&self) -> Arc<dyn PeerService> {
        Arc::clone(&self.core) as Arc<dyn PeerService>
    }

    /// Hands leadership to another server, where this one leads and is not alone, so that its end is no pause for anybody. Does what
    /// it can within `limit`.
    pub async fn hand_over(&self, limit: Duration) {
        if self.core.leads() && !self.core.alone() {
            match tokio::time::timeout(limit, self.transfer_leader(None)).await {
                Ok(Ok(leader)) => tracing::info!("{leader} leads from now on"),
                Ok(Err(status)) => tracing::warn!(%status, "leadership was not handed over"),
                Err(_) => tracing::warn!("leadership was not handed over in time"),
            }
        }
    }

    /// Closes the store: no more writes, watches end, files are closed. Everything acknowledged is on disk already.
    pub async fn shutdown(&self) -> Result<(), RaftStoreError> {
        let _ = self.core.closed.send(true);
        let Some(mut clean_up) = self.clean_up.lock().await.take() else {
            return Ok(());
        };
        clean_up.tasks.shutdown().await;
        let stopped = self.core.raft.shutdown().await;
        // Only now, when Raft no longer hears that the snapshot failed.
        self.core.shared.begin_closing();
        // openraft keeps the log until its last task is gone; the thread ends with it.
        let joined = tokio::time::timeout(REQUEST_TIMEOUT, clean_up.writer.join()).await;
        let shared = Arc::clone(&self.core.shared);
        let closing = move || {
            shared.close_files();
            Ok(())
        };
        let _ = disk::call(&self.core.disk, closing).await;
        // An unfinished snapshot of another server has its file open.
        drop(self.core.incoming.lock().await.take());
        // Only now is nobody left who touches the directory.
        drop(clean_up.lock);
        stopped.map_err(|error| RaftStoreError::Shutdown(error.to_string()))?;
        joined.map_err(|_| RaftStoreError::Shutdown("the log was not let go".into()))
    }

    /// Why the store acknowledges no more writes; `None` while it does. Part of the server's readiness.
    pub fn failure(&self) -> Option<Arc<str>> {
        self.core.health.failure()
    }

    /// Waits until the store acknowledges no more writes, and says why.
    pub async fn failed(&self) -> Arc<str> {
        self.core.health.failed().await
    }

    /// The last revision that this server applied.
    pub fn revision(&self) -> Revision {
        self.core.shared.machine().state.revision()
    }

    /// Takes a snapshot now, without waiting for it.
    pub async fn request_snapshot(&self) -> Result<(), Status> {
        self.core.raft.trigger().snapshot().await.map_err(|error| self.core.unavailable(&error))
    }

    async fn write_txn(&self, txn: Txn) -> Result<TxnOutcome, Status> {
        let bytes = check(&txn)?;
        let busy = |_| {
            self.core.shared.metrics.writes_refused.inc();
            Status::new(Reason::TooManyRequests, "too many writes are on their way; send the request again in a moment")
        };
        let _write = self.writes.try_acquire().map_err(busy)?;
        let _bytes = self.kilobytes.try_acquire_many((bytes >> 10) as u32 + 1).map_err(busy)?;
        self.core.shared.metrics.writes_in_flight.inc();
        let metrics = self.core.shared.metrics.clone();
        let _counted = OnDrop(|| metrics.writes_in_flight.dec());
        match self.core.propose(Proposal::new(Command::Txn(txn))).await? {
            Response::Txn(outcome) => Ok(outcome),
            Response::Refused(Refusal::Reused) => Err(Status::new(Reason::Conflict, Refusal::Reused.to_string())),
            Response::Refused(refusal) => Err(Status::internal(refusal.to_string())),
            other => Err(Status::internal(format!("a transaction was answered with {other:?}"))),
        }
    }

    /// The state with every write in it that was acknowledged before; shares its memory with the one that goes on.
    pub(crate) async fn frozen(&self) -> Result<State, Status> {
        self.catch_up(Consistency::Linearizable).await?;
        Ok(self.core.shared.machine().state.clone())
    }

    /// Waits until a local read sees every write that was acknowledged before.
    async fn catch_up(&self, read: Consistency) -> Result<(), Status> {
        match read {
            Consistency::Local => Ok(()),
            Consistency::Linearizable => self.core.catch_up().await,
        }
    }

    async fn read_page(
        &self,
        query: &Query,
        limit: usize,
        token: Option<&str>,
        read: Consistency,
    ) -> Result<ListPage, Status> {
        self.catch_up(read).await?;
        let state = self.core.shared.machine().state.clone();
        if query.selector.fields.is_empty() {
            return Ok(state.list(query, limit, token)?);
        }
        // Field selectors parse every object: not on a thread that serves others.
        let (query, token) = (query.clone(), token.map(str::to_owned));
        let listed = tokio::task::spawn_blocking(move || state.list(&query, limit, token.as_deref())).await;
        Ok(listed.map_err(|error| Status::internal(format!("a list failed: {error}")))??)
    }
}

impl Store for RaftStore {
    fn get<'a>(&'a self, key: &'a ObjectKey, read: Consistency) -> BoxFuture<'a, Result<Option<Object>, Status>> {
        Box::pin(async move {
            self.catch_up(read).await?;
            Ok(self.core.shared.machine().state.get(key).cloned())
        })
    }

    fn list<'a>(
        &'a self,
        query: &'a Query,
        limit: usize,
        continue_token: Option<&'a str>,
        read: Consistency,
    ) -> BoxFuture<'a, Result<ListPage, Status>> {
        Box::pin(self.read_page(query, limit, continue_token, read))
    }

    fn watch(&self, query: Query, from: Revision) -> BoxFuture<'_, Result<WatchStream, Status>> {
        Box::pin(async move {
            if self.core.shared.metrics.watchers.get() >= MAX_WATCHERS {
                let why = format!("{MAX_WATCHERS} watches are open; share them, or try again later");
                return Err(Status::new(Reason::TooManyRequests, why));
            }
            watch(&self.core.shared, self.core.closed.subscribe(), query, from, self.bookmark_interval)
        })
    }

    fn write(&self, txn: Txn) -> BoxFuture<'_, Result<TxnOutcome, Status>> {
        let span = tracing::debug_span!("store_write", request = %txn.request_id, operations = txn.ops.len());
        Box::pin(self.write_txn(txn).instrument(span))
    }

    fn incarnation(&self) -> Incarnation {
        // Empty until the store is ready.
        let machine = self.core.shared.machine();
        machine.state.incarnation().cloned().unwrap_or_else(|| Incarnation::from(""))
    }
}

impl Group for RaftStore {
    fn id(&self) -> u64 {
        self.core.here.id
    }

    fn members(&self) -> BoxFuture<'_, Result<Vec<Member>, Status>> {
        Box::pin(async {
            let answer = self.core.administer(&Ask::Members, group::CHANGE_LIMIT).await?;
            let mut members: Vec<Member> = answer.members.into_iter().map(group::member_in).collect();
            members.sort_by_key(|member| member.server.id);
            Ok(members)
        })
    }

    fn admit(&self, server: Server) -> BoxFuture<'_, Result<(), Status>> {
        Box::pin(async { self.core.administer(&Ask::Admit(server), group::ADMIT_LIMIT).await.map(drop) })
    }

    fn remove(&self, id: u64) -> BoxFuture<'_, Result<(), Status>> {
        Box::pin(async move { self.core.administer(&Ask::Remove(id), group::CHANGE_LIMIT).await.map(drop) })
    }

    fn transfer_leader(&self, to: Option<u64>) -> BoxFuture<'_, Result<Server, Status>> {
        Box::pin(async move {
            let answer = self.core.administer(&Ask::Transfer(to), group::CHANGE_LIMIT).await?;
            answer.leader.map(server_in).ok_or_else(|| Status::internal("the answer names no leader"))
        })
    }

    fn leadership(&self) -> Leadership {
        self.core.leadership()
    }

    fn watch_leadership(&self) -> Pin<Box<dyn Stream<Item = Leadership> + Send>> {
        self.core.leaders.stream()
    }
}

/// The network of a region of one server: nobody is in reach.
struct NoPeers;

impl PeerTransport for NoPeers {
    fn call(&self, to: &Server, _: Lane, _: Bytes) -> BoxFuture<'static, Result<Bytes, CallError>> {
        let error = CallError(format!("{to}: this server was started without a network to others"));
        Box::pin(async { Err(error) })
    }
}

/// Takes a snapshot whenever one is due.
async fn take_snapshots(raft: RaftHandle, shared: Arc<Shared>) {
    loop {
        shared.snapshot_due.notified().await;
        if let Err(error) = raft.trigger().snapshot().await {
            tracing::warn!(%error, "a snapshot is due, but Raft has stopped");
            return;
        }
    }
}

/// Checks the bounds of a transaction; returns its size in bytes.
fn check(txn: &Txn) -> Result<usize, Status> {
    let refused = |why: String| Status::new(Reason::BadRequest, why);
    check_txn(txn).map_err(|refusal| refused(refusal.to_string()))?;
    let mut total = 0;
    for op in &txn.ops {
        let size = match op {
            Op::Create { object } | Op::Update { object, .. } => object.json().len(),
            Op::Bind { claims, .. } => 256 + claims.len() * 256,
            Op::Delete { .. } | Op::Check { .. } => 256,
        };
        if size + hearth_state::STAMP_BYTES > MAX_OBJECT_BYTES {
            return Err(refused(format!(
                "an object of {size} bytes; at most {} are stored",
                MAX_OBJECT_BYTES - hearth_state::STAMP_BYTES
            )));
        }
        total += size;
    }
    if total > MAX_TXN_BYTES {
        return Err(refused(format!("a transaction of {total} bytes; at most {MAX_TXN_BYTES} are taken, split it")));
    }
    Ok(total)
}

struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
