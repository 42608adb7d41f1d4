//! What a shim does when something arrives: a request, a signal, the end of a process.

use std::{os::fd::OwnedFd, path::Path, time::SystemTime};

use super::{
    MAX_CONTAINERS, MAX_EXECS, Shim,
    conn::Role,
    container::{Container, Phase},
    helpers::{Exec, Task, fork_helper},
};
use crate::{
    child,
    error::{StartError, because},
    model::{ContainerSpec, ContainerStatus, ExecSpec},
    record::ContainerRecord,
    sys::{self, Exit},
    wire::{self, Reply, Request},
};

impl Shim {
    /// A connection has bytes, room or an end.
    pub(super) fn take_conn(&mut self, id: u64) {
        let Some(conn) = self.conn(id) else { return };
        let role = conn.role;
        if conn.flush().is_err() {
            return self.drop_conn(id);
        }
        if role == Role::Closing {
            return;
        }
        let Ok(open) = conn.read() else { return self.drop_conn(id) };
        if matches!(role, Role::Fresh | Role::Maker) {
            match wire::take_frame(&mut conn.inbuf) {
                Ok(Some(request)) => {
                    let fds = std::mem::take(&mut conn.fds);
                    return self.request(id, request, fds);
                }
                Ok(None) => {}
                Err(e) => return self.answer(id, &Reply::Refused { reason: because("request", e) }),
            }
        } else {
            conn.inbuf.clear();
            conn.fds.clear();
        }
        if open {
            return;
        }
        // The client went away, or closed its half to have its command killed. An answer may still be wanted, but poll
        // would report the end again and again.
        match role {
            Role::Exec(exec) => {
                self.kill_exec(exec);
                self.park(id);
            }
            Role::Waiting(_) => self.park(id),
            // That they are gone shows where their output goes.
            Role::Attached => {
                self.input_over(id);
                self.park(id);
            }
            _ => self.drop_conn(id),
        }
    }

    fn park(&mut self, id: u64) {
        if let Some(conn) = self.conn(id) {
            conn.parked = true;
        }
    }

    fn drop_conn(&mut self, id: u64) {
        let Some(conn) = self.conn(id) else { return };
        let role = conn.role;
        self.conns.retain(|c| c.id != id);
        match role {
            Role::Exec(exec) => self.kill_exec(exec),
            Role::Attached => self.detach(id, None),
            // Who asked for the pod is gone without having got it, and nobody else knows of it.
            Role::Maker => self.destroy(None),
            _ => {}
        }
    }

    fn request(&mut self, conn: u64, request: Request, fds: Vec<OwnedFd>) {
        match request {
            Request::Keep if self.conn(conn).is_some_and(|c| c.role == Role::Maker) => {
                self.conns.retain(|c| c.id != conn);
            }
            Request::Setup(_) | Request::Keep => {
                self.answer(conn, &Reply::Refused { reason: "the pod is set up already".to_owned() })
            }
            Request::Start(spec) | Request::StartBeside(spec) => {
                if let Err(e) = self.start(conn, *spec) {
                    self.answer(conn, &Reply::StartFailed(e));
                }
            }
            Request::Status => {
                let all = self.containers.iter().filter_map(Container::status).collect();
                self.answer(conn, &Reply::Status(all));
            }
            Request::Subscribe => {
                if let Some(c) = self.conn(conn) {
                    c.role = Role::Subscriber;
                    let _ = c.push(&Reply::Done, None);
                }
            }
            Request::Signal { container, signal } => {
                let reply = self.signal(&container, signal);
                self.answer(conn, &reply);
            }
            Request::Remove { container } => self.remove(conn, &container),
            Request::Exec(spec) => {
                if let Err(e) = self.exec(conn, &spec, fds) {
                    self.answer(conn, &Reply::StartFailed(e));
                }
            }
            Request::Attach { container, stdin } => self.attach(conn, &container, stdin, fds),
            Request::Renew { deadline } => {
                let renewed = self.renew(deadline);
                self.answer(conn, if renewed { &Reply::Done } else { &Reply::LeaseOver });
            }
            Request::Destroy => self.destroy(Some(conn)),
        }
    }

