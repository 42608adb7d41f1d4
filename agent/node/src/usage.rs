//! What the device and its pods use: looked at when somebody asks, and never else.

use std::{sync::Arc, time::Duration};

use hearth_proto::v1;
use hearth_runtime::{Runtime, Usage};
use prometheus::core::{Collector, Desc};
use tokio::time::Instant;

use crate::{
    facts,
    shared::{PodEntry, Shared, blocking, running},
};

/// Over what time CPU use is told: long enough for the kernel's ticks, short enough for somebody who waits.
const WINDOW: Duration = Duration::from_secs(1);
/// Jiffies a second in /proc/stat (`USER_HZ`), the same on every architecture that this runs on.
const USER_HZ: u64 = 100;

/// A running container, and what it has used by now.
struct Sample {
    name: String,
    attempt: u32,
    usage: Usage,
}

/// What the pods of a namespace use, or all, and the machine: over [`WINDOW`], which it takes.
pub(crate) async fn now(shared: &Arc<Shared>, namespace: &str) -> v1::StatsResponse {
    let pods = shared.pods.all().into_iter().filter(|pod| namespace.is_empty() || &*pod.key.namespace == namespace);
    let pods: Arc<Vec<Arc<PodEntry>>> = Arc::new(pods.collect());
    let begin = Instant::now();
    let (before, cpu_before) = look(&pods).await;
    tokio::time::sleep(WINDOW).await;
    let (after, cpu_after) = look(&pods).await;
    let window = begin.elapsed();
    let stats = pods.iter().zip(before).zip(after).map(|((pod, before), after)| v1::PodStats {
        namespace: pod.key.namespace.to_string(),
        pod: pod.key.name.to_string(),
        uid: pod.uid.as_str().to_owned(),
        containers: after.into_iter().map(|sample| container(sample, &before, window)).collect(),
    });
    let (stats, machine) = (stats.collect(), (shared.machine)());
    let busy = cpu_after.unwrap_or_default().saturating_sub(cpu_before.unwrap_or_default());
    let device = v1::DeviceStats {
        cpu_nanocores: rate(busy.saturating_mul(1_000_000_000 / USER_HZ), window),
        memory_working_set_bytes: working_set(&facts::read("/proc/meminfo")).unwrap_or_default(),
        cpu_millis_total: machine.cpu_millis,
        memory_bytes_total: machine.memory_bytes,
    };
    v1::StatsResponse { pods: stats, device: Some(device) }
}

fn container(sample: Sample, before: &[Sample], window: Duration) -> v1::ContainerStats {
    // One that was started in between has used all its time within the window.
    let same = before.iter().find(|one| one.name == sample.name && one.attempt == sample.attempt);
    let earlier = same.map_or(Some(0), |one| one.usage.cpu_nanos);
    let used = sample.usage.cpu_nanos.zip(earlier).map(|(now, before)| now.saturating_sub(before));
    v1::ContainerStats {
        name: sample.name,
        cpu_nanocores: used.map(|nanos| rate(nanos, window)),
        memory_working_set_bytes: sample.usage.working_set_bytes,
    }
}

/// Nanoseconds of CPU time within a window, as billionths of a core.
fn rate(nanos: u64, window: Duration) -> u64 {
    let rate = u128::from(nanos) * 1_000_000_000 / window.as_nanos().max(1);
    u64::try_from(rate).unwrap_or(u64::MAX)
}

/// The running containers of each pod, and the machine's busy jiffies.
async fn look(pods: &Arc<Vec<Arc<PodEntry>>>) -> (Vec<Vec<Sample>>, Option<u64>) {
    let pods = Arc::clone(pods);
    blocking(move || (pods.iter().map(|pod| samples(pod)).collect(), busy(&facts::read("/proc/stat")))).await
}

fn samples(pod: &PodEntry) -> Vec<Sample> {
    let snapshot = pod.snapshot.borrow().clone();
    let Some(sandbox) = snapshot.sandbox else { return Vec::new() };
    let sample = |(name, attempt): (String, u32)| {
        let usage = sandbox.usage(&name, attempt);
        Sample { name, attempt, usage }
    };
    running(&snapshot.status).into_iter().map(sample).collect()
}

