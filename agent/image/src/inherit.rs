//! Directories that a layer has files in without mentioning them.
//!
//! Some tools (umoci, bazel, ko) write `tmp/x` without an entry for `tmp/`. Overlayfs shows a directory with the owner and mode of its topmost
//! layer, so such a directory has to take over those of the layers below, or `/tmp` would no longer be writable. What a layer takes over
//! depends on what is below it, so a layer that does is kept under a name of its own, made of its diff id and of what it took over; all other
//! layers, nearly all there are, are kept under their diff id. Attributes beyond owner, mode and time are not taken over.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use crate::unpack::open_directory;
use crate::{Digest, ImageError};

/// Owner, mode and time of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Metadata {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: (i64, u32),
}

/// What a directory has that nobody mentioned, in any layer: what unpacking gives it.
const DEFAULT: Metadata = Metadata { mode: 0o755, uid: 0, gid: 0, mtime: (0, 0) };

/// What a layer takes over from those below it.
#[derive(Debug, Default)]
pub(crate) struct Inherited(Vec<(Vec<u8>, Metadata)>);

/// What one layer says about a path.
enum Answer {
    Found(Metadata),
    /// It has something else there, or hides what is below.
    Hidden,
    Absent,
}

impl Inherited {
    /// Looks for the directories `implicit` (sorted, relative, the root as the empty path) in the layers below, bottom first.
    pub(crate) fn find(implicit: &[Vec<u8>], below: &[PathBuf]) -> Result<Self, ImageError> {
        let mut layers = Vec::with_capacity(below.len());
        for path in below.iter().rev() {
            layers.push((path, open_root(path)?));
        }
        let mut inherited = Vec::new();
        let mut absent: Option<&[u8]> = None;
        for path in implicit {
            // Below a directory that is new, all are.
            if absent.is_some_and(|above| path.strip_prefix(above).is_some_and(|rest| rest.starts_with(b"/"))) {
                continue;
            }
            match find_in(&layers, path)? {
                Some(metadata) if metadata != DEFAULT => inherited.push((path.clone(), metadata)),
                Some(_) => {}
                None if path.is_empty() => {}
                None => absent = Some(path),
            }
        }
        Ok(Self(inherited))
    }

    /// The name that the layer is kept under.
    pub(crate) fn key(&self, diff_id: &Digest) -> Digest {
        if self.0.is_empty() {
            return *diff_id;
        }
        let mut text = format!("{diff_id}\n").into_bytes();
        for (path, Metadata { mode, uid, gid, mtime }) in &self.0 {
            text.extend(format!("{mode:o} {uid} {gid} {} {} {} ", mtime.0, mtime.1, path.len()).into_bytes());
            text.extend(path);
            text.push(b'\n');
        }
        Digest::of(&text)
    }

    /// Gives the directories of the unpacked layer at `root` what they take over.
    pub(crate) fn apply(&self, root: &Path) -> Result<(), ImageError> {
        let failed = |error: Errno| ImageError::io("set the owner and mode of a directory in", root, error);
        let root_fd = open_root(root)?;
        for (path, metadata) in &self.0 {
            let place = match open_directory(&root_fd, path) {
                // A later entry of the layer put something else there, or the layer hides what is below.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                other => other.map_err(failed)?,
            };
            if any_opaque_above(&root_fd, path).map_err(failed)? {
                continue;
            }
            let fd = readable(&place).map_err(failed)?;
            rustix::fs::fchown(&fd, Some(Uid::from_raw(metadata.uid)), Some(Gid::from_raw(metadata.gid)))
                .map_err(failed)?;
            rustix::fs::fchmod(&fd, Mode::from_raw_mode(metadata.mode)).map_err(failed)?;
            let time = Timespec { tv_sec: metadata.mtime.0, tv_nsec: metadata.mtime.1.into() };
            rustix::fs::futimens(&fd, &Timestamps { last_access: time, last_modification: time }).map_err(failed)?;
        }
        Ok(())
    }
}

fn find_in(layers: &[(&PathBuf, OwnedFd)], path: &[u8]) -> Result<Option<Metadata>, ImageError> {
    for (root, fd) in layers {
        match ask(fd, path).map_err(|error| ImageError::io("look for a directory in", root, error))? {
            Answer::Found(metadata) => return Ok(Some(metadata)),
            Answer::Hidden => return Ok(None),
            Answer::Absent => {}
        }
    }
    Ok(None)
}

fn ask(root: &OwnedFd, path: &[u8]) -> Result<Answer, Errno> {
    match open_directory(root, path) {
        Ok(fd) => {
            let stat = rustix::fs::statat(&fd, "", AtFlags::EMPTY_PATH)?;
            Ok(Answer::Found(Metadata {
                mode: stat.st_mode & 0o7777,
                uid: stat.st_uid,
                gid: stat.st_gid,
                mtime: (stat.st_mtime, stat.st_mtime_nsec as u32),
            }))
        }
        Err(Errno::NOENT) if any_opaque_above(root, path)? => Ok(Answer::Hidden),
        Err(Errno::NOENT) => Ok(Answer::Absent),
        Err(Errno::NOTDIR | Errno::LOOP) => Ok(Answer::Hidden),
        Err(error) => Err(error),
    }
}

/// Whether a directory above `path` is opaque in the layer.
fn any_opaque_above(root: &OwnedFd, path: &[u8]) -> Result<bool, Errno> {
    let mut path = path;
    while !path.is_empty() {
        path = path.iter().rposition(|byte| *byte == b'/').map_or(&[][..], |slash| &path[..slash]);
        let place = match open_directory(root, path) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
            other => other?,
        };
        let mut value = [0; 1];
        match rustix::fs::fgetxattr(readable(&place)?, "trusted.overlay.opaque", &mut value) {
            Ok(1) if value == *b"y" => return Ok(true),
            Ok(_) | Err(Errno::NODATA | Errno::RANGE | Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

fn open_root(path: &Path) -> Result<OwnedFd, ImageError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|error| ImageError::io("open", path, error))
}

fn readable(place: &OwnedFd) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(place, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}
