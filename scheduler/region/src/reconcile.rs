//! The workers: take a key, gather what its controller looks at, execute what it asks for.

use std::{collections::BTreeMap, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use hearth_controllers::{
    Action, Reconciled, SeenPod, certificate, claim, deployment, garbage, install, namespace, node, pod, refusal,
    replicaset, route,
};
use hearth_types::{GroupKind, Object, ObjectKey, Status, Uid, kinds::labels, routes::PortClaim, store::Consistency};
use tracing::Instrument as _;

use crate::{
    cache::{Cache, Entry, View},
    hub::Hub,
    queue::Outcome,
    recorder::Note,
    recovery,
    triggers::{Controller, Key},
    writer::{self, WriteError, is_passing},
};

/// How often it is looked whether a device has come back to a region that was recovered.
const RECOVERING: Duration = Duration::from_mins(1);

/// The key under which a device's Node is looked at.
pub(crate) fn node_key(device: &str) -> Key {
    Key { controller: Controller::Node, object: ObjectKey::new(GroupKind::NODE, "", device) }
}

/// Works on keys for ever.
pub(crate) async fn work(hub: Arc<Hub>) {
    loop {
        let key = hub.queue.next().await;
        hub.metrics.queue_depth.set(i64::try_from(hub.queue.depth()).unwrap_or(i64::MAX));
        let name = key.controller.name();
        let span = tracing::debug_span!("reconcile", controller = name, object = %key.object);
        let timer = hub.metrics.reconcile_seconds.with_label_values(&[name]).start_timer();
        let (outcome, result) = one(&hub, &key).instrument(span).await;
        timer.observe_duration();
        hub.metrics.reconciles.with_label_values(&[name, result]).inc();
        hub.queue.done(key, outcome);
    }
}

async fn one(hub: &Arc<Hub>, key: &Key) -> (Outcome, &'static str) {
    let reconciled = match decide(hub, key).await {
        Ok(reconciled) => reconciled,
        Err(error) => {
            tracing::warn!(object = %key.object, %error, "cannot look at it; trying again");
            return (Outcome::Failed, "error");
        }
    };
    if reconciled.actions.is_empty() {
        return (Outcome::Done { again: reconciled.again }, "unchanged");
    }
    match writer::execute(hub, &reconciled.actions, key.controller.name()).await {
        Ok(()) => (Outcome::Done { again: reconciled.again }, "changed"),
        Err(WriteError::Outdated(error)) => {
            tracing::debug!(%error, "something changed meanwhile; looking again");
            (Outcome::Failed, "outdated")
        }
        Err(WriteError::Refused(error)) => {
            tracing::warn!(controller = key.controller.name(), object = %key.object, %error, "what it asks for was refused; trying again");
            if !is_passing(&error) {
                tell_refused(hub, key, &error).await;
            }
            (Outcome::Failed, "error")
        }
    }
}

/// Tells people of a refusal where they look: an Event, and a condition where the kind has one for it.
async fn tell_refused(hub: &Arc<Hub>, key: &Key, error: &Status) {
    let Some(object) = hub.cache().get(&key.object).map(|entry| entry.object.clone()) else { return };
    let message = format!("what the {} controller asks for was refused: {}", key.controller.name(), error.message);
    if let Some(action) = refusal::reconcile(&object, &message, hub.now())
        && let Err(error) = writer::execute(hub, &[action], key.controller.name()).await
    {
        tracing::debug!(object = %key.object, %error, "its refusal cannot be written yet; told again with the next");
    }
    hub.recorder.note(Note::about(&object, true, refusal::REASON, message, key.controller.name()));
}

/// How often it is looked whether devices have handed in what is missing.
const AWAITING: Duration = Duration::from_secs(2);

/// Asks the controller. One that panics on an odd object is a fault of the program, and must not end the others.
async fn decide(hub: &Arc<Hub>, key: &Key) -> Result<Reconciled, Status> {
    let absent = absences(hub, key).await?;
    let decided = std::panic::catch_unwind(AssertUnwindSafe(|| controller(hub, key, &absent)));
    let decided = decided.map(|mut decided| {
        let creates = |action: &Action| matches!(action, Action::Create { .. });
        if decided.actions.iter().any(creates) && recovery::is_awaited(hub, &key.object) {
            decided.actions.retain(|action| !creates(action));
            decided.again = Some(decided.again.map_or(AWAITING, |again| again.min(AWAITING)));
        }
        if absent.waits {
            decided.again = Some(decided.again.map_or(RECOVERING, |again| again.min(RECOVERING)));
        }
        decided
    });
    decided.map_err(|_| {
        tracing::error!(controller = key.controller.name(), object = %key.object, "a controller panicked; report this with the object's YAML");
        Status::internal("the controller panicked")
    })
}

/// What is confirmed to be absent by the store itself. A cache may be behind, and silence must never look like absence, so nothing
/// is removed for the absence of something on a cache's word.
#[derive(Default)]
struct Absent {
    device: bool,
    /// It is not known yet whether the device is: to be looked at again.
    waits: bool,
    owners: Vec<Uid>,
}

async fn absences(hub: &Arc<Hub>, key: &Key) -> Result<Absent, Status> {
    let mut absent = Absent::default();
    match key.controller {
        Controller::Pod | Controller::Claim => {
            let device: Option<Box<str>> = {
                let cache = hub.cache();
                let entry = cache.get(&key.object);
                let name = entry.and_then(|entry| match entry.pod() {
                    Some(pod) => Some(&*pod.device).filter(|device| !device.is_empty()),
                    None => entry.claim_device(),
                });
                let known = |name: &&str| {
                    cache.object(GroupKind::DEVICE, "", name).is_some()
                        || cache.object(GroupKind::NODE, "", name).is_some()
                };
                name.filter(|name| !known(name)).map(Into::into)
            };
            if let Some(name) = device {
                let mut found = false;
                for kind in [GroupKind::DEVICE, GroupKind::NODE] {
                    found |= read(hub, &ObjectKey::new(kind, "", &name)).await?.is_some();
                }
                // Of a region that was recovered, a device may not have come back yet.
                absent.waits = !found && recovery::record(hub).is_some_and(|record| record.accepts(hub.now()));
                absent.device = !found && !absent.waits;
            }
        }
        Controller::Garbage => {
            let references: Vec<(ObjectKey, Uid)> = {
                let cache = hub.cache();
                let Some(entry) = cache.get(&key.object) else { return Ok(absent) };
                if entry.owners.iter().any(|uid| cache.by_uid(uid).is_some()) {
                    return Ok(absent);
                }
                owner_keys(&entry.object)
            };
            for (owner, uid) in references {
                if read(hub, &owner).await?.is_none_or(|object| *object.uid() != uid) {
                    absent.owners.push(uid);
                }
            }
        }
        Controller::Node => {
            let known = hub.cache().object(GroupKind::DEVICE, "", &key.object.name).is_some();
            if !known {
                absent.device = read(hub, &ObjectKey::new(GroupKind::DEVICE, "", &key.object.name)).await?.is_none();
            }
        }
        _ => {}
    }
    Ok(absent)
}

async fn read(hub: &Arc<Hub>, key: &ObjectKey) -> Result<Option<Object>, Status> {
    hub.config.store.get(key, Consistency::Linearizable).await
}

fn owner_keys(object: &Object) -> Vec<(ObjectKey, Uid)> {
    let value = object.value();
    let references =
        value.pointer("/metadata/ownerReferences").and_then(serde_json::Value::as_array).into_iter().flatten();
    references
        .filter_map(|owner| {
            let kind = GroupKind::from_api_version(owner["apiVersion"].as_str()?, owner["kind"].as_str()?);
            let cluster = hearth_types::registry::of_kind(&kind).is_some_and(|info| !info.is_namespaced());
            let namespace = if cluster { "" } else { object.namespace() };
            Some((ObjectKey::new(kind, namespace, owner["name"].as_str()?), Uid::from(owner["uid"].as_str()?)))
        })
        .collect()
}

/// Gathers what a controller looks at, and asks it.
fn controller(hub: &Hub, key: &Key, absent: &Absent) -> Reconciled {
    let now = hub.now();
    let object = |cache: &Cache| cache.get(&key.object).map(|entry| entry.object.clone());
    match key.controller {
        Controller::Install => install(hub, key),
        Controller::Deployment => {
            let cache = hub.cache();
            let Some(object) = object(&cache) else { return Reconciled::default() };
            let sets = owned(&cache, object.uid(), GroupKind::REPLICA_SET);
            let sets: Vec<Object> = sets.into_iter().map(|entry| entry.object.clone()).collect();
            let pods: Vec<SeenPod> = sets.iter().flat_map(|set| owned_pods(&cache, set.uid())).collect();
            drop(cache);
            deployment::reconcile(deployment::Inputs { deployment: &object, replica_sets: &sets, pods: &pods }, now)
        }
        Controller::ReplicaSet => {
            let cache = hub.cache();
            let Some(object) = object(&cache) else { return Reconciled::default() };
            let mut pods = owned_pods(&cache, object.uid());
            pods.extend(cache.orphans(object.namespace()).filter_map(|entry| seen(&cache, entry)));
            drop(cache);
            replicaset::reconcile(replicaset::Inputs { replica_set: &object, pods: &pods }, now)
        }
        Controller::Pod => {
            let cache = hub.cache();
            let Some(view) = cache.get(&key.object).and_then(Entry::pod).cloned() else {
                return Reconciled::default();
            };
            // What a silent device runs is its own affair: it ends guests by itself.
            let device = cache.device(&view.device).filter(|device| device.ready);
            let guest = device.filter(|device| *device.owner != *view.object.namespace());
            let lending_over = guest.is_some_and(|device| device.closed(now).is_some());
            drop(cache);
            pod::reconcile(pod::Inputs { pod: &view, device_exists: !absent.device, lending_over })
        }
        Controller::Node => {
            let (device, node) = {
                let cache = hub.cache();
                let find = |kind| cache.object(kind, "", &key.object.name).map(|entry| entry.object.clone());
                (find(GroupKind::DEVICE), find(GroupKind::NODE))
            };
            if device.is_none() && !absent.device {
                return Reconciled::default();
            }
            let (contact, again) = hub.sessions.contact(&key.object.name);
            let mut out = node::reconcile(node::Inputs { device: device.as_ref(), node: node.as_ref(), contact }, now);
            out.again = out.again.into_iter().chain(again).min();
            out
        }
        Controller::Claim => {
            let cache = hub.cache();
            let Some(object) = object(&cache) else { return Reconciled::default() };
            let uses =
                |pod: &Arc<hearth_controllers::PodView>| pod.claims.iter().any(|claim| **claim == *object.name());
            let in_use = cache.in_namespace(GroupKind::POD, object.namespace()).filter_map(Entry::pod).any(uses);
            drop(cache);
            claim::reconcile(claim::Inputs { claim: &object, in_use, device_exists: !absent.device }, hub.now())
        }
        Controller::Route => {
            let cache = hub.cache();
            let Some(object) = object(&cache) else { return Reconciled::default() };
            let pods: Vec<SeenPod> = cache
                .in_namespace(GroupKind::POD, object.namespace())
                .filter_map(|entry| seen(&cache, entry))
                .collect();
            let claim = PortClaim::of(&object.value());
            let holder = claim.and_then(|claim| cache.claims_of(claim.port).next().cloned());
            drop(cache);
            let ports = route::Ports { allowed: hub.config.ports.clone(), holder };
            route::reconcile(&object, &pods, &ports, now)
        }
        Controller::Namespace => {
            let cache = hub.cache();
            let Some(object) = object(&cache) else { return Reconciled::default() };
            let kinds = hearth_types::registry::all().iter().filter(|info| info.is_namespaced());
            let contents: Vec<Object> = if object.is_deleting() {
                kinds
                    .flat_map(|info| cache.in_namespace(info.group_kind(), object.name()))
                    .map(|entry| entry.object.clone())
                    .collect()
            } else {
                Vec::new()
            };
            drop(cache);
            namespace::reconcile(&object, &contents, now)
        }
        Controller::Certificate => {
            let cache = hub.cache();
            let Some(object) = object(&cache) else { return Reconciled::default() };
            let View::Device { owner } = cache.get(&key.object).map_or(View::Other, |entry| entry.view.clone()) else {
                return Reconciled::default();
            };
            let inputs = certificate::Inputs {
                device: &object,
                ordered: cache.orders_certificates(),
                serves: cache.serves(object.name(), &owner),
                exists: cache.object(GroupKind::CERTIFICATE, &owner, object.name()).is_some(),
                zone: &hub.config.zone,
            };
            certificate::reconcile(&inputs)
        }
        Controller::Garbage => {
            let Some(object) = object(&hub.cache()) else { return Reconciled::default() };
            garbage::reconcile(&object, |uid| !absent.owners.contains(uid))
        }
    }
}

fn owned<'a>(cache: &'a Cache, uid: &Uid, kind: GroupKind) -> Vec<&'a Entry> {
    cache.owned_by(uid).filter(|entry| *entry.object.kind() == kind).collect()
}

