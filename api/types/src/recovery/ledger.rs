//! What the copies that several devices hand in come to together.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    copies::{Entry, Manifest, is_shared},
    keys::Digest,
};
use crate::{GroupKind, ObjectKey, Revision, Uid};

/// When something was so: first the generation, then the revision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Version {
    /// The region's generation.
    pub generation: u64,
    /// A revision of it.
    pub revision: Revision,
}

/// An object of the lost region, as far as is known now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Held {
    /// What it is called.
    #[serde(flatten)]
    pub key: ObjectKey,
    /// Its uid.
    pub uid: Uid,
    /// When it was this.
    pub version: Version,
    /// SHA-256 of its essence.
    pub sha256: Digest,
    /// What was stored of it, or found not to be storable: decided once, so that what a person deletes later does not come back.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub decided: Option<Digest>,
}

/// Everything that is known of one owner's objects in the lost region.
///
/// # Guarantees
/// In whatever order manifests come in, and however often: an object is in it where one has it and none that is complete beyond that lacks it,
/// and it is there as it was last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ledger {
    upto: BTreeMap<String, Version>,
    held: Vec<Held>,
}

/// What a manifest brought.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Merged {
    /// Objects that were known and turn out to have been deleted.
    pub gone: Vec<Held>,
    /// Objects in it that are known to be gone, or to have become another since.
    pub older: Vec<ObjectKey>,
}

impl Ledger {
    /// The objects.
    pub fn held(&self) -> &[Held] {
        &self.held
    }

    /// One object.
    pub fn get(&self, key: &ObjectKey) -> Option<&Held> {
        self.held.binary_search_by(|held| held.key.cmp(key)).ok().map(|index| &self.held[index])
    }

    /// Remembers that an object was decided on, as it is in the ledger.
    pub fn decide(&mut self, key: &ObjectKey) {
        if let Ok(index) = self.held.binary_search_by(|held| held.key.cmp(key)) {
            self.held[index].decided = Some(self.held[index].sha256);
        }
    }

    /// Takes in what a manifest says of the owner's own objects (`shared` false), or of those that are nobody's (true).
    pub fn merge(&mut self, manifest: &Manifest, shared: bool) -> Merged {
        let mut merged = Merged::default();
        let generation = manifest.generation;
        // Of what is nobody's, no manifest is complete.
        let complete = |kind: &GroupKind| match manifest.upto.get(&kind.to_string()) {
            Some(revision) if !shared => Version { generation, revision: *revision },
            _ => Version::default(),
        };
        let mut held: BTreeMap<ObjectKey, Held> =
            std::mem::take(&mut self.held).into_iter().map(|held| (held.key.clone(), held)).collect();
        held.retain(|key, old| {
            let there = manifest.get(key).is_some_and(|entry| entry.uid == old.uid);
            let gone = !there && complete(&key.kind) >= old.version;
            if gone {
                merged.gone.push(old.clone());
            }
            !gone
        });
        for Entry { key, uid, revision, sha256 } in &manifest.entries {
            if is_shared(&key.kind) != shared {
                continue;
            }
            let version = Version { generation, revision: *revision };
            let known = held.get(key);
            let is_news = match known {
                Some(old) if old.uid == *uid && old.sha256 == *sha256 => {
                    let version = old.version.max(version);
                    held.entry(key.clone()).and_modify(|old| old.version = version);
                    continue;
                }
                Some(old) => version > old.version,
                None => self.upto.get(&key.kind.to_string()).is_none_or(|upto| version > *upto),
            };
            if !is_news {
                merged.older.push(key.clone());
                continue;
            }
            // Of another object of the name, nothing was stored yet.
            let same = known.filter(|old| old.uid == *uid);
            if let Some(other) = known.filter(|old| old.uid != *uid) {
                merged.gone.push(other.clone());
            }
            let decided = same.and_then(|old| old.decided);
            let (uid, sha256) = (uid.clone(), *sha256);
            held.insert(key.clone(), Held { key: key.clone(), uid, version, sha256, decided });
        }
        if !shared {
            for (kind, revision) in &manifest.upto {
                let upto = self.upto.entry(kind.clone()).or_default();
                *upto = (*upto).max(Version { generation, revision: *revision });
            }
        }
        self.held = held.into_values().collect();
        merged
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::copies::tests::manifest, *};

    fn names(ledger: &Ledger) -> Vec<(String, u64)> {
        ledger.held().iter().map(|held| (held.key.name.to_string(), held.version.revision.0)).collect()
    }

