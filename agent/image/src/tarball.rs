//! Reading tar streams entry by entry, with every length bounded.
//!
//! The header blocks are read by the `tar` crate; the framing is here, since `tar`'s own iterator reads extension headers of any length into
//! memory and cuts PAX records at newlines, which binary attributes contain.

use std::io::{self, BufRead, Read};

use crate::error::EntryProblem;
use crate::limits::MAX_EXTENSION_BYTES;
use crate::spec::clip;

const BLOCK: usize = 512;
/// Extension headers in front of one entry: a long name, a long link, a local and a global PAX header, each at most once, and some slack.
const MAX_EXTENSIONS: usize = 8;

/// Why a tar stream cannot be read on.
#[derive(Debug)]
pub(crate) enum TarError {
    /// The stream itself failed.
    Io(io::Error),
    /// The stream ended within an entry.
    Truncated { entry: String },
    /// A block where a header belongs is none.
    Header { after: String, reason: String },
    /// An entry's metadata cannot be used.
    Entry { entry: String, problem: EntryProblem },
}

/// The metadata of one entry, extension headers merged in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TarEntry {
    /// As the archive has it.
    pub(crate) path: Vec<u8>,
    /// Target of a hard or symbolic link.
    pub(crate) link: Vec<u8>,
    /// The type flag; `0` also for the old NUL and for contiguous files.
    pub(crate) kind: u8,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) size: u64,
    /// Seconds and nanoseconds since 1970.
    pub(crate) mtime: (i64, u32),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl TarEntry {
    /// The path for messages: bounded, and readable.
    pub(crate) fn shown(&self) -> String {
        clip(&String::from_utf8_lossy(&self.path))
    }
}

/// A source that can jump over content.
pub(crate) trait Skip: BufRead {
    /// Moves `count` bytes forward; `UnexpectedEof` where there are fewer.
    fn skip(&mut self, count: u64) -> io::Result<()> {
        let mut left = count;
        while left > 0 {
            let had = self.fill_buf()?.len() as u64;
            if had == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let step = had.min(left);
            self.consume(step as usize);
            left -= step;
        }
        Ok(())
    }
}

/// Reads the entries of a tar stream.
pub(crate) struct TarReader<R> {
    inner: R,
    /// Content of the current entry that was not read yet.
    left: u64,
    /// Padding behind it.
    padding: u64,
    /// Headers read so far, those of extensions included.
    headers: u64,
    current: String,
}

#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    gnu_path: Option<Vec<u8>>,
    gnu_link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: bool,
}

