//! What the kernel can do, found out by trying.

use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::OnceLock,
};

use nix::sched::{CloneFlags, unshare};

use crate::{
    cgroup::Cgroups,
    child::rootfs::{self, LayerPath},
    landlock,
    sys::{self, MountAttr},
};

/// What the kernel can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelFeatures {
    /// Release, like `6.1.0-18-amd64`.
    pub release: String,
    /// User namespaces can be made. Without them no pod runs.
    pub user_namespaces: bool,
    /// Idmapped mounts (5.12). Without them no pod runs.
    pub idmapped_mounts: bool,
    /// overlayfs takes layers as file descriptors (6.13).
    pub overlay_layer_fds: bool,
    /// overlayfs takes detached idmapped mounts as layers (6.15); otherwise they are attached first.
    pub overlay_detached_idmapped: bool,
    /// Cgroups of version 2 only.
    pub cgroup_v2: bool,
    /// Controllers that can be used, sorted.
    pub controllers: Vec<String>,
    /// Seccomp filters. Without them no pod runs.
    pub seccomp: bool,
    /// Landlock of version 2 (5.19). Without it containers have a wall less.
    pub landlock: bool,
    /// Pidfds, and entering namespaces through them (5.8). Without them there is no exec.
    pub pidfd: bool,
}

/// Bits in the exit code of the child that probes.
const USERNS: i32 = 1;
const IDMAP: i32 = 2;
const LAYER_FDS: i32 = 4;
const DETACHED: i32 = 8;
const PIDFD: i32 = 16;

/// Probes the kernel, once a process: it takes about 10 ms. What needs mounts is tried by a child process in namespaces of its own, so that
/// nothing of it is seen from outside.
///
/// # Assumptions
/// Root. May be called with threads: the child only makes system calls and small allocations, as after `fork` in any
/// program; call it early all the same.
pub fn probe_kernel() -> KernelFeatures {
    let cgroups = Cgroups::find().ok();
    let found = found();
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let actions = fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
    KernelFeatures {
        release: release.trim().to_owned(),
        user_namespaces: found & USERNS != 0,
        idmapped_mounts: found & IDMAP != 0,
        overlay_layer_fds: found & LAYER_FDS != 0,
        overlay_detached_idmapped: found & DETACHED != 0,
        cgroup_v2: cgroups.as_ref().is_some_and(Cgroups::is_v2),
        controllers: cgroups.map(|c| c.controllers()).unwrap_or_default(),
        seccomp: actions.split_whitespace().any(|a| a == "errno"),
        landlock: landlock::is_there(),
        pidfd: found & PIDFD != 0,
    }
}

/// What a child found that tried.
static FOUND: OnceLock<i32> = OnceLock::new();

fn found() -> i32 {
    *FOUND.get_or_init(|| probe_in_child().unwrap_or(0))
}

/// Probes once, for this process and all that are forked from it.
pub(crate) fn preload() {
    found();
}

/// The ways to hand layers to overlayfs, in the order to try them: only those that the kernel has.
pub(crate) fn layer_paths() -> &'static [LayerPath] {
    if found() & DETACHED != 0 { &[LayerPath::Detached, LayerPath::Attached] } else { &[LayerPath::Attached] }
}

fn probe_in_child() -> io::Result<i32> {
    let child = sys::fork_child(|| {
        let mut found = 0;
        let userns = probe_userns();
        if let Ok(userns) = &userns {
            found |= USERNS;
            found |= probe_mounts(userns).unwrap_or(0);
        }
        let own = sys::pidfd_open(std::process::id() as i32);
        if own.is_ok_and(|fd| sys::setns_all(fd.as_fd(), libc::CLONE_NEWUTS).is_ok()) {
            found |= PIDFD;
        }
        found
    })?;
    let mut status = 0;
    // SAFETY: waits for our own child.
    if unsafe { libc::waitpid(child.as_raw(), &raw mut status, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    if libc::WIFEXITED(status) { Ok(libc::WEXITSTATUS(status)) } else { Err(io::ErrorKind::Other.into()) }
}

/// A user namespace with a map, by its descriptor.
pub(crate) fn probe_userns() -> io::Result<OwnedFd> {
    use std::io::{Read, Write};
    let (mut ready_r, mut ready_w) = io::pipe()?;
    let (mut hold_r, mut hold_w) = io::pipe()?;
    let child = sys::fork_child(|| {
        let made = unshare(CloneFlags::CLONE_NEWUSER).is_ok();
        let _ = ready_w.write_all(&[u8::from(made)]);
        let _ = hold_r.read(&mut [0]);
        0
    })?;
    let result = (|| {
        let mut made = [0];
        ready_r.read_exact(&mut made)?;
        if made[0] == 0 {
            return Err(io::ErrorKind::Unsupported.into());
        }
        fs::write(format!("/proc/{child}/uid_map"), "0 65536 65536\n")?;
        fs::write(format!("/proc/{child}/gid_map"), "0 65536 65536\n")?;
        Ok(OwnedFd::from(fs::File::open(format!("/proc/{child}/ns/user"))?))
    })();
    let _ = hold_w.write_all(&[0]);
    // SAFETY: waits for our own child.
    unsafe { libc::waitpid(child.as_raw(), std::ptr::null_mut(), 0) };
    result
}

/// Tries layers on a tmpfs of its own; tmpfs has idmapped mounts from 6.3 on, so that before, the root directory's file
/// system is tried instead for the bare feature.
fn probe_mounts(userns: &OwnedFd) -> io::Result<i32> {
    use std::os::fd::AsRawFd;
    let idmap = |path: &Path| -> io::Result<OwnedFd> {
        let fd = sys::open_tree(path)?;
        let attr =
            MountAttr { attr_set: sys::MOUNT_ATTR_IDMAP, userns_fd: userns.as_raw_fd() as u64, ..MountAttr::default() };
        sys::mount_setattr(fd.as_fd(), attr)?;
        Ok(fd)
    };
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none = None::<&str>;
    let private = nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_PRIVATE;
    nix::mount::mount(none, "/", none, private, none)?;
    let mut found = 0;
    if idmap(Path::new("/")).is_ok() {
        found |= IDMAP;
    }
    // Any directory but /proc will do, which is needed to name descriptors: the mounts are seen by this child only.
    let base = Path::new("/dev");
    let fresh = || nix::mount::mount(Some("probe"), base, Some("tmpfs"), nix::mount::MsFlags::empty(), none);
    let layer_fds = || -> io::Result<()> {
        for dir in ["lower", "upper", "work"] {
            fs::create_dir(base.join(dir))?;
        }
        let layer = fs::File::open(base.join("lower"))?;
        let fs = sys::FsContext::open(c"overlay")?;
        fs.set_fd(c"lowerdir+", layer.as_fd())?;
        fs.set(c"upperdir", c"/dev/upper")?;
        fs.set(c"workdir", c"/dev/work")?;
        fs.mount(0).map(drop)
    };
    fresh()?;
    if layer_fds().is_ok() {
        found |= LAYER_FDS;
    }
    fresh()?;
    if idmap(base).is_ok() {
        found |= IDMAP;
        if rootfs::probe_detached(base, userns.as_fd()).is_ok() {
            found |= DETACHED;
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_can_run_pods() {
        let features = probe_kernel();
        assert!(
            features.user_namespaces && features.idmapped_mounts && features.seccomp && features.pidfd,
            "{features:?}"
        );
        for controller in ["cpu", "memory", "pids"] {
            assert!(features.controllers.iter().any(|c| c == controller), "{features:?}");
        }
    }
}
