//! A container as its shim holds it.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::{AsRawFd, OwnedFd},
    path::PathBuf,
    time::{Instant, SystemTime},
};

use super::{
    attach::Attachments,
    budget::Budget,
    log::{LogWriter, Stream},
    setup::Sandbox,
};
use crate::{
    model::{ContainerSpec, ContainerState, ContainerStatus},
    record::ContainerRecord,
    sys::Exit,
};

/// Most bytes taken from one pipe before others get their turn: the size of a pipe.
const TURN_BYTES: usize = 64 << 10;
/// Most bytes taken from a pipe after its container ended, should somebody else hold its other end.
const LAST_BYTES: usize = 1 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The helper of this number makes it.
    Starting(u64),
    Running {
        started_at: SystemTime,
    },
    Exited(ContainerState),
    /// The helper of this number removes it.
    Removing {
        helper: u64,
        was: Option<ContainerState>,
    },
}

#[derive(Debug)]
pub(super) struct Container {
    pub(super) name: String,
    pub(super) attempt: u32,
    pub(super) scratch: PathBuf,
    pub(super) phase: Phase,
    pub(super) pid: Option<i32>,
    /// It is in the PID namespace of another container.
    pub(super) joined: bool,
    /// Its first process was reaped.
    pub(super) exit: Option<Exit>,
    log: LogWriter,
    budget: Budget,
    /// Read ends: stdout, stderr, the master of its terminal; none at their end.
    pipes: [Option<File>; STREAMS.len()],
    pub(super) attachments: Attachments,
}

/// Which stream each read end is one of: a terminal has output alone.
const STREAMS: [Stream; 3] = [Stream::Stdout, Stream::Stderr, Stream::Stdout];

