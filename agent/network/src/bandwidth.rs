//! How much a pod may send and receive in a second: a token bucket at each end of its link.
//!
//! What goes to the pod waits at the host's end; what comes from it at its own end, whose namespace belongs to the host's user namespace, so
//! that nobody in the pod can take the bucket away, whatever capabilities it has.
//!
//! # Guarantees
//! Everything that passes the link counts: what is forwarded, what the host itself sends (the ingress, probes), and what the pod answers.
//! What is too much waits some tenths of a second, and is dropped only then.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use rustix::net::netdevice::name_to_index;
use tokio::io::unix::AsyncFd;

use crate::NetworkError;
use crate::host::{self, Host, must};
use crate::names::Instance;
use crate::netlink::socket::Socket;
use crate::netlink::tc::{self, Root, Tbf};
use crate::netlink::{Batch, messages, route};
use crate::pod::POD_LINK;
use crate::watch::wait_for;

/// What passes at once: what comes in a twentieth of a second, and never less than two packets of 1500 bytes with their headers.
const BURSTS_A_SECOND: u64 = 20;
const MIN_BURST: u64 = 4 << 10;
const MAX_BURST: u64 = 16 << 20;
/// What waits: what passes in a fifth of a second, and never less than ten packets.
const QUEUES_A_SECOND: u64 = 5;
const MIN_QUEUE: u64 = 16 << 10;
const MAX_QUEUE: u64 = 64 << 20;
/// After a failure to put limits right.
const RETRY: Duration = Duration::from_secs(1);
/// Least time between two looks at all links.
const SETTLE: Duration = Duration::from_millis(250);

/// Bits in a second, each way; no limit where there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bandwidth {
    /// What goes to the pod.
    pub ingress: Option<u64>,
    /// What comes from the pod.
    pub egress: Option<u64>,
}

/// The token bucket for so many bits in a second.
fn bucket(bits: u64) -> Tbf {
    let rate = (bits / 8).max(1);
    let part = |parts: u64, least: u64, most: u64| (rate / parts).clamp(least, most) as u32;
    let burst = part(BURSTS_A_SECOND, MIN_BURST, MAX_BURST);
    Tbf { rate, burst, limit: part(QUEUES_A_SECOND, MIN_QUEUE, MAX_QUEUE) }
}

/// Limits what a link sends, or lifts its limit. `socket` is one of the link's namespace.
pub(crate) fn limit_link(socket: &Socket, index: u32, bits: Option<u64>) -> Result<(), NetworkError> {
    let mut batch = Batch::new();
    let Some(bits) = bits else {
        tc::remove_root(&mut batch, index);
        return host::delete(socket, &batch).map(drop);
    };
    tc::set_root(&mut batch, index, bucket(bits));
    must(socket, &batch).map_err(unshaped)
}

/// The kernel's word for a discipline that it does not have is "no such file".
fn unshaped(error: NetworkError) -> NetworkError {
    match error {
        NetworkError::Netlink { source, .. } if source.raw_os_error() == Some(libc::ENOENT) => {
            NetworkError::NoShaping { source }
        }
        other => other,
    }
}

/// Limits the living pod in a namespace. The calling thread is in the host's namespace, and comes back to it.
pub(crate) fn limit_pod(link: &str, netns: &OwnedFd, bandwidth: Bandwidth) -> Result<(), NetworkError> {
    let here = host::open_netns(std::path::Path::new(host::THREAD_NETNS))?;
    let host = host::route_socket()?;
    host::enter(netns)?;
    let pod = host::route_socket();
    host::enter(&here)?;
    let pod = pod?;
    limit_link(&host, index_of(&host, link)?, bandwidth.ingress)?;
    limit_link(&pod, index_of(&pod, POD_LINK)?, bandwidth.egress)
}

pub(crate) fn index_of(socket: &Socket, name: &str) -> Result<u32, NetworkError> {
    name_to_index(socket, name).map_err(|e| NetworkError::netlink(format!("find link {name}"), e.into()))
}

