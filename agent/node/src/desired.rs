//! What the region last said that this device should run, and the guard over it: what is accepted is on the disk before
//! anything is done about it, and what another incarnation or an older region says deletes nothing.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    path::{Path, PathBuf},
};

use hearth_proto::v1;
use hearth_types::{
    GroupKind, Incarnation, Object, ObjectKey, Revision,
    kinds::ACCEPT_RESTORED,
    object::{MAX_OBJECT_BYTES, canonical},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};

use crate::files::{FileError, Format};

/// The most objects a device takes: hundreds of pods with all that they use.
pub(crate) const MAX_OBJECTS: usize = 8192;
/// The largest file: what one message of the session can carry, twice.
const FORMAT: Format = Format { magic: "hearth-agent-desired", version: 1, max_bytes: 128 << 20 };

/// The kinds that mean something to a device. Others are skipped, so that a newer region may send more.
const KINDS: [GroupKind; 8] = [
    GroupKind::POD,
    GroupKind::PERSISTENT_VOLUME_CLAIM,
    GroupKind::CONFIG_MAP,
    GroupKind::SECRET,
    GroupKind::ROUTE,
    GroupKind::SERVICE,
    GroupKind::DEVICE,
    GroupKind::CERTIFICATE,
];

/// Objects by what names them.
pub(crate) type Objects = BTreeMap<ObjectKey, Object>;

/// This device's own Device.
pub(crate) fn device(objects: &Objects) -> Option<&Object> {
    objects.values().find(|object| *object.kind() == GroupKind::DEVICE)
}

/// Why what the region says is not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error(
        "the region says that it is incarnation {offered}, and this device belongs to {known}: nothing is changed or \
         deleted on its word; the device keeps running what it has"
    )]
    OtherIncarnation { known: Incarnation, offered: Incarnation },
    #[error(
        "the region is at revision {offered}, and this device has seen {known}: the region has lost data or answers from \
         an old copy; nothing is changed or deleted on its word"
    )]
    Older { known: Revision, offered: Revision },
    #[error("the region sends changes before it has said what there is")]
    NoBase,
    #[error("the region sends more than {MAX_OBJECTS} objects")]
    TooMany,
}

impl Refusal {
    /// A word for the metric.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::OtherIncarnation { .. } => "incarnation",
            Self::Older { .. } => "revision",
            Self::NoBase => "no_base",
            Self::TooMany => "too_many",
        }
    }
}

/// What changed, and whether any of it has to outlive a power cut.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Change {
    /// Objects that are new or another.
    pub(crate) changed: Vec<ObjectKey>,
    /// Objects that vanished, or were replaced by a namesake, as they were.
    pub(crate) vanished: Vec<Object>,
    /// Something beyond statuses and revisions changed.
    pub(crate) matters: bool,
    /// Something that the region had forgotten is its own again: it knows no status of it.
    pub(crate) returned: bool,
    /// How many objects are kept from now on that the region has forgotten.
    pub(crate) kept: usize,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    incarnation: Incarnation,
    revision: Revision,
    objects: Vec<Box<RawValue>>,
    #[serde(default)]
    lost: Lost,
}

/// What is desired, in memory and on disk.
#[derive(Debug)]
pub(crate) struct Desired {
    path: PathBuf,
    incarnation: Incarnation,
    revision: Revision,
    objects: Objects,
    /// The disk had it, or the region said it.
    known: bool,
    /// The session now has sent everything.
    based: bool,
    lost: Lost,
}

/// What is remembered of a region that lost writes.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Lost {
    /// It has not said since what it still has.
    unsettled: bool,
    /// What this device had seen.
    seen: Revision,
    /// What the region has lost and this device keeps.
    kept: BTreeSet<ObjectKey>,
}

