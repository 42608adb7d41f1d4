//! System calls that nix does not wrap, and the few process primitives everything here is built on.

use std::{
    ffi::{CStr, CString},
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use nix::unistd::{ForkResult, Pid};

/// `struct mount_attr` of mount_setattr(2).
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct MountAttr {
    pub(crate) attr_set: u64,
    pub(crate) attr_clr: u64,
    pub(crate) propagation: u64,
    pub(crate) userns_fd: u64,
}

/// `struct open_how` of openat2(2).
#[repr(C)]
struct OpenHow {
    flags: u64,
    mode: u64,
    resolve: u64,
}

pub(crate) const MOUNT_ATTR_RDONLY: u64 = 0x1;
pub(crate) const MOUNT_ATTR_NOSUID: u64 = 0x2;
pub(crate) const MOUNT_ATTR_NODEV: u64 = 0x4;
pub(crate) const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;
const FSCONFIG_SET_FLAG: u32 = 0;
const FSCONFIG_SET_STRING: u32 = 1;
const FSCONFIG_SET_FD: u32 = 5;
const FSCONFIG_CMD_CREATE: u32 = 6;
const FSOPEN_CLOEXEC: u32 = 1;
const FSMOUNT_CLOEXEC: u32 = 1;
const MOVE_MOUNT_F_EMPTY_PATH: u32 = 0x4;
/// Symbolic links, absolute ones too, stay below the directory the lookup began at.
const RESOLVE_IN_ROOT: u64 = 0x10;
const RESOLVE_NO_MAGICLINKS: u64 = 0x02;
/// Symbolic links that lead out of the directory the lookup began at are errors.
const RESOLVE_BENEATH: u64 = 0x08;

fn check(ret: libc::c_long) -> io::Result<libc::c_long> {
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(ret) }
}

fn owned(ret: libc::c_long) -> io::Result<OwnedFd> {
    let fd = check(ret)?;
    // SAFETY: the kernel just returned this descriptor to us; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

pub(crate) fn cpath(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// A detached copy of the mount at `path` (one mount, not what is mounted below it).
pub(crate) fn open_tree(path: &Path) -> io::Result<OwnedFd> {
    let path = cpath(path)?;
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    // SAFETY: the path is a NUL-terminated string that outlives the call.
    owned(unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) })
}

/// Changes the attributes of the (detached) mount `fd`.
pub(crate) fn mount_setattr(fd: BorrowedFd<'_>, attr: MountAttr) -> io::Result<()> {
    // SAFETY: the path is a NUL-terminated constant, the struct has the size that is passed.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    })
    .map(drop)
}

/// Attaches the detached mount `fd` at `target`.
pub(crate) fn move_mount(fd: BorrowedFd<'_>, target: &Path) -> io::Result<()> {
    let target = cpath(target)?;
    // SAFETY: both paths are NUL-terminated and outlive the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            fd.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        )
    })
    .map(drop)
}

/// A file system being configured: fsopen(2), fsconfig(2), fsmount(2).
#[derive(Debug)]
pub(crate) struct FsContext(OwnedFd);

impl FsContext {
    pub(crate) fn open(fs: &CStr) -> io::Result<Self> {
        // SAFETY: the name is NUL-terminated and outlives the call.
        owned(unsafe { libc::syscall(libc::SYS_fsopen, fs.as_ptr(), FSOPEN_CLOEXEC) }).map(Self)
    }

    pub(crate) fn set(&self, key: &CStr, value: &CStr) -> io::Result<()> {
        // SAFETY: both strings are NUL-terminated and outlive the call.
        check(unsafe {
            libc::syscall(libc::SYS_fsconfig, self.0.as_raw_fd(), FSCONFIG_SET_STRING, key.as_ptr(), value.as_ptr(), 0)
        })
        .map(drop)
        .map_err(|e| self.explain(e))
    }

    pub(crate) fn set_flag(&self, key: &CStr) -> io::Result<()> {
        let none = std::ptr::null::<libc::c_char>();
        // SAFETY: the key is NUL-terminated; a flag has no value.
        check(unsafe {
            libc::syscall(libc::SYS_fsconfig, self.0.as_raw_fd(), FSCONFIG_SET_FLAG, key.as_ptr(), none, 0)
        })
        .map(drop)
        .map_err(|e| self.explain(e))
    }

