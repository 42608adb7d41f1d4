//! Containers that are put beside others to look into a pod that runs (`hearth debug`, KEP-277).

use anyhow::{Context as _, Result, ensure};
use hearth_e2e::{command, instance::Instance};
use serde_json::Value;

use crate::inside::Session;

/// An instance with busybox, and with the image `bare`, which has a program that sleeps and nothing else: no shell.
fn instance() -> Result<Instance> {
    let instance = Instance::up("none")?;
    instance.import_busybox()?;
    let archive = instance.path().join("bare.tar");
    let mut build = instance.hearth(["image", "build", "--tag", "bare", "--copy", "/bin/busybox:/sleep:0755"]);
    command::succeed(build.args(["--entrypoint", "/sleep", "--output"]).arg(&archive))?;
    instance.import(&archive)?;
    Ok(instance)
}

fn debugger(instance: &Instance, pod: &str, name: &str) -> Result<Value> {
    let status = instance.get("pod", pod, "alice")?["status"].clone();
    let mut all = status["ephemeralContainerStatuses"].as_array().into_iter().flatten();
    all.find(|one| one["name"] == name).cloned().with_context(|| format!("no status of {name}: {status}"))
}

/// What must not change of a pod that is debugged: its own container, its readiness and who it is.
fn own(instance: &Instance, pod: &str) -> Result<Value> {
    let pod = instance.get("pod", pod, "alice")?;
    let (status, conditions) = (&pod["status"], pod["status"]["conditions"].as_array().context("conditions")?);
    let ready = conditions.iter().find(|one| one["type"] == "Ready").context("a condition")?.clone();
    Ok(serde_json::json!([pod["metadata"]["uid"], status["phase"], status["containerStatuses"], ready]))
}

/// Kills the agent; returns once the next one has reached its region and answers for a pod.
fn next_agent(instance: &Instance, exec: &str) -> Result<()> {
    let agent = *instance.pids(" agent ").first().context("an agent")?;
    instance.kill9(agent)?;
    instance.eventually("another agent is there", || {
        ensure!(instance.pids(" agent ").first().is_some_and(|pid| *pid != agent));
        instance.run(exec).map(drop)
    })
}

