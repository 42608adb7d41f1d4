//! kill -9 of agents, zygotes and shims, and `teardown`. The agent to be killed is this binary, called as a driver.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
};

use hearth_runtime::{ContainerState, IDS_PER_POD, IdMap, PodEvent, Runtime, ZygoteConfig};

use nix::sys::signal::Signal;

use crate::support::{Ctx, Instance, alive, exec, exec_spec, read_log, sandbox, spec, until};

crate::tests![
    pods_survive_kill_9_of_agent_and_zygote_and_are_adopted,
    the_death_of_the_zygote_is_noticed_and_the_agent_executes_itself_again,
    a_pod_whose_shim_was_killed_is_reported_and_cleared,
    teardown_leaves_nothing_and_spares_others,
    the_zygote_is_not_forked_beside_other_threads,
];

pub const UID: &str = "survivor";
const LONG: &str = "trap 'echo stopped; exit 6' TERM; n=0; while :; do n=$((n+1)); echo $n; sleep 0.02; done";

/// An agent: adopts what is there, or makes a pod of two containers; says what it has; waits to be killed.
#[tokio::main(flavor = "current_thread")]
async fn drive(dir: &Path, zygote: hearth_runtime::Zygote) {
    let runtime = Runtime::new(zygote).expect("starts");
    let map = IdMap { host_base: 500 * IDS_PER_POD, size: IDS_PER_POD };
    if let Ok(ms) = std::env::var("HEARTH_TEST_DIES_AFTER_MS") {
        let half = std::time::Duration::from_millis(ms.parse().expect("a number"));
        if let Ok(made) = tokio::time::timeout(half, runtime.create_pod(sandbox(UID, map))).await {
            made.expect("makes a pod").destroy().await.expect("destroys");
        }
        kill_9(std::process::id());
    }
    let adopted = runtime.adopt().await.expect("adopts");
    if !adopted.failed.is_empty() {
        let failed = adopted.failed.iter().map(|f| {
            let error = f.error.to_string();
            let (_, error) = error.split_once(": ").expect("the pod, then what is wrong");
            format!("{}: {error}, handle of {}", f.uid, f.pod.as_ref().map_or(0, hearth_runtime::Pod::shim_pid))
        });
        let adopted: Vec<_> = adopted.pods.iter().map(hearth_runtime::Pod::uid).collect();
        let failed = failed.collect::<Vec<_>>().join("; ");
        println!("{} 0 failed [{failed}] adopted [{}]", runtime.zygote_pid(), adopted.join(" "));
        return runtime.zygote_exited().await;
    }
    if std::env::var("HEARTH_TEST_SECOND").is_ok() {
        let map = IdMap { host_base: 501 * IDS_PER_POD, ..map };
        runtime.create_pod(sandbox("second", map)).await.expect("makes a pod");
    }
    let pod = match adopted.pods.into_iter().find(|pod| pod.uid() == UID) {
        Some(pod) => pod,
        None if adopted.dead.is_empty() => {
            let pod = runtime.create_pod(sandbox(UID, map)).await.expect("makes a pod");
            let layer = dir.join("layer");
            pod.start_container(spec(dir, &layer, "long", LONG)).await.expect("starts");
            let short = spec(dir, &layer, "short", "trap 'exit 5' TERM; while :; do sleep 0.02; done");
            pod.start_container(short).await.expect("starts");
            pod
        }
        None => {
            println!("{} 0 dead {:?}", runtime.zygote_pid(), adopted.dead);
            return runtime.zygote_exited().await;
        }
    };
    let status = pod.status().await.expect("status");
    println!("{} {} {status:?}", runtime.zygote_pid(), pod.shim_pid());
    runtime.zygote_exited().await;
}

pub fn driver(dir: &Path) {
    let name = std::env::var("HEARTH_TEST_INSTANCE").expect("is set");
    let config = ZygoteConfig { run_dir: dir.join("run"), instance: name, data_dir: dir.to_path_buf() };
    let zygote = hearth_runtime::fork_zygote(&config).expect("forks");
    drive(dir, zygote);
    // As the agent does: only a process without threads can fork the next zygote.
    let error = Command::new(std::env::current_exe().expect("this binary")).exec();
    panic!("cannot execute itself: {error}");
}

pub struct Agent {
    pub child: Child,
    out: BufReader<ChildStdout>,
    zygote: u32,
    pub shim: u32,
    pub says: String,
}

impl Agent {
    pub fn start(instance: &Instance) -> Self {
        let mut agent = Self::spawn(instance, &[]);
        agent.listen();
        agent
    }

    /// Does not wait until it is ready.
    pub fn spawn(instance: &Instance, env: &[(&str, &str)]) -> Self {
        let exe = std::env::current_exe().expect("this binary");
        let mut child = Command::new(exe)
            .env("HEARTH_TEST_DRIVER", instance.dir.path())
            .env("HEARTH_TEST_INSTANCE", &instance.name)
            .envs(env.iter().copied())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts an agent");
        let out = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, out, zygote: 0, shim: 0, says: String::new() }
    }

    /// Waits until it is ready, for the first time or after it executed itself.
    pub fn listen(&mut self) {
        self.says.clear();
        self.out.read_line(&mut self.says).expect("reads");
        let mut words = self.says.split(' ').map(|w| w.trim().parse().unwrap_or(0));
        (self.zygote, self.shim) = (words.next().unwrap_or(0), words.next().unwrap_or(0));
        assert_ne!(self.zygote, 0, "the agent did not get ready: {}", self.says);
    }

    /// Pids that its containers have on the host.
    pub fn container_pids(&self) -> Vec<u32> {
        self.says.split("pid: ").skip(1).filter_map(|t| t.split([',', ' ']).next()?.parse().ok()).collect()
    }

    pub fn kill(&mut self) {
        self.child.kill().expect("our child");
        self.child.wait().expect("our child");
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn kill(pid: u32, signal: Signal) {
    // The zygote follows its agent by itself, so it may be gone already.
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), signal);
}

