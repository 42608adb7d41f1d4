//! The log on disk: numbered segments, of which the last one is written. Synchronous; one owner.

use std::{
    collections::VecDeque,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    record::{self, Damage, Record, Unread},
    window::{Place, Window},
};
use crate::{
    disk::{self, Disk, DiskFile, TEMPORARY},
    sealed,
    types::LogId,
};

/// A segment is closed once it has so many bytes: small enough that what a snapshot made useless is soon dropped and
/// that rewriting the last one at a start is quick, large enough that closing is rare.
pub const SEGMENT_BYTES: usize = 16 << 20;

/// Why the log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The disk failed.
    #[error("cannot {what} {path}", path = path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file is damaged in a place that may have been acknowledged.
    #[error(
        "the log is damaged: {path}, at byte {offset}: {why}. Nothing was changed. Restore the region from a backup, or, where other \
         servers have its data, remove this server's raft folder and join it anew; whoever accepts to lose all writes from \
         there on cuts the file with `truncate -s {offset}` and removes the segments after it",
        path = path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The byte.
        offset: usize,
        /// What is wrong.
        why: String,
    },
    /// A file is missing.
    #[error(
        "the log is incomplete: {path} is missing, and what was written there with it. Nothing was changed. Restore the file, or restore \
         the region from a backup, or, where other servers have its data, remove this server's raft folder and join it anew",
        path = path.display()
    )]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// An entry is intact, and this program cannot read it.
    #[error(
        "the log has an entry that this program cannot read: {path}, at byte {offset}: {why}. Nothing was changed. Run the version of \
         Hearth that wrote it, or a newer one",
        path = path.display()
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The byte.
        offset: usize,
        /// What it is.
        why: String,
    },
}

/// What was found in the log.
pub(super) struct Loaded {
    /// The entries.
    pub(super) window: Window,
    /// Bytes that a power cut had left, and that were cut.
    pub(super) cut: usize,
    /// The index of the entry that must come next; `None` before the first, since the segments before it may have been
    /// dropped by a purge that a later record tells of.
    next: Option<u64>,
}

struct Segment {
    number: u64,
    /// The highest index in it, if it has an entry.
    max_index: Option<u64>,
}

/// The files. After an error of a write or sync, nothing more may be asked of it: drop it and open it anew.
pub(super) struct LogFiles {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    segments: VecDeque<Segment>,
    file: Box<dyn DiskFile>,
    /// Bytes in the last segment, and how many of them are durable.
    length: usize,
    synced: usize,
    purged: Option<LogId>,
    segment_bytes: usize,
    newest: Newest,
}

/// The name of the file that says which segment is the newest.
const NEWEST: &str = "log-newest";
const NEWEST_MAGIC: [u8; 8] = *b"HEARTHNS";

/// Which segment is the newest, in a file beside them: that the newest ones are missing can be told by nothing else. Written once
/// a segment, after the segment and before anything is in it.
struct Newest {
    disk: Arc<dyn Disk>,
    path: PathBuf,
}

impl Newest {
    fn read(&self) -> Result<Option<u64>, LogError> {
        let damaged = |why: String| LogError::Damaged { path: self.path.clone(), offset: 0, why };
        let bytes = match self.disk.read(&self.path) {
            Ok(bytes) => bytes,
            // A store of an older version: it has none.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error("read", &self.path)(error)),
        };
        let content = sealed::open(NEWEST_MAGIC, &bytes).map_err(|error| damaged(error.to_string()))?;
        let number = content.try_into().map_err(|_| damaged("it holds no number".into()))?;
        Ok(Some(u64::from_le_bytes(number)))
    }

    fn save(&self, number: u64) -> io::Result<()> {
        disk::replace(&*self.disk, &self.path, &sealed::seal(NEWEST_MAGIC, &number.to_le_bytes()))
    }
}

