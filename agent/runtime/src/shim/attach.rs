//! Those who are attached to a container: they get what it writes from then on, and may write to it.
//!
//! Output is passed on by the shim, which has to log it anyway; input and terminal are handed over as descriptors, so that the shim carries
//! none of it.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{
    Shim,
    conn::Role,
    container::{Phase, nonblocking},
    log::Stream,
};
use crate::{model::ContainerSpec, wire::Reply};

/// Who may be attached to a container at a time.
const MAX_ATTACHED: usize = 8;
/// What may wait for somebody who is slow, in bytes, before the container has to: what any process may have for a pipe (`fs.pipe-max-size`).
const PIPE_BYTES: i32 = 1 << 20;
/// How long a container waits for somebody who does not read, as it would for a terminal; then they are cut off.
const PATIENCE: Duration = Duration::from_secs(5);

/// One of the two pipes that somebody reads.
#[derive(Debug)]
struct Out {
    pipe: File,
    /// What did not fit, less than was taken from the container at once.
    rest: Vec<u8>,
}

impl Out {
    /// Writes what fits; false where nobody reads.
    fn flush(&mut self) -> bool {
        while !self.rest.is_empty() {
            match self.pipe.write(&self.rest) {
                Ok(len) => drop(self.rest.drain(..len)),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return e.kind() == io::ErrorKind::WouldBlock,
            }
        }
        true
    }
}

#[derive(Debug)]
struct Attached {
    conn: u64,
    /// For output and errors; none once nobody reads it.
    outs: [Option<Out>; 2],
    stdin: bool,
    /// Since when something of it waits.
    behind: Option<Instant>,
    /// The container has ended: once it has all of the output, it is done.
    ended: bool,
}

impl Attached {
    fn flush(&mut self) {
        for out in &mut self.outs {
            if out.as_mut().is_some_and(|one| !one.flush()) {
                *out = None;
            }
        }
        let waits = self.outs.iter().flatten().any(|out| !out.rest.is_empty());
        self.behind = if waits { self.behind.or_else(|| Some(Instant::now())) } else { None };
    }
}

/// Who is attached to a container, and what they get.
#[derive(Debug)]
pub(super) struct Attachments {
    all: Vec<Attached>,
    /// The write end of its input, or its terminal's master.
    stdin: Option<OwnedFd>,
    terminal: bool,
    wants_stdin: bool,
    once: bool,
}

impl Attachments {
    pub(super) fn new(spec: &ContainerSpec, stdin: Option<OwnedFd>) -> Self {
        let (terminal, wants_stdin, once) = (spec.terminal, spec.stdin, spec.stdin && spec.stdin_once);
        Self { all: Vec::new(), stdin, terminal, wants_stdin, once }
    }

    pub(super) fn has_terminal(&mut self, master: OwnedFd) {
        self.stdin = Some(master);
    }

    /// Passes output on. What does not fit waits, and [`Self::is_behind`] until it is out.
    pub(super) fn give(&mut self, stream: Stream, bytes: &[u8]) {
        for one in &mut self.all {
            if let Some(out) = &mut one.outs[stream as usize] {
                out.rest.extend_from_slice(bytes);
                one.flush();
            }
        }
    }

    /// Whether somebody has to read before there can be more.
    pub(super) fn is_behind(&self) -> bool {
        self.all.iter().any(|one| one.behind.is_some())
    }

    /// When somebody is cut off.
    pub(super) fn patience(&self) -> Option<Instant> {
        self.all.iter().filter_map(|one| one.behind).min().map(|since| since + PATIENCE)
    }

    /// Pipes that tell of an error once nobody reads any more, each with its connection and whether it shall tell of room, too.
    pub(super) fn watched(&self) -> impl Iterator<Item = (u64, i32, bool)> + '_ {
        let of = |one: &'_ Attached| {
            let outs = one.outs.iter().flatten();
            outs.map(|out| (one.conn, out.pipe.as_raw_fd(), !out.rest.is_empty())).collect::<Vec<_>>()
        };
        self.all.iter().flat_map(of)
    }

    /// Connections of those who have all, read no more, or did not for too long; with the last word.
    fn over(&self) -> Vec<(u64, Option<Reply>)> {
        let now = Instant::now();
        let last = |one: &Attached| {
            let reason = || format!("the output was not read for {} s: attach again", PATIENCE.as_secs());
            match one.behind {
                None if one.ended => Some(Some(Reply::Done)),
                None if one.outs[0].is_none() => Some(None),
                Some(since) if since + PATIENCE <= now => Some(Some(Reply::Refused { reason: reason() })),
                _ => None,
            }
        };
        self.all.iter().filter_map(|one| Some((one.conn, last(one)?))).collect()
    }

    fn of(&mut self, conn: u64) -> Option<&mut Attached> {
        self.all.iter_mut().find(|one| one.conn == conn)
    }

    fn take(&mut self, conn: u64) -> Option<Attached> {
        let at = self.all.iter().position(|one| one.conn == conn)?;
        let gone = self.all.swap_remove(at);
        self.input_over(gone.stdin);
        Some(gone)
    }

    fn input_over(&mut self, had: bool) {
        // A terminal is not closed for that: its program reads and writes one and the same.
        if had && self.once {
            self.wants_stdin = false;
            if !self.terminal {
                self.stdin = None;
            }
        }
    }
}

