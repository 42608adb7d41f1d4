//! The QUIC endpoint of either end: the region's relays, no other discovery, no port mapping.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use hearth_types::tunnel::HeaderVersion;
use iroh::{
    Endpoint, EndpointAddr, NetReportConfig, RelayMode, RelayUrl, SecretKey, Watcher as _,
    endpoint::{ConnectOptions, Connection, IdleTimeout, PortmapperConfig, QuicTransportConfig, VarInt, presets},
};

use crate::{limits, relays::Relays, resolver::Hosts};

/// The protocol that both ends must name (ALPN, RFC 7301). It changes when the meaning of a stream's bytes does: the
/// first version's ingress streams begin with the text header, those of the second with a PROXY header.
const ALPN_1: &[u8] = b"hearth/tunnel/1";
pub(crate) const ALPN_2: &[u8] = b"hearth/tunnel/2";

/// What a device offers besides [`ALPN_2`], for gateways of the release before.
pub(crate) fn older() -> ConnectOptions {
    ConnectOptions::new().with_additional_alpns(vec![ALPN_1.to_vec()])
}

/// The newest header that the other end of a connection reads.
pub(crate) fn header_version(connection: &Connection) -> HeaderVersion {
    if connection.alpn() == ALPN_2 { HeaderVersion::Proxy } else { HeaderVersion::Text }
}

/// How often another port is tried when one free port is wanted on both address families.
const PORT_ATTEMPTS: usize = 16;

/// Codes with which tunnels are closed and streams are reset, for logs of the other end.
pub(crate) mod code {
    use iroh::endpoint::VarInt;

    /// The tunnel had no stream for the idle time.
    pub(crate) const IDLE: VarInt = VarInt::from_u32(1);
    /// The process ends.
    pub(crate) const SHUTDOWN: VarInt = VarInt::from_u32(2);
    /// The key belongs to no device of this region, or no longer.
    pub(crate) const UNKNOWN_KEY: VarInt = VarInt::from_u32(3);
    /// Too many tunnels.
    pub(crate) const FULL: VarInt = VarInt::from_u32(4);
    /// A newer tunnel took this one's place.
    pub(crate) const REPLACED: VarInt = VarInt::from_u32(5);
    /// The gateway is not, or no longer, in the device's roster.
    pub(crate) const NOT_IN_ROSTER: VarInt = VarInt::from_u32(6);
    /// A stream's kind is not known.
    pub(crate) const UNKNOWN_KIND: VarInt = VarInt::from_u32(16);
    /// Nobody took the stream in time.
    pub(crate) const BUSY: VarInt = VarInt::from_u32(17);
    /// The stream was dropped before its end.
    pub(crate) const ABORTED: VarInt = VarInt::from_u32(18);
}

