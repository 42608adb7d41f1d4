//! Zygote, shim and containers: the only crate with unsafe code, and the only one that uses libcontainer.
//!
//! The agent forks a zygote before it has threads or keys ([`fork_zygote`]), then makes a [`Runtime`] of it inside
//! tokio. For each pod the zygote forks a shim, without exec; the shim makes the pod's namespaces and forks short-lived
//! helpers, which mount roots, run libcontainer and run commands. Shims outlive agent and zygote; the next agent finds
//! them by their sockets ([`Runtime::adopt`]).
//!
//! What runs as root of the host: agent, zygote, shims, helpers. What runs as a container never does: a pod without a
//! user namespace of its own is an error. The steps that keep it in are in `child::create` and `child::exec`.
#![allow(unsafe_code)] // forks, namespaces, mounts and seccomp have no safe interface; each block says its reason
#![warn(clippy::undocumented_unsafe_blocks)]

/// Whether protections of containers can be left out, as tests need it and a product must not.
pub const UNPROTECTED: bool = cfg!(feature = "unprotected");

mod cgroup;
mod child;
mod client;
mod clock;
mod error;
mod features;
mod heap;
mod landlock;
mod model;
mod pods;
mod record;
mod seccomp;
mod shim;
mod sys;
mod title;
mod trash;
mod unprotected;
mod wire;
mod zygote;

pub use client::{Attach, Exec, ExecIo, Pod, Runtime};
pub use clock::{boot_time, clock_synchronised};
pub use error::{RuntimeError, StartError};
pub use features::{KernelFeatures, probe_kernel};
pub use heap::trim_heap;
pub use model::*;
pub use pods::teardown;
pub use record::RecordError;
#[cfg(feature = "unprotected")]
pub use unprotected::Protection;
pub use zygote::{Zygote, ZygoteConfig, fork_zygote};
