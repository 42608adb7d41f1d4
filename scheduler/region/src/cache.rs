//! Everything that the loops look at, in memory: the objects with what was parsed of them once, and indices.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
};

use hearth_controllers::PodView;
use hearth_placement as placement;
use hearth_types::{
    DeviceKey, DeviceName, GroupKind, Object, ObjectKey, Revision, Timestamp, Uid, acme,
    lease::{Epoch, Tenure, VolumePolicy},
    object::canonical,
    routes::{PortClaim, PublicPort},
    store::CLAIM_DEVICE,
};
use serde_json::Value;

/// What was parsed of an object, as far as the loops need it again and again.
#[derive(Clone, Debug)]
pub(crate) enum View {
    Pod {
        view: Arc<PodView>,
        place: Arc<placement::Pod>,
    },
    Claim {
        device: Option<Box<str>>,
        /// Of one that moves.
        epoch: Option<Epoch>,
        moves: bool,
    },
    Route {
        hostname: Box<str>,
        selector: BTreeMap<Box<str>, Box<str>>,
        devices: Vec<Box<str>>,
        claim: Option<PortClaim>,
    },
    Install {
        app: Box<str>,
    },
    Device {
        owner: Box<str>,
    },
    Certificate {
        device: Box<str>,
    },
    Other,
}

/// One object in the cache.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) object: Object,
    pub(crate) view: View,
    pub(crate) owners: Vec<Uid>,
    pub(crate) deleting: bool,
    /// Of a pod: a hash of what its device has to know of it. Its status, which the device itself reported, is not in it.
    pub(crate) fingerprint: u64,
}

impl Entry {
    fn read(object: Object, value: &Value) -> Self {
        let list = |pointer: &str| value.pointer(pointer).and_then(Value::as_array).into_iter().flatten();
        let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str);
        let view = if *object.kind() == GroupKind::POD {
            View::Pod {
                view: Arc::new(PodView::read(&object, value)),
                place: Arc::new(placement::Pod::read(&object, value)),
            }
        } else if *object.kind() == GroupKind::PERSISTENT_VOLUME_CLAIM {
            let device =
                value.pointer("/metadata/annotations").and_then(|all| all.get(CLAIM_DEVICE)).and_then(Value::as_str);
            View::Claim {
                device: device.filter(|device| !device.is_empty()).map(Into::into),
                epoch: Tenure::of_claim(value).map(|tenure| tenure.epoch),
                moves: VolumePolicy::of_claim(value) == VolumePolicy::Move,
            }
        } else if *object.kind() == GroupKind::ROUTE {
            let selector = value.pointer("/spec/target/selector").and_then(Value::as_object).into_iter().flatten();
            let mut devices = Vec::new();
            for device in list("/status/endpoints").filter_map(|one| one["device"].as_str()).map(Box::<str>::from) {
                if !devices.contains(&device) {
                    devices.push(device);
                }
            }
            View::Route {
                hostname: text("/spec/hostname").unwrap_or_default().into(),
                selector: selector
                    .filter_map(|(key, value)| Some((key.as_str().into(), value.as_str()?.into())))
                    .collect(),
                devices,
                claim: PortClaim::of(value),
            }
        } else if *object.kind() == GroupKind::INSTALL {
            View::Install { app: text("/spec/app").unwrap_or_default().into() }
        } else if *object.kind() == GroupKind::DEVICE {
            View::Device { owner: text("/spec/owner").unwrap_or_default().into() }
        } else if *object.kind() == GroupKind::CERTIFICATE {
            View::Certificate { device: text("/spec/device").unwrap_or_default().into() }
        } else {
            View::Other
        };
        Self {
            fingerprint: if matches!(view, View::Pod { .. }) { fingerprint(value) } else { object.revision().0 },
            view,
            owners: list("/metadata/ownerReferences")
                .filter_map(|owner| owner["uid"].as_str())
                .map(Uid::from)
                .collect(),
            deleting: text("/metadata/deletionTimestamp").is_some(),
            object,
        }
    }

    pub(crate) fn pod(&self) -> Option<&Arc<PodView>> {
        if let View::Pod { view, .. } = &self.view { Some(view) } else { None }
    }

    /// Of a Route.
    pub(crate) fn hostname(&self) -> Option<&str> {
        if let View::Route { hostname, .. } = &self.view { Some(hostname) } else { None }
    }

    pub(crate) fn claim_device(&self) -> Option<&str> {
        if let View::Claim { device, .. } = &self.view { device.as_deref() } else { None }
    }

    /// The epoch of a claim that moves.
    pub(crate) fn claim_epoch(&self) -> Option<Epoch> {
        if let View::Claim { epoch, .. } = &self.view { *epoch } else { None }
    }

    /// Whether it is a claim that moves.
    pub(crate) fn claim_moves(&self) -> bool {
        matches!(self.view, View::Claim { moves: true, .. })
    }
}

