//! Reading the logs of containers: CRI lines (KEP-2400: `<time> <stream> <P|F> <text>`), over rotated files.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use hearth_types::Timestamp;

/// Rotated files of one attempt that are looked for at most.
const MAX_ROTATED: u32 = 16;
/// The largest file that is read for its last lines: far above the size at which logs rotate.
const MAX_FILE_BYTES: u64 = 256 << 20;
/// The longest entry that is read, in bytes: the shim's are 16 KiB. What is longer is cut.
const MAX_ENTRY_BYTES: u64 = 64 << 10;
/// The most lines that a tail may ask for; more is as good as all.
const MAX_TAIL: u32 = 1_000_000;
/// Bytes of a file that are read for the end of a log: four of the shim's longest entries.
const MAX_TAIL_READ: u64 = 64 << 10;
/// Attempts whose logs are kept: the newest and the one before, which `logs --previous` shows.
const KEPT_ATTEMPTS: u32 = 2;

/// One entry of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry<'a> {
    pub(crate) time: &'a [u8],
    /// The line goes on in the next entry of its stream.
    pub(crate) partial: bool,
    pub(crate) text: &'a [u8],
}

/// Takes an entry apart; the line feed at its end is not part of its text. `None` for what is no entry.
pub(crate) fn parse(line: &[u8]) -> Option<Entry<'_>> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let (time, stream, tag) = (parts.next()?, parts.next()?, parts.next()?);
    let text = parts.next().unwrap_or_default();
    if !matches!(stream, b"stdout" | b"stderr") {
        return None;
    }
    let tag = tag.split(|byte| *byte == b':').next()?;
    Some(Entry { time, partial: tag == b"P", text })
}

/// Which part of a log is wanted.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wanted {
    pub(crate) tail: Option<u32>,
    pub(crate) since: Option<Timestamp>,
    pub(crate) timestamps: bool,
}

/// Reads the log of one attempt from some point on, across its rotations.
#[derive(Debug)]
pub(crate) struct LogReader {
    path: PathBuf,
    wanted: Wanted,
    file: Option<BufReader<File>>,
    /// Older files that are still to be read, oldest first.
    older: Vec<PathBuf>,
    /// The beginning of an entry whose end is not written yet.
    pending: Vec<u8>,
    /// The text before was partial, so the next one goes on in its line.
    in_line: bool,
}

