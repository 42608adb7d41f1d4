//! The durable log as openraft uses it.
//!
//! Entries since the last purge are kept in memory too (snapshots bound them), so that applying and replicating never
//! read the disk. One thread of its own writes: what came while it waited for a sync goes into the next one (group
//! commit).

mod files;
pub(crate) mod record;
mod vote;

use std::{
    collections::VecDeque,
    fmt::Debug,
    io,
    ops::{Bound, RangeBounds},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use openraft::{
    LogState, OptionalSend, RaftLogReader,
    storage::{IOFlushed, RaftLogStorage},
};
use tokio::sync::{mpsc, oneshot};

pub use self::files::{LogError, SEGMENT_BYTES};
use self::{files::LogFiles, vote::VoteFile};
use crate::{
    disk::Disk,
    health::Health,
    metrics::Metrics,
    sabotage::{self, Bug},
    types::{Entry, LogId, Payload, Proposal, TypeConfig, Vote, payload_size},
};

/// Appends that wait for the writing thread at most; behind it, Raft waits. Each is a batch of proposals, which the
/// store bounds by count and bytes.
const QUEUE: usize = 1_024;
/// Bytes that go to disk before one sync at most, so that no write waits for a very long one.
const MAX_BATCH_BYTES: usize = 8 << 20;

/// Bytes of entries that go to another server at once, but for one larger entry: some 100 ms of a link of 100 Mbit/s.
const MAX_SENT_BYTES: u64 = 1 << 20;

/// Work for the writing thread, done in order.
enum Job {
    Append { records: Vec<u8>, max_index: Option<u64>, done: IOFlushed<TypeConfig> },
    Truncate { records: Vec<u8>, done: oneshot::Sender<io::Result<()>> },
    Vote { vote: Vote, done: oneshot::Sender<io::Result<()>> },
    Purge { upto: LogId, done: oneshot::Sender<io::Result<()>> },
}

/// What the log holds, as far as memory goes.
#[derive(Default)]
struct Cache {
    entries: VecDeque<Entry>,
    purged: Option<LogId>,
    vote: Option<Vote>,
}

/// The log; clones are the same log.
#[derive(Clone)]
pub(crate) struct LogStore {
    cache: Arc<Mutex<Cache>>,
    jobs: mpsc::Sender<Job>,
}

/// What writes the log: ends once every [`LogStore`] is gone.
pub(crate) enum Writer {
    /// A thread, which waits for the disk.
    Thread(thread::JoinHandle<()>),
    /// A task, where the disk is called in place.
    Task(tokio::task::JoinHandle<()>),
}

impl Writer {
    /// Waits until everything is written and the files are closed.
    pub(crate) async fn join(self) {
        match self {
            Self::Thread(thread) => drop(tokio::task::spawn_blocking(|| thread.join()).await),
            Self::Task(task) => drop(task.await),
        }
    }
}

impl LogStore {
    /// Opens or makes the log of a directory. `used`: whether something in it, other than log and vote, says that there was one.
    pub(crate) fn open(
        disk: &Arc<dyn Disk>,
        dir: &Path,
        segment_bytes: usize,
        used: bool,
        health: &Health,
        metrics: &Metrics,
    ) -> Result<(Self, Writer), LogError> {
        let (vote_file, vote) = VoteFile::open(Arc::clone(disk), dir)?;
        let (files, loaded) = LogFiles::open(Arc::clone(disk), dir, segment_bytes, used || vote.is_some())?;
        if loaded.cut > 0 {
            tracing::warn!(bytes = loaded.cut, "cut what a crash had left unfinished at the end of the log");
        }
        let (jobs, receiver) = mpsc::channel(QUEUE);
        let engine = Engine { files, vote_file, health: health.clone(), metrics: metrics.clone() };
        let writer = if disk.in_place() {
            Writer::Task(tokio::spawn(engine.run_in_place(Arc::clone(disk), receiver)))
        } else {
            let thread = thread::Builder::new().name("hearth-log".into()).spawn(move || engine.run(receiver));
            let failed = |source| LogError::Io { what: "start the thread for", path: dir.into(), source };
            Writer::Thread(thread.map_err(failed)?)
        };
        let cache = Cache { entries: loaded.entries, purged: loaded.purged, vote };
        Ok((Self { cache: Arc::new(Mutex::new(cache)), jobs }, writer))
    }

    /// The last log id that was let go.
    pub(crate) fn purged(&self) -> Option<LogId> {
        self.cache().purged
    }

    /// Who votes by the last membership that is in the log.
    pub(crate) fn voters(&self) -> Option<Vec<u64>> {
        let cache = self.cache();
        let membership = cache.entries.iter().rev().find_map(|entry| match &entry.payload {
            Payload::Membership(membership) => Some(membership),
            _ => None,
        });
        membership.map(|membership| membership.voter_ids().collect())
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the thread do something and waits until it is durable.
    async fn durably(&self, job: impl FnOnce(oneshot::Sender<io::Result<()>>) -> Job) -> io::Result<()> {
        let (done, finished) = oneshot::channel();
        self.jobs.send(job(done)).await.map_err(|_| stopped())?;
        finished.await.map_err(|_| stopped())?
    }
}

fn stopped() -> io::Error {
    io::Error::other("the log was closed")
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let cache = self.cache();
        let Some(first) = cache.entries.front().map(|entry| entry.log_id.index) else {
            return Ok(Vec::new());
        };
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(before) => before + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(last) => last + 1,
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        let place = |index: u64| (index.saturating_sub(first) as usize).min(cache.entries.len());
        let (start, end) = (place(start), place(end));
        Ok(cache.entries.range(start..end.max(start)).cloned().collect())
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        let mut entries = self.try_get_log_entries(start..end).await?;
        let mut bytes = 0;
        let fits = entries.iter().take_while(|entry| {
            bytes += payload_size(&entry.payload);
            bytes <= MAX_SENT_BYTES
        });
        // One entry always goes, however large.
        let count = fits.count().max(1);
        entries.truncate(count);
        Ok(entries)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.cache().vote)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let cache = self.cache();
        let last_log_id = cache.entries.back().map(|entry| entry.log_id).or(cache.purged);
        Ok(LogState { last_purged_log_id: cache.purged, last_log_id })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let vote = *vote;
        if !sabotage::has(Bug::VoteNotSaved) {
            self.durably(|done| Job::Vote { vote, done }).await?;
        }
        self.cache().vote = Some(vote);
        Ok(())
    }

    /// How much is known to be committed although nobody wrote that down: up to the last membership but one, since a leader begins a change
    /// only once the one before is. openraft takes that membership for committed as well, and when a snapshot replaces a tail of the log that others
    /// did not accept, it cuts the log behind what is committed.
    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        let cache = self.cache();
        let memberships = cache.entries.iter().rev().filter(|entry| matches!(entry.payload, Payload::Membership(_)));
        Ok(memberships.map(|entry| entry.log_id).nth(1))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut records = Vec::new();
        let mut max_index = None;
        {
            let mut cache = self.cache();
            for mut entry in entries {
                record::push_entry(&mut records, &entry);
                if let Payload::Normal(Proposal { encoded, .. }) = &mut entry.payload {
                    // The disk has the bytes now; memory keeps the command alone.
                    *encoded = bytes::Bytes::new();
                }
                max_index = max_index.max(Some(entry.log_id.index));
                cache.entries.push_back(entry);
            }
        }
        let job = Job::Append { records, max_index, done: callback };
        self.jobs.send(job).await.map_err(|_| stopped())
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        let mut records = Vec::new();
        record::push_truncate(&mut records, last_log_id.as_ref());
        if !sabotage::has(Bug::TruncationNotWritten) {
            self.durably(|done| Job::Truncate { records, done }).await?;
        }
        let mut cache = self.cache();
        let keep = last_log_id.map(|id| id.index);
        while cache.entries.back().is_some_and(|entry| Some(entry.log_id.index) > keep) {
            cache.entries.pop_back();
        }
        Ok(())
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        self.durably(|done| Job::Purge { upto: log_id, done }).await?;
        let mut cache = self.cache();
        cache.purged = cache.purged.max(Some(log_id));
        while cache.entries.front().is_some_and(|entry| entry.log_id.index <= log_id.index) {
            cache.entries.pop_front();
        }
        // Give back what a burst took.
        if cache.entries.capacity() > 4 * cache.entries.len().max(1_024) {
            cache.entries.shrink_to_fit();
        }
        Ok(())
    }
}

