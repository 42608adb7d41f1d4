//! Device: a machine of an owner.

use kube_derive::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Bandwidth, NodeAddress, Quantity};
use crate::{condition::Condition, names, relay::MAX_RELAYS};

/// A machine of an owner. It proves itself by one of its keys; removing a key revokes it. Tools see it
/// as the Node of the same name.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(group = "hearth.dev", version = "v1alpha1", kind = "Device", plural = "devices", status = "DeviceStatus")]
#[kube(crates(
    kube_core = "::kube_core",
    k8s_openapi = "::k8s_openapi",
    schemars = "::schemars",
    serde = "::serde",
    serde_json = "::serde_json"
))]
#[serde(rename_all = "camelCase")]
pub struct DeviceSpec {
    /// Whose it is: the name of the owner's namespace.
    pub owner: String,
    /// Its Ed25519 public keys, each 64 hex digits.
    #[serde(default)]
    pub keys: Vec<String>,
    /// What it lends to other owners; nothing unless set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lend: Option<Lend>,
    /// What all apps on it send and receive together, so that they do not fill the home's line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
    /// Which of its addresses the region may tell; none unless set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub publish: Option<Publish>,
}

/// Which addresses of a device the region may tell.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Publish {
    /// Those inside the home, of private use (RFC 1918, RFC 4193), at `<install>.lan.<owner>.<zone>` and nowhere else; anybody can ask for them there.
    /// The device then serves its owner's apps at these addresses too, so that whoever is at home needs no gateway.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lan: bool,
    /// Those by which the internet reaches it: its own at which it listens on port 443, most often of IPv6, and the one that the region sees it come
    /// from, where that is a router that passes port 443 of TCP on to the device. The names of its owner's apps on it then lead straight there
    /// instead of to a gateway, so that everybody can learn where the home is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub external: bool,
    /// Those by which the internet reaches it that neither it nor the region finds out: a router's that has another one for what comes in. They are told
    /// like those of `external`, which needs not be set for them, and only of the internet, no private ones.
    #[serde(default, rename = "externalIPs", skip_serializing_if = "Vec::is_empty")]
    pub external_ips: Vec<String>,
}

/// What a device lends to other owners' apps, all of them together.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Lend {
    /// Processor time, as `500m`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Quantity>,
    /// Memory, as `512Mi`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Quantity>,
    /// How many pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods: Option<u32>,
    /// When it lends; always unless something is said. Outside of these hours it gets no apps of others, and those that it has are stopped; what
    /// they keep stays.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hours: Vec<LendWindow>,
    /// Where the clock is that `hours` are of: an IANA name, as `Europe/Berlin`. Required with them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_zone: Option<String>,
    /// What they send and receive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
}

/// Some hours of some days.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LendWindow {
    /// The days that they begin on: `Mon`, `Tue`, `Wed`, `Thu`, `Fri`, `Sat`, `Sun`; every day unless said.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub days: Vec<String>,
    /// When they begin: `22:00`.
    pub from: String,
    /// When they end: `07:00`, of the next day where that is not after `from`; `24:00` is midnight.
    pub to: String,
}

/// What is seen of a Device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeviceStatus {
    /// What the machine is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub info: Option<DeviceInfo>,
    /// `Connected`: True while it has a session, Unknown when it is silent. `MemoryPressure` and `DiskPressure`: True while it runs short.
    /// `Lending`, where it lends in some hours: whether it does now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// How it is reached, as it was told last: nothing before somebody reached into it for some seconds, and what it was since then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<DeviceNetwork>,
    /// Its addresses at which it serves its owner's apps, where `spec.publish` says so: `InternalIP` inside the home, `ExternalIP` of the internet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<NodeAddress>,
}

/// How a device is reached, and what its line is like. Written when it changed for good; the round trips are as they were then, and are told anew
/// where they become twice as long or half as long. `hearth trace` asks the device for those of now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeviceNetwork {
    /// Whether its tunnel to the region's gateway goes straight there, or by a relay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<TunnelKind>,
    /// The name of that relay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relay: Option<String>,
    /// The gateway's address, `ip:port`, where the tunnel goes straight there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// There and back through the tunnel, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round_trip_millis: Option<u32>,
    /// Whether UDP gets out of its network and back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub udp: Option<UdpPassage>,
    /// What the router does with the ports of UDP; nothing where fewer than two relays could tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mapping: Option<NatMapping>,
    /// The relays that answer, the nearest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub relays: Vec<RelayDistance>,
    /// When the path, UDP or the mapping last changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_transition_time: Option<String>,
}

