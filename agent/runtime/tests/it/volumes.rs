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

use hearth_runtime::{ContainerSpec, Mount, MountKind, RuntimeError, StartError};

use crate::support::{Ctx, TestPod};

crate::tests![
    parts_of_a_volume_are_mounted_and_made_where_they_are_missing,
    parts_that_lead_out_of_their_volume_are_refused,
    a_part_that_is_swapped_meanwhile_stays_in_its_volume,
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
