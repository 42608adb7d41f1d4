//! Unpacking one layer into a directory that becomes a lower directory of overlayfs.
//!
//! # Guarantees
//! - Nothing outside of the directory is created, changed, linked to or read, whatever the layer says: every parent directory is opened with
//!   `openat2(RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV)` from the directory's own descriptor, and the last
//!   component is always a single name that is made anew, never opened for writing where it exists.
//! - Whiteouts (OCI image spec, layer.md "Whiteouts") become what overlayfs means by them: `.wh.x` a character device 0:0 called `x`,
//!   `.wh..wh..opq` the attribute `trusted.overlay.opaque=y`. A whiteout hides lower layers only, in whichever order the layer has it.
//! - Of extended attributes, `security.capability` and `user.*` (not `user.overlay.*`, by which a layer could redirect the overlay) are
//!   kept; the others are dropped.
//!
//! # Assumptions
//! The directory is new and nobody else can reach it, so that what was checked stays true.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use crate::error::EntryProblem;
use crate::limits::{
    MAX_DIRECTORY_PATHS_BYTES, MAX_NAME_BYTES, MAX_PATH_BYTES, MAX_PATH_DEPTH, MAX_XATTR_BYTES, MAX_XATTRS,
};
use crate::tarball::{Skip, TarEntry, TarError, TarReader};

/// Why a layer was not unpacked; the entry at which it happened is beside it.
#[derive(Debug)]
pub(crate) enum UnpackError {
    /// An entry is refused.
    Entry(EntryProblem),
    /// The stream is not a tar archive, or ends early.
    Stream(String),
    /// A bound on the whole layer is reached.
    TooMany(String),
    /// The kernel refused.
    Io(io::Error),
}

impl From<Errno> for UnpackError {
    fn from(error: Errno) -> Self {
        Self::Io(error.into())
    }
}

impl From<io::Error> for UnpackError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<EntryProblem> for UnpackError {
    fn from(problem: EntryProblem) -> Self {
        Self::Entry(problem)
    }
}

/// What a layer came to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Unpacked {
    /// Bytes of its files.
    pub(crate) bytes: u64,
    /// Its entries.
    pub(crate) entries: u64,
    /// Directories that it has files in and no entries for, sorted; the root as the empty path.
    pub(crate) implicit: Vec<Vec<u8>>,
}

/// Unpacks a tar stream into the empty directory `root`. On failure the entry is named, and what was made so far is the caller's to remove.
pub(crate) fn unpack<R: Skip>(stream: R, root: &Path, max_entries: u64) -> Result<Unpacked, (String, UnpackError)> {
    let mut reader = TarReader::new(stream);
    let mut unpacker = Unpacker::new(root).map_err(|error| (String::from("/"), error))?;
    let mut done = Unpacked::default();
    loop {
        let entry = match reader.next_entry() {
            Ok(Some(entry)) => entry,
            Ok(None) => break,
            Err(error) => return Err(tar_error(error)),
        };
        if reader.headers() > max_entries {
            return Err((
                entry.shown(),
                UnpackError::TooMany(format!("the layer has more than {max_entries} entries")),
            ));
        }
        done.entries += 1;
        done.bytes = done.bytes.saturating_add(entry.size);
        unpacker.entry(&entry, &mut reader).map_err(|error| (entry.shown(), error))?;
    }
    // What follows the end of the archive is part of the blob, and of its digest.
    let last = reader.current().to_owned();
    drain(reader.inner_mut()).map_err(|error| (last, error.into()))?;
    done.implicit = unpacker.finish()?;
    Ok(done)
}

fn tar_error(error: TarError) -> (String, UnpackError) {
    match error {
        TarError::Io(error) => (String::new(), UnpackError::Io(error)),
        TarError::Truncated { entry } => {
            let reason = format!("it is truncated at or after entry {entry:?}");
            (entry, UnpackError::Stream(reason))
        }
        TarError::Header { after, reason } => {
            let reason = format!("after entry {after:?}: {reason}");
            (after, UnpackError::Stream(reason))
        }
        TarError::Entry { entry, problem } => (entry, UnpackError::Entry(problem)),
    }
}

fn drain<R: Skip>(reader: &mut R) -> io::Result<()> {
    loop {
        let count = reader.fill_buf()?.len();
        if count == 0 {
            return Ok(());
        }
        reader.consume(count);
    }
}

/// The directory that holds an entry, kept open for the entries that follow.
struct Parent {
    path: Vec<u8>,
    fd: OwnedFd,
}

