//! The ceiling over everything of an instance: what its pods can take together, however few limits they have
//! themselves, so that the host keeps enough to be logged in to and to stop them.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{Cgroups, write};

/// Least memory that the host keeps for itself and the agent, in bytes: a bare Debian with the agent takes about 150 MiB.
const MIN_RESERVE_BYTES: u64 = 256 << 20;
/// The host keeps this part of a larger memory, in percent: its caches and services grow with it.
const RESERVE_PERCENT: u64 = 10;
/// Part of the tasks that the kernel can have (`kernel.pid_max`, `kernel.threads-max`) which pods may have, in percent.
const PIDS_PERCENT: u64 = 75;

/// What version 1 of cgroups says where there is no limit: all of 63 bits but a page.
const UNLIMITED: u64 = (i64::MAX as u64) & !0xffff;

/// What an instance may take together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ceiling {
    pub(super) memory_bytes: u64,
    pub(super) pids: u64,
}

/// Memory for pods: all but the reserve, and half of a memory so small that the reserve would leave less.
fn memory(total: u64) -> u64 {
    total.saturating_sub(MIN_RESERVE_BYTES.max(total / 100 * RESERVE_PERCENT)).max(total / 2)
}

impl Ceiling {
    /// Of this machine.
    pub(crate) fn of_host() -> io::Result<Self> {
        let number = |path: &str| -> io::Result<u64> {
            fs::read_to_string(path)?.trim().parse().map_err(|_| io::Error::other(format!("{path} is no number")))
        };
        let tasks = number("/proc/sys/kernel/pid_max")?.min(number("/proc/sys/kernel/threads-max")?);
        let total = total_memory(&fs::read_to_string("/proc/meminfo")?);
        let total = total.ok_or_else(|| io::Error::other("/proc/meminfo has no MemTotal"))?;
        Ok(Self { memory_bytes: memory(total), pids: tasks / 100 * PIDS_PERCENT })
    }
}

/// `MemTotal` of proc_meminfo(5), which is in KiB, in bytes.
fn total_memory(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

impl Cgroups {
    /// The limit of memory of `rel` in bytes, where it has one. Version 1 says a number of 63 bits where it has none.
    pub(crate) fn memory_limit(&self, rel: &Path) -> Option<u64> {
        let h = self.with("memory")?;
        let file = if h.v2 { "memory.max" } else { "memory.limit_in_bytes" };
        let limit = fs::read_to_string(h.mount.join(rel).join(file)).ok()?.trim().parse().ok()?;
        Some(limit).filter(|limit| *limit < UNLIMITED)
    }

    /// Limits an instance as a whole. A controller that the kernel has not, or does not give to this cgroup, limits
    /// nothing, as with containers that ask for no limit.
    pub(crate) fn limit_instance(&self, rel: &Path, ceiling: Ceiling) -> io::Result<()> {
        let file = |controller: &str, v1: &str, v2: &str| -> Option<PathBuf> {
            let h = self.with(controller)?;
            let file = h.mount.join(rel).join(if h.v2 { v2 } else { v1 });
            file.exists().then_some(file)
        };
        let memory = file("memory", "memory.limit_in_bytes", "memory.max");
        let pids = file("pids", "pids.max", "pids.max");
        for (file, value) in [(memory, ceiling.memory_bytes), (pids, ceiling.pids)] {
            match file.map_or(Ok(()), |file| write(&file, &value.to_string())) {
                // More is in use already, by pods that live on: the limit that is there stays.
                Err(e) if e.kind() == io::ErrorKind::ResourceBusy => {}
                other => other?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Hierarchy, *};

    #[test]
    fn the_host_keeps_a_part_of_its_memory() {
        const MIB: u64 = 1 << 20;
        for (total, pods) in
            [(16_384, 14_746), (4096, 3687), (2560, 2304), (2048, 1792), (1024, 768), (512, 256), (400, 200)]
        {
            assert_eq!(memory(total * MIB).div_ceil(MIB), pods, "{total} MiB");
        }
        assert_eq!(total_memory("MemFree: 1 kB\nMemTotal:       2048 kB\n"), Some(2 << 20));
        let host = Ceiling::of_host().expect("is told");
        assert!(host.memory_bytes > 0 && host.pids > 100, "{host:?}");
    }

    #[test]
    fn the_ceiling_is_written_where_the_controllers_are() {
        let ceiling = Ceiling { memory_bytes: 1 << 30, pids: 4000 };
        for (v2, memory) in [(false, "memory.limit_in_bytes"), (true, "memory.max")] {
            let base = tempfile::tempdir().expect("temporary directory");
            let controllers = ["memory", "pids"].map(String::from).to_vec();
            let one = Hierarchy { mount: base.path().to_path_buf(), controllers, v2 };
            let cgroups = Cgroups { hierarchies: vec![one] };
            let dir = base.path().join("hearth-x");
            fs::create_dir(&dir).expect("makes a directory");
            cgroups.limit_instance(Path::new("hearth-x"), ceiling).expect("what is not there is left out");
            assert_eq!(fs::read_dir(&dir).expect("lists").count(), 0);
            for file in [memory, "pids.max"] {
                fs::write(dir.join(file), "max").expect("writes");
            }
            assert_eq!(cgroups.memory_limit(Path::new("hearth-x")), None, "max");
            cgroups.limit_instance(Path::new("hearth-x"), ceiling).expect("writes");
            assert_eq!(cgroups.memory_limit(Path::new("hearth-x")), Some(1 << 30));
            fs::write(dir.join(memory), "9223372036854771712\n").expect("writes");
            assert_eq!(cgroups.memory_limit(Path::new("hearth-x")), None);
            fs::write(dir.join(memory), "1073741824").expect("writes");
            let read = |file: &str| fs::read_to_string(dir.join(file)).expect("reads");
            assert_eq!((read(memory).as_str(), read("pids.max").as_str()), ("1073741824", "4000"));
        }
    }
}
