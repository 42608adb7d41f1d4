//! The root file system of a container: overlay over idmapped layers, idmapped volumes, and what has to be in place
//! before libcontainer mounts onto it.

use std::{
    collections::VecDeque,
    ffi::{CString, OsString},
    fs::{self, DirBuilder, File},
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown, lchown},
    },
    path::{Component, Path, PathBuf},
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::{
    error::StartError,
    model::{ContainerSpec, IdMap, Mount, MountKind, TERMINATION_LOG},
    sys::{self, MountAttr},
    trash,
    unprotected::{Protection, lacks},
};

/// How layers get to overlayfs. Which of them this kernel has is probed once: see [`crate::features::layer_paths`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LayerPath {
    /// As descriptors of detached idmapped mounts (6.15).
    Detached,
    /// Attached in this mount namespace and named in mount(2)'s options (any kernel from 5.19).
    Attached,
}

/// Options of every overlay. No redirects and no metadata-only copies: extended attributes come from images. Volatile,
/// since a writable layer is new for each attempt, so that nobody waits for its pages to reach the disk.
const OVERLAY_OPTIONS: [(&str, &str); 4] =
    [("redirect_dir", "nofollow"), ("metacopy", "off"), ("index", "off"), ("volatile", "")];
/// Most links that the way to a mount's target may have, as in the kernel.
const MAX_LINKS: usize = 40;
/// Longest option string of mount(2): a page, with its end.
const MAX_MOUNT_OPTIONS: usize = 4095;

fn rootfs(what: &str) -> impl Fn(io::Error) -> StartError + '_ {
    move |e| StartError::RootFs { reason: format!("{what}: {e}") }
}

/// Where nothing may be mounted: the whole root, and the places the runtime itself mounts and masks.
pub(crate) fn check_target(target: &Path) -> Result<(), String> {
    let mut parts = target.components().skip(1);
    match (parts.next(), parts.next()) {
        (None, _) => Err("the root itself cannot be mounted over".to_owned()),
        // The last is the file for the last message, where Kubernetes has it.
        (Some(Component::Normal(dev)), Some(Component::Normal(name)))
            if dev == "dev" && (name == "shm" || (name == "termination-log" && parts.next().is_none())) =>
        {
            Ok(())
        }
        (Some(Component::Normal(top)), _) if top == "proc" || top == "sys" || top == "dev" => {
            Err(format!("{} is the runtime's own", target.display()))
        }
        _ => Ok(()),
    }
}

/// Attributes of every mount of the host's files: no set-user-ID, no devices.
const GUARDS: u64 = sys::MOUNT_ATTR_NOSUID | sys::MOUNT_ATTR_NODEV;

/// Those of a container's.
fn guards(spec: &ContainerSpec) -> u64 {
    let without = [(Protection::NoSuid, sys::MOUNT_ATTR_NOSUID), (Protection::NoDev, sys::MOUNT_ATTR_NODEV)];
    without.iter().filter(|(guard, _)| lacks(spec, *guard)).fold(GUARDS, |guards, (_, bit)| guards & !bit)
}

/// A detached copy of the mount at `source` on which ids are those of the container.
fn idmapped(source: &Path, userns: BorrowedFd<'_>, attrs: u64) -> io::Result<OwnedFd> {
    let fd = sys::open_tree(source)?;
    let attr = MountAttr {
        attr_set: sys::MOUNT_ATTR_IDMAP | attrs,
        userns_fd: userns.as_raw_fd() as u64,
        ..MountAttr::default()
    };
    sys::mount_setattr(fd.as_fd(), attr).map_err(|e| {
        if e.raw_os_error() == Some(libc::EINVAL) {
            return io::Error::new(e.kind(), format!("{e}: its file system has no idmapped mounts in this kernel"));
        }
        e
    })?;
    Ok(fd)
}

