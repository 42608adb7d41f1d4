//! Helpers: children of the shim that make or remove something and are gone.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    time::Instant,
};

use super::{
    START_BOUND, Shim,
    container::{Container, Phase},
};
use crate::{
    child,
    error::{StartError, because},
    sys::{self, Exit},
    wire::{self, HelperMsg, Reply},
};

/// What a helper is for.
#[derive(Debug)]
pub(super) enum Task {
    Start {
        conn: u64,
    },
    Exec {
        conn: u64,
    },
    /// With the answer to give when all is gone.
    Remove {
        conn: u64,
        reply: Reply,
    },
    /// What a container left running in a PID namespace that others share; nobody waits for it.
    Sweep,
    /// The whole pod; nobody may be waiting for it.
    Destroy {
        conn: Option<u64>,
    },
}

impl Task {
    /// Removals have no deadline: given up halfway, they would only have to be done again.
    fn deadline(&self) -> Option<Instant> {
        match self {
            Self::Start { .. } | Self::Exec { .. } => Some(Instant::now() + START_BOUND),
            Self::Remove { .. } | Self::Sweep | Self::Destroy { .. } => None,
        }
    }
}

/// A child at work.
#[derive(Debug)]
pub(super) struct Helper {
    pub(super) id: u64,
    pub(super) pid: i32,
    /// None at the end of what it said.
    pub(super) channel: Option<OwnedFd>,
    pub(super) deadline: Option<Instant>,
    pub(super) reaped: bool,
    task: Task,
    created: bool,
    executing: bool,
    done: bool,
    failed: Option<StartError>,
}

/// A command that runs in a container, or is about to.
#[derive(Debug)]
pub(super) struct Exec {
    pub(super) id: u64,
    pub(super) conn: u64,
    pub(super) pid: Option<i32>,
    pub(super) exit: Option<Exit>,
    pub(super) started: bool,
    pub(super) master: Option<OwnedFd>,
    /// Its client is gone: to be killed as soon as it has a pid.
    pub(super) doomed: bool,
}

/// Forks a helper, whose work gets its end of the channel.
pub(super) fn fork_helper(id: u64, task: Task, work: impl FnOnce(OwnedFd) -> i32) -> Result<Helper, StartError> {
    let isolation = |what: &'static str| move |e| StartError::Isolation { reason: because(what, e) };
    let (ours, theirs) = wire::packet_pair().map_err(isolation("make a socket pair"))?;
    let pid = sys::fork_child(|| work(theirs)).map_err(isolation("fork"))?;
    Ok(Helper {
        id,
        pid: pid.as_raw(),
        channel: Some(ours),
        deadline: task.deadline(),
        reaped: false,
        task,
        created: false,
        executing: false,
        done: false,
        failed: None,
    })
}

impl Helper {
    /// Whether it is about to make a process in a container.
    pub(super) fn starts(&self) -> bool {
        matches!(self.task, Task::Start { .. } | Task::Exec { .. })
    }
}

impl Shim {
    /// Starts the removal of containers (id and writable layer) and answers when it is over.
    pub(super) fn fork_removal(&mut self, id: u64, conn: u64, reply: Reply, gone: &[(String, PathBuf)]) {
        if self.ending {
            // It goes with the pod.
            self.removal_over(id, false);
            return self.answer(conn, &reply);
        }
        let sandbox = &self.sandbox;
        let task = Task::Remove { conn, reply };
        match fork_helper(id, task, |channel| child::remove::run(sandbox, gone, channel)) {
            Ok(helper) => {
                self.helpers.push(helper);
                self.wait_for(conn, id);
            }
            Err(e) => {
                self.removal_over(id, false);
                self.answer(conn, &Reply::Refused { reason: e.to_string() });
            }
        }
    }

    /// A helper said something, or ended.
    pub(super) fn hear_helper(&mut self, id: u64) {
        let Some(h) = self.helpers.iter_mut().find(|h| h.id == id) else { return };
        let Some(channel) = &h.channel else { return };
        let mut fds = Vec::new();
        match wire::recv_message(channel.as_fd(), &mut fds) {
            Ok(Some(HelperMsg::Created { pid })) => {
                h.created = true;
                self.created(id, pid);
            }
            Ok(Some(HelperMsg::Terminal)) => {
                if let Some(e) = self.execs.iter_mut().find(|e| e.id == id) {
                    e.master = fds.pop();
                } else if let Some(c) = self.containers.iter_mut().find(|c| c.phase == Phase::Starting(id))
                    && let Some(master) = fds.pop()
                {
                    c.has_terminal(master);
                }
            }
            Ok(Some(HelperMsg::Executing)) => h.executing = true,
            Ok(Some(HelperMsg::Done)) => h.done = true,
            // The first reason is the cause of the others.
            Ok(Some(HelperMsg::Failed(e))) => {
                h.failed.get_or_insert(e);
            }
            Ok(None) | Err(_) => {
                h.channel = None;
                self.settle_helper(id);
            }
        }
    }

