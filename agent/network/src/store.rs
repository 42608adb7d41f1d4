//! What outlives the agent: the prefixes of this instance, and which pod has which number.
//!
//! Several files, since they have different lives. `prefixes.json` is written once and synced: it must survive a power cut, so
//! that pods keep their IPv6 prefix. `pods.json` changes with every pod and is not synced: pods do not survive a power cut
//! either, and home devices boot from SD cards. So does `services.json` with every Service: a range that is lost is chosen anew, and pods
//! are told of it when they are adopted.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::NetworkError;
use crate::names::{FIRST_POD_INDEX, LAST_POD_INDEX};
use crate::prefix::{POD_PREFIX4_LEN, POD_PREFIX6_LEN, Prefix, SERVICE_PREFIX4_LEN};
use crate::services::{Numbers, Range};

/// Largest state file that is read: 4,096 pods with the longest uids take about 700 KiB.
const MAX_FILE_BYTES: u64 = 2 * 1024 * 1024;
/// Most pods of one instance: far above what a home device runs, and one page of a link dump's patience.
pub(crate) const MAX_PODS: usize = 4096;
const VERSION: u32 = 1;
const PREFIXES: (&str, &str) = ("prefixes.json", "hearth-network-prefixes");
const FORWARDING: (&str, &str) = ("forwarding.json", "hearth-network-forwarding");
const PODS: (&str, &str) = ("pods.json", "hearth-network-pods");
const SERVICES: (&str, &str) = ("services.json", "hearth-network-services");

/// What is looked at first: the rest of a file of another version may be anything.
#[derive(Deserialize)]
struct Head {
    magic: String,
    version: u32,
}

#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    magic: String,
    version: u32,
    #[serde(flatten)]
    body: T,
}

/// The prefixes that pods live in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Prefixes {
    pub(crate) ipv4: Prefix,
    pub(crate) ipv6: Prefix,
}

#[derive(Serialize, Deserialize)]
struct PrefixesFile {
    ipv4: String,
    ipv6: String,
}

/// Which pod has which number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Allocations {
    pods: BTreeMap<String, u16>,
    used: BTreeSet<u16>,
    /// Where the search for a free number begins: numbers are used in turn, so that an address does not pass to another
    /// pod while peers or conntrack still remember its last owner.
    next: u16,
}

#[derive(Serialize, Deserialize)]
struct PodsFile {
    next: u16,
    pods: BTreeMap<String, PodEntry>,
}

#[derive(Serialize, Deserialize)]
struct ServicesFile {
    ipv4: String,
    ipv6: String,
    next: u16,
    services: BTreeMap<String, u16>,
}

/// Whose doing it is that the host forwards packets, by family.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Forwarding {
    /// The start of the machine for which this holds.
    pub(crate) boot: String,
    /// Whether this instance enabled it.
    pub(crate) ours4: bool,
    pub(crate) ours6: bool,
}

#[derive(Serialize, Deserialize)]
struct PodEntry {
    index: u16,
}

impl Allocations {
    /// As they were saved, without what no version writes.
    fn of(next: u16, saved: impl IntoIterator<Item = (String, u16)>) -> Self {
        let mut allocations = Self { next, ..Self::default() };
        for (uid, index) in saved.into_iter().take(MAX_PODS) {
            if (FIRST_POD_INDEX..=LAST_POD_INDEX).contains(&index) && allocations.used.insert(index) {
                allocations.pods.insert(uid, index);
            }
        }
        allocations
    }

    pub(crate) fn get(&self, uid: &str) -> Option<u16> {
        self.pods.get(uid).copied()
    }

    pub(crate) fn holds(&self, index: u16) -> bool {
        self.used.contains(&index)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, u16)> {
        self.pods.iter().map(|(uid, index)| (uid.as_str(), *index))
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.pods.is_empty()
    }

