//! Relays: which there are, and who may use them.
//!
//! A relay knows nobody. Whoever wants to use one shows a pass: a statement by which the region lends its relays to one
//! key for some hours. The key is proven to the relay when it is connected to, so that a pass is of no use to others.

use std::{net::IpAddr, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    DeviceKey, Timestamp, names,
    recovery::{PublicKey, Signature, SigningKey},
};

/// How long a pass can be used: a device whose key was removed from the region loses its relays after that.
pub const PASS_VALIDITY: Duration = Duration::from_hours(2);
/// How often another one is given: two may be missed.
pub const PASS_RENEWAL: Duration = Duration::from_mins(30);
/// Relays of one region at most: each gateway and each device measures all of them.
pub const MAX_RELAYS: usize = 16;
/// The longest pass in bytes: a key, an owner, a time and a signature.
pub const MAX_PASS_BYTES: usize = 512;

/// What passes begin with: their version.
const VERSION: &str = "hearth-relay-pass-1";
/// What is put before a pass where it is signed, so that its signature means nothing else.
const CONTEXT: &[u8] = b"hearth.dev relay pass\0";

/// One relay, as devices and gateways are told of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Relay {
    /// The name of its object.
    pub name: String,
    /// Where it answers, `https://host:port`.
    pub url: String,
    /// The UDP port of its address discovery, at the same host; 0: it has none.
    pub discovery_port: u16,
}

impl Relay {
    /// What a Relay object says; `None` of one that says nothing usable.
    pub fn read(object: &Value) -> Option<Self> {
        let name = object.pointer("/metadata/name")?.as_str()?.to_owned();
        let url = object.pointer("/spec/url")?.as_str()?.to_owned();
        check_url(&url).ok()?;
        let port = object.pointer("/spec/discoveryPort").and_then(Value::as_u64).unwrap_or_default();
        Some(Self { name, url, discovery_port: u16::try_from(port).ok()? })
    }
}

/// The relays that somebody may use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RelayAccess {
    /// Which there are: at most [`MAX_RELAYS`].
    pub relays: Vec<Relay>,
    /// The pass for them, as text.
    pub pass: String,
}

/// The name in the certificate of every relay of a zone.
pub fn server_name(zone: &str) -> String {
    format!("relay.api.{zone}")
}

/// The host in the URL of a relay that shares the gateway's port at this address: a name, so that a client's hello has one, and one that
/// says the address, so that nobody has to be asked for it. `198-51-100-7.relay.api.<zone>`; of IPv6 all eight groups, `2001-db8-0-0-0-0-0-1`.
pub fn host_at(ip: IpAddr, zone: &str) -> String {
    let label = match ip {
        IpAddr::V4(ip) => ip.octets().map(|part| part.to_string()).join("-"),
        IpAddr::V6(ip) => ip.segments().map(|part| format!("{part:x}")).join("-"),
    };
    format!("{label}.{}", server_name(zone))
}

/// The address that a host says, if it is one of [`host_at`] in any zone.
pub fn address_in(host: &str) -> Option<IpAddr> {
    let (label, rest) = host.strip_suffix('.').unwrap_or(host).split_once('.')?;
    rest.to_ascii_lowercase().starts_with("relay.api.").then(|| address_of_label(label))?
}

/// The address that the first label of [`host_at`] says.
pub fn address_of_label(label: &str) -> Option<IpAddr> {
    let parts: Vec<&str> = label.split('-').collect();
    let number = |text: &str, radix| {
        let plain = !text.is_empty() && text.len() <= 4 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        plain.then(|| u16::from_str_radix(text, radix).ok())?
    };
    if let [_, _, _, _] = parts[..] {
        let octet = |text| u8::try_from(number(text, 10)?).ok();
        let octets: Vec<u8> = parts.iter().map_while(|text| octet(text)).collect();
        return <[u8; 4]>::try_from(octets).ok().map(IpAddr::from);
    }
    let groups: Vec<u16> = parts.iter().map_while(|text| number(text, 16)).collect();
    if groups.len() != parts.len() {
        return None;
    }
    <[u16; 8]>::try_from(groups).ok().map(IpAddr::from)
}

