//! What a device shall have: its pods, what they use, the Services of their namespaces, the routes that lead to it, and its own Device.
//! Nothing else, ever.

use std::collections::{BTreeMap, BTreeSet};

use hearth_proto::v1;
use hearth_types::{GroupKind, Object, ObjectKey, lan};

use crate::{
    cache::{Cache, Entry, View},
    triggers,
};

/// An object that a device shall have.
pub(super) struct Shown {
    pub(super) object: Object,
    fingerprint: u64,
}

impl Shown {
    /// Whether a device that has `self` needs not be told of `new`: a pod's status comes from the device itself.
    pub(super) fn covers(&self, new: &Self) -> bool {
        self.fingerprint == new.fingerprint && self.object.uid() == new.object.uid()
    }
}

/// Everything that a device shall have. Pods that ended are in it until they are deleted, so that their logs can be read; claims whose data is on
/// the device are in it also without a pod, so that it learns of their deletion. `leases`: whether its agent can hold volumes that move; one that
/// cannot must not have any, since nothing would stop it.
pub(super) fn of_device(cache: &Cache, device: &str, leases: bool) -> BTreeMap<ObjectKey, Shown> {
    let mut wanted = BTreeMap::new();
    let mut add = |entry: &Entry| {
        let shown = Shown { object: entry.object.clone(), fingerprint: entry.fingerprint };
        drop(wanted.insert(entry.object.key().clone(), shown));
    };
    cache.object(GroupKind::DEVICE, "", device).into_iter().for_each(&mut add);
    cache.claims_on(device).filter(|claim| leases || claim.claim_epoch().is_none()).for_each(&mut add);
    cache.certificates_on(device).for_each(&mut add);
    let mut namespaces = BTreeSet::new();
    for entry in cache.pods_on(device) {
        if awaits_claims(cache, entry) || (!leases && needs_lease(cache, entry)) {
            continue;
        }
        add(entry);
        namespaces.insert(entry.object.namespace());
        let Some(pod) = entry.pod() else { continue };
        for (kind, names) in [
            (GroupKind::PERSISTENT_VOLUME_CLAIM, &pod.claims),
            (GroupKind::CONFIG_MAP, &pod.config_maps),
            (GroupKind::SECRET, &pod.secrets),
        ] {
            for name in names {
                // A claim is this device's only where it is pinned to it, whatever a pod says.
                let is_claim = kind == GroupKind::PERSISTENT_VOLUME_CLAIM;
                let found = cache.object(kind.clone(), entry.object.namespace(), name);
                let own = found.filter(|found| !is_claim || found.claim_device() == Some(device));
                own.into_iter().for_each(&mut add);
            }
        }
    }
    for namespace in &namespaces {
        cache.in_namespace(GroupKind::SERVICE, namespace).for_each(&mut add);
    }
    for route in cache.routes_to(device, &namespaces) {
        add(route);
    }
    wanted
}

/// Whether a pod's claims are not pinned yet, as far as this cache knows. They were in the very entry that bound the pod, but of another
/// kind, whose changes come by another watch: a pod without its claims would fail at first.
fn awaits_claims(cache: &Cache, entry: &Entry) -> bool {
    let namespace = entry.object.namespace();
    let claims = entry.pod().into_iter().flat_map(|pod| &pod.claims);
    let mut found = claims.filter_map(|name| cache.object(GroupKind::PERSISTENT_VOLUME_CLAIM, namespace, name));
    found.any(|claim| claim.claim_device().is_none())
}

/// Whether a claim of a pod is under a lease.
fn needs_lease(cache: &Cache, entry: &Entry) -> bool {
    let claims = entry.pod().into_iter().flat_map(|pod| &pod.claims);
    let namespace = entry.object.namespace();
    let mut found = claims.filter_map(|name| cache.object(GroupKind::PERSISTENT_VOLUME_CLAIM, namespace, name));
    found.any(|claim| claim.claim_epoch().is_some())
}

/// Whether an object is a device's own to report on: a pod bound to it, a claim whose data is on it, its Device or Node.
pub(super) fn belongs_to(entry: &Entry, device: &str) -> bool {
    if let Some(pod) = entry.pod() {
        return &*pod.device == device;
    }
    let kind = entry.object.kind();
    if let View::Certificate { device: own } = &entry.view {
        return **own == *device;
    }
    entry.claim_device() == Some(device)
        || ((*kind == GroupKind::DEVICE || *kind == GroupKind::NODE) && entry.object.name() == device)
}

/// Whether a device may have a certificate for a name: a Route's hostname that leads to it, or the name inside the home that goes with one, where
/// its owner lets that be told.
pub(super) fn may_serve(cache: &Cache, name: &str, device: &str) -> bool {
    leads_to(cache, name, device) || leads_inside_to(cache, name, device)
}

fn leads_inside_to(cache: &Cache, name: &str, device: &str) -> bool {
    let Some(hostname) = lan::hostname_of(name) else { return false };
    let Some(object) = cache.object(GroupKind::DEVICE, "", device).map(|entry| entry.object.value()) else {
        return false;
    };
    let is_told = object.pointer("/spec/publish/lan") == Some(&serde_json::Value::Bool(true));
    let owner = object.pointer("/spec/owner").and_then(serde_json::Value::as_str).unwrap_or_default();
    // Of the owner's own apps: what others have here answers at their own names alone.
    let own = cache.routes_named(&hostname).any(|route| route.object.namespace() == owner);
    is_told && own && lan::name_of(&hostname, owner).as_deref() == Some(name) && leads_to(cache, &hostname, device)
}

/// Whether a Route of a hostname leads to a device.
fn leads_to(cache: &Cache, hostname: &str, device: &str) -> bool {
    cache.routes_named(hostname).any(|route| {
        let mut devices = BTreeSet::new();
        triggers::route_devices(cache, route, &mut devices);
        devices.contains(device)
    })
}

pub(super) fn envelope(object: &Object) -> v1::Object {
    v1::Object {
        api_version: object.api_version().to_owned(),
        kind: object.kind().kind.to_string(),
        namespace: object.namespace().to_owned(),
        name: object.name().to_owned(),
        uid: object.uid().to_string(),
        revision: object.revision().0,
        json: object.json().to_vec().into(),
    }
}

pub(super) fn reference(key: &ObjectKey) -> v1::ObjectRef {
    v1::ObjectRef {
        group: key.kind.group.to_string(),
        kind: key.kind.kind.to_string(),
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
    }
}

pub(super) fn key_of(reference: &v1::ObjectRef) -> ObjectKey {
    let kind = hearth_types::registry::by_group_kind(&reference.group, &reference.kind).map_or_else(
        || GroupKind { group: reference.group.clone().into(), kind: reference.kind.clone().into() },
        hearth_types::registry::KindInfo::group_kind,
    );
    ObjectKey::new(kind, &reference.namespace, &reference.name)
}
