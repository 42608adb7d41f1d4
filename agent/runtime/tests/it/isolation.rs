//! What a container cannot do, and what it cannot see.

use std::{fs, os::unix::fs::MetadataExt};

use hearth_runtime::{ContainerState, GuestLimits, Limits};

use crate::support::{Ctx, TestPod, exec, exec_spec, until};

crate::tests![
    a_container_has_no_privileges,
    what_is_a_programs_own_is_left_to_it,
    open_files_are_limited_whatever_the_agent_may_have,
    capabilities_are_those_asked_for,
    every_pod_has_its_own_ids,
    no_supplementary_group_of_the_agent_is_kept,
    no_file_descriptor_signal_or_path_of_the_host_is_inherited,
    kernel_interfaces_are_masked_or_read_only,
    devices_are_the_standard_ones,
    processes_are_in_the_cgroups_of_their_container,
    an_instance_as_a_whole_leaves_the_host_a_part,
    a_pod_that_asks_for_processor_time_comes_before_those_that_do_not,
    pods_of_other_owners_share_what_is_lent,
    the_network_is_the_pods_and_cannot_be_changed,
    the_network_namespace_can_be_had_from_the_pod,
];

async fn lines(pod: &TestPod, name: &str, script: &str) -> Vec<String> {
    pod.output(pod.spec(name, script)).await.lines().map(str::to_owned).collect()
}

async fn a_container_has_no_privileges(ctx: Ctx) {
    let pod = ctx.pod().await;
    // Without a shell, which ignores a signal of its own accord.
    let mut spec = pod.spec("c", "");
    spec.args = ["cat", "/proc/self/status"].map(String::from).to_vec();
    let status: Vec<_> = pod.output(spec).await.lines().map(|l| l.replace('\t', " ")).collect();
    for expected in [
        "Seccomp: 2",
        "NoNewPrivs: 1",
        "CapInh: 0000000000000000",
        "CapPrm: 0000000000000000",
        "CapEff: 0000000000000000",
        "CapBnd: 0000000000000000",
        "CapAmb: 0000000000000000",
        "SigIgn: 0000000000000000",
        "SigBlk: 0000000000000000",
    ] {
        assert!(status.iter().any(|l| l == expected), "{expected} is not in\n{}", status.join("\n"));
    }
    let script = "! unshare -U true && ! unshare -m true && ! mount -t tmpfs none /tmp && ! mount -o remount,rw / \
                  && ! chroot / true && ! hostname other && ! mknod /tmp/null c 1 3 && ! kill -0 2 && echo refused";
    assert_eq!(pod.output(pod.spec("d", script)).await, "refused\n");
    pod.destroy().await;
}

/// What a Landlock domain would refuse if it were made with less care: links between directories, and the processes of the same container.
async fn what_is_a_programs_own_is_left_to_it(ctx: Ctx) {
    let pod = ctx.pod().await;
    let script = "mkdir /tmp/a /tmp/b && echo kept > /tmp/a/f && ln /tmp/a/f /tmp/b/f && mkfifo /tmp/p && cat /tmp/b/f; \
                  sleep 100 & head -c 0 /proc/$!/environ && ls -d /proc/$!/root/etc/hosts > /dev/null && echo seen; kill $!";
    assert_eq!(pod.output(pod.spec("c", script)).await, "kept\nseen\n");
    pod.destroy().await;
}

async fn open_files_are_limited_whatever_the_agent_may_have(ctx: Ctx) {
    let pod = ctx.pod().await;
    // Where this process may not raise its own limit, that is the most.
    let (_, own) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).expect("is told");
    let script =
        "ulimit -n; ulimit -Hn; ulimit -n $(ulimit -Hn); ulimit -n; ulimit -Hn 524289 2> /dev/null || echo no more";
    let out = pod.output(pod.spec("c", script)).await;
    let most = out.lines().nth(1).unwrap_or_default();
    assert!(most == "524288" || (own < 524_288 && most == own.to_string()), "{out}");
    let expected = format!("1024\n{most}\n{most}\nno more\n");
    assert_eq!(out, expected);
    pod.pod.start_container(pod.spec("d", "exec sleep 1000")).await.expect("starts");
    let (code, out, err) = exec(&pod.pod, exec_spec("d", script)).await;
    assert_eq!((code, out), (0, expected), "{err}");
    pod.destroy().await;
}

