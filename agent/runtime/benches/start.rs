//! How long a container takes from the decision to its executed program, against crun with the same root file system and
//! as much isolation, and what a shim weighs. Prints a table and JSON lines.
//!
//! In the timed path of both: a network namespace, user, pid, mount, ipc and uts namespaces, an overlay mount, cgroups with
//! limits for memory, CPU and pids, a device list, masked paths, no capabilities, a seccomp profile, execve. Ours idmaps the
//! layer besides; crun has no such thing, and gets a layer that was chowned beforehand. In neither: addresses and firewall.
#![allow(missing_docs, unreachable_pub, clippy::print_stdout)]

#[path = "../tests/it/support.rs"]
#[allow(dead_code)]
mod support;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use hearth_runtime::{IDS_PER_POD, IdMap, Limits};
use support::{Ctx, Instance};

/// Interleaved runs of each.
const RUNS: usize = 40;
/// The profile that podman and docker run containers with, from which ours was made.
const SECCOMP: &str = "/usr/share/containers/seccomp.json";

fn main() {
    let instance = Arc::new(Instance::new("bench"));
    let begun = Instant::now();
    let zygote = hearth_runtime::fork_zygote(&instance.config()).expect("the zygote is forked; are you root?");
    println!("fork_zygote {:.1} ms", ms(begun.elapsed()));
    let tokio = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("tokio starts");
    tokio.block_on(async {
        let runtime = hearth_runtime::Runtime::new(zygote).expect("the runtime starts");
        bench(&Ctx { runtime, instance: Arc::clone(&instance) }).await;
    });
}

fn ms(d: Duration) -> f64 {
    d.as_secs_f64() * 1000.0
}

fn quantile(values: &mut [f64], q: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * q).round() as usize]
}

fn report(case: &str, values: &mut [f64], peer: Option<f64>) -> f64 {
    let (median, p90) = (quantile(values, 0.5), quantile(values, 0.9));
    println!("{case:40} median {median:7.2} ms   p90 {p90:7.2} ms");
    let (peer_name, peer_value, ratio) = peer.map_or(("null".to_owned(), "null".to_owned(), "null".to_owned()), |p| {
        ("\"crun\"".to_owned(), format!("{p:.3}"), format!("{:.3}", p / median))
    });
    println!(
        "{{\"bench\":\"container-start\",\"case\":\"{case}\",\"value\":{median:.3},\"unit\":\"ms\",\"peer\":{peer_name},\
         \"peer_value\":{peer_value},\"ratio\":{ratio}}}"
    );
    median
}

async fn bench(ctx: &Ctx) {
    let (mut pod_ms, mut start_ms, mut both_ms, mut crun_ms) = (vec![], vec![], vec![], vec![]);
    let bundle = crun_bundle(ctx.instance.dir.path());
    for n in 0..RUNS as u32 {
        let map = IdMap { host_base: (n + 2) * IDS_PER_POD, size: IDS_PER_POD };
        let dir = ctx.instance.dir.path().join("work").join(n.to_string());
        let mut spec = support::spec(&dir, &ctx.instance.dir.path().join("layer"), "c", "");
        spec.args = ["sleep", "1000"].map(String::from).to_vec();
        spec.limits = Limits { memory_bytes: Some(128 << 20), cpu_millis: Some(1000), ..Limits::default() };
        let begun = Instant::now();
        // Makes the network namespace.
        let sandbox = support::sandbox(&format!("b{n}"), map);
        let pod = ctx.runtime.create_pod(sandbox).await.expect("makes a pod");
        let made = begun.elapsed();
        // Returns when the program was executed.
        pod.start_container(spec).await.expect("starts");
        let all = begun.elapsed();
        pod_ms.push(ms(made));
        start_ms.push(ms(all.saturating_sub(made)));
        both_ms.push(ms(all));
        if n == RUNS as u32 - 1 {
            println!("shim: {}", pss(pod.shim_pid()));
            println!("zygote: {}", pss(ctx.runtime.zygote_pid()));
        }
        pod.destroy().await.expect("destroys");
        if let Some(bundle) = &bundle {
            crun_ms.push(ms(crun(bundle, n)));
        }
    }
    many(ctx).await;
    let peer = (!crun_ms.is_empty()).then(|| report("crun run, decision to executed", &mut crun_ms, None));
    report("decision to executed", &mut both_ms, peer);
    report("of it, the pod", &mut pod_ms, None);
    report("of it, the container", &mut start_ms, None);
}

