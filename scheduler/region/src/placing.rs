//! The placement loop: collects pending pods for a moment, plans once, binds in one transaction, and tells those that found no place why.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use hearth_controllers::Action;
use hearth_placement::{Bound, Claim, Plan, Pod, Snapshot, Unplaced, User, plan};
use hearth_types::{
    GroupKind, ObjectKey, Status,
    condition::{self, Condition, Truth},
    store::{Expect, MAX_OPS, Op},
};

use tokio::time::Instant;

use crate::{
    cache::{Cache, Entry, View},
    hub::Hub,
    recorder::Note,
    writer,
};

/// The pause before what failed is planned again.
const PAUSE: Duration = Duration::from_millis(100);

/// How often a pod that is still pending is told why although nothing changed: its Event is kept for an hour, and this is well within.
const RETELL: Duration = Duration::from_mins(20);

/// Plans whenever something asks for it, for ever.
pub(crate) async fn run(hub: Arc<Hub>) {
    let mut retell_at = Instant::now() + RETELL;
    loop {
        let retell = tokio::select! {
            () = hub.placement.notified() => false,
            () = tokio::time::sleep_until(retell_at) => true,
        };
        tokio::time::sleep(hub.config.timing.placement_debounce).await;
        if retell {
            retell_at = Instant::now() + RETELL;
        }
        match once(&hub, retell).await {
            Ok(true) => {}
            Ok(false) => {
                tokio::time::sleep(PAUSE).await;
                hub.placement.notify_one();
            }
            Err(error) => {
                tracing::warn!(%error, "a plan was not stored; planning again");
                tokio::time::sleep(PAUSE).await;
                hub.placement.notify_one();
            }
        }
    }
}

/// Plans once. `false`: some of it was outdated when it came to the store, and is to be planned anew.
async fn once(hub: &Arc<Hub>, retell: bool) -> Result<bool, Status> {
    let (snapshot, pending) = {
        let cache = hub.cache();
        hub.metrics.pending_pods.set(i64::try_from(cache.pending_count()).unwrap_or(i64::MAX));
        if cache.pending_count() == 0 {
            return Ok(true);
        }
        snapshot(hub, &cache)
    };
    let timer = hub.metrics.plan_seconds.start_timer();
    let plan = plan(&snapshot, &pending);
    timer.observe_duration();
    hub.metrics.placements.with_label_values(&["placed"]).inc_by(plan.assignments.len() as u64);
    hub.metrics.placements.with_label_values(&["unplaced"]).inc_by(plan.unplaced.len() as u64);
    let current = bind(hub, &plan).await?;
    let told = explain(hub, &plan.unplaced, retell).await?;
    hub.metrics.pending_pods.set(i64::try_from(hub.cache().pending_count()).unwrap_or(i64::MAX));
    Ok(current && told)
}

fn snapshot(hub: &Hub, cache: &Cache) -> (Snapshot, Vec<Arc<Pod>>) {
    let mut snapshot = Snapshot { now: hub.now(), devices: cache.devices().cloned().collect(), ..Snapshot::default() };
    for device in &snapshot.devices {
        for entry in cache.pods_on(&device.name) {
            if let View::Pod { view, place } = &entry.view
                && !view.is_finished()
            {
                snapshot.bound.push(Bound { device: Arc::clone(&device.name), pod: Arc::clone(place) });
            }
        }
    }
    let users = users(cache);
    let mut pending = Vec::new();
    let mut claims = HashMap::new();
    for entry in cache.pending() {
        let View::Pod { place, .. } = &entry.view else { continue };
        for claim in &place.shape.claims {
            let found = cache.object(GroupKind::PERSISTENT_VOLUME_CLAIM, entry.object.namespace(), claim);
            if let Some(found) = found {
                let claim_view = Claim {
                    device: found.claim_device().map(Into::into),
                    deleting: found.deleting,
                    moves: found.claim_moves(),
                    user: users.get(&(entry.object.namespace(), &**claim)).cloned(),
                };
                claims.insert((entry.object.namespace().into(), claim.clone()), claim_view);
            }
        }
        pending.push(Arc::clone(place));
    }
    snapshot.claims = claims;
    (snapshot, pending)
}