/// The pods that something controls, with what is known of their devices.
fn owned_pods(cache: &Cache, uid: &Uid) -> Vec<SeenPod> {
    owned(cache, uid, GroupKind::POD).into_iter().filter_map(|entry| seen(cache, entry)).collect()
}

/// A pod with what is known of its device.
fn seen(cache: &Cache, entry: &Entry) -> Option<SeenPod> {
    let pod = entry.pod()?;
    let (connected, since) = cache.contact(&pod.device);
    Some(SeenPod { connected, since, pod: Arc::clone(pod) })
}

fn install(hub: &Hub, key: &Key) -> Reconciled {
    let cache = hub.cache();
    let Some(entry) = cache.get(&key.object) else { return Reconciled::default() };
    let object = entry.object.clone();
    let (namespace, name) = (object.namespace(), object.name());
    let find = |kind: GroupKind| cache.object(kind, namespace, name).map(|entry| entry.object.clone());
    let app = match &entry.view {
        View::Install { app } => cache.object(GroupKind::APP, "", app).map(|entry| entry.object.clone()),
        _ => None,
    };
    let (deployment, route) = (find(GroupKind::DEPLOYMENT), find(GroupKind::ROUTE));
    let claims: BTreeMap<String, Object> = cache
        .in_namespace(GroupKind::PERSISTENT_VOLUME_CLAIM, namespace)
        .map(|entry| (entry.object.name().to_owned(), entry.object.clone()))
        .collect();
    let mine = |entry: &&Entry| entry.object.labels().get(labels::INSTALL).is_some_and(|label| *label == *name);
    let pods: Vec<SeenPod> =
        cache.in_namespace(GroupKind::POD, namespace).filter(mine).filter_map(|entry| seen(&cache, entry)).collect();
    drop(cache);
    let inputs = install::Inputs {
        install: &object,
        app: app.as_ref(),
        deployment: deployment.as_ref(),
        route: route.as_ref(),
        claims: &claims,
        pods: &pods,
        zone: &hub.config.zone,
    };
    install::reconcile(inputs, hub.now())
}
