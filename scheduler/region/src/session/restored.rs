//! A device that has seen more of this region than the region has itself: the store was restored from an older state, or its disk lost what
//! it had acknowledged. What was made in the lost time is not in the lists that the region sends now, and a device that took them for the whole
//! truth would stop it. So the region's hello says so, the device keeps what is no longer mentioned, and a condition of the Device tells a
//! person, who may let it go.

use std::{collections::HashMap, sync::Arc, sync::PoisonError};

use hearth_proto::v1::DeviceHello;
use hearth_types::{
    DeviceName, GroupKind, ObjectKey, Revision,
    condition::{self, Condition, Truth},
    kinds::ACCEPT_RESTORED,
    restores,
};
use serde_json::Value;
use tonic::Status;

use super::{Sessions, run};
use crate::{hub::Hub, recorder::Note};

/// The condition of a Device that keeps what its region lost.
const CONDITION: &str = "RegionRestored";

impl Sessions {
    /// What this server tells a device is of this revision.
    pub(super) fn tells(&self, device: &DeviceName, revision: Revision) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let known = told.entry(device.clone()).or_default();
        *known = (*known).max(revision);
    }

    /// Whether a device has seen what this region does not have: more than there was when this server began to lead, and more than it told
    /// since. What former leaders told was acknowledged, and so it was there. (A server that only believes to lead may be behind; it finds
    /// out when it reads the Device or writes the condition, and refuses the session.)
    fn is_ahead(&self, device: &DeviceName, seen: Revision) -> bool {
        let base = self.table().base;
        let told: &HashMap<DeviceName, Revision> = &self.told.lock().unwrap_or_else(PoisonError::into_inner);
        seen > base.max(told.get(device).copied().unwrap_or_default())
    }
}

/// Whether a revision is one that was lost when the region was restored from a backup: known for good, however long ago that was.
fn was_restored(hub: &Hub, seen: Revision) -> bool {
    let Some(object) = hub.cache().get(&restores::key()).map(|entry| entry.object.clone()) else { return false };
    restores::read(&object.value()).iter().any(|restore| restore.lost(seen))
}

/// Whether the region has lost what a device was told of. Says so in its conditions.
pub(super) async fn lost_writes(
    hub: &Arc<Hub>,
    device: &DeviceName,
    key: &ObjectKey,
    hello: &DeviceHello,
) -> Result<bool, Status> {
    let Some(object) = hub.cache().get(key).map(|entry| entry.object.clone()) else {
        return Err(Status::permission_denied(format!("{key} was removed")));
    };
    let was = condition::is_true(&object.value(), CONDITION);
    let same = hello.incarnation == hub.config.store.incarnation().as_str();
    let seen = Revision(hello.revision);
    let lost = same && (hub.sessions.is_ahead(device, seen) || was_restored(hub, seen));
    note_ahead(hub, device, lost || (was && same));
    if lost {
        let message = format!(
            "the region was restored from an older state: this device has seen revision {seen}, which the region does not have. What the \
             region no longer knows of is kept on the device and runs on. Give the region back what it lost, or annotate the Device with \
             {ACCEPT_RESTORED}={seen} to let it go",
            seen = hello.revision
        );
        run::change_device(hub, key, |value| set(value, Truth::True, "RegionBehind", &message, hub)).await?;
        hub.recorder.note(Note::about(&object, true, CONDITION, message, "session"));
    } else if was && !same {
        let message = "the region is a new incarnation";
        run::change_device(hub, key, |value| set(value, Truth::False, "NewIncarnation", message, hub)).await?;
    }
    Ok(lost)
}

/// Takes the condition back once a person has said that what the region has now counts.
pub(super) async fn settle(hub: &Arc<Hub>, device: &DeviceName) {
    // Its hello counted it: nearly no device comes further.
    if !hub.sessions.ahead.lock().unwrap_or_else(PoisonError::into_inner).contains(device) {
        return;
    }
    let key = ObjectKey::new(GroupKind::DEVICE, "", device.as_str());
    let Some(value) = hub.cache().get(&key).map(|entry| entry.object.value()) else { return };
    let Some(condition) = condition::get(&value, CONDITION).filter(|one| one.status == Truth::True) else { return };
    let said = annotation(&value).is_some_and(|seen| condition.message.contains(&format!("{ACCEPT_RESTORED}={seen} ")));
    if !said {
        return;
    }
    let message = "a person said that what the region has now counts";
    let change = run::change_device(hub, &key, |value| set(value, Truth::False, "Accepted", message, hub));
    match change.await {
        Ok(()) => note_ahead(hub, device, false),
        // The next change of the Device, or its next session, comes here again.
        Err(status) => {
            tracing::warn!(%device, error = status.message(), "cannot take back that the region was restored")
        }
    }
}

fn set(value: &mut Value, status: Truth, reason: &str, message: &str, hub: &Hub) {
    condition::set(value, &Condition::new(CONDITION, status, reason, message), hub.now());
}

fn annotation(device: &Value) -> Option<&str> {
    device.pointer("/metadata/annotations")?.get(ACCEPT_RESTORED)?.as_str()
}

/// Counts the device, and tells the operator once.
fn note_ahead(hub: &Hub, device: &DeviceName, held: bool) {
    let mut ahead = hub.sessions.ahead.lock().unwrap_or_else(PoisonError::into_inner);
    if held && ahead.insert(device.clone()) {
        if ahead.len() == 1 {
            tracing::error!(
                %device,
                "a device has seen revisions that this region does not have: its store was restored from an older state or lost what it \
                 acknowledged; such devices keep what was lost, see their condition {CONDITION}"
            );
        } else {
            tracing::warn!(%device, "another device has seen revisions that this region does not have");
        }
    } else if !held {
        ahead.remove(device);
    }
    hub.metrics.behind_devices.set(i64::try_from(ahead.len()).unwrap_or(i64::MAX));
}