    pub(crate) fn set_fd(&self, key: &CStr, fd: BorrowedFd<'_>) -> io::Result<()> {
        let none = std::ptr::null::<libc::c_char>();
        // SAFETY: the key is NUL-terminated; the descriptor is open while borrowed.
        check(unsafe {
            libc::syscall(libc::SYS_fsconfig, self.0.as_raw_fd(), FSCONFIG_SET_FD, key.as_ptr(), none, fd.as_raw_fd())
        })
        .map(drop)
        .map_err(|e| self.explain(e))
    }

    /// Creates the superblock and a detached mount of it.
    pub(crate) fn mount(&self, attrs: u64) -> io::Result<OwnedFd> {
        let none = std::ptr::null::<libc::c_char>();
        // SAFETY: this command takes no key, no value.
        check(unsafe { libc::syscall(libc::SYS_fsconfig, self.0.as_raw_fd(), FSCONFIG_CMD_CREATE, none, none, 0) })
            .map_err(|e| self.explain(e))?;
        // SAFETY: plain integers.
        owned(unsafe { libc::syscall(libc::SYS_fsmount, self.0.as_raw_fd(), FSMOUNT_CLOEXEC, attrs) })
    }

    /// The kernel's own words about a failure, which it queues on the context.
    fn explain(&self, err: io::Error) -> io::Error {
        let mut buf = [0u8; 256];
        match nix::unistd::read(self.0.as_raw_fd(), &mut buf) {
            Ok(n) if n > 0 => {
                let text = String::from_utf8_lossy(&buf[..n]);
                io::Error::new(err.kind(), format!("{err} ({})", text.trim()))
            }
            _ => err,
        }
    }
}

/// Opens `path` as if `root` were the root directory: no symbolic link leads out of it.
pub(crate) fn open_in_root(root: BorrowedFd<'_>, path: &Path, flags: i32) -> io::Result<OwnedFd> {
    openat2(root, path, flags, RESOLVE_IN_ROOT)
}

/// Opens `path` beneath `root`. A symbolic link that leads out of it, as every absolute one does, is an error (EXDEV).
pub(crate) fn open_beneath(root: BorrowedFd<'_>, path: &Path, flags: i32) -> io::Result<OwnedFd> {
    /// The kernel gives up a lookup with `..` in it where something is renamed meanwhile, and says so.
    const TRIES: usize = 64;
    let mut tries = 0;
    loop {
        match openat2(root, path, flags, RESOLVE_BENEATH) {
            Err(e) if e.raw_os_error() == Some(libc::EAGAIN) && tries < TRIES => tries += 1,
            other => return other,
        }
    }
}

fn openat2(root: BorrowedFd<'_>, path: &Path, flags: i32, resolve: u64) -> io::Result<OwnedFd> {
    let path = cpath(path)?;
    let how = OpenHow {
        flags: (flags | libc::O_CLOEXEC) as u64,
        mode: if flags & libc::O_CREAT != 0 { 0o644 } else { 0 },
        resolve: resolve | RESOLVE_NO_MAGICLINKS,
    };
    // SAFETY: the path is NUL-terminated, the struct has the size that is passed.
    owned(unsafe {
        libc::syscall(libc::SYS_openat2, root.as_raw_fd(), path.as_ptr(), &raw const how, size_of::<OpenHow>())
    })
}

pub(crate) fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: plain integers.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

pub(crate) fn pidfd_send_signal(fd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: no siginfo is passed.
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd.as_raw_fd(), signal, none, 0) }).map(drop)
}

/// Enters the namespaces of `flags` that the process of this pidfd is in (5.8).
pub(crate) fn setns_all(pidfd: BorrowedFd<'_>, flags: i32) -> io::Result<()> {
    // SAFETY: plain integers.
    check(unsafe { libc::syscall(libc::SYS_setns, pidfd.as_raw_fd(), flags) }).map(drop)
}

