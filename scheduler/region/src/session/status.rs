//! What devices report, written in batches and acknowledged once it is stored.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use hearth_controllers::{Action, claim::DATA_DELETED};
use hearth_proto::v1::{ObjectStatus, StatusAck, StatusReport, region_message::Message};
use hearth_types::{
    GroupKind, Object, ObjectKey, Status, Timestamp, Uid,
    condition::{self, Condition},
    external,
    kinds::{DeviceNetwork, PRESSURES},
    lan,
    store::{Consistency, Expect, MAX_OPS, Op},
};
use serde_json::{Value, json};

use super::{Session, desired};
use crate::{
    hub::Hub,
    writer::{self, is_passing},
};

/// The largest status in bytes: a pod of sixteen containers with long messages fits.
const MAX_STATUS: usize = 256 << 10;
/// Bytes of a reason and characters of a message of a device's condition: those that the kubelet has are far shorter.
const MAX_REASON: usize = 128;
const MAX_MESSAGE: usize = 1024;
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
    /// Which report of the batch it is of.
    job: usize,
    device: Box<str>,
    /// Where the device's session comes from.
    from: Option<IpAddr>,
    key: ObjectKey,
    uid: Uid,
    status: Option<Value>,
    finished: bool,
}

/// Writes reports for ever: what comes together is one transaction.
pub(crate) async fn write_statuses(hub: Arc<Hub>) {
    let mut jobs = hub.statuses.lock().await;
    while let Some(first) = jobs.recv().await {
        let mut batch = vec![first];
        let mut count = batch[0].report.items.len();
        while count < MAX_OPS
            && let Ok(job) = jobs.try_recv()
        {
            count += job.report.items.len();
            batch.push(job);
        }
        let items = batch.iter().enumerate().flat_map(|(index, job)| items(&hub, index, job)).collect();
        let failed = store(&hub, items).await;
        for (index, job) in batch.iter().enumerate() {
            if failed.contains(&index) {
                // The device sends everything again when it is back.
                job.session.end.cancel();
            } else {
                job.session.send(Message::StatusAck(StatusAck { sequence: job.report.sequence }));
            }
        }
    }
}

