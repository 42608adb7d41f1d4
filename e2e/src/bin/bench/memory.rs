//! Memory of an idle server and agent: proportional set size, so that shared pages count once.

use std::fs;

use anyhow::{Context as _, Result};
use hearth_e2e::instance::Instance;

use crate::report::{Better, Report};

/// Pods that run while the agent is measured.
const PODS: u32 = 10;

fn pss_kib(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).with_context(|| format!("process {pid}"))?;
    let line = text.lines().find(|line| line.starts_with("Pss:")).context("a Pss line")?;
    Ok(line.split_whitespace().nth(1).context("a number")?.parse()?)
}

fn sum_mib(pids: &[u32]) -> f64 {
    // A helper process may have ended meanwhile.
    pids.iter().filter_map(|pid| pss_kib(*pid).ok()).sum::<f64>() / 1024.0
}

pub(crate) fn run(report: &mut Report) -> Result<()> {
    let instance = Instance::up("none")?;
    report.figure("server/idle", sum_mib(&instance.pids(" server ")), "MiB PSS", Better::Lower, None)?;
    let agent = sum_mib(&instance.pids(" agent "));
    report.figure("agent/idle", agent, "MiB PSS", Better::Lower, None)?;
    instance.import_busybox()?;
    crate::device::deploy(&instance, PODS)?;
    let with_pods = sum_mib(&instance.pids(" agent ")) + sum_mib(&instance.pids("hearth shim"));
    report.figure("agent/pod", (with_pods - agent) / f64::from(PODS), "MiB PSS a pod", Better::Lower, None)?;
    report.figure("server/10pods", sum_mib(&instance.pids(" server ")), "MiB PSS", Better::Lower, None)
}
