//! Containers that share their processes.

use std::{fs, path::Path, time::Duration};

use hearth_runtime::{ContainerState, PodEvent};
use tokio::time::timeout;

use crate::support::{BOUND, Ctx, TestPod, alive, exec, exec_spec, until};

crate::tests![
    containers_see_each_other_below_a_first_process_that_none_can_touch,
    a_container_that_ends_takes_what_is_its_own_and_nothing_else,
    what_is_left_behind_is_reaped,
    the_pod_ends_with_its_first_process,
    a_sharing_pod_that_is_destroyed_or_killed_leaves_nothing,
    one_container_joins_anothers_processes_and_is_kept_in_as_that,
    who_joined_another_leaves_nothing_behind_in_it,
    who_does_not_run_cannot_be_joined_and_nothing_is_spent,
];

async fn run(pod: &TestPod, container: &str, script: &str) -> String {
    let (code, out, err) = exec(&pod.pod, exec_spec(container, script)).await;
    assert_eq!(code, 0, "{script}: {out} {err}");
    out
}

fn start_spec(pod: &TestPod, name: &str, attempt: u32, script: &str) -> hearth_runtime::ContainerSpec {
    let mut spec = pod.spec(name, script);
    spec.attempt = attempt;
    spec.scratch = pod.dir().join(format!("scratch-{name}-{attempt}"));
    spec
}

async fn containers_see_each_other_below_a_first_process_that_none_can_touch(ctx: Ctx) {
    let pod = ctx.sharing().await;
    pod.pod.start_container(pod.spec("a", "exec sleep 1111")).await.expect("starts");
    pod.pod.start_container(pod.spec("b", "exec sleep 2222")).await.expect("starts");
    let seen = run(&pod, "a", "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done").await;
    assert!(seen.contains("sleep 1111") && seen.contains("sleep 2222"), "{seen}");
    assert_eq!(run(&pod, "a", "tr -d '\\0' < /proc/1/cmdline; echo; cat /proc/1/comm").await, "/pause\npause\n");
    // As root of the pod, with all that a container may ask for.
    let script = "kill -9 1; kill -TERM 1; for d in root fd map_files; do ls /proc/1/$d/ && echo reached $d; done; \
                  for f in environ maps mem; do head -c 1 /proc/1/$f && echo reached $f; done; echo tried";
    assert_eq!(run(&pod, "a", script).await, "tried\n", "it can be seen and nothing more");
    let status = run(&pod, "b", "cat /proc/1/status").await;
    for line in
        ["CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2", "Uid:\t0\t0\t0\t0"]
    {
        assert!(status.contains(line), "{line}: {status}");
    }
    // One may reach another's files by its process and signal it, as under Kubernetes.
    let script = "for p in /proc/[0-9]*; do grep -q '^sleep.2222' $p/cmdline && ls -d $p/root/etc/hosts; done; true";
    assert!(pod.output(pod.spec("c", script)).await.ends_with("/root/etc/hosts\n"));
    run(&pod, "a", "kill -9 $(grep -l '^sleep.2222' /proc/[0-9]*/cmdline | cut -d/ -f3)").await;
    assert!(matches!(pod.ended("b").await.state, ContainerState::Exited { signal: Some(9), .. }));
    pod.destroy().await;
}

async fn a_container_that_ends_takes_what_is_its_own_and_nothing_else(ctx: Ctx) {
    let pod = ctx.sharing().await;
    pod.pod.start_container(pod.spec("stays", "exec sleep 3333")).await.expect("starts");
    for attempt in 0..3 {
        // One in a session of its own, which no signal of a terminal or parent reaches.
        let script = "setsid sleep 4444 & sleep 5555 & exec sleep 6666";
        pod.pod.start_container(start_spec(&pod, "goes", attempt, script)).await.expect("starts");
        until("its processes run", || {
            let lines = pod.lines();
            ["sleep 4444", "sleep 5555", "sleep 6666"].iter().all(|one| lines.iter().any(|line| line.starts_with(one)))
        })
        .await;
        pod.pod.signal("goes", libc::SIGKILL).await.expect("signals");
        pod.ended("goes").await;
        let left =
            || pod.lines().into_iter().filter(|line| ["4444", "5555", "6666"].iter().any(|one| line.contains(one)));
        until("they went with it", || left().count() == 0).await;
        let lines = pod.lines();
        assert!(lines.iter().any(|line| line.starts_with("sleep 3333")), "{lines:?}");
    }
    assert!(
        pod.pod
            .status()
            .await
            .expect("status")
            .iter()
            .any(|one| { one.name == "stays" && matches!(one.state, ContainerState::Running { .. }) })
    );
    pod.destroy().await;
}

async fn what_is_left_behind_is_reaped(ctx: Ctx) {
    let pod = ctx.sharing().await;
    pod.pod.start_container(pod.spec("c", "exec sleep 1000")).await.expect("starts");
    run(&pod, "c", "i=0; while [ $i -lt 50 ]; do (sleep 0.01 &) ; i=$((i+1)); done").await;
    let zombies = || run(&pod, "c", "cat /proc/[0-9]*/stat 2>/dev/null | grep -c ') Z ' || true");
    let gone = async {
        while zombies().await.trim() != "0" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(BOUND, gone).await.expect("none stays a zombie");
    pod.destroy().await;
}

/// The pid on the host of the first process.
fn first(pod: &TestPod) -> i32 {
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", pod.pod.shim_pid())).expect("is there");
    let mut pids = children.split_whitespace().filter_map(|pid| pid.parse().ok());
    let is_pause = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "pause\n");
    pids.find(is_pause).expect("the shim has a child of this name")
}

fn kill9(pid: i32) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).expect("kills");
}

