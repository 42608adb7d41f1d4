//! The kernel's clocks.

use hearth_types::lease::Moment;

/// Whether something keeps this machine's time right: the kernel takes it for synchronised (adjtimex(2)).
pub fn clock_synchronised() -> bool {
    // SAFETY: zeroed, it asks for no change; the kernel fills it in.
    let mut state: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: it is valid for the call.
    let answer = unsafe { libc::adjtimex(&raw mut state) };
    answer >= 0 && answer != libc::TIME_ERROR && state.status & libc::STA_UNSYNC == 0
}

/// Now, by the clock that counts the time since the machine started with that in suspend (`CLOCK_BOOTTIME`, clock_gettime(2)): nobody sets it.
pub fn boot_time() -> Moment {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: it is valid for the call, which every kernel since 2.6.39 knows.
    let answer = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now) };
    assert_eq!(answer, 0, "CLOCK_BOOTTIME is there");
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    Moment(seconds.saturating_mul(1_000_000_000) + u64::try_from(now.tv_nsec).unwrap_or_default())
}
