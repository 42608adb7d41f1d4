//! Recovery: devices are given signed copies of their owner's objects, and a region that lost everything takes them back.
//! Why it is sound is in [`hearth_types::recovery`].

mod awaited;
mod commit;
mod hand_in;
mod page;
mod service;
mod touched;

pub(crate) use awaited::is_awaited;
use hearth_types::{
    DeviceKey, Object,
    recovery::{Record, record_key},
};
pub(crate) use page::Page;
use serde_json::Value;
pub use service::RecoveryService;
pub(crate) use touched::{Touched, run};

use crate::hub::Hub;

/// What the region knows of its recovery key, and of its own recovery; `None` where no recovery key was ever made.
pub(crate) fn record(hub: &Hub) -> Option<Record> {
    let object = hub.cache().get(&record_key()).map(|entry| entry.object.clone())?;
    Record::read(&object.value())
}

/// Whose a Device is, and its keys.
fn device(object: &Object) -> (String, Vec<DeviceKey>) {
    let value = object.value();
    let owner = value.pointer("/spec/owner").and_then(Value::as_str).unwrap_or_default().to_owned();
    let keys = value.pointer("/spec/keys").and_then(Value::as_array).into_iter().flatten();
    (owner, keys.filter_map(|key| key.as_str()?.parse().ok()).collect())
}