async fn capabilities_are_those_asked_for(ctx: Ctx) {
    let pod = ctx.pod().await;
    let script = "grep Cap /proc/self/status | tr '\\t' ' '; touch /tmp/x; chown 1:1 /tmp/x && echo changed";
    for (name, user) in [("root", ""), ("app", "app")] {
        let mut spec = pod.spec(name, script);
        spec.capabilities = vec!["CAP_CHOWN".to_owned()];
        spec.user = user.to_owned();
        let out = pod.output(spec).await;
        assert_eq!(out.matches("0000000000000001").count(), 5, "{name}: {out}");
        assert!(out.contains("changed"), "{name}: {out}");
    }
    let mut spec = pod.spec("admin", "mount -t tmpfs none /tmp || echo refused");
    spec.capabilities = vec!["CAP_SYS_ADMIN".to_owned()];
    assert_eq!(pod.output(spec).await, "refused\n", "seccomp holds whatever capabilities there are");
    pod.destroy().await;
}

async fn every_pod_has_its_own_ids(ctx: Ctx) {
    let (a, b) = (ctx.pod().await, ctx.pod().await);
    for pod in [&a, &b] {
        let maps = lines(pod, "c", "cat /proc/self/uid_map /proc/self/gid_map").await;
        let fields: Vec<Vec<u32>> =
            maps.iter().map(|l| l.split_whitespace().map(|n| n.parse().expect("a number")).collect()).collect();
        let expected = vec![0, pod.map.host_base, pod.map.size];
        assert_eq!(fields, [expected.clone(), expected]);
        let status = pod.pod.start_container(pod.spec("d", "sleep 100")).await.expect("starts");
        let ContainerState::Running { pid, .. } = status.state else { panic!("runs") };
        let owner = fs::metadata(format!("/proc/{pid}")).expect("lives");
        assert_eq!(owner.uid(), pod.map.host_base, "root inside is nobody's root on the host");
    }
    assert_ne!(a.map.host_base, b.map.host_base);
    a.destroy().await;
    b.destroy().await;
}

async fn no_supplementary_group_of_the_agent_is_kept(ctx: Ctx) {
    let groups = |pid: u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("lives");
        let line = status.lines().find_map(|l| l.strip_prefix("Groups:")).expect("is told");
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(groups(std::process::id()), crate::AGENT_GROUPS.map(|g| g.to_string()), "this agent has some");
    let pod = ctx.pod().await;
    assert_eq!(groups(ctx.runtime.zygote_pid()), [""; 0]);
    assert_eq!(groups(pod.pod.shim_pid()), [""; 0]);
    // The image names no groups of root.
    let status = pod.pod.start_container(pod.spec("c", "sleep 100")).await.expect("starts");
    let ContainerState::Running { pid, .. } = status.state else { panic!("runs") };
    assert_eq!(groups(pid), [""; 0]);
    pod.destroy().await;
}

