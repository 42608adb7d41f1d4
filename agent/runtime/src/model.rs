//! What a pod, a container and an exec are to this crate: the types of its public interface, which are also what
//! travels to a shim (as JSON, so that a shim of an older release still understands a newer agent).

use std::{os::fd::OwnedFd, path::PathBuf, time::SystemTime};

use hearth_types::lease::Deadline;
use serde::{Deserialize, Serialize};

/// Number of user and group ids of a pod: what an ordinary image expects (0 to 65535, with `nobody` at 65534).
pub const IDS_PER_POD: u32 = 65_536;

/// The ids of the host that a pod's ids 0.. stand for.
///
/// # Guarantees
/// A pod whose `host_base` is below [`IDS_PER_POD`] is refused: id 0 of a pod is never id 0 of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMap {
    /// First id on the host.
    pub host_base: u32,
    /// How many ids; [`IDS_PER_POD`] unless there is a reason.
    pub size: u32,
}

/// Limits of a pod as a whole, on top of those of its containers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodLimits {
    /// Bytes of memory, page cache included; none is no limit.
    pub memory_bytes: Option<u64>,
    /// Thousandths of a CPU.
    pub cpu_millis: Option<u64>,
    /// Share of CPU among pods under contention, in thousandths of a CPU; none is the least.
    #[serde(default)]
    pub cpu_request_millis: Option<u64>,
    /// Number of tasks (processes and threads).
    pub pids: Option<u64>,
}

/// A pod to make: identity, network and the files that its containers share.
#[derive(Debug)]
pub struct PodSandbox {
    /// Unique id of the pod; names its directory and cgroup, so only `[A-Za-z0-9_-]`, up to 63 bytes.
    pub uid: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// Host name seen inside.
    pub hostname: String,
    /// The network namespace. The shim enters it, so that it lives as long as the pod and is bind-mounted nowhere.
    pub netns: OwnedFd,
    /// User and group ids.
    pub id_map: IdMap,
    /// Content of `/etc/resolv.conf`.
    pub resolv_conf: String,
    /// Content of `/etc/hosts`.
    pub hosts: String,
    /// Limits of the whole pod.
    pub limits: PodLimits,
    /// It is of another owner than the device's, and shares with all of those what [`Runtime::limit_guests`](crate::Runtime::limit_guests)
    /// allows.
    pub guest: bool,
    /// All containers of the pod are in one PID namespace, whose first process is the shim's; it reaps what they leave behind.
    pub share_processes: bool,
    /// Volumes in memory, which are there as long as the pod.
    pub memory: Vec<MemoryVolume>,
    /// It has volumes that it may write for a time only: its shim ends it by itself once that is over.
    pub lease: Option<PodLease>,
}

/// Until when a pod may run. See [`hearth_types::lease`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodLease {
    /// Which volumes in which epochs, as the agent has it: whoever finds the pod knows by it whether it is the same lease.
    pub of: String,
    /// By [`boot_time`](crate::boot_time).
    pub deadline: Deadline,
}

/// A volume of a pod in memory. Its pages count against the limits of who writes them, and of the pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryVolume {
    /// Name, unique in the pod, as that of a container.
    pub name: String,
    /// Upper bound in bytes, more than 0; none is the kernel's own: half of the machine's memory.
    pub size_bytes: Option<u64>,
    /// The group of the pod's that it belongs to and hands down; none is 0, and nothing is handed down.
    pub group: Option<u32>,
}

/// What pods of other owners may take together. `None` is no limit but that of the instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GuestLimits {
    /// Memory in bytes.
    pub memory_bytes: Option<u64>,
    /// CPU time in thousandths of a core.
    pub cpu_millis: Option<u64>,
}

/// What a mount puts into a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountKind {
    /// A directory or file of the host. Ids on disk are the container's own: root inside writes files of uid 0.
    IdmappedBind,
    /// What is at `path` beneath the directory of the host: no link on the way leads out of it, whatever a container makes there meanwhile.
    /// A kind of its own, so that a shim of an older release refuses it and does not mount the whole directory.
    SubPath {
        /// Relative, without `..`.
        path: PathBuf,
        /// Where it is missing, directories are made, with the mode of the whole; else that is an error.
        create: bool,
    },
    /// A volume of the pod in memory.
    Memory {
        /// Its name, as in [`PodSandbox::memory`].
        volume: String,
        /// What is mounted of it, as of a [`MountKind::SubPath`], made where it is missing; none is the whole.
        path: Option<PathBuf>,
    },
    /// Memory, owned by the container's root, mode 1777.
    Tmpfs {
        /// Upper bound in bytes.
        size: u64,
    },
}

