//! What was observed of a pod: the part that outlives the agent.

use std::collections::BTreeMap;

use hearth_types::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{Addresses, ContainerView, Failure, ImageFacts, backoff::ContainerBackoff};

/// The exit code of a container whose own was lost, as the kubelet has it.
const UNKNOWN_CODE: i32 = 255;
/// The exit code of a container that did not start, as containerd's.
const START_FAILED_CODE: i32 = 128;

/// Bytes of a container's last message, as the kubelet's `MaxContainerTerminationMessageLength`.
pub const MAX_MESSAGE_BYTES: usize = 4096;

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Its exit code, 128 + n where signal n ended it.
    pub code: i32,
    /// As `Completed`, `Error`, `OOMKilled`.
    pub reason: String,
    /// For people; often empty.
    pub message: String,
    /// When it was started, where it was.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Timestamp,
}

impl Exit {
    /// As it was seen. Neither code nor signal means that nobody could tell, which is not a success.
    pub fn observed(
        code: Option<i32>,
        signal: Option<i32>,
        oom_killed: bool,
        started_at: Timestamp,
        finished_at: Timestamp,
    ) -> Self {
        let code = match (code, signal) {
            (_, Some(signal)) => 128 + signal,
            (Some(code), None) => code,
            (None, None) => return Self::unknown(Some(started_at), finished_at),
        };
        // The kernel may have killed another process of the container, whose own code says that it went well.
        let reason = match code {
            0 => "Completed",
            _ if oom_killed => "OOMKilled",
            _ => "Error",
        };
        Self { code, reason: reason.into(), message: String::new(), started_at: Some(started_at), finished_at }
    }

    /// It ended, and nobody knows how.
    pub fn unknown(started_at: Option<Timestamp>, finished_at: Timestamp) -> Self {
        Self {
            code: UNKNOWN_CODE,
            reason: "ContainerStatusUnknown".into(),
            message: "the container could not be located when the pod was looked after again, so its exit code is lost"
                .into(),
            started_at,
            finished_at,
        }
    }

    /// It did not start.
    pub fn start_failed(failure: Failure, at: Timestamp) -> Self {
        Self {
            code: START_FAILED_CODE,
            reason: failure.reason,
            message: failure.message,
            started_at: None,
            finished_at: at,
        }
    }

    /// With what the container said last, after what is known otherwise, as the kubelet has it. Cut to [`MAX_MESSAGE_BYTES`].
    #[must_use]
    pub fn saying(mut self, said: &str) -> Self {
        if !said.is_empty() {
            if !self.message.is_empty() {
                self.message.push_str(": ");
            }
            self.message.push_str(said);
            self.message.truncate(self.message.floor_char_boundary(MAX_MESSAGE_BYTES));
        }
        self
    }

    /// Whether it counts as a success.
    pub fn is_success(&self) -> bool {
        self.code == 0
    }
}

/// The phase of a pod, as Kubernetes has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Some container never ran yet.
    Pending,
    /// It runs, or will run again.
    Running,
    /// All containers ended well, for good.
    Succeeded,
    /// All containers ended for good, and one not well.
    Failed,
}

/// Where a container is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// It was never started.
    #[default]
    Waiting,
    /// It runs.
    Running {
        /// Since then.
        started_at: Timestamp,
    },
    /// It ended.
    Exited(Exit),
}

/// What was observed of one container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// The newest attempt; 0 also before the first.
    pub attempt: u32,
    /// Where that attempt is.
    pub stage: Stage,
    /// How the attempt before it ended.
    pub last: Option<Exit>,
    /// When it may be started again; of use while it is `Exited`.
    pub restart_at: Timestamp,
    /// Whether it waited for that: `CrashLoopBackOff`.
    pub waits: bool,
    /// What the next end will wait.
    pub(crate) backoff: ContainerBackoff,
    /// The image that it was started from.
    pub image: Option<ImageFacts>,
    /// Whether it has started as its startup probe sees it, or it has none. Of use while it is `Running`; an agent that knew of
    /// no probes took for started and ready what ran.
    #[serde(default = "yes")]
    pub started: bool,
    /// Whether it can serve as its readiness probe sees it, or it has none. Of use while it is `Running` and `started`.
    #[serde(default = "yes")]
    pub ready: bool,
    /// What is to be done when it has started was not done yet.
    #[serde(default)]
    pub(crate) post_start_due: bool,
    /// It was killed to be started anew, whatever its exit code.
    #[serde(default)]
    pub(crate) restart: bool,
    /// It has done its part of initialising the pod: it ended well, or a sidecar has started.
    #[serde(default)]
    pub(crate) passed: bool,
}

fn yes() -> bool {
    true
}

