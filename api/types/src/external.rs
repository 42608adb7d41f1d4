//! Devices that the internet reaches at an address of their own: with a public IPv6 address, or behind a router that forwards TCP 443. Where the
//! owner says so, names lead straight there. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::Value;

use crate::{DeviceKey, DeviceName};

/// Addresses of one device that are told at most: a router's, and the device's own of both families.
pub const MAX_ADDRESSES: usize = 8;

/// The type of an address of the internet, as a Node's.
pub const KIND: &str = "ExternalIP";

/// What a device says in place of an address where it means the one that the region sees its session come from: that of its home's router, which
/// it does not know and which may be another tomorrow.
pub const SEEN: &str = "seen";

/// The port of HTTPS. A and AAAA records name none, so that no other can be told.
pub const PORT: u16 = 443;

/// The protocol (ALPN, RFC 7301) by which a name server asks who is at an address: the answer is the device's own key, as a raw public key
/// (RFC 7250), and the connection ends with the handshake.
pub const ALPN: &[u8] = b"hearth-device/1";

/// What comes before the 32 bytes of an Ed25519 key in a SubjectPublicKeyInfo (RFC 8410 section 4): so devices show their key by [`ALPN`].
const ED25519_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 3, 0x21, 0];

/// Blocks of IPv4 that are no unicast addresses of the internet, or not of one machine there: the IANA special-purpose address registry, multicast
/// (RFC 5771), and those of anycast services that are in every network (AS112, AMT, 6to4 relays).
const SPECIAL_V4: [([u8; 4], u32); 18] = [
    ([0, 0, 0, 0], 8),       // "this network", RFC 791
    ([10, 0, 0, 0], 8),      // private use, RFC 1918
    ([100, 64, 0, 0], 10),   // shared by customers of a carrier, RFC 6598
    ([127, 0, 0, 0], 8),     // loopback, RFC 1122
    ([169, 254, 0, 0], 16),  // link-local, RFC 3927
    ([172, 16, 0, 0], 12),   // private use, RFC 1918
    ([192, 0, 0, 0], 24),    // protocol assignments, RFC 6890
    ([192, 0, 2, 0], 24),    // documentation, RFC 5737
    ([192, 31, 196, 0], 24), // AS112, RFC 7535
    ([192, 52, 193, 0], 24), // AMT, RFC 7450
    ([192, 88, 99, 0], 24),  // 6to4 relays, RFC 7526
    ([192, 168, 0, 0], 16),  // private use, RFC 1918
    ([192, 175, 48, 0], 24), // AS112, RFC 7534
    ([198, 18, 0, 0], 15),   // benchmarking, RFC 2544
    ([198, 51, 100, 0], 24), // documentation, RFC 5737
    ([203, 0, 113, 0], 24),  // documentation, RFC 5737
    ([224, 0, 0, 0], 4),     // multicast, RFC 5771
    ([240, 0, 0, 0], 4),     // reserved and broadcast, RFC 1112, RFC 919
];

/// What of IPv6 is global unicast (RFC 4291 section 2.4, by the IANA registry). Outside of it are also addresses that stand for one of IPv4:
/// mapped ones, and those of NAT64's well-known prefixes (RFC 6052, RFC 8215).
const GLOBAL_UNICAST_V6: ([u16; 8], u32) = ([0x2000, 0, 0, 0, 0, 0, 0, 0], 3);

/// Blocks of global unicast that are special: the IANA special-purpose address registry.
const SPECIAL_V6: [([u16; 8], u32); 5] = [
    ([0x2001, 0, 0, 0, 0, 0, 0, 0], 23), // protocol assignments, RFC 2928: Teredo, benchmarking, ORCHID, drones
    ([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32), // documentation, RFC 3849
    ([0x2002, 0, 0, 0, 0, 0, 0, 0], 16), // 6to4, RFC 3056
    ([0x2620, 0x4f, 0x8000, 0, 0, 0, 0, 0], 48), // AS112, RFC 7534
    ([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20), // documentation, RFC 9637
];

/// Whether an address is one by which the whole internet reaches one machine. No other may be told at a public name: it would lead nowhere, or
/// a stranger's browser into some home's network (DNS rebinding).
pub fn is_global(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !SPECIAL_V4.iter().any(|block| is_v4_in(ip, *block)),
        IpAddr::V6(ip) => is_v6_in(ip, GLOBAL_UNICAST_V6) && !SPECIAL_V6.iter().any(|block| is_v6_in(ip, *block)),
    }
}

fn is_v4_in(ip: Ipv4Addr, (base, bits): ([u8; 4], u32)) -> bool {
    (ip.to_bits() ^ Ipv4Addr::from(base).to_bits()) >> (u32::BITS - bits) == 0
}

fn is_v6_in(ip: Ipv6Addr, (base, bits): ([u16; 8], u32)) -> bool {
    (ip.to_bits() ^ Ipv6Addr::from(base).to_bits()) >> (u128::BITS - bits) == 0
}

/// The key that a SubjectPublicKeyInfo of an Ed25519 key holds (RFC 8410 section 4); `None` of anything else.
pub fn key_of_spki(der: &[u8]) -> Option<DeviceKey> {
    let key = der.strip_prefix(&ED25519_PREFIX)?;
    key.try_into().ok().map(DeviceKey)
}

/// The addresses of the internet at which a device says that it is, where its owner lets them be told.
pub fn told(device: &Value) -> impl Iterator<Item = IpAddr> {
    let is_told = device.pointer("/spec/publish/external") == Some(&Value::Bool(true));
    let all = list(device, "/status/addresses").filter(move |one| is_told && one["type"] == KIND);
    global(all.filter_map(|one| one["address"].as_str()))
}

fn list<'a>(device: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    device.pointer(pointer).and_then(Value::as_array).into_iter().flatten()
}

