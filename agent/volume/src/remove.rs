//! Removing trees that containers wrote: no link is followed, no mount point crossed, and depth costs nothing.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RenameFlags, ResolveFlags};
use rustix::io::Errno;

use crate::VolumeError;

/// Directories held open at once. What lies deeper is moved up first, so that a tree of any depth can be removed.
const MAX_OPEN: usize = 64;

/// Names in a trash that cannot be removed.
pub(crate) type Stuck = BTreeSet<Vec<u8>>;

/// Removes everything in the directory `trash`, which itself stays. What cannot be removed is added to `stuck`, does not keep the rest
/// from being removed, and is the error in the end; what is in `stuck` already is left alone.
pub(crate) fn empty(trash: &Path, stuck: &mut Stuck) -> Result<(), VolumeError> {
    let failed = |error: Errno| VolumeError::io("remove what is in", trash, error);
    let Some(root) = open_trash(trash).map_err(failed)? else { return Ok(()) };
    let (mut moved, mut first) = (0, Ok(()));
    loop {
        let mut fresh = names(root.as_fd()).map_err(failed)?;
        fresh.retain(|name| !stuck.contains(name));
        if fresh.is_empty() {
            return first;
        }
        for name in fresh {
            if let Err(error) = remove_entry(root.as_fd(), root.as_fd(), &name, 0, &mut moved) {
                let path = trash.join(OsStr::from_bytes(&name));
                first = first.and(Err(VolumeError::io("remove what is in", &path, error)));
                stuck.insert(name);
            }
        }
    }
}

/// Whether there is anything in `trash` that is not in `stuck`.
pub(crate) fn has_fresh(trash: &Path, stuck: &Stuck) -> Result<bool, VolumeError> {
    let failed = |error: Errno| VolumeError::io("list", trash, error);
    let Some(root) = open_trash(trash).map_err(failed)? else { return Ok(false) };
    Ok(names(root.as_fd()).map_err(failed)?.iter().any(|name| !stuck.contains(name)))
}

fn open_trash(trash: &Path) -> Result<Option<OwnedFd>, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::open(trash, flags, Mode::empty()) {
        Ok(root) => Ok(Some(root)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Moves `path` into the directory `trash`, on the same file system, under a name that is free.
pub(crate) fn into_trash(path: &Path, trash: &Path, name: &str) -> Result<(), VolumeError> {
    for count in 0.. {
        let to = trash.join(format!("{name}.{count}"));
        match rustix::fs::renameat_with(rustix::fs::CWD, path, rustix::fs::CWD, &to, RenameFlags::NOREPLACE) {
            Ok(()) => break,
            Err(Errno::EXIST) => {}
            Err(error) => return Err(VolumeError::io("move into the trash", path, error)),
        }
    }
    Ok(())
}

/// Rounds, until nothing is left: what was moved up, and what did not fit into one round, is found by the next.
fn empty_directory(
    root: BorrowedFd<'_>,
    directory: BorrowedFd<'_>,
    depth: usize,
    moved: &mut u64,
) -> Result<(), Errno> {
    loop {
        let names = names(directory)?;
        if names.is_empty() {
            return Ok(());
        }
        for name in names {
            remove_entry(root, directory, &name, depth, moved)?;
        }
    }
}

fn remove_entry(
    root: BorrowedFd<'_>,
    directory: BorrowedFd<'_>,
    name: &[u8],
    depth: usize,
    moved: &mut u64,
) -> Result<(), Errno> {
    let stat = match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(()),
        other => other?,
    };
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return rustix::fs::unlinkat(directory, name, AtFlags::empty());
    }
    if depth >= MAX_OPEN {
        return move_up(root, directory, name, moved);
    }
    let child = open_below(directory, name)?;
    empty_directory(root, child.as_fd(), depth + 1, moved)?;
    rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR)
}

/// A mount point answers EXDEV here, and nothing behind it is touched.
fn open_below(directory: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve =
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    rustix::fs::openat2(directory, name, flags, Mode::empty(), resolve)
}

fn move_up(root: BorrowedFd<'_>, directory: BorrowedFd<'_>, name: &[u8], moved: &mut u64) -> Result<(), Errno> {
    loop {
        *moved += 1;
        match rustix::fs::renameat_with(directory, name, root, format!("moved-{moved}"), RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => {}
            other => return other,
        }
    }
}

/// The names in a directory, read anew each time: removing while reading may skip some.
fn names(directory: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>, Errno> {
    /// Names held in memory at once; a directory with more is worked off in rounds.
    const MAX_NAMES: usize = 100_000;
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
        if names.len() == MAX_NAMES {
            break;
        }
    }
    Ok(names)
}
