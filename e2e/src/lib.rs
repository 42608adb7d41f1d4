//! What the end-to-end tests and benchmarks share: real `hearth` processes in data directories of their
//! own, real clients, and network namespaces. Everything cleans up after itself, also after a panic.

pub mod command;
pub mod device;
pub mod disk;
pub mod history;
pub mod instance;
pub mod nat;
pub mod netns;
pub mod region;
pub mod server;
pub mod sim;
pub mod traces;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(20);

/// Waits until `check` succeeds, for a bounded time; the error tells what it said last.
pub fn eventually<T>(what: &str, limit: Duration, mut check: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match check() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() > deadline => {
                return Err(error).with_context(|| format!("not within {} s: {what}", limit.as_secs()));
            }
            Err(_) => std::thread::sleep(POLL),
        }
    }
}
