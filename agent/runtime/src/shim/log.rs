//! The log of a container: lines in the CRI format (KEP-2400's `<time> <stream> <P|F> <text>`), rotated by size.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::model::LogPolicy;

/// Longest text of one entry in bytes, as containerd's; a longer line becomes several, all but the last marked P.
pub(crate) const MAX_LINE: usize = 16 << 10;

/// Output stream of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// Appends to the log and rotates it.
#[derive(Debug)]
pub(crate) struct LogWriter {
    path: PathBuf,
    policy: LogPolicy,
    /// None after a failure; opened again with the next line.
    file: Option<File>,
    size: u64,
    /// Bytes and entries it was given to write since it was opened.
    totals: (usize, usize),
    /// Beginnings of lines whose end is still to come: stdout, stderr.
    partial: [Vec<u8>; 2],
}

impl LogWriter {
    pub(crate) fn open(path: &Path, policy: LogPolicy) -> io::Result<Self> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        let partial = [Vec::new(), Vec::new()];
        let mut log = Self { path: path.to_path_buf(), policy, file: None, size: 0, totals: (0, 0), partial };
        log.reopen()?;
        Ok(log)
    }

    fn reopen(&mut self) -> io::Result<()> {
        let file = OpenOptions::new().append(true).create(true).open(&self.path)?;
        self.size = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }

    /// Bytes and entries that were to be written since it was opened.
    pub(crate) fn totals(&self) -> (usize, usize) {
        self.totals
    }

    /// Takes output of the container.
    ///
    /// # Guarantees
    /// Entries are whole: a disk that is full loses entries but does not stop the container.
    pub(crate) fn take(&mut self, stream: Stream, now: SystemTime, mut bytes: &[u8]) {
        let mut out = Entries::new(stream, now);
        let mut held = std::mem::take(&mut self.partial[stream as usize]);
        while !bytes.is_empty() {
            let room = &bytes[..bytes.len().min(MAX_LINE - held.len())];
            if let Some(end) = room.iter().position(|b| *b == b'\n') {
                held.extend_from_slice(&bytes[..end]);
                self.push(&mut out, true, &held);
                held.clear();
                bytes = &bytes[end + 1..];
            } else {
                held.extend_from_slice(room);
                bytes = &bytes[room.len()..];
                // A line of just this length is a full one: look whether its end comes next.
                if held.len() == MAX_LINE {
                    let full = bytes.first() == Some(&b'\n');
                    self.push(&mut out, full, &held);
                    held.clear();
                    bytes = &bytes[usize::from(full)..];
                }
            }
        }
        if !held.is_empty() {
            self.partial[stream as usize] = held;
        }
        self.write(&out);
    }

    /// Writes one whole entry: also one of our own, between those of a stream.
    pub(crate) fn say(&mut self, stream: Stream, now: SystemTime, text: &[u8]) {
        let mut out = Entries::new(stream, now);
        out.push(true, text);
        self.write(&out);
    }

    /// The stream ended: writes what was held back of a line without an end.
    pub(crate) fn end(&mut self, stream: Stream, now: SystemTime) {
        let held = std::mem::take(&mut self.partial[stream as usize]);
        if !held.is_empty() {
            self.say(stream, now, &held);
        }
    }

    /// Adds an entry to those that are written next; where the file is full with it, they are written now. Short lines take many times their
    /// own room, so that what came at once may fill several files.
    fn push(&mut self, out: &mut Entries, full: bool, text: &[u8]) {
        out.push(full, text);
        if self.size + out.text.len() as u64 >= self.policy.max_bytes {
            self.write(out);
            out.clear();
        }
    }

    fn write(&mut self, entries: &Entries) {
        let out = entries.text.as_slice();
        self.totals = (self.totals.0 + out.len(), self.totals.1 + entries.count);
        if out.is_empty() || (self.file.is_none() && self.reopen().is_err()) {
            return;
        }
        let Some(file) = &mut self.file else { return };
        if file.write_all(out).is_err() {
            // Cut off what half an entry may have been written, so that the file stays readable.
            let _ = file.set_len(self.size);
            self.file = None;
            return;
        }
        self.size += out.len() as u64;
        if self.size >= self.policy.max_bytes {
            self.rotate();
        }
    }

    fn rotate(&mut self) {
        self.file = None;
        let numbered = |n: u32| PathBuf::from(format!("{}.{n}", self.path.display()));
        let kept = self.policy.max_files.max(1) - 1;
        if kept == 0 {
            let _ = fs::remove_file(&self.path);
        } else {
            for n in (1..kept).rev() {
                let _ = fs::rename(numbered(n), numbered(n + 1));
            }
            let _ = fs::rename(&self.path, numbered(1));
        }
        let _ = self.reopen();
    }
}

/// Entries that are written at once, and so have one time.
struct Entries {
    head: String,
    text: Vec<u8>,
    count: usize,
}

impl Entries {
    fn new(stream: Stream, now: SystemTime) -> Self {
        let stream = match stream {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        };
        let since = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Self { head: format!("{} {stream} ", rfc3339(since)), text: Vec::new(), count: 0 }
    }

    fn clear(&mut self) {
        self.text.clear();
        self.count = 0;
    }

