//! What the agent is asked to do for a pod.

use std::time::Duration;

use serde_json::Value;

use crate::ProbeKind;

/// Whether an event is a matter of course.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventType {
    /// It is.
    Normal,
    /// Somebody may want to look.
    Warning,
}

impl EventType {
    /// As Kubernetes writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// What is to be done. Commands of one step may run at the same time. Those with a result end in exactly one
/// [`Event`](crate::Event) of the kind named.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Look up the container's image, and pull it where it is not here. Ends in `Image`, with [`Event::ImageProgress`](crate::Event) before.
    EnsureImage {
        /// The container.
        container: String,
    },
    /// Make the volumes of the pod, or bring them up to date. Ends in `Volumes`.
    EnsureVolumes,
    /// Make the pod's network, or take over the one of its living sandbox. Ends in `Network`.
    AttachNetwork,
    /// Make the sandbox with the network that was attached last. Ends in `Sandbox`.
    CreateSandbox,
    /// Start a container that does not run. Ends in `Started`.
    StartContainer {
        /// The container.
        container: String,
        /// The number of this attempt.
        attempt: u32,
    },
    /// Do what is to be done when a container has started. Ends in `PostStarted`.
    PostStart {
        /// The container.
        container: String,
        /// Its attempt.
        attempt: u32,
    },
    /// Ask a container that runs how it is. Ends in `Probed`.
    Probe {
        /// The container.
        container: String,
        /// Its attempt.
        attempt: u32,
        /// What is asked.
        kind: ProbeKind,
    },
    /// Do what is to be done before a container is asked to stop. Ends in `PreStopped`.
    PreStop {
        /// The container.
        container: String,
        /// Its attempt.
        attempt: u32,
        /// How long that may take: the grace that is left.
        bound: Duration,
    },
    /// Ask a container to stop: the image's stop signal, or SIGTERM. No result: its end is told as `Exited`.
    Signal {
        /// The container.
        container: String,
    },
    /// Kill a container. No result: its end is told as `Exited`.
    Kill {
        /// The container.
        container: String,
    },
    /// Remove what is left of an ended container: its cgroup and writable layer. Ends in `Removed`.
    RemoveContainer {
        /// The container.
        container: String,
    },
    /// Remove a sandbox that was lost, so that a new one can be made. Ends in `SandboxDestroyed`.
    DestroySandbox,
    /// Remove sandbox, network and volumes (claims stay), whatever is there of them. Ends in `TornDown`.
    TearDown,
    /// Tell the region.
    ReportStatus {
        /// The whole status, as Kubernetes has it.
        status: Value,
        /// It is stopped for good: nothing of it is left but its logs.
        finished: bool,
    },
    /// Tell people.
    Event {
        /// Whether it is a matter of course.
        kind: EventType,
        /// As `Started`, `BackOff`.
        reason: String,
        /// The sentence.
        message: String,
    },
}