fn global<'a>(texts: impl Iterator<Item = &'a str>) -> impl Iterator<Item = IpAddr> {
    texts.filter_map(|text| text.parse().ok()).filter(|ip| is_global(*ip))
}

/// A device whose owner lets public addresses of it be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct External {
    /// The device.
    pub device: DeviceName,
    /// Whose it is.
    pub owner: String,
    /// The keys by which it proves itself.
    pub keys: Vec<DeviceKey>,
    /// Where it may be, of [global](is_global) addresses alone: those that its owner says, then those that it tells itself. They are told once
    /// it was found there.
    pub addresses: Vec<IpAddr>,
}

impl External {
    /// What a Device says, looked at once more; `None` where nothing of it may be told.
    pub fn of(device: &Value) -> Option<Self> {
        let text = |pointer: &str| device.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let said = global(list(device, "/spec/publish/externalIPs").filter_map(Value::as_str));
        let mut addresses: Vec<IpAddr> = Vec::new();
        for ip in said.chain(told(device)) {
            if addresses.len() < MAX_ADDRESSES && !addresses.contains(&ip) {
                addresses.push(ip);
            }
        }
        let keys: Vec<DeviceKey> = list(device, "/spec/keys").filter_map(|key| key.as_str()?.parse().ok()).collect();
        let (name, owner) = (text("/metadata/name"), text("/spec/owner"));
        let is_known = !addresses.is_empty() && !keys.is_empty() && !owner.is_empty();
        is_known.then(|| Self { device: DeviceName::from(name), owner: owner.to_owned(), keys, addresses })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn addresses_of_the_internet_are_told_and_no_others() {
        let is = |text: &str| is_global(text.parse().expect("an address"));
        for told in [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.0",
            "192.88.98.255",
            "198.17.255.255",
            "198.20.0.0",
            "203.0.112.255",
            "203.0.114.0",
            "223.255.255.255",
            "2001:200::1",
            "2001:db7:ffff::1",
            "2001:db9::1",
            "2003:e2::1",
            "2606:4700::1111",
            "2a00:1450:4001::8",
            "3ffe:ffff::1",
        ] {
            assert!(is(told), "{told}");
        }
        for kept in [
            "0.0.0.0",
            "0.1.2.3",
            "10.1.2.3",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.9",
            "192.0.0.170",
            "192.0.2.1",
            "192.31.196.1",
            "192.52.193.1",
            "192.88.99.1",
            "192.168.1.1",
            "192.175.48.6",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::8.8.8.8",
            "::ffff:8.8.8.8",
            "64:ff9b::8.8.8.8",
            "64:ff9b:1::8.8.8.8",
            "100::1",
            "2001::1",
            "2001:2::1",
            "2001:20::1",
            "2001:1ff:ffff::1",
            "2001:db8::1",
            "2002:808:808::1",
            "2620:4f:8000::1",
            "3fff::1",
            "3fff:fff::1",
            "4000::1",
            "5f00::1",
            "fc00::1",
            "fd00::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!is(kept), "{kept}");
        }
    }

    proptest! {
        #[test]
        fn no_address_of_a_special_block_is_told(block in 0..SPECIAL_V4.len(), host: u32) {
            let (base, bits) = SPECIAL_V4[block];
            let ip = Ipv4Addr::from_bits(Ipv4Addr::from(base).to_bits() | (host & (u32::MAX >> bits)));
            prop_assert!(!is_global(ip.into()), "{ip}");
        }

        #[test]
        fn no_address_of_a_special_block_of_ipv6_is_told(block in 0..SPECIAL_V6.len(), host: u128) {
            let (base, bits) = SPECIAL_V6[block];
            let ip = Ipv6Addr::from_bits(Ipv6Addr::from(base).to_bits() | (host & (u128::MAX >> bits)));
            prop_assert!(!is_global(ip.into()), "{ip}");
        }

        /// As the standard library knows them, which has no word for all of them.
        #[test]
        fn what_is_told_is_nothing_that_is_known_to_be_special(ip: IpAddr) {
            let special = match ip {
                IpAddr::V4(ip) => {
                    ip.is_private() || ip.is_loopback() || ip.is_link_local() || ip.is_broadcast()
                        || ip.is_documentation() || ip.is_multicast() || ip.is_unspecified()
                }
                IpAddr::V6(ip) => {
                    ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || ip.is_unique_local()
                        || ip.is_unicast_link_local() || ip.to_ipv4().is_some()
                }
            };
            prop_assert!(!(special && is_global(ip)), "{ip}");
            prop_assert!(!(is_global(ip) && crate::lan::is_private_use(ip)), "{ip}");
        }

        #[test]
        fn whatever_a_device_says_it_is_told_at_few_addresses_of_the_internet(
            texts in prop::collection::vec(".{0,20}", 0..4),
            ips in prop::collection::vec(any::<IpAddr>(), 0..24),
        ) {
            let all: Vec<String> = texts.into_iter().chain(ips.iter().map(ToString::to_string)).collect();
            let told: Vec<Value> = all.iter().map(|one| json!({"type": "ExternalIP", "address": one})).collect();
            let device = json!({"metadata": {"name": "nas"}, "status": {"addresses": told},
                "spec": {"owner": "alice", "keys": ["00".repeat(32)], "publish": {"external": true, "externalIPs": all}}});
            if let Some(external) = External::of(&device) {
                prop_assert!((1..=MAX_ADDRESSES).contains(&external.addresses.len()));
                prop_assert!(external.addresses.iter().all(|ip| is_global(*ip)));
            }
        }

        #[test]
        fn a_key_is_read_out_of_its_own_form_alone(der: Vec<u8>, key: [u8; 32]) {
            prop_assert_eq!(key_of_spki(&[ED25519_PREFIX.as_slice(), &key].concat()), Some(DeviceKey(key)));
            prop_assert!(key_of_spki(&der).is_none() || der.starts_with(&ED25519_PREFIX));
            prop_assert_eq!(key_of_spki(&[ED25519_PREFIX.as_slice(), &key, &[0]].concat()), None);
        }
    }

    #[test]
    fn what_the_owner_says_comes_first_and_what_the_device_tells_only_where_the_owner_wants_it() {
        let told = |publish: Value| {
            let device = json!({"metadata": {"name": "nas"},
                "spec": {"owner": "alice", "keys": ["00".repeat(32), "x"], "publish": publish},
                "status": {"addresses": [{"type": "InternalIP", "address": "9.9.9.9"},
                    {"type": "ExternalIP", "address": "2a00::1"}, {"type": "ExternalIP", "address": "10.0.0.1"}]}});
            let external = External::of(&device)?;
            assert_eq!((external.device.as_str(), &*external.owner, external.keys.len()), ("nas", "alice", 1));
            Some(external.addresses.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        let some = |ips: &[&str]| Some(ips.iter().map(|ip| (*ip).to_owned()).collect::<Vec<_>>());
        assert_eq!(told(json!({})), None);
        assert_eq!(told(json!({"lan": true})), None, "another opt-in");
        assert_eq!(told(json!({"external": true})), some(&["2a00::1"]));
        assert_eq!(told(json!({"externalIPs": ["25.0.0.1", "192.168.1.1", "25.0.0.1"]})), some(&["25.0.0.1"]));
        let both = json!({"external": true, "externalIPs": ["2a00::1", "25.0.0.1"]});
        assert_eq!(told(both), some(&["2a00::1", "25.0.0.1"]));
    }

    #[test]
    fn a_device_without_an_owner_or_a_key_is_told_nowhere() {
        let device = json!({"metadata": {"name": "nas"},
            "spec": {"owner": "alice", "keys": ["00".repeat(32)], "publish": {"externalIPs": ["25.0.0.1"]}}});
        assert!(External::of(&device).is_some());
        for (field, value) in [("owner", json!("")), ("keys", json!([])), ("publish", json!(null))] {
            let mut device = device.clone();
            device["spec"][field] = value;
            assert_eq!(External::of(&device), None, "{field}");
        }
    }
}
