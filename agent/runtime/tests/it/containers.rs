//! Starting, ending, limits, logs, volumes.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::PathBuf,
    time::Duration,
};

use hearth_runtime::{ContainerState, IdMap, Limits, LogPolicy, Mount, MountKind, PodEvent, RuntimeError, StartError};

use crate::support::{Ctx, TestPod, alive, read_log, until};

crate::tests![
    exit_codes_and_signals_are_told_apart,
    a_start_says_why_a_program_did_not_run,
    the_program_gets_its_arguments_environment_and_directory,
    users_of_the_image_are_resolved,
    files_on_a_volume_belong_to_the_containers_own_ids,
    read_only_volumes_and_roots_cannot_be_written,
    a_tmpfs_has_its_size,
    mount_targets_do_not_escape_through_links_of_the_image,
    mounts_do_not_go_through_links_of_a_volume,
    each_attempt_has_a_new_file_for_its_last_message,
    what_a_container_uses_is_told,
    a_dangling_resolv_conf_of_the_image_is_replaced,
    upper_layers_hide_lower_ones,
    too_much_memory_is_an_oom_kill,
    the_number_of_processes_is_limited,
    output_becomes_cri_lines_and_logs_rotate,
    a_flood_of_output_loses_nothing_and_waits,
    signals_reach_the_first_process,
    an_exit_is_an_event_and_a_record,
    a_removed_container_leaves_nothing_and_can_start_again,
    containers_of_a_pod_share_network_and_shared_memory_but_not_processes,
    sandboxes_and_specifications_that_make_no_sense_are_refused,
    a_destroyed_pod_leaves_nothing,
];

fn exit_code(state: &ContainerState) -> Option<i32> {
    match state {
        ContainerState::Exited { exit_code, .. } => *exit_code,
        ContainerState::Running { .. } => None,
    }
}

fn volume(source: PathBuf, target: &str, read_only: bool) -> Mount {
    Mount { source, target: target.into(), read_only, kind: MountKind::IdmappedBind }
}

async fn start_error(pod: &TestPod, spec: hearth_runtime::ContainerSpec) -> StartError {
    match pod.pod.start_container(spec).await {
        Err(RuntimeError::Start(e)) => e,
        other => panic!("expected a start error: {other:?}"),
    }
}

async fn exit_codes_and_signals_are_told_apart(ctx: Ctx) {
    let pod = ctx.pod().await;
    let (state, ..) = pod.run(pod.spec("zero", "exit 0")).await;
    assert_eq!(exit_code(&state), Some(0));
    let (state, ..) = pod.run(pod.spec("seven", "exit 7")).await;
    assert!(matches!(state, ContainerState::Exited { exit_code: Some(7), signal: None, oom_killed: false, .. }));
    pod.pod.start_container(pod.spec("killed", "sleep 100")).await.expect("starts");
    pod.pod.signal("killed", libc::SIGKILL).await.expect("signals");
    let state = pod.ended("killed").await.state;
    assert!(
        matches!(state, ContainerState::Exited { exit_code: None, signal: Some(9), oom_killed: false, .. }),
        "{state:?}"
    );
    pod.destroy().await;
}

