//! The command line that `ps` shows for processes that were forked and never executed anything.

use std::{ffi::CStr, io};

use crate::sys;

/// Where the kernel keeps the arguments and the environment of this process: (start, end of both).
fn area() -> io::Result<(usize, usize)> {
    const ARG_START: usize = 48;
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "/proc/self/stat");
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // The second field, the name, may contain spaces and parentheses; the third follows the last parenthesis.
    let rest = stat.rsplit_once(')').ok_or_else(bad)?.1;
    let fields: Vec<usize> = rest.split_whitespace().skip(ARG_START - 3).take(4).flat_map(str::parse).collect();
    let [arg_start, arg_end, env_start, env_end] = fields[..] else { return Err(bad()) };
    if arg_start == 0 || arg_end <= arg_start {
        return Err(bad());
    }
    let end = if env_start == arg_end && env_end > env_start { env_end } else { arg_end };
    Ok((arg_start, end))
}

/// Rewrites the command line and the short name. Empties the environment, whose place a long title needs.
///
/// A title that does not fit is cut: the place is that of the arguments and environment the process began with.
///
/// # Assumptions
/// One thread, and nothing holds on to strings of the environment.
pub(crate) fn set(title: &str, comm: &CStr) {
    sys::set_comm(comm);
    // SAFETY: one thread; the pointers of the environment are dropped before its bytes are overwritten.
    unsafe { libc::clearenv() };
    let Ok((start, end)) = area() else { return };
    let len = title.len().min(end - start - 1);
    // SAFETY: the kernel mapped [start, end) writable at execve for arguments and environment, and it stays mapped.
    unsafe {
        std::ptr::write_bytes(start as *mut u8, 0, end - start);
        std::ptr::copy_nonoverlapping(title.as_ptr(), start as *mut u8, len);
    }
}
