//! The prefixes that an instance has for itself on this host: each claimed by an `unreachable` route, whose priority says whose it is.

use crate::NetworkError;
use crate::host;
use crate::names::Instance;
use crate::netlink::socket::Socket;
use crate::netlink::{Batch, route};
use crate::prefix::Prefix;

/// Tries to claim an IPv4 prefix while another instance claims the same at the same time.
pub(crate) const ATTEMPTS: u32 = 8;

/// Claims a prefix of IPv4 and maybe one of IPv6, and gives up what the instance claimed before and is not among `own`. Returns whether another
/// instance has claimed the same of IPv4 since it was looked for a free one: whoever sees that moves on.
pub(crate) fn put(
    instance: &Instance,
    socket: &Socket,
    own: &[Prefix],
    (ipv4, ipv6): (Prefix, Option<Prefix>),
) -> Result<bool, NetworkError> {
    drop_others(instance, socket, own)?;
    let priority = instance.route_priority();
    let mut batch = Batch::new();
    for prefix in std::iter::once(ipv4).chain(ipv6) {
        route::add_claim(&mut batch, prefix, priority);
    }
    host::must(socket, &batch)?;
    let routes = host::routes(socket)?;
    Ok(routes.iter().any(|r| r.claim.is_some_and(|other| other != priority) && r.prefix.overlaps(ipv4)))
}

/// Gives up what this instance claimed before and does not any more.
fn drop_others(instance: &Instance, socket: &Socket, keep: &[Prefix]) -> Result<(), NetworkError> {
    let priority = instance.route_priority();
    let mut batch = Batch::new();
    for old in host::routes(socket)?.iter().filter(|r| r.claim == Some(priority)) {
        if !keep.contains(&old.prefix) {
            route::delete_claim(&mut batch, old.prefix, priority);
        }
    }
    host::delete(socket, &batch).map(drop)
}
