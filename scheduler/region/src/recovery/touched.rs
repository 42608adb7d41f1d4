//! Whose objects changed since their devices were last given copies.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use hearth_types::{
    GroupKind,
    recovery::{essence, rank, record_key},
};
use tokio::sync::Notify;

use crate::{
    cache::{Cache, Change, Entry, View},
    hub::Hub,
};

/// How long changes are collected before devices are given new copies: a rollout is then a few writes on a device's flash, not
/// dozens. By then, too, the cache has heard of everything of the time of the first change.
const DELAY: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Owners {
    some: BTreeSet<Box<str>>,
    /// The recovery key itself changed.
    all: bool,
}

/// The owners of what changed. Bounded by the number of owners.
#[derive(Default)]
pub(crate) struct Touched {
    owners: Mutex<Owners>,
    /// Whether there is a recovery key: nothing is done before.
    enabled: AtomicBool,
    notify: Notify,
}

impl Touched {
    fn owners(&self) -> MutexGuard<'_, Owners> {
        self.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is a recovery key.
    pub(crate) fn set_enabled(&self, enabled: bool) {
        self.enabled.store(enabled, Ordering::Release);
    }

    /// A change that the cache took in.
    pub(crate) fn observe(&self, cache: &Cache, change: &Change) {
        let Some(entry) = change.either() else { return };
        let key = entry.object.key();
        if *key == record_key() {
            self.set_enabled(change.now.is_some());
            self.owners().all = true;
            self.notify.notify_one();
            return;
        }
        if !self.enabled.load(Ordering::Acquire) || rank(&key.kind).is_none() || is_status_alone(change) {
            return;
        }
        let mut touched = BTreeSet::new();
        match &*key.kind.kind {
            "Namespace" => drop(touched.insert(key.name.clone())),
            "Device" => touched.extend(change.both().filter_map(owner_of_device)),
            "Node" => touched.extend(cache.object(GroupKind::DEVICE, "", &key.name).and_then(owner_of_device)),
            "App" => {
                let installs = cache.of_kind(GroupKind::INSTALL);
                let users = installs.filter(|one| matches!(&one.view, View::Install { app } if *app == key.name));
                touched.extend(users.map(|one| one.object.key().namespace.clone()));
            }
            _ => drop(touched.insert(key.namespace.clone())),
        }
        if !touched.is_empty() {
            self.owners().some.append(&mut touched);
            self.notify.notify_one();
        }
    }
}

fn owner_of_device(entry: &Entry) -> Option<Box<str>> {
    if let View::Device { owner } = &entry.view { Some(owner.clone()) } else { None }
}

fn is_status_alone(change: &Change) -> bool {
    match (&change.before, &change.now) {
        (Some(before), Some(now)) if now.pod().is_some() => before.fingerprint == now.fingerprint,
        (Some(before), Some(now)) => essence(&before.object) == essence(&now.object),
        _ => false,
    }
}

/// Tells the sessions of whose owner something changed, for ever.
pub(crate) async fn run(hub: Arc<Hub>) {
    loop {
        hub.touched.notify.notified().await;
        tokio::time::sleep(DELAY).await;
        let owners = std::mem::take(&mut *hub.touched.owners());
        hub.sessions.copies_changed(|owner| owners.all || owners.some.contains(owner));
    }
}
