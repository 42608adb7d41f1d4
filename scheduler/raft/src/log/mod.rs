//! The durable log as openraft uses it.
//!
//! The newest entries are kept in memory too, so that applying them and replicating them to servers that keep up never reads the
//! disk; older ones are read from their segments. One thread of its own writes: what came while it waited for a sync goes into the
//! next one (group commit).

mod files;
pub(crate) mod record;
pub(crate) mod vote;
mod window;

use std::{
    fmt::Debug,
    io,
    ops::{Bound, Range, RangeBounds},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use futures_util::{Stream, StreamExt as _};
use openraft::{
    LogState, OptionalSend, RaftLogReader,
    storage::{IOFlushed, RaftLogStorage},
};
use tokio::sync::{mpsc, oneshot};

use self::{
    files::LogFiles,
    record::Unread,
    vote::VoteFile,
    window::{Found, Stretch, Window},
};
pub use self::{
    files::{LogError, SEGMENT_BYTES},
    window::TAIL_BYTES,
};
use crate::{
    disk::{self, Disk},
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

/// Bytes of entries that are read from the disk at once, but for one larger entry.
const MAX_READ_BYTES: u64 = 1 << 20;

/// Work for the writing thread, done in order.
enum Job {
    Append { records: Vec<u8>, indexes: Range<u64>, done: IOFlushed<TypeConfig> },
    Truncate { records: Vec<u8>, done: oneshot::Sender<io::Result<()>> },
    Vote { vote: Vote, done: oneshot::Sender<io::Result<()>> },
    Purge { upto: LogId, done: oneshot::Sender<io::Result<()>> },
}

/// What the log holds, as far as memory goes.
struct Cache {
    entries: Window,
    vote: Option<Vote>,
}

type SharedCache = Arc<Mutex<Cache>>;

fn locked(cache: &SharedCache) -> MutexGuard<'_, Cache> {
    cache.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How much of the log is where.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogSizes {
    /// See [`SEGMENT_BYTES`].
    pub(crate) segment_bytes: usize,
    /// See [`TAIL_BYTES`].
    pub(crate) tail_bytes: u64,
}

impl Default for LogSizes {
    fn default() -> Self {
        Self { segment_bytes: SEGMENT_BYTES, tail_bytes: TAIL_BYTES }
    }
}

/// The log; clones are the same log.
#[derive(Clone)]
pub(crate) struct LogStore {
    cache: SharedCache,
    jobs: mpsc::Sender<Job>,
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    health: Health,
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
        sizes: LogSizes,
        used: bool,
        health: &Health,
        metrics: &Metrics,
    ) -> Result<(Self, Writer), LogError> {
        let (vote_file, vote) = VoteFile::open(Arc::clone(disk), dir)?;
        let window = Window::new(sizes.tail_bytes);
        let used = used || vote.is_some();
        let (files, loaded) = LogFiles::open(Arc::clone(disk), dir, sizes.segment_bytes, window, used)?;
        if loaded.cut > 0 {
            tracing::warn!(bytes = loaded.cut, "cut what a crash had left unfinished at the end of the log");
        }
        let (jobs, receiver) = mpsc::channel(QUEUE);
        let cache = Arc::new(Mutex::new(Cache { entries: loaded.window, vote }));
        let (health, metrics) = (health.clone(), metrics.clone());
        let engine = Engine { files, vote_file, cache: Arc::clone(&cache), health: health.clone(), metrics };
        let writer = if disk.in_place() {
            Writer::Task(tokio::spawn(engine.run_in_place(Arc::clone(disk), receiver)))
        } else {
            let thread = thread::Builder::new().name("hearth-log".into()).spawn(move || engine.run(receiver));
            let failed = |source| LogError::Io { what: "start the thread for", path: dir.into(), source };
            Writer::Thread(thread.map_err(failed)?)
        };
        Ok((Self { cache, jobs, disk: Arc::clone(disk), dir: dir.to_owned(), health }, writer))
    }

    /// The last log id that was let go.
    pub(crate) fn purged(&self) -> Option<LogId> {
        self.cache().entries.purged()
    }

    /// Who votes by the last membership that is in the log.
    pub(crate) fn voters(&self) -> Option<Vec<u64>> {
        let cache = self.cache();
        cache.entries.memberships().next().map(|(_, membership)| membership.voter_ids().collect())
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        locked(&self.cache)
    }

    /// The first entries of a range, or none if there are none.
    async fn first_of(&self, range: Range<u64>) -> io::Result<Vec<Entry>> {
        loop {
            let stretch = match self.cache().entries.find(range.clone(), MAX_READ_BYTES) {
                Found::Nothing => return Ok(Vec::new()),
                Found::Entries(entries) => return Ok(entries),
                Found::OnDisk(stretch) => stretch,
            };
            let first = stretch.first;
            match self.read(stretch).await {
                Ok(entries) => return Ok(entries),
                // They were let go meanwhile, and their segment with them.
                Err(_) if self.cache().entries.first() > Some(first) => {}
                Err(error) => {
                    self.health.fail_io("reading the log", &self.dir, &error);
                    return Err(error);
                }
            }
        }
    }

    async fn read(&self, stretch: Stretch) -> io::Result<Vec<Entry>> {
        let path = self.dir.join(files::name_of(stretch.segment));
        let disk = Arc::clone(&self.disk);
        let read = move || {
            let Stretch { bytes: Range { start, end }, first, records, .. } = stretch;
            let bytes = disk.read_part(&path, start.into(), (end - start) as usize)?;
            let entry = |(index, at): (u64, Range<usize>)| {
                let offset = start as usize + at.start;
                let record = bytes.get(at).ok_or_else(|| Unread { why: "it is cut off".into(), unreadable: false });
                let entry = record.and_then(record::read_entry).and_then(|entry| match entry.log_id.index {
                    found if found == index => Ok(entry),
                    found => Err(Unread { why: format!("it is entry {found}"), unreadable: false }),
                });
                entry.map_err(|Unread { why, .. }| {
                    let path = path.display();
                    let why = format!("entry {index} cannot be read from {path}, at byte {offset}: {why}");
                    io::Error::new(io::ErrorKind::InvalidData, why)
                })
            };
            (first..).zip(records).map(entry).collect()
        };
        disk::call(&self.disk, read).await
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
        let mut range = bounds(&range);
        let mut entries = self.first_of(range.clone()).await?;
        while let Some(last) = entries.last() {
            range.start = last.log_id.index + 1;
            let more = self.first_of(range.clone()).await?;
            match more.first() {
                None => break,
                // Those before were let go meanwhile.
                Some(first) if first.log_id.index > range.start => entries = more,
                Some(_) => entries.extend(more),
            }
        }
        Ok(entries)
    }

    /// Never has more than a part of a long log in memory.
    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = Result<Entry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let log = self.clone();
        let parts = futures_util::stream::try_unfold(bounds(&range), move |mut range| {
            let log = log.clone();
            async move {
                let entries = log.first_of(range.clone()).await?;
                let Some(last) = entries.last() else { return Ok::<_, io::Error>(None) };
                range.start = last.log_id.index + 1;
                Ok(Some((entries, range)))
            }
        });
        Box::pin(parts.flat_map(|part| {
            let (entries, error) = part.map_or_else(|error| (Vec::new(), Some(Err(error))), |part| (part, None));
            futures_util::stream::iter(entries.into_iter().map(Ok).chain(error))
        }))
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        let mut entries = self.first_of(start..end).await?;
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
        Ok(LogState { last_purged_log_id: cache.entries.purged(), last_log_id: cache.entries.last() })
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
        Ok(cache.entries.memberships().map(|(id, _)| *id).nth(1))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut records = Vec::new();
        let mut indexes = 0..0;
        {
            let mut cache = self.cache();
            for mut entry in entries {
                record::push_entry(&mut records, &entry);
                if let Payload::Normal(Proposal { encoded, .. }) = &mut entry.payload {
                    // The disk has the bytes now; memory keeps the command alone.
                    *encoded = bytes::Bytes::new();
                }
                follow(&mut indexes, entry.log_id.index..entry.log_id.index + 1);
                cache.entries.push(entry);
            }
        }
        let job = Job::Append { records, indexes, done: callback };
        self.jobs.send(job).await.map_err(|_| stopped())
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        let mut records = Vec::new();
        record::push_truncate(&mut records, last_log_id.as_ref());
        if !sabotage::has(Bug::TruncationNotWritten) {
            self.durably(|done| Job::Truncate { records, done }).await?;
        }
        self.cache().entries.truncate_after(last_log_id);
        Ok(())
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        self.durably(|done| Job::Purge { upto: log_id, done }).await?;
        self.cache().entries.purge(log_id);
        Ok(())
    }
}

