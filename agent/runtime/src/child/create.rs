//! The helper that makes a container: mounts its root, then lets libcontainer make and start its first process, as a
//! sibling, so that the shim is the parent.

use std::{
    fs,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use libcontainer::{
    container::builder::ContainerBuilder,
    oci_spec::runtime::Spec,
    syscall::syscall::SyscallType,
    workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError},
};
use nix::{
    mount::{MntFlags, umount2},
    sched::{CloneFlags, unshare},
    unistd::pivot_root,
};
use serde::{Deserialize, Serialize};

use super::{
    caps, invalid,
    launch::{DEFAULT_PATH, Launch},
    oci,
    rootfs::{self, Mounted, Root},
    source,
    user::{self, Ids},
};
use crate::{
    error::{StartError, because},
    features,
    model::{ContainerSpec, Mount, MountKind, TERMINATION_LOG, WindowSize},
    shim::{MEMORY, Sandbox, TheirEnds, container_id},
    sys,
    unprotected::{Protection, lacks},
    wire::{self, HelperMsg},
};

/// What an exec needs to know of its container; `exec.json` in the container's directory of the shim's private root.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ExecContext {
    pub(super) env: Vec<(String, String)>,
    pub(super) cwd: String,
    pub(super) ids: Ids,
    pub(super) caps: caps::CapSet,
    /// Of a container that a shim of an older release made, what all had then.
    #[serde(default = "crate::model::older_oom_score_adj")]
    pub(super) oom_score_adj: i32,
}

fn isolation<E: std::fmt::Display>(what: &'static str) -> impl Fn(E) -> StartError {
    move |e| StartError::Isolation { reason: because(what, e) }
}

/// The size of a terminal that nobody is attached to yet, as of every terminal since the VT100.
const DEFAULT_SIZE: WindowSize = WindowSize { rows: 24, cols: 80 };
/// Error texts of libcontainer can be long; a message has room for less.
const MAX_REASON: usize = 2000;

/// An error with its causes, as libcontainer's top ones say little.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(c) = cause {
        let c_text = c.to_string();
        if !text.contains(&c_text) {
            text = format!("{text}: {c_text}");
        }
        cause = c.source();
    }
    text.chars().take(MAX_REASON).collect()
}

/// The helper's life. `joined` is the PID namespace of another container, where it is to be in that.
pub(crate) fn run(
    sandbox: &Sandbox,
    spec: &ContainerSpec,
    channel: OwnedFd,
    ends: TheirEnds,
    joined: Option<OwnedFd>,
) -> i32 {
    let made = make(sandbox, &with_termination_log(spec), &channel, ends, joined.as_ref());
    let (message, code) = match made {
        Ok(()) => return 0,
        Err(e) => (HelperMsg::Failed(e), 1),
    };
    let _ = wire::send_message(channel.as_fd(), &message, &[]);
    code
}

