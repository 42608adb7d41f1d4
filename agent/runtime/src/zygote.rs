//! The zygote: forked before the agent has threads, keys or sockets, it forks a shim for each pod, so that a shim
//! shares the agent's pages and costs no exec.

use std::{
    fs::{self, DirBuilder},
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::DirBuilderExt,
    },
    path::{Path, PathBuf},
};

use nix::unistd::Pid;

use crate::{
    cgroup::{Ceiling, Cgroups},
    child,
    error::{RuntimeError, because},
    features, seccomp, shim, sys, title,
    wire::{self, ForkOutcome, ForkReply, ForkShim},
};

/// Longest name of an instance in bytes: host objects have short names (links: 15).
const MAX_INSTANCE: usize = 32;

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

impl ZygoteConfig {
    /// The instance's cgroup, relative to each hierarchy.
    pub(crate) fn cgroup(&self) -> PathBuf {
        instance_cgroup(&self.instance)
    }

    pub(crate) fn pods_dir(&self) -> PathBuf {
        pods_dir(&self.run_dir)
    }
}

pub(crate) fn instance_cgroup(instance: &str) -> PathBuf {
    PathBuf::from(format!("hearth-{instance}"))
}

/// The cgroup of all pods of other owners than the device's.
pub(crate) fn guests_cgroup(instance: &str) -> PathBuf {
    instance_cgroup(instance).join("guests")
}

pub(crate) fn pod_cgroup(instance: &str, uid: &str, guest: bool) -> PathBuf {
    if guest { guests_cgroup(instance).join(uid) } else { instance_cgroup(instance).join(uid) }
}

pub(crate) fn pods_dir(run_dir: &Path) -> PathBuf {
    run_dir.join("pods")
}

pub(crate) fn check_instance(instance: &str) -> Result<(), RuntimeError> {
    let ok = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    if instance.is_empty() || instance.len() > MAX_INSTANCE || !instance.bytes().all(ok) {
        return Err(RuntimeError::BadInstance(instance.to_owned()));
    }
    Ok(())
}

/// A forked zygote. Dropping it ends the zygote; shims live on.
#[derive(Debug)]
pub struct Zygote {
    pub(crate) socket: OwnedFd,
    pub(crate) pidfd: OwnedFd,
    pub(crate) pid: Pid,
    pub(crate) config: ZygoteConfig,
}

/// Forks the zygote.
///
/// # Flow
/// Compiles the seccomp profile, probes the kernel, forks, and waits until the child has left the caller's session, cgroups and
/// descriptors.
///
/// # Guarantees
/// The zygote keeps none of the caller's descriptors, locks included. It ends when the [`Zygote`] is dropped or the
/// caller dies; its shims live on.
///
/// # Assumptions
/// Call it first thing in main, as root, before any thread, key or lock exists. More than one thread is an error.
pub fn fork_zygote(config: &ZygoteConfig) -> Result<Zygote, RuntimeError> {
    check_instance(&config.instance)?;
    if !nix::unistd::geteuid().is_root() {
        return Err(RuntimeError::NotRoot);
    }
    let threads = fs::read_dir("/proc/self/task").map_err(|e| RuntimeError::io("count threads", e))?.count();
    if threads != 1 {
        return Err(RuntimeError::NotSingleThreaded { threads });
    }
    seccomp::preload().map_err(RuntimeError::Seccomp)?;
    features::preload();
    let pods = config.pods_dir();
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&pods)
        .map_err(|e| RuntimeError::io(format!("make {}", pods.display()), e))?;
    let absolute =
        |path: &Path| fs::canonicalize(path).map_err(|e| RuntimeError::io(format!("resolve {}", path.display()), e));
    let config = ZygoteConfig { run_dir: absolute(&config.run_dir)?, ..config.clone() };

    let (ours, theirs) = wire::packet_pair().map_err(|e| RuntimeError::io("make a socket pair", e))?;
    let for_child = config.clone();
    let pid =
        sys::fork_child(|| serve(&for_child, theirs.as_fd())).map_err(|e| RuntimeError::io("fork the zygote", e))?;
    drop(theirs);
    let pidfd = sys::pidfd_open(pid.as_raw()).map_err(|e| RuntimeError::io("open a pidfd of the zygote", e))?;
    match wire::recv_message(ours.as_fd(), &mut Vec::new()) {
        Ok(Some(ForkReply { outcome: ForkOutcome::Forked { .. }, .. })) => {
            Ok(Zygote { socket: ours, pidfd, pid, config })
        }
        Ok(Some(ForkReply { outcome: ForkOutcome::Failed { reason }, .. })) => {
            Err(RuntimeError::io("prepare the zygote", io::Error::other(reason)))
        }
        Ok(None) => Err(RuntimeError::ZygoteGone),
        Err(e) => Err(RuntimeError::io("hear from the zygote", e)),
    }
}

