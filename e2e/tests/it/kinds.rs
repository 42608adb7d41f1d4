//! What the kinds promise, with real containers.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hearth_e2e::{command, eventually, instance::Instance};

fn deployment(name: &str, replicas: u32, container: &str) -> String {
    format!(
        "{{apiVersion: apps/v1, kind: Deployment, metadata: {{name: {name}, namespace: alice}}, spec: {{replicas: {replicas}, \
         selector: {{matchLabels: {{app: {name}}}}}, template: {{metadata: {{labels: {{app: {name}}}}}, spec: {{terminationGracePeriodSeconds: 1, \
         containers: [{container}]}}}}}}}}"
    )
}

fn ready(instance: &Instance, name: &str, count: u64) -> Result<()> {
    instance.eventually(&format!("{count} of {name} are ready"), || {
        let found = instance.get("deployment", name, "alice")?;
        ensure!(found["status"]["readyReplicas"].as_u64().unwrap_or(0) == count, "{}", found["status"]);
        ensure!(found["status"]["replicas"].as_u64().unwrap_or(0) == count, "{}", found["status"]);
        Ok(())
    })
}

#[test]
fn deployments_scale_and_replace_failed_pods() -> Result<()> {
    let instance = Instance::up("none")?;
    instance.import_busybox()?;
    let sleeper = "{name: main, image: busybox, args: [sleep, '100000']}";
    instance.apply(&deployment("web", 3, sleeper))?;
    ready(&instance, "web", 3)?;
    instance.apply(&deployment("web", 1, sleeper))?;
    ready(&instance, "web", 1)?;
    instance.eventually("the others are gone", || {
        ensure!(instance.list("pods", "alice")?.len() == 1);
        Ok(())
    })?;
    // A pod that is deleted is replaced.
    let name = instance.list("pods", "alice")?[0]["metadata"]["name"].as_str().context("a name")?.to_owned();
    instance.run(&format!("delete pod {name} -n alice"))?;
    ready(&instance, "web", 1)?;
    ensure!(instance.list("pods", "alice")?.iter().all(|pod| pod["metadata"]["name"] != name.as_str()));
    instance.run("delete deployment web -n alice")?;
    instance.eventually("everything of it is gone", || {
        ensure!(instance.list("pods", "alice")?.is_empty());
        ensure!(instance.list("replicasets", "alice")?.is_empty());
        Ok(())
    })
}

#[test]
fn exit_codes_reasons_restarts_and_back_off() -> Result<()> {
    let instance = Instance::up("none")?;
    instance.import_busybox()?;
    let pod = |name: &str, policy: &str, container: &str| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: alice}}, spec: {{restartPolicy: {policy}, containers: [{container}]}}}}"
        )
    };
    instance.apply(&pod("done", "Never", "{name: a, image: busybox, args: [sh, -c, 'echo hello; exit 0']}"))?;
    instance.apply(&pod("wrong", "Never", "{name: a, image: busybox, args: [sh, -c, 'echo oops >&2; exit 7']}"))?;
    instance.apply(&pod("missing", "Never", "{name: a, image: busybox, command: [/no/such/file]}"))?;
    instance.apply(&pod("crash", "Always", "{name: a, image: busybox, args: [sh, -c, 'exit 3']}"))?;
    instance.apply(&pod(
        "greedy",
        "Never",
        "{name: a, image: busybox, args: [sh, -c, 'x=a; while true; do x=$x$x; done'], resources: {limits: {memory: 32Mi}}}",
    ))?;
    let state = |name: &str| -> Result<(String, serde_json::Value)> {
        let pod = instance.get("pod", name, "alice")?;
        let phase = pod["status"]["phase"].as_str().unwrap_or_default().to_owned();
        Ok((phase, pod["status"]["containerStatuses"][0].clone()))
    };
    for (name, phase, code, reason) in
        [("done", "Succeeded", 0, "Completed"), ("wrong", "Failed", 7, "Error"), ("greedy", "Failed", 137, "OOMKilled")]
    {
        instance.eventually(name, || {
            let (found, status) = state(name)?;
            ensure!(found == phase, "{found} {status}");
            assert_eq!(status["state"]["terminated"]["exitCode"], code, "{status}");
            assert_eq!(status["state"]["terminated"]["reason"], reason, "{status}");
            Ok(())
        })?;
    }
    instance.eventually("a missing program is told", || {
        let text = instance.run("describe pod missing -n alice")?;
        ensure!(text.contains("/no/such/file") && text.contains("no such file"), "{text}");
        Ok(())
    })?;
    instance.eventually("a crashing container is restarted, ever more slowly", || {
        let (_, status) = state("crash")?;
        ensure!(status["restartCount"].as_u64().unwrap_or(0) >= 1, "{status}");
        ensure!(status["state"]["waiting"]["reason"] == "CrashLoopBackOff", "{status}");
        assert_eq!(status["lastState"]["terminated"]["exitCode"], 3);
        Ok(())
    })?;
    assert_eq!(instance.run("logs done -n alice")?, "hello\n");
    assert_eq!(instance.run("logs wrong -n alice")?, "oops\n");
    ensure!(instance.run("get pods -n alice")?.contains("OOMKilled"));
    Ok(())
}

