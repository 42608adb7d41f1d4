//! A probe's containers, made by zygote, shim and libcontainer as any other.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use hearth_runtime::{ContainerSpec, ContainerState, IdMap, Mount, MountKind};

use crate::{
    ATTEMPT,
    attempts::{DEVICE, Facts},
    probes::{FEW_TASKS, Guard, LITTLE, Probe},
    support::{Ctx, TestPod, alive, read_log, until},
};

/// All that a runtime may be asked for.
const CAPABILITIES: [&str; 15] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_SETUID",
    "CAP_SETGID",
    "CAP_SYS_CHROOT",
    "CAP_NET_RAW",
    "CAP_NET_ADMIN",
    "CAP_SYS_ADMIN",
    "CAP_SYS_NICE",
    "CAP_MKNOD",
    "CAP_SYSLOG",
    "CAP_BPF",
    "CAP_SYS_PTRACE",
    "CAP_SYS_RESOURCE",
];

/// A copy of a program of this machine that belongs to user 1000 and is to run as that.
fn set_user_id(at: &Path, base: u32) {
    fs::copy("/bin/cat", at).expect("copies cat");
    chown(at, Some(base + 1000), Some(base + 1000)).expect("chown");
    fs::set_permissions(at, fs::Permissions::from_mode(0o4755)).expect("chmod");
}

fn device(at: &Path) {
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o666);
    let number = nix::sys::stat::makedev(DEVICE.0, DEVICE.1);
    nix::sys::stat::mknod(at, nix::sys::stat::SFlag::S_IFCHR, mode, number).expect("mknod");
    fs::set_permissions(at, fs::Permissions::from_mode(0o666)).expect("chmod");
}

/// Puts into the image what probes need: this program with its libraries, and bait.
pub fn furnish(layer: &Path) {
    let own = std::env::current_exe().expect("is known");
    let probe = layer.join("probe");
    let stripped = Command::new("strip").arg("-o").arg(&probe).arg(&own).status();
    if !stripped.is_ok_and(|s| s.success()) {
        fs::copy(&own, &probe).expect("copies this program");
    }
    for program in [own.as_path(), Path::new("/bin/cat")] {
        // As ldd has it, which is no program everywhere: the loader lists what it would load.
        let out = Command::new(program).env("LD_TRACE_LOADED_OBJECTS", "1").output().expect("the loader runs");
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        for library in text.split_whitespace().filter(|word| word.starts_with('/')) {
            let to = layer.join(library.trim_start_matches('/'));
            fs::create_dir_all(to.parent().expect("a folder")).expect("makes a folder");
            fs::copy(library, to).expect("copies a library");
        }
    }
    fs::create_dir(layer.join("mnt")).expect("makes a folder");
    fs::write(layer.join("anothers"), "another's\n").expect("writes");
    chown(layer.join("anothers"), Some(1000), Some(1000)).expect("chown");
    fs::set_permissions(layer.join("anothers"), fs::Permissions::from_mode(0o600)).expect("chmod");
    device(&layer.join("node"));
    set_user_id(&layer.join("suid"), 0);
}

/// A volume with bait, its files owned by ids from `base` on.
pub fn volume(dir: &Path, map: IdMap, base: u32) -> PathBuf {
    let volume = dir.join("volume");
    if volume.exists() {
        return volume;
    }
    fs::create_dir_all(&volume).expect("makes a volume");
    chown(&volume, Some(base), Some(base)).expect("chown");
    device(&volume.join("node"));
    set_user_id(&volume.join("suid"), base);
    let theirs = volume.join("of-the-host");
    fs::write(&theirs, "the host's\n").expect("writes");
    chown(&theirs, Some(map.host_base), Some(map.host_base)).expect("chown");
    fs::set_permissions(&theirs, fs::Permissions::from_mode(0o600)).expect("chmod");
    fs::write(volume.join("planted"), "").expect("writes");
    symlink("/proc", volume.join("link")).expect("links");
    volume
}