/// Whether this machine's kernel can hold pods to a limit. Changes nothing: it is tried in a network namespace of its own.
pub fn check_shaping() -> Result<(), NetworkError> {
    let tried = std::thread::Builder::new().name("hearth-network".into()).spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET)
            .map_err(|e| NetworkError::Namespace { step: "make a network namespace", source: e.into() })?;
        limit_link(&host::route_socket()?, route::LOOPBACK, Some(1_000_000))
    });
    let dead = || NetworkError::Worker { doing: "limit a link for a try" };
    tried.map_err(|_| dead())?.join().map_err(|_| dead())?
}

/// The limits of this instance's pods, by the host's side of their links, and the watch over them.
#[derive(Debug)]
pub(crate) struct Limits {
    instance: Instance,
    ingress: Mutex<BTreeMap<u16, u64>>,
}

impl Limits {
    pub(crate) fn new(instance: Instance) -> Arc<Self> {
        Arc::new(Self { instance, ingress: Mutex::default() })
    }

    fn ingress(&self) -> MutexGuard<'_, BTreeMap<u16, u64>> {
        self.ingress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on this holds for the pod of that number.
    pub(crate) fn set(&self, index: u16, bandwidth: Bandwidth) {
        match bandwidth.ingress {
            Some(bits) => drop(self.ingress().insert(index, bits)),
            None => drop(self.ingress().remove(&index)),
        }
    }

    /// Puts back what somebody else took from the host's side; how many were not as they should be.
    fn repair(&self) -> Result<usize, NetworkError> {
        let wanted = self.ingress().clone();
        if wanted.is_empty() {
            return Ok(0);
        }
        let socket = host::route_socket()?;
        let roots: Vec<Root> = socket
            .dump(tc::RTM_GETQDISC, &[0; 20], tc::RTM_NEWQDISC, tc::parse_root)
            .map_err(|e| NetworkError::netlink("list the limits of links", e))?;
        let mut repaired = 0;
        for link in host::links(&socket)? {
            let Some((number, bits)) = self.instance.link_index(&link.name).and_then(|n| Some((n, *wanted.get(&n)?)))
            else {
                continue;
            };
            let bucket = bucket(bits);
            let is_whole = roots.iter().any(|r| r.index == link.index && r.ours == Some((bucket.rate, bucket.limit)));
            // Another limit may have been set meanwhile: that is not to be undone.
            if !is_whole && self.ingress().get(&number) == Some(&bits) {
                limit_link(&socket, link.index, Some(bits))?;
                repaired += 1;
            }
        }
        Ok(repaired)
    }

    /// Keeps the limits as they are to be; ends only when it is dropped.
    pub(crate) async fn watch(self: Arc<Self>, host: Host, ears: AsyncFd<Socket>) {
        loop {
            wait_for(&ears, |datagram| datagram.is_none_or(|d| messages(d).any(|m| tc::is_change(m.kind)))).await;
            loop {
                let limits = Arc::clone(&self);
                match host.run("look after the limits of pods", move || limits.repair()).await {
                    Ok(0) => break,
                    Ok(links) => {
                        tracing::warn!(links, "limits of pods were changed by somebody else; they were put back");
                        break;
                    }
                    Err(error) => {
                        tracing::error!(%error, "limits of pods cannot be put back; trying again");
                        tokio::time::sleep(RETRY).await;
                    }
                }
            }
            tokio::time::sleep(SETTLE).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_hold_a_packet_at_the_slowest_and_fit_the_kernel_at_the_fastest() {
        assert_eq!(bucket(1000), Tbf { rate: 125, burst: 4096, limit: 16_384 });
        assert_eq!(bucket(80_000_000), Tbf { rate: 10_000_000, burst: 500_000, limit: 2_000_000 });
        assert_eq!(bucket(1_000_000_000_000_000), Tbf { rate: 125_000_000_000_000, burst: 16 << 20, limit: 64 << 20 });
    }
}
