//! What is cut off halfway: starts, pods, agents; and shims that do not answer.

use std::{fs, path::Path, time::Duration};

use hearth_runtime::{ContainerState, IDS_PER_POD, IdMap, RuntimeError};
use nix::sys::signal::Signal;

use crate::{
    support::{BOUND, Ctx, Instance, alive, sandbox, until},
    survive::{Agent, UID, kill},
};

crate::tests![
    a_writable_layer_that_a_power_cut_left_is_made_anew,
    a_pod_that_is_given_up_halfway_leaves_nothing,
    a_shim_that_is_killed_while_it_makes_its_pod_leaves_nothing,
    an_agent_killed_while_it_makes_a_pod_leaves_nothing,
    a_shim_that_does_not_answer_keeps_no_other_from_being_adopted,
    a_record_of_a_newer_release_is_not_cleared,
    a_pod_that_is_slow_to_go_still_answers,
    a_large_writable_layer_is_deleted_by_a_process_of_its_own,
];

async fn a_writable_layer_that_a_power_cut_left_is_made_anew(ctx: Ctx) {
    let pod = ctx.pod().await;
    let spec = pod.spec("c", "ls /stale; touch /new; echo ran");
    // As a mount leaves it; nothing of the runtime's knows of it.
    for dir in ["upper/stale", "work/work/incompat/volatile"] {
        fs::create_dir_all(spec.scratch.join(dir)).expect("makes a directory");
    }
    let scratch = spec.scratch.clone();
    let (state, out, err) = pod.run(spec).await;
    assert!(out == "ran\n" && err.contains("/stale"), "{state:?} {out}{err}");
    assert!(scratch.join("upper/new").exists() && !scratch.join("upper/stale").exists());
    until("the stale layer is deleted", || fs::read_dir(&scratch).expect("lists").count() == 2).await;
    // Two containers never share one.
    let mut other = pod.spec("d", "true");
    other.scratch = scratch;
    let error = pod.pod.start_container(other).await;
    assert!(matches!(error, Err(RuntimeError::Start(hearth_runtime::StartError::Invalid { .. }))), "{error:?}");
    pod.destroy().await;
}

/// Pids of this pod's shim and its helpers.
fn shims(instance: &Instance, uid: &str) -> Vec<u32> {
    let title = |pid: u32| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let dirs = instance.cgroup_dirs();
    let texts = dirs.iter().map(|dir| fs::read_to_string(dir.join("shims/cgroup.procs")).unwrap_or_default());
    let mut pids: Vec<u32> = texts.flat_map(|text| text.lines().flat_map(str::parse).collect::<Vec<_>>()).collect();
    pids.retain(|pid| title(*pid).trim_end_matches('\0').ends_with(&format!(" {uid}")));
    pids
}

/// Whether a shim of this pod lives, its directory or a cgroup of it is there.
fn is_left(instance: &Instance, uid: &str) -> bool {
    instance.dir.path().join("run/pods").join(uid).exists()
        || instance.cgroup_dirs().iter().any(|dir| dir.join(uid).exists())
        || !shims(instance, uid).is_empty()
}

async fn a_shim_that_is_killed_while_it_makes_its_pod_leaves_nothing(ctx: Ctx) {
    let map = IdMap { host_base: 601 * IDS_PER_POD, size: IDS_PER_POD };
    for _ in 0..10 {
        let instance = std::sync::Arc::clone(&ctx.instance);
        let killer = tokio::task::spawn_blocking(move || {
            let begun = std::time::Instant::now();
            while begun.elapsed() < BOUND {
                if let Some(pid) = shims(&instance, "dies").first() {
                    return kill(*pid, Signal::SIGKILL);
                }
            }
        });
        match ctx.runtime.create_pod(sandbox("dies", map)).await {
            // Killed a moment too late.
            Ok(pod) => {
                killer.await.expect("joins");
                pod.destroy().await.expect("destroys what the shim left");
            }
            Err(error) => {
                assert!(!ctx.instance.dir.path().join("run/pods/dies").exists(), "after {error}");
                killer.await.expect("joins");
                // A child that held the namespaces for it goes when it finds its shim gone.
                until("nothing is left", || !is_left(&ctx.instance, "dies")).await;
            }
        }
    }
}

async fn a_pod_that_is_given_up_halfway_leaves_nothing(ctx: Ctx) {
    let map = IdMap { host_base: 600 * IDS_PER_POD, size: IDS_PER_POD };
    for half_ms in 0..24 {
        // Whatever step it is at by then.
        let made = ctx.runtime.create_pod(sandbox("half", map));
        match tokio::time::timeout(Duration::from_micros(half_ms * 500), made).await {
            Ok(made) => made.expect("nothing of the one before is in the way").destroy().await.expect("destroys"),
            Err(_) => until("the shim has ended", || !is_left(&ctx.instance, "half")).await,
        }
    }
}

async fn an_agent_killed_while_it_makes_a_pod_leaves_nothing(_: Ctx) {
    let instance = Instance::new("half");
    for ms in ["0", "1", "2", "4", "8"] {
        let mut agent = Agent::spawn(&instance, &[("HEARTH_TEST_DIES_AFTER_MS", ms)]);
        agent.child.wait().expect("our child");
        until("the shim has ended", || !is_left(&instance, UID)).await;
    }
}

