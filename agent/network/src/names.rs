//! Names and numbers that this instance's kernel objects carry, so that two instances live side by side. Pure.

use crate::{NetworkError, PodPolicy};

/// RFC 4648 base32, lower case: what instance ids and link names are written in.
const BASE32: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
/// Tells Hearth's routes from others in the priority field; the low 20 bits are the instance.
const PRIORITY_MARK: u32 = 0x4800_0000;

/// Link group of pods that may reach the internet. Pods' policy lives in the kernel with their link, and the firewall's
/// rules ask for it, so that rules never depend on which pods there are.
pub(crate) const GROUP_INTERNET: u32 = 0x4872_0001;
/// Link group of pods that may not.
pub(crate) const GROUP_ISOLATED: u32 = 0x4872_0000;
/// The same of guests: pods of others than the device's owner.
pub(crate) const GROUP_GUEST_INTERNET: u32 = 0x4872_0003;
/// See above.
pub(crate) const GROUP_GUEST_ISOLATED: u32 = 0x4872_0002;

/// The link group that says a policy.
pub(crate) fn group(policy: PodPolicy) -> u32 {
    match (policy.guest, policy.internet) {
        (false, true) => GROUP_INTERNET,
        (false, false) => GROUP_ISOLATED,
        (true, true) => GROUP_GUEST_INTERNET,
        (true, false) => GROUP_GUEST_ISOLATED,
    }
}

/// Whether the pods of a link group may reach the internet.
pub(crate) fn has_internet(group: u32) -> bool {
    matches!(group, GROUP_INTERNET | GROUP_GUEST_INTERNET)
}

/// The number of the host's own address in the prefix of the pods.
pub(crate) const GATEWAY_INDEX: u16 = 1;
/// The first number for a pod.
pub(crate) const FIRST_POD_INDEX: u16 = 2;
/// The last number for a pod; the one after is the IPv4 broadcast address.
pub(crate) const LAST_POD_INDEX: u16 = 0x7ffe;

/// An instance id: four base32 characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Instance(String);

impl Instance {
    pub(crate) fn parse(text: &str) -> Result<Self, NetworkError> {
        if text.len() == 4 && text.bytes().all(|b| BASE32.contains(&b)) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NetworkError::BadInstance(text.chars().take(64).collect()))
        }
    }

    /// The firewall table, of family `inet`.
    pub(crate) fn table(&self) -> String {
        format!("hearth-{}", self.0)
    }

    /// What every link of this instance begins with.
    pub(crate) fn link_prefix(&self) -> String {
        format!("hearth-{}-", self.0)
    }

    /// The host's side of the link of the pod with number `index`: 15 bytes, the longest that Linux allows.
    pub(crate) fn link(&self, index: u16) -> String {
        let mut name = self.link_prefix();
        for shift in [10, 5, 0] {
            name.push(char::from(BASE32[usize::from(index >> shift & 31)]));
        }
        name
    }

    /// The number in a link's name; `None` where it is not one of this instance's.
    pub(crate) fn link_index(&self, name: &str) -> Option<u16> {
        let digits = name.strip_prefix(&self.link_prefix())?;
        let value = |byte: u8| BASE32.iter().position(|b| *b == byte).map(|v| v as u16);
        match digits.as_bytes() {
            &[a, b, c] => Some(value(a)? << 10 | value(b)? << 5 | value(c)?),
            _ => None,
        }
    }

    /// The 20 bits of the instance.
    pub(crate) fn number(&self) -> u32 {
        self.0.bytes().fold(0, |n, byte| n << 5 | BASE32.iter().position(|b| *b == byte).unwrap_or(0) as u32)
    }

    /// The priority of the routes by which this instance claims its prefixes.
    pub(crate) fn route_priority(&self) -> u32 {
        PRIORITY_MARK | self.number()
    }
}

/// The hardware address of the host's side of a pod's link: locally administered.
pub(crate) fn host_mac(index: u16) -> [u8; 6] {
    let [high, low] = index.to_be_bytes();
    [0x02, 0x48, 0, 0, high, low]
}

/// The hardware address of the pod's side.
pub(crate) fn pod_mac(index: u16) -> [u8; 6] {
    let [high, low] = index.to_be_bytes();
    [0x02, 0x48, 0, 1, high, low]
}

/// Longest pod uid; Kubernetes uids have 36 bytes. It also becomes the link's alias, at most 255 bytes.
const MAX_UID_BYTES: usize = 128;

/// Refuses uids that do not fit into a file and a link's alias.
pub(crate) fn check_uid(uid: &str) -> Result<(), NetworkError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
    if uid.is_empty() || uid.len() > MAX_UID_BYTES || !uid.bytes().all(plain) {
        return Err(NetworkError::BadPodUid(uid.chars().take(MAX_UID_BYTES).collect()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_four_base32_characters_are_an_instance() {
        for bad in ["", "abc", "abcde", "ABCD", "abc1", "ab-d", "äb2"] {
            assert!(Instance::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(Instance::parse("a2z7").unwrap().table(), "hearth-a2z7");
    }

    #[test]
    fn link_names_fit_and_read_back() {
        let instance = Instance::parse("ab27").unwrap();
        let mut seen = std::collections::HashSet::new();
        for index in 0..=0x7fff {
            let name = instance.link(index);
            assert_eq!(name.len(), 15);
            assert_eq!(instance.link_index(&name), Some(index));
            assert!(seen.insert(name));
        }
        for other in
            ["hearth-ab2-7aaa", "hearth-ab27-aa", "hearth-ab27-aaaa", "hearth-ab27-aa1", "hearth-ab26-aaa", "eth0"]
        {
            assert_eq!(instance.link_index(other), None, "{other}");
        }
    }

    #[test]
    fn instances_have_routes_of_their_own() {
        let a = Instance::parse("aaab").unwrap().route_priority();
        let b = Instance::parse("7777").unwrap().route_priority();
        assert_eq!((a, b), (0x4800_0001, 0x480f_ffff));
    }

    #[test]
    fn uids_that_could_break_a_file_are_refused() {
        for bad in ["", "a/b", "a b", "a\0", &"x".repeat(129)] {
            assert!(check_uid(bad).is_err(), "{bad}");
        }
        assert!(check_uid("2b1e0c3e-6f0a-4f0e-8d9a-0123456789ab").is_ok());
    }
}
