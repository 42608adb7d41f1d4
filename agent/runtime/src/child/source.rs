//! What a mount puts into a container, opened once: what is checked is what is mounted.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::{MetadataExt, OpenOptionsExt, chown},
    },
    path::{Path, PathBuf},
};

use nix::sys::stat::{Mode, mkdirat, umask};

use super::rootfs;
use crate::{
    error::StartError,
    model::{IdMap, Mount, MountKind},
    sys,
};

/// Opens what is to be mounted; none where it is made with the mount. Volumes in memory are below `memory`.
pub(super) fn open(mount: &Mount, memory: &Path, map: IdMap) -> Result<Option<OwnedFd>, StartError> {
    let whole = |source: &Path| {
        let opened = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(source);
        opened.map(OwnedFd::from).map_err(|e| StartError::Mount {
            source_path: source.to_owned(),
            target: mount.target.clone(),
            reason: e.to_string(),
        })
    };
    let part = |volume: &OwnedFd, path: &Path, made: Made| {
        beneath(volume, path, made).map_err(|e: io::Error| StartError::SubPath {
            path: path.to_owned(),
            target: mount.target.clone(),
            reason: match e.raw_os_error() {
                Some(libc::EXDEV) => "a link on the way leads out of the volume".to_owned(),
                Some(libc::ENOENT) if made == Made::Nothing => "the volume has no such file".to_owned(),
                _ => e.to_string(),
            },
        })
    };
    match &mount.kind {
        MountKind::IdmappedBind => whole(&mount.source).map(Some),
        MountKind::SubPath { path, create } => {
            // Ids on disk are the container's.
            let made = if *create { Made::Owned(0) } else { Made::Nothing };
            part(&whole(&mount.source)?, path, made).map(Some)
        }
        MountKind::Memory { volume, path } => {
            let volume = whole(&memory.join(volume))?;
            match path {
                None => Ok(Some(volume)),
                Some(path) => part(&volume, path, Made::Owned(map.host_base)).map(Some),
            }
        }
        MountKind::Tmpfs { .. } => Ok(None),
    }
}

/// What is made of a path that is missing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Made {
    Nothing,
    /// Directories of this owner.
    Owned(u32),
}

/// Opens what is at `path` beneath a volume. Links are followed as far as they stay in it, as those of ConfigMaps do.
///
/// # Guarantees
/// What is opened, and what is made, is in the volume, also where containers rename and link in it meanwhile: each step begins at a
/// descriptor, and the kernel refuses what leads out.
fn beneath(volume: &OwnedFd, path: &Path, made: Made) -> io::Result<OwnedFd> {
    match (sys::open_beneath(volume.as_fd(), path, libc::O_PATH), made) {
        (Err(e), Made::Owned(owner)) if e.kind() == io::ErrorKind::NotFound => {
            make_dirs(volume, path, owner)?;
            sys::open_beneath(volume.as_fd(), path, libc::O_PATH)
        }
        (other, _) => other,
    }
}

/// Makes what is missing of a path, with mode and group of the volume's own directory, as the kubelet does.
fn make_dirs(volume: &OwnedFd, path: &Path, owner: u32) -> io::Result<()> {
    let whole = File::from(volume.try_clone()?).metadata()?;
    let mode = whole.mode() & 0o777;
    let mut parent = volume.try_clone()?;
    let mut so_far = PathBuf::new();
    for part in path.components() {
        so_far.push(part);
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        parent = match sys::open_beneath(volume.as_fd(), &so_far, flags) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                // This process has one thread and is the helper of one container.
                let before = umask(Mode::empty());
                let made = mkdirat(Some(parent.as_raw_fd()), part.as_os_str(), Mode::from_bits_truncate(mode));
                umask(before);
                match made {
                    // Another container's start made it, or there is a link that leads nowhere, which opening it tells.
                    Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
                    Err(e) => return Err(e.into()),
                }
                let fresh = sys::open_beneath(volume.as_fd(), &so_far, flags)?;
                // Only what is still the host's, whatever a container put in its place.
                if owner != 0 && File::from(fresh.try_clone()?).metadata()?.uid() == 0 {
                    chown(rootfs::fd_path(&fresh), Some(owner), Some(whole.gid()))?;
                }
                fresh
            }
            other => other?,
        };
    }
    Ok(())
}