/// Jiffies in which the machine's cores did something, of proc_stat(5): all but idle, iowait and those of guests, which count twice.
fn busy(stat: &str) -> Option<u64> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let fields: Vec<u64> = line.split_whitespace().filter_map(|field| field.parse().ok()).collect();
    let at = |index: usize| fields.get(index).copied().unwrap_or_default();
    (fields.len() >= 4).then(|| [0, 1, 2, 5, 6, 7].into_iter().map(at).sum())
}

/// Memory in use, without file pages that nobody used lately, of proc_meminfo(5).
fn working_set(meminfo: &str) -> Option<u64> {
    let bytes = |name: &str| facts::meminfo(meminfo, name);
    let used = bytes("MemTotal")?.saturating_sub(bytes("MemFree")?);
    Some(used.saturating_sub(bytes("Inactive(file)").unwrap_or(0)))
}

/// What all pods of the device and their shims use together, for `/metrics`: read when it is scraped.
#[derive(Clone, Debug)]
pub(crate) struct Totals {
    runtime: Runtime,
    cpu: prometheus::Counter,
    memory: prometheus::Gauge,
}

impl Totals {
    pub(crate) fn register(runtime: Runtime, registry: &prometheus::Registry) -> Result<(), prometheus::Error> {
        let cpu = prometheus::Counter::new(
            "hearth_agent_pods_cpu_seconds_total",
            "CPU time of all pods of this device and their shims, since the device's cgroup was made.",
        )?;
        let memory = prometheus::Gauge::new(
            "hearth_agent_pods_memory_working_set_bytes",
            "Memory of all pods of this device and their shims, without file pages that nobody used lately.",
        )?;
        registry.register(Box::new(Self { runtime, cpu, memory }))
    }
}

impl Collector for Totals {
    fn desc(&self) -> Vec<&Desc> {
        self.cpu.desc().into_iter().chain(self.memory.desc()).collect()
    }

    fn collect(&self) -> Vec<prometheus::proto::MetricFamily> {
        let usage = self.runtime.usage();
        self.cpu.reset();
        self.cpu.inc_by(usage.cpu_nanos.unwrap_or_default() as f64 / 1e9);
        self.memory.set(usage.working_set_bytes.unwrap_or_default() as f64);
        self.cpu.collect().into_iter().chain(self.memory.collect()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_billionths_of_a_core() {
        assert_eq!(rate(500_000_000, Duration::from_secs(1)), 500_000_000);
        assert_eq!(rate(500_000_000, Duration::from_millis(2000)), 250_000_000);
        assert_eq!(rate(u64::MAX, Duration::ZERO), u64::MAX);
    }

    #[test]
    fn a_container_is_compared_with_itself_alone() {
        let sample = |attempt, nanos| Sample {
            name: "c".into(),
            attempt,
            usage: Usage { cpu_nanos: nanos, working_set_bytes: Some(7) },
        };
        let window = Duration::from_secs(1);
        for (before, after, expected) in [
            (vec![sample(0, Some(100))], sample(0, Some(150)), Some(50)),
            (vec![sample(0, Some(100))], sample(1, Some(30)), Some(30)),
            (vec![], sample(0, Some(30)), Some(30)),
            (vec![sample(0, None)], sample(0, Some(30)), None),
            (vec![sample(0, Some(1))], sample(0, None), None),
        ] {
            let stats = container(after, &before, window);
            assert_eq!((stats.cpu_nanocores, stats.memory_working_set_bytes), (expected, Some(7)));
        }
    }

    #[test]
    fn the_machine_is_read_from_what_the_kernel_says() {
        assert_eq!(busy("cpu  10 1 20 1000 500 3 4 5 99 98\ncpu0 1 1 1 1\n"), Some(43));
        assert_eq!(busy("intr 1\n"), None);
        let meminfo = "MemTotal: 1000 kB\nMemFree: 400 kB\nInactive(file):   100 kB\n";
        assert_eq!(working_set(meminfo), Some(500 * 1024));
        assert_eq!(working_set(""), None);
        assert!(busy(&facts::read("/proc/stat")).is_some() && working_set(&facts::read("/proc/meminfo")) > Some(0));
    }
}
