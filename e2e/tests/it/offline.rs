//! A device without its region: runs what it has, from its own disk.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use hearth_e2e::{
    command::{self, Running},
    instance::{Instance, binary},
};

/// An agent alone, as a device has it whose region is out of reach.
fn lone_agent(instance: &Instance) -> Result<Running> {
    let log = std::fs::File::create(instance.path().join("logs/agent.log"))?;
    let mut agent = Command::new(binary());
    // Port 1 of loopback refuses: there is no region.
    agent.args(["agent", "--server", "127.0.0.1:1", "--data-dir"]).arg(instance.path());
    Ok(Running(agent.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?))
}

fn shims(instance: &Instance) -> usize {
    instance.pids("hearth shim").len()
}

#[test]
fn an_agent_that_starts_with_no_region_in_reach_brings_its_pods_up_from_its_own_disk() -> Result<()> {
    let instance = Instance::up("notes")?;
    let host = "notes.alice.hearth.internal";
    let post =
        ["--fail-with-body", "-X", "POST", "-H", "content-type: application/json", "-d", r#"{"text":"at home"}"#];
    command::succeed(&mut instance.curl(host, "/api/notes", &post)?)?;
    // `down` stops the containers too: what starts next has only the disk, as after a power cut.
    instance.down()?;
    ensure!(shims(&instance) == 0);
    let mut agent = lone_agent(&instance)?;
    instance.eventually("the pod runs without a region", || {
        ensure!(std::fs::read_to_string(instance.path().join("logs/agent.log"))?.contains("Started container"));
        ensure!(shims(&instance) == 1);
        Ok(())
    })?;
    // Killed and started again, still alone: the same pod is adopted.
    let before = instance.pids("hearth shim");
    agent.stop()?;
    let mut agent = lone_agent(&instance)?;
    instance.eventually("the agent is back", || {
        ensure!(std::fs::read_to_string(instance.path().join("agent.json"))?.contains("nas"));
        Ok(())
    })?;
    assert_eq!(instance.pids("hearth shim"), before);
    agent.stop()?;
    // With its region again, everything is as it was.
    instance.start("notes")?;
    assert_eq!(instance.pids("hearth shim"), before);
    ensure!(instance.fetch(host, "/api/notes")?.contains("at home"));
    Ok(())
}

/// Writes something, and returns the region's revision then.
fn advance(instance: &Instance, n: u64) -> Result<u64> {
    let manifest =
        format!("{{apiVersion: v1, kind: ConfigMap, metadata: {{name: c, namespace: alice}}, data: {{n: '{n}'}}}}");
    instance.apply(&manifest)?;
    let stored = instance.get("configmap", "c", "alice")?;
    let version = stored["metadata"]["resourceVersion"].as_str().with_context(|| stored.to_string())?;
    Ok(version.parse()?)
}

#[test]
fn a_region_that_lost_its_disks_stops_and_deletes_nothing() -> Result<()> {
    let instance = Instance::up("notes")?;
    let host = "notes.alice.hearth.internal";
    let post =
        ["--fail-with-body", "-X", "POST", "-H", "content-type: application/json", "-d", r#"{"text":"still here"}"#];
    command::succeed(&mut instance.curl(host, "/api/notes", &post)?)?;
    let (before, id, known) = (instance.pids("hearth shim"), instance.id()?, advance(&instance, 0)?);
    ensure!(before.len() == 1);
    let device = instance.get("device", "nas", "default")?;
    instance.kill9_all()?;
    // Everything of the region but its CA is gone; it starts anew as another incarnation.
    let raft = instance.path().join("server/raft");
    std::fs::remove_dir_all(&raft).with_context(|| raft.display().to_string())?;
    let log = std::fs::File::create(instance.path().join("logs/server.log"))?;
    let mut server = instance.hearth(["server", "--data-dir"]);
    server.arg(instance.path());
    for flag in ["--listen-api", "--listen-gateway", "--listen-dns", "--listen-metrics"] {
        server.args([flag, "127.0.0.1:0"]);
    }
    let mut server = Running(server.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?);
    instance.eventually("the fresh region answers", || instance.run("get ns"))?;
    // Its operator makes the Device again, with the key of the one that is out there; the region goes on from there, past
    // what that device has seen, so that neither its key nor a revision saves it but the incarnation alone.
    let again = serde_json::json!({"apiVersion": device["apiVersion"], "kind": "Device", "metadata": {"name": "nas"}, "spec": device["spec"]});
    ensure!(again["spec"]["keys"].as_array().is_some_and(|keys| keys.len() == 1), "{again}");
    instance.apply(&again.to_string())?;
    let mut n = 0;
    while advance(&instance, n)? <= known {
        n += 1;
    }
    ensure!(instance.list("pods", "alice")?.is_empty(), "the fresh region asks for no pod");
    let log = instance.path().join("logs/agent.log");
    let out = std::fs::File::create(&log)?;
    let mut agent = instance.hearth(["agent", "--server", &instance.address("api")?, "--data-dir"]);
    let mut agent =
        Running(agent.arg(instance.path()).stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).spawn()?);
    instance.eventually("the device has a session, and does not believe what it is told", || {
        let text = std::fs::read_to_string(&log)?;
        ensure!(text.contains("session with the region"), "{text}");
        ensure!(text.contains("and this device belongs to") && text.contains("nothing is changed"), "{text}");
        Ok(())
    })?;
    // The list was heard, refused, and nothing was done about it; the app answers with its data.
    assert_eq!(instance.pids("hearth shim"), before, "nothing was stopped");
    let pid = *instance.container_pids(&id, "/notes").first().context("the app runs")?;
    let text = command::run(
        "nsenter",
        ["-t", &pid.to_string(), "-n", "ip", "-4", "-o", "address", "show", "scope", "global"],
    )?;
    let address = text.split_whitespace().find_map(|word| word.split_once('/')).context(text.clone())?.0.to_owned();
    let notes = command::run("curl", ["-sS", "--fail-with-body", &format!("http://{address}:8080/api/notes")])?;
    ensure!(notes.contains("still here"), "{notes}");
    agent.stop()?;
    server.stop()
}

#[test]
fn a_server_from_an_old_copy_of_its_disk_stops_nothing_until_an_operator_says_so() -> Result<()> {
    let instance = Instance::up("notes")?;
    instance.import_busybox()?;
    instance.down()?;
    let (raft, old) = (instance.path().join("server/raft"), instance.path().join("old"));
    command::run("cp", ["-a".as_ref(), raft.as_os_str(), old.as_os_str()])?;
    instance.start("notes")?;
    instance.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: late, namespace: alice}, spec: {containers: [{name: a, image: busybox, args: [sleep, '100000']}]}}",
    )?;
    instance.run("wait pod/late -n alice --for condition=Ready --timeout 60s")?;
    let before = instance.pids("hearth shim");
    ensure!(before.len() == 2, "{before:?}");
    instance.kill9_all()?;
    std::fs::remove_dir_all(&raft)?;
    std::fs::rename(&old, &raft)?;
    instance.start("none")?;
    ensure!(instance.refused("get pod late -n alice")?.contains("not found"), "it was made after the copy");
    let annotation = instance.eventually("the Device says so", || {
        let restored = instance.condition("device", "nas", "default", "RegionRestored")?;
        ensure!(restored["status"] == "True", "{restored}");
        let message = restored["message"].as_str().unwrap_or_default();
        let found = message.split_whitespace().find(|word| word.starts_with("hearth.dev/accept-restored-region="));
        found.map(str::to_owned).with_context(|| message.to_owned())
    })?;
    instance.eventually("the device tells what it keeps", || {
        let events = instance.run("events -A")?;
        ensure!(events.contains("RegionLostState"), "{events}");
        Ok(())
    })?;
    assert_eq!(instance.pids("hearth shim"), before, "what the region forgot runs on");
    // The region is followed all the same.
    instance.run("delete install notes -n alice")?;
    instance.eventually("the app is stopped", || {
        ensure!(instance.pids("hearth shim").len() == 1);
        Ok(())
    })?;
    instance.run(&format!("annotate device nas {annotation}"))?;
    instance.eventually("what was lost is let go", || {
        ensure!(instance.pids("hearth shim").is_empty());
        Ok(())
    })
}
