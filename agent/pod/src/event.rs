//! What happens to a pod.

use std::time::Duration;

use hearth_types::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{Exit, PodView, ProbeKind};

/// The kubelet's word for it.
const PULL_FAILED: &str = "ErrImagePull";

/// Why something failed: a CamelCase word for programs and a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// As `ImageNotPresent`, `FailedMount`.
    pub reason: String,
    /// What was tried, on what, what to do.
    pub message: String,
}

impl Failure {
    /// A reason and a text.
    pub fn new(reason: &str, message: impl Into<String>) -> Self {
        Self { reason: reason.into(), message: message.into() }
    }

    /// A registry was asked for an image and did not give it: tried again as rarely as the kubelet does.
    pub fn of_pull(message: impl Into<String>) -> Self {
        Self::new(PULL_FAILED, message)
    }

    pub(crate) fn is_of_pull(&self) -> bool {
        self.reason == PULL_FAILED
    }
}

/// Why a container did not start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartFailure {
    /// It was not tried, since what it needs is not there or wrong: it uses up no attempt and is tried again when that
    /// may have changed.
    Config(Failure),
    /// It was tried: this attempt has ended.
    Run(Failure),
    /// The sandbox is gone: it uses up no attempt.
    SandboxGone,
}

/// What an image says that the pod's life depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageFacts {
    /// The image's name, normalised: `status.containerStatuses[].image`.
    pub reference: String,
    /// The digest of its manifest: `imageID`.
    pub id: String,
}

/// Where a pod is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// The pod's, the first being `podIP`.
    pub pod: Vec<String>,
    /// The device's, the first being `hostIP`.
    pub host: Vec<String>,
}

/// What a container answered. The texts are for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is well.
    Good,
    /// It is well, with something to tell.
    Warning(String),
    /// It is not well, or did not answer in time.
    Bad(String),
    /// It could not be asked: that says nothing about it.
    Unknown(String),
}

/// What is found of a container when the agent starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundContainer {
    /// Its name.
    pub name: String,
    /// Its attempt.
    pub attempt: u32,
    /// What became of it.
    pub state: FoundState,
}

/// What became of a container while nobody looked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FoundState {
    /// It runs, since then.
    Running(Timestamp),
    /// It ended.
    Exited(Exit),
}

/// What is found of a pod when the agent starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing: it is new, or the machine was rebooted.
    Nothing,
    /// Its sandbox lives on.
    Alive(Vec<FoundContainer>),
    /// Its sandbox died; these are its containers, all ended.
    Dead(Vec<FoundContainer>),
}

/// What happened to a pod. A result ends the command of the same name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Its object changed: of a spec only the mark for deletion can change, and ephemeral containers can be added.
    Desired(Box<PodView>),
    /// It is no longer desired: it is stopped with this grace, and nobody needs its status.
    Vanished(Duration),
    /// The images on the device changed: what waits for one looks again at once.
    ImagesChanged,
    /// ConfigMaps, Secrets or claims changed: what waits for one looks again at once.
    ConfigChanged,
    /// How far [`EnsureImage`](crate::Command::EnsureImage) has come.
    ImageProgress {
        /// The container.
        container: String,
        /// For people.
        message: String,
    },
    /// Result of [`EnsureImage`](crate::Command::EnsureImage).
    Image {
        /// The container.
        container: String,
        /// The image, or why there is none.
        result: Result<ImageFacts, Failure>,
    },
    /// What it has mounted went away: it is stopped, and waits until its volumes are there again.
    VolumesLost(Failure),
    /// Its device does not run it at this time, for this reason: it is stopped with its own grace, and waits. `None`: it may run again.
    Held(Option<Failure>),
    /// Its network cannot be made as it is asked for now: it is stopped, and waits until it can.
    NetworkLost(Failure),
    /// It takes more of the device than it may, and ends for good.
    Evicted(Failure),
    /// Result of [`EnsureVolumes`](crate::Command::EnsureVolumes).
    Volumes(Result<(), Failure>),
    /// Result of [`AttachNetwork`](crate::Command::AttachNetwork).
    Network(Result<Addresses, Failure>),
    /// Result of [`CreateSandbox`](crate::Command::CreateSandbox).
    Sandbox(Result<(), Failure>),
    /// Result of [`StartContainer`](crate::Command::StartContainer).
    Started {
        /// The container.
        container: String,
        /// The attempt that was asked for.
        attempt: u32,
        /// When it was exec'd, or why it was not.
        result: Result<Timestamp, StartFailure>,
    },
    /// Result of [`PostStart`](crate::Command::PostStart).
    PostStarted {
        /// The container.
        container: String,
        /// Its attempt; of an older one it changes nothing.
        attempt: u32,
        /// Whether it was done.
        result: Result<(), Failure>,
    },
    /// Result of [`Probe`](crate::Command::Probe).
    Probed {
        /// The container.
        container: String,
        /// Its attempt; of an older one it changes nothing.
        attempt: u32,
        /// What was asked.
        kind: ProbeKind,
        /// The answer.
        answer: Answer,
    },
    /// Result of [`PreStop`](crate::Command::PreStop).
    PreStopped {
        /// The container.
        container: String,
        /// Its attempt; of an older one it changes nothing.
        attempt: u32,
        /// Whether it was done.
        result: Result<(), Failure>,
    },
    /// Result of [`RemoveContainer`](crate::Command::RemoveContainer).
    Removed {
        /// The container.
        container: String,
        /// Whether it is gone.
        result: Result<(), Failure>,
    },
    /// A container ended.
    Exited {
        /// The container.
        container: String,
        /// Its attempt; news of an older one is ignored.
        attempt: u32,
        /// How.
        exit: Exit,
    },
    /// The sandbox is gone, and with it all containers.
    SandboxLost,
    /// Result of [`DestroySandbox`](crate::Command::DestroySandbox).
    SandboxDestroyed(Result<(), Failure>),
    /// Result of [`TearDown`](crate::Command::TearDown).
    TornDown(Result<(), Failure>),
    /// Time passed: see [`PodMachine::next_wake`](crate::PodMachine::next_wake).
    Tick,
}
