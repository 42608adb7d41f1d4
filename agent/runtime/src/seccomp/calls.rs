//! System calls that the profile refuses and that are harmless when they succeed: each to a caller with namespaces of
//! its own. `tests/hostile` makes them too, from inside containers.

use std::ffi::c_long;

const HOST: &[u8] = b"probe";
const ROOT: &std::ffi::CStr = c"/";

/// A name, and a call that is harmless in mount, UTS and IPC namespaces of the caller's own.
pub(crate) type Call = (&'static str, fn() -> c_long);

/// Makes a call of up to five arguments.
fn call(nr: c_long, args: [c_long; 5]) -> c_long {
    // SAFETY: pointers among the arguments are to live memory of the caller, of the size that the call needs.
    unsafe { libc::syscall(nr, args[0], args[1], args[2], args[3], args[4]) }
}

fn address<T: ?Sized>(of: *const T) -> c_long {
    of.cast::<u8>() as c_long
}

pub(crate) const CALLS: &[Call] = &[
    ("unshare", || call(libc::SYS_unshare, [libc::CLONE_NEWUTS.into(), 0, 0, 0, 0])),
    ("unshare of a user namespace", || call(libc::SYS_unshare, [libc::CLONE_NEWUSER.into(), 0, 0, 0, 0])),
    ("clone into a namespace", || {
        let child = call(libc::SYS_clone, [(libc::CLONE_NEWUTS | libc::SIGCHLD).into(), 0, 0, 0, 0]);
        if child == 0 {
            // SAFETY: ends the new child at once.
            unsafe { libc::_exit(0) };
        }
        child
    }),
    ("setns", || {
        // SAFETY: the path is a constant.
        let own = unsafe { libc::open(c"/proc/self/ns/uts".as_ptr(), libc::O_RDONLY) };
        call(libc::SYS_setns, [own.into(), 0, 0, 0, 0])
    }),
    ("mount", || {
        call(libc::SYS_mount, [address(ROOT.as_ptr()), address(c"/mnt".as_ptr()), 0, libc::MS_BIND as c_long, 0])
    }),
    ("umount2", || call(libc::SYS_umount2, [address(c"/dev".as_ptr()), libc::MNT_DETACH.into(), 0, 0, 0])),
    ("open_tree", || call(libc::SYS_open_tree, [libc::AT_FDCWD.into(), address(ROOT.as_ptr()), 1, 0, 0])),
    ("fsopen", || call(libc::SYS_fsopen, [address(c"tmpfs".as_ptr()), 0, 0, 0, 0])),
    ("name_to_handle_at", || {
        let mut handle = [128_u32; 40];
        let mut id = 0_i32;
        let (handle, id) = (address(handle.as_mut_ptr()), address(&raw mut id));
        call(libc::SYS_name_to_handle_at, [libc::AT_FDCWD.into(), address(c"/dev".as_ptr()), handle, id, 0])
    }),
    ("sethostname", || call(libc::SYS_sethostname, [address(HOST.as_ptr()), HOST.len() as c_long, 0, 0, 0])),
    ("setdomainname", || call(libc::SYS_setdomainname, [address(HOST.as_ptr()), HOST.len() as c_long, 0, 0, 0])),
    ("keyctl", || call(libc::SYS_keyctl, [1, 0, 0, 0, 0])), // KEYCTL_JOIN_SESSION_KEYRING, a new one
    ("add_key", || {
        let (kind, name) = (address(c"user".as_ptr()), address(c"probe".as_ptr()));
        let process_keyring = -2;
        call(libc::SYS_add_key, [kind, name, address(HOST.as_ptr()), HOST.len() as c_long, process_keyring])
    }),
    ("bpf", || {
        let array = [2_u32, 4, 4, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]; // BPF_MAP_TYPE_ARRAY of one number
        call(libc::SYS_bpf, [0, address(array.as_ptr()), 72, 0, 0])
    }),
    ("io_uring_setup", || {
        let mut parameters = [0_u64; 15];
        call(libc::SYS_io_uring_setup, [1, address(parameters.as_mut_ptr()), 0, 0, 0])
    }),
    ("userfaultfd", || call(libc::SYS_userfaultfd, [0; 5])),
    ("pidfd_getfd", || {
        let own = call(libc::SYS_pidfd_open, [std::process::id().into(), 0, 0, 0, 0]);
        call(libc::SYS_pidfd_getfd, [own, own, 0, 0, 0])
    }),
    ("kcmp", || {
        let own = std::process::id().into();
        call(libc::SYS_kcmp, [own, own, 1, 0, 0])
    }),
    ("syslog", || call(libc::SYS_syslog, [10, 0, 0, 0, 0])), // the size of the kernel's log
    ("personality without random addresses", || call(libc::SYS_personality, [0x0004_0000, 0, 0, 0, 0])),
];
