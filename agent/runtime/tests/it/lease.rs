//! Pods that may run for a time only: their shim ends them by itself, whatever becomes of whoever asked for them.

use std::time::Duration;

use hearth_runtime::{ContainerState, PodLease, RuntimeError, StartError, boot_time};
use hearth_types::lease::Deadline;

use crate::support::{Ctx, TestPod, alive, exec, exec_spec, until};

crate::tests![
    a_pod_whose_lease_is_not_renewed_is_asked_to_end_and_killed_by_its_shim,
    a_renewal_counts_until_the_lease_is_over_and_not_after_that,
    a_pod_with_a_lease_does_not_outlive_its_shim,
    a_pod_without_a_lease_is_told_apart,
];

fn after(warn: u64, end: u64) -> Deadline {
    let now = boot_time();
    Deadline { warn: now.plus(Duration::from_millis(warn)), end: now.plus(Duration::from_millis(end)) }
}

async fn leased(ctx: &Ctx, deadline: Deadline, shared: bool) -> TestPod {
    let lease = Some(PodLease { of: "claim@7".to_owned(), deadline });
    ctx.pod_with(|sandbox| (sandbox.lease, sandbox.share_processes) = (lease, shared)).await
}

/// Asks nobody and does not end when asked.
const DEAF: &str = "trap 'echo asked' TERM; n=0; while :; do sleep 0.05; done";

async fn a_pod_whose_lease_is_not_renewed_is_asked_to_end_and_killed_by_its_shim(ctx: Ctx) {
    for shared in [false, true] {
        let deadline = after(600, 1500);
        let pod = leased(&ctx, deadline, shared).await;
        assert_eq!(pod.pod.lease().map(|lease| lease.of.as_str()), Some("claim@7"));
        let spec = pod.spec("deaf", DEAF);
        let log = spec.log_path.clone();
        pod.pod.start_container(spec).await.expect("starts");
        // What a command left running counts, too.
        let (code, ..) = exec(&pod.pod, exec_spec("deaf", "sleep 3333 >/dev/null 2>&1 & true")).await;
        assert_eq!(code, 0);
        assert!(boot_time() < deadline.end, "the machine is too slow for this test");
        until("all are killed", || pod.lines().iter().all(|line| line.trim().is_empty() || line.contains("/pause")))
            .await;
        let late = boot_time().since(deadline.end);
        assert!(boot_time() >= deadline.end && late < Duration::from_secs(2), "{late:?} after the deadline");
        assert!(crate::support::read_log(&log, "stdout").contains("asked"), "it was asked first");
        if !shared {
            assert!(matches!(pod.ended("deaf").await.state, ContainerState::Exited { signal: Some(9), .. }));
            let refused = pod.pod.start_container(pod.spec("later", "true")).await;
            let said = matches!(&refused, Err(RuntimeError::Start(StartError::Isolation { reason })) if reason.contains("lease"));
            assert!(said, "{refused:?}");
        }
        pod.destroy().await;
    }
}

async fn a_renewal_counts_until_the_lease_is_over_and_not_after_that(ctx: Ctx) {
    let pod = leased(&ctx, after(60_000, 60_000), false).await;
    pod.pod.start_container(pod.spec("deaf", DEAF)).await.expect("starts");
    // A shorter one changes nothing.
    assert!(pod.pod.renew_lease(after(0, 1)).await.expect("answers"));
    let (code, out, _) = exec(&pod.pod, exec_spec("deaf", "sleep 0.2; echo lives")).await;
    assert_eq!((code, out.as_str()), (0, "lives\n"));
    pod.destroy().await;

    let pod = leased(&ctx, after(700, 700), false).await;
    pod.pod.start_container(pod.spec("deaf", DEAF)).await.expect("starts");
    assert!(pod.pod.renew_lease(after(1500, 1500)).await.expect("answers"));
    let status = pod.ended("deaf").await;
    assert!(matches!(status.state, ContainerState::Exited { signal: Some(9), .. }), "{status:?}");
    assert!(!pod.pod.renew_lease(after(60_000, 60_000)).await.expect("answers"), "over for good");
    pod.destroy().await;
}

async fn a_pod_with_a_lease_does_not_outlive_its_shim(ctx: Ctx) {
    let pod = leased(&ctx, after(60_000, 60_000), false).await;
    let status = pod.pod.start_container(pod.spec("deaf", DEAF)).await.expect("starts");
    let ContainerState::Running { pid, .. } = status.state else { panic!("it runs: {status:?}") };
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pod.pod.shim_pid() as i32), nix::sys::signal::SIGKILL)
        .expect("kills");
    until("its program goes with it", || !alive(pid)).await;
    pod.destroy().await;
}

async fn a_pod_without_a_lease_is_told_apart(ctx: Ctx) {
    let pod = ctx.pod().await;
    assert_eq!(pod.pod.lease(), None);
    assert!(!pod.pod.renew_lease(after(1000, 1000)).await.expect("is not even asked"));
    pod.destroy().await;
}
