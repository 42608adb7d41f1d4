//! Zygote, shim and containers: the only crate with unsafe code.
#![allow(unsafe_code)] // forks, namespaces, mounts and seccomp have no safe interface; each block says its reason
#![warn(clippy::undocumented_unsafe_blocks)]

mod error;
mod model;

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

pub use error::{RuntimeError, StartError};
pub use model::*;

/// Where and for whom the zygote works.
#[derive(Debug, Clone)]
pub struct ZygoteConfig {
    /// `<data-dir>/agent/run`: sockets, exit files and records of pods; made if absent.
    pub run_dir: PathBuf,
    /// Names the instance: its cgroups are `hearth-<instance>`; `[a-z0-9-]`, up to 32 bytes.
    pub instance: String,
    /// For the titles: `hearth shim --data-dir DIR <pod uid>`.
    pub data_dir: PathBuf,
}

/// A forked zygote. Dropping it ends the zygote; shims live on.
#[derive(Debug)]
pub struct Zygote;

/// Forks the zygote. Call it first thing in main, before any thread, key or lock exists.
pub fn fork_zygote(_config: &ZygoteConfig) -> Result<Zygote, RuntimeError> {
    unimplemented!("being written")
}

/// Cheap handle of the runtime.
#[derive(Debug, Clone)]
pub struct Runtime;

impl Runtime {
    /// Call it inside a tokio runtime.
    pub fn new(_zygote: Zygote) -> Result<Self, RuntimeError> {
        unimplemented!("being written")
    }
    /// Resolves when the zygote is gone.
    pub async fn zygote_exited(&self) {
        unimplemented!("being written")
    }
    /// Pid of the zygote.
    pub fn zygote_pid(&self) -> u32 {
        unimplemented!("being written")
    }
    /// Makes a pod.
    pub async fn create_pod(&self, _sandbox: PodSandbox) -> Result<Pod, RuntimeError> {
        unimplemented!("being written")
    }
    /// Finds the pods of the agent before.
    pub async fn adopt(&self) -> Result<Adopted, RuntimeError> {
        unimplemented!("being written")
    }
    /// Deletes the record of a dead pod.
    pub async fn forget(&self, _uid: &str) -> Result<(), RuntimeError> {
        unimplemented!("being written")
    }
}

/// Handle to a pod's shim; cheap to clone.
#[derive(Debug, Clone)]
pub struct Pod;

impl Pod {
    /// Unique id.
    pub fn uid(&self) -> &str {
        unimplemented!("being written")
    }
    /// Namespace of the pod.
    pub fn namespace(&self) -> &str {
        unimplemented!("being written")
    }
    /// Name of the pod.
    pub fn name(&self) -> &str {
        unimplemented!("being written")
    }
    /// Ids of the pod.
    pub fn id_map(&self) -> IdMap {
        unimplemented!("being written")
    }
    /// Pid of the shim.
    pub fn shim_pid(&self) -> u32 {
        unimplemented!("being written")
    }
    /// The network namespace.
    pub fn netns(&self) -> Result<OwnedFd, RuntimeError> {
        unimplemented!("being written")
    }
    /// Starts a container; returns when its program was exec'd, or with why not.
    pub async fn start_container(&self, _spec: ContainerSpec) -> Result<ContainerStatus, RuntimeError> {
        unimplemented!("being written")
    }
    /// All containers that were started and not removed.
    pub async fn status(&self) -> Result<Vec<ContainerStatus>, RuntimeError> {
        unimplemented!("being written")
    }
    /// The next event. Cancel-safe; one caller at a time.
    pub async fn wait_event(&self) -> Result<PodEvent, RuntimeError> {
        unimplemented!("being written")
    }
    /// Sends a signal to a container's first process.
    pub async fn signal(&self, _container: &str, _signal: i32) -> Result<(), RuntimeError> {
        unimplemented!("being written")
    }
    /// Removes all attempts of an exited container: cgroup, state, writable layer.
    pub async fn remove_container(&self, _name: &str) -> Result<(), RuntimeError> {
        unimplemented!("being written")
    }
    /// Runs a command in a container.
    pub async fn exec(&self, _spec: ExecSpec) -> Result<Exec, RuntimeError> {
        unimplemented!("being written")
    }
    /// Kills everything and removes it.
    pub async fn destroy(self) -> Result<(), RuntimeError> {
        unimplemented!("being written")
    }
}

/// Streams of an exec.
#[derive(Debug)]
pub enum ExecIo {
    /// Three pipes, non-blocking; take what you need.
    Pipes {
        /// Write end of its input; closing it is end of file.
        stdin: Option<OwnedFd>,
        /// Read end of its output.
        stdout: OwnedFd,
        /// Read end of its errors.
        stderr: OwnedFd,
    },
    /// The master of a terminal, non-blocking; its end reads as EIO.
    Terminal(OwnedFd),
}

/// A command that runs in a container. Dropping it kills the command.
#[derive(Debug)]
pub struct Exec;

impl Exec {
    /// Takes the streams; none the second time.
    pub fn take_io(&mut self) -> Option<ExecIo> {
        unimplemented!("being written")
    }
    /// Its exit code; 128 + n where signal n ended it. Cancel-safe.
    pub async fn wait(&mut self) -> Result<i32, RuntimeError> {
        unimplemented!("being written")
    }
    /// Resizes the terminal.
    pub fn resize(&self, _size: WindowSize) -> Result<(), RuntimeError> {
        unimplemented!("being written")
    }
    /// Kills the command.
    pub async fn kill(&self) -> Result<(), RuntimeError> {
        unimplemented!("being written")
    }
}

/// Kills and removes everything of an instance; synchronous, idempotent.
pub fn teardown(_run_dir: &Path, _instance: &str) -> Result<TeardownReport, RuntimeError> {
    unimplemented!("being written")
}

/// What the kernel can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelFeatures {
    /// Release, like `6.1.0-18-amd64`.
    pub release: String,
    /// User namespaces can be made.
    pub user_namespaces: bool,
    /// `mount_setattr` with MOUNT_ATTR_IDMAP exists (5.12).
    pub idmapped_mounts: bool,
    /// overlayfs takes layers as file descriptors (6.13).
    pub overlay_layer_fds: bool,
    /// overlayfs takes detached idmapped mounts as layers (6.15).
    pub overlay_detached_idmapped: bool,
    /// Cgroups of version 2 only.
    pub cgroup_v2: bool,
    /// Controllers that can be used, sorted.
    pub controllers: Vec<String>,
    /// Seccomp filters.
    pub seccomp: bool,
    /// Pidfds (5.3) and entering namespaces through them (5.8).
    pub pidfd: bool,
}

/// Probes the kernel.
pub fn probe_kernel() -> KernelFeatures {
    unimplemented!("being written")
}
