//! A server's part in relays: the one that runs in it, if any, and those of the region that its gateway uses.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use hearth_api::{
    CertificateAuthority, ResourceService, relay_tls,
    resources::{DeleteOptions, WriteOptions},
};
use hearth_client::device::relay_trust;
use hearth_region::RegionHandle;
use hearth_relay::{Begun, Gate, PassGate, Rates, RelayConfig, RelayServer};
use hearth_tunnel::{RelaySet, TunnelHub};
use hearth_types::{
    Clock, DeviceKey, GroupKind, ObjectKey, Reason,
    kinds::API_VERSION,
    relay::{BadPass, Holder, PASS_RENEWAL, Pass, RelayAccess, host_at, server_name},
    tunnel::DialNotifier,
};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::server::{address, advertised};
use crate::args::{GATEWAY, Server};

/// The pause before the region is told again of this server's relay.
const PAUSE: Duration = Duration::from_secs(1);

/// Lets in whom the region gave a pass, and still knows.
struct RegionGate {
    passes: PassGate,
    devices: Arc<dyn DialNotifier>,
}

impl std::fmt::Debug for RegionGate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegionGate").field("passes", &self.passes).finish_non_exhaustive()
    }
}

impl Gate for RegionGate {
    fn admit(&self, key: &DeviceKey, pass: &str) -> Result<Pass, BadPass> {
        let pass = self.passes.admit(key, pass)?;
        // A key that was removed from its device is out at once, where that is known.
        if matches!(pass.holder, Holder::Device { .. }) && self.devices.device_of_key(key).is_none() {
            return Err(BadPass::OtherKey);
        }
        Ok(pass)
    }
}

/// The relay of this server, where it was asked for.
pub(super) struct OwnRelay {
    server: RelayServer,
    address: SocketAddr,
    url: String,
}

impl OwnRelay {
    /// Listens.
    pub(super) async fn bind(
        args: &Server,
        ca: &Arc<CertificateAuthority>,
        clock: &Arc<dyn Clock>,
        devices: Arc<dyn DialNotifier>,
        registry: &prometheus::Registry,
        (gateway, begun): (SocketAddr, Option<mpsc::Receiver<Begun>>),
    ) -> Result<Option<Self>> {
        let Some(text) = &args.listen.listen_relay else { return Ok(None) };
        let shares = text == GATEWAY;
        let listen = if shares { gateway } else { address("--listen-relay", text)? };
        let passes = PassGate::new(ca.signing_key().public(), Arc::clone(clock));
        let config = RelayConfig {
            listen: (!shares).then_some(listen),
            listen_discovery: listen,
            tls: relay_tls(ca, Arc::clone(clock))?,
            gate: Arc::new(RegionGate { passes, devices }),
            rates: Rates::default(),
        };
        let mut server =
            RelayServer::bind(config, registry).await.context("cannot start the relay (--listen-relay)")?;
        if let Some(begun) = begun {
            server = server.with_begun(begun);
        }
        let address = server.address().unwrap_or(gateway);
        let own = *advertised(address, &args.listen.advertise)?.first().context("the relay's own address")?;
        let url = if shares {
            // A client says a name in its hello, and no address.
            format!("https://{}:{}", host_at(own.ip(), ca.zone()), own.port())
        } else {
            format!("https://{own}")
        };
        Ok(Some(Self { server, address, url }))
    }

    /// Where it listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// What the region is to be told of it.
    pub(super) fn spec(&self) -> serde_json::Value {
        json!({"url": self.url, "discoveryPort": self.server.discovery_address().port()})
    }

    /// Relays until `shutdown`.
    pub(super) async fn run(self, shutdown: CancellationToken) -> Result<()> {
        Ok(self.server.run(shutdown).await?)
    }
}

/// Tells the region of this server's relay, or that it has none any more. Tried until there is a leader that takes it; done then.
pub(super) async fn announce(resources: &ResourceService, name: &str, spec: Option<serde_json::Value>) {
    loop {
        let told = if let Some(spec) = &spec {
            let object = json!({"apiVersion": API_VERSION, "kind": "Relay", "metadata": {"name": name}, "spec": spec});
            resources.apply(object, &WriteOptions::default()).await.map(drop)
        } else {
            let key = ObjectKey::new(GroupKind::RELAY, "", name);
            match resources.delete(&key, &DeleteOptions::default()).await {
                Err(status) if status.reason != Reason::NotFound => Err(status),
                _ => Ok(()),
            }
        };
        match told {
            Ok(()) => return,
            Err(status) => tracing::warn!(%status, "cannot tell the region of this server's relay yet"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Keeps the gateway's relays those of the region, with passes that this server, which has the CA's key, gives itself.
pub(super) async fn follow(
    hub: Arc<TunnelHub>,
    handle: RegionHandle,
    ca: Arc<CertificateAuthority>,
    clock: Arc<dyn Clock>,
    shutdown: CancellationToken,
) -> Result<()> {
    let mut relays = handle.relays();
    let trust = relay_trust(ca.pem().as_bytes(), false)?;
    let key = DeviceKey(hub.notice().gateway_key);
    loop {
        let now = relays.borrow_and_update().to_vec();
        let pass = Pass::of_gateway(key, clock.now()).sign(ca.signing_key());
        let access = RelayAccess { relays: now, pass };
        hub.set_relays(RelaySet { access, trust: Arc::clone(&trust), server_name: server_name(ca.zone()) }).await;
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            // The sender lives as long as the region.
            Ok(()) = relays.changed() => {}
            () = tokio::time::sleep(PASS_RENEWAL) => {}
        }
    }
}
