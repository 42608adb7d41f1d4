//! The helper that removes what is left of containers.

use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
};

use crate::{
    error::StartError,
    pods,
    shim::Sandbox,
    wire::{self, HelperMsg},
};

/// Removes cgroup, libcontainer's state, private directory and writable layer of each.
pub(crate) fn run(sandbox: &Sandbox, gone: &[(String, PathBuf)], channel: OwnedFd) -> i32 {
    let message = match gone.iter().try_for_each(|(id, scratch)| remove(sandbox, id, scratch)) {
        Ok(()) => HelperMsg::Done,
        Err(reason) => HelperMsg::Failed(StartError::RootFs { reason }),
    };
    let _ = wire::send_message(channel.as_fd(), &message, &[]);
    0
}

fn remove(sandbox: &Sandbox, id: &str, scratch: &std::path::Path) -> Result<(), String> {
    let cgroup = sandbox.cgroup.join(id);
    sandbox.cgroups.kill(&cgroup).map_err(|e| e.to_string())?;
    sandbox.cgroups.remove(&cgroup).map_err(|e| e.to_string())?;
    for dir in ["lc", "c"] {
        match fs::remove_dir_all(sandbox.mnt.join(dir).join(id)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(format!("delete the state of {id}: {e}")),
            _ => {}
        }
    }
    pods::remove_dir(scratch)
        .map_err(|e| format!("{e}: {}", std::error::Error::source(&e).map_or_else(String::new, ToString::to_string)))
}
