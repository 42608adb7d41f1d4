//! Puts what was handed in into the store: one transaction, with the ledgers of what is known of the lost region.

use std::{collections::BTreeSet, sync::Arc};

use hearth_controllers::Action;
use hearth_proto::v1::HandInResponse;
use hearth_types::{
    DeviceKey, GroupKind, Object, ObjectKey,
    recovery::{Digest, Held, Ledger, essence, ledger_key, rank},
    store::{Consistency, Expect, Op, OpError},
};
use serde_json::{Value, json};
use tonic::Status;

use super::{
    device,
    hand_in::{HandIn, Refused},
};
use crate::{hub::Hub, writer};

/// Tries against whoever changes the same objects: other devices of the owner that hand in.
const TRIES: usize = 16;
/// The key of a ledger in its ConfigMap.
const LEDGER: &str = "ledger";

/// A ledger with the object that it is kept in.
struct Kept {
    owner: Option<String>,
    base: Option<Object>,
    before: Ledger,
    now: Ledger,
}

impl Kept {
    async fn read(hub: &Hub, owner: Option<&str>) -> Result<Self, Status> {
        let base = stored(hub, &ledger_key(owner)).await?;
        let before = match &base {
            Some(object) => {
                let value = object.value();
                let text = value.pointer(&format!("/data/{LEDGER}")).and_then(Value::as_str).unwrap_or_default();
                serde_json::from_str(text).map_err(|error| {
                    Status::internal(format!("{} cannot be read: {error}; delete it to begin anew", object.key()))
                })?
            }
            None => Ledger::default(),
        };
        Ok(Self { owner: owner.map(str::to_owned), base, now: before.clone(), before })
    }

    /// The operation that writes it down, if it changed.
    fn op(&self, hub: &Hub) -> Result<Option<Op>, Status> {
        if self.now == self.before {
            return Ok(None);
        }
        let text = serde_json::to_string(&self.now).map_err(|error| Status::internal(error.to_string()))?;
        let action = if let Some(base) = &self.base {
            let mut value = base.value();
            value["data"] = json!({LEDGER: text});
            Action::Update { base: base.clone(), value }
        } else {
            let key = ledger_key(self.owner.as_deref());
            let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {LEDGER: text},
                "metadata": {"name": key.name, "namespace": key.namespace}});
            Action::Create { object }
        };
        writer::to_op(hub, &action).map_err(|error| Status::internal(error.message))
    }
}

async fn stored(hub: &Hub, key: &ObjectKey) -> Result<Option<Object>, Status> {
    let read = hub.config.store.get(key, Consistency::Linearizable).await;
    read.map_err(|error| Status::unavailable(error.message))
}

/// Stores what is new in a hand-in, where it is of the owner whose device proved `key`.
pub(super) async fn commit(
    hub: &Arc<Hub>,
    key: DeviceKey,
    mut hand_in: HandIn,
) -> Result<(HandInResponse, Refused), Status> {
    let owner = hand_in.manifest.owner.clone();
    let refuse = |why: &str| Status::permission_denied(format!("the copies are of {owner}'s objects, and {why}"));
    let own_device = hand_in.device_of(key).cloned();
    let own_device = own_device.ok_or_else(|| refuse("the key that hands them in is of no Device of theirs"))?;
    hand_in.drop_foreign();
    // Objects that apply refuses for what is in them.
    let mut odd: BTreeSet<ObjectKey> = BTreeSet::new();
    for _ in 0..TRIES {
        let mut own = Kept::read(hub, Some(&owner)).await?;
        let mut shared = Kept::read(hub, None).await?;
        let merged = own.now.merge(&hand_in.manifest, false);
        let older = [merged.older, shared.now.merge(&hand_in.manifest, true).older].concat();
        if !known_device(hub, &own.now, &own_device, key).await? {
            return Err(refuse(
                "the Device with the key that hands them in was removed, or the key was, as others know",
            ));
        }
        let mut refused = hand_in.refused.clone();
        for key in &older {
            refused.add(key, "what was handed in before is newer");
        }
        forget(hub, merged.gone).await?;
        let mut response = HandInResponse::default();
        let mut ops = Vec::new();
        let mut ready: Vec<&Object> = hand_in.objects.values().collect();
        ready.sort_by_key(|object| rank(object.kind()));
        for object in ready {
            let kept = if own.now.get(object.key()).is_some() { &mut own } else { &mut shared };
            let Some(held) = kept.now.get(object.key()).cloned() else { continue };
            if *object.uid() != held.uid || Digest::of(&essence(object)) != held.sha256 {
                continue;
            }
            if held.decided == Some(held.sha256) {
                response.known += 1;
                continue;
            }
            kept.now.decide(object.key());
            if odd.contains(object.key()) {
                refused.add(object.key(), "it cannot stand beside what is there: one of its keys is another Device's");
                continue;
            }
            match plan(stored(hub, object.key()).await?, object, &held)? {
                Plan::Write(op) => ops.push(op),
                Plan::Known => response.known += 1,
                Plan::Keep(why) => refused.add(object.key(), why),
            }
        }
        response.restored = u32::try_from(ops.len()).unwrap_or(u32::MAX);
        let objects = ops.len();
        ops.extend(own.op(hub)?);
        ops.extend(shared.op(hub)?);
        if ops.is_empty() {
            return Ok((response, refused));
        }
        let outcome = writer::write(hub, ops.clone(), true).await;
        let outcome = outcome.map_err(|error| Status::unavailable(error.message))?;
        let failed = ops.iter().zip(&outcome.outcomes).enumerate();
        let failed = failed.filter_map(|(index, (op, done))| Some((index, op, done.as_ref().err()?)));
        let Some((index, op, error)) = failed.into_iter().find(|(_, _, error)| **error != OpError::Aborted) else {
            return Ok((response, refused));
        };
        tracing::debug!(%error, "a hand-in met a change; once more");
        if let (Op::Create { object }, OpError::Conflict { .. } | OpError::Malformed(_)) = (op, error)
            && index < objects
        {
            odd.insert(object.key().clone());
        }
    }
    Err(Status::aborted("others hand in the same objects all the time; try again"))
}

