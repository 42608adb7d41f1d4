//! The copies of an owner's objects: what of an object is copied, and what the region signs of all of them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    keys::{Digest, PublicKey, Signature, SigningKey},
    message,
};
use crate::{GroupKind, Incarnation, Object, ObjectKey, Revision, Uid, object::canonical};

/// Objects of one owner that are copied at most: with the ledger beside them they fit into one transaction, so that a hand-in is
/// taken whole or not at all. A household has some dozens.
pub const MAX_COPIES: usize = 900;
/// Bytes of the copies of one owner at most: half of what one transaction holds, and little on any disk.
pub const MAX_COPIES_BYTES: usize = 8 << 20;
/// The largest [`Manifest`] as JSON in bytes: [`MAX_COPIES`] entries with the longest names fit.
pub const MAX_MANIFEST_BYTES: usize = 1 << 20;

/// The kinds that are copied, in the order in which they are taken where there are more objects than [`MAX_COPIES`]: what an
/// owner said comes before what controllers made of it.
pub const KINDS: [GroupKind; 13] = [
    GroupKind::NAMESPACE,
    GroupKind::DEVICE,
    GroupKind::NODE,
    GroupKind::APP,
    GroupKind::INSTALL,
    GroupKind::PERSISTENT_VOLUME_CLAIM,
    GroupKind::ROUTE,
    GroupKind::SERVICE,
    GroupKind::CONFIG_MAP,
    GroupKind::SECRET,
    GroupKind::DEPLOYMENT,
    GroupKind::REPLICA_SET,
    GroupKind::POD,
];

/// Where a kind stands in [`KINDS`]; `None` where it is not copied.
pub fn rank(kind: &GroupKind) -> Option<usize> {
    KINDS.iter().position(|one| one == kind)
}

/// Whether a kind is no owner's: its objects are copied to whoever needs them, and never taken for deleted.
pub fn is_shared(kind: &GroupKind) -> bool {
    *kind == GroupKind::APP
}

/// What of an object is copied, as canonical JSON: all but its status, which devices report and controllers find out anew, and its
/// revision.
pub fn essence(object: &Object) -> Vec<u8> {
    let mut value = object.value();
    if let Some(map) = value.as_object_mut() {
        map.remove("status");
    }
    if let Some(meta) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.remove("resourceVersion");
        meta.remove("managedFields");
    }
    canonical(&value)
}

/// One copied object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// What it is called.
    #[serde(flatten)]
    pub key: ObjectKey,
    /// Its uid.
    pub uid: Uid,
    /// A revision at which it was this.
    pub revision: Revision,
    /// SHA-256 of its [`essence`].
    pub sha256: Digest,
}

/// All objects of an owner, as the region signs them.
///
/// It says: at `upto` of each kind there was nothing else of the owner, and each entry was so at its revision. Both are true of a cache
/// that is behind, so servers need not agree on a moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// The region.
    pub region: String,
    /// Its zone.
    pub zone: String,
    /// The identity of its data.
    pub incarnation: Incarnation,
    /// How often it was recovered, as a number that only rises.
    pub generation: u64,
    /// Whose objects.
    pub owner: String,
    /// By kind, up to which revision nothing is missing.
    pub upto: BTreeMap<String, Revision>,
    /// The objects, by key.
    pub entries: Vec<Entry>,
    /// The region's signing key.
    pub by: PublicKey,
    /// Its signature.
    pub signature: Signature,
}

/// Why a manifest is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadManifest {
    /// It cannot be read.
    #[error("the list of copies cannot be read: {0}")]
    Unreadable(String),
    /// Larger than it can be.
    #[error("the list of copies has {0} bytes; at most {MAX_MANIFEST_BYTES}")]
    TooLarge(usize),
    /// More entries than it can have.
    #[error("the list of copies has {0} entries; at most {MAX_COPIES}")]
    TooMany(usize),
    /// Not in order, or one twice.
    #[error("the list of copies is not in order")]
    Order,
    /// Nobody signed it.
    #[error("the list of copies is not signed by the key {0}")]
    Signature(PublicKey),
}

