//! The last steps before a program runs, the same for containers and for execs: signals, seccomp, execve.

use std::{
    ffi::CString,
    os::fd::{BorrowedFd, RawFd},
    path::Path,
};

use super::verify;
use crate::{
    error::{StartError, because},
    landlock,
    model::ContainerSpec,
    seccomp, sys,
    unprotected::{Protection, lacks},
    wire::{self, HelperMsg},
};

/// Where programs are looked for if the image does not say.
pub(crate) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What is left out of the last steps; nothing in a product.
#[derive(Debug, Clone, Copy, Default)]
struct Without {
    seccomp: bool,
    closed_descriptors: bool,
    verified_mounts: bool,
}

/// A program ready to run; all memory it needs is taken beforehand.
#[derive(Debug, Clone)]
pub(crate) struct Launch {
    args: Vec<CString>,
    env: Vec<CString>,
    /// Paths to try, in this order.
    candidates: Vec<CString>,
    /// Socket for [`HelperMsg`]; close-on-exec.
    channel: RawFd,
    /// In a Landlock domain of its own.
    confined: bool,
    /// Is killed with the shim, its parent.
    ends_with_shim: bool,
    without: Without,
}

impl Launch {
    /// # Errors
    /// A NUL byte in a string.
    pub(crate) fn new(args: &[String], env: &[(String, String)], channel: RawFd) -> Result<Self, StartError> {
        let c = |s: String| CString::new(s).map_err(|_| super::invalid("args", "contains a NUL byte"));
        let program = args.first().cloned().unwrap_or_default();
        let candidates = if program.contains('/') {
            vec![c(program)?]
        } else {
            let path = env.iter().rev().find(|(k, _)| k == "PATH").map_or(DEFAULT_PATH, |(_, v)| v.as_str());
            let dirs = path.split(':').map(|d| if d.is_empty() { "." } else { d });
            dirs.map(|d| c(format!("{d}/{program}"))).collect::<Result<_, _>>()?
        };
        Ok(Self {
            args: args.iter().cloned().map(c).collect::<Result<_, _>>()?,
            env: env.iter().map(|(k, v)| c(format!("{k}={v}"))).collect::<Result<_, _>>()?,
            candidates,
            channel,
            confined: false,
            ends_with_shim: false,
            without: Without::default(),
        })
    }

    /// Runs in a Landlock domain of its own, which looks into no process of others.
    pub(crate) fn confined(mut self) -> Self {
        self.confined = true;
        self
    }

    /// Is killed with the shim, which alone knows when the program has to end. A second line: the program can take it back.
    pub(crate) fn ending_with_shim(mut self) -> Self {
        self.ends_with_shim = true;
        self
    }

    /// Leaves out what the container is to do without.
    pub(crate) fn without(mut self, spec: &ContainerSpec) -> Self {
        let privileges = lacks(spec, Protection::NoNewPrivileges);
        self.confined &= !privileges && !lacks(spec, Protection::Landlock);
        self.without = Without {
            seccomp: privileges || lacks(spec, Protection::Seccomp),
            closed_descriptors: lacks(spec, Protection::ClosedDescriptors),
            // The host's `/proc` has mounts of its own.
            verified_mounts: lacks(spec, Protection::VerifiedMounts) || lacks(spec, Protection::PidNamespace),
        };
        self
    }

    /// Where [`HelperMsg`]s go.
    pub(crate) fn channel(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open in this process until execve: whoever made us keeps it.
        unsafe { BorrowedFd::borrow_raw(self.channel) }
    }

    pub(crate) fn say(&self, message: &HelperMsg) {
        let _ = wire::send_message(self.channel(), message, &[]);
    }

    /// Runs the program in place of this process. Returns only with why it did not, after having said so.
    pub(crate) fn go(&self) -> StartError {
        if let Err(e) = self.verify() {
            self.say(&HelperMsg::Failed(e.clone()));
            return e;
        }
        sys::reset_signals();
        if self.ends_with_shim
            && let Err(e) = sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64)
        {
            let e = StartError::Isolation { reason: because("end with the shim", e) };
            self.say(&HelperMsg::Failed(e.clone()));
            return e;
        }
        self.say(&HelperMsg::Executing);
        if self.without.closed_descriptors {
            for fd in 3..1024 {
                // SAFETY: clears a flag of this process's descriptors.
                let _ = unsafe { libc::fcntl(fd, libc::F_SETFD, 0) };
            }
        }
        let error = self.isolate().err().unwrap_or_else(|| self.execute());
        self.say(&HelperMsg::Failed(error.clone()));
        error
    }

    /// Before seccomp, and before it is said that the program runs.
    fn verify(&self) -> Result<(), StartError> {
        if self.without.verified_mounts {
            return Ok(());
        }
        verify::own_mounts().map_err(|e| StartError::Isolation { reason: because("look at the mounts", e) })
    }

    /// The profile comes last, since it refuses what the domain is made with.
    fn isolate(&self) -> Result<(), StartError> {
        let isolation = |what, e| StartError::Isolation { reason: because(what, e) };
        if self.confined {
            landlock::restrict().map_err(|e| isolation("enter a Landlock domain", e))?;
        }
        if self.without.seccomp {
            return Ok(());
        }
        seccomp::load().map_err(|e| isolation("load the seccomp profile", e))
    }

    fn execute(&self) -> StartError {
        let program = self.args[0].to_string_lossy().into_owned();
        let mut denied = None;
        for candidate in &self.candidates {
            let Err(errno) = nix::unistd::execve(candidate, &self.args, &self.env);
            match errno {
                nix::errno::Errno::ENOENT => {
                    if Path::new(&*candidate.to_string_lossy()).exists() {
                        let reason = "its interpreter or dynamic loader is not in the image".to_owned();
                        return StartError::NotExecutable { program, reason };
                    }
                }
                nix::errno::Errno::ENOTDIR => {}
                nix::errno::Errno::EACCES => denied = Some(errno.desc().to_owned()),
                other => return StartError::NotExecutable { program, reason: other.desc().to_owned() },
            }
        }
        match denied {
            Some(reason) => StartError::NotExecutable { program, reason },
            None => StartError::NoSuchFile { program },
        }
    }
}
