//! What is left of what pods share.

use std::path::Path;

use hearth_pod::pressure::{Observation, Signal};
use rustix::fs::{stat, statvfs};

use crate::{Paths, facts};

/// Looks at file systems and memory. What cannot be seen is left out. Reads a few small files.
pub(super) fn look(paths: &Paths, instance: Instance) -> Vec<Observation> {
    let mut seen: Vec<Observation> = memory(&facts::read("/proc/meminfo"), instance).into_iter().collect();
    let (nodefs, imagefs) = (paths.root().to_owned(), paths.images());
    disk(&nodefs, Signal::NodefsAvailable, Signal::NodefsInodesFree, &mut seen);
    let device = |path: &Path| stat(path).ok().map(|stat| stat.st_dev);
    if device(&imagefs).is_some_and(|images| device(&nodefs).is_some_and(|nodes| nodes != images)) {
        disk(&imagefs, Signal::ImagefsAvailable, Signal::ImagefsInodesFree, &mut seen);
    }
    seen
}

/// What pods together may take of the memory in bytes, and take without what can be had back at once.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Instance {
    pub(super) limit: Option<u64>,
    pub(super) working_set: Option<u64>,
}

/// Whatever is less: what the instance has left below its ceiling, or what the machine has left.
fn memory(meminfo: &str, instance: Instance) -> Option<Observation> {
    let total = facts::meminfo(meminfo, "MemTotal")?;
    let mut available = facts::meminfo(meminfo, "MemAvailable")?;
    let mut capacity = total;
    // A limit above what there is, as version 1 of cgroups has it where there is none, limits nothing.
    if let (Some(limit), Some(used)) = (instance.limit.filter(|limit| *limit < total), instance.working_set) {
        available = available.min(limit.saturating_sub(used));
        capacity = limit;
    }
    Some(Observation { signal: Signal::MemoryAvailable, available, capacity })
}

/// What is reserved for root is not there for pods.
fn disk(path: &Path, room: Signal, inodes: Signal, seen: &mut Vec<Observation>) {
    let stat = match statvfs(path) {
        Ok(stat) => stat,
        Err(error) => {
            // Whoever uses it says so too.
            tracing::debug!(path = %path.display(), %error, "its file system cannot be looked at");
            return;
        }
    };
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    seen.push(Observation { signal: room, available: bytes(stat.f_bavail), capacity: bytes(stat.f_blocks) });
    // Some file systems have no bound of their own.
    if stat.f_files > 0 {
        seen.push(Observation { signal: inodes, available: stat.f_favail, capacity: stat.f_files });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal:        1000 kB\nMemFree:         100 kB\nMemAvailable:    400 kB\n";

    #[test]
    fn memory_is_what_the_ceiling_or_the_machine_leaves() {
        let of = |limit: Option<u64>, used: Option<u64>| {
            let instance = Instance { limit: limit.map(|kib| kib << 10), working_set: used.map(|kib| kib << 10) };
            let seen = memory(MEMINFO, instance).expect("seen");
            (seen.available >> 10, seen.capacity >> 10)
        };
        for (limit, used, expected) in [
            (None, None, (400, 1000)),
            (Some(900), Some(600), (300, 900)),
            (Some(900), Some(100), (400, 900)),
            (Some(900), Some(901), (0, 900)),
            (Some(900), None, (400, 1000)),
            (Some(1 << 40), Some(600), (400, 1000)),
        ] {
            assert_eq!(of(limit, used), expected, "{limit:?} {used:?}");
        }
        assert_eq!(memory("MemTotal: 1 kB\n", Instance::default()), None, "a kernel that does not say");
    }

    /// A small file system of its own at a directory.
    struct Tmpfs(tempfile::TempDir);

    impl Tmpfs {
        fn new(options: &str) -> Self {
            let dir = tempfile::tempdir().expect("a directory");
            let done = std::process::Command::new("mount")
                .args(["-t", "tmpfs", "-o", options, "none"])
                .arg(dir.path())
                .status()
                .expect("mount runs");
            assert!(done.success(), "it is mounted; are you root?");
            Self(dir)
        }
    }

    impl Drop for Tmpfs {
        fn drop(&mut self) {
            let _ = std::process::Command::new("umount").arg("--lazy").arg(self.0.path()).status();
        }
    }

    #[test]
    fn a_real_disk_is_seen_as_it_fills_and_images_on_another_one_are_seen_apart() {
        let disk = Tmpfs::new("size=16m,nr_inodes=100");
        let paths = Paths::new(disk.0.path());
        std::fs::create_dir_all(paths.images()).expect("made");
        let left = || look(&paths, Instance::default());
        let of = |signal| left().into_iter().find(|one| one.signal == signal);
        let before = of(Signal::NodefsAvailable).expect("seen");
        assert_eq!(before.capacity, 16 << 20);
        std::fs::write(paths.root().join("big"), vec![1; 5 << 20]).expect("written");
        assert_eq!(before.available - of(Signal::NodefsAvailable).expect("seen").available, 5 << 20);
        let inodes = of(Signal::NodefsInodesFree).expect("seen");
        assert_eq!(inodes.capacity, 100);
        (0..10).for_each(|n| std::fs::write(paths.root().join(n.to_string()), "").expect("written"));
        assert_eq!(inodes.available - of(Signal::NodefsInodesFree).expect("seen").available, 10);
        assert_eq!(of(Signal::ImagefsAvailable), None, "the same disk");
        let images = Tmpfs::new("size=1m");
        std::fs::remove_dir(paths.images()).expect("removed");
        std::os::unix::fs::symlink(images.0.path(), paths.images()).expect("linked");
        assert_eq!(of(Signal::ImagefsAvailable).map(|one| one.capacity), Some(1 << 20));
    }
}
