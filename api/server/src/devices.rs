//! Which key belongs to which device: kept from a watch of the Devices, and asked at every request, so that
//! a key that was removed has no rights from then on.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::StreamExt as _;
use hearth_types::{
    DeviceKey, DeviceName, GroupKind, Object, Revision, Status,
    kinds::DeviceSpec,
    store::{Consistency, Query, Store, WatchEvent, list_all},
};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

/// The pause before the watch is begun again after it broke.
const RETRY: Duration = Duration::from_millis(500);

#[derive(Deserialize)]
struct View {
    spec: DeviceSpec,
}

struct Entry {
    revision: Revision,
    owner: String,
    keys: Vec<DeviceKey>,
}

#[derive(Default)]
struct Inner {
    /// A device that is gone keeps an entry without keys until the watch has passed its removal.
    devices: HashMap<DeviceName, Entry>,
    by_key: HashMap<DeviceKey, BTreeSet<DeviceName>>,
    /// Whether there are such entries.
    gone: bool,
    /// Everything up to here came in by the watch.
    seen: Revision,
    connections: HashMap<DeviceKey, HashMap<u64, CancellationToken>>,
    next_connection: u64,
}

/// The index.
#[derive(Default)]
pub(crate) struct DeviceIndex {
    inner: RwLock<Inner>,
    primed: AtomicBool,
}

impl DeviceIndex {
    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The device that has a key, and its owner.
    pub(crate) fn lookup(&self, key: &DeviceKey) -> Option<(DeviceName, String)> {
        let inner = self.read();
        let name = inner.by_key.get(key)?.first()?;
        Some((name.clone(), inner.devices.get(name)?.owner.clone()))
    }

    /// The devices of an owner, by name, so many at most.
    pub(crate) fn of_owner(&self, owner: &str, most: usize) -> Vec<DeviceName> {
        let inner = self.read();
        let own = inner.devices.iter().filter(|(_, entry)| entry.owner == owner && !entry.keys.is_empty());
        let mut names: Vec<_> = own.map(|(name, _)| name.clone()).collect();
        names.sort();
        names.truncate(most);
        names
    }

    /// Whether the Devices were read at all. Before, an unknown key means nothing.
    pub(crate) fn is_primed(&self) -> bool {
        self.primed.load(Ordering::Acquire)
    }

    /// A write that this server made itself, ahead of the watch.
    pub(crate) fn note(&self, object: &Object) {
        if *object.kind() == GroupKind::DEVICE {
            let mut inner = self.write();
            if object.revision() > inner.seen {
                inner.put(object);
            }
        }
    }

    /// A change that this server made itself, which may have removed the object.
    pub(crate) fn note_stored(&self, object: &Object, removed: bool) {
        if removed { self.note_removed(object) } else { self.note(object) }
    }

    /// A removal that this server made itself. `object` is as it was.
    pub(crate) fn note_removed(&self, object: &Object) {
        if *object.kind() == GroupKind::DEVICE {
            // The store says the object's last revision; the removal came later.
            self.write().put_keys(object.name(), object.revision().next(), String::new(), Vec::new());
        }
    }

    /// Announces a connection that proved a key: the token is cancelled once the key no longer belongs to
    /// the device that it belonged to.
    pub(crate) fn register(self: &Arc<Self>, key: DeviceKey) -> (CancellationToken, Registration) {
        let token = CancellationToken::new();
        let mut inner = self.write();
        let id = inner.next_connection;
        inner.next_connection += 1;
        inner.connections.entry(key).or_default().insert(id, token.clone());
        (token, Registration { index: self.clone(), key, id })
    }

    fn reset(&self, objects: &[Object], revision: Revision) {
        let mut inner = self.write();
        let present: BTreeSet<DeviceName> = objects.iter().map(|object| DeviceName::from(object.name())).collect();
        let gone: Vec<DeviceName> = inner
            .devices
            .iter()
            .filter(|(name, entry)| !present.contains(*name) && entry.revision <= revision)
            .map(|(name, _)| name.clone())
            .collect();
        for name in gone {
            inner.put_keys(name.as_str(), revision, String::new(), Vec::new());
        }
        for object in objects {
            inner.put(object);
        }
        inner.pass(revision);
        drop(inner);
        self.primed.store(true, Ordering::Release);
    }

    fn event(&self, event: &WatchEvent) {
        let mut inner = self.write();
        match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                inner.put(object);
                inner.pass(object.revision());
            }
            WatchEvent::Deleted(object) => {
                inner.put_keys(object.name(), object.revision(), String::new(), Vec::new());
                inner.pass(object.revision());
            }
            WatchEvent::Bookmark(revision) => inner.pass(*revision),
        }
    }

    /// Keeps the index up to date for as long as it runs. While the store does not answer, what was known
    /// last stands.
    pub(crate) async fn follow(&self, store: &dyn Store) {
        loop {
            let error = match self.follow_once(store).await {
                Ok(()) => "the stream ended".to_owned(),
                Err(status) => status.message,
            };
            tracing::warn!(%error, "the watch of Devices broke; it is begun again");
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn follow_once(&self, store: &dyn Store) -> Result<(), Status> {
        let query = Query::all(GroupKind::DEVICE);
        let (objects, revision) = list_all(store, &query, Consistency::Local).await?;
        self.reset(&objects, revision);
        let mut events = store.watch(query, revision).await?;
        while let Some(event) = events.next().await {
            self.event(&event?);
        }
        Ok(())
    }
}

impl Inner {
    fn put(&mut self, object: &Object) {
        // An object that cannot be read has no keys: better a device that is refused than one too many let in.
        let spec = object.view::<View>().map(|view| view.spec).unwrap_or_default();
        let keys = spec.keys.iter().filter_map(|key| key.parse().ok()).collect();
        self.put_keys(object.name(), object.revision(), spec.owner, keys);
    }

    fn put_keys(&mut self, name: &str, revision: Revision, owner: String, keys: Vec<DeviceKey>) {
        let name = DeviceName::from(name);
        let old = match self.devices.get(&name) {
            Some(entry) if entry.revision > revision => return,
            Some(entry) => entry.keys.clone(),
            None => Vec::new(),
        };
        for key in old.iter().filter(|key| !keys.contains(key)) {
            if let Some(names) = self.by_key.get_mut(key) {
                names.remove(&name);
                if names.is_empty() {
                    self.by_key.remove(key);
                }
            }
            for token in self.connections.get(key).into_iter().flat_map(HashMap::values) {
                token.cancel();
            }
        }
        for key in &keys {
            self.by_key.entry(*key).or_default().insert(name.clone());
        }
        self.gone |= keys.is_empty() && owner.is_empty();
        self.devices.insert(name, Entry { revision, owner, keys });
    }

    /// The watch has brought everything up to a revision: what was gone by then need not be remembered.
    fn pass(&mut self, revision: Revision) {
        if revision > self.seen {
            self.seen = revision;
            if std::mem::take(&mut self.gone) {
                let kept = |entry: &Entry| !entry.keys.is_empty() || !entry.owner.is_empty();
                self.devices.retain(|_, entry| kept(entry) || entry.revision > revision);
                self.gone = self.devices.values().any(|entry| !kept(entry));
            }
        }
    }
}

/// A connection's place in the index; dropped with the connection.
pub(crate) struct Registration {
    index: Arc<DeviceIndex>,
    key: DeviceKey,
    id: u64,
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut inner = self.index.write();
        if let Some(connections) = inner.connections.get_mut(&self.key) {
            connections.remove(&self.id);
            if connections.is_empty() {
                inner.connections.remove(&self.key);
            }
        }
    }
}
