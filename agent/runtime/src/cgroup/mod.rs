//! Cgroups of an instance, on every hierarchy the host has: version 2, version 1, or both (hybrid).
//!
//! Layout on each: `hearth-<instance>/shims` (zygote and shims), `hearth-<instance>/<pod uid>/<container>.<attempt>`, and
//! `hearth-<instance>/guests/<pod uid>/...` for pods of other owners.
//! Each controller is used where it is. On a hybrid host containers are in the hierarchies of version 1, and in that of
//! version 2 only if something of theirs is there. All is done here and nothing by libcontainer, which enforces no device list on version 2, and whose way of moving a process costs
//! a grace period of the kernel (5 to 13 ms) twice.

mod ceiling;
mod devices;
mod guests;
mod usage;

use std::{
    collections::BTreeSet,
    fs, io,
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

pub(crate) use self::ceiling::Ceiling;
use crate::{
    error::RuntimeError,
    model::{Limits, PodLimits},
    sys,
};

/// Controllers that limit containers: where they are is where containers go. Others may be mounted for purposes of their
/// own (a VPN's net_cls, a session manager's names) and change nothing.
const NEEDED: [&str; 3] = ["cpu", "memory", "pids"];
/// Period of the CPU quota in microseconds, the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;
/// Least CPU weight of version 1 (shares) and what one CPU is.
const MIN_SHARES: u64 = 2;
const SHARES_PER_CPU: u64 = 1024;
/// How long killed processes may take to go away.
const KILL_BOUND: Duration = Duration::from_secs(20);
/// Pause between looks at a cgroup that empties.
const KILL_POLL: Duration = Duration::from_millis(2);

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hierarchy {
    pub(crate) mount: PathBuf,
    /// Controllers of a version 1 hierarchy; of version 2 those that the root offers.
    pub(crate) controllers: Vec<String>,
    pub(crate) v2: bool,
}

impl Hierarchy {
    fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|c| c == controller)
    }
}

/// All hierarchies of the host.
#[derive(Debug, Clone)]
pub(crate) struct Cgroups {
    hierarchies: Vec<Hierarchy>,
}

/// Hierarchies in the text of `/proc/self/mountinfo`; a hierarchy that is mounted twice counts once.
fn parse_mountinfo(text: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in text.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let left: Vec<&str> = left.split(' ').collect();
        let right: Vec<&str> = right.split(' ').collect();
        let (Some(root), Some(point), Some(fs)) = (left.get(3), left.get(4), right.first()) else { continue };
        if *root != "/" || !matches!(*fs, "cgroup" | "cgroup2") {
            continue;
        }
        let v2 = *fs == "cgroup2";
        let controllers: Vec<String> = if v2 {
            Vec::new()
        } else {
            let flags = ["rw", "ro", "xattr", "clone_children", "noprefix", "cpuset_v2_mode"];
            let options = right.get(2).copied().unwrap_or_default().split(',');
            options.filter(|o| !flags.contains(o) && !o.starts_with("release_agent=")).map(String::from).collect()
        };
        let known = |h: &Hierarchy| h.v2 == v2 && h.controllers == controllers;
        if !found.iter().any(known) {
            found.push(Hierarchy { mount: PathBuf::from(point.replace("\\040", " ")), controllers, v2 });
        }
    }
    found
}

fn write(path: &Path, value: &str) -> io::Result<()> {
    fs::write(path, value).map_err(|e| io::Error::new(e.kind(), format!("write {value:?} to {}: {e}", path.display())))
}