/// The pods that have the claims of namespaces with pending pods. Bound to any device, also to one that is gone, and whoever controls
/// them: what was made anew under another uid must wait for the pods of what it replaces.
fn users(cache: &Cache) -> HashMap<(&str, &str), User> {
    let wanting = cache.pending().filter(|entry| entry.pod().is_some_and(|pod| !pod.claims.is_empty()));
    let namespaces: BTreeSet<&str> = wanting.map(|entry| entry.object.namespace()).collect();
    let mut users: HashMap<(&str, &str), User> = HashMap::new();
    for namespace in namespaces {
        let pods = cache.in_namespace(GroupKind::POD, namespace).filter_map(Entry::pod);
        for pod in pods.filter(|pod| pod.is_bound() && !pod.is_finished()) {
            for claim in &pod.claims {
                let user = User { pod: pod.object.name().into(), stopping: pod.deleting };
                let known = users.entry((namespace, &**claim)).or_insert_with(|| user.clone());
                // Of several, which only an older version or a hand made, one that will stay says more.
                if known.stopping && !user.stopping {
                    *known = user;
                }
            }
        }
    }
    users
}

async fn bind(hub: &Arc<Hub>, plan: &Plan) -> Result<bool, Status> {
    let mut current = true;
    for batch in plan.assignments.chunks(MAX_OPS) {
        let ops: Vec<Op> = batch
            .iter()
            .map(|one| Op::Bind {
                pod: one.pod.key.clone(),
                expect: Expect { revision: Some(one.pod.revision), uid: Some(one.pod.uid.clone()) },
                device: one.device.to_string(),
                claims: (one.pod.shape.claims.iter())
                    .map(|claim| ObjectKey::new(GroupKind::PERSISTENT_VOLUME_CLAIM, &one.pod.key.namespace, claim))
                    .collect(),
            })
            .collect();
        let outcome = writer::write(hub, ops, false).await?;
        for (one, done) in batch.iter().zip(outcome.outcomes) {
            match done {
                Ok(pod) => {
                    let message = format!("Successfully assigned {}/{} to {}", pod.namespace(), pod.name(), one.device);
                    hub.recorder.note(Note::about(&pod, false, "Scheduled", message, "placement"));
                }
                Err(error) => {
                    tracing::debug!(%error, pod = %one.pod.key, "a binding was outdated; planning again");
                    current = false;
                }
            }
        }
    }
    Ok(current)
}

/// Tells each pod without a place why, per device, in its condition and by an Event, where it was not told the same already. With `retell`
/// the Event is told all the same, so that it does not expire while it is true.
async fn explain(hub: &Arc<Hub>, unplaced: &[Unplaced], retell: bool) -> Result<bool, Status> {
    let mut ops = Vec::new();
    let mut notes = Vec::new();
    // Pods of one shape, which come one after the other, share their reasons.
    let told = unplaced.chunk_by(|one, next| Arc::ptr_eq(&one.why, &next.why));
    for (one, message) in told.flat_map(|alike| {
        let message = alike[0].why.text();
        alike.iter().map(move |one| (one, message.clone()))
    }) {
        let Some((object, told)) = ({
            let cache = hub.cache();
            cache.get(&one.pod.key).and_then(|entry| Some((entry.object.clone(), entry.pod()?.unscheduled.clone())))
        }) else {
            continue;
        };
        let known = told.as_deref() == Some(message.as_str());
        if (known && !retell) || object.revision() != one.pod.revision {
            continue;
        }
        if !known {
            let mut value = object.value();
            let condition = Condition::new("PodScheduled", Truth::False, "Unschedulable", message.clone());
            condition::set(&mut value, &condition, hub.now());
            match writer::to_op(hub, &Action::Update { base: object.clone(), value }) {
                Ok(op) => ops.extend(op),
                Err(error) => tracing::warn!(pod = %one.pod.key, %error, "its condition cannot be written"),
            }
        }
        notes.push(Note::about(&object, true, "FailedScheduling", message, "placement"));
    }
    let mut current = true;
    while !ops.is_empty() {
        let rest = ops.split_off(ops.len().min(MAX_OPS));
        current &= writer::write(hub, ops, false).await?.outcomes.iter().all(Result::is_ok);
        ops = rest;
    }
    for note in notes {
        hub.recorder.note(note);
    }
    Ok(current)
}
