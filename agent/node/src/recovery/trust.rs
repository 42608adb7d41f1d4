//! Which recovery key is pinned, and what it said.

use std::path::Path;

use hearth_proto::v1;
use hearth_types::{
    Incarnation,
    recovery::{Digest, Distrust, Statement, Trust},
};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use serde::{Deserialize, Serialize};

use crate::files::{FileError, Format};

const FORMAT: Format = Format { magic: "hearth-agent-recovery", version: 1, max_bytes: 256 << 10 };

/// What the region is since it was recovered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Recovered {
    pub(super) generation: u64,
    pub(super) incarnation: Incarnation,
    pub(super) ca_pem: String,
}

/// What is believed. The recovery key and the CA are in one file, so that a power cut leaves the one that was or the one that is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Pinned {
    pub(super) trust: Trust,
    pub(super) recovered: Option<Recovered>,
}

impl Pinned {
    pub(super) fn load(path: &Path) -> Result<Option<Self>, FileError> {
        FORMAT.read(path)
    }

    /// Durable on return.
    pub(super) fn write(&self, path: &Path) -> Result<(), FileError> {
        FORMAT.write(path, self, true)
    }

    /// What is believed once the region has said this: the first key is pinned, another one only where it was signed by the one before, and always
    /// for the same region.
    pub(super) fn follow(old: Option<&Self>, trust: Trust, zone: &str) -> Result<Self, Distrust> {
        trust.check()?;
        let region = old.map_or(trust.endorsement.region.as_str(), |old| old.trust.endorsement.region.as_str());
        if (trust.endorsement.region.as_str(), trust.endorsement.zone.as_str()) != (region, zone) {
            return Err(Distrust::OtherRegion { found: trust.region(), wanted: format!("{region} ({zone})") });
        }
        if let Some(old) = old {
            trust.follows(old.trust.key)?;
        }
        Ok(Self { trust, recovered: old.and_then(|old| old.recovered.clone()) })
    }

    pub(super) fn generation(&self) -> u64 {
        self.recovered.as_ref().map_or(0, |recovered| recovered.generation)
    }

    /// What is believed once a server, which may be anybody, has shown this.
    pub(super) fn recovered(&self, answer: &v1::StatementResponse) -> Result<Self, Distrust> {
        let trust = Trust::from_json(&answer.trust_json)?;
        let statement = Statement::from_json(&answer.statement_json)?;
        let unreadable = |error: String| Distrust::Unreadable(format!("its CA: {error}"));
        let ca = CertificateDer::from_pem_slice(&answer.ca_pem).map_err(|error| unreadable(error.to_string()))?;
        let ca_pem = String::from_utf8(answer.ca_pem.to_vec()).map_err(|error| unreadable(error.to_string()))?;
        if statement.by != trust.key {
            return Err(Distrust::Signature("statement"));
        }
        let known = &self.trust.endorsement;
        let region = (known.region.as_str(), known.zone.as_str());
        statement.check(self.trust.key, &trust.rotations, region, self.generation(), &ca)?;
        let Statement { generation, incarnation, .. } = statement;
        let mut next = Self::follow(Some(self), trust, region.1)?;
        // One certificate, and nothing else that a reader of the file could take for one.
        debug_assert_eq!(Digest::of(&ca), statement.ca);
        next.recovered = Some(Recovered { generation, incarnation, ca_pem });
        Ok(next)
    }
}

#[cfg(test)]
mod tests {
    use hearth_types::{
        Timestamp,
        recovery::{PublicKey, RecoveryKey, Rotation, SigningKey},
    };

    use super::*;

    const ZONE: &str = "hearth.internal";

    fn key(number: u8) -> RecoveryKey {
        RecoveryKey { key: SigningKey::from_seed(&[number; 32]), rotations: Vec::new() }
    }

    fn trust(by: &RecoveryKey) -> Trust {
        by.trust("home", ZONE, PublicKey([9; 32]))
    }

    fn answer(by: &RecoveryKey, generation: u64) -> v1::StatementResponse {
        let ca = rcgen::generate_simple_self_signed(vec!["x".to_owned()]).expect("a certificate").cert;
        let digest = Digest::of(ca.der());
        let statement = Statement::new(&by.key, ("home", ZONE), generation, "new".into(), digest, Timestamp(0));
        v1::StatementResponse {
            statement_json: statement.to_json().into(),
            trust_json: trust(by).to_json().into(),
            ca_pem: ca.pem().into(),
        }
    }

    #[test]
    fn the_first_key_is_pinned_and_another_only_by_its_word() {
        let first = Pinned::follow(None, trust(&key(1)), ZONE).expect("the first");
        assert!(Pinned::follow(Some(&first), trust(&key(2)), ZONE).is_err());
        let rotated = RecoveryKey { rotations: vec![Rotation::new(&key(1).key, key(2).key.public())], ..key(2) };
        let second = Pinned::follow(Some(&first), trust(&rotated), ZONE).expect("signed by the first");
        assert_eq!(second.trust.key, key(2).key.public());
        assert!(Pinned::follow(Some(&second), trust(&key(1)), ZONE).is_err(), "no way back");
        assert!(Pinned::follow(None, trust(&key(1)), "z").is_err(), "of another zone");
        let office = key(1).trust("office", ZONE, PublicKey([9; 32]));
        assert!(Pinned::follow(Some(&first), office, ZONE).is_err(), "of another region of the operator's");
    }

    #[test]
    fn a_recovered_region_is_believed_by_its_key_and_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("recovery.json");
        let first = Pinned::follow(None, trust(&key(1)), ZONE).expect("the first");
        assert!(first.recovered(&answer(&key(2), 7)).is_err(), "a stranger's");
        let shown = answer(&key(1), 7);
        let next = first.recovered(&shown).expect("believed");
        next.write(&path).expect("written");
        assert_eq!(Pinned::load(&path).expect("read"), Some(next.clone()));
        assert_eq!((next.generation(), first.generation()), (7, 0));
        for generation in [7, 6] {
            assert!(matches!(next.recovered(&answer(&key(1), generation)), Err(Distrust::Generation { .. })));
        }
        next.recovered(&answer(&key(1), 8)).expect("a higher one");
        let other_ca = v1::StatementResponse { ca_pem: answer(&key(1), 8).ca_pem, ..shown.clone() };
        assert_eq!(first.recovered(&other_ca), Err(Distrust::OtherCa));
        for (odd, what) in [
            (v1::StatementResponse { ca_pem: b"x".as_slice().into(), ..shown.clone() }, "no CA"),
            (v1::StatementResponse { trust_json: b"{}".as_slice().into(), ..shown.clone() }, "no trust"),
            (v1::StatementResponse { statement_json: b"[".as_slice().into(), ..shown }, "no statement"),
        ] {
            assert!(matches!(first.recovered(&odd), Err(Distrust::Unreadable(_))), "{what}");
        }
    }
}
