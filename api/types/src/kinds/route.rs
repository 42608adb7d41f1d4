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
    /// The hostname, in lower case and without a dot at the end: under `<namespace>.<zone>`, or with HTTPS a domain of the owner's outside of the zone,
    /// which is routed once its ownership is shown (`status.domain`).
    pub hostname: String,
    /// Which pods answer.
    pub target: RouteTarget,
    /// How they are spoken to; absent means `HTTPS`. The words are those of Gateway API's `ProtocolType`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<RouteProtocol>,
    /// The public port at the region's gateways, 1 to 65535: with `TCP` and `UDP`, where it tells Routes apart, and with nothing else. The
    /// oldest Route that names a port of a protocol has it; the condition `Accepted` says who does not and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Whether the app is told who calls, in the PROXY protocol: with `TCP` and `UDP`, and with nothing else, since apps behind HTTPS are told in
    /// `X-Forwarded-For`. Absent: it is told nothing. An app that does not expect it takes it for its caller's bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy_protocol: Option<ProxyProtocol>,
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
    /// Datagrams, as they come, on a port of the Route's own. As with TCP they are as readable on the way as the app and its clients leave them.
    Udp,
}

/// A version of the PROXY protocol ("The PROXY protocol, versions 1 & 2", HAProxy).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ProxyProtocol {
    /// The binary form (section 2.2): before the first byte of a connection; with `UDP` before the bytes of every datagram of the
    /// caller's, as DNS servers and DNS proxies have it.
    #[serde(rename = "v2")]
    V2,
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
    /// `Ready`, with a port of its own `Accepted` (as of a Listener in Gateway API), and of a domain outside of the zone `DomainVerified`,
    /// `DomainPointsHere` and `CertificateReady`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// Of a domain outside of the zone: how its ownership is shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<RouteDomain>,
}

/// How the ownership of a domain is shown, and since when it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RouteDomain {
    /// The name of the TXT record that shows it.
    pub challenge_name: String,
    /// What it has to hold.
    pub challenge_value: String,
    /// The name of the CNAME by which a public authority is led to the region for proofs, so that it issues certificates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acme_name: Option<String>,
    /// Where it leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acme_target: Option<String>,
    /// Since when it is shown; absent while it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified_since: Option<String>,
    /// Since when the record is missing again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failing_since: Option<String>,
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
