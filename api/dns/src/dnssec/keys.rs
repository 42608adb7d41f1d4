//! The region's keys, ready to sign.

use hearth_types::{
    Timestamp,
    dns::keys::{KeySet, Phase, Role, ZoneKey, key_tag},
};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};

/// Why keys cannot sign.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// A key of the set.
    #[error("the {} with tag {tag} cannot be used: {why}; are this server's CA and the region's store of one region?", role.label())]
    Key {
        /// What it signs.
        role: Role,
        /// Its key tag.
        tag: u16,
        /// What is wrong.
        why: String,
    },
}

/// A key pair with its record.
pub(crate) struct Pair {
    key: ZoneKey,
    pub(crate) dnskey: Vec<u8>,
    pub(crate) tag: u16,
    private: EcdsaKeyPair,
}

/// The keys that sign a zone; which of them does what follows from the time.
#[derive(Default)]
pub struct Keys(Vec<Pair>);

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|pair| (pair.key.role, pair.tag))).finish()
    }
}

impl Keys {
    /// No keys: answers are not signed.
    pub fn none() -> Self {
        Self::default()
    }

    /// The keys of a set. `open` gives the private key of a sealed one (PKCS #8).
    pub fn new(set: &KeySet, mut open: impl FnMut(&ZoneKey) -> Result<Vec<u8>, String>) -> Result<Self, KeyError> {
        let pair = |key: &ZoneKey| {
            let dnskey = key.dnskey().unwrap_or_default();
            let tag = key_tag(&dnskey);
            let wrong = |why: String| KeyError::Key { role: key.role, tag, why };
            let bytes = open(key).map_err(wrong)?;
            let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &bytes, &SystemRandom::new());
            let pair = pair.map_err(|error| wrong(error.to_string()))?;
            // ring's has the byte of an uncompressed point before it.
            if key.public_bytes().is_none_or(|public| pair.public_key().as_ref()[1..] != public) {
                return Err(wrong("the private key is not that of the public one".to_owned()));
            }
            Ok(Pair { key: key.clone(), dnskey, tag, private: pair })
        };
        set.keys.iter().map(pair).collect::<Result<_, _>>().map(Self)
    }

    /// The key of a role that signs at a time.
    pub(crate) fn signer(&self, role: Role, now: Timestamp) -> Option<&Pair> {
        self.0.iter().rev().find(|pair| pair.key.role == role && pair.key.phase(now) == Phase::Active)
    }

    /// Whether answers are signed: there is a key of each role.
    pub(crate) fn sign(&self, now: Timestamp) -> bool {
        self.signer(Role::Ksk, now).is_some() && self.signer(Role::Zsk, now).is_some()
    }

    /// The DNSKEY set.
    pub(crate) fn dnskeys(&self, now: Timestamp) -> Vec<Vec<u8>> {
        self.0.iter().filter(|pair| pair.key.in_dnskey_set(now)).map(|pair| pair.dnskey.clone()).collect()
    }

    /// The CDS and the CDNSKEY set of a zone (RFC 7344).
    pub(crate) fn for_parent(&self, zone: &str, now: Timestamp) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
        let asked = || self.0.iter().filter(|pair| pair.key.in_cds_set(now));
        let cds = asked().filter_map(|pair| pair.key.ds(zone)).collect();
        (cds, asked().map(|pair| pair.dnskey.clone()).collect())
    }
}

impl Pair {
    /// A signature: r and s (RFC 6605 section 4).
    pub(crate) fn sign(&self, message: &[u8]) -> Option<Vec<u8>> {
        self.private.sign(&SystemRandom::new(), message).ok().map(|signature| signature.as_ref().to_vec())
    }
}
