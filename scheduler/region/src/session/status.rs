//! What devices report, written in batches and acknowledged once it is stored.

use std::{sync::Arc, time::Duration};

use hearth_controllers::{Action, claim::DATA_DELETED};
use hearth_proto::v1::{ObjectStatus, StatusAck, StatusReport, region_message::Message};
use hearth_types::{
    GroupKind, Object, ObjectKey, Uid,
    store::{Consistency, Expect, MAX_OPS, Op},
};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{Session, desired};
use crate::{hub::Hub, writer};

/// The largest status in bytes: a pod of sixteen containers with long messages fits.
const MAX_STATUS: usize = 256 << 10;
/// Statuses of one report at most; an agent sends far fewer.
const MAX_ITEMS: usize = 4096;
/// Tries of a status against others that write the same object.
const TRIES: usize = 6;
/// Tries of the store before the session is ended, so that the device sends everything again.
const STORE_TRIES: u32 = 10;
/// The pause between two tries of the store.
const PAUSE: Duration = Duration::from_millis(200);

/// One report and whom to tell when it is stored.
pub(crate) struct StatusJob {
    pub(crate) session: Arc<Session>,
    pub(crate) report: StatusReport,
}

/// Something that a device reported and that is to be stored.
struct Item {
    device: Box<str>,
    key: ObjectKey,
    uid: Uid,
    status: Option<Value>,
    finished: bool,
}

/// Writes reports for ever: what comes together is one transaction.
pub(crate) async fn write_statuses(hub: Arc<Hub>, mut jobs: mpsc::Receiver<StatusJob>) {
    while let Some(first) = jobs.recv().await {
        let mut batch = vec![first];
        let mut count = batch[0].report.items.len();
        while count < MAX_OPS
            && let Ok(job) = jobs.try_recv()
        {
            count += job.report.items.len();
            batch.push(job);
        }
        let items = batch.iter().flat_map(|job| items(&hub, job)).collect();
        let stored = store(&hub, items).await;
        for job in &batch {
            if stored {
                job.session.send(Message::StatusAck(StatusAck { sequence: job.report.sequence }));
            } else {
                // The device sends everything again when it is back.
                job.session.end.cancel();
            }
        }
    }
}

/// Reads what a device reported; what cannot be stored ever is dropped, and acknowledged all the same.
fn items(hub: &Hub, job: &StatusJob) -> Vec<Item> {
    let mut out: Vec<Item> = Vec::new();
    for one in job.report.items.iter().take(MAX_ITEMS) {
        match item(&job.session, one) {
            Ok(item) => {
                // Of an object only the newest counts.
                out.retain(|old| old.key != item.key);
                out.push(item);
            }
            Err(why) => {
                hub.metrics.statuses.with_label_values(&["malformed"]).inc();
                tracing::warn!(device = %job.session.device, why, "dropped a status that cannot be read");
            }
        }
    }
    out
}

fn item(session: &Session, one: &ObjectStatus) -> Result<Item, String> {
    let key = one.r#ref.as_ref().map(desired::key_of).ok_or("it names no object")?;
    if one.status_json.len() > MAX_STATUS {
        return Err(format!("{key}: {} bytes; at most {MAX_STATUS}", one.status_json.len()));
    }
    if one.uid.is_empty() {
        return Err(format!("{key}: without the object's uid"));
    }
    let status = if one.status_json.is_empty() {
        None
    } else {
        let value: Value = serde_json::from_slice(&one.status_json).map_err(|error| format!("{key}: {error}"))?;
        Some(value).filter(Value::is_object)
    };
    Ok(Item {
        device: session.device.as_str().into(),
        key,
        uid: Uid::from(one.uid.as_str()),
        status,
        finished: one.finished,
    })
}

/// Stores what is reported, against others that write the same objects. `false`: the store cannot be written.
async fn store(hub: &Arc<Hub>, mut items: Vec<Item>) -> bool {
    for tried in 0..TRIES {
        let mut ops = Vec::new();
        let mut of: Vec<Item> = Vec::new();
        for item in items {
            match plan(hub, &item, tried > 0).await {
                Ok(Some(op)) => {
                    ops.push(op);
                    of.push(item);
                }
                Ok(None) => hub.metrics.statuses.with_label_values(&["unchanged"]).inc(),
                Err(why) => {
                    hub.metrics.statuses.with_label_values(&["refused"]).inc();
                    tracing::warn!(device = item.device, object = %item.key, why, "refused a status");
                }
            }
        }
        items = Vec::new();
        while !ops.is_empty() {
            let rest = ops.split_off(ops.len().min(MAX_OPS));
            let left = of.split_off(ops.len());
            let Some(outcomes) = write(hub, ops).await else {
                return false;
            };
            for (item, stored) in of.into_iter().zip(outcomes) {
                if stored {
                    hub.metrics.statuses.with_label_values(&["stored"]).inc();
                } else {
                    items.push(item);
                }
            }
            (ops, of) = (rest, left);
        }
        if items.is_empty() {
            return true;
        }
    }
    false
}

