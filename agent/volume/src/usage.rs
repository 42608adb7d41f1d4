//! How much of the disk a directory takes, as du(1) counts: nothing is written, and nothing outside of it is looked at.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use crate::VolumeError;

/// Directories held open at once: what lies deeper is not counted.
const MAX_OPEN: usize = 128;
/// The unit of `st_blocks`, whatever the file system's own is.
const BLOCK: u64 = 512;

/// What a directory and all in it take of the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Bytes.
    pub bytes: u64,
    /// Files and directories, by their names.
    pub inodes: u64,
}

impl std::ops::AddAssign for Taken {
    fn add_assign(&mut self, other: Self) {
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.inodes = self.inodes.saturating_add(other.inodes);
    }
}

/// What is on the disk of all in `directory`, itself included; nothing where it is not there. Looking ends where it is more than `enough` bytes,
/// and what it is by then is the answer. Blocks for as long as there are files, and writes nothing.
///
/// # Caveats
/// What is changed meanwhile may be counted or not. Files that are deleted and still open are not counted, nor is what lies deeper than
/// 128 directories.
pub fn taken(directory: &Path, enough: u64) -> Result<Taken, VolumeError> {
    let failed = |error: Errno| VolumeError::io("measure", directory, error);
    let root = match open(rustix::fs::CWD, directory.as_os_str().as_encoded_bytes(), ResolveFlags::empty()) {
        Err(Errno::NOENT) => return Ok(Taken::default()),
        other => other.map_err(failed)?,
    };
    let mut taken = Taken { bytes: size(&rustix::fs::fstat(&root).map_err(failed)?), inodes: 1 };
    let mut open_now = vec![Dir::new(root).map_err(failed)?];
    while let Some(directory) = open_now.last_mut() {
        if taken.bytes > enough {
            break;
        }
        let Some(entry) = directory.read() else {
            open_now.pop();
            continue;
        };
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_bytes();
        if matches!(name, b"." | b"..") {
            continue;
        }
        let fd = directory.fd().map_err(failed)?;
        let stat = match rustix::fs::statat(fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => continue,
            other => other.map_err(failed)?,
        };
        taken += Taken { bytes: size(&stat), inodes: 1 };
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory && open_now.len() < MAX_OPEN {
            let fd = open_now.last().map(Dir::fd).transpose().map_err(failed)?;
            match fd.map(|fd| open(fd, name, ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH))
            {
                Some(Ok(child)) => open_now.push(Dir::new(child).map_err(failed)?),
                // Gone, another kind of thing by now, or a mount point.
                None | Some(Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV)) => {}
                Some(Err(error)) => return Err(failed(error)),
            }
        }
    }
    Ok(taken)
}

/// Of a file with several names, each has its share: all of them are in the volume, since no link leads out of one.
fn size(stat: &Stat) -> u64 {
    let bytes = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(BLOCK);
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => bytes,
        #[allow(clippy::useless_conversion)] // its type depends on the architecture
        _ => bytes / u64::from(stat.st_nlink).max(1),
    }
}

/// Without a new time of access, which would be written to flash.
fn open(at: BorrowedFd<'_>, name: &[u8], resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NOATIME;
    rustix::fs::openat2(at.as_fd(), name, flags, Mode::empty(), resolve)
}
