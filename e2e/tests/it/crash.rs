//! kill -9 of server, agent and zygote, in loops, under writes: nothing that was acknowledged is lost, and
//! no container restarts.

use std::{
    collections::BTreeSet,
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use hearth_e2e::{command, instance::Instance};

/// Rounds of each kind of death.
const ROUNDS: usize = 6;

/// When a process began, in clock ticks since boot: with the pid, what tells it from a successor.
fn started(pid: u32) -> Result<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after = stat.rsplit_once(')').context("a stat line")?.1;
    after.split_whitespace().nth(19).map(str::to_owned).context("a start time")
}

fn shims(instance: &Instance) -> Result<BTreeSet<(u32, String)>> {
    instance.pids("hearth shim").into_iter().map(|pid| Ok((pid, started(pid)?))).collect()
}

/// Writes ConfigMaps until told to stop; returns the names whose write was acknowledged.
fn writer(instance: &Arc<Instance>, stop: &Arc<AtomicBool>, prefix: &'static str) -> thread::JoinHandle<Vec<String>> {
    let (instance, stop) = (Arc::clone(instance), Arc::clone(stop));
    thread::spawn(move || {
        let mut acknowledged = Vec::new();
        for n in 0.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let name = format!("{prefix}-{n}");
            let manifest = format!(
                "{{apiVersion: v1, kind: ConfigMap, metadata: {{name: {name}, namespace: alice}}, data: {{n: '{n}'}}}}"
            );
            if instance.apply(&manifest).is_ok() {
                acknowledged.push(name);
            }
        }
        acknowledged
    })
}

#[test]
fn nothing_acknowledged_is_lost_and_no_container_restarts() -> Result<()> {
    let instance = Arc::new(Instance::up("notes")?);
    let host = "notes.alice.hearth.internal";
    let post = [
        "--fail-with-body",
        "-X",
        "POST",
        "-H",
        "content-type: application/json",
        "-d",
        r#"{"text":"before the storm"}"#,
    ];
    command::succeed(&mut instance.curl(host, "/api/notes", &post)?)?;
    let before = shims(&instance)?;
    ensure!(before.len() == 1, "{before:?}");
    let stop = Arc::new(AtomicBool::new(false));
    let writers = [writer(&instance, &stop, "a"), writer(&instance, &stop, "b")];
    for round in 0..ROUNDS {
        for verb in [" server ", " agent "] {
            // The oldest process of the agent is the agent, the younger ones are its zygote.
            let last = verb == " agent " && round % 2 == 1;
            let victim = instance.eventually("it runs", || {
                let pids = instance.pids(verb);
                let victim = if last { pids.last() } else { pids.first() };
                victim.copied().with_context(|| format!("no{verb}process"))
            })?;
            let born = started(victim)?;
            instance.kill9(victim)?;
            instance.eventually("it is started again and answers", || {
                let pids = instance.pids(verb);
                ensure!(!pids.is_empty(), "none is started yet");
                ensure!(!pids.iter().any(|pid| *pid == victim && started(victim).is_ok_and(|now| now == born)));
                instance.run("get ns")?;
                instance.run("wait device/nas --for condition=Connected --timeout 5s")?;
                Ok(())
            })?;
            assert_eq!(shims(&instance)?, before, "the same shims, round {round}, after kill -9 of{verb}");
        }
    }
    stop.store(true, Ordering::Relaxed);
    let acknowledged: Vec<_> = writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect();
    ensure!(acknowledged.len() > 10, "{} writes were acknowledged", acknowledged.len());
    let stored: BTreeSet<_> = instance
        .list("configmaps", "alice")?
        .iter()
        .filter_map(|one| one["metadata"]["name"].as_str().map(str::to_owned))
        .collect();
    for name in &acknowledged {
        ensure!(stored.contains(name), "{name} was acknowledged and is lost");
    }
    let pod = &instance.list("pods", "alice")?[0];
    assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0, "{}", pod["status"]);
    instance.eventually("the app answers with its data", || {
        ensure!(instance.fetch(host, "/api/notes")?.contains("before the storm"));
        Ok(())
    })
}

#[test]
fn an_exit_while_no_agent_runs_is_not_lost() -> Result<()> {
    let instance = Instance::up("none")?;
    instance.import_busybox()?;
    instance.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: alice}, spec: {restartPolicy: Never, containers: [{name: a, image: busybox, \
         args: [sh, -c, 'while [ ! -e /tmp/go ]; do sleep 0.1; done; exit 9'], volumeMounts: [{name: t, mountPath: /tmp}]}], volumes: [{name: t, emptyDir: {}}]}}",
    )?;
    instance.run("wait pod/p -n alice --for condition=Ready --timeout 60s")?;
    let uid = instance.get("pod", "p", "alice")?["metadata"]["uid"].as_str().context("a uid")?.to_owned();
    instance.kill9_all()?;
    let found = command::run(
        "find",
        [
            instance.path().join("agent").display().to_string(),
            "-path".into(),
            format!("*{uid}*/t"),
            "-type".into(),
            "d".into(),
        ],
    )?;
    let folder = found.lines().next().with_context(|| format!("the emptyDir of {uid}"))?;
    fs::write(format!("{folder}/go"), "")?;
    hearth_e2e::eventually("the container ended", Duration::from_secs(20), || {
        let running = command::run("pgrep", ["-f", "/tmp/go"]);
        ensure!(running.is_err(), "still running: {running:?}");
        Ok(())
    })?;
    instance.start("none")?;
    instance.eventually("its exit code is known", || {
        let pod = instance.get("pod", "p", "alice")?;
        let state = &pod["status"]["containerStatuses"][0]["state"];
        ensure!(state["terminated"]["exitCode"] == 9, "{state}");
        ensure!(pod["status"]["phase"] == "Failed");
        Ok(())
    })
}
