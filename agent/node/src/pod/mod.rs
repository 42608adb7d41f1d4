//! A worker a pod: it drives the pod's machine and carries out its commands.

mod begin;
mod convert;
mod execute;
mod image;
mod measure;
mod message;
mod orphan;
mod policy;
mod probe;
mod record;
mod uses;
mod worker;

pub(crate) use measure::REST;
pub(crate) use orphan::remove_unknown;
pub(crate) use record::{StoredPod, load_all};
pub(crate) use uses::{claims_of, uses_any, uses_claim};
pub(crate) use worker::{Input, Start, WorkerHandle, spawn};