struct Unpacker {
    root: OwnedFd,
    parent: Option<Parent>,
    /// Directories whose times are set last, since every entry in them changes those.
    directories: Vec<(Vec<u8>, (i64, u32))>,
    directory_bytes: usize,
    implicit: BTreeSet<Vec<u8>>,
}

impl Unpacker {
    fn new(root: &Path) -> Result<Self, UnpackError> {
        let root = rustix::fs::open(root, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        // What a layer does not mention belongs to the container's root and is open to all; the process's umask has no say.
        rustix::fs::fchmod(&root, Mode::from_raw_mode(0o755))?;
        let mut unpacker = Self {
            root,
            parent: None,
            directories: Vec::new(),
            directory_bytes: 0,
            implicit: BTreeSet::from([Vec::new()]),
        };
        unpacker.remember_time(Vec::new(), (0, 0))?;
        Ok(unpacker)
    }

    fn entry<R: Skip>(&mut self, entry: &TarEntry, reader: &mut TarReader<R>) -> Result<(), UnpackError> {
        let path = clean_path(&entry.path)?;
        // Archives from before POSIX have no type for directories but the slash at the end.
        let is_directory = entry.kind == b'5' || (entry.kind == b'0' && entry.path.ends_with(b"/"));
        let Some((parent, name)) = split(&path) else {
            return if is_directory { self.root_directory(entry) } else { Err(EntryProblem::BadPath.into()) };
        };
        if let Some(hidden) = name.strip_prefix(b".wh.") {
            return if entry.size == 0 {
                self.whiteout(parent, hidden)
            } else {
                Err(EntryProblem::UnexpectedContent.into())
            };
        }
        if is_directory {
            if entry.size != 0 {
                return Err(EntryProblem::UnexpectedContent.into());
            }
            return self.directory(&path, parent, name, entry);
        }
        match entry.kind {
            b'0' => self.file(parent, name, entry, reader),
            b'1' => self.hard_link(parent, name, entry),
            b'2' => self.symlink(parent, name, entry),
            b'3' => Err(EntryProblem::Device("character").into()),
            b'4' => Err(EntryProblem::Device("block").into()),
            b'6' => self.fifo(parent, name, entry),
            other => Err(EntryProblem::Type(char::from(other)).into()),
        }
    }

    fn root_directory(&mut self, entry: &TarEntry) -> Result<(), UnpackError> {
        if entry.size != 0 {
            return Err(EntryProblem::UnexpectedContent.into());
        }
        self.implicit.remove(&[][..]);
        let root = self.root.try_clone()?;
        set_owner_and_mode(root.as_fd(), entry)?;
        set_xattrs(root.as_fd(), entry)?;
        self.remember_time(Vec::new(), entry.mtime)
    }

    fn directory(&mut self, path: &[u8], parent: &[u8], name: &[u8], entry: &TarEntry) -> Result<(), UnpackError> {
        self.implicit.remove(path);
        let parent = self.parent(parent)?;
        let mut opaque = false;
        match kind_of(parent, name)? {
            Some(FileType::Directory) => {}
            had => {
                if had.is_some() {
                    opaque = had == Some(FileType::CharacterDevice);
                    rustix::fs::unlinkat(parent, name, AtFlags::empty())?;
                }
                rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))?;
            }
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(parent, name, flags, Mode::empty())?;
        if opaque {
            set_opaque(fd.as_fd())?;
        }
        set_owner_and_mode(fd.as_fd(), entry)?;
        set_xattrs(fd.as_fd(), entry)?;
        self.remember_time(path.to_vec(), entry.mtime)
    }

