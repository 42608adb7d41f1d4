//! What a change of one object asks to be looked at.

use std::collections::BTreeSet;

use hearth_types::{GroupKind, ObjectKey, kinds::labels};

use crate::cache::{Cache, Change, Entry, View};

/// Who looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Controller {
    Install,
    Deployment,
    ReplicaSet,
    Pod,
    Node,
    Claim,
    Route,
    Namespace,
    Certificate,
    Garbage,
}

impl Controller {
    /// The label of metrics and logs.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Install => "install",
            Self::Deployment => "deployment",
            Self::ReplicaSet => "replicaset",
            Self::Pod => "pod",
            Self::Node => "node",
            Self::Claim => "claim",
            Self::Route => "route",
            Self::Namespace => "namespace",
            Self::Certificate => "certificate",
            Self::Garbage => "garbage",
        }
    }
}

/// One object and who looks at it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    pub(crate) controller: Controller,
    pub(crate) object: ObjectKey,
}

/// What a change asks for.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    pub(crate) keys: BTreeSet<Key>,
    /// Devices whose desired objects may have changed.
    pub(crate) devices: BTreeSet<Box<str>>,
    /// Whether pods may now be placed that could not be before.
    pub(crate) placement: bool,
}

impl Effects {
    fn key(&mut self, controller: Controller, object: ObjectKey) {
        self.keys.insert(Key { controller, object });
    }

    /// The Install that something was made for.
    fn install_of(&mut self, entry: &Entry) {
        if let Some(name) = entry.object.labels().get(labels::INSTALL) {
            self.key(Controller::Install, ObjectKey::new(GroupKind::INSTALL, entry.object.namespace(), name));
        }
    }

    /// Whoever controls something, by uid.
    fn owners_of(&mut self, cache: &Cache, entry: &Entry) {
        for uid in &entry.owners {
            let Some(owner) = cache.by_uid(uid).map(|owner| owner.object.key()) else {
                self.key(Controller::Garbage, entry.object.key().clone());
                continue;
            };
            let controller = match &*owner.kind.kind {
                "ReplicaSet" => Controller::ReplicaSet,
                "Deployment" => Controller::Deployment,
                "Install" => Controller::Install,
                _ => continue,
            };
            self.key(controller, owner.clone());
        }
    }
}

/// Says what a change that the cache took in asks for. `cache` has it already.
pub(crate) fn of(cache: &Cache, change: &Change) -> Effects {
    let mut effects = Effects::default();
    let Some(entry) = change.either() else {
        return effects;
    };
    let key = entry.object.key().clone();
    match &*key.kind.kind {
        "Pod" => pod(cache, change, &mut effects),
        "Node" => {
            effects.key(Controller::Node, key.clone());
            effects.placement = true;
            for pod in cache.pods_on(&key.name) {
                effects.owners_of(cache, pod);
                effects.install_of(pod);
                routes_of(cache, pod, &mut effects);
                // One that is back in contact may have hours, which were over meanwhile.
                if change.now.is_none() || cache.device(&key.name).is_some_and(|device| device.hours.is_some()) {
                    effects.key(Controller::Pod, pod.object.key().clone());
                }
            }
            // A device is gone for pods and claims once both its Device and its Node are, whichever goes last.
            if change.now.is_none() {
                cache.claims_on(&key.name).for_each(|claim| effects.key(Controller::Claim, claim.object.key().clone()));
            }
        }
        "Device" => {
            effects.key(Controller::Node, ObjectKey::new(GroupKind::NODE, "", &key.name));
            effects.key(Controller::Certificate, key.clone());
            effects.devices.insert(key.name.clone());
            effects.placement = true;
            // What it lends may end with its hours.
            if change.now.is_none() || cache.device(&key.name).is_some_and(|device| device.hours.is_some()) {
                cache.pods_on(&key.name).for_each(|pod| effects.key(Controller::Pod, pod.object.key().clone()));
            }
            if change.now.is_none() {
                cache.claims_on(&key.name).for_each(|claim| effects.key(Controller::Claim, claim.object.key().clone()));
            }
        }
        "PersistentVolumeClaim" => {
            effects.key(Controller::Claim, key.clone());
            effects.install_of(entry);
            effects.placement = true;
            effects.devices.extend(change.both().filter_map(|entry| entry.claim_device().map(Into::into)));
            users(cache, &key, &mut effects);
        }
        "Secret" if key == hearth_types::acme::object_key() => {
            for device in cache.of_kind(GroupKind::DEVICE) {
                effects.key(Controller::Certificate, device.object.key().clone());
            }
        }
        "ConfigMap" | "Secret" => users(cache, &key, &mut effects),
        "Certificate" => {
            for entry in change.both() {
                if let View::Certificate { device } = &entry.view {
                    effects.devices.insert(device.clone());
                    effects.key(Controller::Certificate, ObjectKey::new(GroupKind::DEVICE, "", device));
                }
            }
        }
        "Route" => {
            effects.key(Controller::Route, key.clone());
            effects.install_of(entry);
            for entry in change.both() {
                route_devices(cache, entry, &mut effects.devices);
                if let View::Route { devices, .. } = &entry.view {
                    for device in devices {
                        effects.key(Controller::Certificate, ObjectKey::new(GroupKind::DEVICE, "", device));
                    }
                }
                port_rivals(cache, entry, &mut effects);
            }
        }
        "Service" => {
            let pods = cache.in_namespace(GroupKind::POD, &key.namespace).filter_map(Entry::pod);
            effects.devices.extend(pods.filter(|pod| pod.is_bound()).map(|pod| pod.device.clone()));
        }
        "App" => {
            for install in cache.of_kind(GroupKind::INSTALL) {
                if matches!(&install.view, View::Install { app } if *app == key.name) {
                    effects.key(Controller::Install, install.object.key().clone());
                }
            }
        }
        "Install" => effects.key(Controller::Install, key.clone()),
        "Deployment" => {
            effects.key(Controller::Deployment, key.clone());
            // One that is not an Install's may still have its name.
            effects.key(Controller::Install, ObjectKey::new(GroupKind::INSTALL, &key.namespace, &key.name));
        }
        "ReplicaSet" => effects.key(Controller::ReplicaSet, key.clone()),
        "Namespace" => effects.key(Controller::Namespace, key.clone()),
        _ => {}
    }
    if *entry.object.kind() != GroupKind::POD {
        effects.owners_of(cache, entry);
    }
    if change.now.is_none() {
        for owned in cache.owned_by(entry.object.uid()) {
            effects.key(Controller::Garbage, owned.object.key().clone());
        }
    }
    let namespace = ObjectKey::new(GroupKind::NAMESPACE, "", &key.namespace);
    if !key.namespace.is_empty() && cache.get(&namespace).is_some_and(|namespace| namespace.deleting) {
        effects.key(Controller::Namespace, namespace);
    }
    effects
}

