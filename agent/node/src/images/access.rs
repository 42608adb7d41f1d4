//! Which pods of other owners may run an image because it is here (KEP-2535: what was fetched with one pod's login is not given to the next
//! without asking). The machine's owner may run all of them, and so may everybody what the owner brought by hand.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
};

use hearth_image::Digest;
use serde::{Deserialize, Serialize};

use crate::files::{FileError, Format, chain};

const FORMAT: Format = Format { magic: "hearth-agent-image-access", version: 1, max_bytes: 16 << 20 };

/// Who was given an image by its registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Given {
    /// Its manifest: what the name stands for later is another matter.
    manifest: Digest,
    /// Without a login.
    anyone: bool,
    /// With one of theirs: namespaces.
    namespaces: BTreeSet<String>,
}

/// What registries gave to whom, by the image's name.
#[derive(Debug)]
pub(super) struct Access {
    file: PathBuf,
    given: Mutex<BTreeMap<String, Given>>,
}

impl Access {
    pub(super) fn open(file: PathBuf) -> Self {
        let given = FORMAT.read(&file).unwrap_or_else(|error| {
            // The safe side: registries are asked again.
            tracing::error!(error = chain(&error), "it is not known any more whom images were given to");
            None
        });
        Self { file, given: Mutex::new(given.unwrap_or_default()) }
    }

    fn given(&self) -> MutexGuard<'_, BTreeMap<String, Given>> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a namespace of another owner may have an image of this name that was pulled.
    pub(super) fn has(&self, (name, manifest): (&str, &Digest), namespace: &str) -> bool {
        let given = self.given();
        let given = given.get(name).filter(|given| given.manifest == *manifest);
        given.is_some_and(|given| given.anyone || given.namespaces.contains(namespace))
    }

    /// A registry gave an image to `namespace`, or to anyone (`None`). `is_here` says which names are still of use. Blocks on the disk.
    pub(super) fn note(
        &self,
        (name, manifest): (&str, &Digest),
        namespace: Option<&str>,
        is_here: impl Fn(&str) -> bool,
    ) -> Result<(), FileError> {
        let mut given = self.given();
        let mut next = given.clone();
        let fresh = || Given { manifest: *manifest, anyone: false, namespaces: BTreeSet::new() };
        let one = next.entry(name.to_owned()).or_insert_with(fresh);
        if one.manifest != *manifest {
            *one = fresh();
        }
        match namespace {
            None => one.anyone = true,
            Some(namespace) => drop(one.namespaces.insert(namespace.to_owned())),
        }
        if next.get(name) == given.get(name) {
            return Ok(());
        }
        next.retain(|known, _| known == name || is_here(known));
        FORMAT.write(&self.file, &next, false)?;
        *given = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_was_given_is_not_the_others() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("image-access.json");
        let access = Access::open(file.clone());
        let (one, other) = (Digest::of(b"1"), Digest::of(b"2"));
        let (a, b, c) = (("r.example/a:1", &one), ("r.example/b:1", &one), ("r.example/c:1", &one));
        assert!(!access.has(a, "bob"));
        access.note(a, Some("bob"), |_| true).expect("kept");
        access.note(b, None, |_| true).expect("kept");
        let again = Access::open(file);
        for access in [&access, &again] {
            assert!(access.has(a, "bob") && !access.has(a, "carol"));
            assert!(access.has(b, "carol"));
            assert!(!access.has(("r.example/a:2", &one), "bob"), "another name");
            assert!(!access.has(("r.example/b:1", &other), "bob"), "the name stands for something else now");
        }
        again.note(c, Some("bob"), |name| name != "r.example/a:1").expect("kept");
        assert!(!again.has(a, "bob"), "it is gone from the device");
        assert!(again.has(b, "bob") && again.has(c, "bob"));
        again.note(("r.example/b:1", &other), Some("carol"), |_| true).expect("kept");
        assert!(!again.has(b, "bob") && !again.has(("r.example/b:1", &other), "bob"));
    }
}
