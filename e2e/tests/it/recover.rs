//! A region that lost everything, and comes back from its devices: real processes, three devices, no backup.

use std::{path::Path, process::Stdio};

use anyhow::{Context as _, Result, ensure};
use hearth_e2e::{
    command::{self, Running},
    device::Device,
    eventually, free_port,
    instance::{Instance, binary},
    server::{PATIENCE, Server, three},
};
use serde_json::Value;

const REGION: [&str; 4] = ["--region", "home", "--zone", "hearth.internal"];

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A server with its API at a port that stays the same.
fn server(instance: &Instance, api: &str) -> Result<Running> {
    let mut server = instance.hearth(["server", "--data-dir", text(instance.path()), "--listen-api", api]);
    server.args(REGION);
    for flag in ["--listen-gateway", "--listen-dns", "--listen-metrics"] {
        server.args([flag, "127.0.0.1:0"]);
    }
    let logs = instance.path().join("logs");
    std::fs::create_dir_all(&logs)?;
    let log = std::fs::File::create(logs.join("server.log"))?;
    let child = server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn()?;
    let process = Running(child);
    instance.eventually("the server answers", || instance.run("get ns"))?;
    Ok(process)
}

/// The list of copies that a device keeps.
fn kept_copies(device: &Device) -> Result<Value> {
    let file = std::fs::read(device.instance.path().join("agent/copies.json"))?;
    Ok(serde_json::from_slice::<Value>(&file)?["body"]["manifest"].clone())
}

/// `kind namespace/name uid` of everything that is an owner's word.
fn owned(region: &Instance) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for kind in ["install", "pvc", "route", "configmap", "secret", "deployment", "replicaset", "pod"] {
        for object in region.list(kind, "alice")? {
            let meta = &object["metadata"];
            all.push(format!("{kind} {} {}", meta["name"], meta["uid"]));
        }
    }
    for device in region.list("device", "default")? {
        all.push(format!("device {} {} {}", device["metadata"]["name"], device["metadata"]["uid"], device["spec"]));
    }
    all.sort();
    Ok(all)
}

/// The processes that shims have started.
fn children(shims: &[Vec<u32>]) -> Result<Vec<String>> {
    let read = |pid: &u32| Ok(std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?);
    shims.iter().flatten().map(read).collect()
}

#[test]
fn a_region_that_lost_everything_comes_back_from_three_devices_while_their_apps_run_on() -> Result<()> {
    let api = format!("127.0.0.1:{}", free_port()?);
    let first = Instance::empty()?;
    let running = server(&first, &api)?;
    let key = first.path().join("recovery.key");
    let said = first.run(&format!("region recovery-key --out {}", key.display()))?;
    ensure!(said.contains("recovery key"), "{said}");
    let kept = tempfile::tempdir()?;
    std::fs::rename(&key, kept.path().join("recovery.key"))?;
    let key = kept.path().join("recovery.key");

    let mut devices = [
        Device::join(&first, "attic", "alice")?,
        Device::join(&first, "cellar", "alice")?,
        Device::join(&first, "shed", "bob")?,
    ];
    for device in &devices {
        device.instance.import_busybox()?;
    }
    first.eventually("all devices are connected", || {
        let ready = first.run("get nodes")?;
        ensure!(ready.lines().filter(|line| line.contains(" Ready")).count() == 3, "{ready}");
        Ok(())
    })?;
    first.apply(
        r"
apiVersion: hearth.dev/v1alpha1
kind: App
metadata: {name: web}
spec:
  containers:
  - name: web
    image: busybox
    args: [sh, -c, 'trap exit TERM; busybox httpd -f -p 8080 -h /data & wait']
    ports: [{name: http, containerPort: 8080}]
    resources: {limits: {cpu: 100m, memory: 32Mi}}
    volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data, size: 16Mi}]
  ingress: {port: http}