impl Cgroups {
    /// Finds the hierarchies.
    pub(crate) fn find() -> io::Result<Self> {
        let mut hierarchies = parse_mountinfo(&fs::read_to_string("/proc/self/mountinfo")?);
        for h in hierarchies.iter_mut().filter(|h| h.v2) {
            let text = fs::read_to_string(h.mount.join("cgroup.controllers")).unwrap_or_default();
            h.controllers = text.split_whitespace().map(String::from).collect();
        }
        if hierarchies.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "no cgroup file system is mounted"));
        }
        Ok(Self { hierarchies })
    }

    /// No controller that containers need is of version 1, and version 2 is there.
    pub(crate) fn is_v2(&self) -> bool {
        let needed_v1 = |h: &Hierarchy| !h.v2 && NEEDED.iter().any(|c| h.has(c));
        self.hierarchies.iter().any(|h| h.v2) && !self.hierarchies.iter().any(needed_v1)
    }

    /// All controllers that can be used, sorted.
    pub(crate) fn controllers(&self) -> Vec<String> {
        let all: BTreeSet<_> = self.hierarchies.iter().flat_map(|h| &h.controllers).collect();
        all.into_iter().filter(|c| !c.starts_with("name=")).cloned().collect()
    }

    fn with(&self, controller: &str) -> Option<&Hierarchy> {
        self.working().find(|h| h.has(controller))
    }

    fn need(&self, controller: &str) -> io::Result<&Hierarchy> {
        self.with(controller).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::Unsupported,
                format!("the kernel offers no {controller} controller (a Raspberry Pi wants cgroup_enable=memory)"),
            )
        })
    }

    /// The hierarchies that containers are in.
    fn working(&self) -> impl Iterator<Item = &Hierarchy> {
        let pure = self.is_v2();
        // Without a devices controller of version 1 it is version 2 that denies devices.
        let denies = !self.hierarchies.iter().any(|h| !h.v2 && h.has("devices"));
        self.hierarchies.iter().filter(move |h| match (h.v2, pure) {
            (true, true) | (false, false) => true,
            (true, false) => denies || NEEDED.iter().any(|c| h.has(c)),
            (false, true) => false,
        })
    }

    /// Makes `rel` and its parents for containers.
    pub(crate) fn create(&self, rel: &Path) -> io::Result<()> {
        self.working().try_for_each(|h| make(h, rel))
    }

    /// Makes `rel` on every hierarchy and moves this process there, away from what a service manager tracks.
    pub(crate) fn settle(&self, rel: &Path) -> io::Result<()> {
        for h in &self.hierarchies {
            make(h, rel)?;
            write(&h.mount.join(rel).join("cgroup.procs"), "0")?;
        }
        Ok(())
    }

    /// Moves this process, which must have one thread, among the containers.
    pub(crate) fn enter(&self, rel: &Path) -> io::Result<()> {
        for h in self.working() {
            // In version 1, a thread that moves itself does not have to wait for a grace period.
            let file = if h.v2 { "cgroup.procs" } else { "tasks" };
            write(&h.mount.join(rel).join(file), "0")?;
        }
        Ok(())
    }

    /// The directory that shows a container its own limits, where that is a single one; `any` takes one of several.
    pub(crate) fn own_view(&self, rel: &Path, any: bool) -> Option<PathBuf> {
        let shown = |h: &&Hierarchy| if any { h.has("pids") } else { h.v2 && self.is_v2() };
        self.working().find(shown).map(|h| h.mount.join(rel))
    }

    /// Limits of a container.
    pub(crate) fn limit_container(&self, rel: &Path, limits: &Limits) -> io::Result<()> {
        let Limits { memory_bytes, cpu_millis, cpu_request_millis, pids } = *limits;
        self.limit(rel, &PodLimits { memory_bytes, cpu_millis, cpu_request_millis, pids: Some(pids) })
    }

    /// Limits of a pod or a container.
    pub(crate) fn limit(&self, rel: &Path, limits: &PodLimits) -> io::Result<()> {
        if let Some(bytes) = limits.memory_bytes {
            let h = self.need("memory")?;
            let dir = h.mount.join(rel);
            let bytes = bytes.to_string();
            if h.v2 {
                write(&dir.join("memory.max"), &bytes)?;
                // Absent where the kernel has no swap accounting: then there is nothing to forbid.
                let _ = fs::write(dir.join("memory.swap.max"), "0");
            } else {
                write(&dir.join("memory.limit_in_bytes"), &bytes)?;
                let _ = fs::write(dir.join("memory.memsw.limit_in_bytes"), &bytes);
            }
        }
        if let Some(millis) = limits.cpu_millis {
            set_cpu(self.need("cpu")?, rel, Some(millis))?;
        }
        if let Some(h) = self.with("cpu") {
            set_share(h, rel, limits.cpu_request_millis)?;
        }
        if let Some(pids) = limits.pids {
            let h = self.need("pids")?;
            write(&h.mount.join(rel).join("pids.max"), &pids.to_string())?;
        }
        Ok(())
    }

    /// Denies all devices but the harmless ones; an error means that they are not denied.
    pub(crate) fn deny_devices(&self, rel: &Path) -> io::Result<()> {
        self.open_devices(rel)?.deny()
    }

    /// Where devices are denied, opened, so that they can be denied when cgroups are no more in reach.
    pub(crate) fn open_devices(&self, rel: &Path) -> io::Result<OpenDevices> {
        let v1 = self.working().find(|h| !h.v2 && h.has("devices"));
        let found = v1.or_else(|| self.hierarchies.iter().find(|h| h.v2)).ok_or(io::ErrorKind::Unsupported)?;
        Ok(OpenDevices { dir: fs::File::open(found.mount.join(rel))?, v2: found.v2 })
    }

    /// How many processes the kernel killed in `rel` for want of memory.
    pub(crate) fn oom_kills(&self, rel: &Path) -> u64 {
        let Some(h) = self.with("memory") else { return 0 };
        let file = if h.v2 { "memory.events" } else { "memory.oom_control" };
        let text = fs::read_to_string(h.mount.join(rel).join(file)).unwrap_or_default();
        text.lines().find_map(|l| l.strip_prefix("oom_kill ")).and_then(|n| n.trim().parse().ok()).unwrap_or(0)
    }

    /// Kills all processes in `rel` and below, and waits for nothing. Returns how many were seen.
    pub(crate) fn kill_once(&self, rel: &Path) -> usize {
        let mut left = BTreeSet::new();
        for h in &self.hierarchies {
            let dir = h.mount.join(rel);
            pids_below(&dir, &mut left);
            if h.v2 {
                // 5.14; kills forks in flight too.
                let _ = fs::write(dir.join("cgroup.kill"), "1");
            }
        }
        for pid in &left {
            kill_member(rel, *pid);
        }
        left.len()
    }

    /// Kills all processes in `rel` and below and waits until none is left. Returns how many were seen.
    pub(crate) fn kill(&self, rel: &Path) -> Result<usize, RuntimeError> {
        let started = Instant::now();
        let mut seen = BTreeSet::new();
        loop {
            let mut left = BTreeSet::new();
            for h in &self.hierarchies {
                let dir = h.mount.join(rel);
                pids_below(&dir, &mut left);
                if h.v2 {
                    let _ = fs::write(dir.join("cgroup.kill"), "1");
                }
            }
            if left.is_empty() {
                return Ok(seen.len());
            }
            for pid in &left {
                kill_member(rel, *pid);
            }
            seen.extend(left.iter().copied());
            if started.elapsed() > KILL_BOUND {
                return Err(RuntimeError::Unkillable { path: rel.to_path_buf(), processes: left.len() });
            }
            std::thread::sleep(KILL_POLL);
        }
    }

    /// Removes `rel` and all below it on every hierarchy; absent ones do not matter. Returns how many directories.
    pub(crate) fn remove(&self, rel: &Path) -> io::Result<usize> {
        let mut removed = 0;
        for h in &self.hierarchies {
            removed += remove_tree(&h.mount.join(rel))?;
        }
        Ok(removed)
    }

    /// Where `rel` is on each hierarchy.
    #[cfg(test)]
    pub(crate) fn paths(&self, rel: &Path) -> Vec<PathBuf> {
        self.hierarchies.iter().map(|h| h.mount.join(rel)).collect()
    }
}

