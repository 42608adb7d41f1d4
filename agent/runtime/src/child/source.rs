//! What a mount puts into a container, opened once: what is checked is what is mounted.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::{OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use nix::sys::stat::{Mode, mkdirat, umask};

use crate::{
    error::StartError,
    model::{Mount, MountKind},
    sys,
};

/// Opens what is to be mounted; none where that is not the host's.
pub(super) fn open(mount: &Mount) -> Result<Option<OwnedFd>, StartError> {
    let whole = || {
        let opened = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(&mount.source);
        opened.map(OwnedFd::from).map_err(|e| StartError::Mount {
            source_path: mount.source.clone(),
            target: mount.target.clone(),
            reason: e.to_string(),
        })
    };
    match &mount.kind {
        MountKind::IdmappedBind => whole().map(Some),
        MountKind::SubPath { path, create } => {
            let failed = |e: io::Error| StartError::SubPath {
                path: path.clone(),
                target: mount.target.clone(),
                reason: match e.raw_os_error() {
                    Some(libc::EXDEV) => "a link on the way leads out of the volume".to_owned(),
                    Some(libc::ENOENT) if !create => "the volume has no such file".to_owned(),
                    _ => e.to_string(),
                },
            };
            beneath(&whole()?, path, *create).map(Some).map_err(failed)
        }
        MountKind::Tmpfs { .. } => Ok(None),
    }
}

/// Opens what is at `path` beneath a volume. Links are followed as far as they stay in it, as those of ConfigMaps do.
///
/// # Guarantees
/// What is opened, and what is made, is in the volume, also where containers rename and link in it meanwhile: each step begins at a
/// descriptor, and the kernel refuses what leads out.
fn beneath(volume: &OwnedFd, path: &Path, create: bool) -> io::Result<OwnedFd> {
    match sys::open_beneath(volume.as_fd(), path, libc::O_PATH) {
        Err(e) if create && e.kind() == io::ErrorKind::NotFound => {
            make_dirs(volume, path)?;
            sys::open_beneath(volume.as_fd(), path, libc::O_PATH)
        }
        other => other,
    }
}

/// Makes what is missing of a path, with the mode of the volume's own directory, as the kubelet does. It belongs to 0:0 or, below a
/// directory whose group is handed down, to that group.
fn make_dirs(volume: &OwnedFd, path: &Path) -> io::Result<()> {
    let mode = File::from(volume.try_clone()?).metadata()?.permissions().mode() & 0o777;
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
                sys::open_beneath(volume.as_fd(), &so_far, flags)?
            }
            other => other?,
        };
    }
    Ok(())
}
