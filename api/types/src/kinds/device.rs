//! Device: a machine of an owner.

use kube_derive::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Bandwidth, Quantity};
use crate::condition::Condition;

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
