//! The group of a pod's volumes (`fsGroup`), as the kubelet sets it: `SetVolumeOwnership` of pkg/volume/volume_linux.go.

use std::fs::Permissions;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use crate::VolumeError;

/// Directories held open at once; a volume that is deeper keeps its pod from starting.
const MAX_OPEN: usize = 128;
/// What its group may do with a file.
const FILE: u32 = 0o660;
/// What its group may do with a directory, whose group what is made in it gets.
const DIRECTORY: u32 = 0o2770;

/// Gives all in `directory` to a group, which may then do with it what its owner may.
///
/// # Guarantees
/// No link is followed, and no mount point crossed. What has the group and its rights already is not written to.
///
/// # Assumptions
/// No container of the pod runs: ownership does not change under it.
pub(crate) fn set(directory: &Path, group: u32) -> Result<(), VolumeError> {
    let failed = |error: Errno| VolumeError::io("set the group of", directory, error);
    let root =
        open(rustix::fs::CWD, directory.as_os_str().as_encoded_bytes(), OFlags::DIRECTORY, ResolveFlags::empty());
    give(root.map_err(failed)?, group, 0).map_err(failed)
}

/// Whether the directory itself is the group's already: with `OnRootMismatch`, then nothing more is looked at.
pub(crate) fn has(directory: &Path, group: u32) -> Result<bool, VolumeError> {
    let stat = rustix::fs::stat(directory).map_err(|error| VolumeError::io("look at", directory, error))?;
    Ok(stat.st_gid == group && stat.st_mode & DIRECTORY == DIRECTORY)
}

/// What is in a directory first: should this be cut off, the directory still says that it was not done.
fn give(directory: OwnedFd, group: u32, depth: usize) -> Result<(), Errno> {
    if depth >= MAX_OPEN {
        return Err(Errno::NAMETOOLONG);
    }
    let listed =
        rustix::fs::openat(&directory, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    for entry in Dir::new(listed)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if matches!(name, b"." | b"..") {
            continue;
        }
        let resolve = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH;
        match open(directory.as_fd(), name, OFlags::empty(), resolve) {
            Ok(child) => {
                let stat = rustix::fs::fstat(&child)?;
                match FileType::from_raw_mode(stat.st_mode) {
                    FileType::Directory => give(child, group, depth + 1)?,
                    _ => give_one(&child, &stat, group)?,
                }
            }
            // Gone, or a mount point.
            Err(Errno::NOENT | Errno::XDEV) => {}
            Err(error) => return Err(error),
        }
    }
    let stat = rustix::fs::fstat(&directory)?;
    give_one(&directory, &stat, group)
}

fn give_one(file: &OwnedFd, stat: &Stat, group: u32) -> Result<(), Errno> {
    let wanted = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => DIRECTORY,
        _ => FILE,
    };
    let mode = stat.st_mode & 0o7777;
    let is_link = FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
    if stat.st_gid != group {
        rustix::fs::chownat(file, c"", None, Some(Gid::from_raw(group)), AtFlags::EMPTY_PATH)?;
    }
    // A link has no mode. Of other files, a change of owner takes away that they are set-user-id.
    if !is_link && (stat.st_gid != group || mode & wanted != wanted) {
        // The descriptor names a file and cannot be written to by itself: it may be a FIFO.
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let set = std::fs::set_permissions(path, Permissions::from_mode(mode | wanted));
        set.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    }
    Ok(())
}

fn open(at: BorrowedFd<'_>, name: &[u8], more: OFlags, resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
    rustix::fs::openat2(at, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC | more, Mode::empty(), resolve)
}