    fn start(&mut self, conn: u64, spec: ContainerSpec) -> Result<(), StartError> {
        child::check_container(&spec, &self.sandbox.config)?;
        self.check_going_on()?;
        let taken = |c: &Container| c.name == spec.name && (c.attempt == spec.attempt || c.alive().is_some());
        if self.containers.iter().any(taken) {
            return Err(StartError::Exists { name: spec.name, attempt: spec.attempt });
        }
        if self.containers.len() >= MAX_CONTAINERS {
            return Err(StartError::TooMany { what: "containers".to_owned(), limit: MAX_CONTAINERS });
        }
        if let Some(other) = self.containers.iter().find(|c| c.scratch == spec.scratch) {
            let reason = format!("{} is that of container {}", spec.scratch.display(), other.id());
            return Err(StartError::Invalid { field: "scratch".to_owned(), reason });
        }
        let joined = spec.processes_of.as_deref().map(|target| self.processes_of(target)).transpose()?;
        let id = self.id();
        let (container, ends) = Container::new(&spec, id).map_err(|e| StartError::Invalid {
            field: format!("log {}", spec.log_path.display()),
            reason: e.to_string(),
        })?;
        let sandbox = &self.sandbox;
        let helper =
            fork_helper(id, Task::Start { conn }, |channel| child::create::run(sandbox, &spec, channel, ends, joined));
        self.helpers.push(helper?);
        self.containers.push(container);
        self.wait_for(conn, id);
        Ok(())
    }

    /// The PID namespace of a container that runs.
    fn processes_of(&self, target: &str) -> Result<OwnedFd, StartError> {
        let not_running = || StartError::NotRunning { name: target.to_owned() };
        let running = |c: &&Container| c.name == target && matches!(c.phase, Phase::Running { .. });
        let pid = self.containers.iter().find(running).and_then(Container::alive).ok_or_else(not_running)?;
        // Opened here, where the pid is that of an unreaped child of ours, so it is nobody else's: a helper would look when it may be.
        Ok(std::fs::File::open(format!("/proc/{pid}/ns/pid")).map_err(|_| not_running())?.into())
    }

    fn check_going_on(&mut self) -> Result<(), StartError> {
        if self.is_lease_over() {
            return Err(StartError::Isolation { reason: "the lease of the pod's volumes is over".to_owned() });
        }
        if self.draining || self.ending {
            return Err(StartError::Isolation { reason: "the pod is ending".to_owned() });
        }
        Ok(())
    }

    pub(super) fn wait_for(&mut self, conn: u64, helper: u64) {
        if let Some(c) = self.conn(conn) {
            c.role = Role::Waiting(helper);
        }
    }

    fn signal(&mut self, name: &str, signal: i32) -> Reply {
        let Some(container) = self.containers.iter().rev().find(|c| c.name == name) else {
            return Reply::NoSuchContainer;
        };
        let Some(pid) = container.alive() else { return Reply::Done };
        // SAFETY: plain integers. The pid is that of our unreaped child, so it is nobody else's.
        if unsafe { libc::kill(pid, signal) } < 0 {
            let reason = because(&format!("signal {signal}"), std::io::Error::last_os_error());
            return Reply::Refused { reason };
        }
        Reply::Done
    }

    fn remove(&mut self, conn: u64, name: &str) {
        let mine = |c: &&mut Container| c.name == name;
        if !self.containers.iter().any(|c| c.name == name) {
            return self.answer(conn, &Reply::NoSuchContainer);
        }
        if self.ending {
            return self.answer(conn, &Reply::Refused { reason: "the pod is being destroyed".to_owned() });
        }
        if self.containers.iter().any(|c| c.name == name && !matches!(c.phase, Phase::Exited(_))) {
            return self.answer(conn, &Reply::StillRunning);
        }
        self.detach_all(name);
        let id = self.id();
        let gone: Vec<_> = self
            .containers
            .iter_mut()
            .filter(mine)
            .map(|c| {
                let was = if let Phase::Exited(state) = c.phase { Some(state) } else { None };
                c.phase = Phase::Removing { helper: id, was };
                (c.id(), c.scratch.clone())
            })
            .collect();
        self.fork_removal(id, conn, Reply::Done, &gone);
    }

