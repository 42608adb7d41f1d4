//! Removing everything of an instance from the host, without anything that the agent knew.

use crate::host::{self, delete};
use crate::names::Instance;
use crate::netlink::{Batch, route};
use crate::{NetworkError, firewall};

/// What a teardown removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TeardownReport {
    /// Pod links deleted.
    pub links: usize,
    /// Routes deleted: the prefixes that the instance had claimed.
    pub routes: usize,
    /// Firewall tables deleted.
    pub tables: usize,
}

/// Requests in one datagram: an answer a request must fit into the socket's receive buffer (208 KiB by default).
const DELETIONS_A_BATCH: usize = 64;

/// Removes every pod link, claimed prefix and firewall table of `instance` from the calling thread's network namespace.
///
/// # Guarantees
/// Needs no state file and no living agent; doing it again is harmless; nothing of another instance is touched. Links go
/// first, so that no pod is connected without a firewall. Allocations stay on disk: pods keep their addresses.
///
/// # Caveats
/// A running [`Network`](crate::Network) of the same instance puts its firewall back: stop the agent first. Forwarding stays
/// enabled, since others may rely on it by now.
pub fn teardown(instance: &str) -> Result<TeardownReport, NetworkError> {
    let instance = Instance::parse(instance)?;
    let socket = host::route_socket()?;
    let mut report = TeardownReport::default();

    let own: Vec<u32> =
        host::links(&socket)?.into_iter().filter(|l| instance.link_index(&l.name).is_some()).map(|l| l.index).collect();
    for chunk in own.chunks(DELETIONS_A_BATCH) {
        let mut batch = Batch::new();
        for index in chunk {
            route::delete_link(&mut batch, *index);
        }
        report.links += delete(&socket, &batch)?;
    }

    let priority = instance.route_priority();
    let mut batch = Batch::new();
    for claimed in host::routes(&socket)?.iter().filter(|r| r.claim == Some(priority)).take(DELETIONS_A_BATCH) {
        route::delete_claim(&mut batch, claimed.prefix, priority);
    }
    report.routes = delete(&socket, &batch)?;
    report.tables = usize::from(firewall::delete(&instance)?);
    Ok(report)
}