    #[test]
    fn what_was_deleted_stays_deleted_and_what_is_newest_stays_in_whatever_order_it_comes() {
        let before = manifest(10, &[("kept", 3), ("deleted", 4), ("changed", 5)]);
        let after = manifest(20, &[("kept", 3), ("changed", 15), ("new", 16)]);
        for order in [[&before, &after], [&after, &before]] {
            let mut ledger = Ledger::default();
            for manifest in order {
                ledger.merge(manifest, false);
            }
            assert_eq!(names(&ledger), [("changed".into(), 15), ("kept".into(), 3), ("new".into(), 16)]);
            let again = ledger.clone();
            assert_eq!(ledger.merge(&after, false), Merged::default());
            assert_eq!(ledger, again);
        }
        let mut ledger = Ledger::default();
        ledger.merge(&before, false);
        assert_eq!(ledger.merge(&after, false).gone[0].key.name.as_ref(), "deleted");
        let older: Vec<_> = ledger.merge(&before, false).older.iter().map(|key| key.name.to_string()).collect();
        assert_eq!(older, ["changed", "deleted"]);
    }

    #[test]
    fn a_lower_generation_is_older_whatever_its_revisions() {
        let mut lost = manifest(1_000, &[("a", 900), ("gone", 900)]);
        lost.generation = 1;
        let mut now = manifest(20, &[("a", 15)]);
        now.generation = 2;
        for order in [[&lost, &now], [&now, &lost]] {
            let mut ledger = Ledger::default();
            for one in order {
                ledger.merge(one, false);
            }
            assert_eq!(names(&ledger), [("a".into(), 15)]);
        }
    }

    #[test]
    fn what_was_decided_is_remembered_and_a_newer_one_is_to_be_decided_again() {
        let mut ledger = Ledger::default();
        let first = manifest(10, &[("a", 3)]);
        ledger.merge(&first, false);
        let key = first.entries[0].key.clone();
        ledger.decide(&key);
        let read: Ledger = serde_json::from_slice(&serde_json::to_vec(&ledger).expect("json")).expect("read");
        assert_eq!(read, ledger);
        ledger.merge(&manifest(12, &[("a", 11)]), false);
        let held = ledger.get(&key).expect("there");
        assert_eq!(held.decided, Some(first.entries[0].sha256));
        assert_ne!(held.decided, Some(held.sha256));
    }

    /// A region's history: at each revision one object is made, changed or deleted. A page of it is what a cache that is at `upto` for what it
    /// knows to be complete, and already at `seen` for what it has, signs.
    fn page(history: &[(u8, bool)], upto: usize, seen: usize) -> Manifest {
        let mut objects: BTreeMap<u8, u64> = BTreeMap::new();
        for (revision, (name, there)) in history[..seen.min(history.len())].iter().enumerate() {
            if *there {
                objects.insert(*name, revision as u64 + 1);
            } else {
                objects.remove(name);
            }
        }
        let entries: Vec<(String, u64)> =
            objects.into_iter().map(|(name, revision)| (format!("c{name}"), revision)).collect();
        let entries: Vec<(&str, u64)> = entries.iter().map(|(name, revision)| (name.as_str(), *revision)).collect();
        manifest(upto as u64, &entries)
    }

    proptest! {
        #[test]
        fn any_order_of_pages_of_any_caches_comes_to_what_was_there(
            history in proptest::collection::vec((0_u8..4, any::<bool>()), 1..20),
            pages in proptest::collection::vec((0_usize..20, 0_usize..3), 0..6),
            order in any::<prop::sample::Index>(),
        ) {
            let last = history.len();
            let mut pages: Vec<Manifest> = pages
                .into_iter()
                .map(|(upto, ahead)| page(&history, upto.min(last), (upto + ahead).min(last)))
                .collect();
            pages.push(page(&history, last, last));
            let truth: Vec<(String, u64)> = names_of(&pages[pages.len() - 1]);
            let at = order.index(pages.len());
            pages.rotate_left(at);
            let mut ledger = Ledger::default();
            for one in &pages {
                ledger.merge(one, false);
            }
            prop_assert_eq!(names(&ledger), truth);
        }
    }

    fn names_of(manifest: &Manifest) -> Vec<(String, u64)> {
        manifest.entries.iter().map(|entry| (entry.key.name.to_string(), entry.revision.0)).collect()
    }
}
