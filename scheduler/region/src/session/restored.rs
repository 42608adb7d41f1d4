//! A device that has seen more of this region than the region has itself: the store was restored from an older state, or its disk lost what
//! it had acknowledged. What was made in the lost time is not in the lists that the region sends now, and a device that took them for the truth
//! would stop it. So such a device is told nothing of what it shall run: it runs on what it has, until its region is a new incarnation or a
//! person says that the region's word counts.

use std::{collections::HashMap, sync::Arc, sync::PoisonError};

use hearth_proto::v1::DeviceHello;
use hearth_types::{
    DeviceName, ObjectKey, Revision,
    condition::{self, Condition, Truth},
};
use serde_json::Value;
use tonic::Status;

use super::{Sessions, run};
use crate::{hub::Hub, recorder::Note};

/// The condition of a Device that is told nothing.
const CONDITION: &str = "RegionRestored";
/// The annotation of a Device by which a person says that the region's word counts all the same. Its value is the revision that the
/// device has seen, as the condition names it, so that it says nothing about another time.
const ACCEPT: &str = "hearth.dev/accept-restored-region";

impl Sessions {
    /// What this server tells a device is of this revision.
    pub(super) fn tells(&self, device: &DeviceName, revision: Revision) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let known = told.entry(device.clone()).or_default();
        *known = (*known).max(revision);
    }

    /// Whether a device has seen what this region does not have: more than there was when this server started, and more than it told since.
    /// (With several servers, what the others told will count too.)
    fn is_ahead(&self, device: &DeviceName, seen: Revision) -> bool {
        let told: &HashMap<DeviceName, Revision> = &self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let base = self.base.get().copied().unwrap_or_default();
        seen > base.max(told.get(device).copied().unwrap_or_default())
    }
}

/// Whether a device is told nothing of what it shall run. Says so in its conditions.
pub(super) async fn is_held(
    hub: &Arc<Hub>,
    device: &DeviceName,
    key: &ObjectKey,
    hello: &DeviceHello,
) -> Result<bool, Status> {
    let Some(object) = hub.cache().get(key).map(|entry| entry.object.clone()) else {
        return Err(Status::permission_denied(format!("{key} was removed")));
    };
    let value = object.value();
    let same = hello.incarnation == hub.config.store.incarnation().as_str();
    let was = condition::is_true(&value, CONDITION);
    let proof = same && hub.sessions.is_ahead(device, Revision(hello.revision));
    let accepted = annotation(&value) == Some(hello.revision.to_string().as_str());
    let held = same && (was || proof) && !accepted;
    note_ahead(hub, device, held);
    if held && !was {
        let message = format!(
            "the region was restored from an older state: this device has seen revision {seen}, which the region does not have. It runs on \
             what it has and is told nothing new. Give the region back what it lost, or annotate the Device with {ACCEPT}={seen} to let it \
             stop what the region no longer knows of",
            seen = hello.revision
        );
        run::change_device(hub, key, |value| set(value, Truth::True, "RegionBehind", &message, hub)).await?;
        hub.recorder.note(Note::about(&object, true, CONDITION, message, "session"));
    } else if was && !held {
        let (reason, message) = if same {
            ("Accepted", "a person said that what the region has now counts")
        } else {
            ("NewIncarnation", "the region is a new incarnation")
        };
        run::change_device(hub, key, |value| set(value, Truth::False, reason, message, hub)).await?;
    }
    Ok(held)
}

fn set(value: &mut Value, status: Truth, reason: &str, message: &str, hub: &Hub) {
    condition::set(value, &Condition::new(CONDITION, status, reason, message), hub.now());
}

fn annotation(device: &Value) -> Option<&str> {
    device.pointer("/metadata/annotations")?.get(ACCEPT)?.as_str()
}

/// Counts the device, and tells the operator once.
fn note_ahead(hub: &Hub, device: &DeviceName, held: bool) {
    let mut ahead = hub.sessions.ahead.lock().unwrap_or_else(PoisonError::into_inner);
    if held && ahead.insert(device.clone()) {
        if ahead.len() == 1 {
            tracing::error!(
                %device,
                "a device has seen revisions that this region does not have: its store was restored from an older state or lost what it \
                 acknowledged; such devices are told nothing of what to run, see their condition {CONDITION}"
            );
        } else {
            tracing::warn!(%device, "another device has seen revisions that this region does not have");
        }
    } else if !held {
        ahead.remove(device);
    }
    hub.metrics.behind_devices.set(i64::try_from(ahead.len()).unwrap_or(i64::MAX));
}
