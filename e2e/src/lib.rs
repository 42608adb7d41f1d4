//! What the end-to-end tests and benchmarks share: real `hearth` processes in data directories of their
//! own, real clients, and network namespaces. Everything cleans up after itself, also after a panic.

pub mod command;
pub mod device;
pub mod disk;
pub mod end;
pub mod instance;
pub mod nat;
pub mod netns;
pub mod region;
pub mod server;
pub mod traces;

use std::{
    net::{TcpListener, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(20);

/// The first of so many ports of loopback in a row that nobody has now, of either transport: for programs that have to be told theirs.
pub fn free_ports(count: u16) -> Result<u16> {
    for _ in 0..100 {
        let tcp = TcpListener::bind("127.0.0.1:0")?;
        let first = tcp.local_addr()?.port();
        let Some(last) = first.checked_add(count - 1) else { continue };
        let is_free = |port: u16| {
            UdpSocket::bind(("127.0.0.1", port)).is_ok()
                && (port == first || TcpListener::bind(("127.0.0.1", port)).is_ok())
        };
        if (first..=last).all(is_free) {
            return Ok(first);
        }
    }
    bail!("no {count} ports in a row are free")
}

/// One such port.
pub fn free_port() -> Result<u16> {
    free_ports(1)
}

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