/// Closes every descriptor from 3 on but those of `keep`.
///
/// # Safety
/// The caller must own the process: no `OwnedFd` of a descriptor that is not kept may be used or dropped afterwards.
pub(crate) unsafe fn close_all_but(keep: &[RawFd]) -> io::Result<()> {
    let mut keep: Vec<u32> = keep.iter().filter(|fd| **fd > 2).map(|fd| *fd as u32).collect();
    keep.sort_unstable();
    keep.dedup();
    let mut from = 3u32;
    for fd in keep.into_iter().chain([u32::MAX]) {
        if fd > from {
            let last = if fd == u32::MAX { u32::MAX } else { fd - 1 };
            // SAFETY: the caller vouches for the descriptors.
            check(unsafe { libc::syscall(libc::SYS_close_range, from, last, 0) })?;
        }
        from = fd.wrapping_add(1);
    }
    Ok(())
}

/// Forks. The child runs `child` and never returns into the caller's frames, even if it panics.
///
/// # Assumptions
/// The process has one thread: callers are the zygote, the shim, their children, or main before it makes threads.
pub(crate) fn fork_child(child: impl FnOnce() -> i32) -> io::Result<Pid> {
    // SAFETY: one thread, so that no lock can be held by a thread that does not exist in the child.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => run_and_exit(child),
    }
}

/// Forks a sibling: the child's parent is the caller's parent.
pub(crate) fn fork_sibling(child: impl FnOnce() -> i32) -> io::Result<Pid> {
    let flags = libc::c_long::from(libc::CLONE_PARENT);
    // SAFETY: one thread; no stack is given, so both go on with a copy of this one, as with fork.
    match check(unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) })? {
        0 => run_and_exit(child),
        pid => Ok(Pid::from_raw(pid as i32)),
    }
}

fn run_and_exit(child: impl FnOnce() -> i32) -> ! {
    let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child)).unwrap_or(101);
    // SAFETY: ends the process without running the parent's exit handlers a second time.
    unsafe { libc::_exit(code) }
}

/// Gives every signal its default action and unblocks all, glibc's internal ones (32, 33) too.
pub(crate) fn reset_signals() {
    #[repr(C)]
    struct KernelSigaction {
        handler: usize,
        flags: libc::c_ulong,
        restorer: usize,
        mask: u64,
    }
    const KERNEL_SIGSET_BYTES: usize = 8;
    let default = KernelSigaction { handler: libc::SIG_DFL, flags: 0, restorer: 0, mask: 0 };
    let none = std::ptr::null_mut::<KernelSigaction>();
    for signal in 1..=64 {
        // SAFETY: the layout is the kernel's; SIGKILL and SIGSTOP answer EINVAL, which does not matter.
        unsafe {
            libc::syscall(libc::SYS_rt_sigaction, signal, &raw const default, none, KERNEL_SIGSET_BYTES);
        }
    }
    let empty = 0u64;
    // SAFETY: sets the mask from an 8-byte set, the size that is passed.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const empty,
            std::ptr::null_mut::<u64>(),
            KERNEL_SIGSET_BYTES,
        );
    }
}

/// prctl(2) with one argument.
pub(crate) fn prctl(option: i32, arg: u64) -> io::Result<i32> {
    // SAFETY: callers pass options whose argument is an integer.
    let ret = unsafe { libc::prctl(option, arg as libc::c_ulong, 0, 0, 0) };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(ret) }
}

/// Sets the name that `ps -o comm` shows; 15 bytes.
pub(crate) fn set_comm(name: &CStr) {
    // SAFETY: a NUL-terminated string.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0) };
}

/// Reaps one child that ended, if any.
pub(crate) fn reap() -> Option<(i32, Exit)> {
    let mut status = 0;
    // Not through nix: it knows no real-time signals and would lose the status of what they ended.
    // SAFETY: the status is a valid place for an int.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
    if pid <= 0 {
        return None;
    }
    let exit = if libc::WIFSIGNALED(status) {
        Exit { code: None, signal: Some(libc::WTERMSIG(status)) }
    } else {
        Exit { code: Some(libc::WEXITSTATUS(status)), signal: None }
    };
    Some((pid, exit))
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exit {
    pub(crate) code: Option<i32>,
    pub(crate) signal: Option<i32>,
}
