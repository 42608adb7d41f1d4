//! PersistentVolumeClaim: its phase, and its finalizer until the data is gone.

use hearth_types::{
    Object, Timestamp,
    condition::{self, Condition, Truth},
    kinds::CLAIM_FINALIZER,
    lease::Tenure,
    store::{CLAIM_DATA_DELETED, CLAIM_DEVICE, CLAIM_LAST_DEVICE},
};
use serde_json::{Value, json};

use crate::{action::Reconciled, meta};

/// The annotation by which a claim says that its device has deleted the data.
pub const DATA_DELETED: &str = CLAIM_DATA_DELETED;

/// The condition of a claim that moved: True where its volume began empty on its present device.
pub const BEGAN_EMPTY: &str = "BeganEmpty";

/// What is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// The claim.
    pub claim: &'a Object,
    /// Whether a pod names it, finished or not: while a pod object is there, its device may use the data.
    pub in_use: bool,
    /// Whether the device that it is pinned to exists. Read from the store itself: silence must never look like absence.
    pub device_exists: bool,
}

/// Bound once pinned to a device, Pending before. On deletion the finalizer stays until no pod uses the claim and its
/// device has deleted the data, or there was none, or the device is no longer of the region. One that moved says so in its conditions.
pub fn reconcile(inputs: Inputs<'_>, now: Timestamp) -> Reconciled {
    let mut out = Reconciled::default();
    let mut value = inputs.claim.value();
    let device = meta::annotation(&value, CLAIM_DEVICE).map(str::to_owned);
    let held = meta::finalizers(&value).contains(&CLAIM_FINALIZER);
    if meta::is_deleting(&value) {
        let gone = match &device {
            None => true,
            Some(_) => !inputs.device_exists || meta::annotation(&value, DATA_DELETED) == Some("true"),
        };
        if held && gone && !inputs.in_use {
            let owned: Vec<String> = meta::finalizers(&value).into_iter().map(str::to_owned).collect();
            let left: Vec<&str> = owned.iter().map(String::as_str).filter(|one| *one != CLAIM_FINALIZER).collect();
            meta::set_finalizers(&mut value, &left);
            out.update(inputs.claim, value);
        }
        return out;
    }
    if !held {
        let mut owned: Vec<String> = meta::finalizers(&value).into_iter().map(str::to_owned).collect();
        owned.push(CLAIM_FINALIZER.to_owned());
        meta::set_finalizers(&mut value, &owned.iter().map(String::as_str).collect::<Vec<_>>());
    }
    let phase = if device.is_some() { "Bound" } else { "Pending" };
    if !value["status"].is_object() {
        value["status"] = json!({});
    }
    value["status"]["phase"] = json!(phase);
    if device.is_some() {
        value["status"]["accessModes"] = value["spec"]["accessModes"].clone();
        if let Some(size) = value.pointer("/spec/resources/requests/storage").cloned() {
            value["status"]["capacity"] = json!({"storage": size});
        }
    }
    tell_moved(&mut value, now);
    out.update(inputs.claim, value);
    out
}

/// The claim without its device, from which it is released: its next pod may have it on another one, with a new epoch.
pub fn released(claim: &Object) -> Value {
    let mut value = claim.value();
    if let Some(device) = meta::annotation(&value, CLAIM_DEVICE).map(str::to_owned) {
        meta::set_in(&mut value, "annotations", CLAIM_LAST_DEVICE, &device);
    }
    meta::unset_in(&mut value, "annotations", CLAIM_DEVICE);
    value
}

/// Keeps the condition [`BEGAN_EMPTY`] of a claim that was released before.
fn tell_moved(claim: &mut Value, now: Timestamp) {
    let Some(last) = meta::annotation(claim, CLAIM_LAST_DEVICE).map(str::to_owned) else { return };
    let (epoch, before) = match Tenure::of_claim(claim) {
        Some(tenure) => (tenure.epoch, tenure.before.unwrap_or_default()),
        None => return,
    };
    let condition = match meta::annotation(claim, CLAIM_DEVICE) {
        Some(device) if device == last => Condition::new(
            BEGAN_EMPTY,
            Truth::False,
            "Returned",
            format!("its data of before is on device {device} still, and in use"),
        ),
        Some(device) => Condition::new(
            BEGAN_EMPTY,
            Truth::True,
            "Moved",
            format!(
                "it began empty on device {device} (epoch {epoch}), since device {last} was silent; what it had before (epoch {before}) is on device {last}, aside"
            ),
        ),
        None => Condition::new(
            BEGAN_EMPTY,
            Truth::Unknown,
            "Released",
            format!(
                "device {last} (epoch {epoch}) is silent and its lease is over: it begins empty on the device of its next pod, if that is another one"
            ),
        ),
    };
    condition::set(claim, &condition, now);
}

