//! What the owner says of when their device counts as short, read anew when the file changes.
//!
//! `<data-dir>/eviction.yaml`, in the words of the kubelet's own configuration (`KubeletConfiguration`); what is not said is as the kubelet
//! has it, with 5 GiB for the most that is to be free of a disk, and `0%` is no threshold:
//!
//! ```yaml
//! evictionHard: {memory.available: 100Mi, nodefs.available: 10%, nodefs.inodesFree: 5%, imagefs.available: 15%, imagefs.inodesFree: 5%}
//! evictionMinimumReclaim: {nodefs.available: 500Mi}
//! evictionPressureTransitionPeriod: 5m
//! ```

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use hearth_pod::pressure::{BadSetting, Settings};
use serde::Deserialize;

use crate::{
    FileError,
    files::{self, Stamp, chain},
};

/// The largest file that is read, in bytes: far more than there is to say.
const MAX_BYTES: u64 = 64 << 10;

/// Why what the owner says cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum SettingsError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{path:?} is not valid: {reason}")]
    Malformed { path: PathBuf, reason: String },
    #[error("{path:?} is not valid")]
    Bad {
        path: PathBuf,
        #[source]
        source: BadSetting,
    },
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default, rename = "evictionHard")]
    hard: BTreeMap<String, String>,
    #[serde(default, rename = "evictionMinimumReclaim")]
    minimum_reclaim: BTreeMap<String, String>,
    #[serde(default, rename = "evictionPressureTransitionPeriod")]
    transition_period: Option<String>,
}

/// The file, and what was made of it.
#[derive(Debug)]
pub(super) struct Source {
    path: PathBuf,
    read: Option<Stamp>,
    settings: Settings,
}

impl Source {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, read: None, settings: Settings::default() }
    }

    /// What holds now. A file that cannot be used changes nothing, and is told of once. Blocks for a moment.
    pub(super) fn get(&mut self) -> &Settings {
        let stamp = files::stamp(&self.path);
        if self.read != Some(stamp) {
            self.read = Some(stamp);
            match read(&self.path) {
                Ok(settings) => self.settings = settings,
                Err(error) => tracing::error!(
                    error = chain(&error),
                    "what the owner says of evictions is not used: what held before holds on"
                ),
            }
        }
        &self.settings
    }
}

/// What a file says; where there is none, the kubelet's own. Blocks for a moment.
pub(super) fn read(path: &Path) -> Result<Settings, SettingsError> {
    let Some(bytes) = files::read_bounded(path, MAX_BYTES)? else { return Ok(Settings::default()) };
    let malformed =
        |error: serde_yaml_ng::Error| SettingsError::Malformed { path: path.to_owned(), reason: error.to_string() };
    let document: Option<Document> = serde_yaml_ng::from_slice(&bytes).map_err(malformed)?;
    let Document { hard, minimum_reclaim, transition_period } = document.unwrap_or_default();
    let settings = Settings::default().with(&hard, &minimum_reclaim, transition_period.as_deref());
    settings.map_err(|source| SettingsError::Bad { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use hearth_pod::pressure::Signal;

    use super::*;

    #[test]
    fn what_the_owner_says_holds_as_soon_as_it_is_said_and_what_makes_no_sense_changes_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("eviction.yaml");
        let mut source = Source::new(path.clone());
        let mut nodefs = |text: Option<&str>| {
            if let Some(text) = text {
                files::replace(&path, text.as_bytes(), false).expect("written");
            }
            source.get().threshold(Signal::NodefsAvailable, 1000)
        };
        assert_eq!(nodefs(None), 100);
        assert_eq!(nodefs(Some("evictionHard: {nodefs.available: 2%}\nevictionPressureTransitionPeriod: 10s\n")), 20);
        assert_eq!(nodefs(Some("evictionHard: {nodefs.available: 2x%}\n")), 20, "no amount");
        assert_eq!(nodefs(Some("evictionSoft: {}\n")), 20, "not supported");
        assert_eq!(nodefs(Some("evictionHard: [\n")), 20, "no YAML");
        assert_eq!(nodefs(Some("")), 100, "nothing is said");
    }
}
