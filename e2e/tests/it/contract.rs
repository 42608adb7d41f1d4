//! The contract of `up`, `status` and `down`, on which scripts rely.

use std::{
    fs,
    net::{TcpListener, UdpSocket},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use hearth_e2e::{
    command, eventually,
    instance::{Instance, binary},
    traces::Traces,
};

#[test]
fn up_answers_as_pasted_and_down_leaves_nothing_but_data() -> Result<()> {
    let instance = Instance::empty()?;
    let done = command::output(&mut instance.up_command("notes"), b"", command::LIMIT)?;
    let (out, progress) = (String::from_utf8_lossy(&done.stdout).into_owned(), String::from_utf8_lossy(&done.stderr));
    ensure!(done.status.success(), "{out}{progress}");
    for step in ["answers at", "imported hearth.dev/notes", "applied Install", "notes: Running"] {
        ensure!(progress.lines().any(|line| line.starts_with('[') && line.contains(step)), "{step}: {progress}");
    }
    ensure!(
        out.contains("stop it all:") && out.contains(&format!("down --data-dir {}", instance.path().display())),
        "{out}"
    );
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
    // On one machine too it went through a tunnel that the device dialled, and out of it on the device.
    for (field, metric) in [
        ("metrics", "hearth_tunnel_dials_total{result=\"ok\"}"),
        ("deviceMetrics", "hearth_tunnel_streams_total{kind=\"ingress\"}"),
    ] {
        let text = instance.scrape(field)?;
        let count =
            text.lines().find_map(|line| line.strip_prefix(metric)).with_context(|| format!("no {metric}: {text}"))?;
        ensure!(count.trim().parse::<f64>()? >= 2.0, "the probe of `up`, and the line that was pasted: {count}");
    }
    // A note survives down and up.
    let host = "notes.alice.hearth.internal";
    let post =
        ["--fail-with-body", "-X", "POST", "-H", "content-type: application/json", "-d", r#"{"text":"keep me"}"#];
    command::succeed(&mut instance.curl(host, "/api/notes", &post)?)?;
    let traces = Traces::of(&instance)?;
    let seen = traces.now()?;
    for what in ["process", "link", "table", "cgroup"] {
        ensure!(seen.iter().any(|one| one.starts_with(what)), "no {what} among {seen:#?}");
    }
    assert_eq!(traces.networks(), 1, "{seen:#?}");
    instance.down()?;
    let left = traces.now()?;
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
    let traces = Traces::of(&instance)?;
    // Supervisor first, as a crash of it would be; then whatever is there, shims excepted.
    for verb in [" up ", " server ", " agent "] {
        for pid in instance.pids(verb) {
            instance.kill9(pid)?;
        }
    }
    ensure!(!instance.pids("hearth shim").is_empty(), "containers go on without the agent");
    instance.down()?;
    let left = traces.now()?;
    ensure!(left.is_empty(), "left behind: {left:#?}");
    // Twice is harmless.
    instance.down()?;
    instance.start("notes")?;
    Ok(())
}

#[test]
fn one_instance_a_data_directory_and_two_side_by_side() -> Result<()> {
    let host = "notes.alice.hearth.internal";
    let note = |instance: &Instance, text: &str| -> Result<()> {
        let body = format!("{{\"text\":\"{text}\"}}");
        let post = ["--fail-with-body", "-X", "POST", "-H", "content-type: application/json", "-d", &body];
        command::succeed(&mut instance.curl(host, "/api/notes", &post)?).map(drop)
    };
    let one = Instance::up("notes")?;
    let error = command::fail(&mut one.up_command("none"))?;
    ensure!(error.contains("running already") && error.contains("hearth down"), "{error}");
    ensure!(one.status()?["api"].is_string(), "the first goes on");
    let two = Instance::up("notes")?;
    ensure!(one.id()? != two.id()?);
    note(&one, "of the first")?;
    note(&two, "of the second")?;
    let (first, second) = (one.fetch(host, "/api/notes")?, two.fetch(host, "/api/notes")?);
    ensure!(first.contains("of the first") && !first.contains("of the second"), "{first}");
    ensure!(second.contains("of the second") && !second.contains("of the first"), "{second}");
    // The end of one is nothing to the other.
    let (shims, before, gone) = (one.pids("hearth shim"), Traces::of(&one)?, Traces::of(&two)?);
    let seen = before.now()?.len();
    two.down()?;
    let left = gone.now()?;
    ensure!(left.is_empty(), "left behind: {left:#?}");
    assert_eq!(one.pids("hearth shim"), shims);
    assert_eq!(before.now()?.len(), seen, "{:#?}", before.now()?);
    ensure!(one.fetch(host, "/api/notes")?.contains("of the first"));
    Ok(())
}

#[test]
fn up_in_the_foreground_ends_by_a_down_from_elsewhere() -> Result<()> {
    let instance = Instance::empty()?;
    let parent = instance.path().parent().context("a folder")?;
    let name = instance.path().file_name().context("a name")?;
    // Relative to where it is called; `down` is called from elsewhere.
    let mut up = Command::new(binary());
    up.args(["up", "--example", "notes", "--device", "nas", "--data-dir"]).arg(name).current_dir(parent);
    for flag in ["--listen-api", "--listen-gateway", "--listen-dns", "--listen-metrics", "--listen-device-metrics"] {
        up.args([flag, "127.0.0.1:0"]);
    }
    let said = tempfile::NamedTempFile::new()?;
    let mut up = up.stdin(Stdio::null()).stdout(said.reopen()?).stderr(Stdio::null()).spawn()?;
    let ready = instance.eventually("it answers, and says so", || {
        let said = fs::read_to_string(said.path())?;
        ensure!(said.contains("press Ctrl-C"), "{said}");
        instance.fetch("notes.alice.hearth.internal", "/healthz")
    });
    let traces = Traces::of(&instance);
    let stopped = ready.and_then(|_| {
        let mut down = Command::new(binary());
        command::succeed(down.args(["down", "--data-dir"]).arg(instance.path()).current_dir("/usr"))
    });
    if stopped.is_err() {
        up.kill()?;
    }
    let ended = up.wait()?;
    stopped?;
    let said = fs::read_to_string(said.path())?;
    ensure!(ended.success(), "{ended}: {said}");
    ensure!(said.contains("curl ") && said.contains("press Ctrl-C"), "{said}");
    let left = traces?.now()?;
    ensure!(left.is_empty(), "left behind: {left:#?}");
    Ok(())
}

#[test]
fn port_0_picks_ports_at_each_start_and_the_client_config_follows() -> Result<()> {
    let fields = ["api", "gateway", "dns", "metrics"];
    let ports =
        |instance: &Instance| -> Result<Vec<String>> { fields.iter().map(|one| instance.address(one)).collect() };
    let instance = Instance::up("none")?;
    let first = ports(&instance)?;
    // Somebody else has the first ports when it starts again.
    instance.down()?;
    let _taken: Vec<_> = first.iter().filter_map(|address| TcpListener::bind(address).ok()).collect();
    instance.start("none")?;
    let second = ports(&instance)?;
    for (before, now) in first.iter().zip(&second) {
        ensure!(before != now && !now.ends_with(":0"), "{before}, then {now}");
    }
    let config = fs::read_to_string(instance.path().join("client.yaml"))?;
    ensure!(config.contains(&second[0]) && !config.contains(&first[0]), "{config}");
    ensure!(instance.run("get devices")?.contains("nas"), "the client finds the region");
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
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let taken_udp = UdpSocket::bind("127.0.0.1:0")?;
    let (tcp, udp) = (taken.local_addr()?.to_string(), taken_udp.local_addr()?.to_string());
    let instance = Instance::empty()?;
    for (flag, address) in [
        ("--listen-api", &tcp),
        ("--listen-gateway", &tcp),
        ("--listen-dns", &tcp),
        ("--listen-dns", &udp),
        ("--listen-metrics", &tcp),
        ("--listen-device-metrics", &tcp),
    ] {
        let mut up = instance.hearth(["up", "--detach", "--example", "none", "--data-dir"]);
        up.arg(instance.path());
        for other in ["--listen-api", "--listen-gateway", "--listen-dns", "--listen-metrics", "--listen-device-metrics"]
        {
            up.args([other, if other == flag { address } else { "127.0.0.1:0" }]);
        }
        let error = command::fail(&mut up)?;
        // The agent has only one address for metrics: its flag has no `device` in its name.
        let named = error.contains(flag) || error.contains(&flag.replace("device-", ""));
        ensure!(error.contains(address.as_str()) && named && error.contains("in use"), "{flag} {address}: {error}");
        eventually("nothing runs", Duration::from_secs(20), || {
            let pids = instance.pids("hearth");
            ensure!(pids.is_empty(), "{flag}: {pids:?}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn up_wants_root_and_a_known_example() -> Result<()> {
    let instance = Instance::empty()?;
    let binary = binary();
    // The binary's folder may be closed to others: a copy in the open is run.
    let copy = instance.path().join("hearth");
    fs::copy(&binary, &copy)?;
    command::run("chmod", ["755", &instance.path().display().to_string(), &copy.display().to_string()])?;
    for arguments in [&["up", "--detach"][..], &["down"], &["agent"], &["join", "hearth1.x"]] {
        let mut unprivileged = Command::new("setpriv");
        unprivileged.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&copy).args(arguments);
        let error = command::fail(&mut unprivileged)?;
        ensure!(error.contains("must run as root"), "{arguments:?}: {error}");
    }
    let mut up = instance.up_command("nonesuch");
    let error = command::fail(&mut up)?;
    ensure!(error.contains("no example \"nonesuch\""), "{error}");
    Ok(())
}

#[test]
fn a_regions_zone_is_its_own_and_cannot_be_changed() -> Result<()> {
    let instance = Instance::empty()?;
    let in_zone = |zone: &str| {
        let mut up = instance.up_command("notes");
        up.args(["--zone", zone]);
        up
    };
    command::succeed(&mut in_zone("casa.test"))?;
    assert_eq!(instance.status()?["zone"], "casa.test");
    instance.fetch("notes.alice.casa.test", "/api/notes")?;
    instance.down()?;
    let error = command::fail(&mut in_zone("other.test"))?;
    ensure!(error.contains("casa.test") && error.contains("cannot be changed"), "{error}");
    command::succeed(&mut in_zone("casa.test"))?;
    instance.fetch("notes.alice.casa.test", "/api/notes").map(drop)
}

#[test]
fn a_client_config_is_chosen_by_flag_or_environment() -> Result<()> {
    let instance = Instance::up("none")?;
    let config = instance.path().join("client.yaml");
    let nowhere = instance.path().join("nowhere.yaml");
    let mut by_flag = instance.hearth(["get", "namespaces", "-o", "name", "--config"]);
    ensure!(command::succeed(by_flag.arg(&config).env("HEARTH_CONFIG", &nowhere))?.contains("namespace/default"));
    let mut by_environment = instance.hearth(["get", "namespaces", "-o", "name"]);
    ensure!(command::succeed(by_environment.env("HEARTH_CONFIG", &config))?.contains("namespace/default"));
    let error = command::fail(by_environment.env("HEARTH_CONFIG", &nowhere))?;
    ensure!(error.contains("nowhere.yaml"), "{error}");
    Ok(())
}

#[test]
fn logs_are_json_where_that_is_asked_for() -> Result<()> {
    let instance = Instance::empty()?;
    command::succeed(instance.up_command("none").env("HEARTH_LOG_FORMAT", "json"))?;
    for role in ["server", "agent"] {
        let text = fs::read_to_string(instance.path().join(format!("logs/{role}.log")))?;
        ensure!(!text.is_empty(), "{role} logs");
        for line in text.lines() {
            let line: serde_json::Value = serde_json::from_str(line).with_context(|| format!("{role}: {line}"))?;
            ensure!(
                line["level"].is_string() && line["timestamp"].is_string() && line["fields"]["message"].is_string(),
                "{line}"
            );
        }
    }
    Ok(())
}

#[test]
fn joining_makes_the_namespace_of_the_owner_that_the_device_says() -> Result<()> {
    let instance = Instance::up("none")?;
    let error = instance.refused("token create")?;
    ensure!(error.contains("--owner") && error.contains("--any-owner"), "{error}");
    let token = instance.run("token create --any-owner")?;
    let other = tempfile::tempdir()?;
    let mut join = instance.hearth(["join", token.trim(), "--owner", "bob", "--name", "attic", "--data-dir"]);
    command::succeed(join.arg(other.path()))?;
    assert_eq!(instance.get("device", "attic", "default")?["spec"]["owner"], "bob");
    instance.run("get namespace bob").map(drop)
}

#[test]
fn metrics_of_server_and_device_are_valid() -> Result<()> {
    let instance = Instance::up("none")?;
    for (field, expected) in [("metrics", "hearth_api_requests"), ("deviceMetrics", "hearth_agent")] {
        let text = instance.scrape(field)?;
        ensure!(text.contains("# HELP") && text.contains("process_resident_memory_bytes"), "{text}");
        ensure!(text.contains(expected), "{expected} in {text}");
    }
    Ok(())
}
