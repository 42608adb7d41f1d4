//! What a shim makes before its first container: namespaces of the pod, and a small root directory, private to it, in
//! which container roots are put together.

use std::{
    fs::{self, DirBuilder},
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            fs::{DirBuilderExt, chown},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
};

use super::pause::Pause;
use crate::{
    cgroup::Cgroups,
    error::because,
    model::MemoryVolume,
    record::PodRecord,
    sys,
    wire::PodConfig,
    zygote::{ZygoteConfig, pod_cgroup},
};

/// Size of the pod's private tmpfs: specifications and libcontainer's state of its containers, a few KiB each.
const SCRATCHPAD_OPTIONS: &str = "size=16m,mode=755";
/// `/dev/shm` of the pod, as Docker's; its pages count against the memory limit of who writes them.
const SHM_OPTIONS: &str = "size=64m,mode=1777";

/// Where the pod's volumes in memory are in its small root.
pub(crate) const MEMORY: &str = "memory";

/// A pod as its shim holds it.
#[derive(Debug)]
pub(crate) struct Sandbox {
    pub(crate) config: PodConfig,
    pub(crate) pod_dir: PathBuf,
    /// Root directory of helpers while they make a container: `c/<container>/`, `lc/`, `etc/`, `shm`, `sysfs`, `memory/<volume>/`, and the
    /// host's `proc`, `dev`. Mounted in the shim's namespace only.
    pub(crate) mnt: PathBuf,
    pub(crate) cgroups: Cgroups,
    pub(crate) cgroup: PathBuf,
    pub(crate) userns: OwnedFd,
    pub(crate) ipcns: OwnedFd,
    pub(crate) utsns: OwnedFd,
    /// Where containers share their processes.
    pub(crate) pause: Option<Pause>,
}

impl Sandbox {
    /// Makes everything, or nothing that outlives an error but an empty directory.
    pub(super) fn make(
        zygote: &ZygoteConfig,
        config: PodConfig,
        netns: &OwnedFd,
    ) -> Result<(Self, UnixListener), String> {
        let cgroups = Cgroups::find().map_err(|e| because("find cgroups", e))?;
        let cgroup = pod_cgroup(&zygote.instance, &config.uid, config.guest);
        let pod_dir = zygote.pods_dir().join(&config.uid);
        DirBuilder::new().mode(0o700).create(&pod_dir).map_err(|e| match e.kind() {
            io::ErrorKind::AlreadyExists => "a pod of this uid is there already: destroy or forget it first".to_owned(),
            _ => because("make its directory", e),
        })?;
        let made = Self::fill(config, netns, cgroups.clone(), &cgroup, &pod_dir);
        if made.is_err() {
            let _ = nix::mount::umount2(&pod_dir.join("mnt"), nix::mount::MntFlags::MNT_DETACH);
            let _ = fs::remove_dir_all(&pod_dir);
            // Where it got as far as the first process of a PID namespace, that is in it.
            let _ = cgroups.kill(&cgroup);
            let _ = cgroups.remove(&cgroup);
        }
        made
    }

    fn fill(
        config: PodConfig,
        netns: &OwnedFd,
        cgroups: Cgroups,
        cgroup: &Path,
        pod_dir: &Path,
    ) -> Result<(Self, UnixListener), String> {
        for sub in ["mnt", "c"] {
            fs::create_dir(pod_dir.join(sub)).map_err(|e| because("make its directory", e))?;
        }
        let mnt = pod_dir.join("mnt");
        setns(netns, CloneFlags::CLONE_NEWNET).map_err(|e| because("enter the network namespace", e))?;
        network_defaults().map_err(|e| because("set network defaults", e))?;
        let [userns, ipcns, utsns] = namespaces(&config)?;
        unshare(CloneFlags::CLONE_NEWNS).map_err(|e| because("unshare the mount namespace", e))?;
        private_root(&mnt, &config).map_err(|e| because("make the private root", e))?;
        cgroups.create(cgroup).map_err(|e| because("make its cgroup", e))?;
        cgroups.limit(cgroup, &config.limits).map_err(|e| because("limit its cgroup", e))?;
        let share = config.share_processes;
        let pause = share.then(|| Pause::start(&userns, &cgroups, cgroup, &mnt)).transpose()?;
        let record = PodRecord::new(&config.uid, &config.namespace, &config.name, config.id_map);
        record.write(pod_dir).map_err(|e| because("write its record", e))?;
        let listener = listen(pod_dir).map_err(|e| because("listen", e))?;
        let cgroup = cgroup.to_path_buf();
        Ok((
            Self { config, pod_dir: pod_dir.to_path_buf(), mnt, cgroups, cgroup, userns, ipcns, utsns, pause },
            listener,
        ))
    }
}