impl Desired {
    /// Loads what was accepted last. A file that is damaged is told and left alone: until the region says again what
    /// should run, nothing that runs is stopped.
    pub(crate) fn load(path: PathBuf, incarnation: &Incarnation) -> Self {
        let mut desired = Self {
            path,
            incarnation: incarnation.clone(),
            revision: Revision::ZERO,
            objects: Objects::new(),
            known: false,
            based: false,
            lost: Lost::default(),
        };
        match FORMAT.read::<Stored>(&desired.path) {
            Ok(None) => {}
            Ok(Some(stored)) => {
                desired.known = true;
                desired.incarnation = stored.incarnation;
                desired.revision = stored.revision;
                desired.lost = stored.lost;
                for raw in stored.objects {
                    match Object::from_json(raw.get().as_bytes()) {
                        Ok(object) => drop(desired.objects.insert(object.key().clone(), object)),
                        Err(error) => tracing::error!(%error, "an object on this device's disk cannot be read"),
                    }
                }
            }
            Err(error) => tracing::error!(
                error = crate::files::chain(&error),
                "what this device should run cannot be read from its disk: it waits for its region and stops nothing"
            ),
        }
        desired
    }

    pub(crate) fn objects(&self) -> &Objects {
        &self.objects
    }

    pub(crate) fn incarnation(&self) -> &Incarnation {
        &self.incarnation
    }

    pub(crate) fn revision(&self) -> Revision {
        self.revision
    }

    /// Whether it is known what should run. If not, what runs must not be stopped for not being desired.
    pub(crate) fn is_known(&self) -> bool {
        self.known
    }

    /// A new session begins: it has to say everything first.
    pub(crate) fn begin_session(&mut self) {
        self.based = false;
    }

    /// The region says that it has lost writes which this device was told of: a server was set up from an old copy of its disk.
    /// From then on it is believed in all but what it no longer mentions: that is kept. `false` where it is another incarnation, which
    /// is not believed at all.
    pub(crate) fn region_lost_writes(&mut self, incarnation: &Incarnation) -> bool {
        if *incarnation != self.incarnation || !self.known {
            return false;
        }
        (self.lost.unsettled, self.lost.seen) = (true, self.revision);
        self.revision = Revision::ZERO;
        true
    }

    /// The region was made anew by its operator, as this incarnation. From then on that one is believed, in all but what it does not mention: it
    /// has lost everything, and gets back from its devices what they have. `false` where that is known already.
    pub(crate) fn region_recovered(&mut self, incarnation: &Incarnation) -> bool {
        if *incarnation == self.incarnation {
            return false;
        }
        self.incarnation = incarnation.clone();
        if self.known {
            (self.lost.unsettled, self.lost.seen) = (true, self.revision);
        }
        self.revision = Revision::ZERO;
        true
    }

    /// Takes what the region says, unless it must not be believed. Nothing is written yet: see [`Self::file`].
    pub(crate) fn accept(&mut self, from: &Incarnation, message: &v1::Desired) -> Result<Change, Refusal> {
        let offered = Revision(message.revision);
        if !self.incarnation.as_str().is_empty() && *from != self.incarnation {
            return Err(Refusal::OtherIncarnation { known: self.incarnation.clone(), offered: from.clone() });
        }
        if offered < self.revision {
            return Err(Refusal::Older { known: self.revision, offered });
        }
        if !message.full && !self.based {
            return Err(Refusal::NoBase);
        }
        if message.upserts.len() > MAX_OBJECTS || self.after(message) > MAX_OBJECTS {
            return Err(Refusal::TooMany);
        }
        let mut change = Change::default();
        let mut named = HashSet::new();
        for sent in &message.upserts {
            let Some(key) = known_key(&sent.api_version, &sent.kind, &sent.namespace, &sent.name) else { continue };
            // Also what cannot be read is still wanted: it did not vanish.
            named.insert(key.clone());
            match read(&key, &sent.json) {
                Ok(object) => self.upsert(object, &mut change),
                Err(why) => tracing::error!(object = %key, why, "the region sent an object that cannot be read"),
            }
        }
        let kept = self.lost.kept.len();
        self.lost.kept.retain(|key| !named.contains(key));
        change.returned = self.lost.kept.len() < kept;
        change.matters |= change.returned;
        if message.full {
            let gone: Vec<ObjectKey> = self.objects.keys().filter(|key| !named.contains(*key)).cloned().collect();
            if std::mem::take(&mut self.lost.unsettled) {
                change.kept = gone.len();
                change.matters = true;
                self.lost.kept.extend(gone.iter().cloned());
            }
            for key in gone.iter().filter(|key| !self.lost.kept.contains(key)).cloned().collect::<Vec<_>>() {
                self.remove(&key, &mut change);
            }
        }
        if self.may_forget() {
            for key in std::mem::take(&mut self.lost.kept) {
                self.remove(&key, &mut change);
            }
        }
        for gone in &message.deletes {
            let kind = GroupKind::from_api_version(&format!("{}/", gone.group), &gone.kind);
            self.remove(&ObjectKey::new(kind, &gone.namespace, &gone.name), &mut change);
        }
        if self.incarnation.as_str().is_empty() || !self.known {
            change.matters = true;
        }
        self.incarnation = from.clone();
        self.revision = offered;
        self.known = true;
        self.based |= message.full;
        Ok(change)
    }

