//! Who goes first.

use std::cmp::Reverse;
use std::fmt::Write as _;

use super::Shortage;

/// Who takes less than this part of a threshold, in percent, is not why it is met, and nothing would be won by their end.
const MATTERS_PERCENT: u128 = 1;

/// A container of a pod: what it takes of what is short, and what it asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// The container's name.
    pub name: String,
    /// What it takes.
    pub used: u64,
    /// What it asked for.
    pub request: u64,
}

/// A pod of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Candidate {
    /// Its uid.
    pub uid: String,
    /// It is of another owner than the device.
    pub guest: bool,
    /// It must not be evicted: it is part of what the device is for.
    pub critical: bool,
    /// It ends already.
    pub ending: bool,
    /// What it takes of what is short, with what its containers share.
    pub used: u64,
    /// What it asked for.
    pub request: u64,
    /// Its running containers.
    pub containers: Vec<Part>,
}

/// The order in which pods go, the first to go being the least.
///
/// The kubelet's (`rankMemoryPressure`, `rankDiskPressureFunc`): who takes more than was asked for; then by priority, in the place of which,
/// since all pods have the same, guests go before the owner's own; then who takes most beyond what was asked for. The last field breaks ties.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    exceeds: Reverse<bool>,
    guest: Reverse<bool>,
    over: Reverse<i128>,
    uid: String,
}

impl Rank {
    fn of(pod: &Candidate) -> Self {
        Self {
            exceeds: Reverse(pod.used > pod.request),
            guest: Reverse(pod.guest),
            over: Reverse(i128::from(pod.used) - i128::from(pod.request)),
            uid: pod.uid.clone(),
        }
    }
}

/// The pod that goes first, if one does.
pub(super) fn first<'a>(shortage: &Shortage, pods: &'a [Candidate]) -> Option<&'a Candidate> {
    if !shortage.signal.is_the_pods() {
        return None;
    }
    let matters = |pod: &&Candidate| {
        pod.used > 0 && u128::from(pod.used) * 100 >= u128::from(shortage.threshold) * MATTERS_PERCENT
    };
    let may = pods.iter().filter(|pod| !pod.critical && !pod.ending).filter(matters);
    may.min_by_key(|pod| Rank::of(pod))
}

/// Why it goes, as the kubelet tells it (`evictionMessage`).
pub(super) fn message(shortage: &Shortage, pod: &Candidate) -> String {
    let resource = shortage.signal.resource();
    let (name, text) = (resource.as_str(), |amount| resource.text(amount));
    let mut message = format!(
        "The node was low on resource: {name}. Threshold quantity: {}, available: {}. ",
        text(shortage.threshold),
        text(shortage.available)
    );
    for one in pod.containers.iter().filter(|one| one.used > one.request) {
        let (used, request) = (text(one.used), text(one.request));
        let _ = write!(
            message,
            "Container {} was using {used}, request is {request}, has larger consumption of {name}. ",
            one.name
        );
    }
    message
}
