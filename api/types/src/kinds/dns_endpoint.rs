//! DNSEndpoint: records that an owner sets at names of their own, in the shape of external-dns' CustomResourceDefinition.

use kube_derive::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Records at names of an owner (`externaldns.k8s.io/v1alpha1`, as external-dns' source `crd` has it). The zone's name server answers with them.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "externaldns.k8s.io",
    version = "v1alpha1",
    kind = "DNSEndpoint",
    plural = "dnsendpoints",
    namespaced,
    status = "DNSEndpointStatus"
)]
#[kube(crates(
    kube_core = "::kube_core",
    k8s_openapi = "::k8s_openapi",
    schemars = "::schemars",
    serde = "::serde",
    serde_json = "::serde_json"
))]
#[serde(rename_all = "camelCase")]
pub struct DNSEndpointSpec {
    /// The records.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<Endpoint>,
}

/// The records of one type at one name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// The name: `<namespace>.<zone>` or below it, in lower case, without a dot at the end; its first label may be `*`.
    pub dns_name: String,
    /// `A`, `AAAA`, `CNAME`, `TXT`, `SRV`, `CAA` or `HTTPS`.
    pub record_type: String,
    /// What each record holds, as in a zone file.
    pub targets: Vec<String>,
    /// Seconds for which others may keep them, 1 to 3600. Absent or 0: as long as the zone's other records.
    #[serde(default, rename = "recordTTL", skip_serializing_if = "Option::is_none")]
    pub record_ttl: Option<i64>,
}

/// What is seen of a DNSEndpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DNSEndpointStatus {
    /// The generation that was looked at last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}