    fn file<R: Skip>(
        &mut self,
        parent: &[u8],
        name: &[u8],
        entry: &TarEntry,
        reader: &mut TarReader<R>,
    ) -> Result<(), UnpackError> {
        let parent = self.parent(parent)?;
        clear(parent, name)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o600))?);
        loop {
            let piece = match reader.content() {
                Ok(piece) => piece,
                Err(error) => return Err(tar_error(error).1),
            };
            if piece.is_empty() {
                break;
            }
            file.write_all(piece)?;
            let count = piece.len();
            reader.consume(count);
        }
        set_owner_and_mode(file.as_fd(), entry)?;
        set_xattrs(file.as_fd(), entry)?;
        rustix::fs::futimens(&file, &timestamps(entry.mtime))?;
        Ok(())
    }

    fn hard_link(&mut self, parent: &[u8], name: &[u8], entry: &TarEntry) -> Result<(), UnpackError> {
        let shown = || crate::spec::clip(&String::from_utf8_lossy(&entry.link));
        let target = clean_path(&entry.link).map_err(|problem| match problem {
            EntryProblem::DotDot => EntryProblem::LinkOut(shown()),
            _ => EntryProblem::BadTarget,
        })?;
        let (target_parent, target_name) = split(&target).ok_or_else(|| EntryProblem::LinkKind(shown()))?;
        // The other directory is opened without making it: a link to what is not there is an error.
        let from = match open_directory(&self.root, target_parent) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR) => return Err(EntryProblem::LinkMissing(shown()).into()),
            Err(Errno::LOOP | Errno::XDEV) => return Err(EntryProblem::LinkOut(shown()).into()),
            Err(error) => return Err(error.into()),
        };
        match kind_of(from.as_fd(), target_name)? {
            None => return Err(EntryProblem::LinkMissing(shown()).into()),
            Some(FileType::RegularFile | FileType::Symlink | FileType::Fifo) => {}
            Some(_) => return Err(EntryProblem::LinkKind(shown()).into()),
        }
        let mut own = parent.to_vec();
        own.extend_from_slice(if parent.is_empty() { b"" } else { b"/" });
        own.extend_from_slice(name);
        if own == target {
            return Ok(());
        }
        let parent = self.parent(parent)?;
        clear(parent, name)?;
        rustix::fs::linkat(&from, target_name, parent, name, AtFlags::empty())?;
        Ok(())
    }

    fn symlink(&mut self, parent: &[u8], name: &[u8], entry: &TarEntry) -> Result<(), UnpackError> {
        if entry.link.is_empty() || entry.link.len() > MAX_PATH_BYTES || entry.link.contains(&0) {
            return Err(EntryProblem::BadTarget.into());
        }
        let parent = self.parent(parent)?;
        clear(parent, name)?;
        // The target is a matter of the container, whose root it will be resolved in: nothing here ever follows it.
        rustix::fs::symlinkat(entry.link.as_slice(), parent, name)?;
        let (uid, gid) = owner(entry);
        rustix::fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        rustix::fs::utimensat(parent, name, &timestamps(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(())
    }

    fn fifo(&mut self, parent: &[u8], name: &[u8], entry: &TarEntry) -> Result<(), UnpackError> {
        let parent = self.parent(parent)?;
        clear(parent, name)?;
        rustix::fs::mknodat(parent, name, FileType::Fifo, Mode::from_raw_mode(0o600), 0)?;
        let (uid, gid) = owner(entry);
        rustix::fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        // It was made a moment ago in a directory that nobody else reaches: there is no link to follow.
        rustix::fs::chmodat(parent, name, mode(entry), AtFlags::empty())?;
        rustix::fs::utimensat(parent, name, &timestamps(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(())
    }

    fn whiteout(&mut self, parent: &[u8], hidden: &[u8]) -> Result<(), UnpackError> {
        if hidden == b".wh..opq" {
            let parent = self.parent(parent)?;
            // The parent is held by an O_PATH descriptor, which takes no attributes.
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            return Ok(set_opaque(rustix::fs::openat(parent, ".", flags, Mode::empty())?.as_fd())?);
        }
        if hidden.starts_with(b".wh.") {
            // `.wh..wh.aufs`, `.wh..wh.plnk` and `.wh..wh.orph` are aufs' own files, found in images of old Docker versions.
            return Ok(());
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(EntryProblem::BadWhiteout.into());
        }
        let parent = self.parent(parent)?;
        match kind_of(parent, hidden)? {
            None => Ok(rustix::fs::mknodat(parent, hidden, FileType::CharacterDevice, Mode::empty(), 0)?),
            Some(FileType::Directory) => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                Ok(set_opaque(rustix::fs::openat(parent, hidden, flags, Mode::empty())?.as_fd())?)
            }
            // This layer's own file hides the lower one already.
            Some(_) => Ok(()),
        }
    }

    /// The directory `path`, with what is missing of it made.
    fn parent(&mut self, path: &[u8]) -> Result<BorrowedFd<'_>, UnpackError> {
        if self.parent.as_ref().is_none_or(|parent| parent.path != path) {
            let fd = match open_directory(&self.root, path) {
                Err(Errno::NOENT | Errno::NOTDIR) => self.make_directories(path)?,
                other => other.map_err(through)?,
            };
            self.parent = Some(Parent { path: path.to_vec(), fd });
        }
        Ok(self.parent.as_ref().map_or(self.root.as_fd(), |parent| parent.fd.as_fd()))
    }

    fn make_directories(&mut self, path: &[u8]) -> Result<OwnedFd, UnpackError> {
        let mut fd = open_directory(&self.root, b"")?;
        let mut so_far = Vec::with_capacity(path.len());
        for name in path.split(|byte| *byte == b'/') {
            so_far.extend_from_slice(if so_far.is_empty() { b"" } else { b"/" });
            so_far.extend_from_slice(name);
            let had = kind_of(fd.as_fd(), name)?;
            match had {
                Some(FileType::Directory) => {}
                Some(FileType::Symlink) => return Err(EntryProblem::ThroughSymlink.into()),
                None | Some(FileType::CharacterDevice) => {
                    if had.is_some() {
                        rustix::fs::unlinkat(&fd, name, AtFlags::empty())?;
                    }
                    rustix::fs::mkdirat(&fd, name, Mode::from_raw_mode(0o755))?;
                    self.remember_time(so_far.clone(), (0, 0))?;
                    self.implicit.insert(so_far.clone());
                }
                Some(_) => return Err(EntryProblem::ThroughFile.into()),
            }
            let next = open_directory(&fd, name).map_err(through)?;
            if had.is_none_or(|had| had == FileType::CharacterDevice) {
                let readable = rustix::fs::openat(
                    &next,
                    ".",
                    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
                    Mode::empty(),
                )?;
                rustix::fs::fchmod(&readable, Mode::from_raw_mode(0o755))?;
                if had.is_some() {
                    set_opaque(readable.as_fd())?;
                }
            }
            fd = next;
        }
        Ok(fd)
    }

    fn remember_time(&mut self, path: Vec<u8>, time: (i64, u32)) -> Result<(), UnpackError> {
        self.directory_bytes += path.len() + size_of::<(Vec<u8>, (i64, u32))>();
        if self.directory_bytes > MAX_DIRECTORY_PATHS_BYTES {
            let reason =
                format!("the paths of its directories are longer than {MAX_DIRECTORY_PATHS_BYTES} bytes in all");
            return Err(UnpackError::TooMany(reason));
        }
        self.directories.push((path, time));
        Ok(())
    }

    /// Sets the times of directories: in order, so that the last word on a directory counts.
    fn finish(self) -> Result<Vec<Vec<u8>>, (String, UnpackError)> {
        for (path, time) in &self.directories {
            let shown = |error: Errno| (crate::spec::clip(&String::from_utf8_lossy(path)), error.into());
            let fd = match open_directory(&self.root, path) {
                // A later entry put something else there.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                other => other.map_err(shown)?,
            };
            rustix::fs::utimensat(&fd, "", &timestamps(*time), AtFlags::EMPTY_PATH)
                .or_else(|_| rustix::fs::utimensat(&fd, ".", &timestamps(*time), AtFlags::empty()))
                .map_err(shown)?;
        }
        Ok(self.implicit.into_iter().collect())
    }
}

/// Opens a directory beneath `root`, or `root` itself for the empty path, as a place only (`O_PATH`).
pub(crate) fn open_directory(root: &OwnedFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { b"." } else { path };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve =
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    loop {
        match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
            // The kernel could not rule out a race with a rename elsewhere: try again (openat2(2)).
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
}

fn through(error: Errno) -> UnpackError {
    match error {
        Errno::LOOP | Errno::XDEV => EntryProblem::ThroughSymlink.into(),
        Errno::NOTDIR => EntryProblem::ThroughFile.into(),
        error => error.into(),
    }
}

/// The components of a path, joined by single slashes: without a leading slash (a path is always from the layer's root), `.` and repetitions.
fn clean_path(path: &[u8]) -> Result<Vec<u8>, EntryProblem> {
    if path.is_empty() || path.contains(&0) {
        return Err(EntryProblem::BadPath);
    }
    if path.len() > MAX_PATH_BYTES {
        return Err(EntryProblem::PathTooLong { had: path.len(), limit: MAX_PATH_BYTES });
    }
    let mut clean = Vec::with_capacity(path.len());
    let mut depth = 0;
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(EntryProblem::DotDot),
            part if part.len() > MAX_NAME_BYTES => {
                return Err(EntryProblem::NameTooLong { had: part.len(), limit: MAX_NAME_BYTES });
            }
            part => {
                depth += 1;
                clean.extend_from_slice(if depth > 1 { b"/" } else { b"" });
                clean.extend_from_slice(part);
            }
        }
    }
    if depth > MAX_PATH_DEPTH {
        return Err(EntryProblem::TooDeep { had: depth, limit: MAX_PATH_DEPTH });
    }
    Ok(clean)
}

