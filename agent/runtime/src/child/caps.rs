//! Linux capabilities, capabilities(7): by name and number, and dropping them.

use std::io;

use crate::{error::StartError, sys};

/// All capabilities of Linux 6.x; the place is the number.
const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// A set of capabilities, a bit each.
pub(crate) type CapSet = u64;

/// Names, with or without `CAP_`, as a set.
pub(crate) fn parse(names: &[String]) -> Result<CapSet, StartError> {
    names.iter().try_fold(0, |set, name| {
        let upper = name.to_ascii_uppercase();
        let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
        let number = NAMES.iter().position(|n| &n[4..] == bare);
        let number = number.ok_or_else(|| super::invalid("capabilities", format!("{name:?} is no capability")))?;
        Ok(set | 1 << number)
    })
}

/// Numbers and names of a set.
pub(crate) fn names(set: CapSet) -> impl Iterator<Item = &'static str> {
    NAMES.iter().enumerate().filter(move |(n, _)| set & (1 << n) != 0).map(|(_, name)| *name)
}

/// The bounding set of this process: what the host can give.
pub(crate) fn bounding() -> io::Result<CapSet> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let field = status.lines().find_map(|l| l.strip_prefix("CapBnd:"));
    field.and_then(|f| u64::from_str_radix(f.trim(), 16).ok()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Drops all but `keep` from the bounding set. Needs CAP_SETPCAP, so call it before changing the user.
pub(crate) fn drop_bounding(keep: CapSet) -> io::Result<()> {
    for n in 0..64 {
        if keep & (1 << n) != 0 {
            continue;
        }
        match sys::prctl(libc::PR_CAPBSET_DROP, n) {
            // Past the last one this kernel knows.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => break,
            other => other?,
        };
    }
    Ok(())
}

/// Sets all other sets of this process to `keep`, the ambient one too, so that a user who is not root has them.
pub(crate) fn set(keep: CapSet) -> io::Result<()> {
    const VERSION_3: u32 = 0x2008_0522;
    let header = Header { version: VERSION_3, pid: 0 };
    let half = |bits: u64| Data { effective: bits as u32, permitted: bits as u32, inheritable: bits as u32 };
    let data = [half(keep), half(keep >> 32)];
    sys::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64)?;
    // SAFETY: header and data are those of version 3: two halves.
    if unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    for n in (0..NAMES.len() as u64).filter(|n| keep & (1 << n) != 0) {
        // SAFETY: plain integers.
        let ret = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, n, 0, 0) };
        if ret < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_with_and_without_prefix() {
        let set = parse(&["NET_BIND_SERVICE".to_owned(), "cap_chown".to_owned()]).expect("known");
        assert_eq!(set, 1 << 10 | 1);
        assert_eq!(names(set).collect::<Vec<_>>(), ["CAP_CHOWN", "CAP_NET_BIND_SERVICE"]);
        assert!(parse(&["CAP_ROOT".to_owned()]).is_err());
    }
}
