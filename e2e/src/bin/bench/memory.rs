//! Memory of an idle server and agent: proportional set size, so that shared pages count once.

use std::fs;

use anyhow::{Context as _, Result};
use hearth_e2e::instance::Instance;

use crate::report::{Better, Report, median};

/// Instances, one after the other.
const ROUNDS: usize = 5;
/// Pods that run while the agent is measured.
const PODS: u32 = 10;

fn pss_kib(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).with_context(|| format!("process {pid}"))?;
    let line = text.lines().find(|line| line.starts_with("Pss:")).context("a Pss line")?;
    Ok(line.split_whitespace().nth(1).context("a number")?.parse()?)
}

/// The proportional set size of a process.
pub(crate) fn pss_mib(pid: u32) -> Result<f64> {
    Ok(pss_kib(pid)? / 1024.0)
}

fn sum_mib(pids: &[u32]) -> f64 {
    // A helper process may have ended meanwhile.
    pids.iter().filter_map(|pid| pss_kib(*pid).ok()).sum::<f64>() / 1024.0
}

/// What one instance weighs.
struct Sample {
    server: f64,
    agent: f64,
    pod: f64,
    server_with_pods: f64,
}

fn sample() -> Result<Sample> {
    let instance = Instance::up("none")?;
    let (server, agent) = (sum_mib(&instance.pids(" server ")), sum_mib(&instance.pids(" agent ")));
    instance.import_busybox()?;
    crate::device::deploy(&instance, PODS)?;
    let with_pods = sum_mib(&instance.pids(" agent ")) + sum_mib(&instance.pids("hearth shim"));
    let pod = (with_pods - agent) / f64::from(PODS);
    Ok(Sample { server, agent, pod, server_with_pods: sum_mib(&instance.pids(" server ")) })
}

pub(crate) fn run(report: &mut Report) -> Result<()> {
    let samples = (0..ROUNDS).map(|_| sample()).collect::<Result<Vec<_>>>()?;
    let mut figure = |case: &str, unit: &str, value: fn(&Sample) -> f64| {
        let mut values: Vec<_> = samples.iter().map(value).collect();
        report.figure(case, median(&mut values), unit, Better::Lower, None)
    };
    figure("server/idle", "MiB PSS", |one| one.server)?;
    figure("agent/idle", "MiB PSS", |one| one.agent)?;
    figure("agent/pod", "MiB PSS a pod", |one| one.pod)?;
    figure(&format!("server/{PODS}pods"), "MiB PSS", |one| one.server_with_pods)
}
