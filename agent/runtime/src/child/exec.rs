//! The helper that runs a command in a container. Written here, since libcontainer's own does not join the user
//! namespace: its commands ran as root of the host.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::fs::OpenOptionsExt,
    },
    path::Path,
};

use super::{
    caps,
    create::ExecContext,
    launch::Launch,
    user::{self, Ids},
};
use crate::{
    error::{StartError, because},
    model::{ExecSpec, WindowSize},
    shim::Sandbox,
    sys,
    wire::{self, HelperMsg},
};

fn isolation<E: std::fmt::Display>(what: &'static str) -> impl Fn(E) -> StartError {
    move |e| StartError::Isolation { reason: because(what, e) }
}

/// The helper's life.
///
/// # Flow
/// Cgroups first, while the host's files are in reach; then all namespaces of the container's first process by its
/// pidfd; then a sibling, which is in the container's PID namespace and the shim's child, becomes the command.
pub(crate) fn run(sandbox: &Sandbox, id: &str, pid: i32, spec: &ExecSpec, channel: OwnedFd, fds: Vec<OwnedFd>) -> i32 {
    match join(sandbox, id, pid, spec, &channel, &fds) {
        Ok(()) => 0,
        Err(e) => {
            let _ = wire::send_message(channel.as_fd(), &HelperMsg::Failed(e), &[]);
            1
        }
    }
}

fn join(
    sandbox: &Sandbox,
    id: &str,
    pid: i32,
    spec: &ExecSpec,
    channel: &OwnedFd,
    fds: &[OwnedFd],
) -> Result<(), StartError> {
    let not_running = |_| StartError::NotRunning { name: spec.container.clone() };
    let context = fs::read(sandbox.mnt.join("c").join(id).join("exec.json")).map_err(isolation("read its context"))?;
    let context: ExecContext = serde_json::from_slice(&context).map_err(isolation("read its context"))?;
    // The pid is that of the shim's unreaped child, so it is nobody else's.
    let pidfd = sys::pidfd_open(pid).map_err(not_running)?;
    sandbox.cgroups.enter(&sandbox.cgroup.join(id)).map_err(|e| StartError::Cgroup { reason: e.to_string() })?;
    // The shim's own is so low that the kernel would spare the command and kill the app for it.
    fs::write("/proc/self/oom_score_adj", context.oom_score_adj.to_string())
        .map_err(isolation("let the kernel kill the command for want of memory"))?;
    // Processes of the container may look at this one once it is among them.
    sys::prctl(libc::PR_SET_DUMPABLE, 0).map_err(isolation("hide from the container"))?;
    let mut keep: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    keep.extend([channel.as_raw_fd(), pidfd.as_raw_fd()]);
    // SAFETY: this process was just forked for one command; the shim's other descriptors are never touched in it.
    unsafe { sys::close_all_but(&keep) }.map_err(isolation("close descriptors of the shim"))?;
    super::limit_files()?;
    // The network namespace is the shim's own; its owner is the host, so it could not be entered from inside.
    let namespaces = libc::CLONE_NEWUSER
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWCGROUP;
    sys::setns_all(pidfd.as_fd(), namespaces).map_err(isolation("enter the container's namespaces"))?;
    become_root_inside().map_err(isolation("become the container's root"))?;
    let child = sys::fork_sibling(|| {
        let error = command(sandbox.config.id_map.size, spec, &context, channel, fds);
        let _ = wire::send_message(channel.as_fd(), &HelperMsg::Failed(error), &[]);
        1
    })
    .map_err(isolation("fork"))?;
    let created = HelperMsg::Created { pid: child.as_raw() };
    wire::send_message(channel.as_fd(), &created, &[]).map_err(isolation("report to the shim"))
}

/// Becomes root of the user namespace that was just entered; otherwise this would still be the host's root, which has no name there.
pub(crate) fn become_root_inside() -> io::Result<()> {
    nix::unistd::setgroups(&[])?;
    let root = nix::unistd::Gid::from_raw(0);
    nix::unistd::setresgid(root, root, root)?;
    let root = nix::unistd::Uid::from_raw(0);
    nix::unistd::setresuid(root, root, root)?;
    // Changing ids made this process dumpable again as far as sysctl fs.suid_dumpable allows.
    sys::prctl(libc::PR_SET_DUMPABLE, 0).map(drop)
}

/// Becomes the command; returns only with why not.
fn command(id_count: u32, spec: &ExecSpec, context: &ExecContext, channel: &OwnedFd, fds: &[OwnedFd]) -> StartError {
    match prepare(id_count, spec, context, channel, fds) {
        Ok(launch) => launch.go(),
        Err(e) => e,
    }
}

