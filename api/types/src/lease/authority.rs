//! The record in the region's store that says which server may grant leases.

use std::time::Duration;

use serde_json::{Value, json};

use super::MAX_LEASE;
use crate::{GroupKind, ObjectKey};

const NAMESPACE: &str = "kube-system";
const NAME: &str = "region-volume-leases";

/// Who may grant leases, and of which length: a ConfigMap that each server which leads writes anew before it grants any, with a `nonce` of
/// its own, so that whoever reads an older one knows that its authority is over. It is written once for each time of leading, and in regions
/// with volumes that move alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    /// Made up by the server, and never used again.
    pub nonce: String,
    /// For people: the server's number.
    pub server: u64,
    /// For people: the term for which it leads.
    pub term: u64,
    /// The longest lease that it grants.
    pub lease: Duration,
}

impl Authority {
    /// Where it is.
    pub fn key() -> ObjectKey {
        ObjectKey::new(GroupKind::CONFIG_MAP, NAMESPACE, NAME)
    }

    /// Reads it. What is odd counts as the longest lease, granted by somebody unknown.
    pub fn read(object: &Value) -> Self {
        let text = |field: &str| object.pointer(&format!("/data/{field}")).and_then(Value::as_str).unwrap_or_default();
        let millis = text("leaseMillis").parse().map(Duration::from_millis);
        Self {
            nonce: text("nonce").to_owned(),
            server: text("server").parse().unwrap_or_default(),
            term: text("term").parse().unwrap_or_default(),
            lease: millis.unwrap_or(MAX_LEASE).min(MAX_LEASE),
        }
    }

    /// The object: `base`, where there is one, with this in it.
    pub fn write(&self, base: Option<Value>) -> Value {
        let mut object = base.unwrap_or_else(
            || json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": NAME, "namespace": NAMESPACE}}),
        );
        object["data"] = json!({
            "nonce": self.nonce,
            "server": self.server.to_string(),
            "term": self.term.to_string(),
            "leaseMillis": self.lease.as_millis().to_string(),
        });
        object
    }
}