/// Makes the writable layer and mounts the overlay at `<dir>/rootfs`.
pub(crate) fn mount_overlay(
    spec: &ContainerSpec,
    dir: &Path,
    map: IdMap,
    userns: BorrowedFd<'_>,
    ways: &[LayerPath],
) -> Result<(), StartError> {
    let target = dir.join("rootfs");
    fs::create_dir(&target).map_err(rootfs("make its mount point"))?;
    let mut layers = Vec::new();
    for layer in spec.layers.iter().rev() {
        let fd = idmapped(layer, userns, GUARDS | sys::MOUNT_ATTR_RDONLY)
            .map_err(|e| StartError::RootFs { reason: format!("layer {}: {e}", layer.display()) })?;
        layers.push(fd);
    }
    in_turn(ways, |way| {
        let writable = fresh_layer(&spec.scratch, map)?;
        let made = match way {
            LayerPath::Detached => detached_overlay(&layers, &writable, guards(spec))
                .and_then(|overlay| sys::move_mount(overlay.as_fd(), &target)),
            LayerPath::Attached => attached_overlay(&layers, &writable, dir, guards(spec)),
        };
        made.map_err(rootfs("mount the overlay"))
    })
}

/// Tries one way after the other. Should all fail, the first error is told: the first way is the one that was probed
/// to work, so that its error is the cause.
fn in_turn(ways: &[LayerPath], mut attempt: impl FnMut(LayerPath) -> Result<(), StartError>) -> Result<(), StartError> {
    let mut first = None;
    for way in ways {
        match attempt(*way) {
            Ok(()) => return Ok(()),
            Err(e) => first = first.or(Some(e)),
        }
    }
    Err(first.unwrap_or_else(|| StartError::RootFs { reason: "mount the overlay: no way is known".to_owned() }))
}

/// Clears away the writable layer that a start of this attempt left when it was cut off: by a power cut, or with its
/// shim.
///
/// # Assumptions
/// Nobody uses it: the shim starts an attempt once, gives no directory to two containers, and what lived in the
/// attempt's cgroup was killed. Called in the shim's mount namespace, since a helper leaves its own for another root.
pub(super) fn clear_stale(scratch: &Path) -> Result<(), StartError> {
    let mut stale = Vec::new();
    for sub in ["upper", "work"] {
        let path = scratch.join(sub);
        stale.extend(trash::set_aside(&path).map_err(rootfs("clear a stale writable layer"))?);
    }
    trash::delete_apart(&stale);
    Ok(())
}

/// Empty upper and work directories of an attempt, opened. A mount that failed may have left a mark in its work directory,
/// with which the kernel refuses the next one, so that each gets new ones.
fn fresh_layer(scratch: &Path, map: IdMap) -> Result<Vec<File>, StartError> {
    let failed = || rootfs("make the writable layer");
    DirBuilder::new().recursive(true).mode(0o700).create(scratch).map_err(failed())?;
    let mut writable = Vec::new();
    for sub in ["upper", "work"] {
        let path = scratch.join(sub);
        match fs::remove_dir_all(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(rootfs("clear a failed mount")(e)),
            _ => {}
        }
        DirBuilder::new().mode(0o755).create(&path).map_err(failed())?;
        chown(&path, Some(map.host_base), Some(map.host_base)).map_err(rootfs("chown the writable layer"))?;
        let opened = fs::OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(&path);
        writable.push(opened.map_err(rootfs("open the writable layer"))?);
    }
    Ok(writable)
}

/// Mounts an overlay with the options of containers over a layer of an empty file system at `base`, by descriptor of a
/// detached idmapped mount, and lets go of it: whether this kernel has [`LayerPath::Detached`].
pub(crate) fn probe_detached(base: &Path, userns: BorrowedFd<'_>) -> io::Result<()> {
    let mut writable = Vec::new();
    for sub in ["lower", "upper", "work"] {
        fs::create_dir(base.join(sub))?;
    }
    for sub in ["upper", "work"] {
        writable.push(File::open(base.join(sub))?);
    }
    let layer = idmapped(&base.join("lower"), userns, GUARDS | sys::MOUNT_ATTR_RDONLY)?;
    detached_overlay(&[layer], &writable, GUARDS).map(drop)
}

/// Makes the file for the container's last message in its scratch directory: new, and for any user of the container to write, as the
/// kubelet's.
pub(super) fn make_termination_log(scratch: &Path) -> io::Result<()> {
    let path = scratch.join(TERMINATION_LOG);
    match fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let file = fs::OpenOptions::new().write(true).create_new(true).custom_flags(libc::O_NOFOLLOW).open(&path)?;
    // Whatever the umask is.
    file.set_permissions(fs::Permissions::from_mode(0o666))
}

