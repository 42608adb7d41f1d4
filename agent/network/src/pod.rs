//! One pod's link: a routed point-to-point veth pair.
//!
//! The host's side carries the gateway's address (the same on every pod's link) and a host route to the pod; the pod's side
//! carries the pod's addresses and a default route. There is no bridge, so pods share no link, and neighbours are written
//! down on both sides, so nobody needs ARP or neighbour discovery.

use std::fs;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use rustix::net::netdevice::name_to_index;

use crate::bandwidth::{index_of, limit_link};
use crate::denied::Denied;
use crate::host::{self, must, set_sysctl};
use crate::inner::{Inner, Namespace};
use crate::names::{Instance, group, host_mac, pod_mac};
use crate::netlink::Batch;
use crate::netlink::route::{self, AddressUse, VethPair};
use crate::netlink::socket::{Protocol, Socket};
use crate::prefix::Prefix;
use crate::services::Range;
use crate::{NetworkError, PodPolicy};

/// Linkwatch takes microseconds, and at most a second where it limits itself (`linkwatch_schedule_work`).
const MAX_LINK_DELAY: Duration = Duration::from_secs(2);
const LINK_POLL: Duration = Duration::from_micros(200);
/// The pod's side, as every image expects it.
pub(crate) const POD_LINK: &str = "eth0";

/// Everything there is to know to make a pod's link.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) instance: Instance,
    pub(crate) uid: String,
    pub(crate) index: u16,
    pub(crate) policy: PodPolicy,
    pub(crate) ipv4: IpAddr,
    pub(crate) gateway4: IpAddr,
    /// The pod's address and its gateway's, where the host has IPv6.
    pub(crate) ipv6: Option<(IpAddr, IpAddr)>,
    /// Where Services have their addresses.
    pub(crate) services: Range,
    /// What is denied to pods at this time.
    pub(crate) denied: Arc<Denied>,
}

impl Plan {
    fn link(&self) -> String {
        self.instance.link(self.index)
    }

    /// (pod's address, gateway's address) of each family.
    fn pairs(&self) -> impl Iterator<Item = (IpAddr, IpAddr)> {
        std::iter::once((self.ipv4, self.gateway4)).chain(self.ipv6)
    }
}

/// Makes a namespace with a link in it. Runs on a thread of its own that is in the host's namespace.
pub(crate) fn create(plan: &Plan) -> Result<OwnedFd, NetworkError> {
    let host_netns = host::open_netns(Path::new(host::THREAD_NETNS))?;
    let host = host::route_socket()?;
    unshare(CloneFlags::CLONE_NEWNET)
        .map_err(|e| NetworkError::Namespace { step: "make a network namespace", source: e.into() })?;
    let netns = host::open_netns(Path::new(host::THREAD_NETNS))?;
    let pod = host::route_socket()?;
    prepare_namespace(plan, Namespace::New)?;
    host::enter(&host_netns)?;
    let made = add_link(plan, &host, &netns).and_then(|()| configure(plan, &host, &pod, false));
    if made.is_err() {
        // Half a link would survive: its other end lives as long as the namespace.
        let _ = remove(&host, &plan.link());
    }
    made.map(|()| netns)
}

/// Takes over a living namespace: keeps its link where it is the one of `plan`, else makes it anew. Runs on a thread of
/// its own that is in the host's namespace.
pub(crate) fn take_over(plan: &Plan, netns: OwnedFd) -> Result<OwnedFd, NetworkError> {
    let host_netns = host::open_netns(Path::new(host::THREAD_NETNS))?;
    let host = host::route_socket()?;
    let host_index = name_to_index(&host, &plan.link()).ok();
    host::enter(&netns)?;
    let pod = host::route_socket()?;
    prepare_namespace(plan, Namespace::Old)?;
    host::enter(&host_netns)?;
    let peer = host::links(&pod)?.into_iter().find(|l| l.name == POD_LINK);
    let whole = matches!((host_index, &peer), (Some(index), Some(peer)) if peer.peer == Some(index));
    if !whole {
        if let Some(peer) = peer {
            let mut batch = Batch::new();
            route::delete_link(&mut batch, peer.index);
            host::delete(&pod, &batch)?;
        }
        add_link(plan, &host, &netns)?;
    }
    configure(plan, &host, &pod, whole)?;
    Ok(netns)
}