/// A mount of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Where it comes from on the host; unused by [`MountKind::Tmpfs`] and [`MountKind::Memory`].
    pub source: PathBuf,
    /// Absolute path in the container; symbolic links of the image are followed inside its root only.
    pub target: PathBuf,
    /// No writes.
    pub read_only: bool,
    /// What it is.
    pub kind: MountKind,
}

/// Limits of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of memory, page cache included, no swap on top; none is no limit.
    pub memory_bytes: Option<u64>,
    /// Thousandths of a CPU; none is no limit.
    pub cpu_millis: Option<u64>,
    /// Share of CPU under contention, in thousandths of a CPU (the request of the container); none is the least.
    pub cpu_request_millis: Option<u64>,
    /// Number of tasks (processes and threads), at least 4.
    pub pids: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { memory_bytes: None, cpu_millis: None, cpu_request_millis: None, pids: 1024 }
    }
}

/// How large logs on disk may grow: `max_files` files (the current one included) of about `max_bytes` each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogPolicy {
    /// Bytes after which the log is renamed to `.1`.
    pub max_bytes: u64,
    /// Number of files kept, at least 1; 1 means that a full log is emptied.
    pub max_files: u32,
}

impl Default for LogPolicy {
    fn default() -> Self {
        Self { max_bytes: 10 << 20, max_files: 3 }
    }
}

/// A container to start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Name, unique in the pod: `[A-Za-z0-9_.-]`, up to 63 bytes.
    pub name: String,
    /// Counts the starts of this container; (name, attempt) is unique in the pod.
    pub attempt: u32,
    /// Unpacked layers, bottom first, owned by the image's own ids.
    pub layers: Vec<PathBuf>,
    /// Directory of this attempt's writable layer, made if absent, deleted by
    /// [`Pod::remove_container`](crate::Pod::remove_container).
    pub scratch: PathBuf,
    /// Program and arguments; a program without a slash is looked for in `PATH`.
    pub args: Vec<String>,
    /// Environment. `PATH`, `HOME` and `HOSTNAME` are added where absent.
    pub env: Vec<(String, String)>,
    /// Working directory, made if absent; empty is `/`.
    pub cwd: String,
    /// The image's user: empty, `uid`, `uid:gid`, `name` or `name:group`, looked up in the root file system.
    pub user: String,
    /// Overrides the user.
    pub run_as_user: Option<u32>,
    /// Overrides the group.
    pub run_as_group: Option<u32>,
    /// Groups besides those of the image's user.
    #[serde(default)]
    pub groups: Vec<u32>,
    /// Mounts, made in this order, after the default ones.
    pub mounts: Vec<Mount>,
    /// Limits.
    pub limits: Limits,
    /// `oom_score_adj` of its processes and of commands in it (proc(5)): the higher, the sooner the kernel kills them where memory is short.
    /// From 0 to 1000, above that of shims, which is -900. One of an older agent says nothing.
    #[serde(default = "older_oom_score_adj")]
    pub oom_score_adj: i32,
    /// Capabilities asked for, like `CAP_NET_BIND_SERVICE`; all others are dropped. They count inside the pod's user namespace.
    pub capabilities: Vec<String>,
    /// The root file system cannot be written.
    pub read_only_root: bool,
    /// File of the log; its directory is made if absent.
    pub log_path: PathBuf,
    /// Size of the logs.
    pub log: LogPolicy,
    /// Where the container finds a file of its own for its last message: an absolute path, in `/dev` only `/dev/termination-log`. On the
    /// host it is [`TERMINATION_LOG`] in `scratch`, made new, and stays until [`Pod::remove_container`](crate::Pod::remove_container). A
    /// shim of an older release makes none.
    #[serde(default)]
    pub termination_log: Option<PathBuf>,
    /// Its first process has an input that [`Pod::attach`](crate::Pod::attach) leads to; without it, `/dev/null`.
    #[serde(default)]
    pub stdin: bool,
    /// That input ends with the first who had it.
    #[serde(default)]
    pub stdin_once: bool,
    /// Its first process has a terminal, and one output.
    #[serde(default)]
    pub terminal: bool,
    /// The container of the pod whose PID namespace it joins, which has to run, and with which all that runs in it ends; none is one of its
    /// own, or the pod's where its containers share one. A shim of an older release refuses it.
    #[serde(default)]
    pub processes_of: Option<String>,
    /// What the container is to do without; in builds for tests only.
    #[cfg(feature = "unprotected")]
    #[serde(default)]
    pub without: Vec<crate::Protection>,
}