/// What a pod more weighs, with many of them alive: its shim's share of memory.
async fn many(ctx: &Ctx) {
    const PODS: u32 = 50;
    let mut pods = Vec::new();
    let begun = Instant::now();
    for n in 0..PODS {
        let map = IdMap { host_base: (n + 100) * IDS_PER_POD, size: IDS_PER_POD };
        let pod = ctx.runtime.create_pod(support::sandbox(&format!("m{n}"), map)).await.expect("makes a pod");
        let dir = ctx.instance.dir.path().join("many").join(n.to_string());
        let mut spec = support::spec(&dir, &ctx.instance.dir.path().join("layer"), "c", "");
        spec.args = ["sleep", "1000"].map(String::from).to_vec();
        pod.start_container(spec).await.expect("starts");
        pods.push(pod);
    }
    println!("{PODS} pods one after the other: {:.0} ms", ms(begun.elapsed()));
    let kib = |pid: u32| -> f64 {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        let field = text.lines().find_map(|l| l.strip_prefix("Pss:"));
        field.and_then(|f| f.trim().trim_end_matches(" kB").trim().parse().ok()).unwrap_or(0.0)
    };
    let mut all: Vec<f64> = pods.iter().map(|p| kib(p.shim_pid())).collect();
    println!("PSS of a shim among {PODS}: median {} KiB, p90 {} KiB", quantile(&mut all, 0.5), quantile(&mut all, 0.9));
    for pod in pods {
        pod.destroy().await.expect("destroys");
    }
}

fn pss(pid: u32) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let wanted = ["Pss:", "Pss_Anon:", "Private_Dirty:"];
    text.lines().filter(|l| wanted.iter().any(|w| l.starts_with(w))).collect::<Vec<_>>().join("  ")
}

/// A bundle for crun with what our containers have: user namespace, limits, masks, seccomp.
fn crun_bundle(base: &Path) -> Option<std::path::PathBuf> {
    let bundle = base.join("crun");
    fs::create_dir_all(&bundle).ok()?;
    let made = Command::new("crun").arg("spec").current_dir(&bundle).status().ok()?;
    if !made.success() {
        return None;
    }
    let text = fs::read_to_string(bundle.join("config.json")).ok()?;
    let mut spec: serde_json::Value = serde_json::from_str(&text).ok()?;
    spec["process"]["args"] = serde_json::json!(["/bin/sleep", "1000"]);
    spec["process"]["terminal"] = false.into();
    for set in ["bounding", "effective", "permitted", "inheritable", "ambient"] {
        spec["process"]["capabilities"][set] = serde_json::json!([]);
    }
    spec["root"] = serde_json::json!({"path": "rootfs", "readonly": false});
    let ids = serde_json::json!([{"containerID": 0, "hostID": IDS_PER_POD, "size": IDS_PER_POD}]);
    spec["linux"]["uidMappings"] = ids.clone();
    spec["linux"]["gidMappings"] = ids;
    let mut namespaces = spec["linux"]["namespaces"].as_array()?.clone();
    namespaces.retain(|n| n["type"] != "user");
    namespaces.push(serde_json::json!({"type": "user"}));
    spec["linux"]["namespaces"] = namespaces.into();
    spec["linux"]["resources"] = serde_json::json!({
        "memory": {"limit": 128 << 20}, "cpu": {"quota": 100_000, "period": 100_000}, "pids": {"limit": 1024},
        "devices": [{"allow": false, "access": "rwm"}]
    });
    let profile = fs::read_to_string(SECCOMP).ok().and_then(|text| serde_json::from_str(&text).ok());
    let profile: serde_json::Value = profile.unwrap_or_else(|| {
        panic!("{SECCOMP} is missing, without which crun would be less isolated: apt-get install golang-github-containers-common")
    });
    spec["linux"]["seccomp"] = flatten(&profile);
    fs::write(bundle.join("config.json"), spec.to_string()).ok()?;
    // crun shifts no ids: the layer is copied, owned by the mapped root, and walkable for it.
    let copied = Command::new("cp").arg("-a").arg(base.join("layer")).arg(bundle.join("lower")).status().ok()?;
    let owned = Command::new("chown").arg("-hR").arg("65536:65536").arg(bundle.join("lower")).status().ok()?;
    fs::create_dir(bundle.join("rootfs")).ok()?;
    fs::set_permissions(base, fs::Permissions::from_mode(0o755)).ok()?;
    (copied.success() && owned.success()).then_some(bundle)
}