impl Manifest {
    /// Signs what is there. The entries are put into order.
    #[must_use]
    pub fn signed(mut self, by: &SigningKey) -> Self {
        self.entries.sort_by(|a, b| a.key.cmp(&b.key));
        self.by = by.public();
        self.signature = by.sign(&self.message());
        self
    }

    fn message(&self) -> Vec<u8> {
        let number = |number: u64| number.to_le_bytes().to_vec();
        let mut fields: Vec<Vec<u8>> = vec![
            self.region.clone().into(),
            self.zone.clone().into(),
            self.incarnation.as_str().into(),
            number(self.generation),
            self.owner.clone().into(),
            number(self.upto.len() as u64),
        ];
        for (kind, revision) in &self.upto {
            fields.extend([kind.clone().into(), number(revision.0)]);
        }
        for entry in &self.entries {
            fields.extend(entry.names());
            fields.extend([number(entry.revision.0), entry.sha256.0.to_vec()]);
        }
        message("copies", fields.iter().map(Vec::as_slice))
    }

    /// Reads one, within its bounds and in order. Never panics, whatever the bytes are. Nothing of it is to be believed
    /// before [`Manifest::check`].
    pub fn from_json(json: &[u8]) -> Result<Self, BadManifest> {
        if json.len() > MAX_MANIFEST_BYTES {
            return Err(BadManifest::TooLarge(json.len()));
        }
        let read: Self = serde_json::from_slice(json).map_err(|error| BadManifest::Unreadable(error.to_string()))?;
        if read.entries.len() > MAX_COPIES {
            return Err(BadManifest::TooMany(read.entries.len()));
        }
        if read.entries.windows(2).any(|two| two[0].key >= two[1].key) {
            return Err(BadManifest::Order);
        }
        Ok(read)
    }

    /// As JSON.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("it has no maps with odd keys")
    }

    /// Checks that a key signed it.
    pub fn check(&self, key: PublicKey) -> Result<(), BadManifest> {
        let signed = self.by == key && key.verifies(&self.message(), &self.signature);
        if signed { Ok(()) } else { Err(BadManifest::Signature(key)) }
    }

    /// Tells its content, whatever its revisions: two manifests with the same need not be sent twice.
    pub fn content(&self) -> Digest {
        let mut fields: Vec<Vec<u8>> = vec![
            self.incarnation.as_str().into(),
            self.generation.to_le_bytes().to_vec(),
            self.owner.clone().into(),
            self.by.0.to_vec(),
        ];
        for entry in &self.entries {
            fields.extend(entry.names());
            fields.push(entry.sha256.0.to_vec());
        }
        Digest::of(&message("content of copies", fields.iter().map(Vec::as_slice)))
    }

    /// The generation, and the last revision of anything in it.
    pub fn newest(&self) -> (u64, Revision) {
        let revisions = self.upto.values().copied().chain(self.entries.iter().map(|entry| entry.revision));
        (self.generation, revisions.max().unwrap_or_default())
    }

    /// The entry of an object.
    pub fn get(&self, key: &ObjectKey) -> Option<&Entry> {
        self.entries.binary_search_by(|entry| entry.key.cmp(key)).ok().map(|index| &self.entries[index])
    }
}

