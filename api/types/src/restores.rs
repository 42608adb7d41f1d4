//! When a region was restored from a backup, and which revisions it does not have since.
//!
//! A restored region goes on at a revision far above all that it can have had (as `etcdutl snapshot restore --bump-revision`
//! does), so that the revisions between the backup and there are of the lost time alone: a device or a watcher that
//! has seen one of them has seen what the region lost, however long ago the restore was. Each restore is written
//! into a ConfigMap, which every server and every later backup has.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{GroupKind, ObjectKey, Revision, Timestamp, Uid};

const NAMESPACE: &str = "kube-system";
const NAME: &str = "region-restores";
/// Revisions that a restored region passes over at least.
const LEAST_GAP: u64 = 1 << 20;
/// Revisions that a region uses up in a second at most, by far: so two restores, whose times differ, go on at different revisions, the
/// later one at the higher. (By the end of the century they are still below 2^53, which JavaScript can count.)
const REVISIONS_PER_SECOND: u32 = 1 << 20;
/// Restores that are remembered, the newest ones.
const MAX_RESTORES: usize = 1_000;

/// One restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restore {
    /// The revision of the backup.
    pub backup: Revision,
    /// The revision at which the region went on.
    pub resumed: Revision,
}

impl Restore {
    /// A restore of a backup of this revision, now.
    pub fn new(backup: Revision, now: Timestamp) -> Self {
        let seconds = u64::try_from(now.0 / 1_000).unwrap_or(0);
        let by_time = seconds.saturating_mul(REVISIONS_PER_SECOND.into());
        Self { backup, resumed: Revision(by_time.max(backup.0.saturating_add(LEAST_GAP))) }
    }

    /// Whether a revision is one that the restored region does not have.
    pub fn lost(&self, seen: Revision) -> bool {
        self.backup < seen && seen <= self.resumed
    }
}

/// Where restores are written down.
pub fn key() -> ObjectKey {
    ObjectKey::new(GroupKind::CONFIG_MAP, NAMESPACE, NAME)
}

/// The restores that an object tells of, oldest first. What is no restore is skipped.
pub fn read(object: &Value) -> Vec<Restore> {
    let data = object.get("data").and_then(Value::as_object).into_iter().flatten();
    let number = |text: &str| text.parse().ok().map(Revision);
    let mut all: Vec<Restore> = data
        .filter_map(|(resumed, backup)| Some(Restore { backup: number(backup.as_str()?)?, resumed: number(resumed)? }))
        .collect();
    all.sort_unstable_by_key(|one| one.resumed);
    all
}

/// The object that tells of one restore more than `old` does. `uid` is that of a new object.
pub fn record(old: Option<&Value>, restore: Restore, uid: &Uid, now: Timestamp) -> Value {
    let mut object = old.cloned().unwrap_or_else(|| {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": NAME, "namespace": NAMESPACE, "uid": uid,
            "creationTimestamp": now.seconds().to_string()}})
    });
    let mut all = read(&object);
    all.push(restore);
    let newest = all.split_off(all.len().saturating_sub(MAX_RESTORES));
    let data: BTreeMap<String, String> =
        newest.iter().map(|one| (one.resumed.to_string(), one.backup.to_string())).collect();
    object["data"] = json!(data);
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_between_a_backup_and_its_restore_is_lost_however_often_it_is_restored() {
        let at = |seconds: i64| Timestamp(seconds * 1_000);
        let first = Restore::new(Revision(100), at(1_800_000_000));
        for (seen, lost) in [(0, false), (100, false), (101, true), (5_000_000, true)] {
            assert_eq!(first.lost(Revision(seen)), lost, "{seen}");
        }
        assert!(first.lost(first.resumed), "nothing was ever written there");
        assert!(!first.lost(first.resumed.next()));
        // The same backup once more, two seconds later: what was written since the first restore is lost too.
        let again = Restore::new(Revision(100), at(1_800_000_002));
        assert!(again.lost(Revision(first.resumed.0 + 1_000_000)) && !first.lost(again.resumed));
        // A backup of the restored region.
        let next = Restore::new(Revision(first.resumed.0 + 50), at(1_800_000_100));
        assert!(next.resumed > Revision(first.resumed.0 + 50) && !next.lost(Revision(first.resumed.0 + 50)));
        // Without a clock there is a gap all the same.
        for seconds in [-5, 0] {
            assert_eq!(Restore::new(Revision(7), at(seconds)).resumed, Revision(7 + LEAST_GAP));
        }
    }

    #[test]
    fn restores_are_read_back() {
        let (one, two) =
            (Restore::new(Revision(7), Timestamp(0)), Restore::new(Revision(9), Timestamp(1_800_000_000_000)));
        let object = record(None, two, &Uid::from("u"), Timestamp(5));
        let object = record(Some(&object), one, &Uid::from("other"), Timestamp(6));
        assert_eq!(read(&object), [one, two]);
        assert_eq!(object["metadata"]["uid"], "u");
        for odd in [json!({}), json!({"data": {"x": "1", "2": 3, "4": "y"}}), json!({"data": []}), json!(null)] {
            assert_eq!(read(&odd), [], "{odd}");
        }
    }
}