    /// The process that a helper made has a pid.
    fn created(&mut self, id: u64, pid: i32) {
        let claimed = self.unclaimed.iter().position(|(p, _)| *p == pid).map(|n| self.unclaimed.swap_remove(n).1);
        if let Some(c) = self.containers.iter_mut().find(|c| c.phase == Phase::Starting(id)) {
            c.pid = Some(pid);
            c.exit = claimed;
        } else if let Some(e) = self.execs.iter_mut().find(|e| e.id == id) {
            e.pid = Some(pid);
            e.exit = claimed;
        }
    }

    /// Kills helpers that take too long; what they made is removed when they are gone.
    pub(super) fn expire_helpers(&mut self) {
        let now = Instant::now();
        let late: Vec<_> = self.helpers.iter().filter(|h| h.deadline.is_some_and(|d| d <= now)).map(|h| h.id).collect();
        for id in late {
            let Some(h) = self.helpers.iter_mut().find(|h| h.id == id) else { continue };
            h.deadline = None;
            h.failed.get_or_insert(StartError::Timeout { seconds: START_BOUND.as_secs() });
            let mut pids = vec![h.pid];
            pids.extend(self.containers.iter().filter(|c| c.phase == Phase::Starting(id)).filter_map(Container::alive));
            pids.extend(self.execs.iter().filter(|e| e.id == id && e.exit.is_none()).filter_map(|e| e.pid));
            for pid in pids {
                // SAFETY: plain integers; the pids are our unreaped children's.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            }
        }
    }

    /// If the helper is gone and nothing more can be heard, acts on what it did.
    pub(super) fn settle_helper(&mut self, id: u64) {
        let Some(n) = self.helpers.iter().position(|h| h.id == id && h.reaped && h.channel.is_none()) else { return };
        let helper = self.helpers.swap_remove(n);
        match &helper.task {
            Task::Start { conn } => self.settle_start(*conn, &helper),
            Task::Exec { conn } => self.settle_exec(*conn, &helper),
            Task::Remove { .. } => self.settle_removal(helper),
            Task::Sweep => {}
            Task::Destroy { conn } => {
                let interrupted = || "the removal was interrupted".to_owned();
                let failed = || Err(helper.failed.as_ref().map_or_else(interrupted, ToString::to_string));
                self.destroy_over(*conn, if helper.done { Ok(()) } else { failed() });
            }
        }
        if self.helpers.is_empty() {
            self.unclaimed.clear();
        }
    }

    fn settle_start(&mut self, conn: u64, helper: &Helper) {
        let Some(n) = self.containers.iter().position(|c| c.phase == Phase::Starting(helper.id)) else { return };
        if helper.failed.is_none() && helper.created && helper.executing {
            return self.container_started(n, conn);
        }
        let container = &self.containers[n];
        let cgroup = self.sandbox.cgroup.join(container.id());
        let error = if self.sandbox.cgroups.oom_kills(&cgroup) > 0 {
            StartError::OutOfMemory
        } else {
            helper.failed.clone().unwrap_or_else(|| StartError::Isolation {
                reason: "the process that was to run the program ended before it did".to_owned(),
            })
        };
        let gone = [(container.id(), container.scratch.clone())];
        let id = self.id();
        self.containers[n].phase = Phase::Removing { helper: id, was: None };
        self.fork_removal(id, conn, Reply::StartFailed(error), &gone);
    }

    fn settle_exec(&mut self, conn: u64, helper: &Helper) {
        let Some(exec) = self.execs.iter_mut().find(|e| e.id == helper.id) else { return };
        if helper.failed.is_none() && helper.created && helper.executing {
            exec.started = true;
            let (master, doomed) = (exec.master.take(), exec.doomed);
            if let Some(c) = self.conn(conn) {
                if c.push(&Reply::ExecStarted, master).is_err() {
                    self.conns.retain(|c| c.id != conn);
                    self.kill_exec(helper.id);
                }
            } else {
                self.kill_exec(helper.id);
            }
            if doomed {
                self.kill_exec(helper.id);
            }
            return self.exec_ended(helper.id);
        }
        self.kill_exec(helper.id);
        self.execs.retain(|e| e.id != helper.id);
        let error = helper.failed.clone().unwrap_or_else(|| StartError::Isolation {
            reason: "the process that was to run the command ended before it did".to_owned(),
        });
        self.answer(conn, &Reply::StartFailed(error));
    }

    fn settle_removal(&mut self, helper: Helper) {
        let Task::Remove { conn, reply } = helper.task else { return };
        self.removal_over(helper.id, helper.done);
        if helper.done {
            return self.answer(conn, &reply);
        }
        let reason = helper.failed.map_or_else(|| "the removal was interrupted".to_owned(), |e| e.to_string());
        self.answer(conn, &Reply::Refused { reason });
    }
}
