//! What logs of Certificate Transparency hold (RFC 6962 section 3.4), and which of it nobody here asked for. Pure.

use std::collections::BTreeSet;

use x509_parser::{
    certificate::{TbsCertificate, X509Certificate},
    prelude::FromDer as _,
};

use crate::facts;

/// `MerkleTreeLeaf`: a version and the kind of leaf, both zero, and a time.
const HEAD: usize = 10;
/// `issuer_key_hash` of a precertificate.
const ISSUER_HASH: usize = 32;

/// A certificate, or what it is made of before it is signed (a precertificate), as a log has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Logged {
    pub(crate) names: BTreeSet<String>,
    /// SHA-256 of its SubjectPublicKeyInfo, hex.
    pub(crate) spki: String,
    pub(crate) serial: String,
    pub(crate) issuer: String,
}

/// Reads an entry's `leaf_input`; `None` where it is none that this release knows, or is no certificate.
pub(crate) fn read(leaf: &[u8]) -> Option<Logged> {
    let (head, rest) = leaf.split_at_checked(HEAD)?;
    if head[..2] != [0, 0] {
        return None;
    }
    let (kind, rest) = rest.split_first_chunk::<2>()?;
    match u16::from_be_bytes(*kind) {
        0 => {
            let (_, certificate) = X509Certificate::from_der(sized(rest)?).ok()?;
            Some(logged(&certificate.tbs_certificate))
        }
        1 => {
            let (_, rest) = rest.split_at_checked(ISSUER_HASH)?;
            let (_, tbs) = TbsCertificate::from_der(sized(rest)?).ok()?;
            Some(logged(&tbs))
        }
        _ => None,
    }
}

/// Bytes behind their length in three.
fn sized(bytes: &[u8]) -> Option<&[u8]> {
    let (length, rest) = bytes.split_first_chunk::<3>()?;
    let [high, middle, low] = length.map(usize::from);
    rest.get(..(high << 16) | (middle << 8) | low)
}

fn logged(tbs: &TbsCertificate<'_>) -> Logged {
    Logged {
        names: facts::names_of(tbs.extensions()),
        spki: facts::sha256(tbs.public_key().raw),
        serial: hex::encode(tbs.raw_serial()),
        issuer: tbs.issuer().to_string(),
    }
}

/// The owners of a zone whose names a certificate has; the empty text stands for the zone itself. A wildcard of the zone has every owner's
/// name.
pub(crate) fn owners(logged: &Logged, zone: &str) -> BTreeSet<String> {
    let below = |name: &String| {
        let rest = name.strip_suffix(zone)?;
        if rest.is_empty() {
            return Some(String::new());
        }
        let owner = rest.strip_suffix('.')?.rsplit('.').next()?;
        Some(if owner == "*" { String::new() } else { owner.to_owned() })
    };
    logged.names.iter().filter_map(below).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    /// A log's entry of a certificate for these names; of a precertificate where `early`.
    pub(crate) fn leaf(names: &[&str], early: bool) -> (Vec<u8>, String) {
        let key = KeyPair::generate().expect("a key");
        let names = names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let certificate = CertificateParams::new(names).expect("names").self_signed(&key).expect("signed");
        let (_, parsed) = X509Certificate::from_der(certificate.der()).expect("a certificate");
        let spki = facts::sha256(parsed.public_key().raw);
        let mut leaf = vec![0; HEAD];
        let bytes: &[u8] = if early {
            leaf.extend([0, 1]);
            leaf.extend([7; ISSUER_HASH]);
            parsed.tbs_certificate.as_ref()
        } else {
            leaf.extend([0, 0]);
            certificate.der()
        };
        leaf.extend(&(bytes.len() as u32).to_be_bytes()[1..]);
        leaf.extend(bytes);
        leaf.extend([0, 0]);
        (leaf, spki)
    }

    #[test]
    fn certificates_and_what_comes_before_them_are_read_alike() {
        for early in [false, true] {
            let (leaf, spki) = leaf(&["A.alice.z.test", "x.example"], early);
            let logged = read(&leaf).expect("an entry");
            assert_eq!(logged.spki, spki);
            assert!(logged.names.contains("a.alice.z.test"), "{logged:?}");
            assert_eq!(owners(&logged, "z.test").into_iter().collect::<Vec<_>>(), ["alice"]);
            assert!(read(&leaf[..leaf.len() - 3]).is_none());
        }
    }

    #[test]
    fn a_name_says_whose_it_is() {
        let of = |names: &[&str]| {
            let names = names.iter().map(|name| (*name).to_owned()).collect();
            let logged = Logged { names, spki: String::new(), serial: String::new(), issuer: String::new() };
            owners(&logged, "z.test").into_iter().collect::<Vec<_>>()
        };
        assert_eq!(of(&["*.lan.alice.z.test", "bob.z.test", "*.alice.z.test"]), ["alice", "bob"]);
        assert_eq!(of(&["z.test"]), [""]);
        assert_eq!(of(&["*.z.test"]), [""]);
        assert!(of(&["notz.test", "example.org"]).is_empty());
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_entries_never_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
            let _ = read(&bytes);
        }
    }
}
