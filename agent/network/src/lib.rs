//! Pod networks, firewall, and name service for pods.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// What this instance's pod network is built from.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// Four characters of `[a-z2-7]`, made from the data directory. Links are `hearth-<instance>-xyz`.
    pub instance: String,
    /// Where prefixes and allocations are kept, usually `<data-dir>/agent/network`.
    pub state_dir: PathBuf,
    /// The host's resolver configuration, usually `/etc/resolv.conf`.
    pub resolv_conf: PathBuf,
}

/// What a pod may reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EgressPolicy {
    /// True: public addresses. False: nothing but replies to connections that the host opened.
    pub internet: bool,
}

/// A pod's addresses, as seen by the host and by the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodAddresses {
    /// The pod's IPv4 address (a /32).
    pub ipv4: Ipv4Addr,
    /// The pod's IPv6 address (a /128); absent where the host has no IPv6.
    pub ipv6: Option<Ipv6Addr>,
    /// The pod's IPv4 default router: the host.
    pub gateway4: Ipv4Addr,
    /// The pod's IPv6 default router: the host.
    pub gateway6: Option<Ipv6Addr>,
    /// What belongs in the pod's `resolv.conf`, in order.
    pub dns: Vec<IpAddr>,
    /// The host's side of the pod's link.
    pub link: String,
}

/// A pod's network: its addresses and the namespace that holds them.
#[derive(Debug)]
pub struct PodNetwork {
    /// The addresses.
    pub addresses: PodAddresses,
    /// The network namespace. It lives while a process is in it or this descriptor is open.
    pub netns: OwnedFd,
}

/// Why a network operation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkError {
    /// The instance name is not four characters of `[a-z2-7]`.
    #[error("instance name {0:?} must be four characters of a-z and 2-7")]
    BadInstance(String),
}

/// What a teardown removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TeardownReport {
    /// Links deleted.
    pub links: usize,
    /// Firewall tables deleted.
    pub tables: usize,
    /// Routes deleted.
    pub routes: usize,
}

/// A handle on this instance's pod network. Clones are cheap.
#[derive(Clone, Debug)]
pub struct Network;

impl Network {
    /// Starts the network.
    pub async fn start(config: NetworkConfig) -> Result<Self, NetworkError> {
        Err(NetworkError::BadInstance(config.instance))
    }
    /// Makes a network namespace for a pod.
    pub async fn attach(&self, pod_uid: &str, policy: &EgressPolicy) -> Result<PodNetwork, NetworkError> {
        let _ = policy;
        Err(NetworkError::BadInstance(pod_uid.into()))
    }
    /// Takes over a living pod's namespace.
    pub async fn adopt(&self, pod_uid: &str, netns: OwnedFd, policy: &EgressPolicy) -> Result<PodNetwork, NetworkError> {
        let _ = (policy, netns);
        Err(NetworkError::BadInstance(pod_uid.into()))
    }
    /// Removes a pod's network.
    pub async fn detach(&self, pod_uid: &str) -> Result<(), NetworkError> {
        Err(NetworkError::BadInstance(pod_uid.into()))
    }
    /// Removes what belongs to pods not in `keep`.
    pub async fn retain(&self, keep: &HashSet<String>) -> Result<(), NetworkError> {
        let _ = keep;
        Ok(())
    }
    /// All pods with an allocation.
    pub fn pods(&self) -> Vec<(String, PodAddresses)> {
        Vec::new()
    }
}

/// Removes every link, firewall table and route of `instance`.
pub fn teardown(instance: &str) -> Result<TeardownReport, NetworkError> {
    Err(NetworkError::BadInstance(instance.into()))
}