    /// Whether a person said on this device's Device that what the region lost need not be kept.
    fn may_forget(&self) -> bool {
        let seen = self.lost.seen.0.to_string();
        let said = |object: &Object| {
            let value = object.value();
            let annotations = value.pointer("/metadata/annotations");
            annotations.and_then(|all| all.get(ACCEPT_RESTORED)).is_some_and(|said| *said == seen)
        };
        !self.lost.kept.is_empty() && device(&self.objects).is_some_and(said)
    }

    /// What this device had seen when its region had lost writes.
    pub(crate) fn seen_before_loss(&self) -> Revision {
        self.lost.seen
    }

    fn after(&self, message: &v1::Desired) -> usize {
        if message.full { message.upserts.len() } else { self.objects.len() + message.upserts.len() }
    }

    fn upsert(&mut self, object: Object, change: &mut Change) {
        let key = object.key().clone();
        match self.objects.insert(key.clone(), object.clone()) {
            Some(old) if old.json() == object.json() => return,
            Some(old) => {
                change.matters |= essence(&old) != essence(&object);
                if old.uid() != object.uid() {
                    change.vanished.push(old);
                }
            }
            None => change.matters = true,
        }
        change.changed.push(key);
    }

    fn remove(&mut self, key: &ObjectKey, change: &mut Change) {
        if let Some(old) = self.objects.remove(key) {
            change.vanished.push(old);
            change.matters = true;
        }
    }

    /// The file to write, as it should be now.
    pub(crate) fn file(&self) -> DesiredFile {
        let objects = self.objects.values().cloned().collect();
        DesiredFile {
            path: self.path.clone(),
            incarnation: self.incarnation.clone(),
            revision: self.revision,
            objects,
            lost: self.lost.clone(),
        }
    }
}

/// What is desired, on its way to the disk.
#[derive(Debug)]
pub(crate) struct DesiredFile {
    path: PathBuf,
    incarnation: Incarnation,
    revision: Revision,
    objects: Vec<Object>,
    lost: Lost,
}

impl DesiredFile {
    /// Writes it; it is on the disk when this returns. Blocks.
    pub(crate) fn write(self) -> Result<(), FileError> {
        let raw = |object: &Object| {
            let text = String::from_utf8_lossy(object.json()).into_owned();
            RawValue::from_string(text).map_err(|error| FileError::damaged(&self.path, error))
        };
        let stored = Stored {
            objects: self.objects.iter().map(raw).collect::<Result<_, _>>()?,
            incarnation: self.incarnation,
            revision: self.revision,
            lost: self.lost,
        };
        FORMAT.write(Path::new(&self.path), &stored, true)
    }
}

fn known_key(api_version: &str, kind: &str, namespace: &str, name: &str) -> Option<ObjectKey> {
    let kind = GroupKind::from_api_version(api_version, kind);
    KINDS.contains(&kind).then(|| ObjectKey::new(kind, namespace, name))
}

fn read(key: &ObjectKey, json: &[u8]) -> Result<Object, String> {
    if json.len() > MAX_OBJECT_BYTES {
        return Err(format!("it has {} bytes, at most {MAX_OBJECT_BYTES} are allowed", json.len()));
    }
    let object = Object::from_json(json).map_err(|error| error.to_string())?;
    if object.key() != key {
        return Err(format!("it is {}", object.key()));
    }
    Ok(object)
}