/// The IPv4 address that the pod in a namespace has, where it has one: for pods whose allocation was lost.
pub(crate) fn address_in(netns: &OwnedFd, within: Prefix) -> Result<Option<IpAddr>, NetworkError> {
    host::enter(netns)?;
    let socket = host::route_socket()?;
    Ok(host::addresses(&socket)?.into_iter().map(|a| a.local).find(|a| within.contains(*a)))
}

/// Removes the host's side of a link, and with it the pod's.
pub(crate) fn remove(host: &Socket, link: &str) -> Result<(), NetworkError> {
    let mut batch = Batch::new();
    route::delete_link_named(&mut batch, link);
    host::delete(host, &batch).map(drop)
}

/// Firewall and parameters of a pod's namespace, which the calling thread is in, before it has a link. Processes of a pod have
/// no capability over it, so they are set from outside.
fn prepare_namespace(plan: &Plan, namespace: Namespace) -> Result<(), NetworkError> {
    let tables = Socket::open(Protocol::Netfilter, 0)
        .map_err(|e| NetworkError::netlink("open a socket for the pod's firewall", e))?;
    let gateway6 = plan.ipv6.map(|(_, gateway)| gateway);
    let inner = Inner {
        gateway4: plan.gateway4,
        gateway6,
        internet: plan.policy.internet,
        services: plan.services,
        denied: &plan.denied,
    };
    inner.install(&tables, namespace)?;
    // Ports below 1024 and ping need no privilege inside a pod, as with other container engines.
    set_sysctl("ipv4/ip_unprivileged_port_start", "0")?;
    set_sysctl("ipv4/ping_group_range", "0 2147483647")?;
    if plan.ipv6.is_some() {
        // The peer is a router that sends no advertisements.
        set_sysctl("ipv6/conf/default/accept_ra", "0")?;
    }
    Ok(())
}

fn add_link(plan: &Plan, host: &Socket, netns: &OwnedFd) -> Result<(), NetworkError> {
    let name = plan.link();
    let mut batch = Batch::new();
    let (mac, peer_mac) = (host_mac(plan.index), pod_mac(plan.index));
    let pair = VethPair { name: &name, mac, peer_name: POD_LINK, peer_mac, peer_netns: netns.as_raw_fd() };
    route::add_veth(&mut batch, pair);
    // A link of that name is a dead pod's, or one whose allocation was lost: the number is this pod's now.
    match must(host, &batch) {
        Err(NetworkError::Netlink { source, .. }) if source.raw_os_error() == Some(libc::EEXIST) => {
            remove(host, &name)?;
            must(host, &batch)
        }
        other => other,
    }?;
    harden_link(&name, plan.ipv6.is_some())
}

/// Brings both sides to the state of the plan; each step is harmless where it was done before. `adopted` says that the
/// link was there already and may carry another plan's addresses.
///
/// # Assumptions
/// `host` is a socket of the host's namespace, `pod` one of the pod's.
fn configure(plan: &Plan, host: &Socket, pod: &Socket, adopted: bool) -> Result<(), NetworkError> {
    let name = plan.link();
    let host_index = index_of(host, &name)?;
    let pod_index = index_of(pod, POD_LINK)?;
    if adopted {
        remove_other_addresses(plan, pod, pod_index)?;
    }
    // Before it is up: no packet passes a new link without its limit.
    let bandwidth = plan.policy.bandwidth;
    for (socket, index, bits) in [(host, host_index, bandwidth.ingress), (pod, pod_index, bandwidth.egress)] {
        if adopted || bits.is_some() {
            limit_link(socket, index, bits)?;
        }
    }

    let mut batch = Batch::new();
    route::label_link(&mut batch, &name, group(plan.policy), &format!("hearth pod {}", plan.uid), plan.ipv6.is_some());
    route::set_up(&mut batch, host_index);
    must(host, &batch)?;

    let mut batch = Batch::new();
    if plan.ipv6.is_some() {
        route::set_no_own_addresses(&mut batch, pod_index);
    }
    route::set_up(&mut batch, route::LOOPBACK);
    route::set_up(&mut batch, pod_index);
    for (address, gateway) in plan.pairs() {
        route::add_address(&mut batch, pod_index, address, AddressUse::Own);
        route::add_neighbour(&mut batch, pod_index, gateway, host_mac(plan.index));
        route::add_route(&mut batch, host_route(gateway), pod_index, None, None);
        route::add_route(&mut batch, default_route(gateway), pod_index, Some(gateway), None);
    }
    must(pod, &batch)?;

    let mut batch = Batch::new();
    for (address, gateway) in plan.pairs() {
        route::add_address(&mut batch, host_index, gateway, AddressUse::Gateway);
        route::add_neighbour(&mut batch, host_index, address, pod_mac(plan.index));
        route::add_route(&mut batch, host_route(address), host_index, None, Some(gateway));
    }
    must(host, &batch)?;
    wait_until_usable(host, host_index, plan.ipv6.map(|(_, gateway)| gateway))?;
    wait_until_usable(pod, pod_index, plan.ipv6.map(|(address, _)| address))
}

