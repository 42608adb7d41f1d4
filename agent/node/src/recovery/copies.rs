//! The copies of the owner's objects, as the region signed them.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use hearth_proto::v1;
use hearth_types::recovery::{Digest, MAX_COPIES_BYTES, Manifest, Trust};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::files::{FileError, Format};

/// The objects, the list and the trust, as JSON.
const FORMAT: Format =
    Format { magic: "hearth-agent-copies", version: 1, max_bytes: (MAX_COPIES_BYTES as u64) + (4 << 20) };

/// Copies with whose word they are.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Kept {
    trust: Trust,
    manifest: Manifest,
    bodies: BTreeMap<Digest, Box<RawValue>>,
}

impl Kept {
    pub(super) fn load(path: &Path) -> Result<Option<Self>, FileError> {
        FORMAT.read(path)
    }

    /// Durable on return.
    pub(super) fn write(&self, path: &Path) -> Result<(), FileError> {
        FORMAT.write(path, self, true)
    }

    pub(super) fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    pub(super) fn trust(&self) -> &Trust {
        &self.trust
    }

    pub(super) fn bodies(&self) -> impl Iterator<Item = &[u8]> {
        self.bodies.values().map(|body| body.get().as_bytes())
    }

    /// Takes the word of a newer recovery key for the key that signed these. Returns whether it is one.
    pub(super) fn vouch(&mut self, trust: &Trust) -> bool {
        let same = trust.endorsement.signing_key == self.trust.endorsement.signing_key;
        let news = same && *trust != self.trust;
        if news {
            self.trust = trust.clone();
        }
        news
    }

    /// The copies that the region sends now, with what of them is here already.
    pub(super) fn next(old: Option<&Self>, trust: &Trust, sent: &v1::Copies) -> Result<Self, String> {
        let manifest = Manifest::from_json(&sent.manifest_json).map_err(|error| error.to_string())?;
        manifest.check(trust.endorsement.signing_key).map_err(|error| error.to_string())?;
        if let Some(old) = old
            && manifest.newest() < old.manifest.newest()
        {
            // A server that runs from an old copy of its disk.
            return Err("those that are kept are newer".into());
        }
        let mut size = 0;
        let mut new = HashMap::new();
        for body in &sent.bodies {
            size += body.len();
            if size > MAX_COPIES_BYTES {
                return Err(format!("they have more than {MAX_COPIES_BYTES} bytes"));
            }
            new.insert(Digest::of(body), body);
        }
        let mut bodies = BTreeMap::new();
        for entry in &manifest.entries {
            let here = || old?.bodies.get(&entry.sha256).cloned();
            let sent = new.get(&entry.sha256).and_then(|body| {
                let text = String::from_utf8(body.to_vec()).ok()?;
                // Kept byte for byte, since its hash is signed.
                RawValue::from_string(text).ok().filter(|raw| Digest::of(raw.get().as_bytes()) == entry.sha256)
            });
            if let Some(body) = sent.or_else(here) {
                bodies.insert(entry.sha256, body);
            } else {
                tracing::warn!(object = %entry.key, "the region sent no copy of an object that it lists");
            }
        }
        Ok(Self { trust: trust.clone(), manifest, bodies })
    }
}

#[cfg(test)]
mod tests {
    use hearth_types::{
        GroupKind, ObjectKey, Revision, Uid,
        recovery::{Entry, PublicKey, RecoveryKey, Signature, SigningKey},
    };

    use super::*;

    fn signing() -> SigningKey {
        SigningKey::from_seed(&[2; 32])
    }

    fn trust(number: u8) -> Trust {
        let key = RecoveryKey { key: SigningKey::from_seed(&[number; 32]), rotations: Vec::new() };
        key.trust("home", "z", signing().public())
    }

    fn body(name: &str) -> Vec<u8> {
        format!(
            r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"{name}","namespace":"alice","uid":"u"}}}}"#
        )
        .into_bytes()
    }

    fn copies(upto: u64, names: &[&str], sent: &[&str], by: &SigningKey) -> v1::Copies {
        let entry = |name: &&str| Entry {
            key: ObjectKey::new(GroupKind::CONFIG_MAP, "alice", name),
            uid: Uid::from("u"),
            revision: Revision(1),
            sha256: Digest::of(&body(name)),
        };
        let manifest = Manifest {
            region: "home".into(),
            zone: "z".into(),
            incarnation: "i".into(),
            generation: 0,
            owner: "alice".into(),
            upto: [("ConfigMap".to_owned(), Revision(upto))].into(),
            entries: names.iter().map(entry).collect(),
            by: PublicKey([0; 32]),
            signature: Signature([0; 64]),
        };
        let bodies = sent.iter().map(|name| body(name).into()).collect();
        v1::Copies { manifest_json: manifest.signed(by).to_json().into(), bodies }
    }

    #[test]
    fn copies_are_kept_with_what_was_here_and_read_back_byte_for_byte() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("copies.json");
        let first = Kept::next(None, &trust(1), &copies(5, &["a", "b"], &["a", "b"], &signing())).expect("kept");
        first.write(&path).expect("written");
        let first = Kept::load(&path).expect("read").expect("there");
        let second = Kept::next(Some(&first), &trust(1), &copies(6, &["b", "c"], &["c"], &signing())).expect("kept");
        second.write(&path).expect("written");
        let second = Kept::load(&path).expect("read").expect("there");
        let mut bodies: Vec<_> = second.bodies().map(<[u8]>::to_vec).collect();
        bodies.sort();
        assert_eq!(bodies, [body("b"), body("c")]);
        second.manifest().check(signing().public()).expect("still signed");
        let older = Kept::next(Some(&second), &trust(1), &copies(4, &["a"], &["a"], &signing())).expect_err("older");
        assert!(older.contains("newer"), "{older}");
    }

    #[test]
    fn what_is_not_signed_or_not_listed_is_not_kept() {
        let forged = copies(5, &["a"], &["a"], &SigningKey::from_seed(&[3; 32]));
        Kept::next(None, &trust(1), &forged).expect_err("another's");
        let kept = Kept::next(None, &trust(1), &copies(5, &["a"], &["a", "x"], &signing())).expect("kept");
        assert_eq!(kept.bodies().count(), 1);
        let lacking = Kept::next(None, &trust(1), &copies(5, &["a", "b"], &["a"], &signing())).expect("kept");
        assert_eq!(lacking.bodies().count(), 1);
    }

    #[test]
    fn a_newer_recovery_key_vouches_for_the_same_signing_key_alone() {
        let mut kept = Kept::next(None, &trust(1), &copies(5, &["a"], &["a"], &signing())).expect("kept");
        assert!(!kept.vouch(&trust(1)));
        let key = RecoveryKey { key: SigningKey::from_seed(&[7; 32]), rotations: Vec::new() };
        assert!(!kept.vouch(&key.trust("home", "z", PublicKey([8; 32]))), "a recovered region's");
        assert!(kept.vouch(&trust(7)) && kept.trust().key == key.key.public());
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(
            manifest in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200),
            body in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200),
        ) {
            let mut sent = copies(5, &["a"], &[], &signing());
            sent.bodies = vec![body.into()];
            let _ = Kept::next(None, &trust(1), &sent);
            sent.manifest_json = manifest.into();
            let _ = Kept::next(None, &trust(1), &sent);
        }
    }
}
