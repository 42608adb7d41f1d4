//! What an owner says of their device: how much apps may send and receive, and in which hours it is lent.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use hearth_e2e::{command, device::Device, eventually, instance::Instance};
use serde_json::{Value, json};

/// 1 MB a second.
const LIMIT: &str = "8M";
const SIZE: usize = 2_500_000;
/// What comes within the limit in a second may pass at once, of what guests share: so this is the least for both kinds of limits. One that is not
/// applied lets all pass in a tenth of a second.
const LEAST: Duration = Duration::from_millis(1200);
const MINUTES_A_DAY: u64 = 24 * 60;

/// An App that serves a file of `SIZE` bytes, within limits as guests have them.
const APP: &str = r"
apiVersion: hearth.dev/v1alpha1
kind: App
metadata: {name: files}
spec:
  containers:
  - name: web
    image: busybox
    args: [sh, -c, 'busybox mkdir -p /tmp/www; busybox head -c 2500000 /dev/zero > /tmp/www/big; exec busybox httpd -f -p 8080 -h /tmp/www']
    ports: [{name: http, containerPort: 8080}]
    resources: {limits: {memory: 32Mi, cpu: 500m}}
  ingress: {port: http}
";

fn patch(instance: &Instance, what: &[&str], text: &Value) -> Result<()> {
    let mut patch = instance.hearth(["patch"]);
    command::succeed(patch.args(what).arg("-p").arg(text.to_string())).map(drop)
}

/// How long it takes to fetch the file through the door, once it is there.
fn fetch(instance: &Instance, owner: &str) -> Result<Duration> {
    let host = format!("files.{owner}.hearth.internal");
    let begin = Instant::now();
    let found = instance.fetch(&host, "/big")?;
    ensure!(found.len() == SIZE, "{} bytes", found.len());
    Ok(begin.elapsed())
}

fn the_pod(instance: &Instance, owner: &str) -> Result<Value> {
    let pods = instance.list("pod", owner)?;
    let mut active = pods.into_iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    active.next().context("no pod")
}

#[test]
fn an_apps_bandwidth_holds_at_its_door_changes_without_a_restart_and_is_not_its_own_to_lift() -> Result<()> {
    let instance = Instance::up("none")?;
    instance.import_busybox()?;
    instance.apply(APP)?;
    instance.apply(&format!(
        "{{apiVersion: hearth.dev/v1alpha1, kind: Install, metadata: {{name: files, namespace: alice}}, spec: {{app: files, bandwidth: {{egress: {LIMIT}}}}}}}"
    ))?;
    instance.wait_ready("files", "alice")?;
    let took = instance.eventually("it answers", || fetch(&instance, "alice"))?;
    ensure!(took >= LEAST, "{took:?}");
    let before = the_pod(&instance, "alice")?;
    ensure!(before["metadata"]["annotations"]["kubernetes.io/egress-bandwidth"] == LIMIT, "{before}");

    for tried in ["busybox ip link del dev eth0", "busybox ip link set dev eth0 down"] {
        let mut exec = instance.hearth(["exec", "install/files", "-n", "alice", "--", "sh", "-c", tried]);
        let said = command::fail(&mut exec)?;
        ensure!(said.contains("not permitted") || said.contains("denied"), "{tried}: {said}");
    }
    let took = fetch(&instance, "alice")?;
    ensure!(took >= LEAST, "it is as it was: {took:?}");

    let said = instance.apply_refused(
        "{apiVersion: hearth.dev/v1alpha1, kind: Install, metadata: {name: files, namespace: alice}, spec: {app: files, bandwidth: {egress: '8'}}}",
    )?;
    ensure!(said.contains("spec.bandwidth.egress: \"8\": resource is unreasonably small (< 1kbit)"), "{said}");

    patch(&instance, &["install", "files", "-n", "alice"], &json!({"spec": {"bandwidth": null}}))?;
    instance.eventually("the limit is lifted", || {
        let took = fetch(&instance, "alice")?;
        ensure!(took < LEAST, "{took:?}");
        Ok(())
    })?;
    let after = the_pod(&instance, "alice")?;
    for pointer in
        ["/metadata/uid", "/status/containerStatuses/0/containerID", "/status/containerStatuses/0/restartCount"]
    {
        ensure!(before.pointer(pointer) == after.pointer(pointer), "{pointer}: {after}");
    }
    // The agent starts again, and what was said last holds.
    patch(&instance, &["install", "files", "-n", "alice"], &json!({"spec": {"bandwidth": {"egress": LIMIT}}}))?;
    instance.eventually("the limit is back", || {
        ensure!(fetch(&instance, "alice")? >= LEAST);
        Ok(())
    })?;
    let agents = instance.pids(" agent ");
    instance.kill9(*agents.first().context("an agent")?)?;
    let took = instance.eventually("it answers again", || fetch(&instance, "alice"))?;
    ensure!(took >= LEAST, "{took:?}");
    ensure!(the_pod(&instance, "alice")?["metadata"]["uid"] == before["metadata"]["uid"]);
    Ok(())
}