    fn push(&mut self, full: bool, text: &[u8]) {
        self.text.extend_from_slice(self.head.as_bytes());
        self.text.extend_from_slice(if full { b"F " } else { b"P " });
        self.text.extend_from_slice(text);
        self.text.push(b'\n');
        self.count += 1;
    }
}

/// RFC 3339 with nanoseconds, UTC. The date from days as in Howard Hinnant's `civil_from_days`.
fn rfc3339(since_epoch: Duration) -> String {
    let secs = since_epoch.as_secs() as i64;
    let (days, rest) = (secs.div_euclid(86_400), secs.rem_euclid(86_400));
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + i64::from(month <= 2);
    let (h, m, s) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{:09}Z", since_epoch.subsec_nanos())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at() -> SystemTime {
        UNIX_EPOCH + Duration::new(1_475_712_000, 669_794_202)
    }

    fn open(dir: &Path, max_bytes: u64, max_files: u32) -> LogWriter {
        LogWriter::open(&dir.join("pod/c/0.log"), LogPolicy { max_bytes, max_files }).expect("opens")
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (secs, text) in [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_399, "2000-02-28T23:59:59.000000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000000Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000000Z"),
        ] {
            assert_eq!(rfc3339(Duration::from_secs(secs)), text);
        }
    }

    #[test]
    fn lines_are_written_whole_and_streams_do_not_mix() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let mut log = open(dir.path(), 1 << 20, 2);
        log.take(Stream::Stdout, at(), b"hel");
        log.take(Stream::Stderr, at(), b"oops\n");
        log.take(Stream::Stdout, at(), b"lo\n\nno end");
        log.end(Stream::Stdout, at());
        let text = fs::read_to_string(dir.path().join("pod/c/0.log")).expect("is there");
        let t = "2016-10-06T00:00:00.669794202Z";
        assert_eq!(text, format!("{t} stderr F oops\n{t} stdout F hello\n{t} stdout F \n{t} stdout F no end\n"));
    }

    #[test]
    fn a_long_line_becomes_partial_entries() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let mut log = open(dir.path(), 1 << 20, 2);
        let mut line = vec![b'x'; MAX_LINE * 2];
        line.push(b'\n');
        log.take(Stream::Stdout, at(), &line);
        log.take(Stream::Stdout, at(), b"next\n");
        let text = fs::read_to_string(dir.path().join("pod/c/0.log")).expect("is there");
        let tags: Vec<_> = text.lines().map(|l| l.split(' ').nth(2).expect("tag")).collect();
        assert_eq!(tags, ["P", "F", "F"]);
    }

    #[test]
    fn a_full_log_is_renamed_and_the_oldest_dropped() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let mut log = open(dir.path(), 100, 3);
        for n in 0..20 {
            log.take(Stream::Stdout, at(), format!("line {n} ..............................\n").as_bytes());
        }
        let mut names: Vec<_> =
            fs::read_dir(dir.path().join("pod/c")).expect("dir").map(|e| e.expect("entry").file_name()).collect();
        names.sort();
        assert_eq!(names, ["0.log", "0.log.1", "0.log.2"]);
        let first = fs::read_to_string(dir.path().join("pod/c/0.log.1")).expect("is there");
        assert!(first.contains("line 19") || first.contains("line 18"), "{first}");
    }

    #[test]
    fn a_file_is_larger_than_asked_for_by_one_entry_at_most() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let mut log = open(dir.path(), 10_000, 4);
        let lines = (0..1_000).map(|n| n.to_string()).collect::<Vec<_>>().join("\n") + "\n";
        log.take(Stream::Stdout, at(), lines.as_bytes());
        let entry = "2016-10-06T00:00:00.669794202Z stdout F 999\n".len();
        let text = ["0.log.3", "0.log.2", "0.log.1", "0.log"].map(|name| {
            let text = fs::read_to_string(dir.path().join("pod/c").join(name)).expect("is there");
            assert!(text.len() < 10_000 + entry, "{name}: {}", text.len());
            text
        });
        let number =
            |line: &str| line.rsplit(' ').next().and_then(|text| text.parse::<u32>().ok()).expect("a whole line");
        let numbers: Vec<u32> = text.iter().flat_map(|text| text.lines()).map(number).collect();
        assert!(numbers.len() > 600 && numbers.windows(2).all(|two| two[1] == two[0] + 1), "{numbers:?}");
        assert_eq!(numbers.last(), Some(&999));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))] // each writes to disk

        /// Whatever the pieces that output arrives in, joining the entries gives the output.
        #[test]
        fn no_byte_is_lost(pieces in proptest::collection::vec(proptest::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..400), 0..6)) {
            let dir = tempfile::tempdir().expect("temporary directory");
            let mut log = open(dir.path(), u64::MAX, 1);
            for p in &pieces {
                log.take(Stream::Stdout, at(), p);
            }
            log.end(Stream::Stdout, at());
            let mut expected = pieces.concat();
            if !expected.is_empty() && expected.last() != Some(&b'\n') {
                expected.push(b'\n');
            }
            let written = fs::read(dir.path().join("pod/c/0.log")).expect("is there");
            let head = "2016-10-06T00:00:00.669794202Z stdout F ".len();
            let mut joined = Vec::new();
            for line in written.split_inclusive(|b| *b == b'\n') {
                joined.extend_from_slice(&line[head..]);
            }
            prop_assert_eq!(joined, expected);
        }
    }
}