---
{apiVersion: hearth.dev/v1alpha1, kind: Install, metadata: {name: web, namespace: alice}, spec: {app: web}}
---
{apiVersion: hearth.dev/v1alpha1, kind: Install, metadata: {name: gone, namespace: alice}, spec: {app: web}}
---
{apiVersion: hearth.dev/v1alpha1, kind: Install, metadata: {name: web, namespace: bob}, spec: {app: web}}
---
{apiVersion: v1, kind: Secret, metadata: {name: word, namespace: alice}, stringData: {k: v}}
",
    )?;
    for (name, owner) in [("web", "alice"), ("gone", "alice"), ("web", "bob")] {
        first.wait_ready(name, owner)?;
    }
    // One device is away when its owner deletes an app, and hears of it never.
    let listed = |device: &Device, name: &str| {
        let copies = kept_copies(device)?;
        let entries = copies["entries"].as_array().context("entries")?;
        Ok::<_, anyhow::Error>(entries.iter().any(|one| one["kind"]["kind"] == "Install" && one["name"] == name))
    };
    first.eventually("every device keeps copies", || {
        for device in &devices {
            ensure!(listed(device, "web")? && kept_copies(device)?["owner"].is_string());
        }
        ensure!(listed(&devices[0], "gone")? && listed(&devices[1], "gone")?);
        Ok(())
    })?;
    // Not the one that runs it: that one would be waited for.
    let pods = first.list("pod", "alice")?;
    let of_it = pods.iter().find(|pod| pod["metadata"]["labels"]["hearth.dev/install"] == "gone").context("its pod")?;
    if of_it["spec"]["nodeName"] == devices[1].name {
        devices.swap(0, 1);
    }
    devices[1].stop();
    first.run("delete install gone -n alice")?;
    first.eventually("the one that is there hears of it", || {
        ensure!(!listed(&devices[0], "gone")?);
        Ok(())
    })?;
    first.eventually("what was of it is gone", || {
        let pods = first.list("pod", "alice")?;
        ensure!(pods.len() == 1, "{pods:?}");
        Ok(())
    })?;
    first.eventually("and the device has heard of that too", || {
        let copies = kept_copies(&devices[0])?;
        let pods = copies["entries"].as_array().context("entries")?.iter().filter(|one| one["kind"]["kind"] == "Pod");
        ensure!(pods.count() == 1, "{copies}");
        Ok(())
    })?;
    let before = owned(&first)?;
    let keys = |device: &Device| std::fs::read(device.instance.path().join("agent/identity.json"));
    let identity = keys(&devices[0])?;
    let shims: Vec<Vec<u32>> = devices.iter().map(|device| device.instance.pids("hearth shim")).collect();
    let containers = children(&shims)?;
    ensure!(containers.len() >= 2, "{containers:?}");

    // Everything of the server is gone.
    drop(running);
    drop(first);
    let second = Instance::empty()?;
    let words = ["region", "recover", "--recovery-key", text(&key), "--data-dir", text(second.path())];
    let made = command::succeed(second.hearth(words).args(REGION))?;
    ensure!(made.contains("anew"), "{made}");
    let again = command::fail(second.hearth(words).args(REGION))?;
    ensure!(again.contains("there is a region in"), "{again}");
    // The one that heard of nothing comes first with what it knows, and the other later with what it knows better.
    devices[0].stop();
    let _running = server(&second, &api)?;
    devices[1].start()?;
    let log = |device: &Device| device.said();
    second.eventually("the one that was away is back", || {
        ensure!(second.get("install", "gone", "alice").is_ok(), "{}", log(&devices[1]));
        Ok(())
    })?;
    devices[0].start()?;
    second.eventually("the owner's objects are as they were", || {
        let now = owned(&second)?;
        ensure!(now == before, "{now:#?}\nand not\n{before:#?}\n{}", log(&devices[0]));
        Ok(())
    })?;
    second.eventually("all devices are connected", || {
        let ready = second.run("get nodes")?;
        ensure!(ready.lines().filter(|line| line.contains(" Ready")).count() == 3, "{ready}");
        Ok(())
    })?;
    for (name, owner) in [("web", "alice"), ("web", "bob")] {
        second.wait_ready(name, owner)?;
    }
    ensure!(keys(&devices[0])? == identity, "the device is who it was");
    for (device, shims) in devices.iter().zip(&shims) {
        ensure!(device.instance.pids("hearth shim") == *shims, "{}: its pods run on\n{}", device.name, device.said());
    }
    ensure!(children(&shims)? == containers, "the same processes");
    let pvc = second.list("pvc", "alice")?;
    ensure!(pvc.iter().all(|claim| claim["metadata"]["annotations"]["hearth.dev/device"].is_string()), "{pvc:?}");
    second.eventually("the app answers through the new region", || {
        ensure!(second.fetch("web.alice.hearth.internal", "/").is_err_and(|error| error.to_string().contains("404")));
        Ok(())
    })?;

    // The region is followed, and devices keep copies of it.
    second.run("region recover --finish")?;
    second.run("delete secret word -n alice")?;
    second.eventually("the copies are those of the new region", || {
        let copies = kept_copies(&devices[0])?;
        let entries = copies["entries"].as_array().context("entries")?;
        ensure!(copies["generation"].as_u64() > Some(0), "{copies}");
        ensure!(entries.iter().all(|one| one["kind"]["kind"] != "Secret"));
        Ok(())
    })?;
    second.run("delete install web -n alice")?;
    second.eventually("the app is stopped", || {
        ensure!(devices[..2].iter().all(|device| device.instance.pids("hearth shim").len() <= 1));
        Ok(())
    })?;
    Ok(())
}