/// A change that the cache took in.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) before: Option<Entry>,
    pub(crate) now: Option<Entry>,
}

impl Change {
    pub(crate) fn either(&self) -> Option<&Entry> {
        self.now.as_ref().or(self.before.as_ref())
    }

    pub(crate) fn both(&self) -> impl Iterator<Item = &Entry> {
        self.before.iter().chain(&self.now)
    }
}

/// Where the news of an object comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The list or the watch of its kind: in order, and complete.
    Watch,
    /// A read, or the outcome of a write: ahead of the watch, or long behind it.
    Elsewhere,
}

/// How far the watch of a kind has come, and what was removed beyond that.
#[derive(Default)]
struct Progress {
    /// Everything up to this revision is in the cache. What is not there, and is no newer, is gone.
    upto: Revision,
    /// Objects removed beyond `upto`, so that an older word on them does not bring them back. Bounded: only what the watch has
    /// not come to yet is here.
    gone: HashMap<ObjectKey, Revision>,
    order: BTreeSet<(Revision, ObjectKey)>,
}

impl Progress {
    /// Whether an object that the cache does not have is known to be gone since.
    fn is_past(&self, key: &ObjectKey, revision: Revision, from: Source) -> bool {
        (from == Source::Elsewhere && revision <= self.upto) || self.gone.get(key).is_some_and(|gone| *gone >= revision)
    }

    fn removed(&mut self, key: &ObjectKey, revision: Revision) {
        if revision <= self.upto || self.gone.get(key).is_some_and(|gone| *gone >= revision) {
            return;
        }
        if let Some(old) = self.gone.insert(key.clone(), revision) {
            self.order.remove(&(old, key.clone()));
        }
        self.order.insert((revision, key.clone()));
    }

    fn advance(&mut self, upto: Revision) {
        self.upto = self.upto.max(upto);
        while let Some((revision, key)) = self.order.first()
            && *revision <= self.upto
        {
            self.gone.remove(key);
            self.order.pop_first();
        }
    }
}

/// The cache. Never goes back: an older revision of an object is ignored, also of one that is gone.
#[derive(Default)]
pub(crate) struct Cache {
    objects: BTreeMap<ObjectKey, Entry>,
    progress: HashMap<GroupKind, Progress>,
    by_uid: HashMap<Uid, ObjectKey>,
    owned: HashMap<Uid, BTreeSet<ObjectKey>>,
    pods_on: HashMap<Box<str>, BTreeSet<ObjectKey>>,
    claims_on: HashMap<Box<str>, BTreeSet<ObjectKey>>,
    /// Claims that move, and have a device.
    moving: BTreeSet<ObjectKey>,
    routes_on: HashMap<Box<str>, BTreeSet<ObjectKey>>,
    certificates_on: HashMap<Box<str>, BTreeSet<ObjectKey>>,
    hostnames: HashMap<Box<str>, BTreeSet<ObjectKey>>,
    /// Which Routes want which port, the first of a port having it.
    ports: BTreeSet<PortClaim>,
    pending: BTreeSet<ObjectKey>,
    /// Pods that nothing owns, which a ReplicaSet may adopt.
    orphans: BTreeSet<ObjectKey>,
    keys: HashMap<DeviceKey, DeviceName>,
    devices: BTreeMap<Box<str>, Arc<placement::Device>>,
    revision: Revision,
}

