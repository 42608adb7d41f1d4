//! Relay: where devices and gateways meet that have no direct path to each other.

use kube_derive::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A relay of the region. It carries ciphertext between devices and gateways whose networks let no direct path
/// through, and tells them how the internet sees their addresses. Whoever runs it writes this object; devices and
/// gateways are told of it in their sessions, and delete it to have it used no more.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(group = "hearth.dev", version = "v1alpha1", kind = "Relay", plural = "relays")]
#[kube(crates(
    kube_core = "::kube_core",
    k8s_openapi = "::k8s_openapi",
    schemars = "::schemars",
    serde = "::serde",
    serde_json = "::serde_json"
))]
#[serde(rename_all = "camelCase")]
pub struct RelaySpec {
    /// Where it answers, `https://host:port`, over TCP.
    pub url: String,
    /// The UDP port at the same host by which it tells callers their address (QUIC address discovery). Without one,
    /// paths through NATs on both ends are not found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discovery_port: Option<u16>,
    /// The Ed25519 key of a relay that runs by itself, 64 hex digits: by it the relay proves that this object is its own, keeps what the object says of
    /// where it is, and gets its certificates. Those that run in servers have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}
