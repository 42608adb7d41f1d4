//! Between the runtime's words and the machine's. Pure.

use std::sync::Arc;

use hearth_pod::{
    Answer, Command, ContainerRecord, Event, Exit, Failure, FoundContainer, FoundState, PodMachine, Record, Stage,
    StartFailure,
};
use hearth_runtime::{ContainerState, ContainerStatus};
use hearth_types::kinds::Pod;

use crate::shared::{Snapshot, timestamp};

pub(super) fn found(status: ContainerStatus) -> FoundContainer {
    let state = match status.state {
        ContainerState::Running { started_at, .. } => FoundState::Running(timestamp(started_at)),
        ContainerState::Exited { .. } => FoundState::Exited(exit(&status.state)),
    };
    FoundContainer { name: status.name, attempt: status.attempt, state }
}

pub(super) fn exit(state: &ContainerState) -> Exit {
    match *state {
        ContainerState::Exited { exit_code, signal, oom_killed, started_at, finished_at } => {
            Exit::observed(exit_code, signal, oom_killed, timestamp(started_at), timestamp(finished_at))
        }
        ContainerState::Running { started_at, .. } => Exit::unknown(Some(timestamp(started_at)), timestamp(started_at)),
    }
}

/// The containers that a record says run.
pub(super) fn presumed(record: &Record) -> Vec<FoundContainer> {
    let running = |(name, one): (&String, &ContainerRecord)| match one.stage {
        Stage::Running { started_at } => {
            Some(FoundContainer { name: name.clone(), attempt: one.attempt, state: FoundState::Running(started_at) })
        }
        Stage::Waiting | Stage::Exited(_) => None,
    };
    record.containers.iter().filter_map(running).collect()
}

pub(super) fn snapshot_of(machine: &PodMachine, sandbox: Option<&hearth_runtime::Pod>, pod: &Arc<Pod>) -> Snapshot {
    let addresses = machine.record().addresses.as_ref().map(|all| all.pod.as_slice()).unwrap_or_default();
    Snapshot {
        pod: Arc::clone(pod),
        phase: machine.phase(),
        ready: machine.is_ready() && machine.record().ended.is_none() && machine.has_sandbox(),
        stopping: machine.is_stopping(),
        waits_for_image: machine.waits_for_image(),
        addresses: addresses.iter().filter_map(|text| text.parse().ok()).collect(),
        status: machine.status(),
        sandbox: sandbox.cloned(),
    }
}

/// The result of a command whose task broke.
pub(super) fn broken(command: &Command) -> Option<Event> {
    let failure = || Failure::new("AgentError", "the agent met a fault of its own; see its log");
    Some(match command {
        Command::EnsureImage { container } => Event::Image { container: container.clone(), result: Err(failure()) },
        Command::EnsureVolumes => Event::Volumes(Err(failure())),
        Command::AttachNetwork => Event::Network(Err(failure())),
        Command::CreateSandbox => Event::Sandbox(Err(failure())),
        Command::StartContainer { container, attempt } => Event::Started {
            container: container.clone(),
            attempt: *attempt,
            result: Err(StartFailure::Config(failure())),
        },
        Command::PostStart { container, attempt } => {
            Event::PostStarted { container: container.clone(), attempt: *attempt, result: Err(failure()) }
        }
        Command::Probe { container, attempt, kind } => Event::Probed {
            container: container.clone(),
            attempt: *attempt,
            kind: *kind,
            answer: Answer::Unknown(failure().message),
        },
        Command::PreStop { container, attempt, .. } => {
            Event::PreStopped { container: container.clone(), attempt: *attempt, result: Err(failure()) }
        }
        Command::RemoveContainer { container } => {
            Event::Removed { container: container.clone(), result: Err(failure()) }
        }
        Command::DestroySandbox => Event::SandboxDestroyed(Err(failure())),
        Command::TearDown => Event::TornDown(Err(failure())),
        Command::Signal { .. } | Command::Kill { .. } | Command::ReportStatus { .. } | Command::Event { .. } => {
            return None;
        }
    })
}
