//! `hearth trace` says which step of a request is broken, and what a Device says of its network.

use anyhow::{Context as _, Result, ensure};
use hearth_e2e::{
    command::{self, LIMIT},
    instance::Instance,
};
use serde_json::Value;

/// What the trace of a name says, and whether it ended as if all was fine.
fn trace(instance: &Instance, name: &str) -> Result<Value> {
    let done = command::output(&mut instance.hearth(["trace", name, "-n", "alice", "-o", "json"]), b"", LIMIT)?;
    let text = String::from_utf8_lossy(&done.stdout);
    let said: Value = serde_json::from_str(&text)
        .with_context(|| format!("not JSON: {text} {}", String::from_utf8_lossy(&done.stderr)))?;
    ensure!(said["ok"] == done.status.success(), "{said} ends with {}", done.status);
    Ok(said)
}

/// How each step is, in their order.
fn verdicts(said: &Value) -> Vec<(&str, &str)> {
    let steps = said["steps"].as_array().into_iter().flatten();
    steps.filter_map(|step| Some((step["step"].as_str()?, step["status"].as_str()?))).collect()
}

fn step<'a>(said: &'a Value, name: &str) -> Result<&'a Value> {
    let mut steps = said["steps"].as_array().into_iter().flatten();
    steps.find(|step| step["step"] == name).with_context(|| format!("no step {name}: {said}"))
}

fn install(instance: &Instance, name: &str, args: &str) -> Result<()> {
    instance
        .apply(&format!(
            "{{apiVersion: hearth.dev/v1alpha1, kind: App, metadata: {{name: {name}}}, spec: {{containers: [{{name: web, image: busybox, \
             args: {args}, ports: [{{name: http, containerPort: 8080}}]}}], ingress: {{port: http}}}}}}\n---\n\
             {{apiVersion: hearth.dev/v1alpha1, kind: Install, metadata: {{name: {name}, namespace: alice}}, spec: {{app: {name}}}}}\n"
        ))
        .map(drop)
}

/// A process that stands still until this is dropped.
struct Stopped(u32);

impl Stopped {
    fn new(pid: u32) -> Result<Self> {
        command::run("kill", ["-STOP", &pid.to_string()])?;
        Ok(Self(pid))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = command::run("kill", ["-CONT", &self.0.to_string()]);
    }
}

#[test]
fn a_trace_names_the_step_that_is_broken_and_what_to_do() -> Result<()> {
    let instance = Instance::up("none")?;
    instance.import_busybox()?;
    install(&instance, "hello", "[sh, -c, 'mkdir /www; echo hi > /www/index.html; httpd -f -p 8080 -h /www']")?;
    install(&instance, "crash", "[sh, -c, 'exit 3']")?;
    instance.wait_ready("hello", "alice")?;

    // Everything is fine, by the name of the Install and by the hostname.
    let fine = instance.eventually("a request arrives", || {
        let said = trace(&instance, "hello")?;
        ensure!(said["ok"] == true, "{said:#}");
        Ok(said)
    })?;
    let order = ["name", "dns", "gateway", "device", "certificate", "ingress", "app"];
    assert_eq!(verdicts(&fine), order.map(|name| (name, "ok")), "{fine:#}");
    let device = step(&fine, "device")?;
    assert_eq!((&device["facts"]["path"], &device["facts"]["device"]), (&"Direct".into(), &"nas".into()), "{device}");
    assert_eq!(step(&fine, "certificate")?["facts"]["authority"], "Region", "{fine:#}");
    let text = instance.run("trace https://hello.alice.hearth.internal:8443/")?;
    assert!(text.contains("a request arrives") && text.contains("4 ok       the device"), "{text}");

    // Nobody has the name.
    let nobody = trace(&instance, "helo.alice.hearth.internal")?;
    assert_eq!(verdicts(&nobody)[..3], [("name", "broken"), ("dns", "broken"), ("gateway", "ok")], "{nobody:#}");
    assert!(step(&nobody, "name")?["do"].as_str().is_some_and(|hint| hint.contains("hello")), "{nobody:#}");
    assert!(step(&nobody, "dns")?["says"].as_str().is_some_and(|text| text.contains("NXDOMAIN")), "{nobody:#}");
    let refused = instance.refused("trace pod/x")?;
    assert!(refused.contains("no request is made to a Pod"), "{refused}");

    // The app crashes: all but it is fine.
    instance.eventually("the crash is told", || {
        let said = trace(&instance, "crash")?;
        let app = step(&said, "app")?;
        ensure!(
            verdicts(&said)[..6].iter().all(|(_, verdict)| *verdict == "ok") && app["status"] == "broken",
            "{said:#}"
        );
        ensure!(app["says"].as_str().is_some_and(|text| text.contains("exit code 3")), "{app}");
        ensure!(app["do"].as_str().is_some_and(|text| text.contains("hearth logs install/crash")), "{app}");
        Ok(())
    })?;

    // What was asked for opened a tunnel, which the Device tells of once it has held for a while.
    instance.eventually("the Device says by what it is reached", || {
        let network = instance.get("device", "nas", "alice")?["status"]["network"].clone();
        ensure!(network["path"] == "Direct" && network["udp"] == "Open", "{network}");
        ensure!(network["lastTransitionTime"].is_string(), "{network}");
        Ok(())
    })?;
    assert!(instance.run("get device nas -o wide")?.contains("direct, "));

    // The device goes, and nobody starts it again.
    let up = *instance.pids(" up ").first().context("the supervisor")?;
    let _supervisor = Stopped::new(up)?;
    for pid in instance.pids(" agent ") {
        let _ = instance.kill9(pid);
    }
    let away = instance.eventually("the device is away", || {
        let said = trace(&instance, "hello")?;
        let device = step(&said, "device")?;
        let away = device["says"].as_str().is_some_and(|text| text.contains("device nas of alice is away since"));
        ensure!(away && device["status"] == "broken", "{device}");
        Ok(said)
    })?;
    assert_eq!(verdicts(&away)[..3], [("name", "ok"), ("dns", "ok"), ("gateway", "ok")], "{away:#}");
    assert_eq!(step(&away, "certificate")?["status"], "unknown", "{away:#}");
    assert!(away["summary"].as_str().is_some_and(|text| text.contains("the device: device nas of alice is away")));
    Ok(())
}
