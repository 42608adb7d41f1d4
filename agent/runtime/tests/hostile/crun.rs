//! The same probes under Debian's crun, with the same root file system, volume, limits, namespaces, masked and read-only
//! paths and profile of system calls; all else as `crun spec` has it. crun shifts no ids of a root file system: it gets a copy with other owners.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, lchown},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use hearth_runtime::{IDS_PER_POD, IdMap};
use serde_json::{Value, json};

use crate::{
    ATTEMPT,
    attempts::Facts,
    containers::{expected, volume},
    page, paths,
    probes::{self, FEW_TASKS, Guard, LITTLE, Probe},
    support::Ctx,
    table,
};

/// Names of system calls by number, of the package linux-libc-dev.
const NAMES: &str = "/usr/include/x86_64-linux-gnu/asm/unistd_64.h";
const IDS: IdMap = IdMap { host_base: 999 * IDS_PER_POD, size: IDS_PER_POD };

/// crun, and what is needed to tell it the profile.
pub fn is_installed() -> bool {
    cfg!(target_arch = "x86_64")
        && Path::new(NAMES).exists()
        && Command::new("crun").arg("--version").stdout(Stdio::null()).status().is_ok_and(|s| s.success())
}

/// The profile of `hearth_runtime` in the form of the OCI specification.
fn profile() -> Value {
    let header = fs::read_to_string(NAMES).expect("linux-libc-dev is installed");
    let name = |nr: libc::c_long| {
        let number = nr.to_string();
        header.lines().find_map(|line| {
            let (name, is) = line.strip_prefix("#define __NR_")?.split_once(' ')?;
            (is == number).then_some(name)
        })
    };
    let numbers = [table::ALLOWED, table::ALLOWED_NATIVE, table::ALLOWED_NEW].concat();
    let names: Vec<_> = numbers.into_iter().filter_map(name).collect();
    let equal = |call: &str, value: u64| json!({"names": [call], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": value, "op": "SCMP_CMP_EQ"}]});
    let mut rules = vec![
        json!({"names": names, "action": "SCMP_ACT_ALLOW"}),
        json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::ENOSYS}),
        json!({"names": ["clone"], "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 0, "value": 0x7e02_0000, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]}),
    ];
    rules.extend([0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff].map(|value| equal("personality", value)));
    let denied = [libc::AF_VSOCK, libc::AF_ALG].map(|family| family as u64);
    rules.extend((0..46).filter(|family| !denied.contains(family)).map(|family| equal("socket", family)));
    json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "architectures": ["SCMP_ARCH_X86_64"], "syscalls": rules})
}

/// Gives everything in a folder to the ids that stand for its own.
fn shift(at: &Path) {
    let meta = fs::symlink_metadata(at).expect("is there");
    lchown(at, Some(IDS.host_base + meta.uid()), Some(IDS.host_base + meta.gid())).expect("root can");
    if meta.is_symlink() {
        return;
    }
    // The change of owner took the bit.
    fs::set_permissions(at, fs::Permissions::from_mode(meta.mode())).expect("root can");
    if meta.is_dir() {
        fs::read_dir(at).expect("is read").flatten().for_each(|entry| shift(&entry.path()));
    }
}

