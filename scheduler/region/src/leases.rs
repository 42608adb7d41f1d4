//! Leases of volumes that move: granted in answer to heartbeats, from memory; and what becomes of volumes whose device is silent. The rules, and why
//! there are never two writers, are in [`hearth_types::lease`].
//!
//! A region without such volumes pays nothing but a look at a count each second; a device without them nothing at all.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hearth_controllers::{Action, claim, node::Contact, replicaset};
use hearth_proto::v1;
use hearth_types::{
    DeviceName, GroupKind, Object, ObjectKey, Revision, Status,
    lease::{Authority, Epoch, Grants, Moment, Tenure},
    store::{Consistency, Expect, Op},
};
use tokio::time::Instant;

use crate::{
    cache::{Cache, Entry},
    hub::Hub,
    lead::Lead,
    recorder::Note,
    recovery, writer,
};

/// How often it is looked whether the lease of a silent device's volume is over.
const EVERY: Duration = Duration::from_secs(1);

/// The authority of this time of leading.
struct Term {
    nonce: String,
    /// The revision of the record that says so.
    record: Revision,
    grants: Grants,
}

/// What this server granted while it leads.
pub(crate) struct Leases {
    started: Instant,
    term: Mutex<Option<Term>>,
}

impl Leases {
    pub(crate) fn new() -> Self {
        Self { started: Instant::now(), term: Mutex::new(None) }
    }

    /// By a clock that stops while the machine is suspended: then the region waits longer.
    fn now(&self) -> Moment {
        Moment(0).plus(self.started.elapsed())
    }

    fn term(&self) -> MutexGuard<'_, Option<Term>> {
        self.term.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This server leads no longer.
    pub(crate) fn end(&self) {
        *self.term() = None;
    }
}

/// A claim that moves, and has a device.
#[derive(Clone, Debug)]
struct Held {
    object: Object,
    epoch: Epoch,
}

fn held(entry: &Entry) -> Option<Held> {
    Some(Held { object: entry.object.clone(), epoch: entry.claim_epoch().filter(|_| entry.claim_device().is_some())? })
}

/// Whether a device has volumes that need a lease.
pub(crate) fn concerns(hub: &Hub, device: &DeviceName) -> bool {
    hub.cache().claims_on(device.as_str()).any(|entry| entry.claim_epoch().is_some())
}

/// The leases that answer a device's heartbeat, which has been received. None where this server has no authority.
pub(crate) async fn grant(hub: &Arc<Hub>, device: &DeviceName, sequence: u64) -> Option<v1::Leases> {
    let claims: Vec<Held> = hub.cache().claims_on(device.as_str()).filter_map(held).collect();
    let (nonce, lease, noted) = {
        let now = hub.leases.now();
        let mut term = hub.leases.term();
        let term = term.as_mut()?;
        // Noted before it is known that it may be: who waits for it waits too long at worst.
        let noted: Vec<Held> =
            claims.into_iter().filter(|one| term.grants.grant(one.object.uid(), one.epoch, now)).collect();
        (term.nonce.clone(), term.grants.lease(), noted)
    };
    if noted.is_empty() {
        return None;
    }
    // It begins after the heartbeat was received: whoever takes authority does so after that, and waits from then on.
    let record = hub.config.store.get(&Authority::key(), Consistency::Linearizable).await.ok()??;
    if Authority::read(&record.value()).nonce != nonce {
        return None;
    }
    let mut grants = Vec::new();
    for one in noted {
        // Of what that read has seen: a cache may not know yet that the claim was released by whoever led before.
        let stored = hub.config.store.get(one.object.key(), Consistency::Local).await.ok()?;
        let Some(stored) = stored.filter(|stored| stored.uid() == one.object.uid()) else { continue };
        let value = stored.value();
        let tenure = Tenure::of_claim(&value);
        if tenure.is_some_and(|now| now.device == Some(device.as_str()) && now.epoch == one.epoch) {
            grants.push(v1::LeaseGrant { claim_uid: stored.uid().to_string(), epoch: one.epoch.0 });
        }
    }
    let lease_millis = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX);
    (!grants.is_empty()).then_some(v1::Leases { sequence, lease_millis, grants })
}