#[test]
fn a_pod_without_a_shell_is_looked_into_and_does_not_notice() -> Result<()> {
    let instance = instance()?;
    instance.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: bare, namespace: alice}\nspec:\n  terminationGracePeriodSeconds: 0\n  \
         containers: [{name: app, image: bare, args: ['123456']}]\n",
    )?;
    instance.run("wait pod/bare -n alice --for condition=Ready --timeout 60s")?;
    let none = instance.refused("exec bare -n alice -- sh -c true")?;
    ensure!(none.contains("sh: no such file in the container"), "{none}");
    let (before, id) = (own(&instance, "bare")?, instance.id()?);
    let pids = instance.container_pids(&id, "/sleep");
    ensure!(pids.len() == 1, "{pids:?}");

    let mut session =
        Session::begin(&instance, "debug bare -n alice --image busybox --target app -it --env A=b -- sh")?;
    let line = session.until("Defaulting debug container name to debugger-")?;
    let name = line.trim_start_matches("Defaulting debug container name to ").trim_end_matches('.').to_owned();
    session.until("Targeting container \"app\". If you don't see processes from this container")?;
    session.say("x=kept; tr '\\0' ' ' < /proc/1/cmdline; echo; ps; echo A-$A size-$((6*7)) $(tty)\n")?;
    ensure!(session.until("/sleep 123456")?.starts_with("/sleep 123456"), "it is the first of their processes");
    let line = session.until("/sleep 123456")?;
    ensure!(line.split_whitespace().next() == Some("1"), "in the list of processes: {line}");
    session.until("A-b size-42 /dev/pts/0")?;
    // As any container of the pod: no rights beyond those, and the target's files by its process.
    session.say(
        "ls /proc/1/root; grep -E 'Cap(Eff|Bnd)|NoNewPrivs|Seccomp:' /proc/self/status; cat /proc/self/uid_map\n",
    )?;
    session.until("sleep")?;
    for line in ["CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        session.until(line).with_context(|| line.to_owned())?;
    }
    ensure!(!session.until("65536")?.split_whitespace().any(|word| word == "4294967295"), "ids of its own");
    instance.run(&format!("exec bare -n alice -c {name} -- /bin/busybox true"))?;
    let page = instance.run("describe pod bare -n alice")?;
    ensure!(page.contains(&format!("Ephemeral Containers:\n  {name}:\n")), "{page}");
    let running = debugger(&instance, "bare", &name)?;
    ensure!(running["state"]["running"].is_object(), "{running}");
    ensure!(own(&instance, "bare")? == before, "{before}");
    drop(session);

    // The next agent takes it over as it is.
    next_agent(&instance, &format!("exec bare -n alice -c {name} -- /bin/busybox true"))?;
    let mut session = Session::begin(&instance, &format!("attach bare -c {name} -it -n alice"))?;
    session.say("echo still-$x\n")?;
    session.until("still-kept")?;
    ensure!(debugger(&instance, "bare", &name)? == running);
    session.say("exit 7\n")?;
    instance.eventually("it has ended", || {
        let ended = debugger(&instance, "bare", &name)?;
        ensure!(ended["state"]["terminated"]["exitCode"] == 7 && ended["restartCount"] == 0, "{ended}");
        Ok(())
    })?;
    let ended = debugger(&instance, "bare", &name)?;
    let log = instance.run(&format!("logs bare -c {name} -n alice"))?;
    ensure!(log.contains("still-kept"), "{log}");

    // No agent starts it again: another one that comes later runs, and this one has not changed.
    instance.run("debug bare -n alice --image busybox -c later -- /bin/busybox sleep 1000")?;
    next_agent(&instance, "exec bare -n alice -c later -- /bin/busybox true")?;
    ensure!(debugger(&instance, "bare", "later")?["state"]["running"].is_object());
    ensure!(debugger(&instance, "bare", &name)? == ended);
    ensure!(own(&instance, "bare")? == before, "{before}");
    ensure!(instance.container_pids(&id, "/sleep") == pids, "the very process that ran before");
    let alone = instance.run("exec bare -n alice -c later -- /bin/busybox ps")?;
    ensure!(!alone.contains("123456"), "without a target it has processes of its own: {alone}");
    instance.run("delete pod bare -n alice")?;
    instance.eventually("it ends with its pod", || {
        let left = instance.container_pids(&id, "sleep");
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
}

#[test]
fn an_installs_pod_is_debugged_and_kept_and_what_cannot_be_is_refused() -> Result<()> {
    let instance = instance()?;
    instance.apply(
        "apiVersion: hearth.dev/v1alpha1\nkind: App\nmetadata: {name: photos}\nspec:\n  containers: [{name: app, image: bare, args: ['654321']}]\n\
         ---\napiVersion: hearth.dev/v1alpha1\nkind: Install\nmetadata: {name: photos, namespace: alice}\nspec: {app: photos}\n",
    )?;
    instance.wait_ready("photos", "alice")?;
    let pod = instance.list("pods", "alice")?[0]["metadata"]["name"].as_str().context("a name")?.to_owned();
    let before = own(&instance, &pod)?;
    let debug = |more: &[&str]| {
        let mut command = instance.hearth(["debug", "install/photos", "-n", "alice", "--image", "busybox"]);
        command.args(more);
        command
    };
    let said = command::succeed(&mut debug(&[
        "-c",
        "one",
        "--",
        "sh",
        "-c",
        "echo out; echo word > /dev/termination-log; exit 3",
    ]))?;
    ensure!(said.is_empty(), "the name was given, and nobody waits: {said}");
    let ended = instance.eventually("it has ended", || {
        let ended = debugger(&instance, &pod, "one")?["state"]["terminated"].clone();
        ensure!(ended["exitCode"] == 3, "{ended}");
        Ok(ended)
    })?;
    ensure!(ended["message"] == "word\n", "{ended}");
    ensure!(instance.run(&format!("logs {pod} -c one -n alice -f"))? == "out\n", "a log that is followed ends with it");
    // One that has ended by the time that somebody would attach has its log shown.
    let page = command::succeed(&mut debug(&["-q", "--attach", "--", "nothing-of-this-name"]));
    ensure!(page.is_ok(), "{page:?}");
    let stopped = instance.eventually("it could not be run", || {
        let all = instance.get("pod", &pod, "alice")?["status"]["ephemeralContainerStatuses"].clone();
        let reason = all[1]["state"]["terminated"]["reason"].clone();
        ensure!(reason == "ContainerCannotRun", "{all}");
        Ok(reason)
    })?;
    ensure!(stopped == "ContainerCannotRun");

    for (more, why) in [
        (&["-c", "one"][..], "spec.ephemeralContainers[2].name: \"one\" is there twice"),
        (&["-c", "app"], "spec.ephemeralContainers[2].name: \"app\" is there twice"),
        (
            &["--target", "other"],
            "spec.ephemeralContainers[2].targetContainerName: there is no container \"other\" in this pod",
        ),
        (&["-t"], "-i/--stdin is required for containers with -t/--tty=true"),
        (&["--env", "A"], "invalid env: A: must be NAME=VALUE"),
    ] {
        let refused = command::fail(&mut debug(more))?;
        ensure!(refused.contains(why), "{why}: {refused}");
    }
    let list = "{\"spec\":{\"ephemeralContainers\":null}}";
    let refused = command::fail(&mut instance.hearth(["patch", "pod", &pod, "-n", "alice", "-p", list]))?;
    ensure!(
        refused.contains("a pod's spec cannot be changed; ephemeral containers are added by `hearth debug`"),
        "{refused}"
    );
    let made = "apiVersion: v1\nkind: Pod\nmetadata: {name: made, namespace: alice}\nspec:\n  containers: [{name: app, image: bare}]\n  \
                ephemeralContainers: [{name: debug, image: busybox}]\n";
    ensure!(instance.apply_refused(made)?.contains("spec.ephemeralContainers: cannot be set on create"));

    // Its image cannot be had: who waits is told, and the pod serves on.
    let away = ["debug", &pod, "-n", "alice", "--image", "registry.invalid/x", "-i", "--timeout", "3s"];
    let refused = command::fail(&mut instance.hearth(away))?;
    ensure!(refused.contains("Warning: container debugger-") && refused.contains("Failed to pull image"), "{refused}");
    ensure!(refused.contains("timed out waiting for container debugger-"), "{refused}");
    ensure!(own(&instance, &pod)? == before, "{before}");
    let pods = instance.list("pods", "alice")?;
    ensure!(pods.len() == 1 && pods[0]["metadata"]["name"] == *pod, "no controller takes it for another pod: {pods:?}");
    instance.wait_ready("photos", "alice")
}
