//! How much may be sent and received.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Quantity;
use crate::quantity::{self, BadQuantity};

/// The pod annotations by which the bandwidth plugin of Kubernetes' network plugins is told, and Hearth: what a pod receives, and what it sends.
/// On a Deployment or ReplicaSet they go over those of its template, and changing them restarts no pod.
pub const BANDWIDTH_ANNOTATIONS: [&str; 2] = ["kubernetes.io/ingress-bandwidth", "kubernetes.io/egress-bandwidth"];

/// The least and the most bits in a second that Kubernetes takes for meant: 1k and 1P.
const REASONABLE: std::ops::RangeInclusive<u64> = 1000..=1_000_000_000_000_000;

/// Bits in a second, each way; no limit where nothing is said.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Bandwidth {
    /// What may be received in a second, in bits: `20M`. At least 1k, at most 1P.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Quantity>,
    /// What may be sent in a second, in bits: `5M`. At least 1k, at most 1P.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<Quantity>,
}

/// Why a text is no bandwidth, in Kubernetes' words (`validateBandwidthIsReasonable`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadBandwidth {
    /// It is no quantity.
    #[error("{0}; bits in a second, such as 20M")]
    Quantity(#[from] BadQuantity),
    /// It is below 1k.
    #[error("resource is unreasonably small (< 1kbit)")]
    Small,
    /// It is above 1P.
    #[error("resource is unreasonably large (> 1Pbit)")]
    Large,
}

/// Bits in a second.
pub fn bits(text: &str) -> Result<u64, BadBandwidth> {
    let bits = match quantity::bytes(text) {
        // What is below zero is a quantity, and small.
        Err(_) if quantity::millis(text).is_ok_and(|millis| millis < 0) => 0,
        read => read?,
    };
    match (bits < *REASONABLE.start(), bits > *REASONABLE.end()) {
        (true, _) => Err(BadBandwidth::Small),
        (_, true) => Err(BadBandwidth::Large),
        _ => Ok(bits),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bandwidths_are_read_and_bounded_as_in_kubernetes() {
        for (text, expected) in [("1k", 1000), ("10M", 10_000_000), ("1Mi", 1 << 20), ("1P", 1_000_000_000_000_000)] {
            assert_eq!(bits(text), Ok(expected), "{text}");
        }
        for text in ["999", "0", "-1M", "1m"] {
            assert_eq!(bits(text), Err(BadBandwidth::Small), "{text}");
        }
        assert_eq!(bits("2P"), Err(BadBandwidth::Large));
        for text in ["", "10Mbit", "fast", "10 M"] {
            assert_eq!(bits(text), Err(BadBandwidth::Quantity(BadQuantity)), "{text}");
        }
    }
}