/// What all containers had before each had its own.
pub(crate) fn older_oom_score_adj() -> i32 {
    100
}

/// Name of the file with a container's last message in [`ContainerSpec::scratch`]. Its content is the container's: it may be of any size and
/// have any bytes.
pub const TERMINATION_LOG: &str = "termination-log";

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
}

/// A command to run inside a running container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecSpec {
    /// Name of the container.
    pub container: String,
    /// Program and arguments.
    pub args: Vec<String>,
    /// Added to the container's environment.
    pub env: Vec<(String, String)>,
    /// Working directory; none is the container's.
    pub cwd: Option<String>,
    /// User, as in [`ContainerSpec::user`]; none is the container's.
    pub user: Option<String>,
    /// A terminal of this size; none is pipes.
    pub terminal: Option<WindowSize>,
    /// Whether there is input; without it, `/dev/null`.
    pub stdin: bool,
}

/// What became of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerState {
    /// The entrypoint was exec'd and runs.
    Running {
        /// Pid on the host.
        pid: u32,
        /// When it was exec'd.
        started_at: SystemTime,
    },
    /// It ended. Neither code nor signal means that nobody could tell: the shim was killed first.
    Exited {
        /// Exit code, 0 to 255.
        exit_code: Option<i32>,
        /// Signal that ended it.
        signal: Option<i32>,
        /// The kernel killed a process of the container for want of memory.
        oom_killed: bool,
        /// When it was exec'd.
        started_at: SystemTime,
        /// When it was reaped.
        finished_at: SystemTime,
    },
}

/// A container of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// Name.
    pub name: String,
    /// Attempt.
    pub attempt: u32,
    /// State.
    pub state: ContainerState,
}

/// What processes have used, and use: CPU time since their cgroup was made, and memory now. None where the kernel does not tell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Nanoseconds of CPU time.
    pub cpu_nanos: Option<u64>,
    /// Bytes of memory without file pages that nobody used lately.
    pub working_set_bytes: Option<u64>,
}

/// Something happened to a pod. A hint: [`Pod::status`](crate::Pod::status) says what is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodEvent {
    /// A container ended; its logs and its exit file are written.
    Exited(ContainerStatus),
    /// Events may have been missed: ask for the status.
    Resync,
    /// The shim is gone and with it all control over the containers: destroy the pod.
    ShimGone,
}

/// A pod whose shim was killed while no agent ran. Its processes were killed and its cgroups removed on adoption.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadPod {
    /// Unique id of the pod.
    pub uid: String,
    /// Namespace of the pod; empty where the record could not be read.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// Its containers, all exited; those that ran when the shim died have neither code nor signal.
    pub containers: Vec<ContainerStatus>,
}

/// What a start of the agent found of the one before.
#[derive(Debug, Default)]
pub struct Adopted {
    /// Pods with a living shim.
    pub pods: Vec<crate::Pod>,
    /// Pods whose shim died. Their directory stays until [`Runtime::forget`](crate::Runtime::forget).
    pub dead: Vec<DeadPod>,
    /// Pods that could not be adopted, and why. Nothing was done to them: their containers may run.
    pub failed: Vec<UnadoptedPod>,
}

/// A pod of the agent before that could not be adopted.
#[derive(Debug)]
pub struct UnadoptedPod {
    /// Unique id of the pod.
    pub uid: String,
    /// Why.
    pub error: crate::RuntimeError,
    /// A handle where its shim lives: it may answer later.
    pub pod: Option<crate::Pod>,
}

/// What `teardown` removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TeardownReport {
    /// Processes killed.
    pub processes: usize,
    /// Cgroup directories removed, over all hierarchies.
    pub cgroups: usize,
    /// Mounts detached.
    pub mounts: usize,
    /// Pod directories removed.
    pub pods: usize,
}