/// Whether nobody can read a pipe any more.
fn is_broken(pipe: &File) -> bool {
    let mut fds = [PollFd::new(pipe.as_fd(), PollFlags::empty())];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

impl Shim {
    /// Attaches somebody; answers either way.
    pub(super) fn attach(&mut self, conn: u64, name: &str, stdin: bool, fds: Vec<OwnedFd>) {
        match self.try_attach(conn, name, stdin, fds) {
            Ok((terminal, input)) => {
                if let Some(c) = self.conn(conn) {
                    c.role = Role::Attached;
                    if c.push(&Reply::Attached { terminal }, input).is_err() {
                        self.detach(conn, None);
                    }
                }
            }
            Err(reply) => self.answer(conn, &reply),
        }
    }

    fn try_attach(
        &mut self,
        conn: u64,
        name: &str,
        stdin: bool,
        fds: Vec<OwnedFd>,
    ) -> Result<(bool, Option<OwnedFd>), Reply> {
        let refused = |reason: String| Reply::Refused { reason };
        let running = |c: &&mut super::container::Container| c.name == name && matches!(c.phase, Phase::Running { .. });
        let container = self.containers.iter_mut().find(running).ok_or(Reply::NoSuchContainer)?;
        let attachments = &mut container.attachments;
        let Ok::<[OwnedFd; 2], _>(outs) = fds.try_into() else {
            return Err(refused("descriptors do not match the request".to_owned()));
        };
        if attachments.all.len() >= MAX_ATTACHED {
            return Err(refused(format!("{MAX_ATTACHED} are attached to container {name} already")));
        }
        if stdin && !attachments.wants_stdin {
            return Err(refused(format!("container {name} has no input, or it is over (stdin, stdinOnce)")));
        }
        for out in &outs {
            nonblocking(out).map_err(|e| refused(e.to_string()))?;
            // SAFETY: plain integers. Where so much is not allowed, it stays as it is.
            unsafe { libc::fcntl(out.as_raw_fd(), libc::F_SETPIPE_SZ, PIPE_BYTES) };
        }
        let terminal = attachments.terminal;
        let input = attachments.stdin.as_ref().filter(|_| stdin || terminal);
        let input = input.map(OwnedFd::try_clone).transpose().map_err(|e| refused(e.to_string()))?;
        let [out, err] = outs.map(|pipe| Out { pipe: pipe.into(), rest: Vec::new() });
        let outs = [Some(out), Some(err).filter(|_| !terminal)];
        attachments.all.push(Attached { conn, outs, stdin, behind: None, ended: false });
        Ok((terminal, input))
    }

    /// The input of somebody who is attached is over: they may still read.
    pub(super) fn input_over(&mut self, conn: u64) {
        for c in &mut self.containers {
            if let Some(one) = c.attachments.of(conn) {
                let had = std::mem::take(&mut one.stdin);
                c.attachments.input_over(had);
            }
        }
    }

    /// Lets go of somebody, with a last word where there is one.
    pub(super) fn detach(&mut self, conn: u64, last: Option<&Reply>) {
        for c in &mut self.containers {
            c.attachments.take(conn);
        }
        match last {
            Some(reply) => self.answer(conn, reply),
            None => self.conns.retain(|c| c.id != conn),
        }
    }

    /// Somebody who is attached has room, or is gone.
    pub(super) fn pass_on(&mut self, conn: u64) {
        if let Some(one) = self.containers.iter_mut().find_map(|c| c.attachments.of(conn)) {
            // Whose end is gone is found by a write of nothing, too: the pipe is asked for that.
            one.outs
                .iter_mut()
                .filter(|out| out.as_ref().is_some_and(|out| is_broken(&out.pipe)))
                .for_each(|out| *out = None);
            one.flush();
        }
    }

    /// Lets go of those who have all, read no more, or did not for too long.
    pub(super) fn detach_over(&mut self) {
        let over: Vec<_> = self.containers.iter().flat_map(|c| c.attachments.over()).collect();
        for (conn, last) in over {
            self.detach(conn, last.as_ref());
        }
    }

    /// The container has ended: so do those who are attached to it, once they have read what it wrote last.
    pub(super) fn end_attached(&mut self, container: usize) {
        let attachments = &mut self.containers[container].attachments;
        attachments.stdin = None;
        attachments.all.iter_mut().for_each(|one| one.ended = true);
        self.detach_over();
    }

    /// Nothing of the container stays: those who are still attached go with what they have.
    pub(super) fn detach_all(&mut self, name: &str) {
        let mine = self.containers.iter().filter(|c| c.name == name);
        let conns: Vec<_> = mine.flat_map(|c| &c.attachments.all).map(|one| one.conn).collect();
        for conn in conns {
            self.detach(conn, Some(&Reply::Done));
        }
    }
}
