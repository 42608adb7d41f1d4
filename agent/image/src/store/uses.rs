//! Who needs an image that has no name any more.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use super::Image;
use crate::Digest;

/// Images that somebody in this process is about to use, shared by all clones of a store.
#[derive(Debug, Clone, Default)]
pub(super) struct Holds(Arc<Mutex<HashMap<Digest, usize>>>);

/// Keeps an image from being collected by this process, for as long as it lives: from the moment that its layers were looked up until
/// the pod that they are for is among those that [`ImageStore::collect_garbage`](super::ImageStore::collect_garbage) is told of.
#[derive(Debug)]
pub struct Hold {
    digest: Digest,
    holds: Holds,
}

impl Holds {
    /// Holds the image that `find` finds; no collection comes between.
    pub(super) fn hold<E>(&self, find: impl FnOnce() -> Result<Image, E>) -> Result<(Image, Hold), E> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let image = find()?;
        let digest = image.manifest_digest;
        *held.entry(digest).or_default() += 1;
        Ok((image, Hold { digest, holds: self.clone() }))
    }

    /// Runs `work` with what is held, and nothing more is held until it has ended.
    pub(super) fn still<T>(&self, work: impl FnOnce(&dyn Fn(&Digest) -> bool) -> T) -> T {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        work(&|digest| held.contains_key(digest))
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut held = self.holds.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = held.get_mut(&self.digest) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.digest);
            }
        }
    }
}

/// What the last collection of this process left behind for its use alone.
#[derive(Debug, Default)]
pub(super) struct Collected {
    /// The generation of the store then.
    pub(super) generation: u64,
    /// Images without a name that were kept since they were in use.
    pub(super) kept: HashSet<Digest>,
}