    /// The pod's number: the one it has, else `wanted` where that is free, else the next free one.
    pub(crate) fn allocate(&mut self, uid: &str, wanted: Option<u16>) -> Result<u16, NetworkError> {
        if let Some(index) = self.get(uid) {
            return Ok(index);
        }
        if self.pods.len() >= MAX_PODS {
            return Err(NetworkError::Exhausted { limit: MAX_PODS });
        }
        let valid = FIRST_POD_INDEX..=LAST_POD_INDEX;
        let wanted = wanted.filter(|w| valid.contains(w) && !self.holds(*w));
        let next = self.next.clamp(FIRST_POD_INDEX, LAST_POD_INDEX);
        let index = wanted
            .or_else(|| (next..=LAST_POD_INDEX).chain(FIRST_POD_INDEX..next).find(|i| !self.holds(*i)))
            .ok_or(NetworkError::Exhausted { limit: MAX_PODS })?;
        self.pods.insert(uid.to_owned(), index);
        self.used.insert(index);
        self.next = if index == LAST_POD_INDEX { FIRST_POD_INDEX } else { index + 1 };
        Ok(index)
    }

    pub(crate) fn free(&mut self, uid: &str) -> Option<u16> {
        let index = self.pods.remove(uid)?;
        self.used.remove(&index);
        Some(index)
    }
}

/// The directory of the state files.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    dir: PathBuf,
}

impl Store {
    /// Opens the directory, made where it is missing.
    pub(crate) fn open(dir: &Path) -> Result<Self, NetworkError> {
        use std::os::unix::fs::DirBuilderExt as _;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|source| NetworkError::State {
            verb: "create",
            path: dir.to_owned(),
            source,
        })?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// The prefixes, where they were chosen before.
    pub(crate) fn prefixes(&self) -> Result<Option<Prefixes>, NetworkError> {
        let Some(file) = self.read::<PrefixesFile>(PREFIXES)? else { return Ok(None) };
        let ipv4 = file.ipv4.parse().ok().filter(|p: &Prefix| p.address().is_ipv4() && p.len() == POD_PREFIX4_LEN);
        let ipv6 = file.ipv6.parse().ok().filter(|p: &Prefix| p.address().is_ipv6() && p.len() == POD_PREFIX6_LEN);
        match (ipv4, ipv6) {
            (Some(ipv4), Some(ipv6)) => Ok(Some(Prefixes { ipv4, ipv6 })),
            _ => Err(self.unusable(PREFIXES, "its prefixes are not ones that this version writes")),
        }
    }

    /// Keeps the prefixes for good: durable when this returns.
    pub(crate) fn save_prefixes(&self, prefixes: Prefixes) -> Result<(), NetworkError> {
        let body = PrefixesFile { ipv4: prefixes.ipv4.to_string(), ipv6: prefixes.ipv6.to_string() };
        self.write(PREFIXES, body, true)
    }

    /// What this instance enabled since the machine started; nothing where the file is of another start, or unreadable.
    pub(crate) fn forwarding(&self, boot: &str) -> Forwarding {
        let nothing = Forwarding { boot: boot.to_owned(), ..Forwarding::default() };
        match self.read_unsynced::<Forwarding>(FORWARDING) {
            Ok(Some(file)) if file.boot == boot => file,
            Ok(_) => nothing,
            Err(error) => {
                tracing::warn!(%error, "it is forgotten that forwarding is of this instance's doing");
                nothing
            }
        }
    }

    /// Saves it; it is worth nothing after a power cut.
    pub(crate) fn save_forwarding(&self, forwarding: &Forwarding) -> Result<(), NetworkError> {
        self.write(FORWARDING, forwarding, false)
    }

    /// The allocations as last saved. A file that a power cut cut short counts as none: no pod survived that either.
    pub(crate) fn allocations(&self) -> Result<Allocations, NetworkError> {
        let file = match self.read_unsynced::<PodsFile>(PODS) {
            Ok(Some(file)) => file,
            Ok(None) => return Ok(Allocations::default()),
            Err(NetworkError::StateFormat { path, detail }) if !detail.contains("version") => {
                tracing::warn!(?path, detail, "pod addresses are forgotten; running pods get theirs back when adopted");
                return Ok(Allocations::default());
            }
            Err(e) => return Err(e),
        };
        Ok(Allocations::of(file.next, file.pods.into_iter().map(|(uid, entry)| (uid, entry.index))))
    }