fn kill_9(pid: u32) {
    kill(pid, Signal::SIGKILL);
}

async fn pods_survive_kill_9_of_agent_and_zygote_and_are_adopted(_: Ctx) {
    let instance = Instance::new("survive");
    let mut first = Agent::start(&instance);
    let pids = first.container_pids();
    assert_eq!(pids.len(), 2, "{}", first.says);
    first.kill();
    kill_9(first.zygote);
    until("the zygote is gone", || !alive(first.zygote)).await;
    assert!(alive(first.shim) && pids.iter().all(|p| alive(*p)), "shim and containers live");
    // While no agent is there, logs go on and an exit is kept.
    let log = instance.dir.path().join("log/long/0.log");
    let lines = || read_log(&log, "stdout").lines().count();
    let before = lines();
    until("the log grows", || lines() > before).await;
    kill(pids[1], Signal::SIGTERM);
    let record = instance.dir.path().join("run/pods").join(UID).join("c/short.0.json");
    until("the exit is on disk", || fs::read_to_string(&record).is_ok_and(|t| t.contains("\"exit_code\":5"))).await;

    let mut second = Agent::start(&instance);
    assert_eq!(second.shim, first.shim, "the same shim");
    assert_eq!(second.container_pids(), pids[..1], "the same process: {}", second.says);
    assert!(second.says.contains("exit_code: Some(5)"), "{}", second.says);
    // Agent only; its zygote follows it.
    second.kill();
    until("the zygote follows its agent", || !alive(second.zygote)).await;
    let third = Agent::start(&instance);
    assert_eq!((third.shim, third.container_pids()), (first.shim, pids[..1].to_vec()));
}

async fn the_death_of_the_zygote_is_noticed_and_the_agent_executes_itself_again(_: Ctx) {
    let instance = Instance::new("noticed");
    let mut agent = Agent::start(&instance);
    let (zygote, shim, pids) = (agent.zygote, agent.shim, agent.container_pids());
    for round in 0..3 {
        let before = agent.zygote;
        kill_9(before);
        agent.listen();
        assert_ne!(agent.zygote, before, "round {round}");
        assert_eq!((agent.shim, agent.container_pids()), (shim, pids.clone()), "round {round}: the same processes");
    }
    assert!(!Path::new(&format!("/proc/{zygote}")).exists(), "no zombie is left");
}

async fn a_pod_whose_shim_was_killed_is_reported_and_cleared(ctx: Ctx) {
    let pod = ctx.pod().await;
    let status = pod.pod.start_container(pod.spec("c", "sleep 100")).await.expect("starts");
    let ContainerState::Running { pid, .. } = status.state else { panic!("runs") };
    kill_9(pod.pod.shim_pid());
    let event = async { while pod.pod.wait_event().await.expect("event") != PodEvent::ShimGone {} };
    tokio::time::timeout(crate::support::BOUND, event).await.expect("in time");
    assert!(pod.pod.netns().is_err());
    pod.destroy().await;
    until("the container is gone", || !alive(pid)).await;

    let instance = Instance::new("dead");
    let mut first = Agent::start(&instance);
    let pids = first.container_pids();
    first.kill();
    kill_9(first.shim);
    let second = Agent::start(&instance);
    assert!(second.says.contains("dead") && second.says.contains("exit_code: None, signal: None"), "{}", second.says);
    until("its containers are gone", || pids.iter().all(|p| !alive(*p))).await;
}

async fn teardown_leaves_nothing_and_spares_others(ctx: Ctx) {
    let bystander = ctx.pod().await;
    bystander.pod.start_container(bystander.spec("c", "sleep 100")).await.expect("starts");
    let instance = Instance::new("down");
    let mut agent = Agent::start(&instance);
    let mut pids = agent.container_pids();
    pids.extend([agent.zygote, agent.shim]);
    agent.kill();
    let run_dir = instance.dir.path().join("run");
    let report = hearth_runtime::teardown(&run_dir, &instance.name).expect("tears down");
    assert!(report.processes >= 3 && report.pods == 1 && report.mounts == 0, "{report:?}");
    until("all are gone", || pids.iter().all(|p| !alive(*p))).await;
    assert_eq!(instance.cgroup_dirs(), Vec::<std::path::PathBuf>::new());
    assert!(!run_dir.join("pods").exists());
    assert!(!instance.dir.path().join("scratch/long").exists(), "writable layers are gone");
    assert!(instance.dir.path().join("log/long/0.log").exists(), "logs stay");
    let again = hearth_runtime::teardown(&run_dir, &instance.name).expect("twice is harmless");
    assert_eq!(again, hearth_runtime::TeardownReport::default());
    assert_eq!(exec(&bystander.pod, exec_spec("c", "echo alive")).await.1, "alive\n");
    assert!(hearth_runtime::teardown(&run_dir, "../x").is_err());
    // The next start is a fresh one.
    let fresh = Agent::start(&instance);
    assert_eq!(fresh.container_pids().len(), 2);
    bystander.destroy().await;
}

async fn the_zygote_is_not_forked_beside_other_threads(_: Ctx) {
    let instance = Instance::new("threads");
    let refused = hearth_runtime::fork_zygote(&instance.config());
    assert!(matches!(refused, Err(hearth_runtime::RuntimeError::NotSingleThreaded { .. })), "{refused:?}");
}
