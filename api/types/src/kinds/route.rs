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
    /// Whether the app was stopped by its owner: the page for it says so.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stopped: bool,
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
    /// `Ready`.
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