    /// The range of Services and their numbers, where they were chosen before and the file is whole.
    pub(crate) fn services(&self) -> Result<Option<(Range, Numbers)>, NetworkError> {
        let file = match self.read_unsynced::<ServicesFile>(SERVICES) {
            Ok(Some(file)) => file,
            Ok(None) => return Ok(None),
            Err(NetworkError::StateFormat { path, detail }) if !detail.contains("version") => {
                tracing::warn!(?path, detail, "the addresses of Services are forgotten; they get new ones");
                return Ok(None);
            }
            Err(e) => return Err(e),
        };
        let ipv4 = file.ipv4.parse().ok().filter(|p: &Prefix| p.address().is_ipv4() && p.len() == SERVICE_PREFIX4_LEN);
        let ipv6 = file.ipv6.parse().ok().filter(|p: &Prefix| p.address().is_ipv6() && p.len() == POD_PREFIX6_LEN);
        let range = ipv4.zip(ipv6).map(|(ipv4, ipv6)| Range { ipv4, ipv6 });
        Ok(range.map(|range| (range, Numbers(Allocations::of(file.next, file.services)))))
    }

    /// Saves them; they survive the process, not a power cut.
    pub(crate) fn save_services(&self, range: Range, numbers: &Numbers) -> Result<(), NetworkError> {
        let services = numbers.0.iter().map(|(uid, index)| (uid.to_owned(), index)).collect();
        let (ipv4, ipv6) = (range.ipv4.to_string(), range.ipv6.to_string());
        self.write(SERVICES, ServicesFile { ipv4, ipv6, next: numbers.0.next, services }, false)
    }

    /// Saves the allocations; they survive the process, not a power cut.
    pub(crate) fn save_allocations(&self, allocations: &Allocations) -> Result<(), NetworkError> {
        let pods = allocations.iter().map(|(uid, index)| (uid.to_owned(), PodEntry { index })).collect();
        self.write(PODS, PodsFile { next: allocations.next, pods }, false)
    }

    fn unusable(&self, (name, _): (&str, &str), detail: impl Into<String>) -> NetworkError {
        NetworkError::StateFormat { path: self.dir.join(name), detail: detail.into() }
    }

    /// As [`Self::read`], of a file whose content a power cut may have kept from the disk: it is then empty.
    fn read_unsynced<T: DeserializeOwned>(&self, which: (&str, &str)) -> Result<Option<T>, NetworkError> {
        if fs::metadata(self.dir.join(which.0)).is_ok_and(|found| found.len() == 0) {
            return Ok(None);
        }
        self.read(which)
    }

