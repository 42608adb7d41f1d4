//! The history of the store, put together from what all watchers saw.

use std::collections::BTreeMap;

use crate::{
    history::objects::{Key, Stored},
    observed::{Change, Observed, Sight, What},
};

/// The changes by revision; each revision changes one object, since clients write one at a time.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// By revision.
    pub by_revision: BTreeMap<u64, Change>,
    /// Up to here none is missing.
    pub complete: u64,
}

impl Changes {
    /// What watchers saw; an error where two of them saw different things at one revision.
    pub fn of(observed: &Observed) -> Result<Self, String> {
        let mut changes = Self::default();
        for (number, watched) in observed.watches.iter().enumerate() {
            for sight in &watched.sights {
                let Sight::Event { revision, change } = sight else { continue };
                let known = changes.by_revision.entry(*revision).or_insert_with(|| change.clone());
                if known != change {
                    return Err(format!(
                        "at revision {revision}, watcher {number} saw {change:?}, and another {known:?}"
                    ));
                }
            }
        }
        while changes.by_revision.contains_key(&(changes.complete + 1)) {
            changes.complete += 1;
        }
        Ok(changes)
    }

    /// The objects at a revision up to which no change is missing, of those whose names begin so.
    pub fn state(&self, revision: u64, prefix: &str) -> BTreeMap<Key, Stored> {
        let mut objects = BTreeMap::new();
        for (at, change) in self.by_revision.range(..=revision).filter(|(_, change)| change.key.starts_with(prefix)) {
            match change.what {
                What::Added | What::Modified => {
                    objects.insert(change.key.clone(), Stored { value: change.value, revision: *at });
                }
                What::Deleted => drop(objects.remove(&change.key)),
            }
        }
        objects
    }
}
