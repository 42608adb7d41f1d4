//! Which user and group ids of the host each pod has: ranges of 65,536 that no two pods share, kept on disk so that an
//! adopted pod keeps its own. Not synced: pods do not survive a power cut either, and what they wrote into volumes has the
//! volumes' own ids.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use hearth_runtime::{IDS_PER_POD, IdMap};

use crate::files::{FileError, Format};

const FORMAT: Format = Format { magic: "hearth-agent-ids", version: 1, max_bytes: 1 << 20 };

/// The first id that pods get: above those of people, services and `/etc/subuid`'s usual first ranges.
const FIRST_BASE: u32 = 524_288;
/// Ranges from there that fit below 2^31, which some programs take for negative numbers.
const RANGES: u32 = (1 << 31) / IDS_PER_POD - FIRST_BASE / IDS_PER_POD;
/// Ranges that one instance may use: far more pods than a device takes. Each instance has a stretch that begins at a range of
/// its own, chosen by its name, so that two on one machine do not share ids: they would only where their first ranges are
/// fewer apart than they have pods (for 20 pods each, one pair of instances in 800).
const STRETCH: u32 = 1024;

/// Why there are no ids.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IdError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("all {STRETCH} ranges of user ids are taken by pods of this device")]
    Exhausted,
}

/// Gives ranges of ids to pods.
#[derive(Debug)]
pub(crate) struct IdRanges {
    path: PathBuf,
    first: u32,
    taken: Mutex<BTreeMap<String, u32>>,
}

impl IdRanges {
    pub(crate) fn open(path: PathBuf, instance: &str) -> Self {
        let taken = FORMAT.read(&path).unwrap_or_else(|error| {
            // As after a power cut. Living pods tell theirs, and what dead ones wrote is shifted to its volume's own ids: nothing is lost.
            tracing::warn!(
                error = crate::files::chain(&error),
                "the user ids of pods cannot be read; they are given anew"
            );
            None
        });
        let taken: BTreeMap<String, u32> = taken.unwrap_or_default();
        // FNV-1a: a stable spread is wanted, not a secret one.
        let hash =
            instance.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        let first = hash % (RANGES - STRETCH);
        Self { path, first, taken: Mutex::new(taken) }
    }

    /// The ids of a pod: those it has, or new ones, written down before they are handed out. Blocks on the disk.
    pub(crate) fn of(&self, uid: &str) -> Result<IdMap, IdError> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let map = |range: u32| IdMap { host_base: FIRST_BASE + range * IDS_PER_POD, size: IDS_PER_POD };
        if let Some(range) = taken.get(uid) {
            return Ok(map(*range));
        }
        let used: std::collections::HashSet<u32> = taken.values().copied().collect();
        let free = (self.first..self.first + STRETCH).find(|range| !used.contains(range)).ok_or(IdError::Exhausted)?;
        taken.insert(uid.to_owned(), free);
        if let Err(error) = FORMAT.write(&self.path, &*taken, false) {
            taken.remove(uid);
            return Err(error.into());
        }
        Ok(map(free))
    }

    /// Notes what a living pod has, where the file was lost. Blocks on the disk.
    pub(crate) fn claim(&self, uid: &str, had: IdMap) -> Result<(), FileError> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let range = had.host_base.saturating_sub(FIRST_BASE) / IDS_PER_POD;
        if taken.get(uid) == Some(&range) {
            return Ok(());
        }
        taken.insert(uid.to_owned(), range);
        FORMAT.write(&self.path, &*taken, false)
    }

    /// Frees the ids of a pod of which nothing is left. Blocks on the disk.
    pub(crate) fn free(&self, uid: &str) -> Result<(), FileError> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.remove(uid).is_some() { FORMAT.write(&self.path, &*taken, false) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_share_no_ids_and_keep_theirs() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("ids.json");
        let ids = IdRanges::open(path.clone(), "abcd");
        let (a, b) = (ids.of("a").expect("ids"), ids.of("b").expect("ids"));
        assert!(a.host_base.abs_diff(b.host_base) >= IDS_PER_POD);
        assert!(a.host_base >= FIRST_BASE && i32::try_from(a.host_base + a.size).is_ok());
        let again = IdRanges::open(path.clone(), "abcd");
        assert_eq!(again.of("b").expect("ids"), b);
        again.free("a").expect("freed");
        assert_eq!(again.of("c").expect("ids"), a, "a freed range is used again");
        let lost = IdMap { host_base: b.host_base + IDS_PER_POD, size: IDS_PER_POD };
        again.claim("d", lost).expect("claimed");
        assert_ne!(again.of("e").expect("ids"), lost);
        std::fs::write(&path, b"").expect("a power cut");
        let after = IdRanges::open(path, "abcd");
        after.claim("b", b).expect("claimed");
        assert_ne!(after.of("f").expect("ids"), b, "what lives keeps its own");
    }

    #[test]
    fn instances_have_stretches_of_their_own() {
        let dir = tempfile::tempdir().expect("a directory");
        let of = |name: &str| IdRanges::open(dir.path().join(name), name).of("p").expect("ids").host_base;
        let mut bases: Vec<u32> = (0..40).map(|n| of(&format!("instance{n}"))).collect();
        bases.sort_unstable();
        bases.dedup();
        assert_eq!(bases.len(), 40);
    }
}
