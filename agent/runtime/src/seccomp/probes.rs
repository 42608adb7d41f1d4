//! What the profile alone refuses. Each probe is made twice by a child that is root on the host: without the profile it
//! must succeed, so that the probe is known to work, and under the profile it must be refused.

use std::{ffi::c_long, io};

use super::{calls::CALLS, load, preload, table};

const PAGE: &str = include_str!("../../ISOLATION.md");
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
    for (name, probe) in CALLS {
        let (without, under) = (outcome(*probe, false), outcome(*probe, true));
        if (without, under) != (0, libc::EPERM) {
            wrong.push(format!("{name}: errno {without} without the profile, {under} under it"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
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
