//! The seccomp profile of every container and every exec: an allow-list for the native architecture only, compiled
//! once by the agent before the zygote is forked and inherited as memory, so that nothing has to be read or compiled
//! behind a container's root. Loading it fails closed.

#[cfg(test)]
mod calls;
#[cfg(test)]
mod probes;
mod table;

use std::{collections::BTreeMap, io, sync::OnceLock};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};

static PROGRAM: OnceLock<BpfProgram> = OnceLock::new();

/// Flags of clone(2) that make a namespace: NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
const CLONE_NAMESPACES: u64 = 0x7e02_0000;
/// Execution domains of personality(2) that change nothing: PER_LINUX, PER_LINUX32, UNAME26 of both, and the query.
const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];
/// Socket families that lead out of the network namespace (vsock) or into much kernel code (AF_ALG).
const SOCKET_FAMILIES_DENIED: [u64; 2] = [libc::AF_VSOCK as u64, libc::AF_ALG as u64];

/// Compiles the profile; later calls do nothing.
pub(crate) fn preload() -> Result<(), String> {
    if PROGRAM.get().is_none() {
        let program = compile().map_err(|e| e.to_string())?;
        let _ = PROGRAM.set(program);
    }
    Ok(())
}

/// Puts the calling thread under the profile for ever.
///
/// # Errors
/// Whatever the reason, the caller must not go on to execute anything. It is an error if no_new_privs is not set.
pub(crate) fn load() -> io::Result<()> {
    let program = PROGRAM.get().ok_or_else(|| io::Error::other("the profile was not compiled"))?;
    // SAFETY: a query without arguments.
    if unsafe { libc::prctl(libc::PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) } != 1 {
        return Err(io::Error::other("no_new_privs is not set"));
    }
    seccompiler::apply_filter(program).map_err(io::Error::other)
}

fn condition(arg: u8, op: SeccompCmpOp, value: u64) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(arg, SeccompCmpArgLen::Dword, op, value)
}

fn compile() -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = [table::ALLOWED, table::ALLOWED_NATIVE, table::ALLOWED_NEW]
        .concat()
        .into_iter()
        .map(|nr| (nr, Vec::new()))
        .collect();
    let no_namespaces = condition(0, SeccompCmpOp::MaskedEq(CLONE_NAMESPACES), 0)?;
    rules.insert(libc::SYS_clone, vec![SeccompRule::new(vec![no_namespaces])?]);
    let personalities = PERSONALITIES
        .iter()
        .map(|p| SeccompRule::new(vec![condition(0, SeccompCmpOp::Eq, *p)?]))
        .collect::<Result<_, _>>()?;
    rules.insert(libc::SYS_personality, personalities);
    let families =
        SOCKET_FAMILIES_DENIED.iter().map(|f| condition(0, SeccompCmpOp::Ne, *f)).collect::<Result<_, _>>()?;
    rules.insert(libc::SYS_socket, vec![SeccompRule::new(families)?]);

    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let refused = SeccompAction::Errno(libc::EPERM as u32);
    let filter: BpfProgram = SeccompFilter::new(rules, refused, SeccompAction::Allow, arch)?.try_into()?;
    let mut program = not_implemented_prefix();
    program.extend(filter);
    Ok(program)
}

