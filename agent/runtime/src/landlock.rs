//! Landlock, a wall behind the namespaces and the profile of system calls: a container's processes change no mounts, make no device nodes,
//! and look into no process that is not of their container, whatever capabilities and calls they may have
//! (landlock(7); Documentation/userspace-api/landlock.rst of the kernel).
//!
//! What a container may read and write is left to its mounts: nothing is asked of the kernel when files are opened.

use std::io;

use landlock::{
    ABI, Access as _, AccessFs, BitFlags, CompatLevel, Compatible as _, PathBeneath, PathFd, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, RulesetStatus,
};

/// The first version that can leave renames from one directory into another alone (5.19).
const LEAST: i64 = 2;

/// Whether the kernel has what is needed.
pub(crate) fn is_there() -> bool {
    let none = std::ptr::null::<libc::c_void>();
    // SAFETY: a query of the version, which takes no pointer.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, none, 0_usize, 1_u32) };
    version >= LEAST
}

/// Puts the calling thread into a domain of its own for ever, if the kernel has what is needed.
///
/// # Errors
/// The kernel has it and refuses, as it does without no_new_privs: the caller must not go on to execute anything.
pub(crate) fn restrict() -> io::Result<()> {
    if !is_there() {
        return Ok(());
    }
    let status = enforce()?;
    if status == RulesetStatus::FullyEnforced { Ok(()) } else { Err(io::Error::other(format!("it is {status:?}"))) }
}

fn enforce() -> io::Result<RulesetStatus> {
    let devices: BitFlags<AccessFs> = AccessFs::MakeChar | AccessFs::MakeBlock;
    debug_assert!(AccessFs::from_all(ABI::V2).contains(devices | AccessFs::Refer));
    // Renames are refused by any rule set that does not name them.
    let root = PathBeneath::new(PathFd::new("/").map_err(io::Error::other)?, AccessFs::Refer);
    let rules = || -> Result<_, landlock::RulesetError> {
        let rules = Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(devices | AccessFs::Refer)?
            .create()?;
        // It is set already, and an error if it is not.
        Ok(rules.add_rule(root)?.no_new_privs(false).restrict_self()?.ruleset)
    };
    rules().map_err(io::Error::other)
}
