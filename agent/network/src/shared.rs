//! What pods may send and receive together: all of them, and those of guests. Part of the host's firewall, so that whatever keeps that keeps this.
//!
//! # Guarantees
//! Everything counts that comes from a pod or goes to one, whether it is forwarded or the host's own. What is too much is dropped (the links of
//! pods have no place in common where it could wait), and programs send less when they miss it.
//!
//! # Caveats
//! The kernel lets what comes within one second pass at once (`nft_limit`), and a packet of 64 KiB at any rate. IPv4 and IPv6 together.

use std::fmt::Write as _;

use crate::Bandwidth;
use crate::names::{GROUP_GUEST_INTERNET, GROUP_GUEST_ISOLATED};

/// What passes beside that of a second: two of the largest packets, which hosts hand on whole (`GSO_MAX_SIZE`).
const BURST: u64 = 128 << 10;
/// Above so many bits a second nothing is limited: more than the links of homes have, and the most that `nft_limit` counts with.
const MAX_BITS: u64 = 100_000_000_000;

/// What pods may send and receive together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SharedBandwidth {
    /// All pods.
    pub all: Bandwidth,
    /// Those of guests; they count among all, too.
    pub guests: Bandwidth,
}

impl SharedBandwidth {
    /// Whether something is limited.
    pub(crate) fn is_limited(self) -> bool {
        self != Self::default()
    }

    /// The chains, for links that match `pods`.
    pub(crate) fn chains(self, s: &mut String, pods: &str) {
        if !self.is_limited() {
            return;
        }
        let guests = format!("{{ {GROUP_GUEST_ISOLATED}, {GROUP_GUEST_INTERNET} }}");
        // After the check of sources: what somebody forged is not this pod's.
        s.push_str("  chain shared_egress {\n    type filter hook prerouting priority raw + 10; policy accept;\n");
        rule(s, &format!("iifname {pods} meta iifgroup {guests}"), self.guests.egress);
        rule(s, &format!("iifname {pods}"), self.all.egress);
        s.push_str("  }\n  chain shared_ingress {\n    type filter hook postrouting priority filter; policy accept;\n");
        rule(s, &format!("oifname {pods} meta oifgroup {guests}"), self.guests.ingress);
        rule(s, &format!("oifname {pods}"), self.all.ingress);
        s.push_str("  }\n");
    }
}

/// One rule is one bucket, whatever matches it.
fn rule(s: &mut String, matches: &str, bits: Option<u64>) {
    if let Some(bits) = bits.filter(|bits| *bits <= MAX_BITS) {
        let rate = (bits / 8).max(1);
        let _ = writeln!(s, "    {matches} limit rate over {rate} bytes/second burst {BURST} bytes drop");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_is_one_rule_and_none_is_no_chain() {
        let text = |shared: SharedBandwidth| {
            let mut s = String::new();
            shared.chains(&mut s, "\"p*\"");
            s
        };
        assert_eq!(text(SharedBandwidth::default()), "");
        let egress = Bandwidth { ingress: None, egress: Some(8_000_000) };
        let guests = text(SharedBandwidth { guests: egress, ..SharedBandwidth::default() });
        assert_eq!(guests.matches("limit rate").count(), 1);
        assert!(
            guests.contains("iifgroup { 1215430658, 1215430659 } limit rate over 1000000 bytes/second"),
            "{guests}"
        );
        let both =
            text(SharedBandwidth { all: Bandwidth { ingress: Some(1000), egress: Some(u64::MAX) }, guests: egress });
        assert_eq!(both.matches("limit rate").count(), 2, "what no link has is not counted");
        assert!(both.contains("oifname \"p*\" limit rate over 125 bytes/second"), "{both}");
    }
}