async fn a_shim_that_does_not_answer_keeps_no_other_from_being_adopted(_: Ctx) {
    let instance = Instance::new("wedged");
    let mut first = Agent::spawn(&instance, &[("HEARTH_TEST_SECOND", "1")]);
    first.listen();
    first.kill();
    kill(first.shim, Signal::SIGSTOP);
    let second = Agent::start(&instance);
    kill(first.shim, Signal::SIGCONT);
    assert!(
        second.says.contains(&format!("failed [{UID}: no answer within 10 s, handle of {}]", first.shim)),
        "{}",
        second.says
    );
    assert!(second.says.contains("adopted [second]"), "{}", second.says);
    assert!(first.container_pids().iter().all(|pid| alive(*pid)), "nothing was done to its containers");
    drop(second);
    // Once it answers, it is adopted as ever.
    let third = Agent::start(&instance);
    assert_eq!((third.shim, third.container_pids()), (first.shim, first.container_pids()));
}

async fn a_record_of_a_newer_release_is_not_cleared(_: Ctx) {
    let instance = Instance::new("newer");
    let mut first = Agent::start(&instance);
    first.kill();
    kill(first.shim, Signal::SIGKILL);
    until("the shim is gone", || !alive(first.shim)).await;
    let record = instance.dir.path().join("run/pods").join(UID).join("pod.json");
    let ours = fs::read_to_string(&record).expect("is there");
    fs::write(&record, ours.replace("\"version\":1", "\"version\":2")).expect("writes");
    let second = Agent::start(&instance);
    let down = hearth_runtime::teardown(&instance.dir.path().join("run"), &instance.name);
    let living = first.container_pids().iter().all(|pid| alive(*pid));
    fs::write(&record, ours).expect("writes");
    assert!(second.says.contains("is not this agent's to clear, handle of 0]"), "{}", second.says);
    assert!(matches!(down, Err(RuntimeError::Record { .. })), "{down:?}");
    assert!(living && !first.container_pids().is_empty(), "its containers run on");
}

/// Stops a container's processes such that SIGKILL does not end them, where the host's freezer is of version 1.
fn freeze(instance: &Instance, uid: &str, state: &str) -> bool {
    let dirs = instance.cgroup_dirs();
    let file = dirs.iter().map(|dir| dir.join(uid).join("c.0/freezer.state")).find(|file| file.exists());
    file.is_some_and(|file| fs::write(file, state).is_ok())
}

async fn a_pod_that_is_slow_to_go_still_answers(ctx: Ctx) {
    let pod = ctx.pod().await;
    let status = pod.pod.start_container(pod.spec("c", "sleep 100")).await.expect("starts");
    let ContainerState::Running { pid, .. } = status.state else { panic!("runs") };
    let frozen = freeze(&ctx.instance, pod.pod.uid(), "FROZEN");
    let (handle, uid) = (pod.pod.clone(), pod.pod.uid().to_owned());
    let going = tokio::spawn(async move { handle.destroy().await });
    if frozen {
        let killed = || {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let pending = status.lines().find_map(|l| l.strip_prefix("ShdPnd:")).unwrap_or_default();
            u64::from_str_radix(pending.trim(), 16).is_ok_and(|set| set & (1 << 8) != 0)
        };
        until("the container is killed and stays", killed).await;
        let answered = tokio::time::timeout(Duration::from_secs(5), pod.pod.status()).await;
        let refused = pod.pod.start_container(pod.spec("d", "true")).await;
        let thawed = freeze(&ctx.instance, &uid, "THAWED");
        assert_eq!(answered.expect("at once").expect("status").len(), 1);
        assert!(matches!(refused, Err(RuntimeError::Start(_))), "{refused:?}");
        assert!(thawed);
    }
    tokio::time::timeout(BOUND, going).await.expect("in time").expect("joins").expect("destroys");
    until("nothing is left", || !is_left(&ctx.instance, &uid)).await;
}

async fn a_large_writable_layer_is_deleted_by_a_process_of_its_own(ctx: Ctx) {
    const FILES: usize = 20_000;
    let pod = ctx.pod().await;
    for (name, whole_pod) in [("c", false), ("d", true)] {
        let spec = pod.spec(name, "true");
        let scratch = spec.scratch.clone();
        pod.run(spec).await;
        let many = scratch.join("upper/many");
        fs::create_dir(&many).expect("makes a directory");
        for n in 0..FILES {
            fs::write(many.join(n.to_string()), "").expect("writes");
        }
        let beside = scratch.parent().expect("has one").to_path_buf();
        if whole_pod {
            pod.pod.clone().destroy().await.expect("destroys");
        } else {
            pod.pod.remove_container(name).await.expect("removes");
        }
        assert!(!scratch.exists(), "its place is free at once");
        assert!(is_swept(&beside), "the answer does not wait for the deletion");
        until("all is deleted", || !is_swept(&beside)).await;
    }
}

fn is_swept(dir: &Path) -> bool {
    let mut entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.any(|e| e.file_name().to_string_lossy().starts_with(".gone."))
}
