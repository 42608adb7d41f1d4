//! What processes in a cgroup use, as the kubelet and cAdvisor count it.

use std::{fs, path::Path};

use super::Cgroups;
use crate::model::Usage;

impl Cgroups {
    /// What is used in `rel` and below; a controller that is not there, or a cgroup that is gone, tells nothing.
    pub(crate) fn usage(&self, rel: &Path) -> Usage {
        Usage { cpu_nanos: self.cpu_nanos(rel), working_set_bytes: self.working_set(rel) }
    }

    fn cpu_nanos(&self, rel: &Path) -> Option<u64> {
        if let Some(h) = self.with("cpuacct") {
            return fs::read_to_string(h.mount.join(rel).join("cpuacct.usage")).ok()?.trim().parse().ok();
        }
        // Version 2 accounts for CPU time without its controller too.
        let h = self.working().find(|h| h.v2)?;
        let text = fs::read_to_string(h.mount.join(rel).join("cpu.stat")).ok()?;
        field(&text, "usage_usec")?.checked_mul(1000)
    }

    /// Memory that cannot be had back without swapping: all of it but file pages that nobody used lately.
    fn working_set(&self, rel: &Path) -> Option<u64> {
        let h = self.with("memory")?;
        let dir = h.mount.join(rel);
        let (usage, idle) =
            if h.v2 { ("memory.current", "inactive_file") } else { ("memory.usage_in_bytes", "total_inactive_file") };
        let usage: u64 = fs::read_to_string(dir.join(usage)).ok()?.trim().parse().ok()?;
        let stat = fs::read_to_string(dir.join("memory.stat")).ok()?;
        Some(usage.saturating_sub(field(&stat, idle).unwrap_or(0)))
    }
}

/// A number of a file with a name and a number a line.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::Hierarchy;

    fn host(dir: &Path, v2: bool) -> Cgroups {
        let hierarchy = |name: &str, controllers: &[&str]| Hierarchy {
            mount: dir.join(name),
            controllers: controllers.iter().map(ToString::to_string).collect(),
            v2,
        };
        let hierarchies = if v2 {
            vec![hierarchy("v2", &["cpu", "memory", "pids"])]
        } else {
            vec![hierarchy("memory", &["memory"]), hierarchy("cpu", &["cpu", "cpuacct"])]
        };
        Cgroups { hierarchies }
    }

    #[test]
    fn usage_is_read_from_either_version() {
        let dir = tempfile::tempdir().expect("a directory");
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().expect("a directory")).expect("made");
            fs::write(path, text).expect("written");
        };
        write("v2/p/c/cpu.stat", "usage_usec 1500\nuser_usec 7\n");
        write("v2/p/c/memory.current", "10000\n");
        write("v2/p/c/memory.stat", "anon 1\ninactive_file_x 1\ninactive_file 4000\n");
        write("cpu/p/c/cpuacct.usage", "1500000\n");
        write("memory/p/c/memory.usage_in_bytes", "10000\n");
        write("memory/p/c/memory.stat", "inactive_file 1\ntotal_inactive_file 4000\n");
        for v2 in [true, false] {
            let used = host(dir.path(), v2).usage(Path::new("p/c"));
            assert_eq!(used, Usage { cpu_nanos: Some(1_500_000), working_set_bytes: Some(6000) }, "{v2}");
            assert_eq!(host(dir.path(), v2).usage(Path::new("p/gone")), Usage::default());
        }
    }
}
