//! [`RaftStore`]: opens log, snapshots and Raft, and is a [`Store`].

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use hearth_state::{Command, Refusal, Response, State, check_txn};
use hearth_types::{
    BoxFuture, Clock, Incarnation, Object, ObjectKey, Reason, Revision, Status,
    object::MAX_OBJECT_BYTES,
    store::{Consistency, ListPage, Op, Query, Store, Txn, TxnOutcome, WatchStream},
};
use openraft::{
    Raft,
    errors::{ClientWriteError, RaftError},
    impls::BasicNode,
    raft::ReadPolicy,
};
use tokio::{
    sync::{Mutex, Semaphore, watch},
    task::JoinHandle,
};
use tracing::Instrument as _;

use crate::{
    disk::{Disk, RealDisk},
    health::Health,
    log::Writer,
    machine::{Shared, StateMachine},
    metrics::Metrics,
    network::{Alone, Network},
    open::{Opened, RaftConfig, RaftStoreError, open_files, raft_config},
    types::{Proposal, TypeConfig},
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

type RaftHandle = Raft<TypeConfig, StateMachine>;

/// A region's store on this server: durable, linearizable, watched.
///
/// # Guarantees
/// A write that returned `Ok` is on disk and survives a crash at any moment. A write that failed with
/// `ServiceUnavailable` or `Timeout` may have happened: send it again under the same request id. Once the disk failed or
/// is full, no write is acknowledged until the store is opened anew (see [`RaftStore::failure`]); reads go on.
pub struct RaftStore {
    raft: RaftHandle,
    shared: Arc<Shared>,
    health: Health,
    incarnation: Incarnation,
    alone: bool,
    writes: Semaphore,
    kilobytes: Semaphore,
    closed: watch::Sender<bool>,
    bookmark_interval: Duration,
    clean_up: Mutex<Option<CleanUp>>,
}

struct CleanUp {
    writer: Writer,
    snapshotter: JoinHandle<()>,
    lock: Box<dyn Send + Sync>,
}

impl RaftStore {
    /// Opens the store, or makes it where there is none. Returns once everything that was acknowledged before is
    /// applied.
    pub async fn open(
        config: RaftConfig,
        registry: &prometheus::Registry,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, RaftStoreError> {
        Self::open_on(Arc::new(RealDisk), config, registry, clock).await
    }

    /// Opens the store on a disk of the caller's.
    pub async fn open_on(
        disk: Arc<dyn Disk>,
        config: RaftConfig,
        registry: &prometheus::Registry,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, RaftStoreError> {
        let span = tracing::info_span!("open_store", region = config.region, node = config.node_id);
        Self::open_with(disk, Alone, config, registry, clock).instrument(span).await
    }

    async fn open_with(
        disk: Arc<dyn Disk>,
        network: impl Network,
        config: RaftConfig,
        registry: &prometheus::Registry,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, RaftStoreError> {
        let metrics = Metrics::register(registry).map_err(RaftStoreError::Metrics)?;
        let health = Health::new();
        let opened = {
            let (disk, config, health, metrics) = (Arc::clone(&disk), config.clone(), health.clone(), metrics.clone());
            tokio::task::spawn_blocking(move || open_files(&disk, &config, &health, &metrics))
        };
        let opened = opened.await.map_err(|error| RaftStoreError::Raft(error.to_string()))??;
        let Opened { log, writer, shared, lock } = opened;
        let raft_config = Arc::new(raft_config(&config)?);
        let machine = StateMachine(Arc::clone(&shared));
        let raft = RaftHandle::new(config.node_id, raft_config, network, log, machine)
            .await
            .map_err(|error| RaftStoreError::Raft(error.to_string()))?;
        let snapshotter = tokio::spawn(take_snapshots(raft.clone(), Arc::clone(&shared)));
        let mut store = Self {
            raft,
            shared,
            health,
            incarnation: Incarnation::from(""),
            alone: true,
            writes: Semaphore::new(MAX_WRITES_IN_FLIGHT),
            kilobytes: Semaphore::new(MAX_BYTES_IN_FLIGHT >> 10),
            closed: watch::Sender::new(false),
            bookmark_interval: config.tuning.bookmark_interval,
            clean_up: Mutex::new(Some(CleanUp { writer, snapshotter, lock })),
        };
        match store.start(&config, &*clock).await {
            Ok(incarnation) => {
                store.incarnation = incarnation;
                tracing::info!(incarnation = %store.incarnation, revision = %store.revision(), "the store is open");
                Ok(store)
            }
            Err(error) => {
                let _ = store.shutdown().await;
                Err(error)
            }
        }
    }

    /// Starts the group where it is new, waits until the log is applied, and returns the data's identity.
    async fn start(&mut self, config: &RaftConfig, clock: &dyn Clock) -> Result<Incarnation, RaftStoreError> {
        let raft = |error: &dyn std::fmt::Display| {
            RaftStoreError::Raft(match self.health.failure() {
                Some(failure) => failure.to_string(),
                None => error.to_string(),
            })
        };
        if !self.raft.is_initialized().await.map_err(|error| raft(&error))? {
            let members = BTreeMap::from([(config.node_id, BasicNode::default())]);
            self.raft.initialize(members).await.map_err(|error| raft(&error))?;
        }
        self.raft.wait_for_recovery(Some(OPEN_TIMEOUT)).await.map_err(|error| raft(&error))?;
        self.alone = self.raft.voter_ids().eq([config.node_id]);
        let found = self.shared.machine().state.feature_level();
        if found > hearth_state::FEATURE_LEVEL {
            return Err(RaftStoreError::FeatureLevel { found, known: hearth_state::FEATURE_LEVEL });
        }
        let incarnation = self.identity(clock).await?;
        // A server alone is all servers, and reads what it writes.
        if self.alone && self.shared.machine().state.feature_level() < hearth_state::FEATURE_LEVEL {
            let raise = Command::RaiseFeatureLevel { level: hearth_state::FEATURE_LEVEL, now: clock.now() };
            self.propose(raise).await.map_err(RaftStoreError::Incarnation)?;
        }
        Ok(incarnation)
    }

    async fn identity(&self, clock: &dyn Clock) -> Result<Incarnation, RaftStoreError> {
        if let Some(incarnation) = self.shared.machine().state.incarnation() {
            return Ok(incarnation.clone());
        }
        let incarnation = Incarnation::from(uuid::Uuid::new_v4().to_string());
        let command = Command::Initialize { incarnation, now: clock.now() };
        match self.propose(command).await.map_err(RaftStoreError::Incarnation)? {
            Response::Incarnation(incarnation) => Ok(incarnation),
            other => Err(RaftStoreError::Incarnation(Status::internal(format!("unexpected answer {other:?}")))),
        }
    }

    /// Closes the store: no more writes, watches end, files are closed. Everything acknowledged is on disk already.
    pub async fn shutdown(&self) -> Result<(), RaftStoreError> {
        let _ = self.closed.send(true);
        let Some(clean_up) = self.clean_up.lock().await.take() else {
            return Ok(());
        };
        clean_up.snapshotter.abort();
        let _ = clean_up.snapshotter.await;
        let stopped = self.raft.shutdown().await;
        // Only now, when Raft no longer hears that the snapshot failed.
        self.shared.begin_closing();
        // openraft keeps the log until its last task is gone; the thread ends with it.
        let joined = tokio::time::timeout(REQUEST_TIMEOUT, clean_up.writer.join()).await;
        let shared = Arc::clone(&self.shared);
        let _ = tokio::task::spawn_blocking(move || shared.close_files()).await;
        // Only now is nobody left who touches the directory.
        drop(clean_up.lock);
        stopped.map_err(|error| RaftStoreError::Shutdown(error.to_string()))?;
        joined.map_err(|_| RaftStoreError::Shutdown("the log was not let go".into()))
    }

    /// Why the store acknowledges no more writes; `None` while it does. Part of the server's readiness.
    pub fn failure(&self) -> Option<Arc<str>> {
        self.health.failure()
    }

    /// Waits until the store acknowledges no more writes, and says why.
    pub async fn failed(&self) -> Arc<str> {
        self.health.failed().await
    }

    /// The last revision that this server applied.
    pub fn revision(&self) -> Revision {
        self.shared.machine().state.revision()
    }

    /// Takes a snapshot now, without waiting for it.
    pub async fn request_snapshot(&self) -> Result<(), Status> {
        self.raft.trigger().snapshot().await.map_err(|error| self.unavailable(&error))
    }

    async fn propose(&self, command: Command) -> Result<Response, Status> {
        if let Some(why) = self.health.failure() {
            return Err(Status::unavailable(why.to_string()));
        }
        let written = tokio::time::timeout(REQUEST_TIMEOUT, self.raft.client_write(Proposal::new(command))).await;
        match written {
            Ok(Ok(response)) => Ok(response.data),
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_)))) => {
                Err(Status::unavailable("this server does not lead the region now; send the request again"))
            }
            Ok(Err(error)) => Err(self.unavailable(&error)),
            Err(_) => Err(Status::new(
                Reason::Timeout,
                format!(
                    "the write was not done within {} s; whether it will be is unknown, send it again under the same request id",
                    REQUEST_TIMEOUT.as_secs()
                ),
            )),
        }
    }

    async fn write_txn(&self, txn: Txn) -> Result<TxnOutcome, Status> {
        let bytes = check(&txn)?;
        let busy = |_| {
            self.shared.metrics.writes_refused.inc();
            Status::new(Reason::TooManyRequests, "too many writes are on their way; send the request again in a moment")
        };
        let _write = self.writes.try_acquire().map_err(busy)?;
        let _bytes = self.kilobytes.try_acquire_many((bytes >> 10) as u32 + 1).map_err(busy)?;
        self.shared.metrics.writes_in_flight.inc();
        let metrics = self.shared.metrics.clone();
        let _counted = OnDrop(|| metrics.writes_in_flight.dec());
        match self.propose(Command::Txn(txn)).await? {
            Response::Txn(outcome) => Ok(outcome),
            Response::Refused(Refusal::Reused) => Err(Status::new(Reason::Conflict, Refusal::Reused.to_string())),
            Response::Refused(refusal) => Err(Status::internal(refusal.to_string())),
            other => Err(Status::internal(format!("a transaction was answered with {other:?}"))),
        }
    }

    /// The state with every write in it that was acknowledged before; shares its memory with the one that goes on.
    pub(crate) async fn frozen(&self) -> Result<State, Status> {
        self.catch_up(Consistency::Linearizable).await?;
        Ok(self.shared.machine().state.clone())
    }

    /// Waits until a local read sees every write that was acknowledged before.
    async fn catch_up(&self, read: Consistency) -> Result<(), Status> {
        if read == Consistency::Local || (self.alone && self.health.failure().is_some()) {
            // A group of one that failed: nobody else can have acknowledged anything, and what this server acknowledged
            // it has applied.
            return Ok(());
        }
        let checked = self.raft.ensure_linearizable(ReadPolicy::ReadIndex);
        match tokio::time::timeout(REQUEST_TIMEOUT, checked).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) if self.alone && self.health.failure().is_some() => Ok(()),
            Ok(Err(error)) => Err(self.unavailable(&error)),
            Err(_) => Err(Status::new(Reason::Timeout, "the region did not confirm the read in time; read again")),
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
        let state = self.shared.machine().state.clone();
        if query.selector.fields.is_empty() {
            return Ok(state.list(query, limit, token)?);
        }
        // Field selectors parse every object: not on a thread that serves others.
        let (query, token) = (query.clone(), token.map(str::to_owned));
        let listed = tokio::task::spawn_blocking(move || state.list(&query, limit, token.as_deref())).await;
        Ok(listed.map_err(|error| Status::internal(format!("a list failed: {error}")))??)
    }

    fn unavailable(&self, error: &dyn std::fmt::Display) -> Status {
        match self.health.failure() {
            Some(why) => Status::unavailable(why.to_string()),
            None if *self.closed.borrow() => Status::unavailable("the store is shutting down"),
            None => Status::unavailable(format!("the region's store is not available: {error}; try again")),
        }
    }
}

impl Store for RaftStore {
    fn get<'a>(&'a self, key: &'a ObjectKey, read: Consistency) -> BoxFuture<'a, Result<Option<Object>, Status>> {
        Box::pin(async move {
            self.catch_up(read).await?;
            Ok(self.shared.machine().state.get(key).cloned())
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
            if self.shared.metrics.watchers.get() >= MAX_WATCHERS {
                let why = format!("{MAX_WATCHERS} watches are open; share them, or try again later");
                return Err(Status::new(Reason::TooManyRequests, why));
            }
            watch(&self.shared, self.closed.subscribe(), query, from, self.bookmark_interval)
        })
    }

    fn write(&self, txn: Txn) -> BoxFuture<'_, Result<TxnOutcome, Status>> {
        let span = tracing::debug_span!("store_write", request = %txn.request_id, operations = txn.ops.len());
        Box::pin(self.write_txn(txn).instrument(span))
    }

    fn incarnation(&self) -> Incarnation {
        self.incarnation.clone()
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