fn bundle(ctx: &Ctx, facts: &Facts, probe: Probe, n: usize) -> PathBuf {
    let base = ctx.instance.dir.path();
    // crun walks there as the container's root.
    fs::set_permissions(base, fs::Permissions::from_mode(0o711)).expect("root can");
    let root = base.join("crun/rootfs");
    let bundle = base.join(format!("crun/{n}"));
    fs::create_dir_all(&bundle).expect("makes the bundle");
    if !root.exists() {
        let copied = Command::new("cp").arg("-a").arg(base.join("layer")).arg(&root).status();
        assert!(copied.is_ok_and(|s| s.success()), "copies the layer");
        shift(&root);
    }
    let made = Command::new("crun").arg("spec").current_dir(&bundle).status().expect("crun runs");
    assert!(made.success(), "crun spec");
    let text = fs::read_to_string(bundle.join("config.json")).expect("is made");
    let mut spec: Value = serde_json::from_str(&text).expect("is JSON");
    let facts = serde_json::to_string(facts).expect("is JSON");
    spec["process"]["args"] = json!(["/probe", ATTEMPT, probe.name, facts]);
    spec["process"]["terminal"] = false.into();
    for set in ["bounding", "effective", "permitted", "inheritable", "ambient"] {
        spec["process"]["capabilities"][set] = json!([]);
    }
    spec["root"] = json!({"path": root, "readonly": false});
    let ids = json!([{"containerID": 0, "hostID": IDS.host_base, "size": IDS.size}]);
    spec["linux"]["uidMappings"] = ids.clone();
    spec["linux"]["gidMappings"] = ids;
    let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("has some");
    namespaces.retain(|n| n["type"] != "user");
    namespaces.push(json!({"type": "user"}));
    if !namespaces.iter().any(|n| n["type"] == "cgroup") {
        namespaces.push(json!({"type": "cgroup"}));
    }
    spec["linux"]["maskedPaths"] = json!(paths::MASKED);
    spec["linux"]["readonlyPaths"] = json!(paths::READ_ONLY);
    let limited = |guard, few: u64, many: u64| if probe.guard == guard { few } else { many };
    let memory = limited(Guard::MemoryLimit, LITTLE, 512 << 20);
    spec["linux"]["resources"] = json!({
        "memory": {"limit": memory, "swap": memory},
        "pids": {"limit": limited(Guard::TaskLimit, FEW_TASKS, 1024)},
        "devices": [{"allow": false, "access": "rwm"}]
    });
    spec["linux"]["seccomp"] = profile();
    let hosts = bundle.join("hosts");
    fs::write(&hosts, "127.0.0.1 localhost\n").expect("writes");
    shift(&hosts);
    let source = volume(&bundle, IDS, 0);
    let mounts = spec["mounts"].as_array_mut().expect("has some");
    let mut bind = |source: &Path, target: &str, options: &[&str]| {
        let options: Vec<_> = ["bind", "nosuid", "nodev"].iter().chain(options).collect();
        mounts.push(json!({"destination": target, "type": "bind", "source": source, "options": options}));
    };
    bind(&hosts, "/etc/hosts", &["ro"]);
    let options: &[&str] = if probe.guard == Guard::ReadOnlyVolume { &["idmap", "ro"] } else { &["idmap"] };
    bind(&source, "/volume", options);
    if probe.links() {
        bind(&source, "/volume/link", options);
    }
    if probe.guard == Guard::VolumeSize {
        let size = format!("size={LITTLE}");
        let options = ["nosuid", "nodev", "mode=1777", &size];
        mounts.push(json!({"destination": "/files", "type": "tmpfs", "source": "tmpfs", "options": options}));
    }
    fs::write(bundle.join("config.json"), spec.to_string()).expect("writes");
    bundle
}

/// Runs crun from a thread in a mount namespace without the cgroup2 of a hybrid host, which crun refuses.
fn answer(bundle: PathBuf, n: usize) -> String {
    let run = std::thread::spawn(move || {
        let none = None::<&str>;
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("root can");
        let private = nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_PRIVATE;
        nix::mount::mount(none, "/", none, private, none).expect("root can");
        let _ = nix::mount::umount("/sys/fs/cgroup/unified");
        let id = format!("hearth-hostile-{}-{n}", std::process::id());
        let mut run = Command::new("crun");
        run.args(["--cgroup-manager", "cgroupfs", "run", "--bundle"]).arg(&bundle).arg(&id).stdin(Stdio::null());
        let out = run.output().expect("crun runs");
        let _ = Command::new("crun").args(["delete", "--force", &id]).stderr(Stdio::null()).status();
        let said = String::from_utf8_lossy(&out.stdout).trim().to_owned();
        match (out.status.code(), said.is_empty()) {
            (Some(137), _) => "SIGKILL".to_owned(),
            (_, false) => said,
            (code, true) => format!("not started ({code:?}: {})", String::from_utf8_lossy(&out.stderr).trim()),
        }
    });
    run.join().expect("crun runs")
}

/// Holds the last column against what crun answers now.
pub fn compare(ctx: &Ctx, facts: &Facts) -> Result<(), String> {
    let mut facts = facts.clone();
    let mut other = Command::new("sleep").arg("1000").spawn().map_err(|e| e.to_string())?;
    facts.victim = other.id() as i32;
    let rows = page::rows();
    let (mut wrong, mut column) = (Vec::new(), Vec::new());
    for (n, probe) in probes::all().into_iter().enumerate() {
        let found = answer(bundle(ctx, &facts, probe, n), n);
        let said = rows.get(n).and_then(|row| row.get(5)).cloned().unwrap_or_default();
        if found != expected(&said) && !(said == "not started" && found.starts_with(&said)) {
            wrong.push(format!("{}: {found}, not {said:?}", probe.name));
        }
        column.push(found);
    }
    let _ = other.kill();
    let _ = other.wait();
    if wrong.is_empty() { Ok(()) } else { Err(format!("{}\nthe column:\n{}", wrong.join("\n"), column.join("\n"))) }
}
