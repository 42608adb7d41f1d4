//! Newtypes for identifiers, so that a name is not taken for a uid nor a revision for an epoch.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Box<str>);

        impl $name {
            /// Wraps a text that is known to be one.
            pub fn new(text: impl Into<Box<str>>) -> Self {
                Self(text.into())
            }

            /// The text itself.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.into())
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text.into())
            }
        }
    };
}

text_id! {
    /// The uid of an object: unique over all objects of a region for all time (an RFC 4122 UUID).
    Uid
}
text_id! {
    /// The name of a [`Device`](crate::kinds::Device), which is the name of its Node too.
    DeviceName
}
text_id! {
    /// What a client calls its write. A write that is sent again under the same id is applied once.
    RequestId
}
text_id! {
    /// The identity of a region's data: made when its store is first made, and anew when a region is
    /// rebuilt. A device deletes nothing on the word of another incarnation than the one it knows.
    Incarnation
}

/// A position in the region's history: rises by one with every transaction that changed something.
/// An object's `metadata.resourceVersion` is the revision that last changed it, in decimal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub u64);

impl Revision {
    /// Before everything.
    pub const ZERO: Self = Self(0);

    /// The revision after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Revision {
    type Err = std::num::ParseIntError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// The Ed25519 public key of a device (RFC 8032), 32 bytes; written as 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceKey(pub [u8; 32]);

impl fmt::Display for DeviceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for DeviceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceKey({self})")
    }
}

/// Why a text is no device key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a device key is 64 hex digits (an Ed25519 public key)")]
pub struct BadDeviceKey;

impl FromStr for DeviceKey {
    type Err = BadDeviceKey;
    fn from_str(text: &str) -> Result<Self, BadDeviceKey> {
        let digits = text.as_bytes();
        if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(BadDeviceKey);
        }
        let mut key = [0; 32];
        for (byte, pair) in key.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| BadDeviceKey)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| BadDeviceKey)?;
        }
        Ok(Self(key))
    }
}

impl Serialize for DeviceKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for DeviceKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl RequestId {
    /// The same id with a fingerprint of what is asked for under it, so that a store can tell a request that is sent again from another
    /// one under the same id, which it refuses. The fingerprint must not depend on what differs from one try to the next.
    #[must_use]
    pub fn with_content(&self, fingerprint: u64) -> Self {
        Self::from(format!("{}~{fingerprint:016x}", self.as_str()))
    }

    /// The id and the fingerprint that [`RequestId::with_content`] gave it, where it has one.
    pub fn content(&self) -> Option<(&str, &str)> {
        let (name, content) = self.as_str().rsplit_once('~')?;
        let hex = content.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        (content.len() == 16 && hex && !name.is_empty()).then_some((name, content))
    }
}

/// What tells the host objects (links, cgroups, firewall tables) of one Hearth instance from
/// another's on the same machine: four characters of `a-z2-7`, made from the data directory's path,
/// so short because a link's name has 15 bytes (`IFNAMSIZ`): `hearth-abcd-xyz`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct InstanceId(String);

impl InstanceId {
    /// The instance of a data directory. `path` must be absolute and free of links, or one directory
    /// would be two instances.
    pub fn of_data_dir(path: &std::path::Path) -> Self {
        const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
        // FNV-1a: a stable hash is wanted, not a secret one.
        let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
        for byte in path.as_os_str().as_encoded_bytes() {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        // Fold, since the low bits of FNV alone mix the last bytes poorly.
        let mut folded = hash ^ (hash >> 20) ^ (hash >> 40);
        let mut id = String::with_capacity(4);
        for _ in 0..4 {
            id.push(char::from(ALPHABET[(folded & 31) as usize]));
            folded >>= 5;
        }
        Self(id)
    }

    /// The four characters.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `hearth-<instance>`: the beginning of every host object's name.
    pub fn prefix(&self) -> String {
        format!("hearth-{}", self.0)
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_key_survives_its_text() {
        let key = DeviceKey([0xab; 32]);
        assert_eq!(key.to_string().parse(), Ok(key));
        assert_eq!("ab".parse::<DeviceKey>(), Err(BadDeviceKey));
        assert_eq!("+b".repeat(32).parse::<DeviceKey>(), Err(BadDeviceKey));
    }

    #[test]
    fn a_request_id_carries_what_is_asked_for() {
        let id = RequestId::from("a~b/c0");
        assert_eq!(id.content(), None);
        assert_eq!(id.with_content(0xab).as_str(), "a~b/c0~00000000000000ab");
        assert_eq!(id.with_content(0xab).content(), Some(("a~b/c0", "00000000000000ab")));
        for none in ["", "~00000000000000ab", "a~00000000000000AB", "a~ab"] {
            assert_eq!(RequestId::from(none).content(), None, "{none}");
        }
    }

    #[test]
    fn instances_differ_by_directory_and_fit_a_link_name() {
        let one = InstanceId::of_data_dir("/var/lib/hearth".as_ref());
        let two = InstanceId::of_data_dir("/var/lib/hearth2".as_ref());
        assert_ne!(one, two);
        assert_eq!(one, InstanceId::of_data_dir("/var/lib/hearth".as_ref()));
        assert!(format!("{}-xyz", one.prefix()).len() <= 15);
    }
}