#[test]
fn guests_share_a_bandwidth_that_their_hosts_own_apps_do_not() -> Result<()> {
    let instance = Instance::up("none")?;
    instance.import_busybox()?;
    let lend = json!({"spec": {"lend": {"cpu": "1", "memory": "256Mi", "bandwidth": {"egress": LIMIT}}}});
    patch(&instance, &["device", "nas"], &lend)?;
    instance.apply(APP)?;
    for owner in ["alice", "bob"] {
        instance.apply(&format!(
            "{{apiVersion: hearth.dev/v1alpha1, kind: Install, metadata: {{name: files, namespace: {owner}}}, spec: {{app: files}}}}"
        ))?;
    }
    for (owner, slow) in [("alice", false), ("bob", true)] {
        instance.wait_ready("files", owner)?;
        // The first tells that it answers; names come a moment after pods.
        instance.eventually("it answers", || fetch(&instance, owner))?;
        let took = fetch(&instance, owner)?;
        ensure!((took >= LEAST) == slow, "{owner}: {took:?}");
    }
    let described = instance.run("describe device nas")?;
    ensure!(described.contains("Bandwidth:") && described.contains("Egress:  8M"), "{described}");
    let all = json!({"spec": {"bandwidth": {"egress": LIMIT}, "lend": {"bandwidth": null}}});
    patch(&instance, &["device", "nas"], &all)?;
    instance.eventually("all apps share one", || {
        ensure!(fetch(&instance, "alice")? >= LEAST);
        Ok(())
    })
}

/// Minutes since midnight in UTC, and the seconds that have passed of the last.
fn clock() -> (u64, u64) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    (now / 60 % MINUTES_A_DAY, now % 60)
}

fn window(from: u64, to: u64) -> Value {
    let text = |minute: u64| format!("{:02}:{:02}", minute / 60 % 24, minute % 60);
    json!({"from": text(from), "to": text(to)})
}

fn lend(region: &Instance, hours: &Value) -> Result<()> {
    let lend = json!({"spec": {"lend": {"cpu": "1", "memory": "256Mi", "timeZone": "UTC", "hours": hours}}});
    patch(region, &["device", "attic"], &lend)
}

/// An app that keeps how often it was started.
const COUNTER: &str = r#"
apiVersion: hearth.dev/v1alpha1
kind: App
metadata: {name: counter}
spec:
  containers:
  - name: a
    image: busybox
    args: [sh, -c, 'trap "echo ended >> /data/runs; exit" TERM; echo started >> /data/runs; while true; do busybox sleep 0.2; done']
    volumeMounts: [{name: data, mountPath: /data}]
    resources: {limits: {memory: 16Mi, cpu: 100m}}
  volumes: [{name: data, size: 1Mi}]
---
apiVersion: hearth.dev/v1alpha1
kind: Install
metadata: {name: counter, namespace: alice}
spec: {app: counter, placement: {device: attic}}
"#;

/// What the app wrote, wherever the device keeps it.
fn runs(device: &Device) -> Option<String> {
    fn find(at: &Path) -> Option<PathBuf> {
        std::fs::read_dir(at).ok()?.flatten().find_map(|entry| {
            let path = entry.path();
            if entry.file_type().ok()?.is_dir() { find(&path) } else { path.ends_with("runs").then_some(path) }
        })
    }
    std::fs::read_to_string(find(&device.instance.path().join("agent/volumes"))?).ok()
}

/// Waits until the app has written this.
fn wrote(device: &Device, text: &str) -> Result<()> {
    device.instance.eventually("the app has written", || {
        ensure!(runs(device).as_deref() == Some(text), "{:?} {}", runs(device), device.said());
        Ok(())
    })
}

fn lent_device(region: &Instance) -> Result<Device> {
    let attic = Device::join(region, "attic", "bob")?;
    attic.instance.import_busybox()?;
    region.eventually("the device is ready", || {
        ensure!(region.condition("node", "attic", "default", "Ready")?["status"] == "True", "{}", attic.said());
        Ok(())
    })?;
    Ok(attic)
}

