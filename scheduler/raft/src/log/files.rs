//! The log on disk: numbered segments, of which the last one is written. Synchronous; one owner.

use std::{
    collections::VecDeque,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::record::{self, Damage, Record};
use crate::{
    disk::{Disk, DiskFile, TEMPORARY, temporary_of},
    types::{Entry, LogId},
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
    #[error("the log is incomplete: {path} is missing; restore it, or restore the region from a backup", path = path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
}

/// What was found in the log.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    /// Entries up to here were let go.
    pub(crate) purged: Option<LogId>,
    /// The entries that are there, without a gap.
    pub(crate) entries: VecDeque<Entry>,
    /// Bytes that a power cut had left, and that were cut.
    pub(crate) cut: usize,
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
pub(crate) struct LogFiles {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    segments: VecDeque<Segment>,
    file: Box<dyn DiskFile>,
    /// Bytes in the last segment, and how many of them are durable.
    length: usize,
    synced: usize,
    purged: Option<LogId>,
    segment_bytes: usize,
}

impl LogFiles {
    /// Opens or makes the log of a directory.
    ///
    /// The last segment is rewritten: a process that could not sync it may have left pages in memory that read well and
    /// are not on disk.
    pub(crate) fn open(disk: Arc<dyn Disk>, dir: &Path, segment_bytes: usize) -> Result<(Self, Loaded), LogError> {
        let mut numbers = Vec::new();
        for name in disk.list(dir).map_err(io_error("list", dir))? {
            if name.starts_with("log-") && name.ends_with(TEMPORARY) {
                let path = dir.join(&name);
                disk.remove(&path).map_err(io_error("remove", &path))?;
            }
            numbers.extend(number_of(&name));
        }
        numbers.sort_unstable();
        let mut loaded = Loaded::default();
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
            let (max_index, end) = loaded
                .add(&bytes, number, last)
                .map_err(|Damage { offset, why }| LogError::Damaged { path: path.clone(), offset, why })?;
            loaded.cut += bytes.len() - end;
            bytes.truncate(end);
            valid = bytes;
            segments.push_back(Segment { number, max_index });
        }
        loaded.settle(dir)?;
        let number = segments.back().map_or(1, |last| last.number);
        if segments.is_empty() {
            segments.push_back(Segment { number, max_index: None });
            valid = record::head(number).to_vec();
        }
        let path = dir.join(name_of(number));
        let file = rewrite(&*disk, &path, &valid).map_err(io_error("write", &path))?;
        let (dir, purged) = (dir.to_owned(), loaded.purged);
        let length = valid.len();
        Ok((Self { disk, dir, segments, file, length, synced: length, purged, segment_bytes }, loaded))
    }

    /// Appends records as [`record`] made them, the highest index among them being `max_index`. Not durable until
    /// [`LogFiles::sync`].
    pub(crate) fn append(&mut self, records: &mut [u8], max_index: Option<u64>) -> io::Result<()> {
        if self.length >= self.segment_bytes && self.length == self.synced {
            self.next_segment()?;
        }
        record::seal(records, self.synced);
        self.file.append(records)?;
        self.length += records.len();
        if let Some(last) = self.segments.back_mut() {
            last.max_index = last.max_index.max(max_index);
        }
        Ok(())
    }

    /// Makes everything appended durable.
    pub(crate) fn sync(&mut self) -> io::Result<()> {
        self.file.sync()?;
        self.synced = self.length;
        Ok(())
    }

    /// Lets entries up to `upto` go: writes so down, then drops the segments that have nothing else.
    pub(crate) fn purge(&mut self, upto: LogId) -> io::Result<()> {
        let mut records = Vec::new();
        record::push_purge(&mut records, &upto);
        self.append(&mut records, None)?;
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
    pub(crate) fn dir(&self) -> &Path {
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
            let damage = |why: String| Damage { offset: at.start - record::RECORD_HEAD, why };
            match record::read_payload(&bytes[at.clone()]).map_err(damage)? {
                Record::Entry(entry) => {
                    max_index = max_index.max(Some(entry.log_id.index));
                    let index = entry.log_id.index;
                    if let Some(next) = self.next.filter(|next| *next != index) {
                        return Err(damage(format!("entry {index} is where entry {next} must be")));
                    }
                    self.next = Some(index + 1);
                    self.entries.push_back(entry);
                }
                Record::TruncateAfter(after) => {
                    while self.entries.back().is_some_and(|entry| Some(entry.log_id.index) > after.map(|id| id.index)) {
                        self.entries.pop_back();
                    }
                    self.next = self.next.map(|_| after.map_or(0, |id| id.index + 1));
                }
                Record::Purge(upto) => self.purge(upto),
            }
        }
        Ok((max_index, scan.valid))
    }

    fn purge(&mut self, upto: LogId) {
        self.purged = self.purged.max(Some(upto));
        self.next = self.next.map(|next| next.max(upto.index + 1));
        while self.entries.front().is_some_and(|entry| entry.log_id.index <= upto.index) {
            self.entries.pop_front();
        }
    }

    /// Checks that the entries begin where they must.
    fn settle(&self, dir: &Path) -> Result<(), LogError> {
        let first = self.purged.map_or(0, |purged| purged.index + 1);
        match self.entries.front() {
            Some(entry) if entry.log_id.index != first => Err(LogError::Damaged {
                path: dir.to_owned(),
                offset: 0,
                why: format!("the first entry has index {}, not {first}", entry.log_id.index),
            }),
            _ => Ok(()),
        }
    }
}

/// Writes a file anew under its name and returns it, to be written on.
fn rewrite(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> io::Result<Box<dyn DiskFile>> {
    let temporary = temporary_of(path);
    let mut file = disk.create(&temporary)?;
    file.append(bytes)?;
    file.sync()?;
    disk.rename(&temporary, path)?;
    disk.sync_dir(path.parent().unwrap_or(Path::new("/")))?;
    Ok(file)
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LogError {
    let path = path.to_owned();
    move |source| LogError::Io { what, path, source }
}

fn name_of(number: u64) -> String {
    format!("log-{number:020}.seg")
}

fn number_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("log-")?.strip_suffix(".seg")?;
    (digits.len() == 20).then(|| digits.parse().ok())?
}
