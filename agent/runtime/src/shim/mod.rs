//! The shim of a pod: parent and reaper of its containers, keeper of their logs. One thread, one poll loop.
//!
//! It outlives agent and zygote. What takes time or memory (mounts, libcontainer, deleting files) is done by children
//! forked for it, its helpers, which report over a socket: the end of the stream says that all who held it executed a
//! program or are gone.

mod attach;
mod budget;
mod conn;
mod container;
mod events;
mod helpers;
mod lease;
pub(crate) mod log;
mod pause;
mod setup;

use std::{
    io::{self, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::net::UnixListener,
    },
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use self::{
    conn::{Conn, Role},
    container::Container,
    helpers::{Exec, Helper},
    lease::Lease,
};
pub(crate) use self::{
    container::{TheirEnds, id as container_id},
    setup::{MEMORY, Sandbox},
};
use crate::{
    sys, title,
    wire::{self, PodConfig, Reply, Request},
    zygote::ZygoteConfig,
};

/// Most connections at a time: a subscription, requests, and a connection for each exec.
const MAX_CONNS: usize = 128;
/// Most containers, exited and not yet removed ones included.
const MAX_CONTAINERS: usize = 64;
/// Most commands at a time, of health probes and people.
const MAX_EXECS: usize = 64;
/// How long the agent that asked for the shim may take to say for which pod.
const SETUP_BOUND: Duration = Duration::from_secs(30);
/// How long a start may take until its program runs; slow disks included.
const START_BOUND: Duration = Duration::from_mins(1);

/// The state of a shim.
pub(super) struct Shim {
    sandbox: Sandbox,
    listener: UnixListener,
    signals: OwnedFd,
    conns: Vec<Conn>,
    containers: Vec<Container>,
    helpers: Vec<Helper>,
    execs: Vec<Exec>,
    next_id: u64,
    /// Reaped before their helper could name them.
    unclaimed: Vec<(i32, sys::Exit)>,
    /// Told to end (SIGTERM, as at a shutdown of the host): does so when no container runs.
    draining: bool,
    /// A helper removes the pod.
    ending: bool,
    destroyed: bool,
    /// Where the pod may run for a time only.
    lease: Option<Lease>,
}

/// What was polled.
enum Source {
    Signals,
    Listener,
    Conn(u64),
    Helper(u64),
    Log(usize, usize),
    /// Somebody who is attached by this connection has room, or is gone.
    Attached(u64),
    /// The lease is nearly over, or over.
    Lease,
}

/// Complaints go to the pod's `shim.log`, which is standard error.
pub(super) fn complain(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// The shim's life, in a child of the zygote.
pub(crate) fn run(zygote: &ZygoteConfig, uid: &str, netns: OwnedFd, conn: OwnedFd) -> i32 {
    let Ok(signals) = settle(zygote, uid, &netns, &conn) else { return 1 };
    let Ok(first) = Conn::new(0, conn, None) else { return 1 };
    match begin(zygote, uid, &netns, first, signals) {
        Some(mut shim) => {
            drop(netns);
            shim.serve();
            0
        }
        None => 1,
    }
}

/// Leaves the zygote behind; returns the signals as a descriptor.
fn settle(zygote: &ZygoteConfig, uid: &str, netns: &OwnedFd, conn: &OwnedFd) -> io::Result<OwnedFd> {
    nix::unistd::setsid()?;
    // SAFETY: this process was just forked for the shim; the zygote's socket is never touched in it again.
    unsafe { sys::close_all_but(&[netns.as_raw_fd(), conn.as_raw_fd()]) }?;
    // SAFETY: children are waited for here, unlike in the zygote.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
    sys::prctl(libc::PR_SET_CHILD_SUBREAPER, 1)?;
    title::set(&format!("hearth shim --data-dir {} {uid}", zygote.data_dir.display()), c"hearth shim");
    let mut mask = nix::sys::signal::SigSet::empty();
    for signal in [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        mask.add(nix::sys::signal::Signal::try_from(signal)?);
    }
    mask.thread_block()?;
    // SAFETY: makes a descriptor from a valid set.
    let fd = unsafe { libc::signalfd(-1, mask.as_ref(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just returned it to us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Waits for the setup request and carries it out; none where there is nothing to go on with.
fn begin(zygote: &ZygoteConfig, uid: &str, netns: &OwnedFd, mut first: Conn, signals: OwnedFd) -> Option<Shim> {
    let config = await_setup(&mut first)?;
    let made = if config.uid == uid {
        Sandbox::make(zygote, config, netns)
    } else {
        Err(format!("asked for as {uid}, set up as {}", config.uid))
    };
    // Watched over from the first moment: a pod that nobody would end is none.
    let made = made.and_then(|(sandbox, listener)| {
        let lease = sandbox.config.lease.clone().map(Lease::new).transpose();
        lease.map(|lease| (sandbox, listener, lease)).map_err(|e| crate::error::because("watch over its lease", e))
    });
    let (sandbox, listener, lease) = match made {
        Ok(made) => made,
        Err(reason) => {
            let _ = first.push(&Reply::Refused { reason }, None);
            return None;
        }
    };
    let log = std::fs::OpenOptions::new().append(true).create(true).open(sandbox.pod_dir.join("shim.log"));
    if let Ok(log) = log {
        let _ = nix::unistd::dup2(log.as_raw_fd(), 2);
    }
    // Should the agent be gone, the end of this connection says so.
    let _ = first.push(&Reply::Done, None);
    first.role = Role::Maker;
    Some(Shim {
        sandbox,
        listener,
        signals,
        conns: vec![first],
        containers: Vec::new(),
        helpers: Vec::new(),
        execs: Vec::new(),
        next_id: 1,
        unclaimed: Vec::new(),
        draining: false,
        ending: false,
        destroyed: false,
        lease,
    })
}

fn await_setup(first: &mut Conn) -> Option<PodConfig> {
    let started = Instant::now();
    loop {
        if let Some(request) = wire::take_frame(&mut first.inbuf).ok()? {
            return match request {
                Request::Setup(config) => Some(*config),
                _ => None,
            };
        }
        let left = SETUP_BOUND.checked_sub(started.elapsed())?;
        let mut fds = [PollFd::new(first.fd.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::try_from(left).ok()?) {
            Err(nix::errno::Errno::EINTR) => {}
            Ok(0) | Err(_) => return None,
            Ok(_) => {
                if !first.read().ok()? {
                    return None;
                }
            }
        }
    }
}

impl Shim {
    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Serves until the pod is destroyed.
    fn serve(&mut self) {
        while !self.destroyed {
            for source in self.wait() {
                match source {
                    // Before anything is begun that it forbids.
                    Source::Lease => self.look_at_lease(),
                    // Helpers first: what they say names the processes that are then reaped.
                    Source::Helper(id) => self.hear_helper(id),
                    Source::Log(container, pipe) => {
                        if let Some(c) = self.containers.get_mut(container) {
                            c.drain(pipe);
                        }
                    }
                    Source::Attached(id) => self.pass_on(id),
                    Source::Signals => self.take_signals(),
                    Source::Listener => self.accept(),
                    Source::Conn(id) => self.take_conn(id),
                }
            }
            self.expire_helpers();
            self.detach_over();
            self.conns.retain(|c| c.role != Role::Closing || c.wants_write());
            if self.draining && self.containers.iter().all(|c| c.alive().is_none()) && self.helpers.is_empty() {
                return;
            }
        }
    }

    /// Waits for something to do. Sources are in the order in which they are to be served.
    fn wait(&self) -> Vec<Source> {
        let mut sources = Vec::new();
        let mut fds = Vec::new();
        let mut add = |source, fd: i32, flags| {
            sources.push(source);
            // SAFETY: the descriptors are owned by self, which is borrowed until poll returns.
            fds.push(PollFd::new(unsafe { BorrowedFd::borrow_raw(fd) }, flags));
        };
        if let Some(lease) = &self.lease {
            add(Source::Lease, lease.timer(), PollFlags::POLLIN);
        }
        for h in &self.helpers {
            if let Some(fd) = &h.channel {
                add(Source::Helper(h.id), fd.as_raw_fd(), PollFlags::POLLIN);
            }
        }
        let now = Instant::now();
        for (n, c) in self.containers.iter().enumerate() {
            // A container that is over its rate, or whose audience is slow, waits: its pipe is not looked at.
            for (pipe, fd) in c.pipe_fds().filter(|_| c.reads_at() <= now && !c.attachments.is_behind()) {
                add(Source::Log(n, pipe), fd, PollFlags::POLLIN);
            }
        }
        for (conn, fd, waits) in self.containers.iter().flat_map(|c| c.attachments.watched()) {
            add(Source::Attached(conn), fd, if waits { PollFlags::POLLOUT } else { PollFlags::empty() });
        }
        add(Source::Signals, self.signals.as_raw_fd(), PollFlags::POLLIN);
        for c in self.conns.iter().filter(|c| !c.parked || c.wants_write()) {
            let mut flags = if c.role == Role::Closing { PollFlags::empty() } else { PollFlags::POLLIN };
            if c.wants_write() {
                flags |= PollFlags::POLLOUT;
            }
            add(Source::Conn(c.id), c.fd.as_raw_fd(), flags);
        }
        if self.conns.len() < MAX_CONNS {
            add(Source::Listener, self.listener.as_raw_fd(), PollFlags::POLLIN);
        }
        let logs = self.containers.iter().filter(|c| c.pipe_fds().next().is_some()).map(Container::reads_at);
        let deadlines = self.helpers.iter().filter_map(|h| h.deadline);
        let patience = self.containers.iter().filter_map(|c| c.attachments.patience());
        let deadline = deadlines.chain(logs.filter(|at| *at > now)).chain(patience).min();
        let timeout = deadline.map_or(PollTimeout::NONE, |d| {
            // One more, or the loop would turn during the last millisecond.
            PollTimeout::try_from(d.saturating_duration_since(now) + Duration::from_millis(1))
                .unwrap_or(PollTimeout::MAX)
        });
        if poll(&mut fds, timeout).is_err() {
            return Vec::new();
        }
        let ready = fds.iter().map(|fd| fd.any().unwrap_or(true));
        sources.into_iter().zip(ready).filter_map(|(source, ready)| ready.then_some(source)).collect()
    }

    fn accept(&mut self) {
        while self.conns.len() < MAX_CONNS {
            let Ok((stream, _)) = self.listener.accept() else { return };
            let id = self.id();
            if let Ok(conn) = Conn::new(id, stream.into(), self.lease.as_ref().map(Lease::told)) {
                self.conns.push(conn);
            }
        }
    }

    fn conn(&mut self, id: u64) -> Option<&mut Conn> {
        self.conns.iter_mut().find(|c| c.id == id)
    }

    /// Answers and closes.
    fn answer(&mut self, conn: u64, reply: &Reply) {
        if let Some(c) = self.conn(conn) {
            c.role = Role::Closing;
            if c.push(reply, None).is_err() {
                self.conns.retain(|c| c.id != conn);
            }
        }
    }
}
