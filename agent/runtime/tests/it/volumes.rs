//! Parts of volumes.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use hearth_runtime::{
    ContainerSpec, ContainerState, MemoryVolume, Mount, MountKind, PodSandbox, RuntimeError, StartError,
};

use crate::support::{Ctx, TestPod};

crate::tests![
    parts_of_a_volume_are_mounted_and_made_where_they_are_missing,
    parts_that_lead_out_of_their_volume_are_refused,
    a_part_that_is_swapped_meanwhile_stays_in_its_volume,
    a_volume_in_memory_outlives_a_container_and_has_its_size,
    a_volume_in_memory_counts_against_the_limits_of_who_writes,
    a_pod_is_in_the_groups_it_asks_for,
];

fn part(source: &Path, path: &str, create: bool) -> Mount {
    let kind = MountKind::SubPath { path: path.into(), create };
    Mount { source: source.to_owned(), target: "/part".into(), read_only: false, kind }
}

fn volume(pod: &TestPod) -> PathBuf {
    let data = pod.dir().join("data");
    fs::create_dir_all(&data).expect("makes the volume");
    fs::set_permissions(&data, fs::Permissions::from_mode(0o777)).expect("chmod");
    data
}

fn with(pod: &TestPod, name: &str, script: &str, mount: Mount) -> ContainerSpec {
    let mut spec = pod.spec(name, script);
    spec.mounts = vec![mount];
    spec
}

async fn refused(pod: &TestPod, mount: Mount) -> String {
    match pod.pod.start_container(with(pod, "c", "true", mount)).await {
        Err(RuntimeError::Start(StartError::SubPath { reason, .. })) => reason,
        other => panic!("expected a refusal: {other:?}"),
    }
}

async fn parts_of_a_volume_are_mounted_and_made_where_they_are_missing(ctx: Ctx) {
    let pod = ctx.pod().await;
    let data = volume(&pod);
    let mut spec = with(&pod, "made", "stat -c %u:%g:%a /part && touch /part/by-app", part(&data, "a/b", true));
    spec.user = "app".to_owned();
    assert_eq!(pod.output(spec).await.trim(), "0:0:777", "as the volume's own directory");
    assert_eq!(fs::metadata(data.join("a/b/by-app")).expect("is there").uid(), 1000, "ids are the container's");
    fs::write(data.join("top"), "not shown").expect("writes");
    let listed = pod.output(with(&pod, "again", "ls /part", part(&data, "a/b", true))).await;
    assert_eq!(listed.trim(), "by-app");
    // As in the volume of a ConfigMap: a link to a file, by way of another.
    fs::create_dir(data.join("..v1")).expect("makes a directory");
    fs::write(data.join("..v1/app.conf"), "setting").expect("writes");
    symlink("..v1", data.join("..data")).expect("links");
    symlink("..data/app.conf", data.join("app.conf")).expect("links");
    let shown = pod.output(with(&pod, "file", "cat /part", part(&data, "app.conf", false))).await;
    assert_eq!(shown.trim(), "setting");
    let mut read_only = part(&data, "a", true);
    read_only.read_only = true;
    pod.output(with(&pod, "read-only", "! touch /part/x && ls /part/b", read_only)).await;
    assert_eq!(refused(&pod, part(&data, "none", false)).await, "the volume has no such file");
    assert!(!data.join("none").exists());
    pod.destroy().await;
}