/// The OCI form of a containers-common profile, for a container without capabilities on this architecture.
fn flatten(docker: &serde_json::Value) -> serde_json::Value {
    let rules = docker["syscalls"].as_array().cloned().unwrap_or_default();
    let native = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let plain = |r: &&serde_json::Value| {
        let arches = r["includes"]["arches"].as_array();
        let here = arches.is_none_or(|a| a.iter().any(|a| a == native));
        here && r["includes"]["caps"].is_null() && r["action"] == "SCMP_ACT_ALLOW"
    };
    let rules: Vec<_> = rules
        .iter()
        .filter(plain)
        .map(|r| serde_json::json!({"names": r["names"], "action": r["action"], "args": r["args"].as_array().cloned().unwrap_or_default()}))
        .collect();
    serde_json::json!({
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
        "architectures": [if cfg!(target_arch = "x86_64") { "SCMP_ARCH_X86_64" } else { "SCMP_ARCH_AARCH64" }],
        "syscalls": rules
    })
}

/// Runs crun from a thread in a mount namespace without the cgroup2 of a hybrid host, which crun refuses.
fn crun(bundle: &Path, n: u32) -> Duration {
    let bundle = bundle.to_path_buf();
    let run = std::thread::spawn(move || {
        let none = None::<&str>;
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("root can");
        let private = nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_PRIVATE;
        nix::mount::mount(none, "/", none, private, none).expect("root can");
        let _ = nix::mount::umount("/sys/fs/cgroup/unified");
        let id = format!("hearth-bench-{}-{n}", std::process::id());
        let pid_file = bundle.join(format!("pid-{n}"));
        let begun = Instant::now();
        crun_overlay(&bundle, n);
        let status = Command::new("crun")
            .args(["run", "--detach", "--pid-file"])
            .arg(&pid_file)
            .arg("--bundle")
            .arg(&bundle)
            .arg(&id)
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .status()
            .expect("crun runs");
        // It returns when it told the container to go on: the profile is loaded and the program executed after that.
        let pid = fs::read_to_string(&pid_file).unwrap_or_default();
        let executed = || fs::read_to_string(format!("/proc/{}/comm", pid.trim())).is_ok_and(|comm| comm == "sleep\n");
        while status.success() && !executed() && begun.elapsed() < support::BOUND {
            std::thread::sleep(Duration::from_micros(50));
        }
        let took = begun.elapsed();
        let _ = Command::new("crun").args(["delete", "--force", &id]).status();
        assert!(status.success() && took < support::BOUND, "crun run failed");
        took
    });
    run.join().expect("crun runs")
}

/// A new writable layer over crun's copy of the layer; the mount goes with the calling thread's namespace.
fn crun_overlay(bundle: &Path, n: u32) {
    let scratch = bundle.join(format!("scratch-{n}"));
    for sub in ["upper", "work"] {
        fs::create_dir_all(scratch.join(sub)).expect("makes the writable layer");
        std::os::unix::fs::chown(scratch.join(sub), Some(IDS_PER_POD), Some(IDS_PER_POD)).expect("root can");
    }
    let options = format!(
        "lowerdir={},upperdir={},workdir={},volatile",
        bundle.join("lower").display(),
        scratch.join("upper").display(),
        scratch.join("work").display()
    );
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("overlay"), &bundle.join("rootfs"), Some("overlay"), flags, Some(options.as_str()))
        .expect("mounts an overlay");
}
