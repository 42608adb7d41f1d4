//! The seccomp profile of every container and every exec: an allow-list for the native architecture only, compiled
//! once by the agent before the zygote is forked and inherited as memory, so that nothing has to be read or compiled
//! behind a container's root. Loading it fails closed.

mod table;

use std::{collections::BTreeMap, io, sync::OnceLock};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
    sock_filter,
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
    let families = SOCKET_FAMILIES_DENIED.iter().map(|f| condition(0, SeccompCmpOp::Ne, *f)).collect::<Result<_, _>>()?;
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
}