async fn a_start_says_why_a_program_did_not_run(ctx: Ctx) {
    let pod = ctx.pod().await;
    let with = |args: &[&str]| {
        let mut spec = pod.spec("c", "");
        spec.args = args.iter().map(ToString::to_string).collect();
        spec
    };
    for program in ["no-such-program", "/bin/no-such-program"] {
        let expected = StartError::NoSuchFile { program: program.to_owned() };
        assert_eq!(start_error(&pod, with(&[program])).await, expected);
    }
    for program in ["/bin/no-exec", "no-interpreter", "/etc"] {
        let error = start_error(&pod, with(&[program])).await;
        assert!(matches!(&error, StartError::NotExecutable { program: p, .. } if p == program), "{error:?}");
    }
    let mut spec = with(&["true"]);
    spec.user = "nobody-here".to_owned();
    assert_eq!(start_error(&pod, spec).await, StartError::NoSuchUser { user: "nobody-here".to_owned() });
    let mut spec = with(&["true"]);
    spec.cwd = "/etc/passwd".to_owned();
    assert!(matches!(start_error(&pod, spec).await, StartError::WorkingDirectory { .. }));
    let mut spec = with(&["true"]);
    spec.mounts = vec![volume(pod.dir().join("not-there"), "/data", false)];
    assert!(matches!(start_error(&pod, spec).await, StartError::Mount { .. }));
    let mut spec = with(&["true"]);
    spec.layers = vec![pod.dir().join("no-layer")];
    assert!(matches!(start_error(&pod, spec).await, StartError::RootFs { .. }));
    // Nothing is left of all this: the same name and attempt start.
    assert_eq!(pod.pod.status().await.expect("status"), []);
    let (state, ..) = pod.run(with(&["true"])).await;
    assert_eq!(exit_code(&state), Some(0));
    pod.destroy().await;
}

async fn the_program_gets_its_arguments_environment_and_directory(ctx: Ctx) {
    let pod = ctx.pod().await;
    let mut spec = pod.spec("c", "");
    spec.args = ["sh", "-c", "pwd; echo \"$0 $1\"; env; hostname; cat /etc/hostname /etc/resolv.conf", "zero", "o n e"]
        .map(String::from)
        .to_vec();
    spec.env.push(("GREETING".to_owned(), "a=b c".to_owned()));
    spec.cwd = "/srv/made/for it".to_owned();
    let out = pod.output(spec).await;
    for line in [
        "/srv/made/for it",
        "zero o n e",
        "GREETING=a=b c",
        "PATH=/bin",
        "HOME=/root",
        "HOSTNAME=notes-0",
        "notes-0",
        "nameserver 10.9.8.7",
    ] {
        assert!(out.lines().any(|l| l == line), "{line} is missing in:\n{out}");
    }
    let leaked = out.lines().find(|l| l.starts_with("CARGO") || l.starts_with("HEARTH"));
    assert_eq!(leaked, None, "the host's environment is not the container's");
    pod.destroy().await;
}

