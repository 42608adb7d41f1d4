//! Room on a disk that fills up: what can be had again goes.

use std::collections::{BTreeMap, HashSet};

use super::{Garbage, ImageStore};
use crate::{Digest, ImageError};

impl ImageStore {
    /// Removes images that were pulled, have no other names and are not in use, until layers of `bytes` are gone or nothing is left to remove.
    /// Those that pods have not used for the longest time go first, those that none ever used last. `None` where an import or a removal is
    /// under way, for which it does not wait.
    ///
    /// # Guarantees
    /// An image that was imported stays: nobody could bring it back. As for [`Self::collect_garbage`], what is held stays.
    ///
    /// # Assumptions
    /// Those of [`Self::collect_garbage`].
    pub fn make_room(&self, bytes: u64, in_use: &HashSet<Digest>) -> Result<Option<Garbage>, ImageError> {
        let Some(lock) = self.disk.try_lock()? else { return Ok(None) };
        let mut total = self.collect(&lock, in_use)?;
        for digest in self.removable(in_use)? {
            if total.bytes >= bytes {
                break;
            }
            let removed = self.holds.still(|held| {
                if held(&digest) {
                    return Ok(false);
                }
                let mut index = self.disk.index()?;
                index.names.retain(|_, had| *had != digest);
                index.forget_origins();
                self.disk.replace_index(&lock, index).map(|()| true)
            })?;
            if removed {
                total += self.collect(&lock, in_use)?;
            }
        }
        Ok(Some(total))
    }

    /// The images that may be removed, in the order in which they should be.
    fn removable(&self, in_use: &HashSet<Digest>) -> Result<Vec<Digest>, ImageError> {
        let index = self.disk.index()?;
        let mut only_pulled: BTreeMap<Digest, bool> = BTreeMap::new();
        for (name, digest) in &index.names {
            *only_pulled.entry(*digest).or_insert(true) &= index.pulled.contains(name);
        }
        let candidates = only_pulled.into_iter().filter(|(digest, pulled)| *pulled && !in_use.contains(digest));
        let released = self.disk.released()?;
        let unused_since = |digest: &Digest| released.iter().position(|had| had == digest).unwrap_or(usize::MAX);
        let mut list: Vec<Digest> = candidates.map(|(digest, _)| digest).collect();
        list.sort_by_key(unused_since);
        Ok(list)
    }
}