async fn no_file_descriptor_signal_or_path_of_the_host_is_inherited(ctx: Ctx) {
    let pod = ctx.pod().await;
    // Opened before the shim is asked to start anything; the zygote was forked long ago.
    let fds = lines(&pod, "c", "ls /proc/self/fd").await;
    assert_eq!(fds, ["0", "1", "2", "3"], "3 is the directory that ls reads");
    let stdin = lines(&pod, "d", "readlink /proc/self/fd/0; cat; echo at its end").await;
    assert_eq!(stdin, ["/dev/null", "at its end"]);
    let mounts = lines(&pod, "e", "cat /proc/self/mountinfo").await.join("\n");
    let points: Vec<_> = mounts.lines().filter_map(|l| l.split(' ').nth(4)).collect();
    let ours = ["/", "/proc", "/dev", "/sys", "/etc/"];
    assert!(points.iter().all(|p| ours.iter().any(|o| p == o || p.starts_with(o))), "{mounts}");
    assert!(!points.iter().any(|p| p.contains("hearth") || p.contains("old")), "{mounts}");
    // Killed by a broken pipe and not by an error, or `yes` would not end.
    assert_eq!(pod.output(pod.spec("f", "yes | head -n 1")).await, "y\n");
    pod.destroy().await;
}

async fn kernel_interfaces_are_masked_or_read_only(ctx: Ctx) {
    let pod = ctx.pod().await;
    let script = "cat /proc/keys /proc/kcore /proc/timer_list 2>/dev/null | wc -c; ls /sys/firmware 2>/dev/null | wc -l; \
                  for f in /proc/sys/kernel/hostname /proc/sysrq-trigger /proc/sys/net/ipv4/ip_forward; do \
                  (echo 1 > $f) 2>/dev/null && echo written $f; done; touch /sys/x 2>/dev/null && echo written /sys; \
                  (echo 1 > /sys/kernel/mm/ksm/run) 2>/dev/null && echo written ksm; ps | wc -l";
    let out = lines(&pod, "c", script).await;
    assert_eq!(out[..2], ["0", "0"], "masked files and directories are empty");
    assert_eq!(out.len(), 3, "nothing could be written: {out:?}");
    assert!(out[2].parse::<u32>().expect("a number") <= 4, "only its own processes are seen: {out:?}");
    pod.destroy().await;
}

async fn devices_are_the_standard_ones(ctx: Ctx) {
    let pod = ctx.pod().await;
    let mut found = lines(&pod, "c", "ls /dev").await;
    found.retain(|d| {
        !["core", "kcore", "fd", "stdin", "stdout", "stderr", "ptmx", "pts", "shm", "mqueue"].contains(&d.as_str())
    });
    assert_eq!(found, ["full", "null", "random", "tty", "urandom", "zero"]);
    let script = "echo x > /dev/null && head -c 4 /dev/urandom | wc -c && head -c 4 /dev/zero | wc -c";
    assert_eq!(lines(&pod, "d", script).await, ["4", "4"]);
    // A device node that came with an image cannot be opened.
    let layer = pod.dir().join("devices");
    fs::create_dir_all(&layer).expect("makes a layer");
    let node = layer.join("kmsg");
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o666);
    nix::sys::stat::mknod(&node, nix::sys::stat::SFlag::S_IFCHR, mode, nix::sys::stat::makedev(1, 11)).expect("mknod");
    let mut spec = pod.spec("e", "head -c 1 /kmsg || echo refused");
    spec.layers.push(layer);
    assert_eq!(pod.output(spec).await, "refused\n");
    pod.destroy().await;
}