impl LogReader {
    /// Opens a log at the beginning of what is wanted. Blocks.
    pub(crate) fn open(path: &Path, wanted: Wanted) -> io::Result<Self> {
        let mut files: Vec<PathBuf> =
            (1..=MAX_ROTATED).rev().map(|n| numbered(path, n)).filter(|p| p.exists()).collect();
        files.push(path.to_owned());
        let (first, offset) = match wanted.tail {
            None => (0, 0),
            Some(lines) => start_of_tail(&files, lines.min(MAX_TAIL))?,
        };
        let mut older: Vec<PathBuf> = files.drain(..).skip(first).collect();
        let file = match File::open(older.remove(0)) {
            Ok(mut file) => {
                file.seek(SeekFrom::Start(offset))?;
                Some(BufReader::new(file))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        Ok(Self { path: path.to_owned(), wanted, file, older, pending: Vec::new(), in_line: false })
    }

    /// Appends up to about `max` bytes of text to `out`; what was there is given in the order it was written. Nothing
    /// appended means that there is no more now. Blocks.
    pub(crate) fn read(&mut self, out: &mut Vec<u8>, max: usize) -> io::Result<()> {
        while out.len() < max {
            let Some(file) = &mut self.file else {
                if !self.next_file()? {
                    return Ok(());
                }
                continue;
            };
            let room = MAX_ENTRY_BYTES.saturating_sub(self.pending.len() as u64).max(1);
            let read = file.by_ref().take(room).read_until(b'\n', &mut self.pending)?;
            if self.pending.last() == Some(&b'\n') {
                let line = std::mem::take(&mut self.pending);
                self.take_line(&line, out);
            } else if self.pending.len() as u64 >= MAX_ENTRY_BYTES {
                let line = std::mem::take(&mut self.pending);
                skip_line(file)?;
                self.take_line(&line, out);
            } else if read == 0 && !self.next_file()? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Goes on to the file after this one: an older one's successor, or the one that took this one's name in a rotation.
    fn next_file(&mut self) -> io::Result<bool> {
        if !self.older.is_empty() {
            let path = self.older.remove(0);
            return self.switch_to(&path);
        }
        let Ok(now) = fs::metadata(&self.path) else { return Ok(false) };
        let Some(file) = &self.file else { return self.switch_to(&self.path.clone()) };
        let had = file.get_ref().metadata()?;
        if had.ino() == now.ino() {
            return Ok(false);
        }
        // It was rotated: its last lines may have been written since they were read.
        if had.len() > file.get_ref().stream_position_of()? {
            return Ok(true);
        }
        // More than one rotation may have happened meanwhile.
        let mut newer: Vec<PathBuf> = Vec::new();
        for n in 1..=MAX_ROTATED {
            let path = numbered(&self.path, n);
            match fs::metadata(&path) {
                Ok(meta) if meta.ino() != had.ino() => newer.insert(0, path),
                _ => break,
            }
        }
        newer.push(self.path.clone());
        let first = newer.remove(0);
        self.older = newer;
        self.switch_to(&first)
    }

    fn switch_to(&mut self, path: &Path) -> io::Result<bool> {
        match File::open(path) {
            Ok(file) => {
                self.file = Some(BufReader::new(file));
                self.pending.clear();
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn take_line(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let Some(entry) = parse(line) else { return };
        if let Some(since) = self.wanted.since
            && time(entry.time).is_some_and(|time| time < since)
        {
            return;
        }
        if self.wanted.timestamps && !self.in_line {
            out.extend_from_slice(entry.time);
            out.push(b' ');
        }
        out.extend_from_slice(entry.text);
        self.in_line = entry.partial;
        if !entry.partial {
            out.push(b'\n');
        }
    }
}

/// The position of a file without needing it mutable.
trait PositionOf {
    fn stream_position_of(&self) -> io::Result<u64>;
}

impl PositionOf for File {
    fn stream_position_of(&self) -> io::Result<u64> {
        let mut file = self;
        file.stream_position()
    }
}

fn time(text: &[u8]) -> Option<Timestamp> {
    Timestamp::parse(std::str::from_utf8(text).ok()?)
}

fn numbered(path: &Path, n: u32) -> PathBuf {
    PathBuf::from(format!("{}.{n}", path.display()))
}

fn skip_line(file: &mut BufReader<File>) -> io::Result<()> {
    loop {
        let buffer = file.fill_buf()?;
        if buffer.is_empty() {
            return Ok(());
        }
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let used = end.map_or(buffer.len(), |at| at + 1);
        file.consume(used);
        if end.is_some() {
            return Ok(());
        }
    }
}

/// Where the last `lines` lines begin: which file and at which byte.
fn start_of_tail(files: &[PathBuf], lines: u32) -> io::Result<(usize, u64)> {
    let mut missing = lines as usize;
    for (index, path) in files.iter().enumerate().rev() {
        let starts = match File::open(path) {
            Ok(file) => line_starts(file)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => (Vec::new(), 0),
            Err(error) => return Err(error),
        };
        let (starts, length) = starts;
        if missing == 0 {
            return Ok((index, length));
        }
        if starts.len() >= missing {
            return Ok((index, starts[starts.len() - missing]));
        }
        missing -= starts.len();
    }
    Ok((0, 0))
}

/// Where lines begin in a file, and its length. A line of several partial entries begins once.
fn line_starts(file: File) -> io::Result<(Vec<u64>, u64)> {
    let mut reader = BufReader::new(file.take(MAX_FILE_BYTES));
    let (mut starts, mut offset, mut in_line) = (Vec::new(), 0, false);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = reader.read_until(b'\n', &mut line)? as u64;
        if read == 0 || line.last() != Some(&b'\n') {
            return Ok((starts, offset));
        }
        if let Some(entry) = parse(&line) {
            if !in_line {
                starts.push(offset);
            }
            in_line = entry.partial;
        }
        offset += read;
    }
}

/// The end of a log that was written: at most so many lines and bytes, which is what a message about its container has room for. Reads the
/// last [`MAX_TAIL_READ`] bytes alone, which have as much of 80 lines and 2 KiB as there is. Blocks.
pub(crate) fn tail(path: &Path, lines: usize, bytes: usize) -> io::Result<Vec<u8>> {
    let mut raw = Vec::new();
    for file in [numbered(path, 1), path.to_owned()] {
        let mut file = match File::open(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            opened => opened?,
        };
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(MAX_TAIL_READ)))?;
        file.take(MAX_TAIL_READ).read_to_end(&mut raw)?;
    }
    let mut text = Vec::new();
    // The entry that was cut in two is none, unless its second half looks like one; it is far from the end then.
    for entry in raw.split_inclusive(|byte| *byte == b'\n').filter_map(parse) {
        text.extend_from_slice(entry.text);
        if !entry.partial {
            text.push(b'\n');
        }
    }
    let ends = text.iter().enumerate().rev().skip(1).filter(|(_, byte)| **byte == b'\n');
    let from_lines = ends.map(|(at, _)| at + 1).nth(lines - 1).unwrap_or(0);
    let from = from_lines.max(text.len().saturating_sub(bytes));
    Ok(text.split_off(from))
}

/// Removes logs of attempts that nobody can ask for any more. Blocks; what cannot be removed now is removed with the pod.
pub(crate) fn prune(dir: &Path, newest: u32) {
    keep(KEPT_ATTEMPTS, dir, newest);
}

/// Removes logs of all attempts but the newest, where room is wanted. Blocks.
pub(crate) fn keep_newest(dir: &Path, newest: u32) {
    keep(1, dir, newest);
}

fn keep(attempts: u32, dir: &Path, newest: u32) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let attempt = name.to_str().and_then(|name| name.split('.').next()?.parse::<u32>().ok());
        if attempt.is_some_and(|attempt| attempt.saturating_add(attempts) <= newest) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn entry(second: u32, tag: &str, text: &str) -> String {
        format!("2024-01-01T00:00:{second:02}.000000001Z stdout {tag} {text}\n")
    }

    fn all(reader: &mut LogReader) -> String {
        let mut out = Vec::new();
        reader.read(&mut out, usize::MAX).expect("read");
        String::from_utf8(out).expect("text")
    }

    fn text(path: &Path, wanted: Wanted) -> String {
        all(&mut LogReader::open(path, wanted).expect("opened"))
    }

    #[test]
    fn a_log_is_read_across_its_rotations() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("0.log");
        fs::write(numbered(&path, 2), entry(1, "F", "one")).expect("written");
        fs::write(numbered(&path, 1), entry(2, "F", "two") + &entry(3, "P", "thr")).expect("written");
        fs::write(&path, entry(3, "F", "ee") + &entry(4, "F", "four") + "garbage\n").expect("written");
        assert_eq!(text(&path, Wanted::default()), "one\ntwo\nthree\nfour\n");
        let tail = |lines| Wanted { tail: Some(lines), ..Wanted::default() };
        assert_eq!(text(&path, tail(0)), "");
        assert_eq!(text(&path, tail(1)), "four\n");
        assert_eq!(text(&path, tail(9)), "one\ntwo\nthree\nfour\n");
        let since = Wanted { since: Timestamp::parse("2024-01-01T00:00:04Z"), ..Wanted::default() };
        assert_eq!(text(&path, since), "four\n");
        let stamped = Wanted { timestamps: true, tail: Some(1), ..Wanted::default() };
        assert_eq!(text(&path, stamped), "2024-01-01T00:00:04.000000001Z four\n");
    }

    #[test]
    fn a_followed_log_loses_nothing_when_it_rotates() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("0.log");
        let mut reader = LogReader::open(&path, Wanted::default()).expect("not there yet");
        assert_eq!(all(&mut reader), "");
        let mut file = File::create(&path).expect("made");
        file.write_all(entry(1, "F", "one").as_bytes()).expect("written");
        assert_eq!(all(&mut reader), "one\n");
        file.write_all(b"2024-01-01T00:00:02Z stdo").expect("written");
        assert_eq!(all(&mut reader), "", "half an entry waits for its end");
        file.write_all(b"ut F two\n").expect("written");
        fs::rename(&path, numbered(&path, 1)).expect("rotated");
        fs::write(&path, entry(3, "F", "three")).expect("written");
        assert_eq!(all(&mut reader), "two\nthree\n");
        fs::rename(numbered(&path, 1), numbered(&path, 3)).expect("rotated");
        fs::rename(&path, numbered(&path, 2)).expect("rotated");
        fs::write(numbered(&path, 1), entry(4, "F", "four")).expect("written");
        fs::write(&path, entry(5, "F", "five")).expect("written");
        assert_eq!(all(&mut reader), "four\nfive\n");
    }

    #[test]
    fn the_end_of_a_log_has_so_many_lines_and_bytes() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("0.log");
        let end = |lines, bytes| String::from_utf8(tail(&path, lines, bytes).expect("read")).expect("text");
        assert_eq!(end(2, 100), "");
        fs::write(numbered(&path, 1), entry(1, "F", "one") + &entry(2, "P", "tw")).expect("written");
        fs::write(&path, entry(2, "F", "o") + &entry(3, "F", "three")).expect("written");
        assert_eq!(end(9, 100), "one\ntwo\nthree\n");
        assert_eq!(end(2, 100), "two\nthree\n");
        assert_eq!(end(1, 100), "three\n");
        assert_eq!(end(9, 8), "o\nthree\n");
        fs::write(&path, entry(3, "F", "").repeat(100_000) + &entry(4, "P", "torn")).expect("written");
        assert_eq!(end(80, 2048), "\n".repeat(79) + "torn");
    }

    #[test]
    fn old_attempts_are_pruned() {
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["0.log", "1.log", "1.log.1", "2.log", "other"] {
            fs::write(dir.path().join(name), "").expect("written");
        }
        prune(dir.path(), 2);
        let mut left: Vec<_> =
            fs::read_dir(dir.path()).expect("listed").map(|e| e.expect("entry").file_name()).collect();
        left.sort();
        assert_eq!(left, ["1.log", "1.log.1", "2.log", "other"]);
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(
            bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..400),
            tail in proptest::option::of(0_u32..5),
        ) {
            let dir = tempfile::tempdir().expect("a directory");
            let path = dir.path().join("0.log");
            fs::write(&path, bytes).expect("written");
            let mut out = Vec::new();
            let wanted = Wanted { tail, timestamps: true, ..Wanted::default() };
            LogReader::open(&path, wanted).expect("opened").read(&mut out, 1 << 20).expect("read");
        }
    }
}
