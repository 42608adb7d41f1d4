//! The life of a pod on its device, as a state machine; and which one goes first where the device runs short ([`pressure`]).
//!
//! [`PodMachine::step`] takes what happened and the time, and answers with what is to be done. It is pure: it knows no
//! clock, no disk and no container; the agent carries out the [`Command`]s and tells the machine how they ended.
//!
//! Four things are kept apart:
//! - **spec**, [`PodView`]: what is asked for;
//! - **intent**: whether the pod is to run, is being stopped, or has run to its end;
//! - **observed**, [`Record`]: what became of its containers, which outlives the agent on disk;
//! - **action**: which commands are under way. Every command that has a result has exactly one.
//!
//! # Guarantees
//! - Of one container, at most one attempt exists at a time; attempts are numbered from 0 without reuse.
//! - A pod that is being stopped, or has run to its end, starts nothing.
//! - Nothing of `containers` starts before each of `initContainers` ended well or, as a sidecar, has started.
//! - An ephemeral container is started once in the life of its pod, and changes neither its phase nor its readiness.
//! - What an older attempt answered or did changes nothing.
//! - What runs when the agent starts again is not restarted; what was lost meanwhile is `Unknown`, never a success.
//! - Where every command succeeds in the end, a stopped pod is torn down and reported finished.

mod action;
mod backoff;
mod command;
mod event;
mod machine;
mod observe;
pub mod pressure;
mod probe;
mod reconcile;
mod record;
mod spec;
mod status;
mod stop;
#[cfg(test)]
mod tests;

pub use backoff::{CONTAINER_BACKOFF_FIRST, CONTAINER_BACKOFF_MAX, CONTAINER_BACKOFF_RESET};
pub use command::{Command, EventType};
pub use event::{Addresses, Answer, Event, Failure, Found, FoundContainer, FoundState, ImageFacts, StartFailure};
pub use machine::PodMachine;
pub use record::{ContainerRecord, Exit, MAX_MESSAGE_BYTES, Phase, Record, Stage};
pub use spec::{ContainerView, PodView, ProbeKind, ProbeView, RestartPolicy, Role, ViewError};