    fn exec(&mut self, conn: u64, spec: &ExecSpec, fds: Vec<OwnedFd>) -> Result<(), StartError> {
        let not_running = || StartError::NotRunning { name: spec.container.clone() };
        let invalid =
            |field: &str, reason: &str| StartError::Invalid { field: field.to_owned(), reason: reason.to_owned() };
        child::check_exec(spec)?;
        self.check_going_on()?;
        let expected = if spec.terminal.is_some() { 0 } else { 2 + usize::from(spec.stdin) };
        if fds.len() != expected {
            return Err(invalid("streams", "descriptors do not match the specification"));
        }
        if self.execs.len() >= MAX_EXECS {
            return Err(StartError::TooMany { what: "commands".to_owned(), limit: MAX_EXECS });
        }
        let running = |c: &&Container| c.name == spec.container && matches!(c.phase, Phase::Running { .. });
        let container = self.containers.iter().find(running).ok_or_else(not_running)?;
        let (pid, container_id) = (container.alive().ok_or_else(not_running)?, container.id());
        let id = self.id();
        let sandbox = &self.sandbox;
        let helper = fork_helper(id, Task::Exec { conn }, |channel| {
            child::exec::run(sandbox, &container_id, pid, spec, channel, fds)
        });
        self.helpers.push(helper?);
        self.execs.push(Exec { id, conn, pid: None, exit: None, started: false, master: None, doomed: false });
        if let Some(c) = self.conn(conn) {
            c.role = Role::Exec(id);
        }
        Ok(())
    }

    pub(super) fn kill_exec(&mut self, id: u64) {
        let Some(exec) = self.execs.iter_mut().find(|e| e.id == id) else { return };
        exec.doomed = true;
        if let (Some(pid), None) = (exec.pid, exec.exit) {
            // SAFETY: plain integers. The pid is our unreaped child's; it leads its own session and group.
            unsafe {
                libc::kill(-pid, libc::SIGKILL);
                libc::kill(pid, libc::SIGKILL);
            }
        }
    }

    /// Has a helper kill and remove everything, and ends when it has; `conn` gets the answer. Requests that ask are
    /// answered meanwhile, since killed processes may take long to go.
    fn destroy(&mut self, conn: Option<u64>) {
        let refuse = |shim: &mut Self, reason: String| {
            if let Some(conn) = conn {
                shim.answer(conn, &Reply::Refused { reason });
            }
        };
        if self.ending {
            return refuse(self, "the pod is being destroyed already".to_owned());
        }
        for h in &self.helpers {
            // SAFETY: plain integers; the pid is our unreaped child's.
            unsafe { libc::kill(h.pid, libc::SIGKILL) };
        }
        let id = self.id();
        let (sandbox, scratches) = (&self.sandbox, self.containers_to_clear());
        let task = Task::Destroy { conn };
        match fork_helper(id, task, |channel| child::remove::run_all(sandbox, &scratches, channel)) {
            Ok(helper) => {
                self.ending = true;
                self.helpers.push(helper);
                if let Some(conn) = conn {
                    self.wait_for(conn, id);
                }
            }
            Err(e) => refuse(self, e.to_string()),
        }
    }

    /// The helper that was to remove the pod is gone.
    pub(super) fn destroy_over(&mut self, conn: Option<u64>, removed: Result<(), String>) {
        self.ending = false;
        let removed = removed.and_then(|()| {
            // Mounted in the shim's own namespace only.
            let _ = nix::mount::umount2(&self.sandbox.mnt, nix::mount::MntFlags::MNT_DETACH);
            crate::pods::remove_dir(&self.sandbox.pod_dir).map_err(|e| e.to_string())
        });
        if let Err(reason) = &removed {
            super::complain(&format!("destroy the pod: {reason}"));
        }
        // Nobody would ask again for a pod that nobody got: what is left of it is found by the next agent.
        self.destroyed = removed.is_ok() || conn.is_none();
        if let Some(conn) = conn {
            let reply = removed.map_or_else(|reason| Reply::Refused { reason }, |()| Reply::Done);
            self.answer(conn, &reply);
        }
    }

    fn containers_to_clear(&self) -> Vec<std::path::PathBuf> {
        self.containers.iter().map(|c| c.scratch.clone()).collect()
    }

    pub(super) fn take_signals(&mut self) {
        let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
        let mut ended = false;
        while let Ok(n) = nix::unistd::read(std::os::fd::AsRawFd::as_raw_fd(&self.signals), &mut info) {
            if n != info.len() {
                break;
            }
            // The number is the first field, a u32.
            ended |= info[0] == libc::SIGTERM as u8;
        }
        if ended && !self.draining {
            self.draining = true;
            for pid in self.containers.iter().filter_map(Container::alive) {
                // SAFETY: plain integers; the pid is our unreaped child's.
                unsafe { libc::kill(pid, libc::SIGTERM) };
            }
        }
        while let Some((pid, exit)) = sys::reap() {
            self.reaped(pid, exit);
        }
    }