impl Cache {
    /// The greatest revision seen.
    pub(crate) fn revision(&self) -> Revision {
        self.revision
    }

    pub(crate) fn get(&self, key: &ObjectKey) -> Option<&Entry> {
        self.objects.get(key)
    }

    pub(crate) fn object(&self, kind: GroupKind, namespace: &str, name: &str) -> Option<&Entry> {
        self.objects.get(&ObjectKey::new(kind, namespace, name))
    }

    pub(crate) fn by_uid(&self, uid: &Uid) -> Option<&Entry> {
        self.objects.get(self.by_uid.get(uid)?)
    }

    pub(crate) fn owned_by(&self, uid: &Uid) -> impl Iterator<Item = &Entry> {
        self.owned.get(uid).into_iter().flatten().filter_map(|key| self.objects.get(key))
    }

    pub(crate) fn of_kind(&self, kind: GroupKind) -> impl Iterator<Item = &Entry> {
        let from = ObjectKey::new(kind.clone(), "", "");
        self.objects.range(from..).map(|(_, entry)| entry).take_while(move |entry| *entry.object.kind() == kind)
    }

    pub(crate) fn in_namespace<'a>(&'a self, kind: GroupKind, namespace: &'a str) -> impl Iterator<Item = &'a Entry> {
        let from = ObjectKey::new(kind.clone(), namespace, "");
        let all = self.objects.range(from..).map(|(_, entry)| entry);
        all.take_while(move |entry| *entry.object.kind() == kind && entry.object.namespace() == namespace)
    }

    pub(crate) fn pods_on(&self, device: &str) -> impl Iterator<Item = &Entry> {
        self.pods_on.get(device).into_iter().flatten().filter_map(|key| self.objects.get(key))
    }

    pub(crate) fn claims_on(&self, device: &str) -> impl Iterator<Item = &Entry> {
        self.claims_on.get(device).into_iter().flatten().filter_map(|key| self.objects.get(key))
    }

    /// Whether certificates are ordered from a public authority.
    pub(crate) fn orders_certificates(&self) -> bool {
        self.objects.contains_key(&acme::object_key())
    }

    /// The Certificates whose keys a device has.
    pub(crate) fn certificates_on(&self, device: &str) -> impl Iterator<Item = &Entry> {
        self.certificates_on.get(device).into_iter().flatten().filter_map(|key| self.objects.get(key))
    }

    /// Whether a Route of an owner leads to a device, by its endpoints.
    pub(crate) fn serves(&self, device: &str, owner: &str) -> bool {
        self.routes_on.get(device).into_iter().flatten().any(|key| *key.namespace == *owner)
    }