/// Writes, and says of each operation whether it happened; `None` where the store cannot be written.
async fn write(hub: &Arc<Hub>, ops: Vec<Op>) -> Option<Vec<bool>> {
    for tried in 1..=STORE_TRIES {
        match writer::write(hub, ops.clone(), false).await {
            Ok(outcome) => return Some(outcome.outcomes.iter().map(Result::is_ok).collect()),
            Err(error) => {
                tracing::debug!(%error, "statuses cannot be stored yet");
                tokio::time::sleep(PAUSE * tried).await;
            }
        }
    }
    None
}

/// The operation that stores one status, or none; or why it is refused.
async fn plan(hub: &Arc<Hub>, item: &Item, fresh: bool) -> Result<Option<Op>, String> {
    let cached = || hub.cache().get(&item.key).cloned();
    let mut entry = cached();
    // The device may know of the object before this cache does, and a conflict says that the cache is behind.
    if fresh || entry.as_ref().is_none_or(|entry| *entry.object.uid() != item.uid) {
        match hub.config.store.get(&item.key, Consistency::Linearizable).await {
            Ok(Some(object)) => hub.observe_put(object),
            Ok(None) => return Ok(None),
            Err(error) => tracing::debug!(%error, object = %item.key, "cannot be read; going by the cache"),
        }
        entry = cached();
    }
    let Some(entry) = entry.filter(|entry| *entry.object.uid() == item.uid) else {
        // It is gone, or another of the same name: what is reported is of the past.
        return Ok(None);
    };
    if !desired::belongs_to(&entry, &item.device) {
        return Err(format!("{} is not on device {}", item.key, item.device));
    }
    let action = if item.key.kind == GroupKind::POD {
        pod(item, &entry.object, entry.deleting)
    } else if item.key.kind == GroupKind::PERSISTENT_VOLUME_CLAIM {
        Some(claim(item, &entry.object, entry.deleting))
    } else {
        return Err(format!("a device reports on pods and claims, not on {}", item.key.kind));
    };
    match action {
        None => Ok(Some(Op::Delete { key: item.key.clone(), expect: Expect::same(&entry.object) })),
        Some(action) => writer::to_op(hub, &action).map_err(|error| error.message),
    }
}

/// A pod's status, or `None` where the pod is done with and to be removed.
fn pod(item: &Item, base: &Object, deleting: bool) -> Option<Action> {
    let mut value = base.value();
    let held = value.pointer("/metadata/finalizers").and_then(Value::as_array).is_some_and(|list| !list.is_empty());
    if deleting && item.finished && !held {
        return None;
    }
    if let Some(status) = &item.status {
        let scheduled = conditions(&value).find(|one| one["type"] == "PodScheduled").cloned();
        value["status"] = status.clone();
        // Placement's own condition is the region's, not the device's.
        if let Some(scheduled) = scheduled {
            let others = conditions(&value).filter(|one| one["type"] != "PodScheduled").cloned();
            let all: Vec<Value> = std::iter::once(scheduled).chain(others).collect();
            value["status"]["conditions"] = Value::Array(all);
        }
    }
    Some(Action::Update { base: base.clone(), value })
}

fn conditions(value: &Value) -> impl Iterator<Item = &Value> {
    value.pointer("/status/conditions").and_then(Value::as_array).into_iter().flatten()
}

/// A claim's status; and once its data is deleted, the mark by which its controller lets it go.
fn claim(item: &Item, base: &Object, deleting: bool) -> Action {
    let mut value = base.value();
    if let Some(status) = &item.status {
        value["status"] = status.clone();
    }
    if deleting && item.finished {
        value["metadata"]["annotations"][DATA_DELETED] = json!("true");
    }
    Action::Update { base: base.clone(), value }
}