/// The zygote's life.
fn serve(config: &ZygoteConfig, socket: std::os::fd::BorrowedFd<'_>) -> i32 {
    let ready = match settle(config, socket) {
        Ok(()) => ForkOutcome::Forked { pid: 0 },
        Err(e) => ForkOutcome::Failed { reason: e.to_string() },
    };
    let failed = matches!(ready, ForkOutcome::Failed { .. });
    if wire::send_message(socket, &ForkReply { id: 0, outcome: ready }, &[]).is_err() || failed {
        return 1;
    }
    loop {
        let mut fds = Vec::new();
        let request: ForkShim = match wire::recv_message(socket, &mut fds) {
            Ok(Some(request)) => request,
            // The agent is gone; the next one brings its own zygote. What cannot be read cannot be answered: the agent
            // hears that this one is gone and executes itself again.
            Ok(None) | Err(_) => return 0,
        };
        let outcome = match <[OwnedFd; 2]>::try_from(fds) {
            Ok([netns, conn]) => match sys::fork_child(|| shim::run(config, &request.uid, netns, conn)) {
                Ok(pid) => ForkOutcome::Forked { pid: pid.as_raw() },
                Err(e) => ForkOutcome::Failed { reason: because("fork", e) },
            },
            Err(fds) => ForkOutcome::Failed { reason: format!("{} descriptors instead of two", fds.len()) },
        };
        if wire::send_message(socket, &ForkReply { id: request.id, outcome }, &[]).is_err() {
            return 0;
        }
    }
}

/// Leaves everything of the agent behind.
fn settle(config: &ZygoteConfig, socket: std::os::fd::BorrowedFd<'_>) -> io::Result<()> {
    let step = |what: &'static str| move |e: io::Error| io::Error::new(e.kind(), because(what, e));
    nix::unistd::setsid()?;
    let null = fs::OpenOptions::new().read(true).write(true).open("/dev/null").map_err(step("open /dev/null"))?;
    for fd in 0..3 {
        nix::unistd::dup2(null.as_raw_fd(), fd)?;
    }
    // SAFETY: this process was just forked for the zygote; the caller's descriptors are never touched in it again.
    unsafe { sys::close_all_but(&[socket.as_raw_fd()]) }.map_err(step("close the agent's descriptors"))?;
    std::mem::forget(null); // closed just now
    sys::reset_signals();
    // SAFETY: sets dispositions: dead shims need no waiting for, a broken pipe is an error and not a death.
    unsafe {
        libc::signal(libc::SIGCHLD, libc::SIG_IGN);
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
    }
    // Or the first process of a container would have them: libcontainer leaves them be where the image names no groups.
    nix::unistd::setgroups(&[])?;
    std::env::set_current_dir("/")?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    // A program that crashes writes no image of its memory onto the owner's flash, unless it raises its limit.
    let (_, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_CORE)?;
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, hard)?;
    child::limit_most_files().map_err(step("limit open files"))?;
    title::set(&format!("hearth zygote --data-dir {}", config.data_dir.display()), c"hearth zygote");
    // Own cgroups: a service manager that stops the agent must not take the pods along, and `down` finds everybody.
    let cgroups = Cgroups::find().map_err(step("find cgroups"))?;
    let shims = config.cgroup().join("shims");
    cgroups.settle(&shims).map_err(step("enter the cgroup of shims"))?;
    let ceiling = Ceiling::of_host().map_err(step("find out what the host has"))?;
    cgroups.limit_instance(&config.cgroup(), ceiling).map_err(step("limit the instance"))?;
    // Containers go before shims when memory is short. Refused without CAP_SYS_RESOURCE, which is no reason to stop.
    let _ = fs::write("/proc/self/oom_score_adj", "-900");
    Ok(())
}