fn make(
    sandbox: &Sandbox,
    spec: &ContainerSpec,
    channel: &OwnedFd,
    ends: TheirEnds,
    joined: Option<&OwnedFd>,
) -> Result<(), StartError> {
    let namespaces = [&sandbox.userns, &sandbox.ipcns, &sandbox.utsns];
    let mut keep: Vec<_> = namespaces.iter().map(|fd| fd.as_raw_fd()).collect();
    let pidns = joined.or(sandbox.pause.as_ref().map(|pause| &pause.pidns));
    keep.extend(pidns.map(AsRawFd::as_raw_fd));
    keep.extend([channel.as_raw_fd(), ends.stdout.as_raw_fd(), ends.stderr.as_raw_fd()]);
    keep.extend(ends.stdin.iter().map(AsRawFd::as_raw_fd));
    if !lacks(spec, Protection::ClosedDescriptors) {
        // SAFETY: this process was just forked for one container; the shim's other descriptors are never touched in it.
        unsafe { sys::close_all_but(&keep) }.map_err(isolation("close descriptors of the shim"))?;
    }

    super::limit_files()?;
    let id = container_id(&spec.name, spec.attempt);
    let cgroup = sandbox.cgroup.join(&id);
    let no_cgroup = |e: std::io::Error| StartError::Cgroup { reason: e.to_string() };
    if spec.scratch.exists() {
        // Of a start of this attempt that was cut off; what is left of it must not use the layer that is made anew.
        sandbox.cgroups.kill(&cgroup).map_err(|e| StartError::Cgroup { reason: e.to_string() })?;
        rootfs::clear_stale(&spec.scratch)?;
    }
    sandbox.cgroups.create(&cgroup).map_err(no_cgroup)?;
    sandbox.cgroups.limit_container(&cgroup, &spec.limits).map_err(no_cgroup)?;
    // Without a user namespace, libcontainer makes device nodes instead of binding the host's.
    let late = lacks(spec, Protection::UserNamespace) && !lacks(spec, Protection::DeviceFilter);
    let devices = late.then(|| sandbox.cgroups.open_devices(&cgroup)).transpose().map_err(isolation("open devices"))?;
    if devices.is_none() && !lacks(spec, Protection::DeviceFilter) {
        sandbox.cgroups.deny_devices(&cgroup).map_err(isolation("deny devices"))?;
    }

    unshare(CloneFlags::CLONE_NEWNS).map_err(isolation("unshare the mount namespace"))?;
    let (ids, caps) = prepare_root(sandbox, spec, &sandbox.mnt.join("c").join(&id))?;
    let writable_view = lacks(spec, Protection::ReadOnlyCgroup);
    let own_view = sandbox.cgroups.own_view(&cgroup, writable_view);
    if let Some(own_view) = &own_view {
        let read_only = if writable_view { 0 } else { sys::MOUNT_ATTR_RDONLY };
        rootfs::attach(own_view, &sandbox.mnt.join("c").join(&id).join("cgroup"), read_only)
            .map_err(isolation("show the container its cgroup"))?;
    }
    // Last, since the container pays for what is in its cgroup; libcontainer's processes are born there.
    sandbox.cgroups.enter(&cgroup).map_err(no_cgroup)?;
    enter_private_root(&sandbox.mnt)?;

    let dir = Path::new("/c").join(&id);
    let env = environment(spec, &ids, &sandbox.config.hostname);
    let oom_score_adj = spec.oom_score_adj.clamp(0, 1000);
    let context = ExecContext { env: env.clone(), cwd: spec.cwd.clone(), ids: ids.clone(), caps, oom_score_adj };
    let context = serde_json::to_vec(&context).map_err(isolation("describe the container for execs"))?;
    fs::write(dir.join("exec.json"), context).map_err(isolation("describe the container for execs"))?;

    let by_fd = |fd: &OwnedFd| PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    let parts = oci::Parts {
        spec,
        dir: &dir,
        env: &env,
        ids: &ids,
        caps,
        cgroup,
        namespaces: namespaces.map(by_fd),
        pidns: pidns.map(by_fd),
        cgroup_view: own_view.is_some(),
    };
    let oci = oci::build(&parts).map_err(isolation("build the specification"))?;
    oci.save(dir.join("config.json")).map_err(isolation("write the specification"))?;
    let mut launch = Launch::new(&spec.args, &env, channel.as_raw_fd())?;
    if pidns.is_none() {
        // Who shares processes with others is to see their files.
        launch = launch.confined();
    }
    if sandbox.config.lease.is_some() {
        launch = launch.ending_with_shim();
    }
    let launch = launch.without(spec);
    start(&id, &dir, Program { launch, terminal: spec.terminal }, devices, channel, ends)
}

/// With the file for the last message among its mounts: the last, so that it may lie in a volume.
fn with_termination_log(spec: &ContainerSpec) -> ContainerSpec {
    let mut spec = spec.clone();
    if let Some(target) = spec.termination_log.clone() {
        let source = spec.scratch.join(TERMINATION_LOG);
        spec.mounts.push(Mount { source, target, read_only: false, kind: MountKind::IdmappedBind });
    }
    spec
}

fn start(
    id: &str,
    dir: &Path,
    program: Program,
    devices: Option<crate::cgroup::OpenDevices>,
    channel: &OwnedFd,
    ends: TheirEnds,
) -> Result<(), StartError> {
    let failed = |e: libcontainer::error::LibcontainerError| StartError::Isolation { reason: chain(&e) };
    let stdin = match ends.stdin {
        Some(stdin) => stdin,
        None => fs::File::open("/dev/null").map_err(isolation("open /dev/null"))?.into(),
    };
    let mut container = ContainerBuilder::new(id.to_owned(), SyscallType::default())
        .with_root_path("/lc")
        .map_err(failed)?
        .with_executor(program)
        .with_stdin(stdin)
        .with_stdout(ends.stdout)
        .with_stderr(ends.stderr)
        .validate_id()
        .map_err(failed)?
        .as_init(dir)
        .with_systemd(false)
        .with_detach(true)
        .as_sibling(true)
        .build()
        .map_err(failed)?;
    if let Some(devices) = devices {
        devices.deny().map_err(isolation("deny devices"))?;
    }
    let pid = container.pid().ok_or_else(|| invalid("container", "it has no process"))?.as_raw();
    wire::send_message(channel.as_fd(), &HelperMsg::Created { pid }, &[]).map_err(isolation("report to the shim"))?;
    container.start().map_err(failed)
}