/// Reads what a device reported; what cannot be stored ever is dropped, and acknowledged all the same.
fn items(hub: &Hub, index: usize, job: &StatusJob) -> Vec<Item> {
    let mut out: Vec<Item> = Vec::new();
    for one in job.report.items.iter().take(MAX_ITEMS) {
        match item(index, &job.session, one) {
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

fn item(job: usize, session: &Session, one: &ObjectStatus) -> Result<Item, String> {
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
        job,
        device: session.device.as_str().into(),
        from: session.from,
        key,
        uid: Uid::from(one.uid.as_str()),
        status,
        finished: one.finished,
    })
}

/// Stores what is reported, against others that write the same objects. Gives the reports of which something could not be stored: what
/// one device says never costs another its session.
async fn store(hub: &Arc<Hub>, mut items: Vec<Item>) -> BTreeSet<usize> {
    let mut failed = BTreeSet::new();
    for tried in 0..TRIES {
        let mut ops = Vec::new();
        for item in items {
            match plan(hub, &item, tried > 0).await {
                Ok(Some(op)) => ops.push((item, op)),
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
            items.extend(write(hub, ops, &mut failed).await);
            ops = rest;
        }
        items.retain(|item| !failed.contains(&item.job));
        if items.is_empty() {
            return failed;
        }
    }
    failed.extend(items.into_iter().map(|item| item.job));
    failed
}

/// Writes, and gives back what was outdated. Where the store refuses the whole for what is in it, each report is written by itself, and
/// those that it refuses then are added to `failed`; where it cannot be written at all, all of them are.
async fn write(hub: &Arc<Hub>, ops: Vec<(Item, Op)>, failed: &mut BTreeSet<usize>) -> Vec<Item> {
    let (items, all): (Vec<Item>, Vec<Op>) = ops.into_iter().unzip();
    let error = match try_write(hub, &all).await {
        Ok(stored) => return outdated(hub, items.into_iter().zip(stored)),
        Err(error) => error,
    };
    let jobs: BTreeSet<usize> = items.iter().map(|item| item.job).collect();
    if is_passing(&error) || jobs.len() == 1 {
        for item in &items {
            tracing::warn!(device = item.device, object = %item.key, %error, "a status cannot be stored; the device sends it again in a new session");
        }
        failed.extend(jobs);
        return Vec::new();
    }
    let mut by_job: BTreeMap<usize, Vec<(Item, Op)>> = BTreeMap::new();
    for (item, op) in items.into_iter().zip(all) {
        by_job.entry(item.job).or_default().push((item, op));
    }
    let mut left = Vec::new();
    for ops in by_job.into_values() {
        left.extend(Box::pin(write(hub, ops, failed)).await);
    }
    left
}

/// Of what was tried, what was not stored since something else changed it.
fn outdated(hub: &Hub, done: impl Iterator<Item = (Item, bool)>) -> Vec<Item> {
    let mut left = Vec::new();
    for (item, stored) in done {
        if stored {
            hub.metrics.statuses.with_label_values(&["stored"]).inc();
        } else {
            left.push(item);
        }
    }
    left
}

/// Writes, and says of each operation whether it happened. A store that cannot answer now is asked again.
async fn try_write(hub: &Arc<Hub>, ops: &[Op]) -> Result<Vec<bool>, Status> {
    let mut tried = 0;
    loop {
        tried += 1;
        match writer::write(hub, ops.to_vec(), false).await {
            Ok(outcome) => return Ok(outcome.outcomes.iter().map(Result::is_ok).collect()),
            Err(error) if tried < STORE_TRIES && is_passing(&error) => {
                tracing::debug!(%error, "statuses cannot be stored yet");
                tokio::time::sleep(PAUSE * tried).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// The operation that stores one status, or none; or why it is refused.
async fn plan(hub: &Arc<Hub>, item: &Item, fresh: bool) -> Result<Option<Op>, String> {
    let cached = || hub.cache().get(&item.key).cloned();
    let mut entry = cached();
    // The device may know of the object before this cache does, and a conflict says that the cache is behind.
    if fresh || entry.as_ref().is_none_or(|entry| *entry.object.uid() != item.uid) {
        match hub.config.store.get(&item.key, Consistency::Linearizable).await {
            Ok(Some(object)) => hub.observe_read(object),
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
    } else if item.key.kind == GroupKind::DEVICE {
        Some(device(item, &entry.object, hub.now()))
    } else {
        return Err(format!("a device reports on itself, pods and claims, not on {}", item.key.kind));
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

/// What a device runs short of, in the conditions that are its own to tell, and how it is reached; all else of it is the region's.
fn device(item: &Item, base: &Object, now: Timestamp) -> Action {
    let mut value = base.value();
    let told = item.status.clone().unwrap_or_default();
    for (name, _) in PRESSURES {
        let Some(said) = condition::get(&json!({"status": told}), name) else { continue };
        let is_word = !said.reason.is_empty() && said.reason.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let reason = if is_word && said.reason.len() <= MAX_REASON { said.reason.as_str() } else { "Unknown" };
        let message: String = said.message.chars().take(MAX_MESSAGE).collect();
        condition::set(&mut value, &Condition::new(name, said.status, reason, message), now);
    }
    if let Some(said) = told.get("network").and_then(DeviceNetwork::read) {
        network(&mut value, said, now);
    }
    if let Some(said) = told.get("addresses") {
        addresses(&mut value, said, item.from, &item.device);
    }
    Action::Update { base: base.clone(), value }
}

/// How a device is reached: since when is the region's to say.
fn network(device: &mut Value, mut said: DeviceNetwork, now: Timestamp) {
    let known: Option<DeviceNetwork> = serde_json::from_value(device["status"]["network"].clone()).ok();
    let since = known.filter(|known| known.is_like(&said)).and_then(|known| known.last_transition_time);
    said.last_transition_time = Some(since.unwrap_or_else(|| now.seconds().to_string()));
    device["status"]["network"] = json!(said);
}

/// The addresses that a device tells, where its owner wants that, and of them those that may be told. `from` is where its session comes from.
fn addresses(device: &mut Value, said: &Value, from: Option<IpAddr>, name: &str) {
    let publish = |field: &str| device.pointer(&format!("/spec/publish/{field}")) == Some(&Value::Bool(true));
    let (inside, outside) = (publish("lan"), publish("external"));
    let mut told: Vec<Value> = Vec::new();
    for one in said.as_array().into_iter().flatten().take(lan::MAX_ADDRESSES + external::MAX_ADDRESSES + 1) {
        let is_seen = one["address"] == external::SEEN;
        let ip = if is_seen { from } else { one["address"].as_str().and_then(|text| text.parse().ok()) };
        let (wanted, kind, fits) = match one["type"].as_str() {
            Some(external::KIND) => (outside, external::KIND, ip.is_some_and(external::is_global)),
            _ => (inside, "InternalIP", ip.is_some_and(lan::is_private_use)),
        };
        match ip {
            Some(ip) if wanted && fits => {
                let one = json!({"type": kind, "address": ip.to_string()});
                if !told.contains(&one) {
                    told.push(one);
                }
            }
            // Its owner has changed their mind, which the device does not know yet; or it is in a network with this server.
            _ if !wanted || is_seen => {}
            _ => tracing::warn!(
                device = name,
                kind,
                "dropped an address that is none of a home's network (RFC 1918, RFC 4193), or none of the internet"
            ),
        }
    }
    if told.is_empty() {
        device["status"].as_object_mut().map(|status| status.remove("addresses"));
    } else {
        device["status"]["addresses"] = Value::Array(told);
    }
}

/// A claim's status; and once its data is deleted, the mark by which its controller lets it go.
fn claim(item: &Item, base: &Object, deleting: bool) -> Action {
    let mut value = base.value();
    if let Some(status) = &item.status {
        // Its conditions are the region's.
        let conditions = value["status"]["conditions"].take();
        value["status"] = status.clone();
        if !conditions.is_null() {
            value["status"]["conditions"] = conditions;
        }
    }
    if deleting && item.finished {
        value["metadata"]["annotations"][DATA_DELETED] = json!("true");
    }
    Action::Update { base: base.clone(), value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_addresses_that_a_device_tells_those_are_kept_that_its_owner_lets_be_told() {
        let said = json!([
            {"type": "InternalIP", "address": "192.168.1.2"}, {"type": "InternalIP", "address": "2a00::1"},
            {"type": "ExternalIP", "address": "2a00::2"}, {"type": "ExternalIP", "address": "10.0.0.1"},
            // As a device of a release before says it, and nonsense.
            {"address": "fd00::2"}, {"type": "Hostname", "address": "x"}, "y", {"type": "ExternalIP"}
        ]);
        let kept = |publish: Value| {
            let mut device = json!({"spec": {"publish": publish}, "status": {"addresses": ["before"]}});
            addresses(&mut device, &said, None, "nas");
            device["status"]["addresses"].clone()
        };
        let (one, two) = (
            json!({"type": "InternalIP", "address": "192.168.1.2"}),
            json!({"type": "InternalIP", "address": "fd00::2"}),
        );
        let public = json!({"type": "ExternalIP", "address": "2a00::2"});
        assert_eq!(kept(json!({})), json!(null));
        assert_eq!(kept(json!({"lan": true})), json!([one, two]));
        assert_eq!(kept(json!({"external": true})), json!([public]));
        assert_eq!(kept(json!({"lan": true, "external": true})), json!([one, public, two]));
        assert_eq!(
            kept(json!({"externalIPs": ["2a00::2"]})),
            json!(null),
            "the owner's word needs none of the device's"
        );
    }

    #[test]
    fn where_a_session_comes_from_is_told_where_the_device_asks_for_it_and_it_is_of_the_internet() {
        let own = json!({"type": "ExternalIP", "address": "2a00::2"});
        let seen = |from: Option<&str>, publish: Value| {
            let said = json!([own, {"type": "ExternalIP", "address": external::SEEN}]);
            let mut device = json!({"spec": {"publish": publish}, "status": {}});
            addresses(&mut device, &said, from.map(|ip| ip.parse().expect("an address")), "nas");
            device["status"]["addresses"].clone()
        };
        let external = json!({"external": true});
        let router = json!({"type": "ExternalIP", "address": "25.0.0.1"});
        assert_eq!(seen(Some("25.0.0.1"), external.clone()), json!([own, router]));
        assert_eq!(seen(Some("2a00::2"), external.clone()), json!([own]), "once");
        assert_eq!(seen(Some("192.168.1.1"), external.clone()), json!([own]));
        assert_eq!(seen(None, external), json!([own]));
        assert_eq!(seen(Some("25.0.0.1"), json!({"lan": true})), json!(null));
    }
}
