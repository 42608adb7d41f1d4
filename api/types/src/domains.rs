//! Domains of owners: hostnames outside of the zone, which are routed once their ownership is shown. Pure.
//!
//! Whoever can set records at a domain says which owner of which region may serve it, by a TXT record below it (as ACME's `dns-01` and RFC 8555
//! section 8.4 have it). What the record has to hold depends on region, owner and domain, so that it authorises nobody else; it is no secret.

use std::net::IpAddr;

use ring::digest;

use crate::BoxFuture;

/// The label below a domain under which the record is.
pub const CHALLENGE_LABEL: &str = "_hearth-challenge";

/// What the record begins with, among others of its name.
const PREFIX: &str = "hearth-domain=";

/// Bytes of the digest in the record: nobody finds another owner's by trying.
const TOKEN_BYTES: usize = 20;

/// Whether a hostname is none of the zone's.
pub fn is_custom(hostname: &str, zone: &str) -> bool {
    let below = hostname.strip_suffix(zone).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    !zone.is_empty() && !below
}

/// The name of the record.
pub fn challenge_name(hostname: &str) -> String {
    format!("{CHALLENGE_LABEL}.{hostname}")
}

/// What the record has to hold. `namespace_uid` tells an owner from another one who later has the same name.
pub fn challenge_value(zone: &str, namespace: &str, namespace_uid: &str, hostname: &str) -> String {
    let mut said = Vec::new();
    for part in ["hearth domain 1", zone, namespace, namespace_uid, hostname] {
        said.extend(part.as_bytes());
        said.push(0);
    }
    let digest = digest::digest(&digest::SHA256, &said);
    let digits = |byte: &u8| [byte >> 4, byte & 15].map(|digit| char::from_digit(digit.into(), 16).unwrap_or('0'));
    let hex: String = digest.as_ref().iter().take(TOKEN_BYTES).flat_map(digits).collect();
    format!("{PREFIX}{hex}")
}

/// Whether a text at the record's name is of this kind at all.
pub fn is_challenge(text: &str) -> bool {
    text.starts_with(PREFIX)
}

/// What DNS says of a domain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The texts at [`challenge_name`].
    pub texts: Vec<String>,
    /// The addresses of the domain itself, whatever CNAMEs lead there.
    pub addresses: Vec<IpAddr>,
}

/// Asks DNS for domains.
pub trait DomainLookup: Send + Sync + 'static {
    /// What there is now. What does not exist is nothing; an error says that nobody knows. Bounded in time.
    fn look<'a>(&'a self, hostname: &'a str) -> BoxFuture<'a, Result<Found, String>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_zone_are_told_from_others() {
        for (hostname, custom) in [
            ("shop.example.com", true),
            ("a.alice.home.example", false),
            ("home.example", false),
            ("myhome.example", true),
            ("example", true),
        ] {
            assert_eq!(is_custom(hostname, "home.example"), custom, "{hostname}");
        }
        assert!(!is_custom("a.b", ""));
    }

    #[test]
    fn a_token_is_of_one_region_owner_and_domain() {
        let token = challenge_value("zone", "alice", "u", "shop.example");
        assert!(is_challenge(&token) && token.len() == PREFIX.len() + 2 * TOKEN_BYTES);
        assert_eq!(token, challenge_value("zone", "alice", "u", "shop.example"));
        let others = [
            ("other", "alice", "u", "shop.example"),
            ("zone", "bob", "u", "shop.example"),
            ("zone", "alice", "v", "shop.example"),
            ("zone", "alice", "u", "shop2.example"),
            ("zone", "alic", "eu", "shop.example"),
        ];
        for (zone, owner, uid, hostname) in others {
            assert_ne!(token, challenge_value(zone, owner, uid, hostname));
        }
    }
}
