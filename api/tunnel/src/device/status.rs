//! What a device's end knows of its network.

use std::{net::SocketAddr, time::Duration};

use iroh::{TransportAddr, Watcher as _};
use tokio::time::timeout;

use super::{DeviceTunnel, Inner, lock};

/// By what a tunnel goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TunnelPath {
    /// From this machine to that address, without anybody in between who knows of it.
    Direct(SocketAddr),
    /// By the relay of this name.
    Relay(String),
}

/// One open tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelStatus {
    /// The gateway's key.
    pub gateway_key: [u8; 32],
    /// By what it goes now; `None` while that is being found out.
    pub path: Option<TunnelPath>,
    /// How long a packet takes there and back.
    pub rtt: Option<Duration>,
}

/// What the relays told of this device's line. Nothing is known while no tunnel is open: a device that nobody uses asks nobody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LineStatus {
    /// Whether UDP gets out and back; `None` where there is no relay that could tell, and no tunnel that shows it.
    pub udp: Option<bool>,
    /// Whether the router takes another port for each destination (RFC 4787's address-dependent mapping), so that no direct path is found
    /// to somebody behind another router; `None` where fewer than two relays answered.
    pub port_varies: Option<bool>,
    /// How the internet sees this device.
    pub public: Option<SocketAddr>,
    /// The relays that answered, and how far they are, the nearest first.
    pub relays: Vec<(String, Duration)>,
}

impl DeviceTunnel {
    /// The open tunnels.
    pub fn tunnels(&self) -> Vec<TunnelStatus> {
        let gateways: Vec<_> = lock(&self.inner.gateways).iter().map(|(key, one)| (*key, one.clone())).collect();
        let mut tunnels = Vec::new();
        for (gateway_key, gateway) in gateways {
            // Held by a dial: there is none to be told of yet.
            let Ok(newest) = gateway.newest.try_lock() else { continue };
            let connection = newest.as_ref().and_then(|(connection, _)| connection.upgrade());
            let Some(connection) = connection.filter(|connection| connection.close_reason().is_none()) else {
                continue;
            };
            let paths = connection.paths();
            let selected = paths.iter().find(iroh::endpoint::Path::is_selected);
            tunnels.push(TunnelStatus {
                gateway_key,
                path: selected.as_ref().and_then(|path| self.inner.path(path.remote_addr())),
                rtt: selected.map(|path| path.rtt()),
            });
        }
        tunnels
    }

    /// The device's line, as the last look at it found it; the first one is waited for so long. `None` while no tunnel is open.
    pub async fn line(&self, patience: Duration) -> Option<LineStatus> {
        let mut reports = self.inner.endpoint.current().await?.net_report();
        // Without relays there is nobody who could be asked.
        let patience = if self.inner.relays.urls().is_empty() { Duration::ZERO } else { patience };
        let report = timeout(patience, reports.initialized()).await.unwrap_or_default();
        let direct = self.tunnels().iter().any(|tunnel| matches!(tunnel.path, Some(TunnelPath::Direct(_))));
        let mut relays = Vec::new();
        // One that is asked by UDP too, and answered by TCP.
        let mut could_tell = false;
        for url in self.inner.relays.urls() {
            let of = report.relay_latency.iter().filter(|(_, one, _)| **one == url);
            if let (Some(latency), Some(relay)) = (of.map(|(_, _, latency)| latency).min(), self.inner.relays.get(&url))
            {
                could_tell |= relay.discovery_port != 0;
                relays.push((relay.name, latency));
            }
        }
        relays.sort_by_key(|(_, latency)| *latency);
        let public = report.global_v4.map(SocketAddr::from).or(report.global_v6.map(SocketAddr::from));
        let udp = if report.udp_v4 || report.udp_v6 || direct { Some(true) } else { could_tell.then_some(false) };
        let port_varies = report.mapping_varies_by_dest_ipv4.or(report.mapping_varies_by_dest_ipv6);
        Some(LineStatus { udp, port_varies, public, relays })
    }
}

impl Inner {
    fn path(&self, remote: &TransportAddr) -> Option<TunnelPath> {
        match remote {
            TransportAddr::Ip(address) => Some(TunnelPath::Direct(*address)),
            TransportAddr::Relay(url) => {
                Some(TunnelPath::Relay(self.relays.get(url).map_or_else(|| url.to_string(), |relay| relay.name)))
            }
            _ => None,
        }
    }
}
