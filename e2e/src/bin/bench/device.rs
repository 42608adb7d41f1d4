//! The device: fifty isolated containers from one apply, and starting one against crun.

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use hearth_e2e::{
    command, eventually,
    instance::{Instance, binary},
};
use serde_json::Value;

use crate::report::{Better, Report, median};

const ROUNDS: usize = 5;
const PODS: u32 = 50;
/// Pods of a device whose power comes back, and the port on which they serve.
const SERVING_PODS: u32 = 10;
const SERVED_PORT: u16 = 8080;
/// Building the benchmark takes most of it.
const START_LIMIT: Duration = Duration::from_secs(1800);

fn manifest(replicas: u32) -> String {
    format!(
        "{{apiVersion: apps/v1, kind: Deployment, metadata: {{name: many, namespace: alice}}, spec: {{replicas: {replicas}, \
         selector: {{matchLabels: {{app: many}}}}, template: {{metadata: {{labels: {{app: many}}}}, spec: {{terminationGracePeriodSeconds: 0, \
         containers: [{{name: a, image: busybox, args: [sleep, '100000'], resources: {{limits: {{memory: 16Mi, cpu: 100m}}, requests: {{memory: 1Mi, cpu: 1m}}}}}}]}}}}}}}}"
    )
}

/// Applies a Deployment and waits until all its pods are ready; returns how long that took.
pub(crate) fn deploy(instance: &Instance, replicas: u32) -> Result<Duration> {
    let text = manifest(replicas);
    let started = Instant::now();
    instance.apply(&text)?;
    let wait =
        format!("wait deployment/many -n alice --for jsonpath={{.status.readyReplicas}}={replicas} --timeout 60s");
    instance.run(&wait)?;
    Ok(started.elapsed())
}

fn remove(instance: &Instance) -> Result<()> {
    instance.run("delete deployment many -n alice")?;
    eventually("the pods are gone", Duration::from_secs(60), || {
        let left = instance.list("pods", "alice")?.len();
        ensure!(left == 0, "{left} pods are left");
        Ok(())
    })
}

/// The runtime's own benchmark: the agent's decision to the executed program, against crun with as much isolation; it
/// says what is in the timed path. It is a program of its own, since a zygote can be forked only by a process with one thread.
fn start(report: &mut Report) -> Result<()> {
    let mut bench = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    bench.args(["bench", "-q", "--locked", "-p", "hearth-runtime", "--bench", "start"]);
    if cfg!(debug_assertions) {
        bench.args(["--profile", "dev"]);
    }
    bench.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")));
    let text = command::output(&mut bench, b"", START_LIMIT)?;
    ensure!(text.status.success(), "{}", String::from_utf8_lossy(&text.stderr));
    for line in String::from_utf8_lossy(&text.stdout).lines().filter(|line| line.starts_with('{')) {
        let figure: Value = serde_json::from_str(line)?;
        let (Some(case), Some(value)) = (figure["case"].as_str(), figure["value"].as_f64()) else { continue };
        let peer = figure["peer"].as_str().zip(figure["peer_value"].as_f64());
        report.figure(&format!("start/{case}"), value, "ms", Better::Lower, peer)?;
    }
    Ok(())
}

/// How many programs listen on port 8080 in the namespaces of the pods.
fn serving(instance: &Instance, id: &str) -> usize {
    let listens = |pid: &u32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/net/tcp6")).unwrap_or_default();
        let port = format!(":{SERVED_PORT:04X}");
        // The second column is the local address, the fourth the state; 0A is LISTEN.
        text.lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .any(|columns| columns.get(1).is_some_and(|local| local.ends_with(&port)) && columns.get(3) == Some(&"0A"))
    };
    instance.container_pids(id, "httpd").iter().filter(|pid| listens(pid)).count()
}

/// From the start of an agent that has its disk alone, as after a power cut with no network, to all its pods serving.
fn offline(report: &mut Report) -> Result<()> {
    let instance = Instance::up("none")?;
    instance.import_busybox()?;
    let port = SERVED_PORT.to_string();
    let text = manifest(SERVING_PODS).replace("[sleep, '100000']", &format!("[httpd, -f, -p, '{port}']"));
    instance.apply(&text)?;
    let id = instance.id()?;
    let all = || {
        eventually("all pods serve", Duration::from_secs(60), || {
            let had = serving(&instance, &id);
            ensure!(had == SERVING_PODS as usize, "{had} pods serve");
            Ok(())
        })
    };
    all()?;
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        // Stops the containers too: what starts next has only the disk.
        instance.down()?;
        ensure!(serving(&instance, &id) == 0);
        let started = Instant::now();
        let mut agent = Command::new(binary());
        // Port 1 of loopback refuses: there is no region.
        agent.args(["agent", "--server", "127.0.0.1:1", "--data-dir"]).arg(instance.path());
        let agent = command::Running::quiet(&mut agent)?;
        all()?;
        times.push(started.elapsed().as_secs_f64());
        drop(agent);
    }
    report.figure(&format!("offline/{SERVING_PODS}pods"), median(&mut times), "s", Better::Lower, None)
}

pub(crate) fn run(report: &mut Report) -> Result<()> {
    start(report)?;
    offline(report)?;
    let instance = Instance::up("none")?;
    instance.import_busybox()?;
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        times.push(deploy(&instance, PODS)?.as_secs_f64());
        remove(&instance)?;
    }
    report.figure(&format!("pods/{PODS}"), median(&mut times), "s", Better::Lower, None)
}