async fn processes_are_in_the_cgroups_of_their_container(ctx: Ctx) {
    let pod = ctx.pod().await;
    let mut spec = pod.spec("c", "sleep 100");
    spec.limits.memory_bytes = Some(64 << 20);
    spec.limits.cpu_millis = Some(500);
    spec.limits.cpu_request_millis = Some(250);
    let status = pod.pod.start_container(spec).await.expect("starts");
    let ContainerState::Running { pid, .. } = status.state else { panic!("runs") };
    let expected = format!("/hearth-{}/{}/c.0", ctx.instance.name, pod.pod.uid());
    let of = |pid: u32| fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("lives");
    // On a hybrid host no controller is in the hierarchy of version 2, so that only shims are moved there.
    let hybrid = of(pid).lines().count() > 1;
    let elsewhere: Vec<_> = of(pid)
        .lines()
        .filter(|l| !(l.ends_with(&expected) || hybrid && l.starts_with("0::")))
        .map(str::to_owned)
        .collect();
    assert_eq!(elsewhere, Vec::<String>::new());
    let shims = format!("/hearth-{}/shims", ctx.instance.name);
    assert!(of(pod.pod.shim_pid()).lines().all(|l| l.ends_with(&shims)), "the shim is not in its containers' limits");
    let dirs: Vec<_> = ctx.instance.cgroup_dirs().into_iter().map(|d| d.join(pod.pod.uid()).join("c.0")).collect();
    for (v1, v2, value) in [
        ("memory.limit_in_bytes", "memory.max", ["67108864", "67108864"]),
        ("cpu.cfs_quota_us", "cpu.max", ["50000", "50000 100000"]),
        ("cpu.shares", "cpu.weight", ["256", "10"]),
        ("pids.max", "pids.max", ["1024", "1024"]),
    ] {
        let found = dirs.iter().find_map(|d| {
            let one = fs::read_to_string(d.join(v1)).map(|t| (t, value[0]));
            one.or_else(|_| fs::read_to_string(d.join(v2)).map(|t| (t, value[1]))).ok()
        });
        let (found, value) = found.expect("the controller is there");
        assert_eq!(found.trim(), value, "{v1}");
    }
    pod.destroy().await;
}

async fn a_pod_that_asks_for_processor_time_comes_before_those_that_do_not(ctx: Ctx) {
    let asks = ctx.pod_with(|made| made.limits.cpu_request_millis = Some(500)).await;
    let (asks_nothing, guest) = (ctx.pod().await, ctx.guest().await);
    ctx.runtime.limit_guests(GuestLimits::default()).await.expect("limits");
    let pods = [&asks, &asks_nothing, &guest];
    for pod in pods {
        // All on one processor, several to each that asks for nothing.
        let script = "for i in 1 2 3; do taskset 1 sh -c 'while :; do :; done' & done; wait";
        pod.pod.start_container(pod.spec("c", script)).await.expect("starts");
    }
    // Who asks for nothing does not even end its turn, where the kernel knows how (5.15).
    let idle = |pod: &TestPod| {
        let mut dirs = ctx.instance.cgroup_dirs().into_iter();
        dirs.find_map(|dir| fs::read_to_string(dir.join(pod.pod.uid()).join("cpu.idle")).ok())
    };
    if let (Some(first), Some(second)) = (idle(&asks), idle(&asks_nothing)) {
        assert_eq!((first.trim(), second.trim()), ("0", "1"));
    }
    let used = |pod: &TestPod| pod.pod.usage("c", 0).cpu_nanos.unwrap_or_default();
    // Counted from when all run.
    until("all run", || pods.iter().all(|pod| used(pod) > 1_000_000)).await;
    let before = pods.map(used);
    until("some time is used", || used(&asks) > before[0] + 1_500_000_000).await;
    let [first, second, third] = [0, 1, 2].map(|at| used(pods[at]) - before[at]);
    assert!(second * 5 < first && third * 5 < first, "{first} {second} {third}");
    for pod in [asks, asks_nothing, guest] {
        pod.destroy().await;
    }
}