#[cfg(test)]
mod tests {
    use hearth_types::store::{CLAIM_EPOCH, CLAIM_EPOCH_BEFORE};

    use super::*;
    use crate::{
        Wanted,
        testing::{fix_point, prepared},
    };

    fn claim(device: Option<&str>, deleting: bool, deleted: bool) -> Object {
        let mut value = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": "c", "namespace": "alice", "uid": "u", "finalizers": [CLAIM_FINALIZER], "annotations": {}},
            "spec": {"accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem", "resources": {"requests": {"storage": "1Gi"}}},
            "status": {"phase": "Pending"}});
        if let Some(device) = device {
            value["metadata"]["annotations"][CLAIM_DEVICE] = json!(device);
        }
        if deleted {
            value["metadata"]["annotations"][DATA_DELETED] = json!("true");
        }
        if deleting {
            value["metadata"]["deletionTimestamp"] = json!("2023-11-14T22:13:20Z");
        }
        Object::from_value(value).expect("an object")
    }

    #[test]
    fn the_phase_follows_the_device_and_the_finalizer_is_kept() {
        for (device, phase) in [(None, "Pending"), (Some("nas"), "Bound")] {
            let mut value = claim(device, false, false).value();
            meta::set_finalizers(&mut value, &[]);
            let bare = Object::from_value(value).expect("an object");
            let stored =
                fix_point(&bare, |claim| reconcile(Inputs { claim, in_use: false, device_exists: true }, Timestamp(0)))
                    .expect("kept");
            assert_eq!(stored.value()["status"]["phase"], phase);
            assert_eq!(meta::finalizers(&stored.value()), [CLAIM_FINALIZER]);
        }
    }

    #[test]
    fn a_claim_goes_only_when_nothing_uses_it_and_its_data_is_gone() {
        for (device, deleted, in_use, device_exists, goes) in [
            (None, false, false, true, true),
            (None, false, true, true, false),
            (Some("nas"), false, false, true, false),
            (Some("nas"), true, false, true, true),
            (Some("nas"), true, true, true, false),
            (Some("nas"), false, false, false, true),
        ] {
            let object = claim(device, true, deleted);
            let out = reconcile(Inputs { claim: &object, in_use, device_exists }, Timestamp(0));
            let wanted = prepared(&out);
            assert_eq!(
                matches!(wanted.as_slice(), [Wanted::Remove(_)]),
                goes,
                "{device:?} {deleted} {in_use} {device_exists}"
            );
            assert_eq!(wanted.is_empty(), !goes);
        }
    }

    #[test]
    fn finalizers_of_others_stay() {
        let mut value = claim(None, true, false).value();
        meta::set_finalizers(&mut value, &["example.com/mine", CLAIM_FINALIZER]);
        let object = Object::from_value(value).expect("an object");
        let out = reconcile(Inputs { claim: &object, in_use: false, device_exists: true }, Timestamp(0));
        let wanted = prepared(&out);
        let [Wanted::Update { new, .. }] = wanted.as_slice() else { panic!("an update: {wanted:?}") };
        assert_eq!(new.value().pointer("/metadata/finalizers"), Some(&Value::from(vec!["example.com/mine"])));
    }

    #[test]
    fn a_claim_that_moved_says_loudly_that_it_began_empty() {
        let mut value = claim(Some("nas"), false, false).value();
        value["metadata"]["annotations"][CLAIM_EPOCH] = json!("7");
        let gone = released(&Object::from_value(value).expect("an object"));
        assert_eq!(meta::annotation(&gone, CLAIM_DEVICE), None);
        for (device, truth, says) in [
            (None, Truth::Unknown, "device nas (epoch 7) is silent and its lease is over"),
            (Some("pi"), Truth::True, "it began empty on device pi (epoch 9), since device nas was silent"),
            (Some("nas"), Truth::False, "on device nas still"),
        ] {
            let mut value = gone.clone();
            if let Some(device) = device {
                for (key, text) in [(CLAIM_DEVICE, device), (CLAIM_EPOCH, "9"), (CLAIM_EPOCH_BEFORE, "7")] {
                    meta::set_in(&mut value, "annotations", key, text);
                }
            }
            let object = Object::from_value(value).expect("an object");
            let look = |claim: &Object| reconcile(Inputs { claim, in_use: false, device_exists: true }, Timestamp(0));
            let stored = fix_point(&object, look).expect("kept").value();
            let found = condition::get(&stored, BEGAN_EMPTY).expect("said");
            assert_eq!(found.status, truth);
            assert!(found.message.contains(says), "{}", found.message);
        }
    }
}