impl<R: Skip> TarReader<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self { inner, left: 0, padding: 0, headers: 0, current: "(start of the archive)".into() }
    }

    /// Headers read so far, those of extensions included: what to bound.
    pub(crate) fn headers(&self) -> u64 {
        self.headers
    }

    /// The entry that was read last, for messages.
    pub(crate) fn current(&self) -> &str {
        &self.current
    }

    pub(crate) fn inner_mut(&mut self) -> &mut R {
        &mut self.inner
    }

    /// The next entry, or `None` at the end of the archive. Skips what is left of the one before.
    pub(crate) fn next_entry(&mut self) -> Result<Option<TarEntry>, TarError> {
        let mut extensions = Extensions::default();
        for _ in 0..=MAX_EXTENSIONS {
            self.finish_entry()?;
            let Some(block) = self.read_header()? else { return Ok(None) };
            let header = tar::Header::from_byte_slice(&block);
            let size = number(header.entry_size(), &block[124..136]);
            let size = size.ok_or_else(|| self.bad_header("its size is not a number"))?;
            match header.entry_type().as_byte() {
                b'x' => {
                    let records = self.read_extension(size)?;
                    self.merge_pax(&records, &mut extensions)?;
                }
                // Global records are comments of git; names in them would be the same for all entries.
                b'g' => drop(self.read_extension(size)?),
                b'L' => extensions.gnu_path = Some(without_nul(self.read_extension(size)?)),
                b'K' => extensions.gnu_link = Some(without_nul(self.read_extension(size)?)),
                _ => return self.merge(header, size, extensions).map(Some),
            }
        }
        Err(self.bad_header("too many extension headers follow one another"))
    }

    /// A piece of the current entry's content; empty at its end. Mark it as used with [`Self::consume`].
    pub(crate) fn content(&mut self) -> Result<&[u8], TarError> {
        if self.left == 0 {
            return Ok(&[]);
        }
        let left = self.left;
        let current = &self.current;
        let buffer = self.inner.fill_buf().map_err(|error| stream_error(error, current))?;
        if buffer.is_empty() {
            return Err(TarError::Truncated { entry: current.clone() });
        }
        let count = (buffer.len() as u64).min(left) as usize;
        Ok(&buffer[..count])
    }

    pub(crate) fn consume(&mut self, count: usize) {
        self.inner.consume(count);
        self.left -= count as u64;
    }

    fn finish_entry(&mut self) -> Result<(), TarError> {
        self.inner.skip(self.left).map_err(|error| stream_error(error, &self.current))?;
        match self.inner.skip(self.padding) {
            // Some writers (`umoci insert`) leave out what fills the last block, as others do the blocks at the end; Go's reader takes both.
            // That nothing was lost on the way, the digest says.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
            other => other.map_err(|error| stream_error(error, &self.current))?,
        }
        (self.left, self.padding) = (0, 0);
        Ok(())
    }

    fn read_header(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        let mut block = [0; BLOCK];
        // Some writers leave out the two blocks of zeros at the end.
        if self.inner.fill_buf().map_err(|error| stream_error(error, &self.current))?.is_empty() {
            return Ok(None);
        }
        self.inner.read_exact(&mut block).map_err(|error| stream_error(error, &self.current))?;
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        self.headers += 1;
        let sum: u32 = block[..148].iter().chain(&[b' '; 8]).chain(&block[156..]).map(|byte| u32::from(*byte)).sum();
        match tar::Header::from_byte_slice(&block).cksum() {
            Ok(had) if had == sum => Ok(Some(block)),
            _ => Err(self.bad_header("its checksum is wrong: this is not a tar archive, or a damaged one")),
        }
    }

    fn read_extension(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        if size > MAX_EXTENSION_BYTES {
            return Err(self.bad_extension(format!("it has {size} bytes, and the limit is {MAX_EXTENSION_BYTES}")));
        }
        let mut bytes = vec![0; size as usize];
        self.inner.read_exact(&mut bytes).map_err(|error| stream_error(error, &self.current))?;
        self.padding = padding(size);
        Ok(bytes)
    }

    fn merge(&mut self, header: &tar::Header, size: u64, extensions: Extensions) -> Result<TarEntry, TarError> {
        let path = extensions.path.or(extensions.gnu_path).unwrap_or_else(|| header.path_bytes().into_owned());
        self.current = clip(&String::from_utf8_lossy(&path));
        let link = extensions.link.or(extensions.gnu_link);
        let size = extensions.size.unwrap_or(size);
        let bad = |what| TarError::Entry { entry: self.current.clone(), problem: EntryProblem::Number(what) };
        let block = header.as_bytes();
        let id = |pax: Option<u32>, raw: Option<u64>, what| match pax {
            Some(id) => Ok(id),
            None => raw.and_then(|id| u32::try_from(id).ok()).filter(|id| *id != u32::MAX).ok_or_else(|| bad(what)),
        };
        let kind = header.entry_type().as_byte();
        let entry = TarEntry {
            link: link
                .unwrap_or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned).unwrap_or_default()),
            kind: if matches!(kind, 0 | b'7') { b'0' } else { kind },
            mode: number(header.mode().map(u64::from), &block[100..108]).ok_or_else(|| bad("mode"))? as u32,
            uid: id(extensions.uid, number(header.uid(), &block[108..116]), "user")?,
            gid: id(extensions.gid, number(header.gid(), &block[116..124]), "group")?,
            size,
            mtime: match extensions.mtime {
                Some(time) => time,
                // Base-256 numbers are two's complement: times before 1970 come out as large ones.
                None => (number(header.mtime(), &block[136..148]).ok_or_else(|| bad("time"))? as i64, 0),
            },
            xattrs: extensions.xattrs,
            path,
        };
        if extensions.sparse || kind == b'S' {
            return Err(TarError::Entry { entry: self.current.clone(), problem: EntryProblem::Sparse });
        }
        if entry.kind != b'0' && size != 0 {
            return Err(TarError::Entry { entry: self.current.clone(), problem: EntryProblem::UnexpectedContent });
        }
        self.left = size;
        self.padding = padding(size);
        Ok(entry)
    }

    fn merge_pax(&self, records: &[u8], into: &mut Extensions) -> Result<(), TarError> {
        let records = parse_pax(records).map_err(|reason| self.bad_extension(reason))?;
        let number = |value: &[u8], what: &str| {
            let text = std::str::from_utf8(value).ok();
            text.and_then(|t| t.parse::<u64>().ok())
                .ok_or_else(|| self.bad_extension(format!("its {what} is not a number")))
        };
        let id = |value: &[u8], what: &str| {
            let id = u32::try_from(number(value, what)?).ok().filter(|id| *id != u32::MAX);
            id.ok_or_else(|| self.bad_extension(format!("its {what} is out of range")))
        };
        for (key, value) in records {
            match key {
                b"path" => into.path = Some(value.to_vec()),
                b"linkpath" => into.link = Some(value.to_vec()),
                b"size" => into.size = Some(number(value, "size")?),
                b"uid" => into.uid = Some(id(value, "user")?),
                b"gid" => into.gid = Some(id(value, "group")?),
                b"mtime" => {
                    into.mtime = Some(
                        parse_pax_time(value).ok_or_else(|| self.bad_extension("its mtime is not a time".into()))?,
                    );
                }
                _ if key.starts_with(b"GNU.sparse.") => into.sparse = true,
                _ => {
                    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                        into.xattrs.push((name.to_vec(), value.to_vec()));
                    }
                }
            }
        }
        Ok(())
    }

    fn bad_header(&self, reason: &str) -> TarError {
        TarError::Header { after: self.current.clone(), reason: reason.into() }
    }

    fn bad_extension(&self, reason: String) -> TarError {
        TarError::Entry { entry: format!("(after {})", self.current), problem: EntryProblem::Extension(reason) }
    }
}