impl Entry {
    fn names(&self) -> [Vec<u8>; 5] {
        let text = |text: &str| text.as_bytes().to_vec();
        let ObjectKey { kind, namespace, name } = &self.key;
        [text(&kind.group), text(&kind.kind), text(namespace), text(name), text(self.uid.as_str())]
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn key() -> SigningKey {
        SigningKey::from_seed(&[1; 32])
    }

    /// The manifest of ConfigMaps, by name and revision.
    pub(in super::super) fn manifest(upto: u64, entries: &[(&str, u64)]) -> Manifest {
        let entry = |(name, revision): &(&str, u64)| Entry {
            key: ObjectKey::new(GroupKind::CONFIG_MAP, "alice", name),
            uid: Uid::from(format!("u-{name}")),
            revision: Revision(*revision),
            sha256: Digest::of(format!("{name} {revision}").as_bytes()),
        };
        let unsigned = Manifest {
            region: "home".into(),
            zone: "hearth.internal".into(),
            incarnation: "i".into(),
            generation: 1,
            owner: "alice".into(),
            upto: [("ConfigMap".to_owned(), Revision(upto))].into(),
            entries: entries.iter().map(entry).collect(),
            by: PublicKey([0; 32]),
            signature: Signature([0; 64]),
        };
        unsigned.signed(&key())
    }

    #[test]
    fn a_manifest_is_read_back_and_whatever_is_changed_in_it_is_not_believed() {
        let signed = manifest(9, &[("b", 3), ("a", 7)]);
        let read = Manifest::from_json(&signed.to_json()).expect("readable");
        assert_eq!(read, signed);
        read.check(key().public()).expect("signed");
        let other = SigningKey::from_seed(&[2; 32]).public();
        assert_eq!(read.check(other), Err(BadManifest::Signature(other)));
        let changes: [fn(&mut Manifest); 11] = [
            |one| one.region = "office".into(),
            |one| one.zone = "z".into(),
            |one| one.incarnation = "j".into(),
            |one| one.generation = 2,
            |one| one.owner = "bob".into(),
            |one| one.upto = [("ConfigMap".to_owned(), Revision(10))].into(),
            |one| one.entries[0].key = ObjectKey::new(GroupKind::SECRET, "alice", "a"),
            |one| one.entries[0].uid = "v".into(),
            |one| one.entries[0].revision = Revision(8),
            |one| one.entries[0].sha256 = Digest::of(b"x"),
            |one| drop(one.entries.pop()),
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let mut changed = signed.clone();
            change(&mut changed);
            assert!(changed.check(key().public()).is_err(), "change {number}");
        }
        assert_eq!(read.newest(), (1, Revision(9)));
        assert_eq!(read.get(&read.entries[1].key).map(|entry| entry.revision), Some(Revision(3)));
        let later = manifest(20, &[("b", 3), ("a", 7)]);
        assert_eq!(later.content(), signed.content());
        assert_ne!(manifest(9, &[("b", 3)]).content(), signed.content());
    }

    #[test]
    fn what_is_too_large_or_out_of_order_is_not_read() {
        let many: Vec<(String, u64)> = (0..=MAX_COPIES).map(|number| (format!("c{number:04}"), 1)).collect();
        let many: Vec<(&str, u64)> = many.iter().map(|(name, revision)| (name.as_str(), *revision)).collect();
        assert_eq!(Manifest::from_json(&manifest(1, &many).to_json()), Err(BadManifest::TooMany(MAX_COPIES + 1)));
        Manifest::from_json(&manifest(1, &many[1..]).to_json()).expect("as many as there may be");
        let mut twice = manifest(1, &[("a", 1)]);
        twice.entries.push(twice.entries[0].clone());
        assert_eq!(Manifest::from_json(&twice.to_json()), Err(BadManifest::Order));
        let large = vec![b' '; MAX_MANIFEST_BYTES + 1];
        assert_eq!(Manifest::from_json(&large), Err(BadManifest::TooLarge(large.len())));
    }

    #[test]
    fn an_essence_has_neither_status_nor_revision_and_is_the_same_of_itself() {
        let object = |extra: Value| {
            let mut value = json!({"apiVersion": "v1", "kind": "Pod", "spec": {"x": 1},
                "metadata": {"name": "a", "namespace": "alice", "uid": "u", "resourceVersion": "7"}});
            value["status"] = extra;
            Object::from_value(value).expect("an object")
        };
        let one = essence(&object(json!({"phase": "Running"})));
        assert_eq!(one, essence(&object(json!({"phase": "Failed"})).with_revision(Revision(9))));
        let back = Object::from_json(&one).expect("an object");
        assert_eq!((essence(&back), back.uid().as_str()), (one, "u"));
    }

    proptest! {
        #[test]
        fn arbitrary_and_damaged_bytes_never_panic_and_are_never_believed(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
        ) {
            let _ = Manifest::from_json(&bytes);
            let signed = manifest(9, &[("b", 3), ("a", 7)]);
            let mut json = signed.to_json();
            let at = at.index(json.len());
            json[at] = byte;
            if let Ok(read) = Manifest::from_json(&json)
                && read.check(key().public()).is_ok()
            {
                prop_assert_eq!(read, signed);
            }
        }
    }
}
