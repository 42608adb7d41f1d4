//! What is kept on disk of each pod, so that an agent that starts again knows what it did.

use std::path::{Path, PathBuf};

use hearth_pod::Record;
use hearth_types::{Object, object::MAX_OBJECT_BYTES};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::files::{self, FileError, Format};

const FORMAT: Format = Format { magic: "hearth-agent-pod", version: 1, max_bytes: 2 * MAX_OBJECT_BYTES as u64 };

/// A pod as it was known last: also how to take it down once it is no longer desired.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct StoredPod {
    /// The object.
    pub(crate) object: Value,
    /// What was observed.
    pub(crate) record: Record,
}

impl StoredPod {
    pub(crate) fn object(&self) -> Option<Object> {
        Object::from_value(self.object.clone()).ok()
    }

    /// Blocks.
    pub(crate) fn write(&self, dir: &Path, uid: &str, durable: bool) -> Result<(), FileError> {
        FORMAT.write(&path(dir, uid), self, durable)
    }
}

fn path(dir: &Path, uid: &str) -> PathBuf {
    dir.join(format!("{uid}.json"))
}

/// All that is kept; what cannot be read is told and skipped. Blocks.
pub(crate) fn load_all(dir: &Path) -> Vec<(String, StoredPod)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let Some(uid) = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".json")) else { continue };
        if entry.metadata().is_ok_and(|found| found.len() == 0) {
            // Most are not synced, to be kind to flash: what they say of a pod is found out anew.
            tracing::info!(uid, "a pod's record had not reached the disk when the power was cut");
            continue;
        }
        match FORMAT.read::<StoredPod>(&path) {
            Ok(Some(stored)) => all.push((uid.to_owned(), stored)),
            Ok(None) => {}
            Err(error) => {
                tracing::error!(error = files::chain(&error), "a pod's record cannot be read: its past is lost")
            }
        }
    }
    all
}

/// Blocks.
pub(crate) fn remove(dir: &Path, uid: &str) -> Result<(), FileError> {
    files::remove(&path(dir, uid))
}
