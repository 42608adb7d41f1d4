//! The helpers that remove what is left of containers, and of the whole pod. Writable layers are renamed away and deleted
//! by a process that nobody waits for: one may hold many gigabytes.

use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use crate::{
    error::{StartError, because},
    shim::Sandbox,
    trash,
    wire::{self, HelperMsg},
};

/// Removes cgroup, libcontainer's state, private directory and writable layer of each.
pub(crate) fn run(sandbox: &Sandbox, gone: &[(String, PathBuf)], channel: OwnedFd) -> i32 {
    let removed = gone.iter().try_for_each(|(id, _)| remove(sandbox, id));
    finish(removed.and_then(|()| set_aside(gone.iter().map(|(_, scratch)| scratch.as_path()))), &channel)
}

/// Kills all of the pod and removes its cgroups and writable layers.
pub(crate) fn run_all(sandbox: &Sandbox, scratches: &[PathBuf], channel: OwnedFd) -> i32 {
    let removed = remove_cgroup(sandbox, &sandbox.cgroup);
    finish(removed.and_then(|()| set_aside(scratches.iter().map(PathBuf::as_path))), &channel)
}

fn finish(set_aside: Result<Vec<PathBuf>, String>, channel: &OwnedFd) -> i32 {
    let message = match set_aside {
        Ok(trees) => {
            trash::delete_apart(&trees);
            HelperMsg::Done
        }
        Err(reason) => HelperMsg::Failed(StartError::RootFs { reason }),
    };
    let _ = wire::send_message(channel.as_fd(), &message, &[]);
    0
}

fn remove(sandbox: &Sandbox, id: &str) -> Result<(), String> {
    remove_cgroup(sandbox, &sandbox.cgroup.join(id))?;
    for dir in ["lc", "c"] {
        match fs::remove_dir_all(sandbox.mnt.join(dir).join(id)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(format!("delete the state of {id}: {e}")),
            _ => {}
        }
    }
    Ok(())
}

fn remove_cgroup(sandbox: &Sandbox, cgroup: &Path) -> Result<(), String> {
    sandbox.cgroups.kill(cgroup).map_err(|e| e.to_string())?;
    sandbox.cgroups.remove(cgroup).map(drop).map_err(|e| e.to_string())
}

fn set_aside<'a>(scratches: impl Iterator<Item = &'a Path>) -> Result<Vec<PathBuf>, String> {
    let aside = scratches.filter_map(|scratch| {
        let renamed = trash::set_aside(scratch);
        renamed.map_err(|e| because(&format!("rename the writable layer {}", scratch.display()), e)).transpose()
    });
    aside.collect()
}