/// Waits for what the kernel does in the background, so that not even the first packet of a pod is lost; each would cost it
/// a second, the time to retransmission.
///
/// A link sends when "linkwatch" has noticed that the other end came up; from Linux 6.8 on the question itself makes it
/// notice. An IPv6 address receives when the work that would look for duplicates has run, also where it is told not to look.
fn wait_until_usable(socket: &Socket, index: u32, ipv6: Option<IpAddr>) -> Result<(), NetworkError> {
    let failed = |e| NetworkError::netlink("read the state of the pod's link", e);
    let begin = Instant::now();
    loop {
        let link = socket.get(&route::get_link(index), route::RTM_NEWLINK, route::parse_link).map_err(failed)?;
        let receives = match ipv6 {
            None => true,
            // Until then the lookup may also fail: there is no route.
            Some(address) => {
                socket.get(&route::get_route_to(address), route::RTM_NEWROUTE, route::is_local_route).unwrap_or(false)
            }
        };
        if link.operational && receives {
            return Ok(());
        }
        if begin.elapsed() > MAX_LINK_DELAY {
            tracing::warn!(link = link.name, link.operational, receives, "a pod's link is not usable yet; going on");
            return Ok(());
        }
        std::thread::sleep(LINK_POLL);
    }
}

fn remove_other_addresses(plan: &Plan, pod: &Socket, index: u32) -> Result<(), NetworkError> {
    let mut batch = Batch::new();
    for found in host::addresses(pod)?.iter().filter(|a| a.index == index) {
        if plan.pairs().all(|(address, _)| address != found.local) {
            route::delete_address(&mut batch, found);
        }
    }
    host::delete(pod, &batch).map(drop)
}

fn host_route(address: IpAddr) -> Prefix {
    whole(address, if address.is_ipv4() { 32 } else { 128 })
}

fn default_route(family: IpAddr) -> Prefix {
    whole(family, 0)
}

fn whole(address: IpAddr, len: u8) -> Prefix {
    Prefix::new(address, len).unwrap_or_else(|| unreachable!("{len} fits both families"))
}

/// Parameters of the host's side, before the link is brought up. The calling thread is in the host's namespace.
///
/// # Guarantees
/// The host does not answer ARP for its other addresses (a pod must not find out which it has) and takes no router
/// advertisements from pods. The firewall holds without these.
fn harden_link(link: &str, ipv6: bool) -> Result<(), NetworkError> {
    set_sysctl(&format!("ipv4/conf/{link}/arp_ignore"), "8")?;
    set_sysctl(&format!("ipv4/conf/{link}/rp_filter"), "1")?;
    if ipv6 {
        set_sysctl(&format!("ipv6/conf/{link}/accept_ra"), "0")?;
        let disabled = format!("/proc/sys/net/ipv6/conf/{link}/disable_ipv6");
        if fs::read_to_string(disabled).is_ok_and(|v| v.trim() == "1") {
            set_sysctl(&format!("ipv6/conf/{link}/disable_ipv6"), "0")?;
        }
    }
    Ok(())
}
