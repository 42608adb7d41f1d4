//! The kernel's clock.

/// Whether something keeps this machine's time right: the kernel takes it for synchronised (adjtimex(2)).
pub fn clock_synchronised() -> bool {
    // SAFETY: zeroed, it asks for no change; the kernel fills it in.
    let mut state: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: it is valid for the call.
    let answer = unsafe { libc::adjtimex(&raw mut state) };
    answer >= 0 && answer != libc::TIME_ERROR && state.status & libc::STA_UNSYNC == 0
}