/// The cgroup of a container whose devices are to be denied.
#[derive(Debug)]
pub(crate) struct OpenDevices {
    dir: fs::File,
    v2: bool,
}

impl OpenDevices {
    /// As [`Cgroups::deny_devices`].
    pub(crate) fn deny(&self) -> io::Result<()> {
        let dir = PathBuf::from(format!("/proc/self/fd/{}", self.dir.as_raw_fd()));
        if self.v2 { devices::deny_v2(&dir) } else { devices::deny_v1(&dir) }
    }
}

/// Sets the share of CPU that `rel` gets beside its siblings where there is too little, as the kubelet does. One that asks for nothing also
/// makes way at once for one that asks (`cpu.idle`, since 5.15): by its share alone it would keep the processor for some milliseconds each time
/// the other has to do something, which a chain of short work, such as requests are, has to wait for at each of its links.
fn set_share(h: &Hierarchy, rel: &Path, millis: Option<u64>) -> io::Result<()> {
    let dir = h.mount.join(rel);
    let shares = (millis.unwrap_or(0).saturating_mul(SHARES_PER_CPU) / 1000).clamp(MIN_SHARES, 262_144);
    let (idle, asks) = (dir.join("cpu.idle"), shares > MIN_SHARES);
    if idle.exists() {
        write(&idle, if asks { "0" } else { "1" })?;
        if !asks {
            // That is the least share too, and it takes no other.
            return Ok(());
        }
    }
    if h.v2 {
        // The kernel's documented conversion from shares (2 to 262144) to weight (1 to 10000).
        let weight = 1 + (shares - 2) * 9999 / 262_142;
        write(&dir.join("cpu.weight"), &weight.to_string())
    } else {
        write(&dir.join("cpu.shares"), &shares.to_string())
    }
}