async fn pods_of_other_owners_share_what_is_lent(ctx: Ctx) {
    let lent = GuestLimits { memory_bytes: Some(32 << 20), cpu_millis: Some(250) };
    ctx.runtime.limit_guests(lent).await.expect("limits");
    let read = |v1: &str, v2: &str| {
        let dirs: Vec<_> = ctx.instance.cgroup_dirs().into_iter().map(|dir| dir.join("guests")).collect();
        let found =
            dirs.iter().find_map(|d| fs::read_to_string(d.join(v1)).or_else(|_| fs::read_to_string(d.join(v2))).ok());
        found.expect("the controller is there").trim().to_owned()
    };
    assert_eq!(read("memory.limit_in_bytes", "memory.max"), "33554432");
    assert!(["25000", "25000 100000"].contains(&read("cpu.cfs_quota_us", "cpu.max").as_str()));
    // Its own limit allows it more than its owner is lent.
    let (guest, own) = (ctx.guest().await, ctx.pod().await);
    let hungry = |pod: &TestPod, name: &str| {
        let mut spec = pod.spec(name, "head -c 80000000 /dev/zero | tail -c 80000000 | wc -c");
        spec.limits = Limits { memory_bytes: Some(256 << 20), ..Limits::default() };
        spec
    };
    assert_eq!(own.output(hungry(&own, "c")).await, "80000000\n");
    // Whichever of its processes that is.
    let (state, out, _) = guest.run(hungry(&guest, "c")).await;
    assert_ne!(out, "80000000\n", "the kernel took what was too much: {state:?}");
    // More is lent, and it holds for those who are here.
    ctx.runtime.limit_guests(GuestLimits::default()).await.expect("limits");
    assert_eq!(guest.output(hungry(&guest, "d")).await, "80000000\n");
    for pod in [guest, own] {
        let uid = pod.pod.uid().to_owned();
        pod.destroy().await;
        let left = |dir: &std::path::PathBuf| dir.join("guests").join(&uid).exists() || dir.join(&uid).exists();
        assert!(!ctx.instance.cgroup_dirs().iter().any(left), "its cgroups are removed");
    }
}

async fn an_instance_as_a_whole_leaves_the_host_a_part(ctx: Ctx) {
    let read = |v1: &str, v2: &str| {
        let dirs = ctx.instance.cgroup_dirs();
        let found =
            dirs.iter().find_map(|d| fs::read_to_string(d.join(v1)).or_else(|_| fs::read_to_string(d.join(v2))).ok());
        found.expect("the controller is there").trim().parse::<u64>().expect("a number, not max")
    };
    let meminfo = fs::read_to_string("/proc/meminfo").expect("is there");
    let total = meminfo.lines().find_map(|l| l.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")).expect("is told");
    let total = total.trim().parse::<u64>().expect("a number") * 1024;
    let memory = read("memory.limit_in_bytes", "memory.max");
    assert!(memory >= total / 2 && memory <= total - total / 10, "{memory} of {total}");
    let pids = read("pids.max", "pids.max");
    let most =
        fs::read_to_string("/proc/sys/kernel/pid_max").expect("is there").trim().parse::<u64>().expect("a number");
    assert!(pids > 100 && pids < most, "{pids} of {most}");
    // Shims are within it, and so are all pods.
    let pod = ctx.pod().await;
    let path = format!("/hearth-{}/", ctx.instance.name);
    let cgroup = fs::read_to_string(format!("/proc/{}/cgroup", pod.pod.shim_pid())).expect("lives");
    assert!(cgroup.lines().all(|l| l.contains(&path)), "{cgroup}");
    pod.destroy().await;
}

async fn the_network_is_the_pods_and_cannot_be_changed(ctx: Ctx) {
    let pod = ctx.pod().await;
    assert_eq!(lines(&pod, "c", "ls /sys/class/net").await, ["lo"], "the host's links are not seen");
    let mut spec = pod.spec(
        "d",
        "cat /proc/sys/net/ipv4/ip_unprivileged_port_start; busybox ip link add dummy0 type dummy || echo refused",
    );
    spec.capabilities = vec!["CAP_NET_ADMIN".to_owned()];
    assert_eq!(pod.output(spec).await, "0\nrefused\n");
    pod.destroy().await;
}

async fn the_network_namespace_can_be_had_from_the_pod(ctx: Ctx) {
    use std::os::fd::AsRawFd;
    let pod = ctx.pod().await;
    let inside = lines(&pod, "c", "readlink /proc/self/ns/net").await;
    let fd = pod.pod.netns().expect("is there");
    let link = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).expect("is open");
    assert_eq!(link.to_string_lossy(), inside[0]);
    pod.destroy().await;
}