/// Takes authority once there is a volume that moves, and sees to those of silent devices, for ever.
pub(crate) async fn run(hub: Arc<Hub>, lead: Lead) {
    loop {
        tokio::time::sleep(EVERY).await;
        if !hub.cache().has_moving() {
            continue;
        }
        if hub.leases.term().is_none() {
            match take(&hub, &lead).await {
                Ok(term) => *hub.leases.term() = Some(term),
                Err(error) => {
                    tracing::warn!(%error, "the authority to grant leases of volumes cannot be taken; trying again");
                    continue;
                }
            }
            tracing::info!("this server grants the leases of volumes that move");
        }
        if let Err(error) = look(&hub).await {
            // Nobody knows what became of it: with authority of its own record, a new time of waiting begins.
            tracing::warn!(%error, "a volume of a silent device cannot be released; trying again");
            hub.leases.end();
        }
    }
}

/// Writes the record anew.
async fn take(hub: &Arc<Hub>, lead: &Lead) -> Result<Term, Status> {
    let old = hub.config.store.get(&Authority::key(), Consistency::Linearizable).await?;
    let before = old.as_ref().map_or(Duration::ZERO, |old| Authority::read(&old.value()).lease);
    let authority = Authority {
        nonce: writer::new_uid().to_string(),
        server: hub.config.group.id(),
        term: lead.term,
        lease: hub.config.timing.lease,
    };
    let action = match old {
        Some(base) => Action::Update { value: authority.write(Some(base.value())), base },
        None => Action::Create { object: authority.write(None) },
    };
    let ops: Vec<Op> = writer::to_op(hub, &action)?.into_iter().collect();
    let mut outcome = writer::write(hub, ops, true).await?;
    let stored = outcome.outcomes.pop().ok_or_else(|| Status::internal("no outcome"))??;
    let grants = Grants::new(hub.leases.now(), authority.lease, before);
    Ok(Term { nonce: authority.nonce, record: stored.revision(), grants })
}

/// Volumes that are to move, together since one pod uses them, and that pod where it has a device.
struct Move {
    device: Box<str>,
    claims: Vec<Held>,
    pod: Option<Object>,
    set: Object,
}

/// Releases what is due. An error says that nobody knows whether it happened.
async fn look(hub: &Arc<Hub>) -> Result<(), Status> {
    let (due, unknown) = due(hub);
    {
        let (now, cache) = (hub.leases.now(), hub.cache());
        if let Some(term) = hub.leases.term().as_mut() {
            term.grants.retain(now, |uid| cache.by_uid(uid).is_some());
        }
    }
    let mut gone = BTreeSet::new();
    for device in unknown {
        // A cache may be behind, and a device of a region that was recovered may not have come back yet.
        let key = ObjectKey::new(GroupKind::DEVICE, "", &device);
        let waits = recovery::record(hub).is_some_and(|record| record.accepts(hub.now()));
        if !waits && hub.config.store.get(&key, Consistency::Linearizable).await?.is_none() {
            gone.insert(device);
        }
    }
    for one in due {
        let known = hub.cache().object(GroupKind::DEVICE, "", &one.device).is_some();
        if known || gone.contains(&one.device) {
            release(hub, &one).await?;
        }
    }
    Ok(())
}

/// What is to move by its owner's word, and devices that are not known.
fn due(hub: &Hub) -> (Vec<Move>, BTreeSet<Box<str>>) {
    let cache = hub.cache();
    let mut due: Vec<Move> = Vec::new();
    let mut unknown = BTreeSet::new();
    let claims: Vec<&Entry> = cache.moving().collect();
    let devices: BTreeSet<&str> = claims.iter().filter_map(|entry| entry.claim_device()).collect();
    for device in devices {
        let (connected, since) = cache.contact(device);
        if connected {
            continue;
        }
        let known = cache.object(GroupKind::DEVICE, "", device).is_some();
        let silent = if known { since.map_or(Duration::ZERO, |since| hub.now().since(since)) } else { Duration::MAX };
        let here = claims.iter().filter(|entry| entry.claim_device() == Some(device));
        let namespaces: BTreeSet<&str> = here.map(|entry| entry.object.namespace()).collect();
        for namespace in namespaces {
            let before = due.len();
            due.extend(
                cache.in_namespace(GroupKind::POD, namespace).filter_map(|pod| moved(&cache, pod, device, silent)),
            );
            if due.len() > before && !known {
                unknown.insert(device.into());
            }
        }
    }
    (due, unknown)
}

