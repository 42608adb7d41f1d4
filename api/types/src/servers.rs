//! Which numbers were given to servers of a region. Each is given once: a number whose server was removed is never another's.
//!
//! They are written into a ConfigMap, so that every server and every backup has them. Who belongs to the group now, and at which address,
//! is in the group itself.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{GroupKind, ObjectKey, Timestamp};

const NAMESPACE: &str = "kube-system";
const NAME: &str = "region-servers";
const JOINED: &str = "joined";
const REMOVED: &str = "removed";
/// Servers that a region may have had in all: what the ConfigMap holds with ease. One a day lasts for ten years.
pub const MAX_NUMBERS: usize = 4_096;

/// The numbers that were given, and what became of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Numbers(BTreeMap<u64, Given>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Given {
    removed: bool,
    since: String,
}

/// Where they are written down.
pub fn key() -> ObjectKey {
    ObjectKey::new(GroupKind::CONFIG_MAP, NAMESPACE, NAME)
}

impl Numbers {
    /// What an object tells. What is no number is skipped.
    pub fn read(object: &Value) -> Self {
        let data = object.get("data").and_then(Value::as_object).into_iter().flatten();
        let given = data.filter_map(|(id, text)| {
            let (word, since) = text.as_str()?.split_once(' ')?;
            Some((id.parse().ok()?, Given { removed: word == REMOVED, since: since.to_owned() }))
        });
        Self(given.collect())
    }

    /// The object to be written: `old` with these numbers, or a new one.
    pub fn write(&self, old: Option<&Value>) -> Value {
        let mut object = old.cloned().unwrap_or_else(
            || json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": NAME, "namespace": NAMESPACE}}),
        );
        let text = |given: &Given| format!("{} {}", if given.removed { REMOVED } else { JOINED }, given.since);
        let data: BTreeMap<String, String> = self.0.iter().map(|(id, given)| (id.to_string(), text(given))).collect();
        object["data"] = json!(data);
        object
    }

    /// Gives a number that no server ever had: none of these, and none of the `members`. `None` where the region has had too many.
    pub fn give(&mut self, members: impl IntoIterator<Item = u64>, now: Timestamp) -> Option<u64> {
        for member in members {
            self.0.entry(member).or_insert_with(|| given(false, now));
        }
        let next = self.0.last_key_value().map_or(1, |(id, _)| id.saturating_add(1));
        if self.0.len() >= MAX_NUMBERS || next == u64::MAX {
            return None;
        }
        self.0.insert(next, given(false, now));
        Some(next)
    }

    /// Notes that a server was removed, or that it belongs to the group; `false` where that was noted already.
    pub fn note(&mut self, id: u64, removed: bool, now: Timestamp) -> bool {
        match self.0.get(&id) {
            Some(known) if known.removed == removed => false,
            None if !removed => false,
            _ => {
                self.0.insert(id, given(removed, now));
                true
            }
        }
    }

    /// Whether a number was given to a server.
    pub fn is_given(&self, id: u64) -> bool {
        self.0.contains_key(&id)
    }

    /// Whether a server was removed from the region.
    pub fn is_removed(&self, id: u64) -> bool {
        self.0.get(&id).is_some_and(|given| given.removed)
    }
}

fn given(removed: bool, now: Timestamp) -> Given {
    Given { removed, since: now.seconds().to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_number_is_given_twice() {
        let mut numbers = Numbers::default();
        assert_eq!(numbers.give([1], Timestamp(0)), Some(2));
        assert_eq!(numbers.give([1, 2], Timestamp(0)), Some(3));
        assert!(numbers.note(3, true, Timestamp(1_000)) && !numbers.note(3, true, Timestamp(2_000)));
        let object = numbers.write(None);
        assert_eq!(object["data"]["3"], "removed 1970-01-01T00:00:01Z");
        let mut read = Numbers::read(&object);
        assert_eq!(read, numbers);
        assert_eq!(read.give([1, 2], Timestamp(0)), Some(4), "the last one that was removed keeps its number");
        assert_eq!(read.give([9], Timestamp(0)), Some(10), "a member that nobody noted has one too");
        assert!(read.is_removed(3) && !read.is_removed(2) && !read.is_removed(77));
        assert!(read.note(3, false, Timestamp(0)) && !read.is_removed(3));
        assert!(!read.note(77, false, Timestamp(0)), "who was never removed needs no note");
        let old = json!({"metadata": {"uid": "u"}, "data": {"x": "joined 1", "4": 4, "5": "odd", "6": "removed t"}});
        let read = Numbers::read(&old);
        assert!(read.is_removed(6) && read.write(Some(&old))["metadata"]["uid"] == "u");
        let mut full = Numbers((1..=MAX_NUMBERS as u64).map(|id| (id, given(true, Timestamp(0)))).collect());
        assert_eq!(full.give([], Timestamp(0)), None);
    }
}