/// A number of a header. An empty field is zero, as other readers have it.
fn number(read: io::Result<u64>, field: &[u8]) -> Option<u64> {
    match read {
        Ok(number) => Some(number),
        Err(_) if field.iter().all(|byte| matches!(byte, 0 | b' ')) => Some(0),
        Err(_) => None,
    }
}

fn stream_error(error: io::Error, entry: &str) -> TarError {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        TarError::Truncated { entry: entry.into() }
    } else {
        TarError::Io(error)
    }
}

fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

fn without_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    while bytes.last() == Some(&0) {
        bytes.pop();
    }
    bytes
}

/// Key and value of one PAX record.
type PaxRecord<'a> = (&'a [u8], &'a [u8]);

/// Splits the records of a PAX header: `<length> <key>=<value>\n` (POSIX.1-2017, pax, "Extended Header").
pub(crate) fn parse_pax(mut bytes: &[u8]) -> Result<Vec<PaxRecord<'_>>, String> {
    let mut records = Vec::new();
    // Some writers pad with NULs.
    while bytes.first().is_some_and(|byte| *byte != 0) {
        let space = bytes.iter().take(8).position(|byte| *byte == b' ').ok_or("a record has no length")?;
        let length = std::str::from_utf8(&bytes[..space]).ok().and_then(|text| text.parse::<usize>().ok());
        let record = length
            .filter(|length| *length > space + 1)
            .and_then(|length| bytes.get(..length))
            .ok_or("a record has a wrong length")?;
        let body = record[space + 1..].strip_suffix(b"\n").ok_or("a record does not end with a newline")?;
        let equals = body.iter().position(|byte| *byte == b'=').filter(|at| *at > 0).ok_or("a record has no key")?;
        records.push((&body[..equals], &body[equals + 1..]));
        bytes = &bytes[record.len()..];
    }
    Ok(records)
}

/// A time as PAX writes it: decimal seconds with an optional fraction, possibly negative.
fn parse_pax_time(value: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let nanos: u32 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    match (whole.starts_with('-'), nanos) {
        (true, 1..) => Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos)),
        _ => Some((seconds, nanos)),
    }
}

impl<T: AsRef<[u8]>> Skip for io::Cursor<T> {}