async fn the_pod_ends_with_its_first_process(ctx: Ctx) {
    let pod = ctx.sharing().await;
    pod.pod.start_container(pod.spec("c", "exec sleep 1000")).await.expect("starts");
    let (first, shim) = (first(&pod), pod.pod.shim_pid());
    kill9(first);
    let gone = async { while pod.pod.wait_event().await.expect("event") != PodEvent::ShimGone {} };
    timeout(BOUND, gone).await.expect("whoever listens is told");
    until("its shim is gone", || !alive(shim)).await;
    assert_eq!(pod.lines(), Vec::<String>::new(), "and all of its processes");
    pod.destroy().await;
}

async fn a_sharing_pod_that_is_destroyed_or_killed_leaves_nothing(ctx: Ctx) {
    for killed in [false, true] {
        let pod = ctx.sharing().await;
        pod.pod.start_container(pod.spec("c", "(setsid sleep 1000 &); exec sleep 1000")).await.expect("starts");
        let (first, shim, uid) = (first(&pod), pod.pod.shim_pid(), pod.pod.uid().to_owned());
        if killed {
            kill9(shim as i32);
            until("the first process goes with its shim", || !alive(first as u32)).await;
            until("and with it all others", || pod.lines().is_empty()).await;
        }
        pod.destroy().await;
        until("nothing runs", || !alive(first as u32) && !alive(shim)).await;
        let left = ctx.instance.cgroup_dirs().into_iter().filter(|dir| Path::new(dir).join(&uid).exists());
        assert_eq!(left.count(), 0, "no cgroup is left");
    }
}

fn beside(pod: &TestPod, name: &str, target: &str, script: &str) -> hearth_runtime::ContainerSpec {
    let mut spec = pod.spec(name, script);
    spec.processes_of = Some(target.to_owned());
    spec
}

async fn one_container_joins_anothers_processes_and_is_kept_in_as_that(ctx: Ctx) {
    let pod = ctx.pod().await;
    pod.pod.start_container(pod.spec("app", "exec sleep 1111")).await.expect("starts");
    pod.pod.start_container(pod.spec("other", "exec sleep 2222")).await.expect("starts");
    pod.pod.start_container(beside(&pod, "debug", "app", "exec sleep 3333")).await.expect("starts");
    let script = "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done";
    let seen = run(&pod, "debug", script).await;
    assert!(seen.contains("sleep 1111") && seen.contains("sleep 3333") && !seen.contains("sleep 2222"), "{seen}");
    assert!(run(&pod, "app", script).await.contains("sleep 3333"), "it is among them");
    // What is the other's first process is reached by its files, as under Kubernetes.
    run(&pod, "debug", "tr -d '\\0' < /proc/1/cmdline | grep -q sleep1111 && ls /proc/1/root/bin/busybox").await;
    let namespaces = "for n in user mnt pid ipc uts net cgroup; do readlink /proc/self/ns/$n; done";
    let (of_app, of_debug) = (run(&pod, "app", namespaces).await, run(&pod, "debug", namespaces).await);
    let same: Vec<bool> = of_app.lines().zip(of_debug.lines()).map(|(app, debug)| app == debug).collect();
    assert_eq!(same, [true, false, true, true, true, true, false], "{of_app}{of_debug}");
    let status = run(&pod, "debug", "cat /proc/self/status").await;
    for line in ["CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(status.contains(line), "{line}: {status}");
    }
    run(&pod, "debug", "! unshare -m true 2>/dev/null && ! mount -t tmpfs x /tmp 2>/dev/null").await;
    // All of it ends with the other's first process.
    pod.pod.signal("app", libc::SIGKILL).await.expect("signals");
    pod.ended("app").await;
    assert!(matches!(pod.ended("debug").await.state, ContainerState::Exited { signal: Some(9), .. }));
    until("the other is alone", || pod.lines() == ["sleep 2222 "]).await;
    pod.destroy().await;
}

async fn who_joined_another_leaves_nothing_behind_in_it(ctx: Ctx) {
    let pod = ctx.pod().await;
    pod.pod.start_container(pod.spec("app", "exec sleep 1111")).await.expect("starts");
    let script = "setsid sleep 4444 & sleep 5555 & exec sleep 6666";
    pod.pod.start_container(beside(&pod, "debug", "app", script)).await.expect("starts");
    until("its processes run", || pod.lines().len() == 4).await;
    pod.pod.signal("debug", libc::SIGKILL).await.expect("signals");
    pod.ended("debug").await;
    until("they went with it", || pod.lines() == ["sleep 1111 "]).await;
    pod.destroy().await;
}

async fn who_does_not_run_cannot_be_joined_and_nothing_is_spent(ctx: Ctx) {
    let pod = ctx.pod().await;
    let refused = |error: hearth_runtime::RuntimeError| {
        let name = match error {
            hearth_runtime::RuntimeError::Start(hearth_runtime::StartError::NotRunning { name }) => name,
            other => panic!("{other}"),
        };
        assert_eq!(name, "app");
    };
    refused(pod.pod.start_container(beside(&pod, "debug", "app", "true")).await.expect_err("is not there"));
    pod.pod.start_container(pod.spec("app", "true")).await.expect("starts");
    pod.ended("app").await;
    refused(pod.pod.start_container(beside(&pod, "debug", "app", "true")).await.expect_err("has ended"));
    let mut again = pod.spec("app", "exec sleep 1111");
    (again.attempt, again.scratch) = (1, pod.dir().join("scratch-app-1"));
    pod.pod.start_container(again).await.expect("starts");
    pod.pod
        .start_container(beside(&pod, "debug", "app", "exec sleep 2222"))
        .await
        .expect("the same attempt starts now");
    pod.destroy().await;
}
