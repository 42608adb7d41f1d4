//! Pod networks, firewall, and name service for pods.
//!
//! # What a pod gets
//! A network namespace with loopback and one link, `eth0`: a routed point-to-point veth pair whose other end,
//! `hearth-<instance>-xyz`, is the pod's router. One IPv4 and, where the host has IPv6, one IPv6 address. The namespace has
//! no name and is mounted nowhere: it lives as long as a process is in it or its descriptor is open.
//!
//! # What a pod may reach
//! The public internet, masqueraded, unless its policy denies that; the name relay at its gateway, port 53; and it may reply
//! to TCP connections and pings from the host. Nothing else: not the host (whichever address is used), not other pods of any
//! instance, not private, shared, link-local, multicast or reserved ranges of IPv4 and IPv6, not the home of the host by its
//! global IPv6 addresses (the /56 around each of its networks), not what [`Network::deny`] names, and none of these in their
//! 6to4, Teredo or NAT64 form. The one way to another pod is a [`Service`] of this device that it may use ([`Network::set_services`]): at
//! an address of a range of its own, where it never learns the other one's address. Only TCP, UDP and ICMP, and a bounded number of
//! connections. It speaks from its own addresses only. Nobody but the host, and who may use a Service that leads to it, may open a
//! connection to it. The relay does not tell it about the home either: names that are never the public internet's do not exist for it,
//! answers that lead into the home are empty, and Services that it may not use have no name.
//!
//! What is refused is refused audibly (a TCP reset, or ICMP "administratively prohibited"), so that programs fail at once
//! instead of hanging; forged sources are dropped silently.
//!
//! # How much a pod may send
//! Each pod has its own limit each way ([`Bandwidth`], a token bucket at each end of its link), and guests and all pods may share one
//! ([`SharedBandwidth`]). Limits are bits of IP packets in a second; those of a pod are put back on the host's side when somebody takes them, and on the
//! pod's side, which only the host can reach, at its next adoption.
//!
//! # Two firewalls
//! The host's table `inet hearth-<instance>` knows connections, sources and neighbours. A second, small table is inside of
//! each pod's namespace, where neither the pod nor whoever flushes the host's rules reaches it: it alone keeps a pod from all
//! denied ranges and from the host, whether the agent runs or not.
//!
//! # Beside other firewalls
//! A packet must be accepted by every firewall on the host. Where docker has enabled forwarding it sets the policy of
//! `ip filter FORWARD` to drop, and pods have no internet until that chain (`DOCKER-USER`) accepts what comes from and goes
//! to `hearth-<instance>-*`; ufw and firewalld likewise, also for port 53 at the input hook. [`Network::notices`] names
//! such chains of nftables (not those of the old iptables-legacy). Nothing that others accept weakens the rules here. Whatever
//! somebody changes in our table (flushes it, deletes or adds a rule or an element) is put back at once while the agent runs.
//!
//! Pods need a host that forwards packets. Where this instance had to enable that, it drops what arrives by the host's uplinks
//! and is neither for a pod, nor part of a known connection, nor let in by a port forwarding: the host does not become a
//! router for its LAN. Where the host forwarded before, nothing of others is touched.
//!
//! # Beside network managers
//! systemd-networkd and NetworkManager leave foreign veth links alone. A dhcpcd that manages every link gives the host's side
//! of pods' links addresses of its own: tell it `denyinterfaces hearth-*`. A VPN that takes all routes by policy routing (a
//! rule before the main table) takes the host's way to its pods too, and source checks then drop what pods send.
//!
//! # Limits
//! While the agent is down nobody watches: the firewalls stay, but do not learn of new neighbours, and the host's does not
//! come back when it is flushed; then pods are not masqueraded either, so mostly have no internet. The table inside of a pod
//! knows the home as it was when the pod was attached or adopted last, and keeps no connections: UDP that the host sends to a
//! pod gets no answer, but from a socket inside of it ([`Network::datagrams_inside`]).
//!
//! An IPv6 home larger than a /56 is known by the networks that the host is on, and a NAT64 prefix of the network's own is
//! not known. Forwarding is enabled for the whole host and stays so after a teardown.

mod bandwidth;
mod claims;
mod denied;
mod dns;
mod error;
mod firewall;
mod host;
mod inner;
mod inside;
mod names;
mod netlink;
mod notice;
mod pod;
mod prefix;
mod program;
mod service;
mod services;
mod shared;
mod store;
mod teardown;
mod watch;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

pub use bandwidth::{Bandwidth, check_shaping};
pub use error::NetworkError;
pub use firewall::firewall_version;
pub use notice::Notice;
pub use service::Network;
pub use services::{Service, ServicePod, ServicePort, ServiceProtocol};
pub use shared::SharedBandwidth;
pub use teardown::{TeardownReport, teardown};

/// What this instance's pod network is built from.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// Four characters of `[a-z2-7]`, made from the data directory: links are named `hearth-<instance>-xyz`, the firewall
    /// table `inet hearth-<instance>`.
    pub instance: String,
    /// Where prefixes and allocations are kept, usually `<data-dir>/agent/network`. Made where it is missing.
    pub state_dir: PathBuf,
    /// The host's resolver configuration, usually `/etc/resolv.conf`: pods' questions go to the name servers in it.
    pub resolv_conf: PathBuf,
    /// The zone of the region, whose names the relay answers as they are, also where it ends in a name that stays in the home
    /// (`hearth.internal`).
    pub zone: Option<String>,
    /// What pods may send and receive together, until [`Network::limit_shared`] says otherwise.
    pub bandwidth: SharedBandwidth,
}

/// What a pod may reach, and how much it may send and receive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodPolicy {
    /// True: the public internet and names. False: nothing but replies to connections that the host opened, and the Services that it may
    /// use.
    pub internet: bool,
    /// Whether it is of another owner than the device's: then it shares what guests may send and receive.
    pub guest: bool,
    /// What it alone may send and receive.
    pub bandwidth: Bandwidth,
}

/// A pod's addresses, as seen by the host and by the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodAddresses {
    /// The pod's IPv4 address (a /32).
    pub ipv4: Ipv4Addr,
    /// The pod's IPv6 address (a /128 of a unique local prefix); absent where the host has no IPv6.
    pub ipv6: Option<Ipv6Addr>,
    /// The pod's IPv4 default router: the host.
    pub gateway4: Ipv4Addr,
    /// The pod's IPv6 default router: the host.
    pub gateway6: Option<Ipv6Addr>,
    /// The name servers for the pod's `resolv.conf`, in order. A pod without internet is told of Services there, and refused all else at
    /// once.
    pub dns: Vec<IpAddr>,
    /// The host's side of the pod's link.
    pub link: String,
}

/// A pod's network: its addresses and the namespace that holds them.
#[derive(Debug)]
pub struct PodNetwork {
    /// The addresses.
    pub addresses: PodAddresses,
    /// The network namespace: hand it to the pod's shim, then close it. It lives while a process is in it or a descriptor
    /// of it is open, and the link goes with it.
    pub netns: OwnedFd,
}