/// What the writing thread owns.
struct Engine {
    files: LogFiles,
    vote_file: VoteFile,
    health: Health,
    metrics: Metrics,
}

/// Appends that one sync makes durable.
struct Batch {
    records: Vec<u8>,
    max_index: Option<u64>,
    waiting: Vec<IOFlushed<TypeConfig>>,
}

impl Batch {
    fn acknowledge(&mut self, result: &io::Result<()>) {
        for done in self.waiting.drain(..) {
            done.io_completed(result.as_ref().copied().map_err(same_error));
        }
    }

    /// Adds the appends that wait behind it. Returns the first job that is none.
    fn gather(&mut self, jobs: &mut mpsc::Receiver<Job>) -> Option<Job> {
        while self.records.len() < MAX_BATCH_BYTES {
            match jobs.try_recv() {
                Ok(Job::Append { records, max_index, done }) => {
                    self.records.extend_from_slice(&records);
                    self.max_index = self.max_index.max(max_index);
                    self.waiting.push(done);
                }
                Ok(other) => return Some(other),
                Err(_) => break,
            }
        }
        None
    }
}

impl Engine {
    fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        let mut next = None;
        while let Some(job) = next.take().or_else(|| jobs.blocking_recv()) {
            let Some(mut batch) = self.start(job) else { continue };
            next = batch.gather(&mut jobs);
            let written = self.write(&mut batch);
            self.finish(batch, written);
        }
    }

    /// The same where the disk is called in place, with its pause between a write and its sync.
    async fn run_in_place(mut self, disk: Arc<dyn Disk>, mut jobs: mpsc::Receiver<Job>) {
        let mut next = None;
        loop {
            let job = match next.take() {
                Some(job) => job,
                None => match jobs.recv().await {
                    Some(job) => job,
                    None => return,
                },
            };
            let Some(mut batch) = self.start(job) else { continue };
            next = batch.gather(&mut jobs);
            let written = self.write(&mut batch);
            if sabotage::has(Bug::AcknowledgedBeforeSync) {
                batch.acknowledge(&written);
            }
            tokio::time::sleep(disk.pause()).await;
            self.finish(batch, written);
        }
    }

    /// Does a job, or returns it where it is an append.
    fn start(&mut self, job: Job) -> Option<Batch> {
        if let Some(why) = self.health.failure() {
            refuse(job, &why);
            return None;
        }
        match job {
            Job::Append { records, max_index, done } => {
                return Some(Batch { records, max_index, waiting: vec![done] });
            }
            Job::Truncate { mut records, done } => {
                let result = self.files.append(&mut records, None).and_then(|()| self.files.sync());
                let _ = done.send(self.checked("cutting the log", result));
            }
            Job::Vote { vote, done } => {
                let result = self.vote_file.save(&vote);
                let _ = done.send(self.checked("saving the vote", result));
            }
            Job::Purge { upto, done } => {
                let result = self.files.purge(upto);
                let _ = done.send(self.checked("purging the log", result));
            }
        }
        None
    }

    fn write(&mut self, batch: &mut Batch) -> io::Result<()> {
        let written = self.files.append(&mut batch.records, batch.max_index);
        self.checked("writing", written)
    }

    /// Makes what was written durable with one sync, and says so.
    fn finish(&mut self, mut batch: Batch, written: io::Result<()>) {
        let result = written.and_then(|()| {
            let timer = self.metrics.sync_seconds.start_timer();
            let synced = self.files.sync();
            timer.observe_duration();
            self.checked("fdatasync", if sabotage::has(Bug::FailedSyncIgnored) { Ok(()) } else { synced })
        });
        self.metrics.appended_bytes.inc_by(batch.records.len() as u64);
        self.metrics.batch_appends.observe(batch.waiting.len() as f64);
        batch.acknowledge(&result);
    }

    /// Enters the failed state where the disk failed.
    fn checked(&self, what: &str, result: io::Result<()>) -> io::Result<()> {
        if let Err(error) = &result {
            self.health.fail_io(what, self.files.dir(), error);
            self.metrics.failed.set(1);
        }
        result
    }
}

fn same_error(error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), error.to_string())
}

fn refuse(job: Job, why: &str) {
    let error = io::Error::other(why.to_owned());
    match job {
        Job::Append { done, .. } => done.io_completed(Err(error)),
        Job::Truncate { done, .. } | Job::Vote { done, .. } | Job::Purge { done, .. } => {
            let _ = done.send(Err(error));
        }
    }
}