/// Whether the Device by which a caller is known is still known, as far as anybody handed in.
async fn known_device(hub: &Hub, ledger: &Ledger, own: &Object, key: DeviceKey) -> Result<bool, Status> {
    let Some(held) = ledger.get(own.key()) else { return Ok(false) };
    if held.decided.is_none() && held.uid == *own.uid() && held.sha256 == Digest::of(&essence(own)) {
        return Ok(true);
    }
    // There is a newer word on it, in the store.
    Ok(stored(hub, own.key()).await?.is_some_and(|object| device(&object).1.contains(&key)))
}

enum Plan {
    Write(Op),
    /// It is there.
    Known,
    /// What is there stays.
    Keep(&'static str),
}

fn plan(there: Option<Object>, object: &Object, held: &Held) -> Result<Plan, Status> {
    let odd = |error: hearth_types::object::ObjectError| Status::internal(error.to_string());
    let Some(there) = there else {
        let mut value = object.value();
        if *object.kind() == GroupKind::POD {
            // Its device says the rest.
            value["status"] = json!({"phase": "Pending"});
        }
        return Ok(Plan::Write(Op::Create { object: Object::from_value(value).map_err(odd)? }));
    };
    if there.uid() != object.uid() {
        return Ok(Plan::Keep("another of this name was made since"));
    }
    let now = Digest::of(&essence(&there));
    if now == held.sha256 {
        return Ok(Plan::Known);
    }
    if held.decided != Some(now) {
        return Ok(Plan::Keep("it was changed since it was recovered"));
    }
    let mut value = object.value();
    value["status"] = there.value()["status"].clone();
    let object = Object::from_value(value).map_err(odd)?;
    Ok(Plan::Write(Op::Update { object, expect: Expect::same(&there) }))
}

/// Removes what an older hand-in brought and a newer one knows to have been deleted, unless somebody changed it since. Only the region
/// forgets it: nothing tells a device to delete data. Owners go first and all at once, so that no controller makes anew what goes.
async fn forget(hub: &Arc<Hub>, mut gone: Vec<Held>) -> Result<(), Status> {
    gone.sort_by_key(|held| rank(&held.key.kind));
    for _ in 0..TRIES {
        let mut ops = Vec::new();
        for held in &gone {
            let Some(there) = stored(hub, &held.key).await? else { continue };
            // A status that a controller writes meanwhile changes nothing of that.
            if *there.uid() == held.uid && held.decided == Some(Digest::of(&essence(&there))) {
                ops.push(Op::Delete { key: held.key.clone(), expect: Expect::same(&there) });
            }
        }
        if ops.is_empty() {
            return Ok(());
        }
        let count = ops.len();
        writer::write(hub, ops, false).await.map_err(|error| Status::unavailable(error.message))?;
        tracing::info!(objects = count, "forgetting what had been deleted before the region was lost");
    }
    Err(Status::aborted("what had been deleted is changed by others all the time; try again"))
}
