//! What an instance has on the machine outside of its data directory, so that a test can prove that nothing of it is left.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{command, instance::Instance};

/// Pids of all processes.
pub(crate) fn all_pids() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut pids: Vec<_> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    pids
}

/// The command line, its words parted by spaces; empty for a process that is gone.
pub(crate) fn command_line(pid: u32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).replace('\0', " ").trim().to_owned()
}

/// Whether a process is in the cgroups of an instance: that tells it from a namesake of another.
pub(crate) fn in_cgroup(pid: u32, id: &str) -> bool {
    let name = format!("hearth-{id}");
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    text.lines().any(|line| line.split('/').any(|part| part == name))
}

/// Whether a process ended and only waits for its parent, which for one that lost its own is the machine's first process.
fn ended(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
}

fn network_of(pid: u32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/net")).ok()
}

/// The traces of one instance, taken while it runs.
pub struct Traces<'a> {
    instance: &'a Instance,
    id: String,
    /// Network namespaces of its pods.
    networks: BTreeSet<PathBuf>,
}

impl<'a> Traces<'a> {
    /// Looks at a running instance.
    pub fn of(instance: &'a Instance) -> Result<Self> {
        let id = instance.id()?;
        let members: Vec<_> = all_pids().into_iter().filter(|pid| in_cgroup(*pid, &id)).collect();
        let own = network_of(std::process::id());
        // The agent's own network may be another than this process's.
        let agents: BTreeSet<_> = instance.pids(" agent ").into_iter().filter_map(network_of).collect();
        let networks = members
            .into_iter()
            .filter_map(network_of)
            .filter(|network| Some(network) != own.as_ref() && !agents.contains(network))
            .collect();
        Ok(Self { instance, id, networks })
    }

    /// How many network namespaces its pods have.
    pub fn networks(&self) -> usize {
        self.networks.len()
    }

    /// What is there of it: processes, mounts, network namespaces, links, firewall tables, cgroups.
    pub fn now(&self) -> Result<Vec<String>> {
        let dir = self.instance.path();
        let mut found = Vec::new();
        for pid in all_pids().into_iter().filter(|pid| !ended(*pid)) {
            let line = command_line(pid);
            let named = line.contains(&dir.display().to_string()) && line.contains("hearth");
            if named || in_cgroup(pid, &self.id) {
                found.push(format!("process {pid}: {line}"));
            }
            if network_of(pid).is_some_and(|network| self.networks.contains(&network)) {
                found.push(format!("process {pid} in the network of a pod: {line}"));
            }
        }
        let prefix = format!("hearth-{}", self.id);
        let mut grep = |what: &str, text: &str| {
            let ours = |line: &&str| line.contains(&prefix) || line.split(' ').any(|word| below(word, dir));
            found.extend(text.lines().filter(ours).map(|line| format!("{what}: {line}")));
        };
        grep("mount", &fs::read_to_string("/proc/self/mountinfo")?);
        for (what, line) in [("link", "ip -o link"), ("table", "nft list tables"), ("route", "ip route show table all")]
        {
            let (program, arguments) = line.split_once(' ').context("words")?;
            grep(what, &command::succeed(self.instance.program(program).args(arguments.split(' ')))?);
        }
        grep("namespace", &command::run("ip", ["netns", "list"])?);
        grep("cgroup", &cgroups(Path::new("/sys/fs/cgroup")).join("\n"));
        Ok(found)
    }
}

/// The cgroups of all instances below a directory. Those of others come and go meanwhile.
fn cgroups(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if entry.file_name().to_string_lossy().starts_with("hearth-") {
                found.push(entry.path().display().to_string());
            }
            found.extend(cgroups(&entry.path()));
        }
    }
    found
}

/// Whether a path is in a directory, the directory itself excepted: a test may have mounted that.
fn below(path: &str, dir: &Path) -> bool {
    let path = Path::new(path);
    path.starts_with(dir) && path != dir
}
