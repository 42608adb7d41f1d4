//! What the shim's helpers do: make a container, run a command in one, remove one.

pub(crate) mod caps;
pub(crate) mod create;
pub(crate) mod exec;
pub(crate) mod launch;
mod oci;
mod paths;
pub(crate) mod remove;
pub(crate) mod rootfs;
mod source;
mod user;
mod verify;

pub(crate) use self::exec::become_root_inside;
use std::{
    io,
    path::{Component, Path},
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::{
    error::{StartError, because},
    model::{ContainerSpec, ExecSpec, IDS_PER_POD, IdMap, MemoryVolume, MountKind},
    wire::PodConfig,
};

/// Longest name of a pod or container in bytes: names become file names, with additions.
const MAX_NAME: usize = 63;
/// Most layers of an image: overlayfs takes 500, and image tools stop at 127.
const MAX_LAYERS: usize = 256;
/// Least number of tasks: while a container starts, its helper and libcontainer's processes are in its cgroup.
const MIN_PIDS: u64 = 4;
/// Most groups that a container gets besides those of its image, as many as Kubernetes' own tests give.
const MAX_GROUPS: usize = 256;
/// Most mounts of a container.
const MAX_MOUNTS: usize = 256;

/// Open files of a process of a container, and up to where it may raise that itself. As systemd has it for services, and Docker and containerd
/// with it: a program that closes all it could have open begins at once, and one that needs many asks for them.
const FILES: u64 = 1024;
const MOST_FILES: u64 = 524_288;

/// Lets this process and all that come of it raise their limit of open files so far and no further, whatever the agent's own is.
pub(crate) fn limit_most_files() -> io::Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    match setrlimit(Resource::RLIMIT_NOFILE, soft.min(MOST_FILES), MOST_FILES) {
        // It cannot be raised here: what the agent may have is less, and a bound.
        Err(nix::errno::Errno::EPERM) if hard < MOST_FILES => Ok(()),
        done => Ok(done?),
    }
}

/// Limits the open files of this process, which was forked for a container or a command.
fn limit_files() -> Result<(), StartError> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(no_limit)?;
    setrlimit(Resource::RLIMIT_NOFILE, FILES.min(hard), hard).map_err(no_limit)
}

fn no_limit(e: nix::errno::Errno) -> StartError {
    StartError::Isolation { reason: because("limit its open files", e) }
}

fn invalid(field: &str, reason: impl Into<String>) -> StartError {
    StartError::Invalid { field: field.to_owned(), reason: reason.into() }
}

/// A name that is safe as a file name.
pub(crate) fn check_name(name: &str) -> Result<(), &'static str> {
    let ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > MAX_NAME || name.starts_with('.') || !name.chars().all(ok) {
        return Err("must be 1 to 63 of letters, digits, '-', '_', '.', not beginning with '.'");
    }
    Ok(())
}

/// Ids that keep root of the pod apart from root of the host, and fit.
pub(crate) fn check_id_map(map: IdMap) -> Result<(), &'static str> {
    if map.size == 0 || map.host_base < IDS_PER_POD || map.host_base.checked_add(map.size).is_none() {
        return Err("must map at least one id, to host ids from 65536 on, below 2^32");
    }
    Ok(())
}

/// Volumes in memory that can be made.
pub(crate) fn check_memory(volumes: &[MemoryVolume], map: IdMap) -> Result<(), String> {
    if volumes.len() > MAX_MOUNTS {
        return Err(format!("{} volumes, at most {MAX_MOUNTS}", volumes.len()));
    }
    for (n, volume) in volumes.iter().enumerate() {
        check_name(&volume.name).map_err(|e| format!("{:?}: {e}", volume.name))?;
        if volumes.iter().take(n).any(|before| before.name == volume.name) {
            return Err(format!("{:?} is there twice", volume.name));
        }
        if volume.size_bytes == Some(0) || volume.group.is_some_and(|group| group >= map.size) {
            return Err(format!("{:?} must have a size of more than 0, and a group of the pod's", volume.name));
        }
    }
    Ok(())
}

/// A path in a volume.
fn check_relative(field: &str, path: &Path) -> Result<(), StartError> {
    if path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Ok(());
    }
    Err(invalid(field, format!("{} must be relative, without '..'", path.display())))
}