fn pod(cache: &Cache, change: &Change, effects: &mut Effects) {
    for entry in change.both() {
        let Some(pod) = entry.pod() else { continue };
        effects.key(Controller::Pod, entry.object.key().clone());
        effects.owners_of(cache, entry);
        effects.install_of(entry);
        routes_of(cache, entry, effects);
        if pod.is_bound() {
            effects.devices.insert(pod.device.clone());
        }
        if pod.controller.is_none() {
            for set in cache.in_namespace(GroupKind::REPLICA_SET, entry.object.namespace()) {
                effects.key(Controller::ReplicaSet, set.object.key().clone());
            }
        }
        // A Deployment that recreates waits for the last of its old pods, which no ReplicaSet's status counts.
        for set in entry.owners.iter().filter_map(|uid| cache.by_uid(uid)) {
            effects.owners_of(cache, set);
        }
    }
    let was = change.before.as_ref().and_then(Entry::pod);
    let is = change.now.as_ref().and_then(Entry::pod);
    let takes_room = |pod: &std::sync::Arc<hearth_controllers::PodView>| pod.is_bound() && !pod.is_finished();
    let freed = was.is_some_and(takes_room) && !is.is_some_and(takes_room);
    let pending = is.is_some_and(|pod| pod.is_active() && !pod.is_bound()) && was.is_none();
    effects.placement |= freed || pending;
    if is.is_none()
        && let (Some(pod), Some(entry)) = (was, &change.before)
    {
        for claim in &pod.claims {
            effects.key(
                Controller::Claim,
                ObjectKey::new(GroupKind::PERSISTENT_VOLUME_CLAIM, entry.object.namespace(), claim),
            );
        }
    }
}

/// The Routes that want the port of this one: one of them may have it now, or no longer.
fn port_rivals(cache: &Cache, route: &Entry, effects: &mut Effects) {
    if let View::Route { claim: Some(claim), .. } = &route.view {
        for rival in cache.claims_of(claim.port) {
            effects.key(Controller::Route, ObjectKey::new(GroupKind::ROUTE, &rival.namespace, &rival.name));
        }
    }
}

/// The Routes that select a pod.
fn routes_of(cache: &Cache, pod: &Entry, effects: &mut Effects) {
    for route in cache.in_namespace(GroupKind::ROUTE, pod.object.namespace()) {
        if selected(route, pod) {
            effects.key(Controller::Route, route.object.key().clone());
        }
    }
}

/// Whether a Route selects a pod by its labels.
pub(crate) fn selected(route: &Entry, pod: &Entry) -> bool {
    let View::Route { selector, .. } = &route.view else {
        return false;
    };
    let labels = pod.object.labels();
    !selector.is_empty() && selector.iter().all(|(key, value)| labels.get(key) == Some(&**value))
}

/// The devices that a Route leads to: those of its endpoints, and those of the pods that it selects.
pub(crate) fn route_devices(cache: &Cache, route: &Entry, devices: &mut BTreeSet<Box<str>>) {
    if let View::Route { devices: endpoints, .. } = &route.view {
        devices.extend(endpoints.iter().cloned());
    }
    for pod in cache.in_namespace(GroupKind::POD, route.object.namespace()) {
        if let Some(view) = pod.pod().filter(|view| view.is_bound())
            && selected(route, pod)
        {
            devices.insert(view.device.clone());
        }
    }
}

/// The devices of the pods that use a claim, ConfigMap or Secret.
fn users(cache: &Cache, key: &ObjectKey, effects: &mut Effects) {
    for entry in cache.in_namespace(GroupKind::POD, &key.namespace) {
        let Some(pod) = entry.pod() else { continue };
        let names = match &*key.kind.kind {
            "ConfigMap" => &pod.config_maps,
            "Secret" => &pod.secrets,
            _ => &pod.claims,
        };
        if pod.is_bound() && names.contains(&key.name) {
            effects.devices.insert(pod.device.clone());
        }
    }
}