/// The quota of CPU time in thousandths of a core; `None` takes it away.
fn set_cpu(h: &Hierarchy, rel: &Path, millis: Option<u64>) -> io::Result<()> {
    let dir = h.mount.join(rel);
    // A quota below 1 ms is refused by the kernel.
    let quota = millis.map(|millis| (millis * CPU_PERIOD_US / 1000).max(1000).to_string());
    if h.v2 {
        let quota = quota.as_deref().unwrap_or("max");
        write(&dir.join("cpu.max"), &format!("{quota} {CPU_PERIOD_US}"))
    } else {
        write(&dir.join("cpu.cfs_quota_us"), quota.as_deref().unwrap_or("-1"))
    }
}

fn make(h: &Hierarchy, rel: &Path) -> io::Result<()> {
    let mut dir = h.mount.clone();
    for part in rel.components() {
        if h.v2 {
            enable_controllers(&dir);
        }
        dir.push(part);
        match fs::create_dir(&dir) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
            Err(e) => return Err(io::Error::new(e.kind(), format!("make {}: {e}", dir.display()))),
            Ok(()) => {}
        }
        if !h.v2 && h.has("cpuset") {
            inherit_cpuset(&dir)?;
        }
    }
    Ok(())
}

/// Offers every controller of a version 2 directory to its children, one by one, since a refused one refuses all.
fn enable_controllers(dir: &Path) {
    let offered = fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
    let enabled = fs::read_to_string(dir.join("cgroup.subtree_control")).unwrap_or_default();
    for c in ["cpu", "memory", "pids"] {
        if offered.split_whitespace().any(|o| o == c) && !enabled.split_whitespace().any(|e| e == c) {
            let _ = fs::write(dir.join("cgroup.subtree_control"), format!("+{c}"));
        }
    }
}

/// A new cpuset of version 1 is empty and takes no process.
fn inherit_cpuset(dir: &Path) -> io::Result<()> {
    let Some(parent) = dir.parent() else { return Ok(()) };
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let value = fs::read_to_string(parent.join(file))?;
        write(&dir.join(file), value.trim())?;
    }
    Ok(())
}

/// Whether a process is in `rel` or below.
pub(crate) fn is_member(rel: &Path, pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|text| {
        text.lines().filter_map(|l| l.splitn(3, ':').nth(2)).any(|path| {
            let path = Path::new(path.strip_prefix('/').unwrap_or(path));
            path.starts_with(rel)
        })
    })
}

/// Kills a process if it still is in `rel`: its pid may by now be another's.
fn kill_member(rel: &Path, pid: i32) {
    let Ok(pidfd) = sys::pidfd_open(pid) else { return };
    if is_member(rel, pid) {
        let _ = sys::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL);
    }
}

fn pids_below(dir: &Path, into: &mut BTreeSet<i32>) {
    if let Ok(text) = fs::read_to_string(dir.join("cgroup.procs")) {
        into.extend(text.lines().filter_map(|l| l.parse::<i32>().ok()).filter(|pid| *pid > 0));
    }
    for child in subdirs(dir) {
        pids_below(&child, into);
    }
}

fn subdirs(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect()
}

fn remove_tree(dir: &Path) -> io::Result<usize> {
    let mut removed = 0;
    for child in subdirs(dir) {
        removed += remove_tree(&child)?;
    }
    let started = Instant::now();
    loop {
        match fs::remove_dir(dir) {
            Ok(()) => return Ok(removed + 1),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(removed),
            // A process that was reaped a moment ago may still be leaving.
            Err(e) if e.kind() == io::ErrorKind::ResourceBusy && started.elapsed() < Duration::from_secs(2) => {
                std::thread::sleep(KILL_POLL);
            }
            Err(e) => return Err(io::Error::new(e.kind(), format!("remove {}: {e}", dir.display()))),
        }
    }
}

#[cfg(test)]
mod tests;