pub(super) fn fd_path(fd: &impl AsRawFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

fn detached_overlay(layers: &[OwnedFd], writable: &[File], guards: u64) -> io::Result<OwnedFd> {
    let fs = sys::FsContext::open(c"overlay")?;
    for layer in layers {
        fs.set_fd(c"lowerdir+", layer.as_fd())?;
    }
    fs.set(c"upperdir", &CString::new(fd_path(&writable[0]))?)?;
    fs.set(c"workdir", &CString::new(fd_path(&writable[1]))?)?;
    for (key, value) in OVERLAY_OPTIONS {
        let key = CString::new(key)?;
        if value.is_empty() { fs.set_flag(&key)? } else { fs.set(&key, &CString::new(value)?)? }
    }
    fs.mount(guards)
}

/// Layers are named relative to the current directory, so that many fit into the options.
fn attached_overlay(layers: &[OwnedFd], writable: &[File], dir: &Path, guards: u64) -> io::Result<()> {
    let mut names = Vec::new();
    for (n, layer) in layers.iter().enumerate() {
        let name = format!("l{n}");
        let path = dir.join(&name);
        fs::create_dir(&path)?;
        // A copy: the same layers may have failed the other way, and a mount can be attached once.
        sys::move_mount(layer.as_fd(), &path)?;
        names.push(name);
    }
    let mut options =
        format!("lowerdir={},upperdir={},workdir={}", names.join(":"), fd_path(&writable[0]), fd_path(&writable[1]));
    for (key, value) in OVERLAY_OPTIONS {
        options.push(',');
        options.push_str(key);
        if !value.is_empty() {
            options.push('=');
            options.push_str(value);
        }
    }
    if options.len() > MAX_MOUNT_OPTIONS {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many layers for this kernel"));
    }
    std::env::set_current_dir(dir)?;
    // The bits are those of mount(2) too.
    let flags = MsFlags::from_bits_truncate(guards);
    let mounted = mount(Some("overlay"), &dir.join("rootfs"), Some("overlay"), flags, Some(options.as_str()));
    std::env::set_current_dir("/")?;
    mounted?;
    for name in names {
        // The overlay has its own hold on them.
        umount2(&dir.join(name), MntFlags::MNT_DETACH)?;
    }
    Ok(())
}

/// Attaches an idmapped copy of a volume at `at`, a directory or file like its source.
pub(crate) fn attach_volume(
    spec: &ContainerSpec,
    volume: &Mount,
    source: &OwnedFd,
    userns: BorrowedFd<'_>,
    at: &Path,
) -> Result<(), StartError> {
    let failed = |e: io::Error| StartError::Mount {
        source_path: volume.source.clone(),
        target: volume.target.clone(),
        reason: e.to_string(),
    };
    // By descriptor: nothing is looked up a second time.
    let source = PathBuf::from(fd_path(source));
    let meta = fs::metadata(&source).map_err(failed)?;
    if meta.is_dir() { fs::create_dir(at) } else { File::create(at).map(drop) }.map_err(failed)?;
    let attrs = guards(spec) | if volume.read_only { sys::MOUNT_ATTR_RDONLY } else { 0 };
    let fd = match volume.kind {
        // Made for this pod, with ids of the host.
        MountKind::Memory { .. } => plain(&source, attrs),
        _ if lacks(spec, Protection::MappedIds) => sys::open_tree(&source),
        _ => idmapped(&source, userns, attrs),
    };
    sys::move_mount(fd.map_err(failed)?.as_fd(), at).map_err(failed)
}

/// A detached copy of the mount at `source` as it is.
fn plain(source: &Path, attrs: u64) -> io::Result<OwnedFd> {
    let fd = sys::open_tree(source)?;
    sys::mount_setattr(fd.as_fd(), MountAttr { attr_set: attrs, ..MountAttr::default() })?;
    Ok(fd)
}

/// Attaches a copy of a directory of the host, as it is, at `at`.
pub(crate) fn attach(source: &Path, at: &Path, attrs: u64) -> io::Result<()> {
    fs::create_dir(at)?;
    sys::move_mount(plain(source, attrs | GUARDS)?.as_fd(), at)
}

/// Takes the read-only attribute from a mount and its file system.
pub(crate) fn make_writable(at: &Path) -> io::Result<()> {
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    Ok(mount(None::<&str>, at, None::<&str>, flags, None::<&str>)?)
}

/// A mount as later ones find it.
#[derive(Debug)]
pub(crate) struct Mounted {
    /// Where it will be, without links.
    pub(crate) target: PathBuf,
    /// What is in it, if that is a directory of the host.
    pub(crate) volume: Option<OwnedFd>,
}

/// The names in a path, and its steps up.
fn names(path: &Path) -> impl Iterator<Item = OsString> + '_ {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    })
}

