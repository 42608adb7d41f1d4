//! A volume that moves: its device stops the app by itself once its region does not answer, whatever becomes of its agent; another device gets
//! the volume only after that, empty; and the first one does not go on with it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hearth_e2e::{command, device::Device, eventually, instance::Instance};
use serde_json::Value;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// An app that says who writes its volume, and where, all the while.
const APP: &str = r"
apiVersion: hearth.dev/v1alpha1
kind: App
metadata: {name: cache}
spec:
  containers:
  - name: cache
    image: busybox
    args: [sh, -c, 'trap exit TERM; [ -e /data/mine ] || echo $HOSTNAME > /data/mine; while :; do date +%s.%N > /data/now; sleep 0.1; done']
    volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data, size: 1Gi, policy: Move}]
---
apiVersion: hearth.dev/v1alpha1
kind: Install
metadata: {name: cache, namespace: alice}
spec: {app: cache, placement: {disconnect: {moveAfterSeconds: 5}}}
";

fn annotation(claim: &Value, key: &str) -> String {
    claim["metadata"]["annotations"][key].as_str().unwrap_or_default().to_owned()
}

/// The pods that there are on an instance.
fn shims(instance: &Instance) -> usize {
    instance.pids("hearth shim").len()
}

#[test]
fn a_volume_that_moves_has_one_writer_whether_its_agent_is_stopped_killed_or_back() -> Result<()> {
    let region = Instance::empty()?;
    let mut up = region.up_command("none");
    up.args(["--volume-lease", "10s"]);
    command::succeed(&mut up).with_context(|| region.logs())?;
    let mut attic = Device::join(&region, "attic", "alice")?;
    attic.instance.import_busybox()?;
    region.eventually("the device is ready", || {
        ensure!(region.condition("node", "attic", "default", "Ready")?["status"] == "True", "{}", attic.said());
        Ok(())
    })?;
    region.run("cordon nas")?;
    region.apply(APP)?;
    region.wait_ready("cache", "alice").with_context(|| attic.said())?;
    let claim = region.get("pvc", "cache-data", "alice")?;
    ensure!(annotation(&claim, "hearth.dev/device") == "attic", "{claim}");
    let first: u64 = annotation(&claim, "hearth.dev/epoch").parse().with_context(|| format!("no epoch: {claim}"))?;
    let uid = claim["metadata"]["uid"].as_str().context("a uid")?.to_owned();
    let data = attic.instance.path().join(format!("agent/volumes/claims/alice/cache-data.{uid}/data"));
    let mine = std::fs::read_to_string(data.join("mine"))?;
    let writes = || std::fs::read_to_string(data.join("now")).unwrap_or_default();
    // It is renewed: well after one lease, it still writes.
    let begun = Instant::now();
    eventually("it writes on under renewed leases", PATIENCE, || {
        ensure!(begun.elapsed() > Duration::from_secs(11));
        let before = writes();
        eventually("it writes", Duration::from_secs(5), || {
            ensure!(writes() != before);
            Ok(())
        })
    })?;
    region.run("uncordon nas")?;
    region.import_busybox()?;

    // Its agent is stopped: nobody renews, and the session stays open. The shim alone can end the app.
    let agent = attic.instance.pids(" agent ");
    ensure!(agent.len() == 1, "{agent:?}");
    command::run("kill", ["-STOP", &agent[0].to_string()])?;
    let stopped = Instant::now();
    let (mut seen, mut since) = (writes(), Instant::now());
    eventually("the shim ends the app by itself", PATIENCE, || {
        let now = writes();
        if now != seen {
            (seen, since) = (now, Instant::now());
        }
        ensure!(since.elapsed() > Duration::from_secs(1), "it still writes");
        Ok(())
    })?;
    ensure!(
        since.duration_since(stopped) < Duration::from_secs(11),
        "longer than the lease: {:?}",
        since.duration_since(stopped)
    );
    ensure!(shims(&attic.instance) == 1, "the shim itself is there");

    // Its agent is killed and not started again: the region finds it silent, and waits out the lease.
    attic.stop();
    region.eventually("another device has the volume", || {
        let claim = region.get("pvc", "cache-data", "alice")?;
        ensure!(annotation(&claim, "hearth.dev/device") == "nas", "{claim}");
        Ok(())
    })?;
    let claim = region.get("pvc", "cache-data", "alice")?;
    let second: u64 = annotation(&claim, "hearth.dev/epoch").parse()?;
    ensure!(second > first && annotation(&claim, "hearth.dev/epoch-before") == first.to_string(), "{claim}");
    region.wait_ready("cache", "alice")?;
    let there = region.path().join(format!("agent/volumes/claims/alice/cache-data.{uid}/data/mine"));
    let theirs = std::fs::read_to_string(&there)?;
    ensure!(theirs != mine, "it began empty: {theirs} {mine}");
    let events = region.run("events -n alice")?;
    ensure!(events.contains("BEGINS EMPTY"), "{events}");
    let told = region.condition("pvc", "cache-data", "alice", "BeganEmpty")?;
    ensure!(told["status"] == "True" && told["message"].as_str().is_some_and(|text| text.contains("attic")), "{told}");

    // It comes back: it does not go on, and keeps what it had aside.
    let last = writes();
    attic.start()?;
    let aside = attic.instance.path().join(format!("agent/volumes/claims/.aside/{uid}.{first}/data"));
    eventually("what it had is set aside", PATIENCE, || {
        ensure!(aside.is_dir(), "{}", attic.said());
        Ok(())
    })?;
    ensure!(
        std::fs::read_to_string(aside.join("mine"))? == mine && std::fs::read_to_string(aside.join("now"))? == last
    );
    eventually("nothing of it is left there", PATIENCE, || {
        ensure!(shims(&attic.instance) == 0, "{}", attic.said());
        Ok(())
    })?;
    region.eventually("its owner is told where it is", || {
        let events = region.run("events -n default")?;
        ensure!(events.contains("VolumeSetAside") && events.contains(".aside/"), "{events}");
        Ok(())
    })?;
    ensure!(std::fs::read_to_string(&there)? == theirs && shims(&region) == 1, "the other one runs on");
    Ok(())
}
