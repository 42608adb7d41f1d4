//! Clearing away what pods left: by a shim for its own pod, by the agent for pods whose shim died, by `teardown` for
//! all of an instance.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nix::mount::{MntFlags, umount2};

use crate::{
    cgroup::Cgroups,
    error::RuntimeError,
    model::TeardownReport,
    record::ContainerRecord,
    zygote::{check_instance, instance_cgroup, pods_dir},
};

/// Deletes a tree; its absence does not matter. Symbolic links in it are deleted, not followed.
pub(crate) fn remove_dir(path: &Path) -> Result<(), RuntimeError> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(RuntimeError::io(format!("delete {}", path.display()), e)),
        _ => Ok(()),
    }
}

/// Kills all processes of a pod's containers, and removes its cgroups, writable layers and directory.
pub(crate) fn clear(
    cgroups: &Cgroups,
    cgroup: &Path,
    pod_dir: &Path,
    scratches: &[PathBuf],
) -> Result<(), RuntimeError> {
    cgroups.kill(cgroup)?;
    cgroups.remove(cgroup).map_err(|e| RuntimeError::io("remove the pod's cgroup", e))?;
    for scratch in scratches {
        remove_dir(scratch)?;
    }
    // In the shim's own namespace its root is mounted here; in any other, nothing is.
    let _ = umount2(&pod_dir.join("mnt"), MntFlags::MNT_DETACH);
    remove_dir(pod_dir)
}

/// Kills what is left of a pod whose shim is gone; records and writable layers stay.
pub(crate) fn kill_dead(instance: &str, uid: &str) -> Result<(), RuntimeError> {
    let cgroups = Cgroups::find().map_err(|e| RuntimeError::io("find cgroups", e))?;
    let cgroup = instance_cgroup(instance).join(uid);
    cgroups.kill(&cgroup)?;
    cgroups.remove(&cgroup).map(drop).map_err(|e| RuntimeError::io("remove the pod's cgroup", e))
}

/// Clears a pod whose shim is gone.
pub(crate) fn clear_dead(run_dir: &Path, instance: &str, uid: &str) -> Result<(), RuntimeError> {
    let cgroups = Cgroups::find().map_err(|e| RuntimeError::io("find cgroups", e))?;
    let pod_dir = pods_dir(run_dir).join(uid);
    let scratches: Vec<_> = ContainerRecord::read_all(&pod_dir).into_iter().map(|r| r.scratch).collect();
    clear(&cgroups, &instance_cgroup(instance).join(uid), &pod_dir, &scratches)
}

/// Kills and removes everything of an instance: containers, shims, zygote, cgroups, mounts, writable layers and
/// records. For `hearth down`, also after kill -9.
///
/// # Guarantees
/// Idempotent. Touches nothing of other instances: processes are found by their cgroup. Logs, images and volumes stay.
///
/// # Errors
/// The first step that failed; call it again.
pub fn teardown(run_dir: &Path, instance: &str) -> Result<TeardownReport, RuntimeError> {
    check_instance(instance)?;
    let mut report = TeardownReport::default();
    let cgroups = Cgroups::find().map_err(|e| RuntimeError::io("find cgroups", e))?;
    let root = instance_cgroup(instance);
    // Shims first: they cannot start anything then, and an exit they would record is none.
    report.processes += cgroups.kill(&root.join("shims"))?;
    report.processes += cgroups.kill(&root)?;
    report.cgroups = cgroups.remove(&root).map_err(|e| RuntimeError::io("remove cgroups", e))?;

    let run_dir = match fs::canonicalize(run_dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(report),
        other => other.map_err(|e| RuntimeError::io(format!("resolve {}", run_dir.display()), e))?,
    };
    report.mounts = detach_below(&run_dir)?;
    let pods = pods_dir(&run_dir);
    for entry in fs::read_dir(&pods).into_iter().flatten().flatten() {
        for record in ContainerRecord::read_all(&entry.path()) {
            remove_dir(&record.scratch)?;
        }
        remove_dir(&entry.path())?;
        report.pods += 1;
    }
    remove_dir(&pods)?;
    Ok(report)
}

/// Detaches mounts below a directory in this process's namespace. There are none unless something went wrong.
fn detach_below(dir: &Path) -> Result<usize, RuntimeError> {
    let text = fs::read_to_string("/proc/self/mountinfo").map_err(|e| RuntimeError::io("read mountinfo", e))?;
    let mut points: Vec<PathBuf> = text
        .lines()
        .filter_map(|l| l.split(' ').nth(4))
        .map(|p| PathBuf::from(p.replace("\\040", " ")))
        .filter(|p| p.starts_with(dir) && p != dir)
        .collect();
    points.sort();
    for point in points.iter().rev() {
        umount2(point, MntFlags::MNT_DETACH)
            .map_err(|e| RuntimeError::io(format!("unmount {}", point.display()), e))?;
    }
    Ok(points.len())
}