#[test]
fn a_device_that_hands_in_what_it_forged_or_what_is_anothers_is_refused() -> Result<()> {
    let api = format!("127.0.0.1:{}", free_port()?);
    let first = Instance::empty()?;
    let running = server(&first, &api)?;
    let kept = tempfile::tempdir()?;
    let key = kept.path().join("recovery.key");
    first.run(&format!("region recovery-key --out {}", key.display()))?;
    let mut honest = Device::join(&first, "attic", "alice")?;
    let mut liar = Device::join(&first, "shed", "bob")?;
    for owner in ["alice", "bob"] {
        first.apply(&format!(
            "{{apiVersion: v1, kind: Secret, metadata: {{name: word, namespace: {owner}}}, data: {{k: b25l}}}}"
        ))?;
    }
    first.eventually("both keep copies", || {
        for device in [&honest, &liar] {
            ensure!(
                kept_copies(device)?["entries"]
                    .as_array()
                    .is_some_and(|all| all.iter().any(|one| one["name"] == "word"))
            );
        }
        Ok(())
    })?;
    honest.stop();
    liar.stop();
    drop(running);
    drop(first);
    let copies = |device: &Device| device.instance.path().join("agent/copies.json");
    let own = std::fs::read_to_string(copies(&liar))?;

    let second = Instance::empty()?;
    let words = ["region", "recover", "--recovery-key", text(&key), "--data-dir", text(second.path())];
    command::succeed(second.hearth(words).args(REGION))?;
    let _running = server(&second, &api)?;
    // Copies of another owner's, as somebody may have taken them from a disk.
    std::fs::copy(copies(&honest), copies(&liar))?;
    liar.start()?;
    let refused = liar.instance.path().join("agent/copies.refused.json");
    second.eventually("they are refused", || {
        ensure!(refused.exists(), "{}", liar.said());
        Ok(())
    })?;
    let log = || std::fs::read_to_string(second.path().join("logs/server.log")).unwrap_or_default();
    ensure!(log().contains("of no Device of theirs"), "{}", log());
    ensure!(second.list("secret", "alice")?.is_empty() && second.list("device", "default")?.is_empty());
    // Its own, with one that it has changed.
    liar.stop();
    let forged = own.replacen("b25l", "Zm9yZ2Vk", 1);
    ensure!(forged != own);
    std::fs::write(copies(&liar), forged)?;
    liar.start()?;
    second.eventually("the rest is taken", || second.get("device", "shed", "default"))?;
    ensure!(log().contains("the region never signed it like this"), "{}", log());
    ensure!(second.list("secret", "bob")?.is_empty());
    second.eventually("people are told", || {
        let events = second.run("events -A")?;
        ensure!(events.contains("HandInRefused"), "{events}");
        Ok(())
    })?;
    honest.start()?;
    second.eventually("the honest one's are taken", || second.get("secret", "word", "alice"))?;
    // Nobody changes by mistake what all of this hangs on.
    for line in
        ["delete configmap region-recovery -n kube-system", "label configmap region-recovery -n kube-system a=b"]
    {
        ensure!(second.refused(line)?.contains("forbidden"), "{line}");
    }
    Ok(())
}