impl<R: Read + io::Seek> Skip for io::BufReader<R> {
    fn skip(&mut self, count: u64) -> io::Result<()> {
        // All but the last byte by seeking: reading that one proves that the file is long enough.
        if let Some(jump) = count.checked_sub(1).filter(|jump| *jump > 0) {
            self.seek_relative(i64::try_from(jump).map_err(|_| io::ErrorKind::UnexpectedEof)?)?;
        }
        if count > 0 { self.read_exact(&mut [0]) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pax_records_with_newlines_in_their_values_are_kept_whole() {
        let records = parse_pax(b"12 path=a/b\n24 SCHILY.xattr.u=\n\0\n=\n\n\n").map(|r| r.len());
        assert!(records.is_err(), "a wrong length is refused");
        let mut bytes = b"12 path=a/b\n".to_vec();
        bytes.extend(b"21 SCHILY.xattr.u=\n\0\n");
        assert_eq!(parse_pax(&bytes), Ok(vec![(&b"path"[..], &b"a/b"[..]), (&b"SCHILY.xattr.u"[..], &b"\n\0"[..])]));
    }

    #[test]
    fn pax_times_are_read_with_their_fraction_and_sign() {
        for (text, time) in [
            ("0", Some((0, 0))),
            ("12.5", Some((12, 500_000_000))),
            ("-1.25", Some((-2, 750_000_000))),
            ("1.1234567899", Some((1, 123_456_789))),
            ("x", None),
            ("1.x", None),
            ("", None),
        ] {
            assert_eq!(parse_pax_time(text.as_bytes()), time, "{text}");
        }
    }

    fn read_all(bytes: &[u8]) -> Result<Vec<(TarEntry, Vec<u8>)>, TarError> {
        let mut reader = TarReader::new(io::Cursor::new(bytes));
        let mut entries = Vec::new();
        while let Some(entry) = reader.next_entry()? {
            let mut content = Vec::new();
            loop {
                let piece = reader.content()?;
                if piece.is_empty() {
                    break;
                }
                content.extend_from_slice(piece);
                let count = piece.len();
                reader.consume(count);
            }
            entries.push((entry, content));
        }
        Ok(entries)
    }

    /// Every file of the corpus, cut and changed everywhere.
    #[test]
    fn the_corpus_cut_and_changed_is_read_or_refused() {
        let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/tar");
        for path in std::fs::read_dir(directory).expect("the corpus") {
            let bytes = std::fs::read(path.expect("the corpus").path()).expect("the corpus");
            for cut in (0..bytes.len()).step_by(37) {
                let _ = read_all(&bytes[..cut]);
                let _ = parse_pax(&bytes[cut..]);
            }
            for at in (0..bytes.len()).step_by(13) {
                for byte in [0, b'9', 0xff] {
                    let mut changed = bytes.clone();
                    changed[at] = byte;
                    // With a sum that fits, so that the change is looked at.
                    for header in changed.chunks_exact_mut(BLOCK) {
                        header[148..156].fill(b' ');
                        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
                        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
                    }
                    let _ = read_all(&changed);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
            let _ = parse_pax(&bytes);
            let _ = read_all(&bytes);
        }

        #[test]
        fn any_change_of_one_byte_is_read_or_refused(at in 0_usize..3072, byte in any::<u8>()) {
            let mut builder = tar::Builder::new(Vec::new());
            builder.append_pax_extensions([("path", b"a/b".as_slice())]).expect("memory");
            let mut header = tar::Header::new_ustar();
            header.set_size(3);
            builder.append_data(&mut header, "x", &b"abc"[..]).expect("memory");
            let mut bytes = builder.into_inner().expect("memory");
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = read_all(&bytes);
        }

        #[test]
        fn what_the_tar_crate_writes_is_read_back(files in proptest::collection::vec(("[a-z]{1,200}", proptest::collection::vec(any::<u8>(), 0..2000)), 0..5)) {
            let mut builder = tar::Builder::new(Vec::new());
            for (name, content) in &files {
                let mut header = tar::Header::new_gnu();
                header.set_size(content.len() as u64);
                header.set_mode(0o640);
                builder.append_data(&mut header, name, content.as_slice()).expect("memory");
            }
            let bytes = builder.into_inner().expect("memory");
            let had = read_all(&bytes).expect("valid");
            let had: Vec<_> = had.into_iter().map(|(entry, content)| (String::from_utf8(entry.path).expect("ascii"), content)).collect();
            prop_assert_eq!(had, files);
        }
    }
}
