//! Clearing away what pods left: by a shim for its own pod, by the agent for pods whose shim died, by `teardown` for
//! all of an instance.

use std::{
    collections::HashSet,
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use nix::mount::{MntFlags, umount2};

use crate::{
    cgroup::Cgroups,
    error::RuntimeError,
    model::TeardownReport,
    record::{ContainerRecord, PodRecord, RecordError, started},
    sys, trash,
    zygote::{check_instance, instance_cgroup, pod_cgroup, pods_dir},
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
    own: &[PathBuf],
    pod_dir: &Path,
    scratches: &[PathBuf],
) -> Result<(), RuntimeError> {
    remove_cgroups(cgroups, own)?;
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
    remove_cgroups(&cgroups, &cgroups_of(instance, uid))
}

/// Where a pod's cgroup may be: a pod that is dead cannot say whose guest it was.
pub(crate) fn cgroups_of(instance: &str, uid: &str) -> [PathBuf; 2] {
    [false, true].map(|guest| pod_cgroup(instance, uid, guest))
}

/// Kills what is in them and removes them; absent ones do not matter.
fn remove_cgroups(cgroups: &Cgroups, paths: &[PathBuf]) -> Result<(), RuntimeError> {
    paths.iter().try_for_each(|path| {
        cgroups.kill(path)?;
        cgroups.remove(path).map(drop).map_err(|e| RuntimeError::io("remove the pod's cgroup", e))
    })
}

/// Records of a pod's containers.
///
/// # Errors
/// One of a newer release.
pub(crate) fn container_records(uid: &str, pod_dir: &Path) -> Result<Vec<ContainerRecord>, RuntimeError> {
    ContainerRecord::read_all(pod_dir).map_err(|source| RuntimeError::Record { uid: uid.to_owned(), source })
}

/// The same, and the pod's own is checked.
fn known_records(uid: &str, pod_dir: &Path) -> Result<Vec<ContainerRecord>, RuntimeError> {
    match PodRecord::read(pod_dir) {
        Err(source @ RecordError::Newer { .. }) => Err(RuntimeError::Record { uid: uid.to_owned(), source }),
        _ => container_records(uid, pod_dir),
    }
}

/// The shim that wrote the record, if it lives.
pub(crate) fn living_shim(instance: &str, record: &PodRecord) -> Option<OwnedFd> {
    if record.shim_pid == 0 {
        return None;
    }
    let pidfd = sys::pidfd_open(record.shim_pid as i32).ok()?;
    let shims = instance_cgroup(instance).join("shims");
    let same = started(record.shim_pid) == Some(record.shim_started)
        && crate::cgroup::is_member(&shims, record.shim_pid as i32);
    same.then_some(pidfd)
}

/// Clears a pod whose shim is gone, or does not answer: such a one is killed, or it would go on without its pod.
pub(crate) fn clear_dead(run_dir: &Path, instance: &str, uid: &str) -> Result<(), RuntimeError> {
    let cgroups = Cgroups::find().map_err(|e| RuntimeError::io("find cgroups", e))?;
    let pod_dir = pods_dir(run_dir).join(uid);
    let scratches: Vec<_> = known_records(uid, &pod_dir)?.into_iter().map(|r| r.scratch).collect();
    if let Some(shim) = PodRecord::read(&pod_dir).ok().and_then(|record| living_shim(instance, &record)) {
        let _ = sys::pidfd_send_signal(shim.as_fd(), libc::SIGKILL);
    }
    clear(&cgroups, &cgroups_of(instance, uid), &pod_dir, &scratches)
}

/// Renames away what is in the directory of writable layers and belongs to no pod of `keep`.
pub(crate) fn set_aside_stale(scratch: &Path, keep: &HashSet<String>) -> Result<Vec<PathBuf>, RuntimeError> {
    let failed = |e| RuntimeError::io(format!("sweep {}", scratch.display()), e);
    let entries = match fs::read_dir(scratch) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let mut aside = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| keep.contains(name)) {
            continue;
        }
        if name.to_string_lossy().starts_with(trash::PREFIX) {
            aside.push(entry.path());
        } else {
            aside.extend(trash::set_aside(&entry.path()).map_err(failed)?);
        }
    }
    Ok(aside)
}

/// Kills and removes everything of an instance: containers, shims, zygote, cgroups, mounts, writable layers and
/// records. For `hearth down`, also after kill -9.
///
/// # Guarantees
/// Idempotent. Touches nothing of other instances: processes are found by their cgroup. Logs, images and volumes stay.
///
/// # Errors
/// The first step that failed; call it again. A record of a newer release, before anything is touched.
pub fn teardown(run_dir: &Path, instance: &str) -> Result<TeardownReport, RuntimeError> {
    check_instance(instance)?;
    for entry in fs::read_dir(pods_dir(run_dir)).into_iter().flatten().flatten() {
        known_records(&entry.file_name().to_string_lossy(), &entry.path())?;
    }
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
        for record in known_records(&entry.file_name().to_string_lossy(), &entry.path())? {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writable_layers_of_pods_that_do_not_live_are_swept() {
        let scratch = tempfile::tempdir().expect("temporary directory");
        for dir in ["alive/c/0/upper", "cut-off/c/3/upper", ".gone.7.0.cut-off/x"] {
            fs::create_dir_all(scratch.path().join(dir)).expect("makes a directory");
        }
        let keep = HashSet::from(["alive".to_owned()]);
        let aside = set_aside_stale(scratch.path(), &keep).expect("sweeps");
        assert_eq!(aside.len(), 2, "{aside:?}");
        assert!(!scratch.path().join("cut-off").exists(), "the next start finds nothing of it");
        trash::delete(&aside);
        let left: Vec<_> = fs::read_dir(scratch.path()).expect("lists").flatten().map(|e| e.file_name()).collect();
        assert_eq!(left, ["alive"]);
        assert!(set_aside_stale(&scratch.path().join("none"), &keep).expect("nothing is there").is_empty());
    }
}