    fn reaped(&mut self, pid: i32, exit: Exit) {
        if let Some(h) = self.helpers.iter_mut().find(|h| h.pid == pid) {
            h.reaped = true;
            let id = h.id;
            return self.settle_helper(id);
        }
        if let Some(n) = self.containers.iter().position(|c| c.pid == Some(pid) && c.exit.is_none()) {
            self.containers[n].exit = Some(exit);
            return self.container_ended(n);
        }
        if let Some(e) = self.execs.iter_mut().find(|e| e.pid == Some(pid) && e.exit.is_none()) {
            e.exit = Some(exit);
            let id = e.id;
            return self.exec_ended(id);
        }
        if self.sandbox.pause.as_ref().is_some_and(|pause| pause.pid == pid) {
            return self.pause_ended();
        }
        // Perhaps a process that its helper is about to name.
        if !self.helpers.is_empty() {
            self.unclaimed.push((pid, exit));
        }
    }

    /// The container's first process is gone; if its start is over too, says so.
    pub(super) fn container_ended(&mut self, n: usize) {
        let container = &mut self.containers[n];
        let (Phase::Running { started_at }, Some(exit)) = (container.phase, container.exit) else { return };
        let cgroup = self.sandbox.cgroup.join(container.id());
        let shares = container.joined || self.sandbox.pause.is_some();
        let status = container.finish(&self.sandbox, started_at, exit);
        if shares {
            self.sweep(&cgroup);
        }
        self.end_attached(n);
        self.publish(&status);
    }

    /// Has a helper kill what a container left running. The kernel does so where its first process was that of a PID namespace.
    fn sweep(&mut self, cgroup: &Path) {
        if self.ending {
            return;
        }
        let (id, cgroups) = (self.id(), self.sandbox.cgroups.clone());
        match fork_helper(id, Task::Sweep, |_channel| i32::from(cgroups.kill(cgroup).is_err())) {
            Ok(helper) => self.helpers.push(helper),
            // Its removal kills them.
            Err(e) => super::complain(&format!("kill what {} left running: {e}", cgroup.display())),
        }
    }

    /// The first process of the shared PID namespace is gone, and the kernel has killed all others: the pod is over.
    fn pause_ended(&mut self) {
        if !self.ending {
            super::complain("the first process of the pod's PID namespace was killed: the pod ends");
            self.destroyed = true;
        }
    }

    fn publish(&mut self, status: &ContainerStatus) {
        // A subscriber that does not read is cut off and asks for the status when it comes back.
        self.conns.retain_mut(|c| c.role != Role::Subscriber || c.push(&Reply::Exited(status.clone()), None).is_ok());
    }

    pub(super) fn exec_ended(&mut self, id: u64) {
        const SIGNAL_BASE: i32 = 128;
        let Some(e) = self.execs.iter().find(|e| e.id == id && e.started) else { return };
        let (conn, Some(exit)) = (e.conn, e.exit) else { return };
        let code = exit.code.or(exit.signal.map(|s| SIGNAL_BASE + s)).unwrap_or(SIGNAL_BASE);
        self.execs.retain(|e| e.id != id);
        self.answer(conn, &Reply::ExecExited { code });
    }

    /// The start worked: the program runs.
    pub(super) fn container_started(&mut self, n: usize, conn: u64) {
        let container = &mut self.containers[n];
        container.phase = Phase::Running { started_at: SystemTime::now() };
        if let Some(status) = container.status() {
            container.record(&self.sandbox, status.clone());
            self.answer(conn, &Reply::Started(status));
        }
        self.container_ended(n);
    }

    /// The helper of this number removed its containers, or could not.
    pub(super) fn removal_over(&mut self, helper: u64, removed: bool) {
        let dir = &self.sandbox.pod_dir;
        self.containers.retain_mut(|c| match c.phase {
            Phase::Removing { helper: h, was: Some(state) } if h == helper && !removed => {
                c.phase = Phase::Exited(state);
                true
            }
            Phase::Removing { helper: h, .. } if h == helper => {
                ContainerRecord::remove(dir, &c.name, c.attempt);
                false
            }
            _ => true,
        });
    }
}
