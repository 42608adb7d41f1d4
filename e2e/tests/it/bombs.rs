//! Apps that take whatever they get, all at once: processes, memory, disk, inodes, files, lines of a log. The device stays in touch, and a
//! neighbour serves.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hearth_e2e::{command, eventually, instance::Instance};
use serde_json::Value;

/// What each runs. Small shares of the processor, so that it is the other limits that are met; what they do to a neighbour's throughput is
/// measured by the benchmark `device`, case `bombs`.
const BOMBS: [(&str, &str, &str); 6] = [
    ("processes", "f() { f | f & }; f; while :; do sleep 1; done", ""),
    ("memory", "tail /dev/zero", ", memory: 32Mi"),
    ("disk", "dd if=/dev/zero of=/own bs=1024k; sleep 100000", ""),
    ("inodes", "mkdir /cache/d; cd /cache/d; i=0; while :; do : > $i || sleep 1; i=$((i+1)); done", ""),
    ("files", "cd /cache; awk 'BEGIN { while (1) { file = \"f\" n++; print > file } }'; sleep 100000", ""),
    ("lines", "yes 'a line of a log that nobody reads, again and again'", ""),
];

fn pod((name, script, more): &(&str, &str, &str)) -> Value {
    serde_json::json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "alice"}, "spec": {
        "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "main", "image": "busybox", "args": ["sh", "-c", script],
            "resources": {"limits": limits(more)}, "volumeMounts": [{"name": "cache", "mountPath": "/cache"}]}],
        "volumes": [{"name": "cache", "emptyDir": {}}]}})
}

fn limits(more: &str) -> Value {
    let mut limits = serde_json::json!({"cpu": "200m", "memory": "128Mi"});
    if let Some((name, value)) = more.trim_start_matches(", ").split_once(": ") {
        limits[name] = value.into();
    }
    limits
}

/// How many heartbeats the region has had, and how many of them were at most five seconds late.
fn heartbeats(instance: &Instance) -> Result<(u64, u64)> {
    let text = instance.scrape("metrics")?;
    let value = |name: &str| -> Result<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
        Ok(line.trim().parse::<f64>()? as u64)
    };
    Ok((
        value("hearth_region_heartbeat_delay_seconds_count")?,
        value("hearth_region_heartbeat_delay_seconds_bucket{le=\"5\"}")?,
    ))
}

#[test]
fn apps_that_take_all_they_get_keep_no_device_silent_and_no_neighbour_from_serving() -> Result<()> {
    let instance = Instance::on_disk(1024)?;
    // A device as it is by default.
    instance.say_evictions("")?;
    instance.start("notes")?;
    instance.wait_ready("notes", "alice")?;
    instance.import_busybox()?;
    let bombs: Vec<_> = BOMBS.iter().map(pod).collect();
    let status = |name: &str| Ok::<_, anyhow::Error>(instance.get("pod", name, "alice")?["status"].clone());
    let (before, _) = heartbeats(&instance)?;
    instance.apply(&serde_json::json!({"apiVersion": "v1", "kind": "List", "items": bombs}).to_string())?;
    // Heartbeats come every ten seconds; all the while the neighbour serves whoever asks.
    eventually("three heartbeats", Duration::from_secs(120), || {
        instance.fetch("notes.alice.hearth.internal", "/")?;
        let (now, _) = heartbeats(&instance)?;
        ensure!(now >= before + 3, "{now} heartbeats, {before} before");
        Ok(())
    })?;
    let (all, in_time) = heartbeats(&instance)?;
    ensure!(all == in_time, "{} of {all} heartbeats were late", all - in_time);
    let node = instance.condition("node", "nas", "default", "Ready")?;
    ensure!(node["status"] == "True", "{node}");

    // Each has met what holds it.
    let logs = |name: &str| instance.run(&format!("logs {name} -n alice --tail 200"));
    let evicted = |name: &str| {
        instance.eventually(&format!("{name} is evicted"), || {
            let status = status(name)?;
            ensure!(status["reason"] == "Evicted", "{status}");
            Ok(())
        })
    };
    instance.eventually("the limit of processes", || {
        let said = logs("processes")?;
        ensure!(said.contains("can't fork"), "{said}");
        Ok(())
    })?;
    instance.eventually("the limit of memory", || {
        let container = &status("memory")?["containerStatuses"][0];
        let killed = [&container["state"]["terminated"], &container["lastState"]["terminated"]];
        ensure!(killed.iter().any(|one| one["reason"] == "OOMKilled"), "{container}");
        Ok(())
    })?;
    instance.eventually("the limit of files", || {
        let said = logs("files")?;
        ensure!(said.contains("Too many open files"), "{said}");
        Ok(())
    })?;
    evicted("disk")?;
    evicted("inodes")?;
    let log = command::run("du", ["-sb", &instance.path().join("agent/logs").display().to_string()])?;
    let bytes: u64 = log.split_whitespace().next().context("a number")?.parse()?;
    ensure!(bytes < 200 << 20, "logs take {bytes} bytes");
    // The device is as useful as before.
    instance.run("delete pod -n alice processes memory disk inodes files lines")?;
    instance.fetch("notes.alice.hearth.internal", "/").map(drop)
}