#[test]
fn a_region_of_several_servers_that_lost_all_of_them_is_recovered_and_has_several_again() -> Result<()> {
    let lost = three()?;
    let kept = tempfile::tempdir()?;
    let key = kept.path().join("recovery.key");
    lost[1].instance.run(&format!("region recovery-key --out {}", key.display()))?;
    let early = Device::join(&lost[0].instance, "attic", "alice")?;
    let mut late = Device::join(&lost[2].instance, "shed", "bob")?;
    for owner in ["alice", "bob"] {
        lost[0].instance.apply(&format!(
            "{{apiVersion: v1, kind: Secret, metadata: {{name: word, namespace: {owner}}}, data: {{k: b25l}}}}"
        ))?;
    }
    eventually("both keep copies", PATIENCE, || {
        for device in [&early, &late] {
            let copies = kept_copies(device)?;
            ensure!(copies["entries"].as_array().is_some_and(|all| all.iter().any(|one| one["name"] == "word")));
        }
        Ok(())
    })?;
    // Devices know all three, and the region comes back at the address of one of them.
    let api = lost[1].api.clone();
    late.stop();
    drop(lost);
    let first = Instance::empty()?;
    let words = ["region", "recover", "--recovery-key", text(&key), "--data-dir", text(first.path())];
    command::succeed(first.hearth(words).args(REGION))?;
    let running = server(&first, &api)?;
    first.eventually("the device found it", || {
        ensure!(first.get("secret", "word", "alice").is_ok(), "{}", early.said());
        Ok(())
    })?;

    // Others join, under numbers of their own, and can lead.
    let joined = |by: &Instance| Server::start(Some(by.run("token create --server")?.trim()));
    let (second, third) = (joined(&first)?, joined(&first)?);
    second.all_well(&[1, 2, 3])?;
    first.run("region transfer-leader 2")?;
    eventually("another one leads", PATIENCE, || {
        ensure!(third.leader()? == 2);
        Ok(())
    })?;
    // One that comes now knows the follower alone: it is told there what the region is, and hands in where it leads.
    late.start()?;
    eventually("the other device is back", PATIENCE, || {
        ensure!(third.instance.get("secret", "word", "bob").is_ok(), "{}\n---\n{}", late.said(), second.log());
        Ok(())
    })?;
    drop(running);
    drop(first);
    eventually("both are connected without the server that was made anew", PATIENCE, || {
        let ready = third.instance.run("get nodes")?;
        ensure!(ready.lines().filter(|line| line.contains(" Ready")).count() == 2, "{ready}");
        Ok(())
    })?;
    for owner in ["alice", "bob"] {
        third.instance.apply(&format!(
            "{{apiVersion: v1, kind: Secret, metadata: {{name: new, namespace: {owner}}}, data: {{k: b25l}}}}"
        ))?;
    }
    eventually("whoever leads signs the copies", PATIENCE, || {
        for device in [&early, &late] {
            let copies = kept_copies(device)?;
            let new = copies["entries"].as_array().is_some_and(|all| all.iter().any(|one| one["name"] == "new"));
            ensure!(new && copies["generation"].as_u64() > Some(0), "{copies}\n{}", device.said());
        }
        Ok(())
    })?;
    third.instance.run("region recover --finish")?;
    Ok(())
}

#[test]
fn a_recovery_key_is_made_once_and_handed_on_by_itself() -> Result<()> {
    let instance = Instance::up("none")?;
    let file = |name: &str| instance.path().join(name);
    let make = |line: &str| instance.run(&format!("region recovery-key {line}"));
    make(&format!("--out {}", file("one").display()))?;
    let said = instance.refused(&format!("region recovery-key --out {}", file("two").display()))?;
    ensure!(said.contains("--rotate") && !file("two").exists(), "{said}");
    make(&format!("--out {} --rotate {}", file("two").display(), file("one").display()))?;
    let said = instance.refused(&format!(
        "region recovery-key --out {} --rotate {}",
        file("three").display(),
        file("one").display()
    ))?;
    ensure!(said.contains("the region's recovery key is"), "{said}");
    let words = std::fs::read_to_string(file("two"))?;
    ensure!(words.contains("offline") && words.contains("rotation "), "{words}");
    let pinned = instance.path().join("agent/recovery.json");
    instance.eventually("the device follows", || {
        let pinned: Value = serde_json::from_slice(&std::fs::read(&pinned)?)?;
        let trust = &pinned["body"]["trust"];
        ensure!(
            trust["rotations"].as_array().is_some_and(|all| all.len() == 1 && all[0]["to"] == trust["key"]),
            "{trust}"
        );
        Ok(())
    })?;
    ensure!(instance.refused("region recover --finish")?.contains("nothing to finish"));
    let mut mistyped = std::process::Command::new(binary());
    std::fs::write(file("bad"), words.replacen("hearth-recovery-key-v1 ", "hearth-recovery-key-v1 00", 1))?;
    mistyped.args(["region", "recover", "--data-dir", "/nonexistent/x", "--recovery-key", text(&file("bad"))]);
    let said = command::fail(mistyped.args(REGION))?;
    ensure!(said.contains("use the other copy"), "{said}");
    Ok(())
}
