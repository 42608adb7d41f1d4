//! Pods whose device is silent: when another one stands for such a pod, and which of both stays once the device is back.
//!
//! The pod on the silent device is left alone meanwhile: its device runs it on, and nobody could tell it anything. What is decided is decided again
//! at each look from what is there, so that nothing is forgotten when a server changes.

use std::{collections::HashMap, time::Duration};

use hearth_types::{
    Timestamp, Uid,
    kinds::{MOVE_AFTER_ANNOTATION, ON_RETURN, ON_RETURN_ANNOTATION},
};
use serde_json::Value;

use super::keeps_data;
use crate::{meta, view::SeenPod};

/// How long a device is back before what it says of its pods is taken for what is so: it first tells of them after its hello.
const SETTLED: Duration = Duration::from_secs(10);

/// Which pod stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OnReturn {
    Original,
    Replacement,
    LongestRunning,
}

/// What a ReplicaSet says of silent devices.
#[derive(Clone, Copy, Debug)]
pub(super) struct Policy {
    /// `None`: its pods wait for their devices.
    after: Option<Duration>,
    on_return: OnReturn,
}

impl Policy {
    /// Reads it of the ReplicaSet; what is odd counts as not said.
    pub(super) fn of(set: &Value) -> Self {
        let said = meta::annotation(set, ON_RETURN_ANNOTATION);
        let on_return = match ON_RETURN.iter().position(|one| Some(*one) == said) {
            Some(1) => OnReturn::Replacement,
            Some(2) => OnReturn::LongestRunning,
            _ => OnReturn::Original,
        };
        Self { after: move_after(set).filter(|_| !keeps_data(set)), on_return }
    }
}

/// After how long a silence of their device its pods are replaced on another one: of pods that keep data, only where all of it moves.
pub fn move_after(set: &Value) -> Option<Duration> {
    meta::annotation(set, MOVE_AFTER_ANNOTATION).and_then(|text| text.parse().ok()).map(Duration::from_secs)
}

/// The active pods, by what they count for.
#[derive(Debug, Default)]
pub(super) struct Sorted<'a> {
    /// Those that count for what is asked for.
    pub(super) counted: Vec<&'a SeenPod>,
    /// Those on silent devices that nobody stands for yet.
    pub(super) lost: Vec<&'a SeenPod>,
    /// Those that another one counts for: they stay until it is decided which one does.
    pub(super) spare: Vec<&'a SeenPod>,
    /// Those that go, since the named one stays.
    pub(super) superseded: Vec<(&'a SeenPod, &'a SeenPod)>,
    /// When time alone changes this.
    pub(super) again: Option<Duration>,
}

/// Sorts the active pods of a ReplicaSet.
///
/// # Guarantees
/// Each pod is in one place. None is superseded but by one that is ready on a device that is in contact.
pub(super) fn sort<'a>(policy: Policy, active: &[&'a SeenPod], now: Timestamp) -> Sorted<'a> {
    let mut sorted = Sorted::default();
    let by_uid: HashMap<&Uid, &'a SeenPod> = active.iter().map(|seen| (seen.pod.object.uid(), *seen)).collect();
    let original = |seen: &SeenPod| seen.pod.stands_for.as_ref().and_then(|uid| by_uid.get(uid)).copied();
    let mut stand_ins: HashMap<&Uid, Vec<&'a SeenPod>> = HashMap::new();
    for seen in active {
        if let Some(original) = original(seen) {
            stand_ins.entry(original.pod.object.uid()).or_default().push(seen);
        }
    }
    for seen in active.iter().filter(|seen| original(seen).is_none()) {
        match stand_ins.get(seen.pod.object.uid()) {
            None => sorted.alone(policy, seen, now),
            Some(others) => sorted.with(policy, seen, others, now),
        }
    }
    sorted
}

impl<'a> Sorted<'a> {
    /// A pod that nobody stands for.
    fn alone(&mut self, policy: Policy, seen: &'a SeenPod, now: Timestamp) {
        if self.is_lost(policy, seen, now) {
            self.lost.push(seen);
        } else {
            self.counted.push(seen);
        }
    }

    /// Whether the device of a pod is silent for too long.
    fn is_lost(&mut self, policy: Policy, seen: &SeenPod, now: Timestamp) -> bool {
        let Some(after) = policy.after.filter(|_| seen.pod.is_bound() && !seen.connected) else {
            return false;
        };
        let left = after.saturating_sub(seen.contact_for(now));
        if !left.is_zero() {
            self.look_again(left);
        }
        left.is_zero()
    }

    /// A pod that others stand for.
    fn with(&mut self, policy: Policy, original: &'a SeenPod, others: &[&'a SeenPod], now: Timestamp) {
        let settled = original.contact_for(now) >= SETTLED;
        if original.ready() && !settled {
            self.look_again(SETTLED.saturating_sub(original.contact_for(now)));
        }
        let back = (original.ready() && settled).then_some(original);
        let stand_in = others.iter().copied().filter(|seen| seen.ready()).min_by_key(|seen| age(seen));
        // One that found no device has nothing to lose.
        let idle = others.iter().all(|seen| !seen.pod.is_bound());
        let stays = match (policy.on_return, back, stand_in) {
            (_, Some(original), None) if idle => Some(original),
            (OnReturn::Original, Some(original), _) => Some(original),
            (OnReturn::Replacement, Some(_), Some(stand_in)) => Some(stand_in),
            (OnReturn::LongestRunning, Some(original), Some(stand_in)) => {
                Some(if age(stand_in) < age(original) { stand_in } else { original })
            }
            _ => None,
        };
        match stays {
            Some(stays) if std::ptr::eq(stays, original) => {
                self.counted.push(original);
                self.superseded.extend(others.iter().map(|seen| (*seen, original)));
            }
            Some(stays) => {
                self.superseded.push((original, stays));
                self.counted.extend(others);
            }
            None if original.ready() && stand_in.is_none() => {
                self.counted.push(original);
                self.spare.extend(others);
            }
            None => self.both(policy, original, others, now),
        }
    }

    /// Nothing is decided: those that stand for the pod count, if their own devices are not silent too.
    fn both(&mut self, policy: Policy, original: &'a SeenPod, others: &[&'a SeenPod], now: Timestamp) {
        let (gone, there): (Vec<&SeenPod>, Vec<&SeenPod>) =
            others.iter().copied().partition(|seen| self.is_lost(policy, seen, now));
        self.spare.extend(gone);
        match there.is_empty() {
            true if original.connected => self.counted.push(original),
            true => self.lost.push(original),
            false => self.spare.push(original),
        }
        self.counted.extend(there);
    }

    fn look_again(&mut self, after: Duration) {
        self.again = Some(self.again.map_or(after, |again| again.min(after)));
    }
}

/// The one that has been ready the longest comes first.
fn age(seen: &SeenPod) -> impl Ord + use<> {
    (seen.pod.ready_since.unwrap_or(Timestamp(i64::MAX)), seen.pod.created, seen.pod.object.name().to_owned())
}

#[cfg(test)]
mod tests;
