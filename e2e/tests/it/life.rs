//! Probes, hooks, and containers that come before others, with real containers.

use anyhow::{Context as _, Result, ensure};
use hearth_e2e::{command, instance::Instance};
use serde_json::Value;

fn apply(instance: &Instance, name: &str, spec: &str) -> Result<()> {
    let head = format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: alice}}\nspec:\n");
    instance.apply(&format!("{head}{spec}")).map(drop)
}

fn exec(instance: &Instance, pod: &str, script: &str) -> Result<String> {
    command::succeed(&mut instance.hearth(["exec", pod, "-n", "alice", "-c", "app", "--", "sh", "-c", script]))
}

fn status(instance: &Instance, pod: &str) -> Result<Value> {
    Ok(instance.get("pod", pod, "alice")?["status"].clone())
}

fn until(instance: &Instance, pod: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Result<Value> {
    instance.eventually(&format!("{pod}: {what}"), || {
        let status = status(instance, pod)?;
        ensure!(holds(&status), "{status}");
        Ok(status)
    })
}

fn container(status: &Value) -> &Value {
    &status["containerStatuses"][0]
}

fn reasons(instance: &Instance, pod: &str) -> Result<Vec<String>> {
    let events = instance.list("events", "alice")?;
    let of_pod = events.iter().filter(|event| event["involvedObject"]["name"] == pod);
    Ok(of_pod.filter_map(|event| event["reason"].as_str().map(str::to_owned)).collect())
}

#[test]
fn readiness_comes_and_goes_without_a_restart_and_outlives_the_agent() -> Result<()> {
    let instance = Instance::up("none")?;
    instance.import_busybox()?;
    // One that asks a command, one that asks over HTTP by the name of a port, one that knocks.
    let probes = [
        ("exec", "exec: {command: [/bin/busybox, test, -f, /www/ok]}"),
        ("http", "httpGet: {port: web, path: /ok}"),
        ("tcp", "tcpSocket: {port: 8080}"),
    ];
    for (name, probe) in probes {
        apply(
            &instance,
            name,
            &format!(
                "  terminationGracePeriodSeconds: 0\n  containers:\n  - name: app\n    image: busybox\n    ports: [{{name: web, containerPort: \
                 8080}}]\n    args: [sh, -c, 'mkdir /www; while :; do if [ -f /www/ok ]; then httpd -f -p 8080 -h /www & while [ -f /www/ok ]; do \
                 sleep 0.1; done; kill $!; fi; sleep 0.1; done']\n    readinessProbe: {{{probe}, periodSeconds: 1, failureThreshold: 1}}\n"
            ),
        )?;
    }
    for (name, _) in probes {
        let status = until(&instance, name, "it runs", |status| container(status)["started"] == true)?;
        ensure!(container(&status)["ready"] == false, "{status}");
        exec(&instance, name, "echo yes > /www/ok")?;
    }
    for (name, _) in probes {
        until(&instance, name, "it is ready", |status| container(status)["ready"] == true)?;
    }
    // The agent dies and comes back: nobody is taken out of service meanwhile.
    let agent = *instance.pids(" agent ").first().context("an agent")?;
    let since = |status: &Value| {
        let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
        conditions.into_iter().find(|one| one["type"] == "Ready").map(|one| one["lastTransitionTime"].clone())
    };
    let before = since(&status(&instance, "http")?);
    instance.kill9(agent)?;
    instance.eventually("another agent is there", || {
        ensure!(instance.pids(" agent ").first().is_some_and(|pid| *pid != agent));
        instance.run("exec http -n alice -- /bin/busybox true")
    })?;
    ensure!(since(&status(&instance, "http")?) == before, "it was ready all the while");
    for (name, _) in probes {
        exec(&instance, name, "rm /www/ok")?;
    }
    for (name, _) in probes {
        let status = until(&instance, name, "it is not ready", |status| container(status)["ready"] == false)?;
        ensure!(container(&status)["restartCount"] == 0, "{status}");
        ensure!(reasons(&instance, name)?.contains(&"Unhealthy".to_owned()));
    }
    Ok(())
}

#[test]
fn who_is_not_alive_is_started_again_and_a_slow_starter_is_left_alone() -> Result<()> {
    let instance = Instance::up("none")?;
    instance.import_busybox()?;
    apply(
        &instance,
        "ill",
        "  containers:\n  - name: app\n    image: busybox\n    args: [sh, -c, 'touch /alive; exec sleep 100000']\n    livenessProbe: {exec: {command: \
         [/bin/busybox, test, -f, /alive]}, periodSeconds: 1, failureThreshold: 2, terminationGracePeriodSeconds: 1}\n",
    )?;
    apply(
        &instance,
        "slow",
        "  containers:\n  - name: app\n    image: busybox\n    args: [sh, -c, 'while [ ! -f /go ]; do sleep 0.1; done; touch /alive; exec sleep \
         100000']\n    startupProbe: {exec: {command: [/bin/busybox, test, -f, /alive]}, periodSeconds: 1, failureThreshold: 600}\n    livenessProbe: {exec: \
         {command: [/bin/busybox, test, -f, /alive]}, periodSeconds: 1, failureThreshold: 1}\n",
    )?;
    until(&instance, "ill", "it runs", |status| container(status)["ready"] == true)?;
    exec(&instance, "ill", "rm /alive")?;
    let ill = until(&instance, "ill", "it was started again", |status| container(status)["restartCount"] == 1)?;
    ensure!(container(&ill)["lastState"]["terminated"]["exitCode"] == 137, "{ill}");
    let told = reasons(&instance, "ill")?;
    ensure!(told.contains(&"Unhealthy".to_owned()) && told.contains(&"Killing".to_owned()), "{told:?}");
    // By now the slow one was asked whether it is alive, had it not been for its startup probe.
    let slow = status(&instance, "slow")?;
    ensure!(container(&slow)["started"] == false && container(&slow)["restartCount"] == 0, "{slow}");
    exec(&instance, "slow", "touch /go")?;
    let slow = until(&instance, "slow", "it has started", |status| container(status)["ready"] == true)?;
    ensure!(container(&slow)["restartCount"] == 0, "{slow}");
    Ok(())
}

#[test]
fn init_containers_go_first_sidecars_stay_and_go_last() -> Result<()> {
    let instance = Instance::up("none")?;
    instance.import_busybox()?;
    // Each writes down when it begins and ends, in a volume that all share.
    let note = "note() { echo \"$1\" >> /notes/all; }";
    apply(
        &instance,
        "all",
        &format!(
            "  restartPolicy: Always\n  terminationGracePeriodSeconds: 20\n  volumes: [{{name: notes, persistentVolumeClaim: {{claimName: notes}}}}]\n  \
             initContainers:\n  - name: first\n    image: busybox\n    args: [sh, -c, '{note}; note first; while [ ! -f /notes/go ]; do sleep 0.1; done']\n    \
             volumeMounts: [{{name: notes, mountPath: /notes}}]\n  - name: side\n    image: busybox\n    restartPolicy: Always\n    args: [sh, -c, '{note}; \
             note side; trap \"note side-stops; exit 0\" TERM; touch /up; while :; do sleep 0.1; done']\n    startupProbe: {{exec: {{command: [/bin/busybox, test, -f, \
             /up]}}, periodSeconds: 1}}\n    volumeMounts: [{{name: notes, mountPath: /notes}}]\n  containers:\n  - name: app\n    image: busybox\n    \
             args: [sh, -c, '{note}; note app; trap \"note app-stops; exit 0\" TERM; while :; do sleep 0.1; done']\n    lifecycle: {{postStart: {{exec: \
             {{command: [sh, -c, '{note}; note post-start']}}}}, preStop: {{exec: {{command: [sh, -c, '{note}; note pre-stop; sleep 1']}}}}}}\n    \
             volumeMounts: [{{name: notes, mountPath: /notes}}]\n"
        ),
    )?;
    instance.apply(
        "{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: notes, namespace: alice}, spec: {resources: {requests: {storage: 1Mi}}}}",
    )?;
    until(&instance, "all", "the first runs", |status| {
        status["initContainerStatuses"][0]["state"].get("running").is_some()
    })?;
    let table = instance.run("get pod all -n alice")?;
    ensure!(table.contains("Init:0/2") && table.contains("0/2"), "{table}");
    // The logs and the inside of each are reached by its name.
    command::succeed(&mut instance.hearth([
        "exec",
        "all",
        "-n",
        "alice",
        "-c",
        "first",
        "--",
        "/bin/busybox",
        "touch",
        "/notes/go",
    ]))?;
    until(&instance, "all", "all of it is ready", |status| {
        container(status)["ready"] == true && status["initContainerStatuses"][1]["ready"] == true
    })?;
    let table = instance.run("get pod all -n alice")?;
    ensure!(table.contains("2/2") && table.contains("Running"), "{table}");
    instance.eventually("its hook has run", || {
        let notes = exec(&instance, "all", "cat /notes/all")?;
        ensure!(notes.lines().any(|line| line == "post-start"), "{notes}");
        Ok(())
    })?;
    instance.run("delete pod all -n alice")?;
    // Somebody else looks at what they left.
    apply(
        &instance,
        "reader",
        "  volumes: [{name: notes, persistentVolumeClaim: {claimName: notes}}]\n  containers:\n  - name: app\n    image: busybox\n    args: [sleep, \
         '100000']\n    volumeMounts: [{name: notes, mountPath: /notes}]\n",
    )?;
    until(&instance, "reader", "it runs", |status| container(status)["ready"] == true)?;
    let notes = exec(&instance, "reader", "cat /notes/all")?;
    let mut lines: Vec<&str> = notes.lines().collect();
    // The hook at the start runs beside the program.
    lines.retain(|line| *line != "post-start");
    ensure!(lines == ["first", "side", "app", "pre-stop", "app-stops", "side-stops"], "{lines:?}");
    // A pod whose first step fails says which, and its own containers never begin.
    apply(
        &instance,
        "fails",
        "  restartPolicy: Never\n  initContainers: [{name: first, image: busybox, args: [sh, -c, 'exit 3']}]\n  containers: [{name: app, image: busybox, \
         args: [sleep, '100000']}]\n",
    )?;
    let fails = until(&instance, "fails", "it has failed", |status| status["phase"] == "Failed")?;
    ensure!(fails["initContainerStatuses"][0]["state"]["terminated"]["exitCode"] == 3, "{fails}");
    ensure!(instance.run("get pod fails -n alice")?.contains("Init:Error"));
    Ok(())
}

#[test]
fn an_app_brings_what_comes_before_it_and_beside_it() -> Result<()> {
    let instance = Instance::up("none")?;
    instance.import_busybox()?;
    let app = "apiVersion: hearth.dev/v1alpha1\nkind: App\nmetadata: {name: web}\nspec:\n  initContainers:\n  \
         - {name: migrate, image: busybox, args: [sh, -c, 'echo made by $WHO > /data/index.html'], volumeMounts: [{name: data, mountPath: /data}]}\n  \
         - {name: door, image: busybox, restartPolicy: Always, ports: [{name: door, containerPort: 8080}], args: [sh, -c, 'httpd -f -p 8080 -h /data'], \
         volumeMounts: [{name: data, mountPath: /data, readOnly: true}]}\n  containers:\n  \
         - {name: app, image: busybox, args: [sh, -c, 'cat /data/index.html; trap \"exit 0\" TERM; sleep 1000 & wait'], volumeMounts: [{name: data, mountPath: /data}]}\n  \
         volumes: [{name: data, size: 10Mi}]\n  ingress: {port: door}\n---\n\
         apiVersion: hearth.dev/v1alpha1\nkind: Install\nmetadata: {name: web, namespace: alice}\nspec:\n  app: web\n  env: [{name: WHO, value: alice}]\n";
    instance.apply(app)?;
    instance.wait_ready("web", "alice")?;
    ensure!(instance.run("logs install/web -c app -n alice")? == "made by alice\n", "in this order");
    instance.eventually("the sidecar answers users", || {
        let page = instance.fetch("web.alice.hearth.internal", "/")?;
        ensure!(page == "made by alice\n", "{page}");
        Ok(())
    })?;
    let refused = instance.apply_refused(&app.replace("port: door}", "port: gate}"))?;
    ensure!(refused.contains("no container has a port named \"gate\""), "{refused}");
    // What does not get through keeps the app from starting, and its Install says why.
    instance.apply(&app.replace("echo made by $WHO > /data/index.html", "echo no room >&2; exit 1"))?;
    instance.eventually("the Install tells", || {
        let ready = instance.condition("install", "web", "alice", "Ready")?;
        ensure!(ready["status"] == "False" && ready["reason"] == "CrashLoopBackOff", "{ready}");
        Ok(())
    })
}
