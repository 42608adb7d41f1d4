//! Route: a hostname and what answers there.

use kube_derive::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::IntOrString;
use crate::condition::Condition;

/// A hostname and what answers there. Gateway, DNS and the device's ingress work from Routes.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "hearth.dev",
    version = "v1alpha1",
    kind = "Route",
    plural = "routes",
    namespaced,
    status = "RouteStatus"
)]
#[kube(crates(
    kube_core = "::kube_core",
    k8s_openapi = "::k8s_openapi",
    schemars = "::schemars",
    serde = "::serde",
    serde_json = "::serde_json"
))]
#[serde(rename_all = "camelCase")]
pub struct RouteSpec {
    /// The hostname, in lower case and without a dot at the end: under `<namespace>.<zone>`.
    pub hostname: String,
    /// Which pods answer.
    pub target: RouteTarget,
    /// How they are spoken to; absent means `HTTPS`. The words are those of Gateway API's `ProtocolType`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<RouteProtocol>,
    /// The public port at the region's gateways, 1 to 65535: with `TCP`, where it tells Routes apart, and with nothing else. The oldest
    /// Route that names a port has it; the condition `Accepted` says who does not and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Whether the app was stopped by its owner: the page for it says so.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stopped: bool,
}

/// How a Route's pods are spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum RouteProtocol {
    /// HTTP behind TLS that ends on the device; Routes share the gateway's port and are told apart by their hostname.
    Https,
    /// Bytes, as they come, on a port of the Route's own. Gateways carry what they are given: it is as readable on the way as the
    /// app and its clients leave it.
    Tcp,
}

/// Which pods answer, at which port.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RouteTarget {
    /// Labels that the pods have, all of them.
    pub selector: std::collections::BTreeMap<String, String>,
    /// A container port, by its name or number.
    pub port: IntOrString,
}

/// What is seen of a Route.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RouteStatus {
    /// The pods behind it, ready ones first, then by name. Pods that are bound and not ready are in it
    /// too, so that their device can say what is going on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<RouteEndpoint>,
    /// `Ready`, and with a port of its own `Accepted` (as of a Listener in Gateway API).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// One pod behind a Route.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RouteEndpoint {
    /// The device it runs on. A route keeps its last device when it has no pod.
    pub device: String,
    /// The pod's name; empty where the route has no pod now.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub pod: String,
    /// Whether the pod is ready.
    #[serde(default)]
    pub ready: bool,
}
