//! What is left of a neighbour's throughput beside apps that take all they get, without limits of the processor; and how many idle
//! containers a machine holds.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hearth_e2e::{eventually, instance::Instance};

use crate::{
    memory::pss_mib,
    reach,
    report::{Better, Report, median},
};

const ROUNDS: usize = 5;
/// Room for each to do harm, and little enough to be filled.
const DISK_MIB: u64 = 2048;
/// Each with what it runs.
const BOMBS: [(&str, &str); 6] = [
    ("processes", "f() { f | f & }; f; while :; do sleep 1; done"),
    ("processor", "for i in 1 2 3 4; do while :; do :; done & done; wait"),
    ("memory", "while :; do tail /dev/zero; done"),
    ("disk", "while :; do dd if=/dev/zero of=/own bs=1024k count=64 conv=fsync; done"),
    (
        "inodes",
        "mkdir /d; cd /d; while :; do i=0; while [ $i -lt 5000 ]; do : > $i; i=$((i+1)); done; rm -rf ./*; done",
    ),
    ("lines", "yes 'a line of a log that nobody reads, again and again'"),
];
/// The largest case: pods, and containers in each. A device takes 110 pods.
const PODS: u32 = 100;
const CONTAINERS: u32 = 5;

fn manifest() -> String {
    let pods = BOMBS.map(|(name, script)| {
        serde_json::json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "alice"}, "spec": {
            "terminationGracePeriodSeconds": 0, "containers": [{"name": "main", "image": "busybox", "args": ["sh", "-c", script],
                "resources": {"limits": {"memory": "256Mi"}}}]}})
    });
    serde_json::json!({"apiVersion": "v1", "kind": "List", "items": pods}).to_string()
}

fn neighbour(report: &mut Report) -> Result<()> {
    let instance = Instance::on_disk(DISK_MIB)?;
    instance.start("notes")?;
    instance.wait_ready("notes", "alice")?;
    instance.import_busybox()?;
    let gateway = instance.address("gateway")?;
    let load = || (0..ROUNDS).map(|_| reach::load_of_notes(&gateway)).collect::<Result<Vec<_>>>();
    let mut alone = load()?;
    instance.apply(&manifest())?;
    eventually("all bombs go off", Duration::from_secs(60), || {
        for (name, _) in BOMBS {
            let status = instance.get("pod", name, "alice")?["status"].clone();
            ensure!(status["containerStatuses"][0]["started"] == true, "{name}: {status}");
        }
        Ok(())
    })?;
    let mut beside = load()?;
    let (alone, beside) = (median(&mut alone), median(&mut beside));
    report.figure("neighbour", beside, "requests/s", Better::Higher, Some(("without them", alone)))
}

/// Idle containers.
fn many(report: &mut Report) -> Result<()> {
    let instance = Instance::up("none")?;
    instance.import_busybox()?;
    let containers: Vec<_> = (0..CONTAINERS)
        .map(|n| {
            serde_json::json!({"name": format!("c{n}"), "image": "busybox", "args": ["sleep", "100000"],
                "resources": {"limits": {"memory": "16Mi"}, "requests": {"memory": "1Mi"}}})
        })
        .collect();
    let deployment = serde_json::json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "idle", "namespace": "alice"},
        "spec": {"replicas": PODS, "selector": {"matchLabels": {"app": "idle"}}, "template": {"metadata": {"labels": {"app": "idle"}},
            "spec": {"terminationGracePeriodSeconds": 0, "containers": containers}}}});
    let begun = Instant::now();
    instance.apply(&deployment.to_string())?;
    eventually("all containers run", Duration::from_secs(600), || {
        let status = instance.get("deployment", "idle", "alice")?["status"].clone();
        ensure!(status["readyReplicas"] == PODS, "{status}");
        Ok(())
    })?;
    let all = PODS * CONTAINERS;
    report.figure(&format!("idle/{all}/up"), begun.elapsed().as_secs_f64(), "s", Better::Lower, None)?;
    let sum = |pids: &[u32]| pids.iter().filter_map(|pid| pss_mib(*pid).ok()).sum::<f64>();
    let agent = sum(&instance.pids(" agent "));
    report.figure(&format!("idle/{all}/agent"), agent, "MiB PSS", Better::Lower, None)?;
    let shims = sum(&instance.pids("hearth shim")) / f64::from(PODS);
    report.figure(&format!("idle/{all}/shim"), shims, "MiB PSS a pod", Better::Lower, None)?;
    let server = sum(&instance.pids(" server "));
    report.figure(&format!("idle/{all}/server"), server, "MiB PSS", Better::Lower, None)
}

pub(crate) fn run(report: &mut Report) -> Result<()> {
    neighbour(report)?;
    many(report)
}