#[test]
fn a_guest_is_ended_when_the_hours_are_changed_waits_with_its_data_and_comes_back() -> Result<()> {
    let region = Instance::up("none")?;
    let attic = lent_device(&region)?;
    let (minute, _) = clock();
    let (now, later) = (window(minute + MINUTES_A_DAY - 60, minute + 60), window(minute + 120, minute + 180));
    lend(&region, &json!([now]))?;
    region.apply(COUNTER)?;
    region.wait_ready("counter", "alice")?;
    let first = the_pod(&region, "alice")?;
    wrote(&attic, "started\n")?;
    ensure!(region.condition("device", "attic", "default", "Lending")?["status"] == "True");

    lend(&region, &json!([later]))?;
    region.eventually("another pod waits for the hours", || {
        let pod = the_pod(&region, "alice")?;
        ensure!(pod["metadata"]["uid"] != first["metadata"]["uid"], "{}", pod["status"]);
        let text = pod["status"]["conditions"].to_string();
        ensure!(text.contains("lends in other hours (again from "), "{text}");
        Ok(())
    })?;
    wrote(&attic, "started\nended\n").context("it was asked to end")?;
    let lending = region.condition("device", "attic", "default", "Lending")?;
    ensure!(lending["status"] == "False" && lending["reason"] == "LendingHoursOver", "{lending}");
    region.eventually("people are told", || {
        let events = region.run("events -n alice")?;
        ensure!(events.contains("LendingHoursOver"), "{events}");
        let ready = region.condition("install", "counter", "alice", "Ready")?;
        ensure!(ready["status"] == "False" && ready["message"].to_string().contains("lends in other hours"), "{ready}");
        Ok(())
    })?;
    let described = region.run("describe device attic")?;
    ensure!(described.contains("Lending") && described.contains("no apps of others run here until"), "{described}");

    lend(&region, &json!([now]))?;
    region.wait_ready("counter", "alice")?;
    wrote(&attic, "started\nended\nstarted\n").context("with its data")?;

    let bad =
        json!({"spec": {"lend": {"hours": [{"days": ["Mo"], "from": "7:00", "to": "25:00"}], "timeZone": "Berlin"}}});
    let mut patch = region.hearth(["patch", "device", "attic", "-p"]);
    let said = command::fail(patch.arg(bad.to_string()))?;
    for field in
        ["spec.lend.hours[0].days[0]", "spec.lend.hours[0].from", "spec.lend.hours[0].to", "spec.lend.timeZone"]
    {
        ensure!(said.contains(field), "{field}: {said}");
    }
    Ok(())
}

#[test]
fn a_device_without_its_region_ends_guests_with_its_hours_and_runs_them_in_the_next() -> Result<()> {
    let region = Instance::up("none")?;
    let attic = lent_device(&region)?;
    // Closed for one minute, which begins in time enough for what comes before it.
    let closes = |ahead: u64| {
        let (minute, seconds) = clock();
        minute + if seconds + ahead < 60 { 1 } else { 2 }
    };
    lend(&region, &json!([{"from": "00:00", "to": "24:00"}]))?;
    region.apply(COUNTER)?;
    region.wait_ready("counter", "alice")?;
    let closed = closes(20);
    lend(&region, &json!([window(closed + 1, closed + MINUTES_A_DAY)]))?;
    let desired = attic.instance.path().join("agent/desired.json");
    region.eventually("the device has the hours on its disk", || {
        let text = std::fs::read_to_string(&desired)?;
        let hours = window(closed + 1, closed + MINUTES_A_DAY)["from"].to_string();
        ensure!(text.contains(&hours), "{hours}");
        Ok(())
    })?;
    region.kill9_all()?;
    wrote(&attic, "started\n")?;
    let wait = Duration::from_secs(120);
    eventually("it is ended by the device's own clock", wait, || {
        ensure!(runs(&attic).as_deref() == Some("started\nended\n"), "{:?} {}", runs(&attic), attic.said());
        ensure!(attic.instance.pids("hearth shim").is_empty(), "nothing of it is left");
        Ok(())
    })?;
    ensure!(clock().0 % MINUTES_A_DAY == closed % MINUTES_A_DAY, "{:?}: not before", clock());
    ensure!(attic.said().contains("apps of others do not run now"), "{}", attic.said());
    eventually("it runs again in the next hours", wait, || {
        ensure!(runs(&attic).as_deref() == Some("started\nended\nstarted\n"), "{:?} {}", runs(&attic), attic.said());
        Ok(())
    })?;
    ensure!(clock().0 % MINUTES_A_DAY == (closed + 1) % MINUTES_A_DAY, "{:?}: not before", clock());
    Ok(())
}
