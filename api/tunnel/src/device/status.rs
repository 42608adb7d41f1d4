//! What a device's end knows of its network.

use std::{net::SocketAddr, time::Duration};

use iroh::{TransportAddr, Watcher as _};

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
    /// Whether UDP gets out and back.
    pub udp: bool,
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

    /// The device's line, as the last look at it found it.
    pub async fn line(&self) -> Option<LineStatus> {
        let report = self.inner.endpoint.current().await?.net_report().get()?;
        let mut relays: Vec<_> = self
            .inner
            .relays
            .urls()
            .into_iter()
            .filter_map(|url| {
                let latency = report
                    .relay_latency
                    .iter()
                    .filter(|(_, one, _)| **one == url)
                    .map(|(_, _, latency)| latency)
                    .min()?;
                Some((self.inner.relays.get(&url)?.name, latency))
            })
            .collect();
        relays.sort_by_key(|(_, latency)| *latency);
        let public = report.global_v4.map(SocketAddr::from).or(report.global_v6.map(SocketAddr::from));
        Some(LineStatus {
            udp: report.udp_v4 || report.udp_v6,
            port_varies: report.mapping_varies_by_dest_ipv4.or(report.mapping_varies_by_dest_ipv6),
            public,
            relays,
        })
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
