//! RollingUpdate: the arithmetic of Kubernetes' rolling update.

use serde_json::Value;

use super::{Set, resolve};
use crate::replicaset::keeps_data;

/// Scales the old ReplicaSets and says how many replicas the new one gets.
///
/// # Guarantees
/// The sum of all is at most `desired + maxSurge`, unless it was above already. Available pods are taken away only
/// above `desired - maxUnavailable`; pods that are not available go first. Where pods keep data in claims, old ones go before new ones come,
/// whatever `maxSurge` says.
pub(super) fn scale(value: &Value, old: &mut [Set], new: Option<&Set>, desired: i64) -> i64 {
    let mut surge = resolve(value.pointer("/spec/strategy/rollingUpdate/maxSurge"), desired, true);
    if keeps_data(value) {
        // A volume has one writer: a new pod beside the old would wait for it, and the old one for the new.
        surge = 0;
    }
    let mut unavailable = resolve(value.pointer("/spec/strategy/rollingUpdate/maxUnavailable"), desired, false);
    if surge == 0 && unavailable == 0 {
        // One has to give, or nothing would ever move.
        unavailable = 1;
    }
    let new_now = new.map_or(0, |set| set.wanted);
    let total: i64 = old.iter().map(|set| set.wanted).sum::<i64>() + new_now;
    let new_wanted =
        if new_now >= desired { desired } else { new_now + (desired + surge - total).clamp(0, desired - new_now) };
    let new_available = new.map_or(0, |set| set.available);
    let minimum = desired - unavailable;
    let mut spare = total - new_now + new_wanted - minimum - (new_wanted - new_available).max(0);
    for set in old.iter_mut() {
        let broken = (set.wanted - set.available).clamp(0, spare.max(0));
        set.wanted -= broken;
        spare -= broken;
    }
    let available = old.iter().map(|set| set.available.min(set.wanted)).sum::<i64>() + new_available;
    let mut surplus = (available - minimum).max(0).min(spare.max(0));
    for set in old.iter_mut() {
        let taken = set.wanted.min(surplus);
        set.wanted -= taken;
        surplus -= taken;
    }
    new_wanted
}