/// Whether a text is where a relay can be: `https://host:port`, and nothing behind that.
pub fn check_url(url: &str) -> Result<(), &'static str> {
    let why = "must be https://host:port";
    let authority = url.strip_prefix("https://").ok_or(why)?;
    if names::is_address(authority) { Ok(()) } else { Err(why) }
}

/// Whom a pass is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// A gateway of the region.
    Gateway,
    /// A device of this owner.
    Device {
        /// The name of the owner's namespace.
        owner: String,
    },
}

/// What the region says in a pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pass {
    /// Who may use the region's relays.
    pub key: DeviceKey,
    /// Who that is.
    pub holder: Holder,
    /// Until when.
    pub not_after: Timestamp,
}

/// Why a pass is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPass {
    /// It cannot be read.
    #[error("the pass cannot be read, or is of another version")]
    Malformed,
    /// Another region's, or nobody's.
    #[error("the pass is not signed by this region")]
    Signature,
    /// Its time is over.
    #[error("the pass has expired")]
    Expired,
    /// Somebody else's.
    #[error("the pass is for another key")]
    OtherKey,
}

impl Pass {
    /// The pass of a gateway, from now on.
    pub fn of_gateway(key: DeviceKey, now: Timestamp) -> Self {
        Self { key, holder: Holder::Gateway, not_after: now.plus(PASS_VALIDITY) }
    }

    /// The pass of a device, from now on.
    pub fn of_device(key: DeviceKey, owner: &str, now: Timestamp) -> Self {
        Self { key, holder: Holder::Device { owner: owner.to_owned() }, not_after: now.plus(PASS_VALIDITY) }
    }

    /// The pass as text, signed by the region. It has no character that an HTTP header could not hold.
    pub fn sign(&self, by: &SigningKey) -> String {
        let statement = self.statement();
        format!("{statement}:{}", by.sign(&message(&statement)))
    }

    fn statement(&self) -> String {
        let owner = match &self.holder {
            Holder::Gateway => "",
            Holder::Device { owner } => owner,
        };
        format!("{VERSION}:{}:{owner}:{}", self.key, self.not_after.0)
    }

    /// Reads a pass and holds it against the region's key, the clock, and the key that its bearer has proven.
    pub fn check(text: &str, region: PublicKey, bearer: &DeviceKey, now: Timestamp) -> Result<Self, BadPass> {
        if text.len() > MAX_PASS_BYTES {
            return Err(BadPass::Malformed);
        }
        let (statement, signature) = text.rsplit_once(':').ok_or(BadPass::Malformed)?;
        let signature: Signature = signature.parse().map_err(|_| BadPass::Malformed)?;
        let pass = Self::parse(statement).ok_or(BadPass::Malformed)?;
        if !region.verifies(&message(statement), &signature) {
            return Err(BadPass::Signature);
        }
        if pass.key != *bearer {
            return Err(BadPass::OtherKey);
        }
        if pass.not_after < now {
            return Err(BadPass::Expired);
        }
        Ok(pass)
    }

    fn parse(statement: &str) -> Option<Self> {
        let mut parts = statement.split(':');
        let (version, key, owner, until) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        if version != VERSION || parts.next().is_some() {
            return None;
        }
        let holder = if owner.is_empty() {
            Holder::Gateway
        } else {
            names::dns_label(owner).ok()?;
            Holder::Device { owner: owner.to_owned() }
        };
        Some(Self { key: key.parse().ok()?, holder, not_after: Timestamp(until.parse().ok()?) })
    }
}