    /// The Routes that lead to a device: by their endpoints, or by pods of it in these namespaces.
    pub(crate) fn routes_to<'a>(&'a self, device: &'a str, namespaces: &BTreeSet<&'a str>) -> Vec<&'a Entry> {
        let mut found: Vec<&Entry> =
            self.routes_on.get(device).into_iter().flatten().filter_map(|key| self.objects.get(key)).collect();
        for namespace in namespaces {
            for route in self.in_namespace(GroupKind::ROUTE, namespace) {
                let mut pods = self.pods_on(device).filter(|pod| pod.object.namespace() == *namespace);
                if pods.any(|pod| crate::triggers::selected(route, pod)) {
                    found.push(route);
                }
            }
        }
        found
    }

    /// What Routes say of a port, the one that has it first.
    pub(crate) fn claims_of(&self, port: PublicPort) -> impl Iterator<Item = &PortClaim> {
        self.ports.iter().skip_while(move |claim| claim.port < port).take_while(move |claim| claim.port == port)
    }

    /// The claims that move, and have a device.
    pub(crate) fn moving(&self) -> impl Iterator<Item = &Entry> {
        self.moving.iter().filter_map(|key| self.objects.get(key))
    }

    pub(crate) fn has_moving(&self) -> bool {
        !self.moving.is_empty()
    }

    /// The Routes of a hostname.
    pub(crate) fn routes_named(&self, hostname: &str) -> impl Iterator<Item = &Entry> {
        self.hostnames.get(hostname).into_iter().flatten().filter_map(|key| self.objects.get(key))
    }

    /// The pods without device that shall run.
    pub(crate) fn pending(&self) -> impl Iterator<Item = &Entry> {
        self.pending.iter().filter_map(|key| self.objects.get(key))
    }

    /// The pods of a namespace that nothing owns.
    pub(crate) fn orphans<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a Entry> {
        let from = ObjectKey::new(GroupKind::POD, namespace, "");
        let keys = self.orphans.range(from..).take_while(move |key| *key.namespace == *namespace);
        keys.filter_map(|key| self.objects.get(key))
    }

    pub(crate) fn pending_count(&self) -> usize {
        self.pending.len()
    }

    pub(crate) fn device_of_key(&self, key: &DeviceKey) -> Option<&DeviceName> {
        self.keys.get(key)
    }

    pub(crate) fn keys_of(&self, device: &str) -> Vec<DeviceKey> {
        self.object(GroupKind::DEVICE, "", device).map(|entry| device_keys(&entry.object.value())).unwrap_or_default()
    }

    /// A device as placement sees it.
    pub(crate) fn device(&self, name: &str) -> Option<&placement::Device> {
        self.devices.get(name).map(AsRef::as_ref)
    }

    /// The devices as placement sees them.
    pub(crate) fn devices(&self) -> impl Iterator<Item = &Arc<placement::Device>> {
        self.devices.values()
    }

    /// Whether a device is in contact, as its Node says, and since when that is so. `false` for no device at all.
    pub(crate) fn contact(&self, device: &str) -> (bool, Option<Timestamp>) {
        self.devices.get(device).map_or((false, None), |device| (device.ready, device.ready_since))
    }

    fn progress(&mut self, kind: &GroupKind) -> &mut Progress {
        self.progress.entry(kind.clone()).or_default()
    }

    /// Takes in an object as it is or was stored.
    pub(crate) fn put(&mut self, object: Object, from: Source) -> Option<Change> {
        let revision = object.revision();
        let (before, entry) = if let Some(known) = self.objects.get_mut(object.key()) {
            if known.object.revision() >= revision {
                return None;
            }
            let value = object.value();
            let entry = Entry::read(object, &value);
            (Some(std::mem::replace(known, entry.clone())), entry)
        } else {
            if self.progress(object.kind()).is_past(object.key(), revision, from) {
                return None;
            }
            let value = object.value();
            let entry = Entry::read(object, &value);
            self.objects.insert(entry.object.key().clone(), entry.clone());
            (None, entry)
        };
        self.revision = self.revision.max(revision);
        if let Some(before) = &before {
            self.index(before, false);
        }
        self.index(&entry, true);
        self.refresh_device(&entry.object);
        Some(Change { before, now: Some(entry) })
    }

    /// Takes in that an object was removed at a revision.
    pub(crate) fn remove(&mut self, key: &ObjectKey, revision: Revision) -> Option<Change> {
        if self.objects.get(key).is_some_and(|known| known.object.revision() > revision) {
            return None;
        }
        self.revision = self.revision.max(revision);
        self.progress(&key.kind).removed(key, revision);
        let before = self.objects.remove(key)?;
        self.index(&before, false);
        self.refresh_device(&before.object);
        Some(Change { before: Some(before), now: None })
    }

    /// Up to which revision nothing of a kind is missing.
    pub(crate) fn complete_upto(&self, kind: &GroupKind) -> Revision {
        self.progress.get(kind).map(|progress| progress.upto).unwrap_or_default()
    }

    /// The watch of a kind has told everything up to this revision.
    pub(crate) fn advance(&mut self, kind: &GroupKind, upto: Revision) {
        self.progress(kind).advance(upto);
    }

    /// Takes in a whole list of a kind: what it does not have and is not newer is gone. One that is behind the watch says nothing new.
    pub(crate) fn replace(&mut self, kind: &GroupKind, objects: Vec<Object>, revision: Revision) -> Vec<Change> {
        if revision < self.progress(kind).upto {
            return Vec::new();
        }
        let present: BTreeSet<ObjectKey> = objects.iter().map(|object| object.key().clone()).collect();
        let gone: Vec<ObjectKey> = self
            .of_kind(kind.clone())
            .map(|entry| entry.object.key().clone())
            .filter(|key| !present.contains(key))
            .collect();
        let mut changes: Vec<Change> = gone.iter().filter_map(|key| self.remove(key, revision)).collect();
        changes.extend(objects.into_iter().filter_map(|object| self.put(object, Source::Watch)));
        self.revision = self.revision.max(revision);
        self.advance(kind, revision);
        changes
    }

    fn index(&mut self, entry: &Entry, add: bool) {
        let key = entry.object.key();
        let uid = entry.object.uid();
        if add {
            self.by_uid.insert(uid.clone(), key.clone());
        } else if self.by_uid.get(uid) == Some(key) {
            self.by_uid.remove(uid);
        }
        for owner in &entry.owners {
            toggle(&mut self.owned, owner, key, add);
        }
        if matches!(entry.view, View::Pod { .. }) && entry.owners.is_empty() {
            if add {
                self.orphans.insert(key.clone());
            } else {
                self.orphans.remove(key);
            }
        }
        match &entry.view {
            View::Pod { view, .. } if view.is_bound() => toggle(&mut self.pods_on, &view.device, key, add),
            View::Pod { view, .. } if add && view.is_active() => drop(self.pending.insert(key.clone())),
            View::Pod { .. } => drop(self.pending.remove(key)),
            View::Claim { device: Some(device), epoch, .. } => {
                if add && epoch.is_some() {
                    self.moving.insert(key.clone());
                } else {
                    self.moving.remove(key);
                }
                toggle(&mut self.claims_on, device, key, add);
            }
            View::Certificate { device } => toggle(&mut self.certificates_on, device, key, add),
            View::Route { hostname, devices, claim, .. } => {
                match claim {
                    Some(claim) if add => drop(self.ports.insert(claim.clone())),
                    Some(claim) => drop(self.ports.remove(claim)),
                    None => {}
                }
                toggle(&mut self.hostnames, hostname, key, add);
                for device in devices {
                    toggle(&mut self.routes_on, device, key, add);
                }
            }
            _ => {}
        }
        if *entry.object.kind() == GroupKind::DEVICE {
            let name = DeviceName::from(entry.object.name());
            for device_key in device_keys(&entry.object.value()) {
                if add {
                    self.keys.insert(device_key, name.clone());
                } else if self.keys.get(&device_key) == Some(&name) {
                    self.keys.remove(&device_key);
                }
            }
        }
    }

    fn refresh_device(&mut self, changed: &Object) {
        if *changed.kind() != GroupKind::DEVICE && *changed.kind() != GroupKind::NODE {
            return;
        }
        let name = changed.name();
        let device = self.object(GroupKind::DEVICE, "", name);
        let node = self.object(GroupKind::NODE, "", name);
        match (device, node) {
            (Some(device), Some(node)) => {
                let read = placement::Device::read(&device.object.value(), &node.object.value());
                self.devices.insert(name.into(), Arc::new(read));
            }
            _ => drop(self.devices.remove(name)),
        }
    }
}

/// A hash over everything but status and revision.
fn fingerprint(value: &Value) -> u64 {
    let mut value = value.clone();
    if let Some(map) = value.as_object_mut() {
        map.remove("status");
    }
    if let Some(meta) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.remove("resourceVersion");
    }
    let mut hasher = DefaultHasher::new();
    canonical(&value).hash(&mut hasher);
    hasher.finish()
}

fn device_keys(device: &Value) -> Vec<DeviceKey> {
    let keys = device.pointer("/spec/keys").and_then(Value::as_array).into_iter().flatten();
    keys.filter_map(|key| key.as_str()?.parse().ok()).collect()
}

fn toggle<K: Clone + Eq + std::hash::Hash>(
    index: &mut HashMap<K, BTreeSet<ObjectKey>>,
    at: &K,
    key: &ObjectKey,
    add: bool,
) {
    if add {
        index.entry(at.clone()).or_default().insert(key.clone());
    } else if let Some(keys) = index.get_mut(at) {
        keys.remove(key);
        if keys.is_empty() {
            index.remove(at);
        }
    }
}

#[cfg(test)]
mod tests;
