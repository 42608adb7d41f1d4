//! The processes that the binary can be: a region's server, a device's agent, and `up`, which supervises
//! one of each on this machine.

pub(crate) mod agent;
mod composition;
pub(crate) mod down;
mod example;
mod membership;
mod metrics;
mod process;
mod process_logs;
pub(crate) mod relay;
mod relaying;
pub(crate) mod server;
mod sharing;
mod signals;
pub(crate) mod status;
mod supervisor;
pub(crate) mod up;
mod zone;

pub(crate) use hearth_api::SystemClock;