async fn parts_that_lead_out_of_their_volume_are_refused(ctx: Ctx) {
    let pod = ctx.pod().await;
    let data = volume(&pod);
    let outside = pod.dir().join("outside");
    fs::create_dir(&outside).expect("makes a directory");
    // What a container can make in its volume.
    pod.output(with(
        &pod,
        "links",
        "cd /part && busybox ln -s /etc absolute && busybox ln -s ../outside up && busybox ln -s nowhere dangling && \
         busybox ln -s loop loop && mkdir ok && busybox ln -s ../../data/../outside ok/deep",
        Mount { kind: MountKind::IdmappedBind, ..part(&data, "", false) },
    ))
    .await;
    let leads_out = "a link on the way leads out of the volume";
    for path in ["absolute", "up", "up/new", "absolute/new", "ok/deep/new"] {
        for create in [false, true] {
            assert_eq!(refused(&pod, part(&data, path, create)).await, leads_out, "{path}");
        }
    }
    for path in ["dangling", "loop", "dangling/x"] {
        refused(&pod, part(&data, path, true)).await;
    }
    assert_eq!(fs::read_dir(&outside).expect("is there").count(), 0, "nothing is made outside");
    let climbs = pod.pod.start_container(with(&pod, "c", "true", part(&data, "ok/../../outside", true))).await;
    assert!(matches!(climbs, Err(RuntimeError::Start(StartError::Invalid { .. }))), "{climbs:?}");
    pod.destroy().await;
}

/// A container renames a link over the directory while another container starts on what is beneath it.
async fn a_part_that_is_swapped_meanwhile_stays_in_its_volume(ctx: Ctx) {
    const STARTS: usize = 40;
    let pod = ctx.pod().await;
    let data = volume(&pod);
    let outside = pod.dir().join("outside");
    for (dir, text) in [(data.join("d"), "inside"), (outside.clone(), "outside")] {
        fs::create_dir_all(dir.join("old")).expect("makes a directory");
        fs::write(dir.join("old/where"), text).expect("writes");
    }
    symlink("../outside", data.join("l")).expect("links");
    let (over, swaps) = (Arc::new(AtomicBool::new(false)), Arc::clone(&ctx.instance));
    let swapper = {
        let (over, data) = (Arc::clone(&over), data.clone());
        std::thread::spawn(move || {
            let _keeps_the_directory = swaps;
            let (one, other) = (data.join("d"), data.join("l"));
            while !over.load(Ordering::Relaxed) {
                nix::fcntl::renameat2(None, &one, None, &other, nix::fcntl::RenameFlags::RENAME_EXCHANGE)
                    .expect("swaps");
            }
        })
    };
    let mut mounted = 0;
    for n in 0..STARTS {
        let script = "cat /part/where 2>/dev/null || echo inside";
        let path = if n % 2 == 0 { "d/old".to_owned() } else { format!("d/new-{n}") };
        match pod.pod.start_container(with(&pod, &format!("c{n}"), script, part(&data, &path, true))).await {
            Ok(_) => {
                mounted += 1;
                pod.ended(&format!("c{n}")).await;
                let log = pod.dir().join("log").join(format!("c{n}")).join("0.log");
                assert_eq!(crate::support::read_log(&log, "stdout").trim(), "inside", "start {n}");
            }
            Err(RuntimeError::Start(StartError::SubPath { .. })) => {}
            Err(other) => panic!("{other}"),
        }
        pod.pod.remove_container(&format!("c{n}")).await.ok();
    }
    over.store(true, Ordering::Relaxed);
    swapper.join().expect("the swapper ends");
    assert!(mounted > 0, "some starts find the directory");
    let made: Vec<_> = fs::read_dir(&outside).expect("is there").flatten().map(|one| one.file_name()).collect();
    assert_eq!(made, ["old"], "nothing is made outside");
    pod.destroy().await;
}

fn memory(name: &str, path: Option<&str>) -> Mount {
    let kind = MountKind::Memory { volume: name.to_owned(), path: path.map(PathBuf::from) };
    Mount { source: PathBuf::new(), target: "/part".into(), read_only: false, kind }
}

fn in_memory(name: &str, mib: u64, group: Option<u32>) -> MemoryVolume {
    MemoryVolume { name: name.to_owned(), size_bytes: Some(mib << 20), group }
}