/// Instructions ahead of the filter, which knows one answer only: clone3 and calls newer than the table answer ENOSYS.
/// They look at the number before the architecture is checked, which is safe since they only refuse.
fn not_implemented_prefix() -> BpfProgram {
    const LOAD_NR: sock_filter = sock_filter { code: 0x20, jt: 0, jf: 0, k: 0 };
    const RET_ENOSYS: sock_filter = sock_filter { code: 0x06, jt: 0, jf: 0, k: 0x0005_0000 | libc::ENOSYS as u32 };
    vec![
        LOAD_NR,
        sock_filter { code: 0x15, jt: 1, jf: 0, k: libc::SYS_clone3 as u32 },
        sock_filter { code: 0x25, jt: 0, jf: 1, k: table::NEWEST_KNOWN as u32 },
        RET_ENOSYS,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_profile_compiles_within_the_kernels_limit() {
        const BPF_MAXINSNS: usize = 4096;
        let program = compile().expect("the table is valid");
        assert!(program.len() < BPF_MAXINSNS, "{} instructions", program.len());
    }

    #[test]
    fn ways_out_of_a_container_are_not_in_the_table() {
        let allowed = [table::ALLOWED, table::ALLOWED_NATIVE, table::ALLOWED_NEW].concat();
        for nr in [
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_pivot_root,
            libc::SYS_fsopen,
            libc::SYS_fsmount,
            libc::SYS_open_tree,
            libc::SYS_move_mount,
            libc::SYS_mount_setattr,
            libc::SYS_keyctl,
            libc::SYS_add_key,
            libc::SYS_request_key,
            libc::SYS_bpf,
            libc::SYS_perf_event_open,
            libc::SYS_userfaultfd,
            libc::SYS_io_uring_setup,
            libc::SYS_open_by_handle_at,
            libc::SYS_name_to_handle_at,
            libc::SYS_kexec_load,
            libc::SYS_init_module,
            libc::SYS_finit_module,
            libc::SYS_reboot,
            libc::SYS_swapon,
            libc::SYS_settimeofday,
            libc::SYS_clock_settime,
            libc::SYS_sethostname,
            libc::SYS_syslog,
            libc::SYS_quotactl,
            libc::SYS_acct,
            libc::SYS_pidfd_getfd,
            libc::SYS_clone3,
        ] {
            assert!(!allowed.contains(&nr), "{nr} is allowed");
        }
    }

    /// What the kernel says to calls under the profile, made by a child that is put under it.
    #[test]
    fn the_kernel_refuses_what_the_profile_does_not_allow() {
        preload().expect("compiles");
        let child = crate::sys::fork_child(|| {
            // SAFETY: sets a flag of this child.
            unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
            if load().is_err() {
                return 100;
            }
            let cases: [(libc::c_long, [libc::c_long; 3], i32); 16] = [
                (libc::SYS_getpid, [0; 3], 0),
                (libc::SYS_unshare, [0x1000_0000, 0, 0], libc::EPERM),
                (libc::SYS_unshare, [0; 3], libc::EPERM),
                (libc::SYS_mount, [0; 3], libc::EPERM),
                (libc::SYS_keyctl, [0; 3], libc::EPERM),
                (libc::SYS_bpf, [0; 3], libc::EPERM),
                (libc::SYS_io_uring_setup, [1, 0, 0], libc::EPERM),
                (libc::SYS_setns, [0; 3], libc::EPERM),
                (libc::SYS_clone, [0x1000_0000, 0, 0], libc::EPERM),
                (libc::SYS_clone3, [0; 3], libc::ENOSYS),
                (460, [0; 3], libc::EPERM),
                (5000, [0; 3], libc::ENOSYS),
                (libc::SYS_socket, [libc::AF_VSOCK.into(), libc::SOCK_STREAM.into(), 0], libc::EPERM),
                (libc::SYS_socket, [libc::AF_ALG.into(), libc::SOCK_SEQPACKET.into(), 0], libc::EPERM),
                (libc::SYS_socket, [libc::AF_INET.into(), libc::SOCK_STREAM.into(), 0], 0),
                (libc::SYS_personality, [0x0040_0000, 0, 0], libc::EPERM),
            ];
            for (n, (nr, [a, b, c], expected)) in cases.into_iter().enumerate() {
                // SAFETY: refused calls do nothing; the others take no pointers.
                let ret = unsafe { libc::syscall(nr, a, b, c) };
                let errno = if ret < 0 { io::Error::last_os_error().raw_os_error().unwrap_or(-1) } else { 0 };
                if errno != expected {
                    return n as i32 + 1;
                }
            }
            0
        })
        .expect("forks");
        let mut status = 0;
        // SAFETY: waits for our own child.
        unsafe { libc::waitpid(child.as_raw(), &raw mut status, 0) };
        assert!(libc::WIFEXITED(status), "{status}");
        assert_eq!(libc::WEXITSTATUS(status), 0, "number of the case that differs, from 1 on");
    }

    #[test]
    fn without_no_new_privs_nothing_is_loaded() {
        preload().expect("compiles");
        assert!(load().is_err());
    }
}