pub fn specification(pod: &TestPod, facts: &Facts, probe: Probe, run: &str, without: &[Guard]) -> ContainerSpec {
    let mut spec = pod.spec(run, "");
    spec.args = vec!["/probe".to_owned(), ATTEMPT.to_owned(), probe.name.to_owned()];
    spec.args.push(serde_json::to_string(facts).expect("is JSON"));
    let off = |guard| without.contains(&guard);
    if off(Guard::Capabilities) {
        spec.capabilities = CAPABILITIES.map(String::from).to_vec();
    }
    if probe.guard == Guard::TaskLimit && !off(Guard::TaskLimit) {
        spec.limits.pids = FEW_TASKS;
    }
    if probe.guard == Guard::MemoryLimit && !off(Guard::MemoryLimit) {
        spec.limits.memory_bytes = Some(LITTLE);
    }
    let source = volume(pod.dir(), pod.map, 0);
    let read_only = probe.guard == Guard::ReadOnlyVolume && !off(Guard::ReadOnlyVolume);
    let bind = |target: &str| Mount {
        source: source.clone(),
        target: target.into(),
        read_only,
        kind: MountKind::IdmappedBind,
    };
    spec.mounts.push(bind("/volume"));
    if probe.links() {
        spec.mounts.push(bind("/volume/link"));
    }
    if probe.guard == Guard::VolumeSize {
        let size = if off(Guard::VolumeSize) { LITTLE * 4 } else { LITTLE };
        let kind = MountKind::Tmpfs { size };
        spec.mounts.push(Mount { source: PathBuf::new(), target: "/files".into(), read_only: false, kind });
    }
    spec.without = without.iter().filter_map(|g| if let Guard::Of(p) = g { Some(*p) } else { None }).collect();
    spec
}

/// The start was refused because of where a link led a mount, or could have.
fn refused_the_link(error: &impl std::fmt::Display) -> bool {
    let text = error.to_string();
    text.contains("is a link in") || text.contains("something else is mounted at")
}

/// What a probe said, or what ended it.
pub fn answer_of(state: ContainerState, log: &Path) -> String {
    if matches!(state, ContainerState::Exited { signal: Some(libc::SIGKILL), .. }) {
        return "SIGKILL".to_owned();
    }
    let answer = read_log(log, "stdout").trim().to_owned();
    if answer.is_empty() { format!("{state:?}: {}", read_log(log, "stderr")) } else { answer }
}

/// What a probe answers without these protections.
async fn answer(pod: &TestPod, facts: &Facts, probe: Probe, run: &str, without: &[Guard]) -> Result<String, String> {
    let mut facts = facts.clone();
    let victims_name = format!("victim-{run}");
    let victim =
        pod.pod.start_container(pod.spec(&victims_name, "exec sleep 1000")).await.map_err(|e| e.to_string())?;
    let ContainerState::Running { pid, .. } = victim.state else { return Err("the victim does not run".to_owned()) };
    facts.victim = pid as i32;
    let spec = specification(pod, &facts, probe, run, without);
    let log = spec.log_path.clone();
    let answer = match pod.pod.start_container(spec).await {
        Ok(_) => answer_of(pod.ended(run).await.state, &log),
        Err(e) if probe.links() && refused_the_link(&e) => "not started".to_owned(),
        Err(e) => return Err(format!("{run}: {e}")),
    };
    // The effect is looked at from outside where it can be.
    if probe.name.starts_with("kill a process") {
        if answer == "succeeds" {
            until("the victim is killed", || !alive(pid)).await;
        } else if !alive(pid) {
            return Err("the victim was killed all the same".to_owned());
        }
    }
    Ok(answer)
}

/// A pod that is, or is not, in the network namespace of this process.
async fn pod_for(ctx: &Ctx, without: &[Guard]) -> Result<TestPod, String> {
    if !without.contains(&Guard::NetworkNamespace) {
        return Ok(ctx.pod().await);
    }
    let own = fs::File::open("/proc/self/ns/net").map_err(|e| e.to_string())?;
    Ok(ctx.pod_with(|made| made.netns = own.into()).await)
}

/// What the row says of this host.
pub fn expected(answer: &str) -> &str {
    let Some((v1, v2)) = answer.split_once(", ") else { return answer };
    let pure = fs::exists("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    if pure { v2.trim_end_matches(" on v2") } else { v1.trim_end_matches(" on v1") }
}

/// Makes a probe without its protection, with that one alone, and under all of them.
pub async fn show(ctx: &Ctx, facts: &Facts, probe: Probe) -> Result<(), String> {
    let mut off = probe.besides.to_vec();
    off.push(probe.guard);
    let mut wrong = Vec::new();
    let runs: [(&str, &[Guard], &str); 3] =
        [("off", &off, "succeeds"), ("alone", probe.besides, probe.alone), ("all", &[], probe.refused)];
    for (run, without, expected_answer) in runs {
        let pod = pod_for(ctx, without).await?;
        let found = answer(&pod, facts, probe, run, without).await.unwrap_or_else(|e| e);
        if found != expected(expected_answer) {
            wrong.push(format!("{run}: {found}, not {}", expected(expected_answer)));
        }
        pod.destroy().await;
    }
    if wrong.is_empty() { Ok(()) } else { Err(format!("{}: {}", probe.name, wrong.join("; "))) }
}
