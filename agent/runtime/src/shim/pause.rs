//! The first process of a PID namespace that all containers of a pod share (`shareProcessNamespace`), as Kubernetes' pause: it reaps what its
//! containers leave behind, and the namespace lives as long as it does.
//!
//! It runs as root of the pod's user namespace without any capability, under the profile of containers, in an empty root, and cannot be
//! looked into: all that a container can do to it is to see it.

use std::{
    fs::{self, DirBuilder},
    io::{self, Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::DirBuilderExt,
    },
    path::Path,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    unistd::pivot_root,
};

use crate::{
    cgroup::Cgroups,
    child::{become_root_inside, caps},
    error::because,
    seccomp, sys, title,
};

/// Its cgroup in that of the pod: names of containers have a dot in theirs.
const CGROUP: &str = "pause";
/// The empty root: nothing can be put there.
const ROOT_OPTIONS: &str = "size=4k,mode=555";

/// The process, and the namespace that it keeps.
#[derive(Debug)]
pub(crate) struct Pause {
    pub(crate) pid: i32,
    pub(crate) pidns: OwnedFd,
}

impl Pause {
    /// Makes both.
    ///
    /// # Flow
    /// A child goes where only root of the host can put it (cgroup, empty root), then becomes root of the pod, makes the namespace, and
    /// forks a sibling as its first process, which so is the shim's child and ends with it.
    pub(super) fn start(userns: &OwnedFd, cgroups: &Cgroups, pod_cgroup: &Path, mnt: &Path) -> Result<Self, String> {
        let (mut ours, theirs) = io::pipe().map_err(|e| because("pipe", e))?;
        let (cgroup, root) = (pod_cgroup.join(CGROUP), mnt.join(CGROUP));
        cgroups.create(&cgroup).map_err(|e| because("make the cgroup of its first process", e))?;
        DirBuilder::new().mode(0o555).create(&root).map_err(|e| because("make an empty root", e))?;
        let helper = sys::fork_child(|| {
            let mut theirs = theirs;
            let made = leave(userns, cgroups, &cgroup, &root, theirs.as_raw_fd()).and_then(|()| {
                let told = theirs.as_raw_fd();
                sys::fork_sibling(|| be_first(told))
            });
            // The pid, or what went wrong as a number below zero.
            let answer = made.map_or_else(|e| -e.raw_os_error().unwrap_or(libc::EIO), nix::unistd::Pid::as_raw);
            i32::from(theirs.write_all(&answer.to_le_bytes()).is_err())
        })
        .map_err(|e| because("fork", e))?;
        // SAFETY: waits for our own child; SIGCHLD is blocked, so nobody else reaps it. What it forked is reaped when it ends.
        unsafe { libc::waitpid(helper.as_raw(), std::ptr::null_mut(), 0) };
        let mut said = Vec::new();
        ours.read_to_end(&mut said).map_err(|e| because("make a shared PID namespace", e))?;
        let words = said.chunks_exact(4).map(|word| i32::from_le_bytes([word[0], word[1], word[2], word[3]]));
        let pid = match heard(words) {
            Ok(pid) => pid,
            Err(e) => return Err(because("make a shared PID namespace", e)),
        };
        let pidns = fs::File::open(format!("/proc/{pid}/ns/pid")).map_err(|e| because("open the PID namespace", e))?;
        Ok(Self { pid, pidns: pidns.into() })
    }
}

/// The pid of the first process, once both have spoken in either order: its maker says the pid, and it says 0 when it is ready. What went
/// wrong is a number below zero.
fn heard(words: impl Iterator<Item = i32>) -> io::Result<i32> {
    let (mut pid, mut ready) = (None, false);
    for word in words {
        match word {
            0 => ready = true,
            ..0 => return Err(io::Error::from_raw_os_error(-word)),
            1.. => pid = Some(word),
        }
    }
    pid.filter(|_| ready).ok_or_else(|| io::Error::other("its first process ended before it was ready"))
}

/// Leaves the host behind; afterwards the next child is the first of a PID namespace of the pod's user namespace.
fn leave(userns: &OwnedFd, cgroups: &Cgroups, cgroup: &Path, root: &Path, told: i32) -> io::Result<()> {
    cgroups.enter(cgroup)?;
    // Now, since it is looked up in /proc. The shim's own names the data directory, which is not the pod's business.
    title::set("/pause", c"pause");
    // Processes of the pod will see this one.
    sys::prctl(libc::PR_SET_DUMPABLE, 0)?;
    unshare(CloneFlags::CLONE_NEWNS)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_RDONLY;
    mount(Some("empty"), root, Some("tmpfs"), flags, Some(ROOT_OPTIONS))?;
    std::env::set_current_dir(root)?;
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    std::env::set_current_dir("/")?;
    // SAFETY: this process was just forked for this; the shim's other descriptors are never touched in it.
    unsafe { sys::close_all_but(&[userns.as_raw_fd(), told]) }?;
    setns(userns, CloneFlags::CLONE_NEWUSER)?;
    become_root_inside()?;
    unshare(CloneFlags::CLONE_NEWPID)?;
    Ok(())
}

/// The life of the first process.
fn be_first(told: i32) -> i32 {
    let error = match settle() {
        Ok(()) => {
            say(told, 0);
            // SAFETY: nothing but standard input, output and errors was open beside it, and none is used any more.
            let _ = unsafe { libc::syscall(libc::SYS_close_range, 0, u32::MAX, 0) };
            reap_for_ever()
        }
        Err(e) => e,
    };
    say(told, -error.raw_os_error().unwrap_or(libc::EIO));
    1
}

fn say(told: i32, word: i32) {
    // SAFETY: the descriptor is open, and the buffer as long as said.
    unsafe { libc::write(told, word.to_le_bytes().as_ptr().cast(), 4) };
}

fn settle() -> io::Result<()> {
    nix::unistd::setsid()?;
    sys::reset_signals();
    caps::drop_bounding(0)?;
    caps::set(0)?;
    sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1)?;
    sys::prctl(libc::PR_SET_DUMPABLE, 0)?;
    // A namespace without a shim is of no use to anybody.
    sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64)?;
    let mut mask = nix::sys::signal::SigSet::empty();
    mask.add(nix::sys::signal::Signal::SIGCHLD);
    mask.thread_block()?;
    seccomp::load()
}

/// Reaps what is left behind. Signals of the namespace it does not handle, so that the kernel keeps them from it.
fn reap_for_ever() -> io::Error {
    let mut mask = nix::sys::signal::SigSet::empty();
    mask.add(nix::sys::signal::Signal::SIGCHLD);
    loop {
        // A signal that came before is still pending: nothing is missed.
        while sys::reap().is_some() {}
        let _ = mask.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_have_to_speak_and_neither_of_an_error() {
        for words in [[7, 0], [0, 7]] {
            assert_eq!(heard(words.into_iter()).expect("is ready"), 7);
        }
        for words in [&[][..], &[7], &[0], &[7, -1], &[-libc::EPERM]] {
            assert!(heard(words.iter().copied()).is_err(), "{words:?}");
        }
    }
}