fn prepare(
    id_count: u32,
    spec: &ExecSpec,
    context: &ExecContext,
    channel: &OwnedFd,
    fds: &[OwnedFd],
) -> Result<Launch, StartError> {
    nix::unistd::setsid().map_err(isolation("make a session"))?;
    match spec.terminal {
        Some(size) => terminal(size, channel.as_fd()).map_err(isolation("make a terminal"))?,
        None => streams(spec.stdin, fds).map_err(isolation("connect its streams"))?,
    }
    let ids = match &spec.user {
        None => context.ids.clone(),
        Some(name) => {
            let root = File::open("/").map_err(isolation("open the root"))?;
            user::resolve(root.as_fd(), name, (None, None), id_count)?
        }
    };
    let mut env = context.env.clone();
    if spec.user.is_some() {
        env.retain(|(k, _)| k != "HOME");
        env.push(("HOME".to_owned(), ids.home.clone()));
    }
    if spec.terminal.is_some() && !env.iter().any(|(k, _)| k == "TERM") {
        env.push(("TERM".to_owned(), "xterm".to_owned()));
    }
    for (k, v) in &spec.env {
        env.retain(|(name, _)| name != k);
        env.push((k.clone(), v.clone()));
    }
    let launch = Launch::new(&spec.args, &env, channel.as_raw_fd())?;
    let cwd = spec.cwd.as_deref().unwrap_or(&context.cwd);
    let cwd = if cwd.is_empty() { "/" } else { cwd };
    // As root inside, which may enter what the user may not, as for the container itself.
    std::env::set_current_dir(cwd)
        .map_err(|e| StartError::WorkingDirectory { cwd: cwd.to_owned(), reason: e.to_string() })?;
    drop_privileges(&ids, context.caps).map_err(isolation("drop privileges"))?;
    Ok(launch)
}

fn drop_privileges(ids: &Ids, caps: caps::CapSet) -> io::Result<()> {
    caps::drop_bounding(caps)?;
    sys::prctl(libc::PR_SET_KEEPCAPS, 1)?;
    let groups: Vec<_> = ids.groups.iter().map(|g| nix::unistd::Gid::from_raw(*g)).collect();
    nix::unistd::setgroups(&groups)?;
    let gid = nix::unistd::Gid::from_raw(ids.gid);
    nix::unistd::setresgid(gid, gid, gid)?;
    let uid = nix::unistd::Uid::from_raw(ids.uid);
    nix::unistd::setresuid(uid, uid, uid)?;
    caps::set(caps)?;
    sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1).map(drop)
}

/// Standard input (or `/dev/null`), output and errors from the descriptors that the client sent.
fn streams(stdin: bool, fds: &[OwnedFd]) -> io::Result<()> {
    let null;
    let input: BorrowedFd<'_> = if stdin {
        fds[0].as_fd()
    } else {
        null = open_device("/dev/null")?;
        null.as_fd()
    };
    let outputs = &fds[usize::from(stdin)..];
    // The descriptors are all above 2: the shim has those occupied.
    for (fd, to) in [(input, 0), (outputs[0].as_fd(), 1), (outputs[1].as_fd(), 2)] {
        nix::unistd::dup2(fd.as_raw_fd(), to)?;
    }
    Ok(())
}

/// Opens what should be a device in the container's `/dev`, which its root may have changed.
fn open_device(path: &str) -> io::Result<OwnedFd> {
    let flags = libc::O_NOCTTY | libc::O_NONBLOCK | libc::O_NOFOLLOW;
    let file = fs::OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?;
    if !std::os::unix::fs::FileTypeExt::is_char_device(&file.metadata()?.file_type()) {
        return Err(io::Error::other(format!("{path} of the container is no device")));
    }
    // SAFETY: plain integers: back to blocking.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, libc::O_RDWR) };
    Ok(file.into())
}

/// A terminal of the container's own devpts, so that it has a name there; its master goes to the shim.
pub(super) fn terminal(size: WindowSize, channel: BorrowedFd<'_>) -> io::Result<()> {
    const DEVPTS_MAGIC: i64 = 0x1cd1;
    let master = open_device("/dev/pts/ptmx")?;
    // SAFETY: a zeroed statfs is valid to be filled in.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the struct is valid for the call.
    if unsafe { libc::fstatfs(master.as_raw_fd(), &raw mut stat) } < 0 {
        return Err(io::Error::last_os_error());
    }
    if stat.f_type as i64 != DEVPTS_MAGIC || !Path::new("/dev/pts").is_dir() {
        return Err(io::Error::other("/dev/pts of the container is no devpts"));
    }
    let unlock: libc::c_int = 0;
    let window = libc::winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: each ioctl gets a pointer to what it takes; the last returns a new descriptor, which is ours.
    let slave = unsafe {
        if libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock) < 0 {
            return Err(io::Error::last_os_error());
        }
        libc::ioctl(master.as_raw_fd(), libc::TIOCSWINSZ, &raw const window);
        let fd = libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd)
    };
    // SAFETY: makes the slave the controlling terminal of this session, which has none.
    if unsafe { libc::ioctl(slave.as_raw_fd(), libc::TIOCSCTTY, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    for fd in 0..3 {
        nix::unistd::dup2(slave.as_raw_fd(), fd)?;
    }
    wire::send_message(channel, &HelperMsg::Terminal, &[master.as_raw_fd()])
}
