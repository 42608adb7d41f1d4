//! The device: fifty isolated containers from one apply, and starting one against crun.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hearth_e2e::{eventually, instance::Instance};

use crate::report::{Better, Report, median};

const ROUNDS: usize = 5;
const PODS: u32 = 50;

fn manifest(replicas: u32) -> String {
    format!(
        "{{apiVersion: apps/v1, kind: Deployment, metadata: {{name: many, namespace: alice}}, spec: {{replicas: {replicas}, \
         selector: {{matchLabels: {{app: many}}}}, template: {{metadata: {{labels: {{app: many}}}}, spec: {{terminationGracePeriodSeconds: 0, \
         containers: [{{name: a, image: busybox, args: [sleep, '100000'], resources: {{limits: {{memory: 16Mi, cpu: 100m}}, requests: {{memory: 1Mi, cpu: 1m}}}}}}]}}}}}}}}"
    )
}

/// Applies a Deployment and waits until all its pods are ready; returns how long that took.
pub(crate) fn deploy(instance: &Instance, replicas: u32) -> Result<Duration> {
    let text = manifest(replicas);
    let started = Instant::now();
    instance.apply(&text)?;
    let wait =
        format!("wait deployment/many -n alice --for jsonpath={{.status.readyReplicas}}={replicas} --timeout 60s");
    instance.run(&wait)?;
    Ok(started.elapsed())
}

fn remove(instance: &Instance) -> Result<()> {
    instance.run("delete deployment many -n alice")?;
    eventually("the pods are gone", Duration::from_secs(60), || {
        let left = instance.list("pods", "alice")?.len();
        ensure!(left == 0, "{left} pods are left");
        Ok(())
    })
}

pub(crate) fn run(report: &mut Report) -> Result<()> {
    let instance = Instance::up("none")?;
    instance.import_busybox()?;
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        times.push(deploy(&instance, PODS)?.as_secs_f64());
        remove(&instance)?;
    }
    report.figure(&format!("pods/{PODS}"), median(&mut times), "s", Better::Lower, None)
}
