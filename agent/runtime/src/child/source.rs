//! What a mount shows: its source on the host, or what lies beneath it.

use std::{
    ffi::OsStr,
    fs::{self, File, Permissions},
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
    path::{Component, Path, PathBuf},
};

use nix::sys::stat::{Mode, mkdirat};

use crate::{model::Mount, sys};

/// Opens what a mount shows. A part of a volume that is not there is made, as a directory with the mode of the volume (the kubelet's `subPath`).
///
/// # Guarantees
/// Links are followed inside the source only, whatever its containers make of it meanwhile: the kernel holds each step there.
pub(super) fn open(mount: &Mount) -> io::Result<OwnedFd> {
    let source = fs::OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(&mount.source)?.into();
    if mount.sub_path.as_os_str().is_empty() { Ok(source) } else { beneath(&source, &mount.sub_path) }
}

fn beneath(source: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    let missing = match sys::open_in_root(source.as_fd(), path, libc::O_PATH) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => error,
        other => return other,
    };
    let (mut at, mut walked) = (source.try_clone()?, PathBuf::new());
    let mode = File::from(source.try_clone()?).metadata()?.permissions();
    for name in path.components() {
        let Component::Normal(name) = name else { return Err(missing) };
        walked.push(name);
        at = match sys::open_in_root(source.as_fd(), &walked, libc::O_PATH) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                make_dir(&at, name, &mode)?;
                sys::open_in_root(source.as_fd(), &walked, libc::O_PATH)?
            }
            other => other?,
        };
    }
    Ok(at)
}

/// Makes a directory in another one, of the container's root; one that came meanwhile is as good.
fn make_dir(parent: &OwnedFd, name: &OsStr, mode: &Permissions) -> io::Result<()> {
    match mkdirat(Some(parent.as_raw_fd()), name, Mode::S_IRWXU) {
        Err(nix::errno::Errno::EEXIST) => Ok(()),
        Err(error) => Err(error.into()),
        // Whatever the umask is.
        Ok(()) => {
            let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
            File::from(sys::open_in_root(parent.as_fd(), Path::new(name), flags)?).set_permissions(mode.clone())
        }
    }
}

/// The path by which the kernel finds an open file again.
pub(super) fn path(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// Whether a path can be a part of a volume.
pub(super) fn check_sub_path(path: &Path) -> Result<(), String> {
    if path.components().all(|part| matches!(part, Component::Normal(_))) {
        return Ok(());
    }
    Err(format!("{} must be a relative path without '..'", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;
    use crate::model::MountKind;

    fn part(volume: &Path, sub_path: &str) -> io::Result<PathBuf> {
        let mount = Mount {
            source: volume.to_owned(),
            target: "/data".into(),
            sub_path: sub_path.into(),
            read_only: false,
            kind: MountKind::IdmappedBind,
        };
        fs::read_link(path(&open(&mount)?))
    }

    #[test]
    fn what_is_missing_is_made_and_nothing_leads_out() {
        let dir = tempfile::tempdir().expect("a directory");
        let (volume, outside) = (dir.path().join("volume"), dir.path().join("outside"));
        for made in [&volume, &outside] {
            fs::create_dir(made).expect("a directory");
        }
        fs::set_permissions(&volume, Permissions::from_mode(0o2777)).expect("a mode");
        fs::write(volume.join("file"), "x").expect("a file");
        for (link, to) in
            [("up", "../outside"), ("far", outside.to_str().expect("text")), ("near", "a"), ("dangling", "b/c")]
        {
            symlink(to, volume.join(link)).expect("a link");
        }
        let real = volume.canonicalize().expect("it is there");
        for (sub_path, expected) in [("", ""), ("a/b", "a/b"), ("a/b", "a/b"), ("near/b/c", "a/b/c"), ("file", "file")]
        {
            assert_eq!(part(&volume, sub_path).expect("there"), real.join(expected).components().collect::<PathBuf>());
        }
        let mode = fs::metadata(volume.join("a/b")).expect("made").permissions().mode();
        assert_eq!(mode & 0o7777, 0o2777, "as the volume's");
        for sub_path in ["up/new", "far/new", "dangling", "dangling/x", "file/x"] {
            let found = part(&volume, sub_path);
            assert!(found.as_ref().map_or(true, |found| found.starts_with(&real)), "{sub_path}: {found:?}");
        }
        assert_eq!(fs::read_dir(&outside).expect("there").count(), 0, "nothing is made outside");
        assert!(check_sub_path(Path::new("a/../b")).is_err() && check_sub_path(Path::new("/a")).is_err());
    }
}