/// The ends of its streams that a container gets.
pub(crate) struct TheirEnds {
    /// None is `/dev/null`.
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

pub(super) fn nonblocking(fd: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: plain integers on a descriptor that is open while borrowed.
    if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Name of a container's files, cgroup and libcontainer state.
pub(crate) fn id(name: &str, attempt: u32) -> String {
    format!("{name}.{attempt}")
}

impl Container {
    /// Opens the log and its pipes; returns the container's ends too.
    pub(super) fn new(spec: &ContainerSpec, helper: u64) -> io::Result<(Self, TheirEnds)> {
        let log = LogWriter::open(&spec.log_path, spec.log)?;
        let (out_r, out_w) = io::pipe()?;
        let (err_r, err_w) = io::pipe()?;
        nonblocking(&out_r)?;
        nonblocking(&err_r)?;
        // A terminal is made by the container's own process, in its own devpts.
        let (theirs, ours) = if spec.stdin && !spec.terminal {
            let (read, write) = io::pipe()?;
            (Some(OwnedFd::from(read)), Some(OwnedFd::from(write)))
        } else {
            (None, None)
        };
        let container = Self {
            name: spec.name.clone(),
            attempt: spec.attempt,
            scratch: spec.scratch.clone(),
            phase: Phase::Starting(helper),
            pid: None,
            joined: spec.processes_of.is_some(),
            exit: None,
            log,
            budget: Budget::new(Instant::now()),
            pipes: [Some(OwnedFd::from(out_r).into()), Some(OwnedFd::from(err_r).into()), None],
            attachments: Attachments::new(spec, ours),
        };
        Ok((container, TheirEnds { stdin: theirs, stdout: out_w.into(), stderr: err_w.into() }))
    }

    /// Its first process has made its terminal.
    pub(super) fn has_terminal(&mut self, master: OwnedFd) {
        if nonblocking(&master).is_ok()
            && let Ok(copy) = master.try_clone()
        {
            self.pipes[2] = Some(copy.into());
            self.attachments.has_terminal(master);
        }
    }

    pub(super) fn id(&self) -> String {
        id(&self.name, self.attempt)
    }

    pub(super) fn status(&self) -> Option<ContainerStatus> {
        let state = match self.phase {
            Phase::Running { started_at } => ContainerState::Running { pid: self.pid? as u32, started_at },
            Phase::Exited(state) => state,
            Phase::Starting(_) | Phase::Removing { .. } => return None,
        };
        Some(ContainerStatus { name: self.name.clone(), attempt: self.attempt, state })
    }

    /// Its first process runs, as far as we know.
    pub(super) fn alive(&self) -> Option<i32> {
        self.pid.filter(|_| self.exit.is_none())
    }

    pub(super) fn pipe_fds(&self) -> impl Iterator<Item = (usize, i32)> + '_ {
        self.pipes.iter().enumerate().filter_map(|(n, p)| p.as_ref().map(|p| (n, p.as_raw_fd())))
    }

    /// When its pipes may be read.
    pub(super) fn reads_at(&self) -> Instant {
        self.budget.ready_at()
    }

    /// Takes what a pipe holds, one turn of it, and no more than the container may log by now.
    pub(super) fn drain(&mut self, n: usize) {
        let now = Instant::now();
        let allowed = self.budget.allowed(now).min(TURN_BYTES);
        if allowed == 0 {
            return;
        }
        let (written, lines) = self.log.totals();
        let read = self.drain_up_to(n, allowed);
        let (written, lines) = (self.log.totals().0 - written, self.log.totals().1 - lines);
        self.budget.spend(read, written, lines, now);
        if let Some(notice) = self.budget.notice(now) {
            // Among what is not written at this moment, where it parts no long line.
            let other = if STREAMS[n] == Stream::Stdout { Stream::Stderr } else { Stream::Stdout };
            self.log.say(other, SystemTime::now(), notice.as_bytes());
        }
    }

    /// Returns how many bytes it took.
    fn drain_up_to(&mut self, n: usize, bound: usize) -> usize {
        let stream = STREAMS[n];
        let Some(pipe) = &mut self.pipes[n] else { return 0 };
        let mut buf = [0; 16 << 10];
        let mut taken = 0;
        while taken < bound {
            let room = buf.len().min(bound - taken);
            match pipe.read(&mut buf[..room]) {
                Ok(len) if len > 0 => {
                    self.log.take(stream, SystemTime::now(), &buf[..len]);
                    self.attachments.give(stream, &buf[..len]);
                    taken += len;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return taken,
                // The end, which a terminal tells by EIO.
                Ok(_) | Err(_) => {
                    self.log.end(stream, SystemTime::now());
                    self.pipes[n] = None;
                    return taken;
                }
            }
        }
        taken
    }

    /// The first process was reaped and the start is over: writes the end of the logs and the record of the exit.
    pub(super) fn finish(&mut self, sandbox: &Sandbox, started_at: SystemTime, exit: Exit) -> ContainerStatus {
        let finished_at = SystemTime::now();
        for (n, stream) in STREAMS.into_iter().enumerate() {
            self.drain_up_to(n, LAST_BYTES);
            if self.pipes[n].take().is_some() {
                self.log.end(stream, finished_at);
            }
        }
        let killed = sandbox.cgroups.oom_kills(&sandbox.cgroup.join(self.id())) > 0;
        let state = ContainerState::Exited {
            exit_code: exit.code,
            signal: exit.signal,
            oom_killed: killed && exit.code != Some(0),
            started_at,
            finished_at,
        };
        self.phase = Phase::Exited(state);
        let status = ContainerStatus { name: self.name.clone(), attempt: self.attempt, state };
        self.record(sandbox, status.clone());
        status
    }

    /// Writes the record; a disk that is full must not end the shim, which still knows.
    pub(super) fn record(&self, sandbox: &Sandbox, status: ContainerStatus) {
        if let Err(e) = ContainerRecord::new(status, self.scratch.clone()).write(&sandbox.pod_dir) {
            super::complain(&format!("record of container {}: {e}", self.id()));
        }
    }
}
