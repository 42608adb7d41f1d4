//! The lease of a pod with volumes that move: kept here, beside the pod's processes, since the agent may be stopped, gone, or cut off.
//!
//! A timer by the clock that counts suspend wakes the shim. It asks the programs to end a little before, and kills them at the deadline: at
//! once, without a helper, since there may be no memory to fork one, and again until none is left.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    time::Duration,
};

use hearth_types::lease::{Act, Deadline, Moment, Watchdog};

use super::{Container, Shim, complain};
use crate::{clock::boot_time, model::PodLease};

/// How often is killed what does not go.
const AGAIN: Duration = Duration::from_millis(100);

/// What is kept of it.
pub(super) struct Lease {
    of: String,
    dog: Watchdog,
    timer: OwnedFd,
    told: bool,
}

impl Lease {
    pub(super) fn new(lease: PodLease) -> io::Result<Self> {
        // SAFETY: plain integers.
        let fd = unsafe { libc::timerfd_create(libc::CLOCK_BOOTTIME, libc::TFD_CLOEXEC | libc::TFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just returned it to us.
        let timer = unsafe { OwnedFd::from_raw_fd(fd) };
        let lease = Self { of: lease.of, dog: Watchdog::new(lease.deadline, boot_time()), timer, told: false };
        lease.wake_at(lease.dog.next())?;
        Ok(lease)
    }

    pub(super) fn timer(&self) -> RawFd {
        self.timer.as_raw_fd()
    }

    /// As whoever connects is told.
    pub(super) fn told(&self) -> PodLease {
        PodLease { of: self.of.clone(), deadline: self.dog.deadline() }
    }

    fn wake_at(&self, at: Moment) -> io::Result<()> {
        const SECOND: u64 = 1_000_000_000;
        // Zero would disarm it.
        let at = at.0.max(1);
        let mut when = libc::itimerspec {
            it_interval: libc::timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: libc::timespec { tv_sec: 0, tv_nsec: 0 },
        };
        when.it_value.tv_sec = libc::time_t::try_from(at / SECOND).unwrap_or(libc::time_t::MAX);
        when.it_value.tv_nsec = libc::c_long::try_from(at % SECOND).unwrap_or_default();
        let fd = self.timer.as_raw_fd();
        // SAFETY: the descriptor is ours, and the value valid for the call.
        let set = unsafe { libc::timerfd_settime(fd, libc::TFD_TIMER_ABSTIME, &raw const when, std::ptr::null_mut()) };
        if set < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl Shim {
    /// Whether nothing may be begun any more, since the lease is over.
    pub(super) fn is_lease_over(&mut self) -> bool {
        self.lease.as_mut().is_some_and(|lease| lease.dog.is_over(boot_time()))
    }

    /// A later deadline. `false`: there is no lease, or it is over.
    pub(super) fn renew(&mut self, deadline: Deadline) -> bool {
        let Some(lease) = &mut self.lease else { return false };
        let renewed = lease.dog.renew(deadline, boot_time());
        if renewed && let Err(e) = lease.wake_at(lease.dog.next()) {
            complain(&format!("set the timer of the lease: {e}"));
        }
        renewed
    }

    /// The timer went off.
    pub(super) fn look_at_lease(&mut self) {
        let Some(lease) = &mut self.lease else { return };
        let mut count = [0; 8];
        let _ = nix::unistd::read(lease.timer.as_raw_fd(), &mut count);
        let now = boot_time();
        let next = match lease.dog.act(now) {
            Act::Nothing => lease.dog.next(),
            Act::Warn => {
                complain(
                    "the lease of the pod's volumes is nearly over and was not renewed: its programs are asked to end",
                );
                let next = lease.dog.next();
                self.terminate();
                next
            }
            Act::Kill => {
                if !std::mem::replace(&mut lease.told, true) {
                    complain("the lease of the pod's volumes is over: its programs are killed, and nothing is started");
                }
                // Nobody looks often at what is empty; what a helper is still about to make is found, too.
                let left = self.kill_all();
                now.plus(if left { AGAIN } else { AGAIN * 50 })
            }
        };
        if let Some(lease) = &self.lease
            && let Err(e) = lease.wake_at(next)
        {
            complain(&format!("set the timer of the lease: {e}"));
        }
    }

    fn terminate(&self) {
        for pid in self.containers.iter().filter_map(Container::alive) {
            // SAFETY: plain integers; the pid is our unreaped child's.
            unsafe { libc::kill(pid, libc::SIGTERM) };
        }
    }

    /// Kills containers, commands and whatever starts some. Returns whether something was there.
    fn kill_all(&self) -> bool {
        let starting = self.helpers.iter().filter(|helper| helper.starts()).map(|helper| helper.pid);
        let commands = self.execs.iter().filter(|exec| exec.exit.is_none()).filter_map(|exec| exec.pid);
        let containers = self.containers.iter().filter_map(Container::alive);
        let pids: Vec<i32> = starting.chain(commands).chain(containers).collect();
        for pid in &pids {
            // SAFETY: plain integers; the pids are our unreaped children's.
            unsafe { libc::kill(*pid, libc::SIGKILL) };
        }
        // Those of a PID namespace go with its first process; what shares one is found by its cgroup.
        let members = self.sandbox.cgroups.kill_once(&self.sandbox.cgroup);
        members > usize::from(self.sandbox.pause.is_some()) || !pids.is_empty()
    }
}
