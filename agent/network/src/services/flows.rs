//! Flows of UDP whose pod is not one to call any more. The kernel would go on with them for as long as the caller does not fall silent,
//! whatever the rules say of new ones; a caller that uses one port for all it asks would never reach another pod.

use std::net::IpAddr;

use super::plan::Plan;
use super::{Range, ServiceProtocol};
use crate::NetworkError;
use crate::netlink::conntrack::{self, Flow};
use crate::prefix::Prefix;

const UDP: u8 = 17;

/// Has the kernel forget them. In the host's namespace.
pub(crate) fn forget_stale(plan: &Plan, range: Range, pods: &[Prefix]) -> Result<(), NetworkError> {
    let failed = |e| NetworkError::netlink("forget flows of Services that lead elsewhere now", e);
    let stale = conntrack::flows(|flow| is_stale(flow, plan, range, pods)).map_err(failed)?;
    if stale.is_empty() {
        return Ok(());
    }
    tracing::debug!(flows = stale.len(), "datagrams of these flows go to other pods now");
    conntrack::forget(&stale).map_err(failed)
}

/// Whether there may be any.
pub(crate) fn has_datagrams(plan: &Plan) -> bool {
    let mut doors = plan.addresses.values().flat_map(|address| address.doors.keys());
    doors.any(|(protocol, _)| *protocol == ServiceProtocol::Udp)
}

fn is_stale(flow: &Flow, plan: &Plan, range: Range, pods: &[Prefix]) -> bool {
    let (to, target) = (flow.original.to, flow.reply.from);
    if flow.original.protocol != UDP || !(range.ipv4.contains(to.ip()) || range.ipv6.contains(to.ip())) {
        return false;
    }
    let number = |ip: IpAddr| pods.iter().any(|prefix| prefix.contains(ip)).then(|| low(ip) & 0x7fff);
    let goes_on = || {
        let (caller, pod) = (number(flow.original.from.ip())?, number(target.ip())?);
        let doors = plan.addresses.get(&low(to.ip()))?.doors.get(&(ServiceProtocol::Udp, to.port()))?;
        let leads = |door: &super::plan::Door| {
            plan.groups[door.clients].contains(&caller) && door.targets.contains(&(pod, target.port()))
        };
        Some(doors.iter().any(leads))
    };
    goes_on() != Some(true)
}

/// The last 16 bits, which are a number in either range.
fn low(ip: IpAddr) -> u16 {
    match ip {
        IpAddr::V4(a) => a.to_bits() as u16,
        IpAddr::V6(a) => a.to_bits() as u16,
    }
}