    fn read<T: DeserializeOwned>(&self, which: (&str, &str)) -> Result<Option<T>, NetworkError> {
        let path = self.dir.join(which.0);
        let failed = |source| NetworkError::State { verb: "read", path: path.clone(), source };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed(e)),
        };
        let mut bytes = Vec::new();
        file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > MAX_FILE_BYTES {
            return Err(self.unusable(which, "it is larger than 2 MiB; remove it"));
        }
        let broken = |e: serde_json::Error| self.unusable(which, format!("{e}; remove it to start afresh"));
        let head: Head = serde_json::from_slice(&bytes).map_err(broken)?;
        if head.magic != which.1 {
            return Err(self.unusable(which, format!("its magic is {:?}, not {:?}; remove it", head.magic, which.1)));
        }
        if head.version != VERSION {
            let detail =
                format!("it has format version {}, this program knows {VERSION}; run a newer one", head.version);
            return Err(self.unusable(which, detail));
        }
        let envelope: Envelope<T> = serde_json::from_slice(&bytes).map_err(broken)?;
        Ok(Some(envelope.body))
    }

    fn write<T: Serialize>(&self, (name, magic): (&str, &str), body: T, sync: bool) -> Result<(), NetworkError> {
        let path = self.dir.join(name);
        let temporary = self.dir.join(format!(".{name}.new"));
        let failed = |source| NetworkError::State { verb: "write", path: path.clone(), source };
        let envelope = Envelope { magic: magic.to_owned(), version: VERSION, body };
        let bytes = serde_json::to_vec(&envelope).map_err(|e| failed(e.into()))?;
        let mut file = File::create(&temporary).map_err(failed)?;
        file.write_all(&bytes).map_err(failed)?;
        if sync {
            file.sync_all().map_err(failed)?;
        }
        fs::rename(&temporary, &path).map_err(failed)?;
        if sync {
            File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(failed)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("a/b")).unwrap();
        (dir, store)
    }

    #[test]
    fn what_a_power_cut_kept_from_the_disk_counts_as_absent() {
        let (_dir, store) = store();
        fs::write(store.dir.join(PODS.0), "").unwrap();
        assert_eq!(store.allocations().unwrap().iter().count(), 0);
        fs::write(store.dir.join(PREFIXES.0), "").unwrap();
        assert!(store.read::<serde_json::Value>(PREFIXES).is_err(), "what is synced is never empty");
    }

    #[test]
    fn what_is_saved_is_what_is_read() {
        let (_dir, store) = store();
        assert_eq!(store.prefixes().unwrap(), None);
        let prefixes = Prefixes { ipv4: "10.64.128.0/17".parse().unwrap(), ipv6: "fd00:1:2:3::/64".parse().unwrap() };
        store.save_prefixes(prefixes).unwrap();
        assert_eq!(store.prefixes().unwrap(), Some(prefixes));
        let mut allocations = Allocations::default();
        for uid in ["a", "b", "c"] {
            allocations.allocate(uid, None).unwrap();
        }
        allocations.free("b");
        store.save_allocations(&allocations).unwrap();
        assert_eq!(store.allocations().unwrap(), allocations);
    }

    #[test]
    fn forwarding_is_of_one_start_of_the_machine() {
        let (_dir, store) = store();
        let ours = Forwarding { boot: "a".into(), ours4: true, ours6: false };
        store.save_forwarding(&ours).unwrap();
        assert_eq!(store.forwarding("a"), ours);
        assert_eq!(store.forwarding("b"), Forwarding { boot: "b".into(), ..Forwarding::default() });
    }

    #[test]
    fn a_torn_pods_file_is_empty_but_a_newer_one_is_refused() {
        let (_dir, store) = store();
        fs::write(store.dir.join("pods.json"), b"").unwrap();
        assert!(store.allocations().unwrap().is_empty());
        fs::write(store.dir.join("pods.json"), br#"{"magic":"hearth-network-pods","version":2}"#).unwrap();
        assert!(store.allocations().unwrap_err().to_string().contains("format version 2"));
        fs::write(store.dir.join("prefixes.json"), br#"{"magic":"x","version":1}"#).unwrap();
        assert!(store.prefixes().unwrap_err().to_string().contains("magic"));
        let bad = br#"{"magic":"hearth-network-prefixes","version":1,"ipv4":"8.8.0.0/16","ipv6":"fd00::/64"}"#;
        fs::write(store.dir.join("prefixes.json"), bad).unwrap();
        assert!(store.prefixes().is_err());
    }

    #[test]
    fn a_freed_number_is_not_the_next_one_used() {
        let mut allocations = Allocations::default();
        let first = allocations.allocate("a", None).unwrap();
        allocations.free("a");
        assert_ne!(allocations.allocate("b", None).unwrap(), first);
        assert_eq!(allocations.allocate("c", Some(first)).unwrap(), first);
        assert_ne!(allocations.allocate("d", Some(first)).unwrap(), first);
    }

    #[test]
    fn pods_are_bounded() {
        let mut allocations = Allocations::default();
        for i in 0..MAX_PODS {
            allocations.allocate(&i.to_string(), None).unwrap();
        }
        assert!(matches!(allocations.allocate("one more", None), Err(NetworkError::Exhausted { .. })));
        assert!(allocations.allocate("7", None).is_ok());
    }

    proptest! {
        #[test]
        fn no_two_pods_share_a_number(steps in proptest::collection::vec((0u8..30, any::<bool>(), proptest::option::of(0u16..40)), 0..200)) {
            let mut allocations = Allocations::default();
            for (pod, add, wanted) in steps {
                if add { allocations.allocate(&pod.to_string(), wanted).unwrap(); } else { allocations.free(&pod.to_string()); }
                let numbers: BTreeSet<u16> = allocations.iter().map(|(_, i)| i).collect();
                prop_assert_eq!(numbers.len(), allocations.iter().count());
                prop_assert_eq!(&numbers, &allocations.used);
                prop_assert!(numbers.iter().all(|i| (FIRST_POD_INDEX..=LAST_POD_INDEX).contains(i)));
            }
        }

        #[test]
        fn no_file_makes_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let (_dir, store) = store();
            fs::write(store.dir.join("pods.json"), &bytes).unwrap();
            fs::write(store.dir.join("prefixes.json"), &bytes).unwrap();
            fs::write(store.dir.join("forwarding.json"), &bytes).unwrap();
            let _ = (store.allocations(), store.prefixes(), store.forwarding("boot"));
        }
    }
}