impl LogFiles {
    /// Opens or makes the log of a directory.
    ///
    /// The last segment is rewritten: a process that could not sync it may have left pages in memory that read well and
    /// are not on disk.
    ///
    /// `window`: what gets the entries. `used`: whether something else in the directory says that there was a log.
    pub(super) fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        segment_bytes: usize,
        window: Window,
        used: bool,
    ) -> Result<(Self, Loaded), LogError> {
        let mut numbers = Vec::new();
        for name in disk.list(dir).map_err(io_error("list", dir))? {
            if name.starts_with("log-") && name.ends_with(TEMPORARY) {
                let path = dir.join(&name);
                disk.remove(&path).map_err(io_error("remove", &path))?;
            }
            numbers.extend(number_of(&name));
        }
        numbers.sort_unstable();
        let mut loaded = Loaded { window, cut: 0, next: None };
        let mut segments = VecDeque::new();
        let mut valid = Vec::new();
        for (index, number) in numbers.iter().copied().enumerate() {
            if number != numbers[0] + index as u64 {
                return Err(LogError::Missing { path: dir.join(name_of(numbers[0] + index as u64)) });
            }
            let last = index + 1 == numbers.len();
            let path = dir.join(name_of(number));
            let mut bytes = disk.read(&path).map_err(io_error("read", &path))?;
            if last && record::is_unfinished_head(&bytes) {
                disk.remove(&path).map_err(io_error("remove", &path))?;
                break;
            }
            let (max_index, end) = loaded.add(&bytes, number, last).map_err(|damage| damage.of(&path))?;
            loaded.cut += bytes.len() - end;
            bytes.truncate(end);
            valid = bytes;
            segments.push_back(Segment { number, max_index });
        }
        let newest = Newest { disk: Arc::clone(&disk), path: dir.join(NEWEST) };
        let known = newest.read()?;
        let found = segments.back().map_or(0, |last: &Segment| last.number);
        // A log that was used has a segment. Before the first, there is no word of one, and nobody voted.
        let least = known.unwrap_or(0).max(u64::from(used));
        if found < least {
            let missing = if found == 0 { least } else { found + 1 };
            return Err(LogError::Missing { path: dir.join(name_of(missing)) });
        }
        loaded.settle(dir)?;
        let number = found.max(1);
        if segments.is_empty() {
            segments.push_back(Segment { number, max_index: None });
            valid = record::head(number).to_vec();
        }
        let path = dir.join(name_of(number));
        let file = disk::write_whole(&*disk, &path, |file| file.append(&valid)).map_err(io_error("write", &path))?;
        if known != Some(number) {
            newest.save(number).map_err(io_error("write", &newest.path))?;
        }
        let (dir, purged) = (dir.to_owned(), loaded.window.purged());
        let length = valid.len();
        Ok((Self { disk, dir, segments, file, length, synced: length, purged, segment_bytes, newest }, loaded))
    }

    /// Appends records as [`record`] made them, the highest index among them being `max_index`, and returns where each is. Not
    /// durable until [`LogFiles::sync`].
    pub(super) fn append<'a>(
        &mut self,
        records: &'a mut [u8],
        max_index: Option<u64>,
    ) -> io::Result<impl Iterator<Item = Place> + use<'a>> {
        if self.length >= self.segment_bytes && self.length == self.synced {
            self.next_segment()?;
        }
        record::seal(records, self.synced);
        self.file.append(records)?;
        let start = self.length;
        self.length += records.len();
        let mut number = 0;
        if let Some(last) = self.segments.back_mut() {
            last.max_index = last.max_index.max(max_index);
            number = last.number;
        }
        Ok(record::lengths(records).scan(start, move |at, length| {
            let offset = *at;
            *at += length;
            Some(Place { segment: number, offset: offset as u32, length: length as u32 })
        }))
    }

    /// Makes everything appended durable.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        self.file.sync()?;
        self.synced = self.length;
        Ok(())
    }

    /// Lets entries up to `upto` go: writes so down, then drops the segments that have nothing else.
    pub(super) fn purge(&mut self, upto: LogId) -> io::Result<()> {
        let mut records = Vec::new();
        record::push_purge(&mut records, &upto);
        self.append(&mut records, None).map(drop)?;
        self.sync()?;
        self.purged = Some(upto);
        let mut dropped = false;
        while self.segments.len() > 1 && self.segments[0].max_index.is_none_or(|max| max <= upto.index) {
            let path = self.dir.join(name_of(self.segments[0].number));
            self.disk.remove(&path)?;
            self.segments.pop_front();
            dropped = true;
        }
        if dropped { self.disk.sync_dir(&self.dir) } else { Ok(()) }
    }

    /// The directory.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    fn next_segment(&mut self) -> io::Result<()> {
        let number = self.segments.back().map_or(1, |last| last.number + 1);
        let mut bytes = record::head(number).to_vec();
        let mut file = self.disk.create(&self.dir.join(name_of(number)))?;
        if let Some(purged) = &self.purged {
            // Each segment says by itself what the ones before it may lack.
            let mut records = Vec::new();
            record::push_purge(&mut records, purged);
            record::seal(&mut records, 0);
            bytes.extend_from_slice(&records);
        }
        file.append(&bytes)?;
        file.sync()?;
        self.disk.sync_dir(&self.dir)?;
        self.newest.save(number)?;
        self.segments.push_back(Segment { number, max_index: None });
        (self.file, self.length, self.synced) = (file, bytes.len(), bytes.len());
        Ok(())
    }
}

