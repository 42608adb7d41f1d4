//! Directories of the machine that its owner gives to apps.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, chown},
    path::Path,
};

use anyhow::{Context as _, Result, ensure};
use hearth_e2e::{command, instance::Instance};

/// One App reads a directory and writes to another.
fn app(films: &Path, inbox: &Path) -> String {
    let (films, inbox) = (films.display(), inbox.display());
    format!(
        "
apiVersion: hearth.dev/v1alpha1
kind: App
metadata: {{name: player}}
spec:
  containers:
  - name: main
    image: busybox
    args: [sh, -c, 'cat /films/one; sleep 100000']
    securityContext: {{runAsUser: 1000}}
    volumeMounts: [{{name: films, mountPath: /films}}, {{name: inbox, mountPath: /inbox}}]
  volumes: [{{name: films, hostPath: {{readOnly: true}}}}, {{name: inbox, hostPath: {{}}}}]
---
apiVersion: hearth.dev/v1alpha1
kind: Install
metadata: {{name: player, namespace: alice}}
spec:
  app: player
  grants:
    hostPaths: [{{volume: films, path: {films}}}, {{volume: inbox, path: {inbox}/new}}]
"
    )
}

fn up(instance: &Instance, given: &[String]) -> Result<()> {
    let mut up = instance.up_command("none");
    up.args(given.iter().map(|path| format!("--host-path={path}")));
    command::succeed(&mut up).map(drop)
}

fn why(instance: &Instance, name: &str) -> Result<String> {
    instance.run(&format!("describe pod {name} -n alice"))
}

#[test]
fn an_app_gets_the_directories_that_device_and_install_grant_and_no_other() -> Result<()> {
    let instance = Instance::empty()?;
    let home = tempfile::tempdir()?;
    let (films, inbox) = (home.path().join("films"), home.path().join("inbox"));
    fs::create_dir_all(inbox.join("new"))?;
    fs::create_dir(&films)?;
    fs::write(films.join("one"), "a film\n")?;
    fs::write(home.path().join("secret"), "nobody's\n")?;
    std::os::unix::fs::symlink("../../secret", inbox.join("new/link"))?;
    chown(inbox.join("new"), Some(1000), Some(1000))?;

    let mut refused = instance.up_command("none");
    let refused = command::fail(refused.arg(format!("--host-path={}", instance.path().display())))?;
    ensure!(refused.contains("the data of Hearth itself"), "{refused}");
    up(&instance, &[format!("{}:ro", films.display()), inbox.display().to_string()])?;
    instance.import_busybox()?;
    let manifest = app(&films, &inbox);
    let ungranted = manifest.replace("{volume: films,", "{volume: others,");
    instance.apply(&ungranted)?;
    instance.eventually("the owner is asked", || {
        let ready = instance.condition("install", "player", "alice", "Ready")?;
        let message = ready["message"].as_str().unwrap_or_default();
        ensure!(message.contains(r#"a directory of yours as its volume "films" (spec.grants.hostPaths)"#), "{ready}");
        Ok(())
    })?;
    instance.apply(&manifest)?;
    instance.wait_ready("player", "alice")?;
    let inside = |script: &str| {
        let mut exec = instance.hearth(["exec", "deployment/player", "-n", "alice", "--", "sh", "-c", script]);
        Ok::<_, anyhow::Error>(command::succeed(&mut exec)?.trim_end().to_owned())
    };
    ensure!(inside("cat /films/one; stat -c %u /inbox; echo kept > /inbox/from-the-app")? == "a film\n1000");
    ensure!(fs::read_to_string(inbox.join("new/from-the-app"))? == "kept\n");
    ensure!(fs::metadata(inbox.join("new/from-the-app"))?.uid() == 1000, "ids are the container's own");
    let kept_out = inside(
        "touch /films/two 2> /dev/null || cat /inbox/link 2> /dev/null || ls /inbox/..| grep -c secret || true",
    )?;
    ensure!(kept_out == "0", "{kept_out}");

    // What only the region says is not enough.
    let pod = |name: &str, path: &Path| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: alice}}, spec: {{containers: \
             [{{name: main, image: busybox, args: [sleep, '1000'], volumeMounts: [{{name: v, mountPath: /v}}]}}], \
             volumes: [{{name: v, hostPath: {{path: {}}}}}]}}}}",
            path.display()
        )
    };
    instance.apply(&pod("around", home.path()))?;
    instance.apply(&pod("link", &inbox.join("new/link")))?;
    instance.apply(&pod("none", &inbox.join("none")))?;
    for (name, expected) in [
        ("around", "is not given to apps on this device; its owner gives it by starting the agent with --host-path"),
        ("link", "a link on the way leads out of the volume"),
        ("none", "No such file or directory"),
    ] {
        instance.eventually("it is said why", || {
            let said = why(&instance, name)?;
            ensure!(said.contains(expected), "{said}");
            Ok(())
        })?;
    }
    // The owner takes it back: what runs goes on, and nothing more is started with it.
    instance.down()?;
    up(&instance, &[])?;
    let pods = || -> Result<Vec<String>> {
        let pods = instance.list("pod", "alice")?;
        let names = pods.iter().filter_map(|pod| pod["metadata"]["name"].as_str());
        Ok(names.filter(|name| name.starts_with("player-")).map(str::to_owned).collect())
    };
    let before = pods()?;
    ensure!(before.len() == 1, "{before:?}");
    instance.run(&format!("delete pod {} -n alice", before[0]))?;
    instance.eventually("it is said why", || {
        let now = pods()?;
        let fresh = now.iter().find(|name| !before.contains(name)).context("a new pod")?;
        let said = why(&instance, fresh)?;
        ensure!(said.contains("is not given to apps on this device"), "{said}");
        Ok(())
    })?;
    Ok(())
}