async fn a_volume_in_memory_outlives_a_container_and_has_its_size(ctx: Ctx) {
    let volumes = vec![in_memory("cache", 2, None), in_memory("grouped", 1, Some(77))];
    let pod = ctx.pod_with(|sandbox| sandbox.memory = volumes).await;
    let script = "stat -c %u:%g:%a /part; busybox df -m /part | tail -1; touch /part/kept; \
                  dd if=/dev/zero of=/part/big bs=1k count=3000 2>/dev/null || echo full; busybox rm /part/big";
    let mut spec = with(&pod, "first", script, memory("cache", None));
    spec.user = "app".to_owned();
    let out = pod.output(spec).await;
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[0], "0:0:777");
    assert_eq!(lines[1].split_whitespace().nth(1), Some("2"), "{out}");
    assert_eq!(lines[2], "full");
    pod.pod.remove_container("first").await.expect("removed");
    // A part of it, which is the container's though the host made it.
    let script =
        "touch /part/x && busybox mount | grep -c ' /part type tmpfs (rw,nosuid,nodev'; stat -c %u:%g:%a /part";
    let part = pod.output(with(&pod, "part", script, memory("cache", Some("a/b")))).await;
    assert_eq!(part, "1\n0:0:777\n");
    let kept = pod.output(with(&pod, "second", "busybox find /part | busybox sort", memory("cache", None))).await;
    assert_eq!(kept, "/part\n/part/a\n/part/a/b\n/part/a/b/x\n/part/kept\n");
    let script = "stat -c %u:%g:%a /part; touch /part/x; stat -c %g /part/x";
    assert_eq!(pod.output(with(&pod, "group", script, memory("grouped", None))).await, "0:77:2777\n77\n");
    let mut read_only = memory("cache", None);
    read_only.read_only = true;
    pod.output(with(&pod, "read-only", "! touch /part/new && ls /part/kept", read_only)).await;
    let unknown = pod.pod.start_container(with(&pod, "c", "true", memory("none", None))).await;
    assert!(matches!(unknown, Err(RuntimeError::Start(StartError::Invalid { .. }))), "{unknown:?}");
    let host = fs::read_to_string("/proc/self/mountinfo").expect("is there");
    assert!(!host.lines().any(|line| line.contains("/memory/cache")), "the host sees no mount");
    pod.destroy().await;
}

async fn a_volume_in_memory_counts_against_the_limits_of_who_writes(ctx: Ctx) {
    let change = |sandbox: &mut PodSandbox| {
        sandbox.memory = vec![in_memory("cache", 128, None)];
        sandbox.limits.memory_bytes = Some(48 << 20);
    };
    let pod = ctx.pod_with(change).await;
    let mut spec = with(&pod, "greedy", "dd if=/dev/zero of=/part/big bs=1M count=100", memory("cache", None));
    spec.limits.memory_bytes = Some(32 << 20);
    let (state, ..) = pod.run(spec).await;
    assert!(matches!(state, ContainerState::Exited { oom_killed: true, .. }), "{state:?}");
    pod.pod.remove_container("greedy").await.expect("removed");
    // What it left counts against the pod.
    let script = "dd if=/dev/zero of=/part/more bs=1M count=30";
    let mut spec = with(&pod, "next", script, memory("cache", None));
    spec.limits.memory_bytes = Some(40 << 20);
    let (state, ..) = pod.run(spec).await;
    assert!(!matches!(state, ContainerState::Exited { exit_code: Some(0), .. }), "{state:?}");
    pod.destroy().await;
}

async fn a_pod_is_in_the_groups_it_asks_for(ctx: Ctx) {
    let pod = ctx.pod().await;
    let mut spec = pod.spec("c", "id -G");
    spec.user = "app".to_owned();
    spec.groups = vec![77, 44, 4242];
    let found = pod.output(spec).await;
    let groups: Vec<&str> = found.split_whitespace().collect();
    assert_eq!(groups, ["1001", "44", "77", "4242"]);
    let mut spec = pod.spec("c2", "true");
    spec.groups = vec![65_536];
    let refused = pod.pod.start_container(spec).await;
    assert!(matches!(&refused, Err(RuntimeError::Start(StartError::Invalid { .. }))), "{refused:?}");
    pod.destroy().await;
}