impl ContainerRecord {
    /// Notes that an attempt begins.
    pub(crate) fn begin(&mut self, view: &ContainerView, attempt: u32, image: Option<ImageFacts>) {
        if let Stage::Exited(exit) = std::mem::take(&mut self.stage) {
            self.last = Some(exit);
        }
        self.attempt = attempt;
        self.image = image;
        self.started = view.startup.is_none();
        self.ready = view.readiness.is_none();
        self.post_start_due = view.post_start;
        self.restart = false;
    }

    /// Since when it runs, where it does.
    pub fn running_since(&self) -> Option<Timestamp> {
        match self.stage {
            Stage::Running { started_at } => Some(started_at),
            Stage::Waiting | Stage::Exited(_) => None,
        }
    }

    /// Whether it ended.
    pub fn is_exited(&self) -> bool {
        matches!(self.stage, Stage::Exited(_))
    }

    /// Whether it runs, and what is to be done at its start is done.
    pub(crate) fn is_up(&self) -> bool {
        self.running_since().is_some() && !self.post_start_due
    }

    /// Whether it runs and has started.
    pub(crate) fn has_started(&self) -> bool {
        self.is_up() && self.started
    }

    /// Whether it can serve.
    pub(crate) fn is_ready(&self) -> bool {
        self.has_started() && self.ready
    }

    /// The attempt that a next start would be.
    pub(crate) fn next_attempt(&self) -> u32 {
        match self.stage {
            Stage::Waiting => self.attempt,
            _ => self.attempt.saturating_add(1),
        }
    }

    /// Notes that this attempt went with its machine: not its own doing, so that the next one waits for nothing, however often the power is cut.
    pub(crate) fn lost(&mut self, exit: Exit) {
        self.restart_at = exit.finished_at;
        self.waits = false;
        self.stage = Stage::Exited(exit);
    }

    /// Notes that its end was not its own doing: the next attempt waits for nothing.
    pub(crate) fn forgive(&mut self, now: Timestamp) {
        if self.is_exited() {
            self.restart_at = now;
            self.waits = false;
        }
    }

    /// Notes that this attempt ended.
    pub(crate) fn ended(&mut self, exit: Exit) {
        let ran = exit.started_at.map_or_else(Default::default, |started| exit.finished_at.since(started));
        let wait = self.backoff.ended(ran);
        self.restart_at = exit.finished_at.plus(wait);
        self.waits = !wait.is_zero();
        self.stage = Stage::Exited(exit);
    }
}

/// What was observed of a pod. Its driver keeps it on disk and hands it back when the agent starts again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// When this device first saw the pod.
    pub start_time: Timestamp,
    /// Where it was reached last.
    pub addresses: Option<Addresses>,
    /// Its containers by name.
    pub containers: BTreeMap<String, ContainerRecord>,
    /// When conditions last changed: by type, the status and the time.
    pub(crate) conditions: BTreeMap<String, (bool, Timestamp)>,
    /// How it ended for good, where it did. Sidecars may still run.
    pub ended: Option<Phase>,
    /// Why it was ended, where it did not end by itself.
    #[serde(default)]
    pub(crate) ended_by: Option<Failure>,
    /// When its containers are killed, once it is to stop: an agent that starts again does not begin the grace anew.
    #[serde(default)]
    pub(crate) kill_at: Option<Timestamp>,
}

impl Record {
    /// Of a pod that was just seen first.
    pub(crate) fn new(now: Timestamp) -> Self {
        Self {
            start_time: now,
            addresses: None,
            containers: BTreeMap::new(),
            conditions: BTreeMap::new(),
            ended: None,
            ended_by: None,
            kill_at: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_have_the_reasons_of_kubernetes() {
        let at = Timestamp(1000);
        for (code, signal, oom, expected) in [
            (Some(0), None, false, (0, "Completed")),
            (Some(3), None, false, (3, "Error")),
            (None, Some(9), true, (137, "OOMKilled")),
            (None, Some(15), false, (143, "Error")),
            (Some(0), None, true, (0, "Completed")),
            (None, None, false, (255, "ContainerStatusUnknown")),
        ] {
            let exit = Exit::observed(code, signal, oom, at, at);
            assert_eq!((exit.code, exit.reason.as_str()), expected);
        }
        assert!(!Exit::unknown(None, at).is_success());
    }

    #[test]
    fn what_a_container_said_follows_what_is_known_and_is_cut() {
        let at = Timestamp(1000);
        let exit = |code| Exit::observed(Some(code), None, false, at, at);
        assert_eq!(exit(1).saying("no disk").message, "no disk");
        assert_eq!(exit(1).saying("").message, "");
        let unknown = Exit::unknown(None, at).saying("bye").message;
        assert!(unknown.starts_with("the container could not") && unknown.ends_with("is lost: bye"), "{unknown}");
        let long = exit(1).saying(&format!("a{}", "é".repeat(4000))).message;
        assert_eq!(long.len(), MAX_MESSAGE_BYTES - 1, "no character is cut in two");
    }
}