/// Where a link below `root` leads; none for what is no link, or not there.
fn read_link_in(root: BorrowedFd<'_>, path: &Path) -> io::Result<Option<PathBuf>> {
    let fd = match sys::open_in_root(root, path, libc::O_PATH | libc::O_NOFOLLOW) {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(None),
        other => other?,
    };
    let file = File::from(fd);
    if !file.metadata()?.is_symlink() {
        return Ok(None);
    }
    Ok(Some(nix::fcntl::readlinkat(Some(file.as_raw_fd()), "")?.into()))
}

/// The root file system while it is prepared; every path is looked up with links held inside it.
pub(crate) struct Root<'a> {
    pub(crate) fd: OwnedFd,
    path: &'a Path,
    owner: u32,
}

impl<'a> Root<'a> {
    pub(crate) fn open(path: &'a Path, map: IdMap) -> io::Result<Self> {
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        let fd = fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?;
        Ok(Self { fd: fd.into(), path, owner: map.host_base })
    }

    /// The deepest part of `path` that exists, opened, and the names below it that do not.
    fn deepest(&self, path: &Path) -> io::Result<(OwnedFd, PathBuf)> {
        let relative = path.strip_prefix("/").unwrap_or(path);
        let mut existing = relative.to_path_buf();
        loop {
            let at = if existing.as_os_str().is_empty() { Path::new(".") } else { existing.as_path() };
            match sys::open_in_root(self.fd.as_fd(), at, libc::O_PATH) {
                Ok(fd) => {
                    let rest = relative.strip_prefix(&existing).unwrap_or(Path::new("")).to_path_buf();
                    return Ok((fd, rest));
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    // A link that leads nowhere: nothing can be made in its place.
                    let parent = existing.parent().unwrap_or(Path::new("")).to_path_buf();
                    let at = if parent.as_os_str().is_empty() { Path::new(".") } else { parent.as_path() };
                    if let (Ok(dir), Some(name)) =
                        (sys::open_in_root(self.fd.as_fd(), at, libc::O_PATH), existing.file_name())
                    {
                        let entry = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name);
                        if fs::symlink_metadata(entry).is_ok_and(|m| m.is_symlink()) {
                            let text = format!("{} is a link of the image that leads nowhere", existing.display());
                            return Err(io::Error::new(io::ErrorKind::NotFound, text));
                        }
                    }
                    existing = parent;
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// Where a descriptor is inside the root.
    fn inside(&self, fd: &OwnedFd) -> io::Result<PathBuf> {
        let real = fs::read_link(fd_path(fd))?;
        let inside = real.strip_prefix(self.path).map_err(|_| io::Error::other("outside of the root"))?;
        Ok(Path::new("/").join(inside))
    }

    /// Whether a mount may go to `target` once the links of the image are followed.
    pub(crate) fn check_target(&self, target: &Path) -> io::Result<()> {
        let (fd, rest) = self.deepest(target)?;
        let real = self.inside(&fd)?.join(rest);
        check_target(&real).map_err(|e| io::Error::new(io::ErrorKind::PermissionDenied, format!("links lead to {e}")))
    }

    /// Where `target` will be once the mounts before it are there, and whether a mount may go there.
    ///
    /// What lies below a volume is not in the root yet, and a link in it may lead anywhere in the root: to `/proc`, say.
    /// So below a volume no link is followed, but refused. What is below another kind of mount is empty as it begins.
    ///
    /// # Caveats
    /// A container that shares the volume can make a link after this. It then leads somewhere in this container's own
    /// root, whose files are the pod's; if it led to the runtime's own, [`super::verify`] finds that.
    pub(crate) fn check_nested(&self, target: &Path, before: &[Mounted]) -> io::Result<PathBuf> {
        let mut pending: VecDeque<OsString> = names(target).collect();
        let (mut at, mut hops) = (PathBuf::from("/"), 0);
        while let Some(name) = pending.pop_front() {
            if name == ".." {
                at.pop();
                continue;
            }
            let next = at.join(&name);
            let covering = before.iter().rev().find(|m| next.starts_with(&m.target));
            let (root, inside) = match covering {
                None => (Some(self.fd.as_fd()), next.strip_prefix("/").unwrap_or(&next)),
                Some(m) => (m.volume.as_ref().map(AsFd::as_fd), next.strip_prefix(&m.target).unwrap_or(&next)),
            };
            let link = match root {
                Some(root) if !inside.as_os_str().is_empty() => read_link_in(root, inside)?,
                // The mount itself, or nothing is known to be in it.
                _ => None,
            };
            match (link, covering) {
                (None, _) => at = next,
                (Some(_), Some(m)) => {
                    let text = format!("{} is a link in the volume at {}", next.display(), m.target.display());
                    return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
                }
                (Some(link), None) => {
                    hops += 1;
                    if hops > MAX_LINKS {
                        return Err(io::Error::from_raw_os_error(libc::ELOOP));
                    }
                    if link.is_absolute() {
                        at = PathBuf::from("/");
                    }
                    for name in names(&link).collect::<Vec<_>>().into_iter().rev() {
                        pending.push_front(name);
                    }
                }
            }
        }
        check_target(&at).map_err(|e| io::Error::new(io::ErrorKind::PermissionDenied, format!("links lead to {e}")))?;
        Ok(at)
    }

    /// Makes a directory and its parents, owned by the container's root.
    pub(crate) fn make_dir(&self, path: &Path) -> io::Result<()> {
        let (fd, rest) = self.deepest(path)?;
        let mut at = PathBuf::from(fd_path(&fd));
        for part in rest.components() {
            at.push(part);
            fs::create_dir(&at)?;
            lchown(&at, Some(self.owner), Some(self.owner))?;
        }
        if !fs::metadata(&at)?.is_dir() {
            return Err(io::Error::from(io::ErrorKind::NotADirectory));
        }
        Ok(())
    }

    /// Makes sure that `/etc/<name>` is a plain file, onto which ours is mounted. Images of Debian have a link there that
    /// leads nowhere without systemd; it is replaced in the writable layer.
    pub(crate) fn make_etc_file(&self, name: &str) -> io::Result<()> {
        self.make_dir(Path::new("/etc"))?;
        let etc = sys::open_in_root(self.fd.as_fd(), Path::new("etc"), libc::O_PATH | libc::O_DIRECTORY)?;
        let path = PathBuf::from(fd_path(&etc)).join(name);
        match fs::symlink_metadata(&path) {
            Ok(m) if m.is_file() => return Ok(()),
            Ok(m) if m.is_dir() => fs::remove_dir(&path)?,
            Ok(_) => fs::remove_file(&path)?,
            Err(_) => {}
        }
        // Exclusive: whatever is there by now, it is not followed.
        let flags = libc::O_NOFOLLOW | libc::O_EXCL;
        fs::OpenOptions::new().write(true).create_new(true).custom_flags(flags).mode(0o644).open(&path)?;
        lchown(&path, Some(self.owner), Some(self.owner))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn targets_of_the_runtime_are_refused() {
        for (target, ok) in [
            ("/data", true),
            ("/dev/shm", true),
            ("/devices", true),
            ("/process/x", true),
            ("/", false),
            ("/proc", false),
            ("/proc/self/attr", false),
            ("/sys/fs/cgroup", false),
            ("/dev", false),
            ("/dev/null", false),
            ("/dev/termination-log", true),
            ("/dev/termination-log/x", false),
        ] {
            assert_eq!(check_target(Path::new(target)).is_ok(), ok, "{target}");
        }
    }

    /// Kernels before 6.15 take the second way; both must give the same root.
    #[test]
    fn both_ways_of_handing_over_layers_give_the_same_root() {
        for way in [LayerPath::Detached, LayerPath::Attached] {
            let base = tempfile::tempdir().expect("temporary directory");
            let status = in_child(|| try_way(way, base.path()));
            let offered = way == LayerPath::Attached || crate::features::probe_kernel().overlay_detached_idmapped;
            assert_eq!(status == 0, offered, "{way:?}: {status}");
            assert!(!base.path().join("lower0/new").exists(), "layers are not written to");
        }
    }

    /// Kernels 6.13 and 6.14 take layers as descriptors and refuse detached ones only after they marked the work directory.
    #[test]
    fn a_way_that_fails_late_does_not_spoil_the_next() {
        let base = tempfile::tempdir().expect("temporary directory");
        let result = in_child(|| {
            let (layer, userns) = (base.path().join("lower"), crate::features::probe_userns()?);
            own_mounts()?;
            fs::create_dir(&layer)?;
            let scratch = base.path().join("scratch");
            let map = IdMap { host_base: 65_536, size: 65_536 };
            let dir = base.path().join("c");
            fs::create_dir_all(dir.join("rootfs"))?;
            let layers = || idmapped(&layer, userns.as_fd(), GUARDS | sys::MOUNT_ATTR_RDONLY).map(|fd| vec![fd]);
            // The mark is what spoils it, or this test would show nothing.
            let writable = fresh_layer(&scratch, map)?;
            attached_overlay(&layers()?, &writable, &dir, GUARDS)?;
            umount2(&dir.join("rootfs"), MntFlags::MNT_DETACH)?;
            assert!(scratch.join("work/work/incompat/volatile").exists(), "a volatile overlay leaves its mark");
            fs::remove_dir(dir.join("l0"))?;
            assert!(
                attached_overlay(&layers()?, &writable, &dir, GUARDS).is_err(),
                "the kernel refuses a marked directory"
            );
            umount2(&dir.join("l0"), MntFlags::MNT_DETACH)?;
            fs::remove_dir(dir.join("l0"))?;
            in_turn(&[LayerPath::Detached, LayerPath::Attached], |way| {
                let writable = fresh_layer(&scratch, map)?;
                let made = layers().and_then(|layers| attached_overlay(&layers, &writable, &dir, GUARDS));
                made.map_err(rootfs("mount the overlay"))?;
                if way == LayerPath::Attached {
                    return Ok(());
                }
                umount2(&dir.join("rootfs"), MntFlags::MNT_DETACH).expect("is mounted");
                fs::remove_dir(dir.join("l0")).expect("is there");
                Err(StartError::RootFs { reason: "late".to_owned() })
            })?;
            fs::write(dir.join("rootfs/new"), "")?;
            assert!(scratch.join("upper/new").exists());
            Ok(())
        });
        assert_eq!(result, 0);
    }

    #[test]
    fn the_error_of_the_first_way_is_told() {
        let error = in_turn(&[LayerPath::Detached, LayerPath::Attached], |way| {
            Err(StartError::RootFs { reason: format!("{way:?}") })
        });
        assert_eq!(error, Err(StartError::RootFs { reason: "Detached".to_owned() }));
    }

    type Tried = Result<(), Box<dyn std::error::Error>>;

    /// Runs in a process of its own, since namespaces are changed; its exit code.
    fn in_child(body: impl FnOnce() -> Tried) -> i32 {
        let child = sys::fork_child(|| match body() {
            Ok(()) => 0,
            Err(e) => {
                let _ = writeln!(io::stderr(), "{e}");
                1
            }
        });
        let mut status = 0;
        // SAFETY: waits for our own child.
        unsafe { libc::waitpid(child.expect("forks").as_raw(), &raw mut status, 0) };
        status
    }

    fn own_mounts() -> Tried {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
        Ok(())
    }

    fn try_way(way: LayerPath, base: &Path) -> Tried {
        use std::os::unix::fs::MetadataExt;
        let map = IdMap { host_base: 65_536, size: 65_536 };
        let userns = crate::features::probe_userns()?;
        own_mounts()?;
        let mut spec: ContainerSpec = serde_json::from_value(serde_json::json!({
            "name": "c", "attempt": 0, "layers": [], "scratch": base.join("scratch"), "args": [], "env": [], "cwd": "",
            "user": "", "run_as_user": null, "run_as_group": null, "mounts": [], "capabilities": [],
            "limits": {"memory_bytes": null, "cpu_millis": null, "cpu_request_millis": null, "pids": 1},
            "read_only_root": false, "log_path": "/", "log": {"max_bytes": 1, "max_files": 1}
        }))?;
        for n in 0..40 {
            let layer = base.join(format!("lower{n}"));
            fs::create_dir(&layer)?;
            fs::write(layer.join("top"), n.to_string())?;
            fs::write(layer.join(n.to_string()), "")?;
            spec.layers.push(layer);
        }
        let dir = base.join("c");
        fs::create_dir(&dir)?;
        mount_overlay(&spec, &dir, map, userns.as_fd(), &[way])?;
        let root = dir.join("rootfs");
        assert_eq!(fs::read_to_string(root.join("top"))?, "39", "the last layer is on top");
        assert_eq!(fs::metadata(root.join("0"))?.uid(), 65_536, "ids are the pod's");
        fs::write(root.join("new"), "")?;
        assert!(base.join("scratch/upper/new").exists());
        Ok(())
    }
}