impl Loaded {
    /// Adds the records of a segment; returns its highest index and where its intact part ends.
    fn add(&mut self, bytes: &[u8], number: u64, last: bool) -> Result<(Option<u64>, usize), Damage> {
        record::check_head(bytes, number)?;
        let scan = record::scan(bytes, last)?;
        let mut max_index = None;
        for at in scan.payloads {
            let offset = at.start - record::RECORD_HEAD;
            let damage = |why: String| Damage { offset, why, unreadable: false };
            let read = record::read_payload(&bytes[at.clone()]);
            match read.map_err(|Unread { why, unreadable }| Damage { offset, why, unreadable })? {
                Record::Entry(entry) => {
                    max_index = max_index.max(Some(entry.log_id.index));
                    let index = entry.log_id.index;
                    if let Some(next) = self.next.filter(|next| *next != index) {
                        return Err(damage(format!("entry {index} is where entry {next} must be")));
                    }
                    self.next = Some(index + 1);
                    self.window.push(entry);
                    let place = Place { segment: number, offset: offset as u32, length: (at.end - offset) as u32 };
                    self.window.written(index, std::iter::once(place));
                }
                Record::TruncateAfter(after) => {
                    self.window.truncate_after(after);
                    self.next = self.next.map(|_| after.map_or(0, |id| id.index + 1));
                }
                Record::Purge(upto) => self.purge(upto),
            }
        }
        Ok((max_index, scan.valid))
    }

    fn purge(&mut self, upto: LogId) {
        self.window.purge(upto);
        self.next = self.next.map(|next| next.max(upto.index + 1));
    }

    /// Checks that the entries begin where they must.
    fn settle(&self, dir: &Path) -> Result<(), LogError> {
        let first = self.window.purged().map_or(0, |purged| purged.index + 1);
        match self.window.first() {
            Some(found) if found != first => Err(LogError::Damaged {
                path: dir.to_owned(),
                offset: 0,
                why: format!("the first entry has index {found}, not {first}"),
            }),
            _ => Ok(()),
        }
    }
}

impl Damage {
    fn of(self, path: &Path) -> LogError {
        let (path, Self { offset, why, unreadable }) = (path.to_owned(), self);
        if unreadable { LogError::Unreadable { path, offset, why } } else { LogError::Damaged { path, offset, why } }
    }
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LogError {
    let path = path.to_owned();
    move |source| LogError::Io { what, path, source }
}

pub(super) fn name_of(number: u64) -> String {
    format!("log-{number:020}.seg")
}

fn number_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("log-")?.strip_suffix(".seg")?;
    (digits.len() == 20).then(|| digits.parse().ok())?
}