/// Parent and name of a clean path; `None` for the root.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => Some((&path[..slash], &path[slash + 1..])),
        None if path.is_empty() => None,
        None => Some((b"", path)),
    }
}

fn kind_of(parent: BorrowedFd<'_>, name: &[u8]) -> Result<Option<FileType>, Errno> {
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes room for a new entry that is no directory: of two entries with one path, the later counts.
fn clear(parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), UnpackError> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) => Err(EntryProblem::ReplacesDirectory.into()),
            other => Ok(other?),
        },
        Err(error) => Err(error.into()),
    }
}

fn owner(entry: &TarEntry) -> (Uid, Gid) {
    (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid))
}

fn mode(entry: &TarEntry) -> Mode {
    Mode::from_raw_mode(entry.mode & 0o7777)
}

/// Owner first: a change of owner clears the set-user-id bit and capabilities.
fn set_owner_and_mode(fd: BorrowedFd<'_>, entry: &TarEntry) -> Result<(), Errno> {
    let (uid, gid) = owner(entry);
    rustix::fs::fchown(fd, Some(uid), Some(gid))?;
    rustix::fs::fchmod(fd, mode(entry))
}

fn set_xattrs(fd: BorrowedFd<'_>, entry: &TarEntry) -> Result<(), UnpackError> {
    if entry.xattrs.len() > MAX_XATTRS || entry.xattrs.iter().any(|(_, value)| value.len() > MAX_XATTR_BYTES) {
        return Err(EntryProblem::Xattrs.into());
    }
    for (name, value) in &entry.xattrs {
        let kept =
            name == b"security.capability" || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."));
        if !kept || name.contains(&0) {
            continue;
        }
        match rustix::fs::fsetxattr(fd, name.as_slice(), value, XattrFlags::empty()) {
            // A disk without such attributes (FAT, some NAS shares) loses them, as it does for every other tool.
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            // Too large a name or value for this file system, or a capability that is none.
            Err(Errno::RANGE | Errno::TOOBIG | Errno::INVAL) => return Err(EntryProblem::Xattrs.into()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn set_opaque(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::fs::fsetxattr(fd, "trusted.overlay.opaque", b"y", XattrFlags::empty())
}

fn timestamps((seconds, nanos): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanos.into() };
    Timestamps { last_access: time, last_modification: time }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_are_cleaned_or_refused() {
        for (path, clean) in
            [("a", Ok("a")), ("./a//b/", Ok("a/b")), ("/etc/passwd", Ok("etc/passwd")), ("./", Ok("")), (".", Ok(""))]
        {
            assert_eq!(clean_path(path.as_bytes()), clean.map(|c: &str| c.as_bytes().to_vec()), "{path}");
        }
        for path in ["..", "a/..", "../a", "a/../b", "/..", "./../a"] {
            assert_eq!(clean_path(path.as_bytes()), Err(EntryProblem::DotDot), "{path}");
        }
        assert_eq!(clean_path(b""), Err(EntryProblem::BadPath));
        assert_eq!(clean_path(b"a\0b"), Err(EntryProblem::BadPath));
    }

    #[test]
    fn directories_do_not_fill_the_memory() {
        let mut builder = tar::Builder::new(Vec::new());
        let long = vec!["d".repeat(250); 15].join("/");
        for n in 0..5_000 {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(0o755);
            header.set_size(0);
            builder.append_data(&mut header, format!("{long}/{n}/"), io::empty()).expect("memory");
        }
        let bytes = builder.into_inner().expect("memory");
        let root = tempfile::tempdir().expect("a directory");
        match unpack(io::Cursor::new(bytes), root.path(), u64::MAX) {
            Err((_, UnpackError::TooMany(reason))) => assert!(reason.contains("paths of its directories")),
            other => panic!("{other:?}"),
        }
    }

    proptest! {
        #[test]
        fn a_clean_path_never_climbs(path in proptest::collection::vec(prop_oneof![Just(b'.'), Just(b'/'), any::<u8>()], 0..64)) {
            if let Ok(clean) = clean_path(&path) {
                prop_assert!(clean.is_empty() || clean.split(|b| *b == b'/').all(|part| !matches!(part, b"" | b"." | b"..")));
                prop_assert_eq!(clean_path(if clean.is_empty() { b"." } else { &clean }), Ok(clean.clone()));
            }
        }
    }
}