/// Binds `shim.sock` by a relative name: an absolute one may be longer than the 107 bytes of an address.
fn listen(pod_dir: &Path) -> io::Result<UnixListener> {
    std::env::set_current_dir(pod_dir)?;
    let bound = UnixListener::bind("shim.sock");
    std::env::set_current_dir("/")?;
    let listener = bound?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// The network namespace belongs to the host's user namespace, so no capability counts in it: what Docker allows by
/// default (low ports, ping) is allowed here by these settings. A kernel without one of them does without.
fn network_defaults() -> io::Result<()> {
    for (file, value) in [("net/ipv4/ip_unprivileged_port_start", "0"), ("net/ipv4/ping_group_range", "0 2147483647")] {
        match fs::write(Path::new("/proc/sys").join(file), value) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

/// User, IPC and UTS namespaces of the pod, made by a child that lives only for that.
fn namespaces(config: &PodConfig) -> Result<[OwnedFd; 3], String> {
    let (mut ready_r, mut ready_w) = io::pipe().map_err(|e| because("pipe", e))?;
    let (mut hold_r, hold_w) = io::pipe().map_err(|e| because("pipe", e))?;
    let hold_w_raw = std::os::fd::AsRawFd::as_raw_fd(&hold_w);
    let child = sys::fork_child(|| {
        // SAFETY: the child's copy of the write end, which it must not hold or it would wait for itself.
        unsafe { libc::close(hold_w_raw) };
        let flags = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
        let made = unshare(flags).and_then(|()| nix::unistd::sethostname(&config.hostname));
        let _ = ready_w.write_all(&[made.err().map_or(0, |e| e as i32 as u8)]);
        let _ = hold_r.read(&mut [0]);
        0
    })
    .map_err(|e| because("fork", e))?;
    let result = (|| {
        let mut errno = [0];
        ready_r.read_exact(&mut errno).map_err(|e| because("wait for the namespaces", e))?;
        if errno[0] != 0 {
            return Err(because("make a user namespace", nix::errno::Errno::from_raw(i32::from(errno[0]))));
        }
        let map = format!("0 {} {}\n", config.id_map.host_base, config.id_map.size);
        for file in ["uid_map", "gid_map"] {
            fs::write(format!("/proc/{child}/{file}"), &map).map_err(|e| because(&format!("write {file}"), e))?;
        }
        let open = |ns: &str| {
            let file = fs::File::open(format!("/proc/{child}/ns/{ns}"));
            file.map(OwnedFd::from).map_err(|e| because(&format!("open the {ns} namespace"), e))
        };
        Ok([open("user")?, open("ipc")?, open("uts")?])
    })();
    drop(hold_w);
    // SAFETY: waits for our own child; SIGCHLD is blocked, so nobody else reaps it.
    unsafe { libc::waitpid(child.as_raw(), std::ptr::null_mut(), 0) };
    result
}

/// Mounts the small root directory. Changes of the host's mounts still arrive (a disk that is unmounted there is let
/// go here), nothing goes back.
fn private_root(mnt: &Path, config: &PodConfig) -> io::Result<()> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
    mount(Some("hearth"), mnt, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some(SCRATCHPAD_OPTIONS))?;
    mount(none, mnt, none, MsFlags::MS_PRIVATE, none)?;
    for dir in ["proc", "dev", "c", "lc", "etc", "shm", "sysfs", MEMORY] {
        fs::create_dir(mnt.join(dir))?;
    }
    // libcontainer looks for cgroups here and, finding none, leaves them to us.
    fs::create_dir_all(mnt.join("sys/fs/cgroup"))?;
    for dir in ["proc", "dev"] {
        mount(Some(&Path::new("/").join(dir)), &mnt.join(dir), none, MsFlags::MS_BIND | MsFlags::MS_REC, none)?;
    }
    // Shows the devices of the pod's network namespace, since the shim is in it; a container's root may not mount it.
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("sysfs"), &mnt.join("sysfs"), Some("sysfs"), flags | MsFlags::MS_RDONLY, none)?;
    mount(Some("shm"), &mnt.join("shm"), Some("tmpfs"), flags, Some(SHM_OPTIONS))?;
    let root = config.id_map.host_base;
    chown(mnt.join("shm"), Some(root), Some(root))?;
    for volume in &config.memory {
        memory_volume(&mnt.join(MEMORY).join(&volume.name), volume, root)?;
    }
    let hostname = format!("{}\n", config.hostname);
    for (name, text) in [("resolv.conf", &config.resolv_conf), ("hosts", &config.hosts), ("hostname", &hostname)] {
        let path = mnt.join("etc").join(name);
        fs::write(&path, text)?;
        chown(&path, Some(root), Some(root))?;
    }
    Ok(())
}

/// Mounts a volume in memory: writable by all users of the pod, as the kubelet has it; a group that it belongs to is handed down.
fn memory_volume(at: &Path, volume: &MemoryVolume, root: u32) -> io::Result<()> {
    fs::create_dir(at)?;
    let mode = if volume.group.is_some() { "mode=2777" } else { "mode=777" };
    let group = root + volume.group.unwrap_or(0);
    let mut options = format!("{mode},uid={root},gid={group}");
    if let Some(size) = volume.size_bytes {
        options = format!("{options},size={size}");
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("memory"), at, Some("tmpfs"), flags, Some(options.as_str()))?;
    Ok(())
}

/// The namespaces as libcontainer and idmapped mounts want them.
impl Sandbox {
    pub(crate) fn userns(&self) -> std::os::fd::BorrowedFd<'_> {
        self.userns.as_fd()
    }
}