/// Why an end of tunnels does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The UDP socket.
    #[error("cannot listen for tunnels on UDP {listen}: is the port taken or the address another machine's?")]
    Bind {
        /// The address asked for.
        listen: SocketAddr,
        /// What the socket said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The metrics.
    #[error("cannot register the tunnel's metrics: are two of them in one registry?")]
    Metrics(#[from] prometheus::Error),
}

/// What an endpoint accepts from its peer.
pub(crate) enum Role {
    /// Opens streams and accepts tunnels.
    Gateway,
    /// Accepts streams and opens tunnels.
    Device,
}

fn transport(role: &Role) -> QuicTransportConfig {
    let silence = IdleTimeout::from(VarInt::from_u32(limits::SILENCE.as_millis() as u32));
    let streams = match role {
        Role::Gateway => 0,
        Role::Device => limits::MAX_STREAMS,
    };
    QuicTransportConfig::builder()
        .max_concurrent_bidi_streams(VarInt::from_u32(streams))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .stream_receive_window(VarInt::from_u32(limits::STREAM_WINDOW))
        .receive_window(VarInt::from_u32(limits::TUNNEL_WINDOW))
        .send_window(u64::from(limits::TUNNEL_WINDOW))
        .max_idle_timeout(Some(silence))
        .keep_alive_interval(limits::KEEP_ALIVE)
        .default_path_max_idle_timeout(limits::SILENCE)
        .default_path_keep_alive_interval(limits::KEEP_ALIVE)
        .build()
}

/// Binds the gateway's endpoint. `[::]` means both families on one port.
pub(crate) async fn bind_gateway(
    secret_key: &[u8; 32],
    listen: SocketAddr,
    relays: &Relays,
) -> Result<Endpoint, StartError> {
    let both = listen.ip() == Ipv6Addr::UNSPECIFIED;
    let attempts = if both && listen.port() == 0 { PORT_ATTEMPTS } else { 1 };
    let mut last = None;
    for _ in 0..attempts {
        let mut listen = listen;
        if both && listen.port() == 0 {
            // The endpoint would take another free port for each family: ask for one and hope that it is free on both.
            listen.set_port(free_port().map_err(|error| StartError::Bind { listen, source: error.into() })?);
        }
        let mut addresses = vec![listen];
        if both {
            addresses.push((Ipv4Addr::UNSPECIFIED, listen.port()).into());
        }
        match bind(secret_key, Role::Gateway, &addresses, relays).await {
            Ok(endpoint) => return Ok(endpoint),
            Err(error) => last = Some(error),
        }
    }
    let source = last.unwrap_or_else(|| "no port was tried".into());
    Err(StartError::Bind { listen, source })
}

fn free_port() -> std::io::Result<u16> {
    Ok(UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?.local_addr()?.port())
}

/// Binds a device's endpoint to any port of both families.
pub(crate) async fn bind_device(secret_key: &[u8; 32], relays: &Relays) -> Result<Endpoint, StartError> {
    let listen = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    bind(secret_key, Role::Device, &[], relays).await.map_err(|source| StartError::Bind { listen, source })
}

async fn bind(
    secret_key: &[u8; 32],
    role: Role,
    listen: &[SocketAddr],
    relays: &Relays,
) -> Result<Endpoint, Box<dyn std::error::Error + Send + Sync>> {
    let mut report = NetReportConfig::default();
    // It would ask over plain HTTP.
    report.captive_portal_check = false;
    let mut builder = Endpoint::builder(presets::Minimal)
        .secret_key(SecretKey::from_bytes(secret_key))
        .transport_config(transport(&role))
        .portmapper_config(PortmapperConfig::Disabled)
        .relay_mode(RelayMode::Custom(relays.map()))
        .net_report_config(report)
        .dns_resolver(Hosts::resolver())
        .ca_tls_config(relays.tls());
    if matches!(role, Role::Gateway) {
        builder = builder.alpns(vec![ALPN_2.to_vec(), ALPN_1.to_vec()]);
    }
    if !listen.is_empty() {
        builder = builder.clear_ip_transports();
        for address in listen {
            builder = builder.bind_addr(*address)?;
        }
    }
    Ok(builder.bind().await?)
}

/// Has an endpoint be at these relays, where it is not yet.
///
/// iroh goes to a relay when it sends something there, but for a peer that it heard by another relay before: that one gets it instead, for as
/// long as its connection stands, and it stands for half a minute where the relay's process is stopped. So something is sent to nobody, whom no
/// relay was heard from.
pub(crate) async fn be_at(endpoint: &Endpoint, relays: impl IntoIterator<Item = RelayUrl>) {
    let home = endpoint.home_relay_status().get();
    let there = |url: &RelayUrl| home.iter().any(|status| status.url() == url && status.is_connected());
    let mut begun = false;
    for url in relays.into_iter().filter(|url| !there(url)) {
        let (endpoint, nobody) = (endpoint.clone(), SecretKey::generate().public());
        // Nobody answers; it is given up once the relay has been gone to.
        tokio::spawn(async move {
            let call = endpoint.connect(EndpointAddr::new(nobody).with_relay_url(url), ALPN_2);
            tokio::time::timeout(limits::RELAY_MOVE, call).await.is_ok()
        });
        begun = true;
    }
    if begun {
        // Else what is sent now would still go by the other one.
        tokio::time::sleep(limits::RELAY_BEGIN).await;
    }
}

/// Closes an endpoint, within a bound.
pub(crate) async fn close(endpoint: &Endpoint) {
    if tokio::time::timeout(limits::CLOSE_TIMEOUT, endpoint.close()).await.is_err() {
        tracing::debug!("peers did not confirm the end of their tunnels");
    }
}
