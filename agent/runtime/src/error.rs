//! Errors of the runtime.

use std::{io, path::PathBuf};

use serde::{Deserialize, Serialize};

/// Why a container or an exec did not start. Travels from the shim, so it is plain data.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum StartError {
    /// The program is not in the image, or its interpreter is not.
    #[error("{program}: no such file in the container")]
    NoSuchFile {
        /// As asked for.
        program: String,
    },
    /// The program may not be executed, or is not a program of this machine.
    #[error("{program}: cannot be executed: {reason}")]
    NotExecutable {
        /// As asked for.
        program: String,
        /// Text of the errno.
        reason: String,
    },
    /// The user is not in the image's `/etc/passwd`.
    #[error("user {user:?} is not in the image's /etc/passwd")]
    NoSuchUser {
        /// As asked for.
        user: String,
    },
    /// The group is not in the image's `/etc/group`.
    #[error("group {group:?} is not in the image's /etc/group")]
    NoSuchGroup {
        /// As asked for.
        group: String,
    },
    /// The working directory cannot be used.
    #[error("working directory {cwd:?}: {reason}")]
    WorkingDirectory {
        /// As asked for.
        cwd: String,
        /// Why.
        reason: String,
    },
    /// A mount could not be made.
    #[error("mount {source_path:?} at {target:?}: {reason}")]
    Mount {
        /// On the host.
        source_path: PathBuf,
        /// In the container.
        target: PathBuf,
        /// Why.
        reason: String,
    },
    /// The root file system could not be made.
    #[error("root file system: {reason}")]
    RootFs {
        /// Step and cause.
        reason: String,
    },
    /// What is to be mounted of a volume is not there, or leads out of it.
    #[error("cannot mount {path:?} of the volume at {}: {reason}", .target.display())]
    SubPath {
        /// Path in the volume.
        path: PathBuf,
        /// Path in the container.
        target: PathBuf,
        /// Why.
        reason: String,
    },
    /// A field of the specification cannot be accepted.
    #[error("{field}: {reason}")]
    Invalid {
        /// Field.
        field: String,
        /// Why.
        reason: String,
    },
    /// A cgroup could not be made or limited.
    #[error("cgroup: {reason}")]
    Cgroup {
        /// Step and cause.
        reason: String,
    },
    /// A container of this name runs, or this attempt was already made.
    #[error("container {name} (attempt {attempt}) already exists: remove it first")]
    Exists {
        /// Name.
        name: String,
        /// Attempt.
        attempt: u32,
    },
    /// There is no such running container.
    #[error("container {name} is not running")]
    NotRunning {
        /// Name.
        name: String,
    },
    /// Killed by the kernel for want of memory before its program ran: the limit is too small.
    #[error("killed for want of memory before the program started: raise the memory limit")]
    OutOfMemory,
    /// It did not get as far as its program in time.
    #[error("not started within {seconds} s")]
    Timeout {
        /// Bound.
        seconds: u64,
    },
    /// A bound of the shim was reached.
    #[error("too many {what}: at most {limit} a pod")]
    TooMany {
        /// Of what.
        what: String,
        /// Bound.
        limit: usize,
    },
    /// Isolation could not be set up; the container was not run without it.
    #[error("isolation: {reason}")]
    Isolation {
        /// Step and cause.
        reason: String,
    },
}

/// Errors of the runtime's handles.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// `fork_zygote` was called with other threads alive.
    #[error("the zygote must be forked while the process has one thread, it has {threads}: call it first in main")]
    NotSingleThreaded {
        /// Threads found.
        threads: usize,
    },
    /// Only root can make containers.
    #[error("containers need root: run the agent as root")]
    NotRoot,
    /// The seccomp profile could not be compiled: nothing is run without it.
    #[error("seccomp profile: {0}")]
    Seccomp(String),
    /// The instance's name cannot name a cgroup.
    #[error("instance {0:?} must be 1 to 32 of [a-z0-9-]")]
    BadInstance(String),
    /// A field of the sandbox cannot be accepted.
    #[error("pod {field}: {reason}")]
    BadSandbox {
        /// Field.
        field: &'static str,
        /// Why.
        reason: String,
    },
    /// A system call or file operation failed.
    #[error("{what}")]
    Io {
        /// What was tried, on what.
        what: String,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The zygote is gone; the agent has to execute itself again.
    #[error("the zygote is gone: restart the agent")]
    ZygoteGone,
    /// The zygote or the shim could not make the pod.
    #[error("pod {uid}: {reason}")]
    CreatePod {
        /// Pod.
        uid: String,
        /// Why.
        reason: String,
    },
    /// The pod's shim is gone.
    #[error("the shim of pod {uid} is gone")]
    ShimGone {
        /// Pod.
        uid: String,
    },
    /// The shim speaks another protocol.
    #[error(
        "the shim of pod {uid} speaks protocol {theirs}, this agent {ours}: drain the pod with the agent that made it"
    )]
    Version {
        /// Pod.
        uid: String,
        /// Theirs.
        theirs: u32,
        /// Ours.
        ours: u32,
    },
    /// A record on disk cannot be used.
    #[error("pod {uid}: its record is not this agent's to clear")]
    Record {
        /// Pod.
        uid: String,
        /// Why.
        #[source]
        source: crate::record::RecordError,
    },
    /// The shim sent or got something that is not the protocol.
    #[error("protocol with the shim of pod {uid}: {reason}")]
    Protocol {
        /// Pod.
        uid: String,
        /// What.
        reason: String,
    },
    /// The container or exec did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// There is no such container.
    #[error("pod {uid} has no container {name}")]
    NoSuchContainer {
        /// Pod.
        uid: String,
        /// Container.
        name: String,
    },
    /// The container runs.
    #[error("container {name} of pod {uid} still runs: stop it first")]
    StillRunning {
        /// Pod.
        uid: String,
        /// Container.
        name: String,
    },
    /// The shim refused or failed.
    #[error("pod {uid}: {reason}")]
    Refused {
        /// Pod.
        uid: String,
        /// Why.
        reason: String,
    },
    /// Processes of a cgroup did not go away.
    #[error("cgroup {path:?} still has {processes} processes after SIGKILL; they may hang in the kernel")]
    Unkillable {
        /// Cgroup.
        path: PathBuf,
        /// How many.
        processes: usize,
    },
}

impl RuntimeError {
    /// Wraps an I/O error with what was tried.
    pub(crate) fn io(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Io { what: what.into(), source: source.into() }
    }
}

/// A step that failed, as text for one who cannot see our types: `what: cause`.
pub(crate) fn because(what: &str, err: impl std::fmt::Display) -> String {
    format!("{what}: {err}")
}
