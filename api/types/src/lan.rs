//! Names that lead to a device inside the home: `<install>.lan.<owner>.<zone>` has the addresses, on the home's network, of the device that
//! answers at `<install>.<owner>.<zone>`. Pure.

use std::net::IpAddr;

/// The label below an owner's under which addresses inside the home are told.
pub const LABEL: &str = "lan";

/// Addresses of one device that are told at most: wire, radio and a second network, of both families.
pub const MAX_ADDRESSES: usize = 8;

/// Whether an address is one of those that homes number their networks with (RFC 1918, RFC 4193). No other may be told: what the internet
/// reaches is no address inside a home, and what is only this machine's, or only this link's, leads nobody there.
pub fn is_private_use(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_private(),
        IpAddr::V6(ip) => ip.is_unique_local(),
    }
}

/// The name inside the home that goes with a hostname of an owner; `None` where the hostname is not `<label>.<owner>.<zone>`.
pub fn name_of(hostname: &str, owner: &str) -> Option<String> {
    let (label, rest) = hostname.split_once('.')?;
    let zone = rest.strip_prefix(owner)?.strip_prefix('.')?;
    (!label.is_empty() && !zone.is_empty()).then(|| format!("{label}.{LABEL}.{owner}.{zone}"))
}

/// The hostname that a name inside the home goes with; `None` where it is no such name.
pub fn hostname_of(name: &str) -> Option<String> {
    let (label, rest) = name.split_once('.')?;
    let rest = rest.strip_prefix(LABEL)?.strip_prefix('.')?;
    (!label.is_empty() && !rest.is_empty()).then(|| format!("{label}.{rest}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_homes_are_told_and_no_others() {
        let is = |text: &str| is_private_use(text.parse().expect("an address"));
        for told in ["10.0.0.1", "172.16.0.1", "172.31.255.254", "192.168.1.20", "fd00::1", "fdff:1::2"] {
            assert!(is(told), "{told}");
        }
        for kept in [
            "127.0.0.1",
            "0.0.0.0",
            "169.254.1.1",
            "100.64.0.1",
            "172.32.0.1",
            "192.0.2.1",
            "8.8.8.8",
            "224.0.0.1",
            "::",
            "::1",
            "fe80::1",
            "2001:db8::1",
            "ff02::1",
            "::ffff:192.168.1.1",
        ] {
            assert!(!is(kept), "{kept}");
        }
    }

    #[test]
    fn names_go_there_and_back() {
        let name = name_of("photos.alice.home.example", "alice").expect("a name");
        assert_eq!(name, "photos.lan.alice.home.example");
        assert_eq!(hostname_of(&name).as_deref(), Some("photos.alice.home.example"));
        for (hostname, owner) in [
            ("a.b.alice.zone", "alice"),
            ("photos.alicex.zone", "alice"),
            ("alice.zone", "alice"),
            (".alice.zone", "alice"),
            ("photos.alice", "alice"),
            ("photos.alice.", "alice"),
        ] {
            assert_eq!(name_of(hostname, owner), None, "{hostname}");
        }
        for name in ["photos.alice.zone", "lan.alice.zone", "photos.lanx.alice.zone", ".lan.zone", "photos.lan."] {
            assert_eq!(hostname_of(name), None, "{name}");
        }
    }
}
