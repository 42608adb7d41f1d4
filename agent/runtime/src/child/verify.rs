//! The last look at a container's mounts, from inside, before its program runs.
//!
//! The way to a volume's target is looked at before libcontainer mounts there, and a container that shares the volume
//! can put a link in the way between the two. No link leads out of the root, but it could lead a mount onto `/proc`, so
//! that what is hidden and read-only would be so in a copy that the pod made up. Nothing of the pod can change mounts,
//! so that what is seen here stays.

use std::{collections::BTreeSet, fs, io};

use nix::sys::statfs::{FsType, PROC_SUPER_MAGIC, SYSFS_MAGIC, TMPFS_MAGIC, statfs};

use super::paths::{MASKED, READ_ONLY};

/// Trees that are the runtime's own, and their file systems.
const OWN: [(&str, FsType); 3] = [("/proc", PROC_SUPER_MAGIC), ("/sys", SYSFS_MAGIC), ("/dev", TMPFS_MAGIC)];
/// What is mounted in them, besides what is masked and read-only.
const WITHIN: [&str; 10] = [
    "/dev/full",
    "/dev/mqueue",
    "/dev/null",
    "/dev/pts",
    "/dev/random",
    // A file of the pod, wherever it comes from.
    "/dev/termination-log",
    "/dev/tty",
    "/dev/urandom",
    "/dev/zero",
    "/sys/fs/cgroup",
];
/// Where volumes may be mounted in spite of that.
const SHARED: &str = "/dev/shm";

/// Whether the trees that are the runtime's own are what they should be, with nothing of others mounted in them.
///
/// # Errors
/// Something is not, and the program must not run.
pub(super) fn own_mounts() -> io::Result<()> {
    let other = |at: &str| io::Error::other(format!("something else is mounted at {at}"));
    // First: the list of mounts is in the first of them.
    for (tree, kind) in OWN {
        if statfs(tree)?.filesystem_type() != kind {
            return Err(other(tree));
        }
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    foreign(&mounts).map_or(Ok(()), |at| Err(other(at)))
}

/// The first mount in the runtime's trees that is not its own, or covers one that is, in the text of
/// `/proc/self/mountinfo`.
fn foreign(mountinfo: &str) -> Option<&str> {
    // Each may be there once.
    let mut own: BTreeSet<&str> = OWN.iter().map(|(tree, _)| *tree).collect();
    own.extend(WITHIN.iter().chain(&MASKED).chain(&READ_ONLY));
    let points = mountinfo.lines().filter_map(|line| line.split(' ').nth(4));
    let mut within = points.filter(|at| OWN.iter().any(|(tree, _)| is_below(at, tree)) && !is_below(at, SHARED));
    within.find(|at| !own.remove(at))
}

fn is_below(path: &str, tree: &str) -> bool {
    path.strip_prefix(tree).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_of_others_in_the_runtimes_trees_is_found() {
        let usual =
            ["/", "/proc", "/dev", "/dev/pts", "/dev/shm", "/sys", "/etc/hosts", "/data", "/proc/sys", "/process"];
        for (more, found) in [
            (vec![], None),
            (vec!["/proc/keys", "/dev/null", "/sys/firmware", "/sys/fs/cgroup"], None),
            (vec!["/dev/shm", "/dev/shm/x", "/data/proc"], None),
            (vec!["/dev/termination-log"], None),
            (vec!["/dev/termination-log/x"], Some("/dev/termination-log/x")),
            (vec!["/proc"], Some("/proc")),
            (vec!["/proc/sys"], Some("/proc/sys")),
            (vec!["/proc/keys", "/proc/keys"], Some("/proc/keys")),
            (vec!["/proc/self"], Some("/proc/self")),
            (vec!["/sys/kernel"], Some("/sys/kernel")),
            (vec!["/dev/shmem"], Some("/dev/shmem")),
            (vec!["/dev/console"], Some("/dev/console")),
        ] {
            let lines: Vec<_> =
                usual.iter().chain(&more).map(|at| format!("36 35 98:0 / {at} rw,nosuid - ext4 /dev/sda rw")).collect();
            assert_eq!(foreign(&lines.join("\n")), found, "{more:?}");
        }
    }
}