fn message(statement: &str) -> Vec<u8> {
    [CONTEXT, statement.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const NOW: Timestamp = Timestamp(1_800_000_000_000);

    fn key(n: u8) -> SigningKey {
        SigningKey::from_seed(&[n; 32])
    }

    #[test]
    fn a_host_says_its_address() {
        for (ip, label) in
            [("198.51.100.7", "198-51-100-7"), ("2001:db8::1", "2001-db8-0-0-0-0-0-1"), ("::", "0-0-0-0-0-0-0-0")]
        {
            let ip: IpAddr = ip.parse().expect("an address");
            let host = host_at(ip, "example.test");
            assert_eq!(host, format!("{label}.relay.api.example.test"));
            assert_eq!((address_in(&host), address_in(&format!("{}.", host.to_uppercase()))), (Some(ip), Some(ip)));
            assert!(check_url(&format!("https://{host}:443")).is_ok());
        }
        for none in [
            "198-51-100-7.example.test",
            "relay.api.example.test",
            "fra-1.relay.api.example.test",
            "198-51-100-256.relay.api.example.test",
            "198-51-100-a.relay.api.example.test",
            "+1-51-100-7.relay.api.example.test",
            "1-2-3.relay.api.example.test",
            "1-2-3-4-5.relay.api.example.test",
            "x-51-100-7-1-1-1-1.relay.api.example.test",
            "12345-0-0-0-0-0-0-1.relay.api.example.test",
            "",
        ] {
            assert_eq!(address_in(none), None, "{none}");
        }
    }

    #[test]
    fn a_pass_is_good_for_its_bearer_and_its_time_alone() {
        let (region, device, other) = (key(1), DeviceKey([2; 32]), DeviceKey([3; 32]));
        let text = Pass::of_device(device, "alice", NOW).sign(&region);
        let check = |text: &str, region: &SigningKey, bearer, now| Pass::check(text, region.public(), bearer, now);
        let pass = check(&text, &region, &device, NOW).expect("good");
        assert_eq!(pass.holder, Holder::Device { owner: "alice".into() });
        assert_eq!(check(&text, &region, &other, NOW), Err(BadPass::OtherKey));
        assert_eq!(check(&text, &key(4), &device, NOW), Err(BadPass::Signature));
        let late = NOW.plus(PASS_VALIDITY + Duration::from_millis(1));
        assert_eq!(check(&text, &region, &device, late), Err(BadPass::Expired));
        assert_eq!(check(&text.replace("alice", "carol"), &region, &device, NOW), Err(BadPass::Signature));
        let gateway = Pass::of_gateway(other, NOW).sign(&region);
        assert_eq!(check(&gateway, &region, &other, NOW).expect("good").holder, Holder::Gateway);
        assert!(text.len() <= MAX_PASS_BYTES && text.bytes().all(|byte| byte.is_ascii_graphic()));
    }

    #[test]
    fn a_relay_is_read_from_its_object_or_not_at_all() {
        let object = |url: &str, port: Value| json!({"metadata": {"name": "fra-1"}, "spec": {"url": url, "discoveryPort": port}});
        let read = |url: &str, port: Value| Relay::read(&object(url, port));
        let relay = Relay { name: "fra-1".into(), url: "https://192.0.2.1:443".into(), discovery_port: 7842 };
        assert_eq!(read("https://192.0.2.1:443", json!(7842)), Some(relay.clone()));
        let without = Relay { discovery_port: 0, ..relay };
        assert_eq!(read("https://192.0.2.1:443", Value::Null), Some(without));
        assert!(read("https://[2001:db8::1]:443", json!(1)).is_some());
        for url in ["http://192.0.2.1:443", "https://192.0.2.1", "https://a:1/path", "https://u@a:1", ""] {
            assert_eq!(read(url, json!(1)), None, "{url}");
        }
        assert_eq!(read("https://a.b:1", json!(70_000)), None);
    }

    proptest! {
        #[test]
        fn no_text_is_taken_for_a_pass_that_the_region_did_not_sign(text in ".{0,600}", cut in 0_usize..200) {
            let device = DeviceKey([2; 32]);
            prop_assert!(Pass::check(&text, key(1).public(), &device, NOW).is_err());
            let mut good = Pass::of_device(device, "alice", NOW).sign(&key(1));
            good.truncate(good.len().saturating_sub(cut + 1));
            prop_assert!(Pass::check(&good, key(1).public(), &device, NOW).is_err());
        }
    }
}
