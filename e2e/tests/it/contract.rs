//! The contract of `up`, `status` and `down`, on which scripts rely.

use std::{fs, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use hearth_e2e::{command, eventually, instance::Instance};

/// What of an instance is left on the machine: processes, mounts, links, tables, cgroups, namespaces' files.
fn left_over(instance: &Instance, id: &str) -> Result<Vec<String>> {
    let dir = instance.path().display().to_string();
    let mut left = Vec::new();
    for pid in instance.pids("") {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains("hearth") && !line.contains("/it-") {
            left.push(format!("process {pid}: {line}"));
        }
    }
    let prefix = format!("hearth-{id}");
    let grep = |what: &str, text: String, left: &mut Vec<String>| {
        left.extend(
            text.lines()
                .filter(|line| line.contains(&prefix) || line.contains(&dir))
                .map(|line| format!("{what}: {line}")),
        );
    };
    grep("mount", fs::read_to_string("/proc/self/mountinfo")?, &mut left);
    grep("link", command::run("ip", ["-o", "link"])?, &mut left);
    grep("namespace", command::run("ip", ["netns", "list"])?, &mut left);
    grep("table", command::run("nft", ["list", "tables"])?, &mut left);
    grep("cgroup", command::run("find", ["/sys/fs/cgroup", "-type", "d", "-name", "hearth-*"])?, &mut left);
    Ok(left)
}

#[test]
fn up_answers_as_pasted_and_down_leaves_nothing_but_data() -> Result<()> {
    let instance = Instance::empty()?;
    let out = instance.start("notes")?;
    let status = instance.status()?;
    for field in ["region", "zone", "api", "gateway", "dns", "metrics", "device"] {
        ensure!(status[field].is_string(), "{field} in {status}");
    }
    assert_eq!(status["device"], "nas");
    assert_eq!(status["zone"], "hearth.internal");
    // The line that `up` printed works as pasted.
    let pasted = out.lines().find(|line| line.trim_start().starts_with("curl ")).context(out.clone())?;
    let page = command::succeed(Command::new("sh").args(["-c", &format!("{pasted} -sS --fail")]))?;
    ensure!(page.contains("<html") || page.contains("<!doctype html") || page.contains("<!DOCTYPE html"), "{page}");
    // A note survives down and up.
    let host = "notes.alice.hearth.internal";
    let post =
        ["--fail-with-body", "-X", "POST", "-H", "content-type: application/json", "-d", r#"{"text":"keep me"}"#];
    command::succeed(&mut instance.curl(host, "/api/notes", &post)?)?;
    let id = status["instance"].as_str().context("instance")?.to_owned();
    instance.down()?;
    let left = left_over(&instance, &id)?;
    ensure!(left.is_empty(), "left behind: {left:#?}");
    instance.start("notes")?;
    ensure!(instance.fetch(host, "/api/notes")?.contains("keep me"));
    // An example that was deleted stays deleted, and its data is kept.
    instance.run("delete install notes -n alice")?;
    instance.down()?;
    let out = instance.start("notes")?;
    ensure!(!out.contains("curl"), "{out}");
    ensure!(instance.list("installs", "alice")?.is_empty());
    ensure!(instance.list("pvc", "alice")?.len() == 1, "the claim is kept");
    // Installed again, it has its notes again.
    instance.apply("{apiVersion: hearth.dev/v1alpha1, kind: Install, metadata: {name: notes, namespace: alice}, spec: {app: notes}}")?;
    instance.wait_ready("notes", "alice")?;
    ensure!(instance.fetch(host, "/api/notes")?.contains("keep me"));
    Ok(())
}

#[test]
fn down_clears_up_after_kill_9_of_everything() -> Result<()> {
    let instance = Instance::up("notes")?;
    let id = instance.status()?["instance"].as_str().context("instance")?.to_owned();
    // Supervisor first, as a crash of it would be; then whatever is there, shims excepted.
    for verb in [" up ", " server ", " agent "] {
        for pid in instance.pids(verb) {
            instance.kill9(pid)?;
        }
    }
    ensure!(!instance.pids("hearth shim").is_empty(), "containers go on without the agent");
    instance.down()?;
    let left = left_over(&instance, &id)?;
    ensure!(left.is_empty(), "left behind: {left:#?}");
    // Twice is harmless.
    instance.down()?;
    instance.start("notes")?;
    Ok(())
}

#[test]
fn one_instance_a_data_directory_and_two_side_by_side() -> Result<()> {
    let one = Instance::up("none")?;
    let error = command::fail(&mut one.up_command("none"))?;
    ensure!(error.contains("running already") && error.contains("hearth down"), "{error}");
    ensure!(one.status()?["api"].is_string(), "the first goes on");
    let two = Instance::up("none")?;
    ensure!(one.status()?["instance"] != two.status()?["instance"]);
    ensure!(two.list("devices", "default")?.len() == 1);
    two.down()?;
    ensure!(one.list("devices", "default")?.len() == 1);
    Ok(())
}

#[test]
fn a_supervisor_that_is_killed_can_be_started_again_and_containers_run_on() -> Result<()> {
    let instance = Instance::up("notes")?;
    let shims = instance.pids("hearth shim");
    ensure!(shims.len() == 1, "{shims:?}");
    for pid in instance.pids(" up ") {
        instance.kill9(pid)?;
    }
    instance.start("notes")?;
    assert_eq!(instance.pids("hearth shim"), shims);
    Ok(())
}

#[test]
fn a_port_that_is_taken_is_told_and_nothing_is_left_running() -> Result<()> {
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let port = taken.local_addr()?.port();
    let instance = Instance::empty()?;
    let mut up = instance.hearth(["up", "--detach", "--example", "none", "--data-dir"]);
    up.arg(instance.path());
    for flag in ["--listen-gateway", "--listen-dns", "--listen-metrics", "--listen-device-metrics"] {
        up.args([flag, "127.0.0.1:0"]);
    }
    up.args(["--listen-api", &format!("127.0.0.1:{port}")]);
    let error = command::fail(&mut up)?;
    ensure!(error.contains(&port.to_string()) && error.contains("--listen-api") && error.contains("in use"), "{error}");
    eventually("nothing runs", Duration::from_secs(10), || {
        let pids = instance.pids("hearth");
        ensure!(pids.is_empty(), "{pids:?}");
        Ok(())
    })
}

#[test]
fn up_wants_root_and_a_known_example() -> Result<()> {
    let instance = Instance::empty()?;
    let binary = hearth_e2e::instance::binary();
    // The binary's folder may be closed to others: a copy in the open is run.
    let copy = instance.path().join("hearth");
    fs::copy(&binary, &copy)?;
    command::run("chmod", ["755", &instance.path().display().to_string(), &copy.display().to_string()])?;
    let mut up = Command::new("setpriv");
    up.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&copy).args(["up", "--detach"]);
    let error = command::fail(&mut up)?;
    ensure!(error.contains("must run as root"), "{error}");
    let mut up = instance.up_command("nonesuch");
    let error = command::fail(&mut up)?;
    ensure!(error.contains("no example \"nonesuch\""), "{error}");
    Ok(())
}

#[test]
fn metrics_of_server_and_device_are_valid() -> Result<()> {
    let instance = Instance::up("none")?;
    for (field, expected) in [("metrics", "hearth_api_requests"), ("deviceMetrics", "hearth_agent")] {
        let address = instance.address(field)?;
        let text = command::run("curl", ["-sS", "--fail", &format!("http://{address}/metrics")])?;
        ensure!(text.contains("# HELP") && text.contains("process_resident_memory_bytes"), "{text}");
        ensure!(text.contains(expected), "{expected} in {text}");
    }
    Ok(())
}
