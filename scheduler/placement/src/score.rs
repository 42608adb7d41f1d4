//! How good a device is for a pod: a struct whose field order is the policy.

use std::{cmp::Reverse, sync::Arc, time::Duration};

use hearth_types::Timestamp;

use crate::model::{Device, Resources};

/// After this long with one session a device counts as settled.
const SETTLED: Duration = Duration::from_mins(10);
/// After this long it counts as steady: it was there through a night.
const STEADY: Duration = Duration::from_hours(24);

/// How steadily a device has been there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reliability {
    /// It came a moment ago: it may flap.
    New,
    /// It has been there for ten minutes.
    Settled,
    /// It has been there for a day.
    Steady,
}

impl Reliability {
    pub(crate) fn of(device: &Device, now: Timestamp) -> Self {
        match device.ready_since.map(|since| now.since(since)) {
            Some(time) if time >= STEADY => Self::Steady,
            Some(time) if time >= SETTLED => Self::Settled,
            _ => Self::New,
        }
    }
}

/// How good a device is for a pod. The greatest wins; fields are compared in their order.
///
/// Within one plan the score of a device for a shape only ever falls, as pods are assigned: the heap of
/// candidates relies on that.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Score {
    /// The device is the owner's own.
    pub own: bool,
    /// Claims of the pod whose data is on it.
    pub data: u32,
    /// How far its users are, in milliseconds; unknown is farthest.
    pub users: Reverse<u32>,
    /// How steadily it has been there.
    pub reliability: Reliability,
    /// Replicas of the same thing on it: the fewer the better.
    pub spread: Reverse<u32>,
    /// What is left of its scarcer resource with the pod on it, in thousandths.
    pub balance: u32,
    /// Breaks ties: the first by name.
    pub name: Reverse<Arc<str>>,
}

/// What is left of the scarcer resource with `wanted` on it, in thousandths.
pub(crate) fn balance(allocatable: Resources, used: Resources, wanted: Resources) -> u32 {
    let left = |all: u64, used: u64, wanted: u64| -> u32 {
        let free = u128::from(all.saturating_sub(used.saturating_add(wanted)));
        let share = if all == 0 { 0 } else { free * 1000 / u128::from(all) };
        u32::try_from(share).unwrap_or(1000)
    };
    let cpu = left(allocatable.cpu_millis, used.cpu_millis, wanted.cpu_millis);
    cpu.min(left(allocatable.memory_bytes, used.memory_bytes, wanted.memory_bytes))
}
