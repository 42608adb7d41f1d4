//! The copies of one owner's objects as they are now, signed.

use std::collections::{BTreeMap, HashMap};

use hearth_types::{
    GroupKind, Revision,
    recovery::{
        Digest, Entry, KINDS, MAX_COPIES, MAX_COPIES_BYTES, Manifest, PublicKey, Record, Signature, essence, rank,
    },
};

use crate::{
    cache::{self, Cache, View},
    hub::Hub,
};

/// All copies of one owner.
pub(crate) struct Page {
    /// What there is.
    pub(crate) manifest: Manifest,
    /// The objects, by their hash.
    pub(crate) bodies: HashMap<Digest, Vec<u8>>,
}

impl Page {
    /// The copies of an owner's objects; `None` where the recovery key has not endorsed the key that would sign them, so that nobody could ever
    /// use them.
    pub(crate) fn of(hub: &Hub, record: &Record, owner: &str) -> Option<Self> {
        let signing = &hub.config.signing;
        if record.trust.endorsement.signing_key != signing.public() {
            return None;
        }
        let (found, upto) = {
            let cache = hub.cache();
            (objects(&cache, owner), upto(&cache))
        };
        let mut found: Vec<_> = found.into_iter().map(|object| (essence(&object), object)).collect();
        found.sort_by_cached_key(|(_, object)| (rank(object.kind()), object.key().clone()));
        let (mut entries, mut bodies, mut bytes) = (Vec::new(), HashMap::new(), 0);
        let all = found.len();
        for (body, object) in found {
            if entries.len() >= MAX_COPIES || bytes + body.len() > MAX_COPIES_BYTES {
                tracing::warn!(
                    owner,
                    objects = all,
                    copied = entries.len(),
                    "an owner has more objects than are copied to devices ({MAX_COPIES}, {MAX_COPIES_BYTES} bytes): the others could not be recovered"
                );
                break;
            }
            bytes += body.len();
            let sha256 = Digest::of(&body);
            let (key, uid, revision) = (object.key().clone(), object.uid().clone(), object.revision());
            entries.push(Entry { key, uid, revision, sha256 });
            bodies.insert(sha256, body);
        }
        let manifest = Manifest {
            region: hub.config.region.clone(),
            zone: hub.config.zone.clone(),
            incarnation: hub.config.store.incarnation(),
            generation: record.generation(),
            owner: owner.to_owned(),
            upto,
            entries,
            by: PublicKey([0; 32]),
            signature: Signature([0; 64]),
        };
        Some(Self { manifest: manifest.signed(signing), bodies })
    }
}

/// Up to which revision nothing of a kind is missing in the cache.
fn upto(cache: &Cache) -> BTreeMap<String, Revision> {
    KINDS.iter().map(|kind| (kind.to_string(), cache.complete_upto(kind))).collect()
}

/// Everything of an owner, and the Apps that they have installed.
fn objects(cache: &Cache, owner: &str) -> Vec<hearth_types::Object> {
    let mut found = Vec::new();
    let mut add = |entry: &cache::Entry| found.push(entry.object.clone());
    cache.object(GroupKind::NAMESPACE, "", owner).into_iter().for_each(&mut add);
    for device in cache.of_kind(GroupKind::DEVICE) {
        if matches!(&device.view, View::Device { owner: whose } if **whose == *owner) {
            add(device);
            cache.object(GroupKind::NODE, "", device.object.name()).into_iter().for_each(&mut add);
        }
    }
    let mut apps = std::collections::BTreeSet::new();
    for kind in KINDS {
        if !hearth_types::registry::of_kind(&kind).is_some_and(hearth_types::registry::KindInfo::is_namespaced) {
            continue;
        }
        for entry in cache.in_namespace(kind, owner) {
            add(entry);
            if let View::Install { app } = &entry.view {
                apps.insert(app.clone());
            }
        }
    }
    for app in apps {
        cache.object(GroupKind::APP, "", &app).into_iter().for_each(&mut add);
    }
    found
}