async fn users_of_the_image_are_resolved(ctx: Ctx) {
    let pod = ctx.pod().await;
    let script = "echo $(id -u):$(id -g):$(id -G):$HOME";
    for (n, (user, run_as, expected)) in [
        ("", None, "0:0:0:/root"),
        ("app", None, "1000:1001:1001 44:/home/app"),
        ("1000:44", None, "1000:44:44:/home/app"),
        ("root", Some(4711), "4711:0:0:/"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut spec = pod.spec(&format!("c{n}"), script);
        spec.user = user.to_owned();
        spec.run_as_user = run_as;
        assert_eq!(pod.output(spec).await.trim(), expected, "{user}");
    }
    pod.destroy().await;
}

async fn files_on_a_volume_belong_to_the_containers_own_ids(ctx: Ctx) {
    let pod = ctx.pod().await;
    let data = pod.dir().join("data");
    fs::create_dir_all(&data).expect("makes the volume");
    fs::set_permissions(&data, fs::Permissions::from_mode(0o777)).expect("chmod");
    fs::write(data.join("before"), "on disk as root").expect("writes");
    let mut spec = pod.spec("root", "stat -c %u:%g /data/before && touch /data/by-root");
    spec.mounts = vec![volume(data.clone(), "/data", false)];
    assert_eq!(pod.output(spec).await.trim(), "0:0");
    let mut spec = pod.spec("app", "touch /data/by-app");
    spec.user = "app".to_owned();
    spec.mounts = vec![volume(data.clone(), "/data", false)];
    pod.output(spec).await;
    let ids = |name: &str| fs::metadata(data.join(name)).map(|m| (m.uid(), m.gid())).expect("is there");
    assert_eq!(ids("by-root"), (0, 0));
    assert_eq!(ids("by-app"), (1000, 1001));
    // Another pod, with other ids on the host, sees the same owners.
    let other = ctx.pod().await;
    let mut spec = other.spec("c", "stat -c %u /data/by-app");
    spec.mounts = vec![volume(data, "/data", false)];
    assert_eq!(other.output(spec).await.trim(), "1000");
    // A single file.
    let file = pod.dir().join("config.txt");
    fs::write(&file, "setting\n").expect("writes");
    let mut spec = pod.spec("file", "cat /etc/app/config.txt");
    spec.mounts = vec![volume(file, "/etc/app/config.txt", true)];
    assert_eq!(pod.output(spec).await, "setting\n");
    pod.destroy().await;
    other.destroy().await;
}

async fn read_only_volumes_and_roots_cannot_be_written(ctx: Ctx) {
    let pod = ctx.pod().await;
    let data = pod.dir().join("data");
    fs::create_dir_all(&data).expect("makes the volume");
    let mut spec = pod.spec("ro", "! touch /data/x && ! touch /x && touch /scratch/x && ! touch /etc/resolv.conf");
    spec.read_only_root = true;
    spec.mounts = vec![
        volume(data.clone(), "/data", true),
        Mount {
            source: PathBuf::new(),
            target: "/scratch".into(),
            read_only: false,
            kind: MountKind::Tmpfs { size: 1 << 20 },
        },
    ];
    pod.output(spec).await;
    assert_eq!(fs::read_dir(&data).expect("dir").count(), 0);
    let layer = ctx.instance.dir.path().join("layer");
    pod.output(pod.spec("rw", "touch /x && mkdir -p /a/b && echo changed > /etc/group")).await;
    assert!(!layer.join("x").exists() && !layer.join("a").exists(), "the layer is not written to");
    pod.destroy().await;
}

async fn a_tmpfs_has_its_size(ctx: Ctx) {
    let pod = ctx.pod().await;
    let mut spec =
        pod.spec("c", "dd if=/dev/zero of=/t/x bs=1k count=900 && ! dd if=/dev/zero of=/t/y bs=1k count=900");
    let tmpfs = |target: &str, size| Mount {
        source: PathBuf::new(),
        target: target.into(),
        read_only: false,
        kind: MountKind::Tmpfs { size },
    };
    spec.mounts = vec![tmpfs("/t", 1 << 20), tmpfs("/dev/shm", 1 << 20)];
    pod.output(spec).await;
    pod.destroy().await;
}

async fn mount_targets_do_not_escape_through_links_of_the_image(ctx: Ctx) {
    let pod = ctx.pod().await;
    let (evil, outside, data) = (pod.dir().join("evil"), pod.dir().join("outside"), pod.dir().join("data"));
    for dir in [&evil, &outside, &data] {
        fs::create_dir_all(dir).expect("makes a directory");
    }
    fs::write(data.join("mark"), "volume").expect("writes");
    fs::create_dir(evil.join("real")).expect("makes a directory");
    symlink(&outside, evil.join("absolute")).expect("links");
    symlink("../../../../../../../../../../..", evil.join("up")).expect("links");
    symlink("/real", evil.join("inside")).expect("links");
    symlink("/proc", evil.join("to-proc")).expect("links");
    symlink("/proc/self/root", evil.join("magic")).expect("links");
    fs::create_dir(evil.join("etc")).expect("makes a directory");
    symlink(outside.join("hosts"), evil.join("etc/hosts")).expect("links");
    let layers = vec![ctx.instance.dir.path().join("layer"), evil];
    let spec = |name: &str, target: &str, script: &str| {
        let mut spec = pod.spec(name, script);
        spec.layers = layers.clone();
        spec.mounts = vec![volume(data.clone(), target, false)];
        spec
    };
    // A link inside the root is followed, as the image means it.
    pod.output(spec("inside", "/inside/sub", "cat /real/sub/mark")).await;
    // An absolute link or one that climbs stays in the root: nothing appears outside.
    let target = "/up/landed";
    pod.output(spec("up", target, "cat /landed/mark")).await;
    let error = start_error(&pod, spec("absolute", "/absolute/landed", "true")).await;
    assert!(matches!(error, StartError::Mount { .. }), "a link to what is not in the image: {error:?}");
    for target in ["/to-proc", "/to-proc/self", "/magic/x"] {
        let error = start_error(&pod, spec("proc", target, "true")).await;
        assert!(matches!(error, StartError::Mount { .. }), "{target}: {error:?}");
    }
    assert_eq!(fs::read_dir(&outside).expect("dir").count(), 0, "nothing was made outside");
    assert!(!PathBuf::from("/landed").exists());
    pod.output(spec("hosts", "/data", "grep -q notes-0 /etc/hosts")).await;
    pod.destroy().await;
}

async fn mounts_do_not_go_through_links_of_a_volume(ctx: Ctx) {
    let pod = ctx.pod().await;
    let (image, data, other) = (pod.dir().join("image"), pod.dir().join("data"), pod.dir().join("other"));
    for dir in [&image.join("real"), &data.join("plain"), &other] {
        fs::create_dir_all(dir).expect("makes a directory");
    }
    fs::write(other.join("mark"), "other").expect("writes");
    for (link, to) in [("proc", "/proc"), ("up", ".."), ("inside", "plain"), ("bin", "/bin")] {
        symlink(to, data.join(link)).expect("links");
    }
    // Links of the image that lead through the volume's, which is not there yet when they are looked at.
    for (link, to) in [("to-data", "/data"), ("to-proc", "/data/proc"), ("round", "/round")] {
        symlink(to, image.join(link)).expect("links");
    }
    let spec = |name: &str, first: &str, target: &str, script: &str| {
        let mut spec = pod.spec(name, script);
        spec.layers.push(image.clone());
        spec.mounts = vec![volume(data.clone(), first, false), volume(other.clone(), target, false)];
        spec
    };
    let refused = [
        ("/data", "/data/proc"),
        ("/data", "/data/proc/self"),
        ("/data", "/data/up/x"),
        ("/data", "/data/inside/x"),
        ("/data", "/data/bin"),
        ("/data", "/to-data/proc"),
        ("/to-data", "/data/proc"),
        ("/data", "/to-proc"),
        ("/data", "/to-proc/self"),
        ("/data", "/round/x"),
    ];
    for (first, target) in refused {
        let error = start_error(&pod, spec("refused", first, target, "true")).await;
        assert!(matches!(error, StartError::Mount { .. }), "{first}, {target}: {error:?}");
    }
    for (n, (first, target)) in
        [("/data", "/data/plain"), ("/data", "/data/new/deep"), ("/real", "/real/plain"), ("/data", "/real")]
            .into_iter()
            .enumerate()
    {
        let script = format!("cat {target}/mark && test -d {first}/plain && test -d /proc/self");
        assert_eq!(pod.output(spec(&format!("c{n}"), first, target, &script)).await, "other\n", "{first}, {target}");
    }
    pod.destroy().await;
}

async fn a_dangling_resolv_conf_of_the_image_is_replaced(ctx: Ctx) {
    let pod = ctx.pod().await;
    let debian = pod.dir().join("debian");
    fs::create_dir_all(debian.join("etc")).expect("makes a directory");
    symlink("../run/systemd/resolve/stub-resolv.conf", debian.join("etc/resolv.conf")).expect("links");
    let mut spec = pod.spec("c", "cat /etc/resolv.conf");
    spec.layers.push(debian.clone());
    assert_eq!(pod.output(spec).await, "nameserver 10.9.8.7\n");
    assert!(
        fs::symlink_metadata(debian.join("etc/resolv.conf")).expect("is there").is_symlink(),
        "the layer is as it was"
    );
    pod.destroy().await;
}

async fn upper_layers_hide_lower_ones(ctx: Ctx) {
    let pod = ctx.pod().await;
    let mut spec = pod.spec("c", "cat /a /b; ls -ln /a | tr -s ' ' | head -n1");
    for (n, files) in [["a", "b"], ["a", "c"]].iter().enumerate() {
        let layer = pod.dir().join(format!("layer{n}"));
        fs::create_dir_all(&layer).expect("makes a layer");
        for file in files {
            fs::write(layer.join(file), format!("{file} of layer {n}\n")).expect("writes");
        }
        spec.layers.push(layer);
    }
    let out = pod.output(spec).await;
    assert!(out.starts_with("a of layer 1\nb of layer 0\n"), "{out}");
    assert!(out.contains(" 0 0 "), "root owns the image's files: {out}");
    pod.destroy().await;
}

async fn too_much_memory_is_an_oom_kill(ctx: Ctx) {
    let pod = ctx.pod().await;
    let mut spec = pod.spec("c", "exec tail /dev/zero");
    spec.limits = Limits { memory_bytes: Some(24 << 20), ..Limits::default() };
    let (state, ..) = pod.run(spec).await;
    assert!(matches!(state, ContainerState::Exited { signal: Some(9), oom_killed: true, .. }), "{state:?}");
    pod.destroy().await;
}

async fn the_number_of_processes_is_limited(ctx: Ctx) {
    let pod = ctx.pod().await;
    let mut spec = pod.spec("c", "for i in $(seq 30); do sleep 20 & done; echo all");
    spec.limits.pids = 8;
    let (_, out, err) = pod.run(spec).await;
    assert!(!out.contains("all") || err.contains("fork"), "{out}{err}");
    assert!(err.contains("fork"), "{err}");
    pod.destroy().await;
}

async fn output_becomes_cri_lines_and_logs_rotate(ctx: Ctx) {
    let pod = ctx.pod().await;
    let (_, out, err) = pod.run(pod.spec("both", "echo to out; echo to err >&2; printf 'no end'")).await;
    assert_eq!((out.as_str(), err.as_str()), ("to out\nno end\n", "to err\n"));
    let line = fs::read_to_string(pod.dir().join("log/both/0.log")).expect("log");
    let time = line.split(' ').next().expect("time");
    assert!(time.ends_with('Z') && time.len() == "2016-10-06T00:17:09.669794202Z".len(), "{line}");

    let mut spec = pod.spec("much", "seq 20000");
    spec.log = LogPolicy { max_bytes: 100_000, max_files: 3 };
    let log = spec.log_path.clone();
    pod.run(spec).await;
    let sizes: Vec<_> = ["", ".1", ".2", ".3"]
        .iter()
        .map(|s| fs::metadata(format!("{}{s}", log.display())).map(|m| m.len()).ok())
        .collect();
    assert!(sizes[0].is_some() && sizes[3].is_none(), "{sizes:?}");
    // One entry more at most.
    assert!(sizes.iter().flatten().all(|size| *size < 100_100), "{sizes:?}");
    let text = read_log(&PathBuf::from(format!("{}.1", log.display())), "stdout") + &read_log(&log, "stdout");
    let numbers: Vec<u32> = text.lines().map(|l| l.parse().expect("a whole number on each line")).collect();
    assert_eq!(numbers.last(), Some(&20000));
    assert!(numbers.windows(2).all(|w| w[1] == w[0] + 1), "no line is lost at a rotation");
    pod.destroy().await;
}

async fn a_flood_of_output_loses_nothing_and_waits(ctx: Ctx) {
    // What may be written at once, what the pipe holds, and more than a second of the rate.
    const BYTES: usize = (4 << 20) + (64 << 10) + (96 << 10);
    let pod = ctx.pod().await;
    let mut spec = pod.spec("bytes", &format!("head -c {BYTES} /dev/zero | tr '\\0' x"));
    spec.log = LogPolicy { max_bytes: 64 << 20, max_files: 2 };
    let (state, out, err) = pod.run(spec).await;
    assert_eq!((exit_code(&state), out.trim_end().len()), (Some(0), BYTES));
    assert_eq!(err.lines().count(), 1, "that it waits is told once: {err}");
    assert!(err.contains("waits for it"), "{err}");
    let ContainerState::Exited { started_at, finished_at, .. } = state else { panic!("ended") };
    let took = finished_at.duration_since(started_at).expect("time goes on");
    assert!(took > Duration::from_secs(1), "the program waits for its log: {took:?}");

    let mut spec = pod.spec("lines", "exec yes ''");
    spec.log = LogPolicy { max_bytes: 64 << 20, max_files: 2 };
    let log = spec.log_path.clone();
    pod.pod.start_container(spec).await.expect("starts");
    let lines = || fs::read_to_string(&log).unwrap_or_default().lines().count();
    until("what may be written at once is", || lines() >= 20_000).await;
    let (begun, before) = (std::time::Instant::now(), lines());
    until("some time has passed", || begun.elapsed() > Duration::from_millis(1500)).await;
    let (more, seconds) = (lines() - before, begun.elapsed().as_secs_f64());
    // A thousand a second, and a turn at either end.
    assert!(more > 0 && (more as f64) < 1000.0 * seconds + 300.0, "{more} lines in {seconds} s");
    pod.destroy().await;
}

async fn signals_reach_the_first_process(ctx: Ctx) {
    let pod = ctx.pod().await;
    let script = "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.05; done";
    pod.pod.start_container(pod.spec("c", script)).await.expect("starts");
    let log = pod.dir().join("log/c/0.log");
    until("the trap is set", || read_log(&log, "stdout").contains("ready")).await;
    pod.pod.signal("c", libc::SIGTERM).await.expect("signals");
    assert_eq!(exit_code(&pod.ended("c").await.state), Some(3));
    assert!(read_log(&log, "stdout").contains("bye"));
    pod.pod.signal("c", libc::SIGTERM).await.expect("one that ended is no error");
    assert!(matches!(pod.pod.signal("other", 15).await, Err(RuntimeError::NoSuchContainer { .. })));
    pod.destroy().await;
}

async fn an_exit_is_an_event_and_a_record(ctx: Ctx) {
    let pod = ctx.pod().await;
    let started = pod.pod.start_container(pod.spec("c", "exit 5")).await.expect("starts");
    assert!(matches!(started.state, ContainerState::Running { .. }));
    let event = tokio::time::timeout(Duration::from_secs(20), pod.pod.wait_event()).await.expect("in time");
    let PodEvent::Exited(status) = event.expect("event") else { panic!("an exit") };
    assert_eq!((status.name.as_str(), exit_code(&status.state)), ("c", Some(5)));
    let record = ctx.instance.dir.path().join("run/pods").join(pod.pod.uid()).join("c/c.0.json");
    let text = fs::read_to_string(record).expect("the record is on disk before the event");
    assert!(text.contains("\"exit_code\":5"), "{text}");
    pod.destroy().await;
}

async fn a_removed_container_leaves_nothing_and_can_start_again(ctx: Ctx) {
    let pod = ctx.pod().await;
    let spec = pod.spec("c", "touch /written; sleep 100");
    pod.pod.start_container(spec.clone()).await.expect("starts");
    assert!(matches!(pod.pod.remove_container("c").await, Err(RuntimeError::StillRunning { .. })));
    let again = pod.pod.start_container(spec.clone()).await;
    assert!(matches!(again, Err(RuntimeError::Start(StartError::Exists { .. }))), "{again:?}");
    pod.pod.signal("c", libc::SIGKILL).await.expect("signals");
    pod.ended("c").await;
    pod.pod.remove_container("c").await.expect("removes");
    assert!(!spec.scratch.exists(), "the writable layer is gone");
    assert!(spec.log_path.exists(), "the log stays");
    for dir in ctx.instance.cgroup_dirs() {
        assert!(!dir.join(pod.pod.uid()).join("c.0").exists(), "{}", dir.display());
    }
    assert_eq!(pod.pod.status().await.expect("status"), []);
    assert!(matches!(pod.pod.remove_container("c").await, Err(RuntimeError::NoSuchContainer { .. })));
    let mut second = pod.spec("c", "! ls /written");
    second.attempt = 1;
    let (state, ..) = pod.run(second).await;
    assert_eq!(exit_code(&state), Some(0));
    pod.destroy().await;
}

async fn containers_of_a_pod_share_network_and_shared_memory_but_not_processes(ctx: Ctx) {
    let pod = ctx.pod().await;
    let script = "for ns in net ipc uts user pid mnt; do readlink /proc/self/ns/$ns; done; echo $$; touch /dev/shm/$HOSTNAME-$X; ls /dev/shm | wc -l";
    let (mut a, mut b) = (pod.spec("a", script), pod.spec("b", script));
    a.env.push(("X".to_owned(), "a".to_owned()));
    b.env.push(("X".to_owned(), "b".to_owned()));
    // Both alive at once: the number of a namespace that is gone is given to the next.
    a.args[2] += "; sleep 100";
    let log = a.log_path.clone();
    pod.pod.start_container(a).await.expect("starts");
    until("the first has said all", || read_log(&log, "stdout").lines().count() == 8).await;
    let (a, b) = (read_log(&log, "stdout"), pod.output(b).await);
    let (a, b): (Vec<_>, Vec<_>) = (a.lines().collect(), b.lines().collect());
    assert_eq!(a[..4], b[..4], "net, ipc, uts and user namespaces are the pod's");
    assert!(a[4] != b[4] && a[5] != b[5], "pid and mount namespaces are the container's");
    assert_eq!((a[6], b[6]), ("1", "1"), "each is process 1");
    assert_eq!((a[7], b[7]), ("1", "2"), "shared memory is the pod's");
    pod.destroy().await;
}

/// A change to a specification that makes it wrong.
type Change = fn(&mut hearth_runtime::ContainerSpec);

async fn sandboxes_and_specifications_that_make_no_sense_are_refused(ctx: Ctx) {
    let ok = IdMap { host_base: 900 << 16, size: 65_536 };
    for (uid, map) in [
        ("../x", ok),
        ("", ok),
        ("shims", ok),
        ("root-of-the-host", IdMap { host_base: 0, size: 65_536 }),
        ("no-ids", IdMap { host_base: 1 << 20, size: 0 }),
        ("overflow", IdMap { host_base: u32::MAX - 5, size: 65_536 }),
    ] {
        let made = ctx.runtime.create_pod(crate::support::sandbox(uid, map)).await;
        assert!(matches!(made, Err(RuntimeError::BadSandbox { .. })), "{uid}: {made:?}");
    }
    let pod = ctx.pod().await;
    let twice = ctx.runtime.create_pod(crate::support::sandbox(pod.pod.uid(), pod.map)).await;
    assert!(matches!(twice, Err(RuntimeError::CreatePod { .. })), "{twice:?}");
    let changes: [(&str, Change); 10] = [
        ("name", |s| s.name = "../x".to_owned()),
        ("args", |s| s.args.clear()),
        ("env", |s| s.env.push(("A=B".to_owned(), String::new()))),
        ("layers", |s| s.layers.clear()),
        ("cwd", |s| s.cwd = "/a/../b".to_owned()),
        ("capabilities", |s| s.capabilities.push("CAP_EVERYTHING".to_owned())),
        ("limits", |s| s.limits.pids = 0),
        ("run_as", |s| s.run_as_user = Some(70_000)),
        ("user", |s| s.user = "70000".to_owned()),
        ("mounts.target", |s| s.mounts.push(volume("/tmp".into(), "/proc/x", true))),
    ];
    for (field, change) in changes {
        let mut spec = pod.spec("c", "true");
        change(&mut spec);
        let error = start_error(&pod, spec).await;
        assert!(matches!(&error, StartError::Invalid { field: f, .. } if f == field), "{field}: {error:?}");
    }
    assert_eq!(pod.pod.status().await.expect("status"), []);
    pod.destroy().await;
}

async fn a_destroyed_pod_leaves_nothing(ctx: Ctx) {
    let pod = ctx.pod().await;
    let spec = pod.spec("c", "sleep 1000 & sleep 1000");
    let status = pod.pod.start_container(spec.clone()).await.expect("starts");
    let ContainerState::Running { pid, .. } = status.state else { panic!("runs") };
    let (shim, uid) = (pod.pod.shim_pid(), pod.pod.uid().to_owned());
    let title = fs::read_to_string(format!("/proc/{shim}/cmdline")).expect("the shim lives").replace('\0', " ");
    let expected = format!("hearth shim --data-dir {} {uid}", ctx.instance.dir.path().display());
    assert_eq!(title.trim_end(), expected);
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("is there");
    assert!(!mounts.contains(&*ctx.instance.dir.path().to_string_lossy()), "the host's mounts do not grow:\n{mounts}");
    pod.destroy().await;
    until("shim and container are gone", || !alive(shim) && !alive(pid)).await;
    assert!(!ctx.instance.dir.path().join("run/pods").join(&uid).exists());
    assert!(!spec.scratch.exists());
    for dir in ctx.instance.cgroup_dirs() {
        assert!(!dir.join(&uid).exists(), "{}", dir.display());
    }
}

async fn each_attempt_has_a_new_file_for_its_last_message(ctx: Ctx) {
    let pod = ctx.pod().await;
    let data = pod.dir().join("data");
    fs::create_dir_all(&data).expect("makes a directory");
    for (n, path) in ["/dev/termination-log", "/tmp/deep/last", "/data/last"].into_iter().enumerate() {
        let attempt = |number: u32| {
            let script = format!("stat -c '%u %a %s' {path}; echo -n last{number} >> {path}; rm {path}; id -u");
            let mut spec = pod.spec(&format!("c{n}"), &script);
            spec.attempt = number;
            spec.scratch = pod.dir().join(format!("scratch{n}/{number}"));
            spec.log_path = pod.dir().join(format!("log{n}/{number}.log"));
            spec.termination_log = Some(path.into());
            // The path's own is made although nobody else may write.
            (spec.read_only_root, spec.run_as_user) = (true, Some(1000));
            spec.mounts.push(volume(data.clone(), "/data", false));
            spec
        };
        for number in 0..2 {
            let spec = attempt(number);
            let file = spec.scratch.join(hearth_runtime::TERMINATION_LOG);
            let (_, out, err) = pod.run(spec).await;
            assert_eq!(out, "0 666 0\n1000\n", "{path}: {err}");
            assert!(err.contains("rm:"), "it cannot put another in its place: {err}");
            assert_eq!(fs::read_to_string(&file).expect("is there"), format!("last{number}"), "{path}");
        }
        pod.pod.remove_container(&format!("c{n}")).await.expect("removes");
        assert!(!attempt(0).scratch.exists() && !attempt(1).scratch.exists(), "it goes with the attempt");
    }
    for path in ["/dev/null", "/proc/x", "relative", "/a/../b"] {
        let mut spec = pod.spec("wrong", "exit 0");
        spec.termination_log = Some(path.into());
        assert!(matches!(start_error(&pod, spec).await, StartError::Invalid { .. }), "{path}");
    }
    pod.destroy().await;
}

async fn what_a_container_uses_is_told(ctx: Ctx) {
    for pod in [ctx.pod().await, ctx.guest().await] {
        let idle = pod.pod.usage("idle", 0);
        assert_eq!(idle, hearth_runtime::Usage::default(), "nothing is known of one that is not there");
        let script = "head -c 20000000 /dev/zero > /dev/shm/x; while :; do :; done";
        pod.pod.start_container(pod.spec("busy", script)).await.expect("starts");
        pod.pod.start_container(pod.spec("idle", "sleep 100")).await.expect("starts");
        let used = |name: &str| pod.pod.usage(name, 0);
        until("it has used a tenth of a second and 20 MB", || {
            let used = used("busy");
            used.cpu_nanos > Some(100_000_000) && used.working_set_bytes > Some(20_000_000)
        })
        .await;
        let idle = used("idle");
        assert!(idle.cpu_nanos < Some(100_000_000) && idle.working_set_bytes < Some(20_000_000), "{idle:?}");
        assert!(ctx.runtime.usage().cpu_nanos >= used("busy").cpu_nanos, "all together");
        pod.destroy().await;
    }
}
