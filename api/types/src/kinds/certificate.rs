//! Certificate: a certificate of a public authority for names of an owner, whose key is on one device.

use kube_derive::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::condition::Condition;

/// A certificate of the authority that the region orders from (`hearth region acme`). The device makes the key, keeps it, and sends a
/// request (PKCS #10) for these names through its session; the region orders by ACME and proves the names by its own DNS.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "hearth.dev",
    version = "v1alpha1",
    kind = "Certificate",
    plural = "certificates",
    namespaced,
    status = "CertificateStatus"
)]
#[kube(crates(
    kube_core = "::kube_core",
    k8s_openapi = "::k8s_openapi",
    schemars = "::schemars",
    serde = "::serde",
    serde_json = "::serde_json"
))]
#[serde(rename_all = "camelCase")]
pub struct CertificateSpec {
    /// The device that has the key.
    pub device: String,
    /// The names: `<namespace>.<zone>` or below it, the first label may be `*`; or domains outside of the zone whose proofs are led here
    /// (`status.domain` of their Route). In lower case, without a dot at the end.
    pub dns_names: Vec<String>,
}

/// What is seen of a Certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CertificateStatus {
    /// What the device asks for, until it has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<CertificateSigning>,
    /// The order under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<CertificateOrder>,
    /// The directory of the authority that the certificate is of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// The certificate and those above it, PEM, leaf first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
    /// When it begins to be valid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<String>,
    /// When it ends to be valid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<String>,
    /// When the device is to ask for the next one: as the authority suggests (RFC 9773), else after two thirds of its life.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renewal_time: Option<String>,
    /// Tries that failed since the last success.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failures: Option<u32>,
    /// No try before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_try: Option<String>,
    /// What was issued, the newest first, as long as it is valid or counts for a limit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub issued: Vec<IssuedCertificate>,
    /// `Ready`: whether there is a valid certificate. `Issuing`: whether one is being ordered, and what stands in the way.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// A request of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CertificateSigning {
    /// PKCS #10 (RFC 2986), DER in base64.
    pub csr: String,
    /// When it came.
    pub time: String,
}

/// An order at the authority (RFC 8555 section 7.1.3).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CertificateOrder {
    /// Where it is.
    pub url: String,
    /// What the region's DNS answers with, so that the authority sees whose the names are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub challenges: Vec<CertificateChallenge>,
}

/// A proof by DNS (RFC 8555 section 8.4).
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CertificateChallenge {
    /// The name to be proved, without `*.`.
    pub dns_name: String,
    /// The text of the TXT record.
    pub value: String,
}

/// A certificate that was issued.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IssuedCertificate {
    /// When.
    pub time: String,
    /// When it ends to be valid.
    pub not_after: String,
    /// Its serial number, hex.
    pub serial: String,
    /// SHA-256 of its SubjectPublicKeyInfo, hex: of the key that the device made.
    pub spki: String,
    /// Whether it took the place of one for the same names.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub renewal: bool,
}