#[test]
fn configuration_reaches_containers_and_is_kept_up_to_date() -> Result<()> {
    let instance = Instance::up("none")?;
    instance.import_busybox()?;
    let manifest = "
apiVersion: v1
kind: ConfigMap
metadata: {name: conf, namespace: alice}
data: {greeting: hello, file.txt: first}
---
apiVersion: v1
kind: Secret
metadata: {name: key, namespace: alice}
stringData: {password: hunter2}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data, namespace: alice}
spec: {resources: {requests: {storage: 10Mi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: alice}
spec:
  containers:
  - name: a
    image: busybox
    args: [sh, -c, 'sleep 100000']
    workingDir: /tmp
    env:
    - {name: PLAIN, value: plain}
    - {name: BOTH, value: $(PLAIN)-$(GREETING)-$$(X)}
    - {name: GREETING, valueFrom: {configMapKeyRef: {name: conf, key: greeting}}}
    - {name: PASSWORD, valueFrom: {secretKeyRef: {name: key, key: password}}}
    volumeMounts:
    - {name: conf, mountPath: /conf}
    - {name: key, mountPath: /key, readOnly: true}
    - {name: data, mountPath: /data}
    - {name: scratch, mountPath: /tmp}
    securityContext: {runAsUser: 1234, runAsGroup: 5678}
  volumes:
  - {name: conf, configMap: {name: conf}}
  - {name: key, secret: {secretName: key}}
  - {name: data, persistentVolumeClaim: {claimName: data}}
  - {name: scratch, emptyDir: {}}
";
    instance.apply(manifest)?;
    instance.run("wait pod/p -n alice --for condition=Ready --timeout 60s")?;
    let sh = |script: &str| -> Result<String> {
        command::succeed(&mut instance.hearth(["exec", "p", "-n", "alice", "--", "sh", "-c", script]))
    };
    assert_eq!(sh("echo $PLAIN $GREETING $PASSWORD")?, "plain hello hunter2\n");
    assert_eq!(sh("cat /conf/file.txt /key/password")?, "firsthunter2");
    assert_eq!(sh("id -u; id -g; pwd")?, "1234\n5678\n/tmp\n");
    ensure!(sh("echo x > /conf/new 2>&1 || echo refused")?.contains("refused"), "configuration is read-only");
    sh("echo kept > /data/file && echo scratch > /tmp/x")?;
    instance.apply("{apiVersion: v1, kind: ConfigMap, metadata: {name: conf, namespace: alice}, data: {greeting: hello, file.txt: second}}")?;
    instance.eventually("the mounted file follows", || {
        ensure!(sh("cat /conf/file.txt")? == "second");
        Ok(())
    })?;
    ensure!(instance.run("get pvc data -n alice")?.contains("Bound"));
    // The claim's data outlives the pod, and goes with the claim.
    instance.run("delete pod p -n alice --grace-period 1")?;
    instance.apply(manifest)?;
    instance.run("wait pod/p -n alice --for condition=Ready --timeout 60s")?;
    assert_eq!(sh("cat /data/file; ls /tmp")?, "kept\n");
    instance.run("delete pod p -n alice --grace-period 1")?;
    instance.run("delete pvc data -n alice")?;
    eventually("the data is gone from the disk", Duration::from_secs(20), || {
        let found = command::run(
            "find",
            [instance.path().join("agent/volumes").display().to_string(), "-name".into(), "file".into()],
        )?;
        ensure!(found.is_empty(), "{found}");
        Ok(())
    })
}

#[test]
fn exec_passes_input_output_exit_codes_and_a_terminal() -> Result<()> {
    let instance = Instance::up("none")?;
    instance.import_busybox()?;
    instance.apply("{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: alice}, spec: {containers: [{name: a, image: busybox, args: [sleep, '100000']}]}}")?;
    instance.run("wait pod/p -n alice --for condition=Ready --timeout 60s")?;
    let mut cat = instance.hearth(["exec", "-i", "p", "-n", "alice", "--", "sh", "-c", "cat; echo err >&2; exit 42"]);
    let big = vec![b'x'; 300_000];
    let done = command::output(&mut cat, &big, command::LIMIT)?;
    assert_eq!(done.status.code(), Some(42));
    assert_eq!(done.stdout.len(), big.len());
    assert_eq!(done.stderr, b"err\n");
    // With a terminal: `script` gives the client one.
    let line =
        format!("{:?}", instance.hearth(["exec", "-it", "p", "-n", "alice", "--", "sh", "-c", "tty; stty size"]));
    let config = format!("HEARTH_CONFIG={}", instance.path().join("client.yaml").display());
    let line = line.replacen(&format!("HEARTH_CONFIG={:?} ", instance.path().join("client.yaml")), "", 1);
    let text = command::succeed(std::process::Command::new("script").args([
        "-qec",
        &format!("stty rows 33 cols 99; env {config} {line}"),
        "/dev/null",
    ]))?;
    ensure!(text.contains("/dev/") && text.contains("33 99"), "{text}");
    let error = instance.refused("exec nosuch -n alice -- true")?;
    ensure!(error.contains("pods \"nosuch\" not found"), "{error}");
    Ok(())
}

#[test]
fn a_pod_that_fits_nowhere_says_why_for_each_device() -> Result<()> {
    let instance = Instance::up("none")?;
    instance.import_busybox()?;
    instance.apply(&deployment(
        "big",
        1,
        "{name: a, image: busybox, args: [sleep, '1'], resources: {requests: {memory: 9000Gi}}}",
    ))?;
    instance.eventually("the reason is told", || {
        let text = instance.run("describe pods -n alice")?;
        ensure!(text.contains("nas") && text.contains("memory") && text.contains("9000Gi"), "{text}");
        ensure!(instance.run("events -n alice")?.contains("FailedScheduling"));
        Ok(())
    })?;
    Ok(())
}

#[test]
fn an_install_follows_its_app_and_its_own_changes() -> Result<()> {
    let instance = Instance::up("none")?;
    instance.import_busybox()?;
    let app = |text: &str| {
        format!(
            "{{apiVersion: hearth.dev/v1alpha1, kind: App, metadata: {{name: web}}, spec: {{containers: [{{name: web, image: busybox, \
             args: [sh, -c, 'mkdir -p /tmp/w; echo {text} $EXTRA > /tmp/w/index.html; exec httpd -f -p 8080 -h /tmp/w'], \
             ports: [{{name: http, containerPort: 8080}}]}}], ingress: {{port: http}}}}}}"
        )
    };
    let install = |spec: &str| {
        format!(
            "{{apiVersion: hearth.dev/v1alpha1, kind: Install, metadata: {{name: web, namespace: alice}}, spec: {{app: web{spec}}}}}"
        )
    };
    let host = "web.alice.hearth.internal";
    let answers = |expected: &str| {
        instance.eventually(&format!("the app answers {expected:?}"), || {
            let text = instance.fetch(host, "/")?;
            ensure!(text.trim() == expected, "{text}");
            Ok(())
        })
    };
    instance.apply(&install(""))?;
    instance.eventually("an unknown app is told", || {
        let text = instance.run("describe install web -n alice")?;
        ensure!(text.contains("AppNotFound"), "{text}");
        Ok(())
    })?;
    instance.apply(&app("one"))?;
    answers("one")?;
    instance.apply(&app("two"))?;
    answers("two")?;
    instance.apply(&install(", env: [{name: EXTRA, value: more}]"))?;
    answers("two more")?;
    instance.apply(&install(", stopped: true"))?;
    instance.eventually("its page says that it is stopped", || {
        let done = command::output(&mut instance.curl(host, "/", &["-i"])?, b"", command::LIMIT)?;
        let text = String::from_utf8_lossy(&done.stdout).into_owned();
        ensure!(text.starts_with("HTTP/2 503") && text.contains("stopped"), "{text}");
        Ok(())
    })?;
    instance.apply(&install(""))?;
    answers("two")?;
    instance.run("delete install web -n alice")?;
    instance.eventually("nothing of it is left", || {
        ensure!(instance.list("pods", "alice")?.is_empty() && instance.list("routes", "alice")?.is_empty());
        Ok(())
    })
}