/// An object without what changes all the time and means nothing to a device after a restart.
fn essence(object: &Object) -> Vec<u8> {
    let mut value = object.value();
    if let Some(map) = value.as_object_mut() {
        map.remove("status");
    }
    if let Some(meta) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.remove("resourceVersion");
        meta.remove("managedFields");
    }
    canonical(&value)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(kind: &str, name: &str, extra: &Value) -> v1::Object {
        let api_version = if kind == "Route" { "hearth.dev/v1alpha1" } else { "v1" };
        let mut value = json!({"apiVersion": api_version, "kind": kind,
            "metadata": {"name": name, "namespace": "alice", "uid": format!("u-{name}"), "resourceVersion": "1"}});
        for (field, to) in extra.as_object().into_iter().flatten() {
            value[field] = to.clone();
        }
        v1::Object {
            api_version: api_version.into(),
            kind: kind.into(),
            namespace: "alice".into(),
            name: name.into(),
            uid: format!("u-{name}"),
            revision: 1,
            json: canonical(&value).into(),
        }
    }

    fn full(revision: u64, upserts: Vec<v1::Object>) -> v1::Desired {
        v1::Desired { full: true, revision, upserts, deletes: Vec::new() }
    }

    fn desired(dir: &tempfile::TempDir) -> Desired {
        Desired::load(dir.path().join("desired.json"), &Incarnation::from("one"))
    }

    #[test]
    fn what_was_accepted_is_there_after_a_restart() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut first = desired(&dir);
        assert!(!first.is_known());
        let change = first.accept(&"one".into(), &full(7, vec![object("Pod", "a", &json!({}))])).expect("accepted");
        assert!(change.matters);
        first.file().write().expect("written");
        let second = desired(&dir);
        assert!(second.is_known());
        assert_eq!(second.revision(), Revision(7));
        assert_eq!(second.objects(), first.objects());
    }

    #[test]
    fn another_incarnation_or_an_older_region_changes_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut desired = desired(&dir);
        desired.accept(&"one".into(), &full(7, vec![object("Pod", "a", &json!({}))])).expect("accepted");
        let before = desired.objects().clone();
        assert!(matches!(desired.accept(&"two".into(), &full(9, vec![])), Err(Refusal::OtherIncarnation { .. })));
        assert!(matches!(desired.accept(&"one".into(), &full(6, vec![])), Err(Refusal::Older { .. })));
        assert_eq!(desired.objects(), &before);
        let change = desired.accept(&"one".into(), &full(7, vec![])).expect("accepted");
        assert_eq!(change.vanished.len(), 1);
    }

    #[test]
    fn what_a_region_lost_is_kept_until_an_operator_lets_it_go() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut first = desired(&dir);
        let both = vec![object("Pod", "old", &json!({})), object("Pod", "new", &json!({}))];
        first.accept(&"one".into(), &full(9, both)).expect("accepted");
        // The server was set up from a copy that is older than the second pod.
        assert!(!first.region_lost_writes(&"two".into()), "another incarnation is not believed at all");
        assert!(first.region_lost_writes(&"one".into()));
        first.file().write().expect("written");
        let mut second = desired(&dir);
        let old = || vec![object("Pod", "old", &json!({}))];
        let change = second.accept(&"one".into(), &full(6, old())).expect("accepted");
        assert_eq!((change.kept, change.vanished.len()), (1, 0));
        // Also when its counter has passed what it was before, and after a restart of the agent.
        second.file().write().expect("written");
        let mut third = desired(&dir);
        let change = third.accept(&"one".into(), &full(20, old())).expect("accepted");
        assert_eq!((change.kept, change.vanished.len(), third.objects().len()), (0, 0, 2));
        // What it made and removed since is no part of that.
        third
            .accept(&"one".into(), &full(21, [old(), vec![object("Pod", "later", &json!({}))]].concat()))
            .expect("accepted");
        assert_eq!(third.accept(&"one".into(), &full(22, old())).expect("accepted").vanished.len(), 1);
        let mut device = object(
            "Pod",
            "nas",
            &json!({"apiVersion": "hearth.dev/v1alpha1", "kind": "Device",
            "metadata": {"name": "nas", "uid": "u-nas", "annotations": {ACCEPT_RESTORED: "9"}}}),
        );
        (device.api_version, device.kind, device.namespace) =
            ("hearth.dev/v1alpha1".into(), "Device".into(), String::new());
        let change = third.accept(&"one".into(), &full(23, [old(), vec![device]].concat())).expect("accepted");
        assert_eq!(change.vanished.iter().map(Object::name).collect::<Vec<_>>(), ["new"]);
    }

    #[test]
    fn a_region_that_was_recovered_is_followed_in_all_but_what_it_does_not_mention() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut first = desired(&dir);
        let both = || vec![object("Pod", "a", &json!({})), object("Pod", "b", &json!({}))];
        first.accept(&"one".into(), &full(9, both())).expect("accepted");
        assert!(first.region_recovered(&"two".into()) && !first.region_recovered(&"two".into()));
        first.file().write().expect("written");
        let mut second = desired(&dir);
        assert_eq!((second.incarnation().as_str(), second.revision()), ("two", Revision::ZERO));
        assert!(matches!(second.accept(&"one".into(), &full(99, vec![])), Err(Refusal::OtherIncarnation { .. })));
        let change = second.accept(&"two".into(), &full(3, vec![])).expect("accepted");
        assert_eq!((change.kept, change.vanished.len(), change.returned), (2, 0, false));
        // Others hand in what this device could not.
        let change = second.accept(&"two".into(), &full(4, vec![object("Pod", "a", &json!({}))])).expect("accepted");
        assert_eq!((change.vanished.len(), change.returned), (0, true));
        let change = second.accept(&"two".into(), &full(5, vec![])).expect("accepted");
        assert_eq!(change.vanished.iter().map(Object::name).collect::<Vec<_>>(), ["a"]);
    }

    #[test]
    fn changes_need_a_base_in_the_same_session() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut desired = desired(&dir);
        let delta = v1::Desired { full: false, ..full(8, vec![object("Pod", "b", &json!({}))]) };
        assert_eq!(desired.accept(&"one".into(), &delta), Err(Refusal::NoBase));
        desired.accept(&"one".into(), &full(7, vec![])).expect("accepted");
        desired.accept(&"one".into(), &delta).expect("accepted");
        assert_eq!(desired.objects().len(), 1);
        desired.begin_session();
        assert_eq!(desired.accept(&"one".into(), &delta), Err(Refusal::NoBase));
    }

    #[test]
    fn an_object_that_cannot_be_read_has_not_vanished() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut desired = desired(&dir);
        desired.accept(&"one".into(), &full(1, vec![object("Pod", "a", &json!({}))])).expect("accepted");
        let mut broken = object("Pod", "a", &json!({}));
        broken.json = b"{".to_vec().into();
        let change = desired.accept(&"one".into(), &full(2, vec![broken])).expect("accepted");
        assert_eq!(change, Change::default());
        assert_eq!(desired.objects().len(), 1);
    }

    #[test]
    fn a_status_alone_is_not_worth_a_write() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut desired = desired(&dir);
        desired.accept(&"one".into(), &full(1, vec![object("Pod", "a", &json!({}))])).expect("accepted");
        let with_status = object("Pod", "a", &json!({"status": {"phase": "Running"}}));
        let change = desired.accept(&"one".into(), &full(2, vec![with_status])).expect("accepted");
        assert_eq!((change.changed.len(), change.matters), (1, false));
        let marked = object("Pod", "a", &json!({"spec": {"x": 1}}));
        assert!(desired.accept(&"one".into(), &full(3, vec![marked])).expect("accepted").matters);
    }

    #[test]
    fn kinds_of_a_newer_region_are_skipped() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut desired = desired(&dir);
        desired.accept(&"one".into(), &full(1, vec![object("Gadget", "a", &json!({}))])).expect("accepted");
        assert!(desired.objects().is_empty());
    }

    #[test]
    fn a_damaged_file_is_not_an_empty_wish() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("desired.json"), b"{\"magic\":\"hearth-agent-des").expect("written");
        assert!(!desired(&dir).is_known());
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(
            kind in proptest::sample::select(vec!["Pod", "Secret", "x"]),
            json in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200),
        ) {
            let dir = tempfile::tempdir().expect("a directory");
            let sent = v1::Object { json: json.into(), ..object(kind, "a", &json!({})) };
            let _ = desired(&dir).accept(&"one".into(), &full(1, vec![sent]));
        }
    }
}
