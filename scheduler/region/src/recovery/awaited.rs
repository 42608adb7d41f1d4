//! What may still come: a device with older copies than another's hands in an Install alone, and what was made for it comes with the other.

use std::time::Duration;

use hearth_types::{DeviceName, GroupKind, Object, ObjectKey, Timestamp, recovery::record_key};
use serde_json::Value;

use super::{device, record};
use crate::{cache::Entry, hub::Hub};

/// For how long a region that was recovered waits for the devices of an owner, before it makes anew what belongs to an object of before. A new
/// claim in the place of one that comes later would be an empty volume, beside which the old one's data is nobody's.
const PATIENCE: Duration = Duration::from_mins(10);

/// Whether what belongs to an object may still be handed in: it is of before the region was lost, and a device of its owner that is known has not
/// come back yet.
pub(crate) fn is_awaited(hub: &Hub, key: &ObjectKey) -> bool {
    let now = hub.now();
    if !record(hub).is_some_and(|record| record.accepts(now)) {
        return false;
    }
    let away: Vec<DeviceName> = {
        let cache = hub.cache();
        let made = |key: &ObjectKey| cache.get(key).and_then(|entry| created(&entry.object));
        let Some((recovered, made)) = made(&record_key()).zip(made(key)) else { return false };
        if made >= recovered || now >= recovered.plus(PATIENCE) {
            return false;
        }
        let owned = |entry: &&Entry| device(&entry.object).0 == *key.namespace;
        cache.of_kind(GroupKind::DEVICE).filter(owned).map(|entry| DeviceName::from(entry.object.name())).collect()
    };
    away.iter().any(|device| hub.sessions.get(device).is_none())
}

fn created(object: &Object) -> Option<Timestamp> {
    object.value().pointer("/metadata/creationTimestamp").and_then(Value::as_str)?.parse().ok()
}