/// Adds indexes to those that they follow; either may be none.
fn follow(indexes: &mut Range<u64>, more: Range<u64>) {
    if indexes.is_empty() {
        *indexes = more;
    } else if !more.is_empty() {
        indexes.end = more.end;
    }
}

/// A range as its first index and the one behind its last.
fn bounds(range: &impl RangeBounds<u64>) -> Range<u64> {
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
    start..end
}

/// What the writing thread owns.
struct Engine {
    files: LogFiles,
    vote_file: VoteFile,
    cache: SharedCache,
    health: Health,
    metrics: Metrics,
}

/// Appends that one sync makes durable.
struct Batch {
    records: Vec<u8>,
    /// Of the entries, which follow one another.
    indexes: Range<u64>,
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
                Ok(Job::Append { records, indexes, done }) => {
                    self.records.extend_from_slice(&records);
                    follow(&mut self.indexes, indexes);
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
            Job::Append { records, indexes, done } => {
                return Some(Batch { records, indexes, waiting: vec![done] });
            }
            Job::Truncate { mut records, done } => {
                let result = self.files.append(&mut records, None).map(drop).and_then(|()| self.files.sync());
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
        let max_index = batch.indexes.clone().last();
        let written = self.files.append(&mut batch.records, max_index);
        let written = written.map(|places| locked(&self.cache).entries.written(batch.indexes.start, places));
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{disk::MemoryDisk, types::log_id};

    const DIR: &str = "/raft";

    fn open(disk: &MemoryDisk) -> (LogStore, Writer, Health) {
        let (disk, health): (Arc<dyn Disk>, _) = (Arc::new(disk.clone()), Health::new());
        disk.create_dir_all(DIR.as_ref()).expect("made");
        let metrics = Metrics::register(&prometheus::Registry::new()).expect("registered");
        let sizes = LogSizes { segment_bytes: 1_000, tail_bytes: 0 };
        let (log, writer) = LogStore::open(&disk, DIR.as_ref(), sizes, false, &health, &metrics).expect("opens");
        (log, writer, health)
    }

    async fn append(log: &mut LogStore, indexes: Range<u64>, term: u64) {
        for index in indexes {
            let entry = Entry { log_id: log_id(term, index), payload: Payload::Blank };
            log.append([entry], IOFlushed::noop()).await.expect("appended");
        }
        // The vote is written after what came before it.
        log.save_vote(&Vote::new(term, 1)).await.expect("saved");
    }

    async fn ids(log: &mut LogStore, range: impl RangeBounds<u64> + Clone + Debug + Send) -> Vec<LogId> {
        let read = log.try_get_log_entries(range.clone()).await.expect("read");
        let streamed: Vec<_> = log.entries_stream(range).await.map(|entry| entry.expect("read").log_id).collect().await;
        let read: Vec<_> = read.into_iter().map(|entry| entry.log_id).collect();
        assert_eq!(read, streamed);
        read
    }

    #[tokio::test]
    async fn entries_that_are_on_disk_alone_are_read_from_it_through_truncation_purge_and_restart() {
        let disk = MemoryDisk::new();
        let (mut log, writer, _) = open(&disk);
        append(&mut log, 0..100, 1).await;
        log.truncate_after(Some(log_id(1, 59))).await.expect("cut");
        append(&mut log, 60..90, 2).await;
        log.purge(log_id(1, 39)).await.expect("purged");
        let expected: Vec<_> = (40..90).map(|index| log_id(if index < 60 { 1 } else { 2 }, index)).collect();
        assert!(matches!(log.cache().entries.find(0..90, 1), Found::OnDisk(_)), "not in memory");
        assert_eq!(ids(&mut log, ..).await, expected);
        assert_eq!(ids(&mut log, 55..=64).await, expected[15..25]);
        drop(log);
        writer.join().await;
        let (mut log, ..) = open(&disk);
        assert_eq!(ids(&mut log, ..).await, expected);
        let state = log.get_log_state().await.expect("known");
        assert_eq!((state.last_purged_log_id, state.last_log_id), (Some(log_id(1, 39)), Some(log_id(2, 89))));
    }

    #[tokio::test]
    async fn an_entry_that_reads_back_otherwise_than_it_was_written_is_refused_and_fails_the_store() {
        let disk = MemoryDisk::new();
        let (mut log, _writer, health) = open(&disk);
        append(&mut log, 0..10, 1).await;
        let path = Path::new(DIR).join(files::name_of(1));
        let mut bytes = disk.read(&path).expect("read");
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        disk.create(&path).and_then(|mut file| file.append(&bytes)).expect("spoiled");
        let error = log.try_get_log_entries(8..10).await.expect_err("spoiled").to_string();
        assert!(error.contains("entry 9") && error.contains("log-00000000000000000001.seg"), "{error}");
        let why = tokio::time::timeout(Duration::from_secs(5), health.failed()).await.expect("noticed");
        assert!(why.contains("entry 9"), "{why}");
    }
}