/// Mounts the root and the volumes and puts in place what they need. Returns who the program runs as, with what.
fn prepare_root(sandbox: &Sandbox, spec: &ContainerSpec, dir: &Path) -> Result<(Ids, caps::CapSet), StartError> {
    let map = sandbox.config.id_map;
    if lacks(spec, Protection::ReadOnlySys) {
        rootfs::make_writable(&sandbox.mnt.join("sysfs")).map_err(isolation("make /sys writable"))?;
    }
    fs::create_dir(dir).map_err(isolation("make the container's directory"))?;
    rootfs::mount_overlay(spec, dir, map, sandbox.userns(), features::layer_paths())?;
    if spec.termination_log.is_some() {
        rootfs::make_termination_log(&spec.scratch)
            .map_err(|e| StartError::RootFs { reason: because("make the file for the last message", e) })?;
    }
    let path = dir.join("rootfs");
    let root = Root::open(&path, map).map_err(isolation("open the root"))?;
    for name in ["resolv.conf", "hosts", "hostname"] {
        root.make_etc_file(name)
            .map_err(|e| StartError::RootFs { reason: format!("put /etc/{name} in place: {e}") })?;
    }
    let mut mounted = Vec::new();
    for (n, volume) in spec.mounts.iter().enumerate() {
        let failed = |e: std::io::Error| StartError::Mount {
            source_path: volume.source.clone(),
            target: volume.target.clone(),
            reason: e.to_string(),
        };
        root.check_target(&volume.target).map_err(failed)?;
        let target = if lacks(spec, Protection::CheckedTargets) {
            volume.target.clone()
        } else {
            root.check_nested(&volume.target, &mounted).map_err(failed)?
        };
        let source = source::open(volume, &sandbox.mnt.join(MEMORY), map)?;
        if let Some(source) = &source {
            rootfs::attach_volume(spec, volume, source, sandbox.userns(), &dir.join(format!("v{n}")))?;
        }
        mounted.push(Mounted { target, volume: source });
    }
    if !spec.cwd.is_empty() && !is_below_mount(spec) {
        root.make_dir(Path::new(&spec.cwd))
            .map_err(|e| StartError::WorkingDirectory { cwd: spec.cwd.clone(), reason: e.to_string() })?;
    }
    let run_as = (spec.run_as_user, spec.run_as_group);
    let mut ids = user::resolve(root.fd.as_fd(), &spec.user, run_as, map.size)?;
    ids.add(&spec.groups);
    let host = caps::bounding().map_err(isolation("read the host's capabilities"))?;
    Ok((ids, caps::parse(&spec.capabilities)? & host))
}

/// Whether the working directory is on a mount: then it has to be there.
fn is_below_mount(spec: &ContainerSpec) -> bool {
    let cwd = Path::new(&spec.cwd);
    spec.mounts.iter().any(|m| cwd.starts_with(&m.target)) || rootfs::check_target(cwd).is_err()
}

/// From here on the host's files cannot be reached by any path: the pod's small root becomes the root.
fn enter_private_root(mnt: &Path) -> Result<(), StartError> {
    std::env::set_current_dir(mnt).map_err(isolation("enter the private root"))?;
    pivot_root(".", ".").map_err(isolation("pivot to the private root"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(isolation("leave the host's root"))?;
    std::env::set_current_dir("/").map_err(isolation("enter the private root"))
}

/// The environment, with what every program expects.
fn environment(spec: &ContainerSpec, ids: &Ids, hostname: &str) -> Vec<(String, String)> {
    let mut env = spec.env.clone();
    for (name, value) in [("PATH", DEFAULT_PATH), ("HOME", &ids.home), ("HOSTNAME", hostname)] {
        if !env.iter().any(|(k, v)| k == name && !v.is_empty()) {
            env.retain(|(k, _)| k != name);
            env.push((name.to_owned(), value.to_owned()));
        }
    }
    env
}

/// Runs the program as libcontainer's last step.
#[derive(Clone)]
struct Program {
    launch: Launch,
    terminal: bool,
}

impl Executor for Program {
    fn exec(&self, _: &Spec) -> Result<(), ExecutorError> {
        if self.terminal {
            // It leads one already, unless libcontainer leaves that to its program.
            let _ = nix::unistd::setsid();
            let made = super::exec::terminal(DEFAULT_SIZE, self.launch.channel());
            if let Err(e) = made.map_err(isolation("make a terminal")) {
                self.launch.say(&HelperMsg::Failed(e.clone()));
                return Err(ExecutorError::Other(e.to_string()));
            }
        }
        Err(ExecutorError::Other(self.launch.go().to_string()))
    }

    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        Ok(())
    }

    /// The environment is passed to execve; that of this process does not matter.
    fn setup_envs(&self, _: std::collections::HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        Ok(())
    }
}
