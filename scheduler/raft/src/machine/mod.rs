//! The state machine as openraft uses it: applies entries, builds and installs snapshots.

mod snapshots;

use std::{
    collections::HashMap,
    io,
    ops::Range,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{Stream, StreamExt as _};
use hearth_state::{Response, State, apply};
use hearth_types::{GroupKind, Revision};
use openraft::{
    OptionalSend, RaftSnapshotBuilder, Snapshot,
    storage::{EntryResponder, RaftStateMachine},
};
use tokio::sync::{Notify, watch};

pub use self::snapshots::SnapshotsError;
pub(crate) use self::snapshots::{Newest, SnapshotFile, Snapshots, decode as decode_snapshot, seal as seal_snapshot};
use crate::{
    disk::{self, Disk},
    health::Health,
    metrics::Metrics,
    sabotage::{self, Bug},
    signal::{Listener, Signal},
    types::{CommittedLeaderId, LogId, Payload, SnapshotMeta, StoredMembership, TypeConfig, payload_size},
};

pub(crate) type RaftSnapshot = Snapshot<CommittedLeaderId, u64, openraft::impls::BasicNode, SnapshotFile>;

/// Entries applied under one lock at most, so that readers wait for a millisecond at most.
const APPLY_AT_ONCE: usize = 64;

/// A snapshot is taken once the log since the last one has this many bytes, or as many as the last snapshot had, where
/// that is more: so a snapshot writes at most as much again as the log did.
pub const SNAPSHOT_LOG_BYTES: u64 = 32 << 20;
/// A snapshot is taken once this many entries were applied since the last one, however small: a start applies them again.
pub const SNAPSHOT_LOG_ENTRIES: u64 = 50_000;
/// How long after a snapshot could not be written it is tried again: first after the start of the range, then after twice as long
/// each time, at most after its end. The log has everything meanwhile.
pub const SNAPSHOT_RETRY: Range<Duration> = Duration::from_secs(5)..Duration::from_mins(5);

/// When snapshots are taken.
pub(crate) struct SnapshotTiming {
    /// See [`SNAPSHOT_LOG_BYTES`].
    pub(crate) log_bytes: u64,
    /// See [`SNAPSHOT_LOG_ENTRIES`].
    pub(crate) log_entries: u64,
    /// See [`SNAPSHOT_RETRY`].
    pub(crate) retry: Range<Duration>,
}

/// What is replicated, and how far it got.
pub(crate) struct Machine {
    pub(crate) state: State,
    applied: Option<LogId>,
    membership: StoredMembership,
    /// The last revision that changed something of a kind, for those that were changed since `loaded`.
    kinds: HashMap<GroupKind, Revision>,
    /// The revision of the snapshot that the state was loaded from.
    loaded: Revision,
}

impl Machine {
    /// A revision since which no object of a kind changed.
    pub(crate) fn last_change(&self, kind: &GroupKind) -> Revision {
        self.kinds.get(kind).copied().unwrap_or(self.loaded)
    }
}

/// The state machine, shared by openraft, readers and watchers.
pub(crate) struct Shared {
    machine: RwLock<Machine>,
    /// Wakes the watchers of a kind.
    wakers: RwLock<HashMap<GroupKind, Signal>>,
    /// Raised when entries were applied.
    applied: Signal,
    disk: Arc<dyn Disk>,
    snapshots: Snapshots,
    /// Held while snapshot files are written or removed; `true` once the store is closed.
    files_closed: Mutex<bool>,
    current: RwLock<Option<(SnapshotMeta, SnapshotFile)>>,
    /// Asks for a snapshot.
    pub(crate) snapshot_due: Notify,
    log_bytes: AtomicU64,
    log_entries: AtomicU64,
    last_snapshot_bytes: AtomicU64,
    timing: SnapshotTiming,
    /// The highest feature level that this server knows.
    pub(crate) known: u32,
    /// `true` once the store begins to close.
    closing: watch::Sender<bool>,
    health: Health,
    pub(crate) metrics: Metrics,
}

impl Shared {
    /// The state machine as the newest snapshot has it.
    pub(crate) fn new(
        snapshots: Snapshots,
        newest: Option<Newest>,
        timing: SnapshotTiming,
        known: u32,
        health: Health,
        metrics: Metrics,
    ) -> Arc<Self> {
        let (mut machine, mut current, mut bytes) = (Machine::of(State::default(), &SnapshotMeta::default()), None, 0);
        if let Some(newest) = newest {
            machine = Machine::of(newest.state, &newest.meta);
            bytes = newest.bytes;
            current = Some((newest.meta, newest.file));
        }
        metrics.snapshot_bytes.set(bytes as i64);
        Arc::new(Self {
            machine: RwLock::new(machine),
            wakers: RwLock::default(),
            applied: Signal::default(),
            disk: snapshots.disk(),
            snapshots,
            files_closed: Mutex::new(false),
            current: RwLock::new(current),
            snapshot_due: Notify::new(),
            log_bytes: AtomicU64::new(0),
            log_entries: AtomicU64::new(0),
            last_snapshot_bytes: AtomicU64::new(bytes),
            timing,
            known,
            closing: watch::Sender::new(false),
            health,
            metrics,
        })
    }

    /// The state now. Hold it for no longer than it takes to clone or look up.
    pub(crate) fn machine(&self) -> RwLockReadGuard<'_, Machine> {
        self.machine.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn machine_mut(&self) -> RwLockWriteGuard<'_, Machine> {
        self.machine.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes its receiver after every change of an object of a kind.
    pub(crate) fn subscribe(&self, kind: &GroupKind) -> Listener {
        if let Some(waker) = self.wakers.read().unwrap_or_else(PoisonError::into_inner).get(kind) {
            return waker.listen();
        }
        let mut wakers = self.wakers.write().unwrap_or_else(PoisonError::into_inner);
        wakers.entry(kind.clone()).or_default().listen()
    }

    /// Waits until an entry is applied.
    pub(crate) async fn applied(&self, index: u64) {
        let reached = || self.machine().applied.is_some_and(|applied| applied.index >= index);
        if reached() {
            return;
        }
        let mut applied = self.applied.listen();
        while !reached() {
            applied.raised().await;
        }
    }

    fn wake(&self, kinds: &[GroupKind]) {
        if kinds.is_empty() {
            return;
        }
        let wakers = self.wakers.read().unwrap_or_else(PoisonError::into_inner);
        for waker in kinds.iter().filter_map(|kind| wakers.get(kind)) {
            waker.raise();
        }
    }

    fn wake_all(&self) {
        for waker in self.wakers.read().unwrap_or_else(PoisonError::into_inner).values() {
            waker.raise();
        }
    }

    /// Counts what was applied, and asks for a snapshot where the log since the last one has grown too long.
    fn count(&self, entries: u64, bytes: u64) {
        let entries = self.log_entries.fetch_add(entries, Ordering::Relaxed) + entries;
        let bytes = self.log_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let SnapshotTiming { log_bytes: max_bytes, log_entries: max_entries, .. } = &self.timing;
        if entries >= *max_entries || bytes >= (*max_bytes).max(self.last_snapshot_bytes.load(Ordering::Relaxed)) {
            // Counting begins anew here, since the snapshot will have all of it.
            self.log_entries.store(0, Ordering::Relaxed);
            self.log_bytes.store(0, Ordering::Relaxed);
            self.snapshot_due.notify_one();
        }
    }

    fn current(&self) -> Option<(SnapshotMeta, SnapshotFile)> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_current(&self, meta: SnapshotMeta, file: SnapshotFile, bytes: u64) {
        self.last_snapshot_bytes.store(bytes, Ordering::Relaxed);
        self.metrics.snapshot_bytes.set(bytes as i64);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some((meta, file));
    }

    /// Lets a snapshot that cannot be written be tried no more.
    pub(crate) fn begin_closing(&self) {
        self.closing.send_replace(true);
    }

    /// Waits for the snapshot that is being written, and lets none begin after it. Blocks.
    ///
    /// Raft does not wait for its snapshot when it stops, but whoever opens the directory next removes what is unfinished.
    pub(crate) fn close_files(&self) {
        *self.files_closed.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }

    /// Takes a snapshot that another server sent, whole and durable, among this server's. Blocks.
    pub(crate) fn adopt(&self, from: &Path) -> io::Result<RaftSnapshot> {
        let closed = self.files_closed.lock().unwrap_or_else(PoisonError::into_inner);
        if *closed {
            return Err(io::Error::other("the store is closed"));
        }
        let (meta, snapshot) = self.snapshots.adopt(from)?;
        if let Err(error) = self.snapshots.prune() {
            tracing::warn!(%error, "cannot remove old snapshots; they only take room");
        }
        Ok(Snapshot { meta, snapshot })
    }

    /// Writes a snapshot and makes it the current one.
    fn write_snapshot(&self, meta: SnapshotMeta, state: &State) -> io::Result<RaftSnapshot> {
        let closed = self.files_closed.lock().unwrap_or_else(PoisonError::into_inner);
        if *closed {
            return Err(io::Error::other("the store is closed"));
        }
        let (file, bytes) = self.snapshots.write(&meta, state)?;
        self.metrics.snapshots.inc();
        self.set_current(meta.clone(), file.clone(), bytes);
        if let Err(error) = self.snapshots.prune() {
            tracing::warn!(%error, "cannot remove old snapshots; they only take room");
        }
        tracing::info!(bytes, last = ?meta.last_log_id.map(|id| id.index), "wrote a snapshot");
        Ok(Snapshot { meta, snapshot: file })
    }
}

impl Machine {
    fn of(state: State, meta: &SnapshotMeta) -> Self {
        let loaded = state.revision();
        let membership = meta.last_membership.clone();
        Self { state, applied: meta.last_log_id, membership, kinds: HashMap::new(), loaded }
    }

    /// Who votes by what is applied.
    pub(crate) fn voters(&self) -> Vec<u64> {
        self.membership.membership().voter_ids().collect()
    }

    fn meta(&self) -> SnapshotMeta {
        if sabotage::has(Bug::SnapshotWithoutMembership) {
            return SnapshotMeta { last_log_id: self.applied, last_membership: StoredMembership::default() };
        }
        SnapshotMeta { last_log_id: self.applied, last_membership: self.membership.clone() }
    }

    /// Applies an entry and returns the answer; `touched` gathers the kinds whose objects changed.
    ///
    /// An entry that a server which knows feature levels up to `known` cannot apply is an error, and the state stays before it.
    fn apply(
        &mut self,
        log_id: LogId,
        payload: Payload,
        known: u32,
        touched: &mut Vec<GroupKind>,
    ) -> io::Result<Response> {
        if let Payload::Normal(proposal) = &payload
            && let Some(why) = proposal.command.unread_at(known)
        {
            return Err(io::Error::new(io::ErrorKind::Unsupported, format!("entry {}: {why}", log_id.index)));
        }
        self.applied = Some(log_id);
        Ok(match payload {
            Payload::Blank => Response::Nothing,
            Payload::Membership(membership) => {
                self.membership = StoredMembership::new(Some(log_id), membership);
                Response::Nothing
            }
            Payload::Normal(proposal) => {
                // Nothing was changed since the start.
                let twice = sabotage::has(Bug::AppliedTwiceAfterRestart) && self.kinds.is_empty();
                if twice {
                    apply(&mut self.state, &proposal.command);
                }
                let applied = if twice || sabotage::has(Bug::DuplicatesApplied) {
                    apply(&mut self.state, &proposal.under_another_id(log_id.index).command)
                } else {
                    apply(&mut self.state, &proposal.command)
                };
                for change in &applied.changes {
                    let kind = change.now.kind();
                    match self.kinds.get_mut(kind) {
                        Some(last) => *last = change.revision(),
                        None => drop(self.kinds.insert(kind.clone(), change.revision())),
                    }
                    if !touched.contains(kind) {
                        touched.push(kind.clone());
                    }
                }
                applied.response
            }
        })
    }
}

/// openraft's handle on the state machine.
pub(crate) struct StateMachine(pub(crate) Arc<Shared>);

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let machine = self.0.machine();
        Ok((machine.applied, machine.membership.clone()))
    }

    async fn apply<Strm>(&mut self, entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        let shared = &self.0;
        let mut batches = entries.ready_chunks(APPLY_AT_ONCE);
        while let Some(batch) = batches.next().await {
            let (mut touched, mut answers) = (Vec::new(), Vec::with_capacity(batch.len()));
            let (count, mut bytes) = (batch.len() as u64, 0);
            {
                let mut machine = shared.machine_mut();
                for item in batch {
                    let (entry, responder) = item?;
                    bytes += payload_size(&entry.payload);
                    let response = machine.apply(entry.log_id, entry.payload, shared.known, &mut touched).inspect_err(
                        |error| {
                            shared.health.fail(format!("the store cannot go on at {error}; reads go on meanwhile"));
                            shared.metrics.failed.set(1);
                        },
                    )?;
                    answers.extend(responder.map(|responder| (responder, response)));
                }
                shared.metrics.applied_index.set(machine.applied.map_or(0, |id| id.index) as i64);
                shared.metrics.revision.set(machine.state.revision().0 as i64);
                shared.metrics.objects.set(machine.state.len() as i64);
            }
            shared.wake(&touched);
            shared.applied.raise();
            for (responder, response) in answers {
                responder.send(response);
            }
            shared.count(count, bytes);
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let machine = self.0.machine();
        Builder { shared: Arc::clone(&self.0), meta: machine.meta(), state: machine.state.clone() }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotFile) -> Result<(), io::Error> {
        let shared = Arc::clone(&self.0);
        let meta = meta.clone();
        disk::call(&Arc::clone(&self.0.disk), move || {
            let (_, state, bytes) = snapshot.load()?;
            let state = if sabotage::has(Bug::SnapshotNotInstalled) { shared.machine().state.clone() } else { state };
            *shared.machine_mut() = Machine::of(state, &meta);
            shared.set_current(meta, snapshot, bytes);
            shared.wake_all();
            shared.applied.raise();
            Ok(())
        })
        .await
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<RaftSnapshot>, io::Error> {
        Ok(self.0.current().map(|(meta, snapshot)| Snapshot { meta, snapshot }))
    }
}

/// Makes a snapshot of the state as it was when this was made, while entries go on being applied.
pub(crate) struct Builder {
    shared: Arc<Shared>,
    meta: SnapshotMeta,
    state: State,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> Result<RaftSnapshot, io::Error> {
        let mut closing = self.shared.closing.subscribe();
        let mut pause = self.shared.timing.retry.start;
        loop {
            let (shared, meta, state) = (Arc::clone(&self.shared), self.meta.clone(), self.state.clone());
            let error = match disk::call(&self.shared.disk, move || shared.write_snapshot(meta, &state)).await {
                Err(error) if !*closing.borrow() => error,
                done => return done,
            };
            self.shared.metrics.snapshot_failures.inc();
            let seconds = pause.as_secs_f32();
            tracing::error!(
                %error, "cannot write a snapshot, so the log grows: make room or check the disk; it is tried again in {seconds} s"
            );
            // An error would make Raft stop for good, and the log still takes writes.
            let wait = closing.wait_for(|closing| *closing);
            if tokio::time::timeout(pause, wait).await.is_ok() {
                return Err(error);
            }
            pause = (pause * 2).min(self.shared.timing.retry.end);
        }
    }
}

#[cfg(test)]
mod tests {
    use hearth_state::Command;
    use hearth_types::Timestamp;

    use super::*;
    use crate::types::{Proposal, log_id};

    #[test]
    fn an_entry_that_cannot_be_applied_stops_the_machine_before_it() {
        let mut machine = Machine::of(State::default(), &SnapshotMeta::default());
        let id = |index| log_id(1, index);
        let mut apply = |index, command| {
            let payload = Payload::Normal(Proposal::new(command));
            let applied = machine.apply(id(index), payload, hearth_state::FEATURE_LEVEL, &mut Vec::new());
            (applied.map_err(|error| error.to_string()), machine.applied, machine.state.feature_level())
        };
        let level = hearth_state::FEATURE_LEVEL;
        let raise = |level| Command::RaiseFeatureLevel { level, now: Timestamp(0) };
        assert_eq!(apply(1, raise(level)), (Ok(Response::FeatureLevel(level)), Some(id(1)), level));
        for command in [Command::Unknown([1, 77].as_slice().into()), raise(level + 1)] {
            let (error, applied, now) = apply(2, command);
            assert!(error.expect_err("refused").contains("entry 2: "));
            assert_eq!((applied, now), (Some(id(1)), level));
        }
    }
}