/// What a pod takes along: its claims on that device, where all of its claims move and its owner said that it does by now.
fn moved(cache: &Cache, entry: &Entry, device: &str, silent: Duration) -> Option<Move> {
    let pod = entry.pod()?;
    let bound = pod.is_bound();
    if pod.is_finished() || pod.claims.is_empty() || (bound && *pod.device != *device) || (!bound && pod.deleting) {
        return None;
    }
    let namespace = entry.object.namespace();
    // One that waits takes nothing from one that has it: they go together.
    let has = |other: &Entry| {
        let theirs = other.pod().filter(|theirs| !theirs.is_finished() && other.object.namespace() == namespace);
        theirs.is_some_and(|theirs| theirs.claims.iter().any(|claim| pod.claims.contains(claim)))
    };
    if !bound && cache.pods_on(device).any(has) {
        return None;
    }
    let claims: Option<Vec<&Entry>> = (pod.claims.iter())
        .map(|name| cache.object(GroupKind::PERSISTENT_VOLUME_CLAIM, namespace, name).filter(|one| one.claim_moves()))
        .collect();
    let claims: Vec<Held> =
        claims?.into_iter().filter(|one| one.claim_device() == Some(device)).filter_map(held).collect();
    let set = cache.by_uid(pod.controller.as_ref()?).filter(|set| *set.object.kind() == GroupKind::REPLICA_SET)?;
    let after = replicaset::move_after(&set.object.value())?;
    if claims.is_empty() || silent < after {
        return None;
    }
    let (object, set) = (entry.object.clone(), set.object.clone());
    Some(Move { device: device.into(), claims, pod: bound.then_some(object), set })
}

/// Takes volumes from a silent device once no lease of them is held, and its pod with them, which cannot run by then.
async fn release(hub: &Arc<Hub>, one: &Move) -> Result<(), Status> {
    let Some(record) = revoked(hub, one) else { return Ok(()) };
    let expect = Expect { revision: Some(record), uid: None };
    let mut ops = vec![Op::Check { key: Authority::key(), expect }];
    for held in &one.claims {
        let action = Action::Update { base: held.object.clone(), value: claim::released(&held.object) };
        ops.extend(writer::to_op(hub, &action)?);
    }
    if let Some(pod) = &one.pod {
        ops.extend(writer::to_op(hub, &Action::Delete { base: pod.clone(), grace_seconds: Some(0) })?);
    }
    let outcome = writer::write(hub, ops, true).await?;
    if let Some(error) = outcome.outcomes.into_iter().find_map(Result::err) {
        tracing::debug!(device = %one.device, %error, "something changed meanwhile; looking again");
        restore(hub, one);
        // Should it have been the record, it is taken anew.
        let record = hub.config.store.get(&Authority::key(), Consistency::Linearizable).await?;
        let mine = hub.leases.term().as_ref().map(|term| term.record);
        return if record.map(|record| record.revision()) == mine {
            Ok(())
        } else {
            Err(Status::unavailable("another server grants leases"))
        };
    }
    for held in &one.claims {
        tracing::info!(claim = %held.object.key(), device = %one.device, epoch = %held.epoch, "released a volume of a silent device");
        let message = format!(
            "device {} is silent and its lease of this volume (epoch {}) is over: on another device it BEGINS EMPTY; what it has there is kept aside",
            one.device, held.epoch
        );
        hub.recorder.note(Note::about(&held.object, true, "VolumeReleased", message.clone(), "leases"));
        hub.recorder.note(Note::about(
            &one.set,
            true,
            "VolumeReleased",
            format!("{}: {message}", held.object.name()),
            "leases",
        ));
    }
    Ok(())
}

/// Whether no lease is held of any of the claims, and none will be granted; with the record by which this server knows.
fn revoked(hub: &Hub, one: &Move) -> Option<Revision> {
    let now = hub.leases.now();
    let mut term = hub.leases.term();
    let term = term.as_mut()?;
    let ids = || one.claims.iter().map(|held| (held.object.uid(), held.epoch));
    if ids().any(|(uid, _)| !term.grants.left(uid, now).is_zero()) {
        return None;
    }
    let left = ids().map(|(uid, epoch)| term.grants.revoke(uid, epoch, now)).max();
    let back = matches!(hub.sessions.contact(&one.device).0, Contact::Connected);
    if back || left != Some(Duration::ZERO) {
        for (uid, epoch) in ids() {
            term.grants.restore(uid, epoch);
        }
        return None;
    }
    Some(term.record)
}

/// They have certainly not been released.
fn restore(hub: &Hub, one: &Move) {
    if let Some(term) = hub.leases.term().as_mut() {
        for held in &one.claims {
            term.grants.restore(held.object.uid(), held.epoch);
        }
    }
}