fn check_absolute(field: &str, path: &Path) -> Result<(), StartError> {
    if !path.is_absolute() || path.components().any(|c| matches!(c, Component::ParentDir)) {
        return Err(invalid(field, format!("{} must be absolute, without '..'", path.display())));
    }
    Ok(())
}

fn check_words(field: &str, words: &[String]) -> Result<(), StartError> {
    if words.first().is_none_or(String::is_empty) {
        return Err(invalid(field, "no program is given"));
    }
    if words.iter().any(|w| w.contains('\0')) {
        return Err(invalid(field, "contains a NUL byte"));
    }
    Ok(())
}

fn check_env(env: &[(String, String)]) -> Result<(), StartError> {
    for (name, value) in env {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(invalid("env", format!("{name:?} is no name of a variable, or its value contains a NUL byte")));
        }
    }
    Ok(())
}

/// Checks all of a specification that can be checked without the image.
pub(crate) fn check_container(spec: &ContainerSpec, pod: &PodConfig) -> Result<(), StartError> {
    check_name(&spec.name).map_err(|e| invalid("name", e))?;
    check_words("args", &spec.args)?;
    check_env(&spec.env)?;
    if spec.layers.is_empty() || spec.layers.len() > MAX_LAYERS {
        return Err(invalid("layers", format!("{} layers, must be 1 to {MAX_LAYERS}", spec.layers.len())));
    }
    for layer in &spec.layers {
        check_absolute("layers", layer)?;
    }
    if let Some(target) = &spec.processes_of {
        check_name(target).map_err(|e| invalid("processes_of", e))?;
    }
    check_absolute("scratch", &spec.scratch)?;
    check_absolute("log_path", &spec.log_path)?;
    if !spec.cwd.is_empty() {
        check_absolute("cwd", Path::new(&spec.cwd))?;
    }
    if spec.mounts.len() > MAX_MOUNTS {
        return Err(invalid("mounts", format!("{} mounts, at most {MAX_MOUNTS}", spec.mounts.len())));
    }
    for mount in &spec.mounts {
        check_absolute("mounts.target", &mount.target)?;
        rootfs::check_target(&mount.target).map_err(|e| invalid("mounts.target", e))?;
        match &mount.kind {
            MountKind::IdmappedBind => check_absolute("mounts.source", &mount.source)?,
            MountKind::SubPath { path, .. } => {
                check_absolute("mounts.source", &mount.source)?;
                check_relative("mounts.path", path)?;
            }
            MountKind::Memory { volume, path } => {
                check_relative("mounts.path", path.as_deref().unwrap_or(Path::new("")))?;
                if !pod.memory.iter().any(|one| one.name == *volume) {
                    return Err(invalid("mounts.volume", format!("the pod has no volume {volume:?} in memory")));
                }
            }
            MountKind::Tmpfs { .. } => {}
        }
    }
    if let Some(path) = &spec.termination_log {
        check_absolute("termination_log", path)?;
        rootfs::check_target(path).map_err(|e| invalid("termination_log", e))?;
    }
    if spec.groups.len() > MAX_GROUPS {
        return Err(invalid("groups", format!("{} groups, at most {MAX_GROUPS}", spec.groups.len())));
    }
    for id in [spec.run_as_user, spec.run_as_group].into_iter().flatten().chain(spec.groups.iter().copied()) {
        if id >= pod.id_map.size {
            return Err(invalid("run_as", format!("id {id} is not one of the pod's {}", pod.id_map.size)));
        }
    }
    if spec.limits.memory_bytes == Some(0) || spec.limits.cpu_millis == Some(0) {
        return Err(invalid("limits", "must be more than zero"));
    }
    if spec.limits.pids < MIN_PIDS {
        return Err(invalid("limits", format!("{} tasks are too few to start, at least {MIN_PIDS}", spec.limits.pids)));
    }
    caps::parse(&spec.capabilities).map(drop)
}

/// Checks a command.
pub(crate) fn check_exec(spec: &ExecSpec) -> Result<(), StartError> {
    check_words("args", &spec.args)?;
    check_env(&spec.env)?;
    if let Some(cwd) = &spec.cwd {
        check_absolute("cwd", Path::new(cwd))?;
    }
    Ok(())
}
