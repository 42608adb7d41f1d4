//! What the profile alone refuses. Each probe is made twice by a child that is root on the host: without the profile it
//! must succeed, so that the probe is known to work, and under the profile it must be refused.

use std::{ffi::c_long, io};

use super::{load, preload, table};

const PAGE: &str = include_str!("../../ISOLATION.md");
const HOST: &[u8] = b"probe";
const ROOT: &std::ffi::CStr = c"/";

/// In Docker's profile for a container without capabilities, and not in ours. ISOLATION.md has the reasons.
#[cfg(target_arch = "x86_64")]
const ONLY_IN_DOCKERS: &[(&str, c_long)] = &[
    ("io_pgetevents", 333),
    ("listmount", 458),
    ("modify_ldt", libc::SYS_modify_ldt),
    ("name_to_handle_at", libc::SYS_name_to_handle_at),
    ("statmount", 457),
    ("uretprobe", 335),
];
/// In ours, and in Docker's only with a capability.
#[cfg(target_arch = "x86_64")]
const ONLY_IN_OURS: &[(&str, c_long)] = &[("chroot", libc::SYS_chroot)];
/// Calls of the tables, `clone`, `personality` and `socket` when they were compared with Docker's.
#[cfg(target_arch = "x86_64")]
const COMPARED: usize = 303;

/// A name, and a call that is harmless in mount, UTS and IPC namespaces of the caller's own.
type Probe = (&'static str, fn() -> c_long);

/// Makes a call of up to five arguments.
fn call(nr: c_long, args: [c_long; 5]) -> c_long {
    // SAFETY: pointers among the arguments are to live memory of the caller, of the size that the call needs.
    unsafe { libc::syscall(nr, args[0], args[1], args[2], args[3], args[4]) }
}

fn address<T: ?Sized>(of: *const T) -> c_long {
    of.cast::<u8>() as c_long
}

const PROBES: &[Probe] = &[
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
        call(libc::SYS_name_to_handle_at, [libc::AT_FDCWD.into(), address(ROOT.as_ptr()), handle, id, 0])
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

/// 0 if the probe succeeds, else its errno; the child's preparations end with 254 or 255.
fn outcome(probe: fn() -> c_long, profile: bool) -> i32 {
    let child = crate::sys::fork_child(|| {
        let own = libc::CLONE_NEWNS | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC;
        // SAFETY: changes namespaces and a flag of this child; the paths are constants.
        let ready = unsafe {
            libc::unshare(own) == 0
                && libc::mount(
                    ROOT.as_ptr(),
                    ROOT.as_ptr(),
                    std::ptr::null(),
                    libc::MS_REC | libc::MS_PRIVATE,
                    std::ptr::null(),
                ) == 0
                && libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
        };
        if !ready {
            return 254;
        }
        if profile && load().is_err() {
            return 255;
        }
        if probe() >= 0 { 0 } else { io::Error::last_os_error().raw_os_error().unwrap_or(253) }
    })
    .expect("forks");
    let mut status = 0;
    // SAFETY: waits for our own child.
    unsafe { libc::waitpid(child.as_raw(), &raw mut status, 0) };
    assert!(libc::WIFEXITED(status), "{status}");
    libc::WEXITSTATUS(status)
}

#[test]
fn what_succeeds_without_the_profile_is_refused_under_it() {
    preload().expect("compiles");
    let mut wrong = Vec::new();
    for (name, probe) in PROBES {
        let (without, under) = (outcome(*probe, false), outcome(*probe, true));
        if (without, under) != (0, libc::EPERM) {
            wrong.push(format!("{name}: errno {without} without the profile, {under} under it"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_page_lists_the_probes() {
    let listed: Vec<_> = PAGE.lines().filter_map(|l| l.strip_prefix("| ")?.strip_suffix(" | EPERM |")).collect();
    assert_eq!(listed, PROBES.iter().map(|(name, _)| *name).collect::<Vec<_>>());
}

/// A call that is added or removed must be compared anew, and the page with it.
#[cfg(target_arch = "x86_64")]
#[test]
fn the_page_says_how_the_profile_differs_from_dockers() {
    let tables = [table::ALLOWED, table::ALLOWED_NATIVE, table::ALLOWED_NEW].concat();
    let different = tables.iter().collect::<std::collections::BTreeSet<_>>().len();
    assert_eq!(different + 3, COMPARED, "compare with Docker's profile anew");
    for (name, nr) in ONLY_IN_DOCKERS {
        assert!(!tables.contains(nr), "{name} is allowed");
        assert!(PAGE.contains(&format!("- `{name}`: ")), "{name} is not on the page");
    }
    for (name, nr) in ONLY_IN_OURS {
        assert!(tables.contains(nr), "{name} is refused");
        assert!(PAGE.contains(&format!("- `{name}`: ")), "{name} is not on the page");
    }
}