/// By what a tunnel goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TunnelKind {
    /// Without anybody in between who knows of it.
    Direct,
    /// By a relay.
    Relay,
}

/// Whether UDP gets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum UdpPassage {
    /// It does.
    Open,
    /// It does not: every tunnel goes by a relay.
    Blocked,
}

/// How a router maps ports of UDP (RFC 4787 section 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum NatMapping {
    /// There is no router that maps: the device has an address of the internet.
    None,
    /// One port for all destinations: direct paths are found.
    EndpointIndependent,
    /// Another port for each destination: no direct path is found to somebody behind another router.
    AddressDependent,
}

/// How far a relay is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RelayDistance {
    /// The relay's name.
    pub name: String,
    /// There and back, in milliseconds.
    pub round_trip_millis: u32,
}

impl DeviceNetwork {
    /// Reads what a device says of itself, which may be anything; `None` of what makes no sense or has no bound.
    pub fn read(value: &serde_json::Value) -> Option<Self> {
        let mut read: Self = serde_json::from_value(value.clone()).ok()?;
        let is_name = |name: &str| names::dns_subdomain(name).is_ok();
        let named = read.relay.iter().all(|name| is_name(name)) && read.relays.iter().all(|relay| is_name(&relay.name));
        let addressed = read.address.iter().all(|text| text.parse::<std::net::SocketAddr>().is_ok());
        // When that was is the region's to say.
        read.last_transition_time = None;
        (named && addressed && read.relays.len() <= MAX_RELAYS).then_some(read)
    }

    /// Whether both say the same but for how long it takes and when.
    pub fn is_like(&self, other: &Self) -> bool {
        let said = |one: &Self| (one.path, one.relay.clone(), one.udp, one.mapping);
        said(self) == said(other)
    }

    /// `by relay fra-2, 38 ms`, `direct, 12 ms`; empty where nothing is known.
    pub fn path_text(&self) -> String {
        let way = match (self.path, &self.relay) {
            (Some(TunnelKind::Relay), Some(name)) => format!("relay {name}"),
            (Some(TunnelKind::Relay), None) => "relay".to_owned(),
            (Some(TunnelKind::Direct), _) => "direct".to_owned(),
            (None, _) => return String::new(),
        };
        match self.round_trip_millis {
            Some(millis) => format!("{way}, {millis} ms"),
            None => way,
        }
    }
}

/// What a machine is, as its agent reports it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeviceInfo {
    /// The architecture as Go names it: `amd64`, `arm64`.
    pub architecture: String,
    /// The kernel's release.
    pub kernel_version: String,
    /// The distribution.
    pub os_image: String,
    /// The agent's version.
    pub agent_version: String,
    /// Cores in thousandths.
    pub cpu_millis: u64,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// The most pods it takes.
    pub pods: u32,
    /// The size of the file system that pods write to, in bytes; an older agent does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_bytes: Option<u64>,
    /// What of it pods may count on, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_allocatable_bytes: Option<u64>,
    /// What the machine lacks that isolation or limits want, in words; empty on a fit machine.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
    /// What its agent can do that older ones cannot: `volume-leases`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<String>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_device_says_of_its_network_is_read_or_dropped_whole() {
        let good = json!({"path": "Relay", "relay": "fra-2", "udp": "Blocked", "roundTripMillis": 38,
            "relays": [{"name": "fra-2", "roundTripMillis": 38}], "lastTransitionTime": "1970-01-01T00:00:00Z"});
        let read = DeviceNetwork::read(&good).expect("read");
        assert_eq!((read.path_text().as_str(), read.last_transition_time), ("relay fra-2, 38 ms", None));
        for (field, bad) in [
            ("path", json!("Tunnel")),
            ("relay", json!("a b")),
            ("relays", json!([{"name": "x\n", "roundTripMillis": 1}])),
            ("relays", json!(vec![json!({"name": "a", "roundTripMillis": 1}); MAX_RELAYS + 1])),
            ("address", json!("somewhere")),
            ("roundTripMillis", json!(-1)),
            ("more", json!(1)),
        ] {
            let mut value = good.clone();
            value[field] = bad;
            assert_eq!(DeviceNetwork::read(&value), None, "{field}");
        }
        assert_eq!(DeviceNetwork::read(&json!("x")), None);
    }
}
