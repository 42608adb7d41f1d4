//! What this machine is.

use std::net::{IpAddr, UdpSocket};

use hearth_image::Platform;
use hearth_runtime::probe_kernel;
use hearth_types::kinds::DeviceInfo;

use crate::{Paths, pressure};

/// Pods that a device takes, as a node of Kubernetes does.
const MAX_PODS: u32 = 110;
/// The largest file below /proc and /etc that is read, in bytes.
const MAX_FACT_BYTES: u64 = 64 << 10;

/// What a machine has for pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Machine {
    /// Thousandths of a core.
    pub(crate) cpu_millis: u64,
    /// Bytes of memory.
    pub(crate) memory_bytes: u64,
    /// Bytes of the data directory's file system, without what is kept free of pods; 0 where it cannot be asked.
    pub(crate) storage_bytes: u64,
}

/// Finds out what this machine is. Blocks for a moment.
pub(crate) fn device_info(paths: &Paths) -> DeviceInfo {
    let kernel = probe_kernel();
    let Machine { cpu_millis, memory_bytes, storage_bytes } = machine(paths);
    let capacity = storage(paths);
    DeviceInfo {
        architecture: Platform::host().architecture,
        os_image: os_image(&read("/etc/os-release")),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        cpu_millis,
        memory_bytes,
        pods: MAX_PODS,
        storage_bytes: capacity,
        storage_allocatable_bytes: capacity.map(|_| storage_bytes),
        missing: crate::fitness::kernel_lacks(&kernel),
        features: vec![hearth_types::lease::FEATURE.to_owned()],
        kernel_version: kernel.release,
    }
}

/// What this machine has. Blocks for a moment.
pub(crate) fn machine(paths: &Paths) -> Machine {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    Machine {
        cpu_millis: cores * 1000,
        memory_bytes: meminfo(&read("/proc/meminfo"), "MemTotal").unwrap_or_default(),
        storage_bytes: storage(paths).map_or(0, |capacity| pressure::allocatable(paths, capacity)),
    }
}

/// The size of the data directory's file system in bytes.
fn storage(paths: &Paths) -> Option<u64> {
    let stat = rustix::fs::statvfs(paths.root()).ok()?;
    Some(stat.f_blocks.saturating_mul(stat.f_frsize))
}

/// The text of a small file, or nothing.
pub(crate) fn read(path: &str) -> String {
    let bytes = crate::files::read_bounded(path.as_ref(), MAX_FACT_BYTES).ok().flatten();
    bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// `PRETTY_NAME` of os-release(5).
fn os_image(text: &str) -> String {
    let line = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    line.map_or("Linux", |name| name.trim_matches(['"', '\''])).to_owned()
}

/// A line of proc_meminfo(5), which is in KiB, in bytes.
pub(crate) fn meminfo(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// The machine's own addresses on the way out, IPv4 first; no packet is sent.
pub(crate) fn host_ips() -> Vec<IpAddr> {
    // Addresses for documentation (RFC 5737, RFC 3849): a connected UDP socket asks the routing table and sends nothing.
    [("0.0.0.0:0", "192.0.2.1:9"), ("[::]:0", "[2001:db8::1]:9")]
        .into_iter()
        .filter_map(|(from, to)| {
            let socket = UdpSocket::bind(from).ok()?;
            socket.connect(to).ok()?;
            Some(socket.local_addr().ok()?.ip())
        })
        .filter(|ip| !ip.is_loopback() && !ip.is_unspecified())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_read_from_what_the_system_says() {
        assert_eq!(os_image("NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n"), "Debian GNU/Linux 12");
        assert_eq!(os_image(""), "Linux");
        assert_eq!(meminfo("MemFree: 1 kB\nMemTotal:       2048 kB\n", "MemTotal"), Some(2 << 20));
        let data = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(data.path().join("agent")).expect("made");
        let info = device_info(&Paths::new(data.path()));
        assert!(info.memory_bytes > 0 && info.cpu_millis >= 1000, "{info:?}");
        assert!(info.storage_bytes > info.storage_allocatable_bytes && info.storage_allocatable_bytes > Some(0));
        assert!(!info.kernel_version.is_empty());
    }
}
