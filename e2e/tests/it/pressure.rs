//! Pods that take more of their device than they may, or than it has: who is evicted, and who is not.

use anyhow::{Context as _, Result, ensure};
use hearth_e2e::{command, instance::Instance};
use serde_json::Value;

fn inside(instance: &Instance, pod: &str, script: &str) -> Result<String> {
    let mut exec = instance.hearth(["exec", pod, "-n", "alice", "--", "sh", "-c", script]);
    Ok(command::succeed(&mut exec)?.trim_end().to_owned())
}

fn ensure_evicted(status: &Value, message: &str) -> Result<()> {
    ensure!(status["phase"] == "Failed" && status["reason"] == "Evicted", "{status}");
    ensure!(status["message"].as_str().context("no message")?.starts_with(message), "{status}");
    Ok(())
}

#[test]
fn a_container_that_writes_more_than_its_limit_is_evicted_and_says_so() -> Result<()> {
    let instance = Instance::up("none")?;
    instance.import_busybox()?;
    instance.apply(
        "
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: alice}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: busybox
    args: [sh, -c, 'sleep 100000']
    resources: {limits: {ephemeral-storage: 2Mi}}
    env: [{name: LIMIT, valueFrom: {resourceFieldRef: {resource: limits.ephemeral-storage}}}]
  - {name: other, image: busybox, args: [sh, -c, 'sleep 100000'], resources: {limits: {ephemeral-storage: 1Gi}}}
",
    )?;
    instance.run("wait pod/p -n alice --for=condition=Ready --timeout=60s")?;
    ensure!(inside(&instance, "p", "echo $LIMIT")? == "2097152");
    // Its own root: no volume is mounted there.
    inside(&instance, "p", "dd if=/dev/zero of=/big bs=64k count=64 2>/dev/null")?;
    let why = "Container main exceeded its local ephemeral storage limit \"2Mi\". ";
    instance.eventually("it is evicted", || ensure_evicted(&instance.get("pod", "p", "alice")?["status"], why))?;
    let described = instance.run("describe pod p -n alice")?;
    ensure!(described.contains("Evicted") && described.contains(why.trim_end()), "{described}");
    Ok(())
}
