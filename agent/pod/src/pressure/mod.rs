//! What a device runs short of, and which pod is evicted for it: the kubelet's eviction manager, as Kubernetes' documentation has it
//! ("Node-pressure Eviction"). Pure: what is seen and the time come in, and what is to be done goes out.
//!
//! [`Monitor::observe`] says which thresholds are met and which conditions hold; where something is still short once all was freed that can
//! be freed without a pod, [`Monitor::choose`] names the one pod to go.

mod rank;
mod settings;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use hearth_types::{Timestamp, quantity};

pub use rank::{Candidate, Part};
pub use settings::{Amount, BadSetting, ENOUGH, Settings};

/// How long the next one is left alone while one that was evicted is still being torn down: the kubelet's `podCleanupTimeout`.
const CLEANUP: Duration = Duration::from_secs(30);

/// What is watched, in the order in which it is seen to: memory first, since a machine without it does nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signal {
    /// Memory that pods can still have, in bytes.
    MemoryAvailable,
    /// Room on the file system of the data directory, in bytes.
    NodefsAvailable,
    /// Inodes that are free there.
    NodefsInodesFree,
    /// Room on the file system of images, where that is another one, in bytes.
    ImagefsAvailable,
    /// Inodes that are free there.
    ImagefsInodesFree,
}

impl Signal {
    /// All of them, in order.
    pub const ALL: [Self; 5] = [
        Self::MemoryAvailable,
        Self::NodefsAvailable,
        Self::NodefsInodesFree,
        Self::ImagefsAvailable,
        Self::ImagefsInodesFree,
    ];

    /// The kubelet's name of it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MemoryAvailable => "memory.available",
            Self::NodefsAvailable => "nodefs.available",
            Self::NodefsInodesFree => "nodefs.inodesFree",
            Self::ImagefsAvailable => "imagefs.available",
            Self::ImagefsInodesFree => "imagefs.inodesFree",
        }
    }

    /// What is short where its threshold is met.
    pub fn resource(self) -> Resource {
        match self {
            Self::MemoryAvailable => Resource::Memory,
            Self::NodefsAvailable | Self::ImagefsAvailable => Resource::EphemeralStorage,
            Self::NodefsInodesFree | Self::ImagefsInodesFree => Resource::Inodes,
        }
    }

    /// The condition that tells of it.
    pub fn pressure(self) -> Pressure {
        if self == Self::MemoryAvailable { Pressure::Memory } else { Pressure::Disk }
    }

    /// Whether a pod that goes frees some of it. Of images alone, the next pod would have them pulled again.
    fn is_the_pods(self) -> bool {
        !matches!(self, Self::ImagefsAvailable | Self::ImagefsInodesFree)
    }
}

/// What pods take of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Bytes of memory.
    Memory,
    /// Bytes on the disk.
    EphemeralStorage,
    /// Files and directories.
    Inodes,
}

impl Resource {
    /// The kubelet's name of it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::EphemeralStorage => "ephemeral-storage",
            Self::Inodes => "inodes",
        }
    }

    /// An amount of it for people.
    fn text(self, amount: u64) -> String {
        if self == Self::Inodes { amount.to_string() } else { quantity::format_bytes(amount) }
    }
}

/// A condition of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pressure {
    /// `MemoryPressure`.
    Memory,
    /// `DiskPressure`.
    Disk,
}

impl Pressure {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Memory, Self::Disk];

    /// Its type, and its reason and message as the kubelet has them.
    pub fn words(self, holds: bool) -> (&'static str, &'static str, &'static str) {
        match (self, holds) {
            (Self::Memory, true) => {
                ("MemoryPressure", "KubeletHasInsufficientMemory", "kubelet has insufficient memory available")
            }
            (Self::Memory, false) => {
                ("MemoryPressure", "KubeletHasSufficientMemory", "kubelet has sufficient memory available")
            }
            (Self::Disk, true) => ("DiskPressure", "KubeletHasDiskPressure", "kubelet has disk pressure"),
            (Self::Disk, false) => ("DiskPressure", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        }
    }
}

/// What is seen of a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observation {
    /// Which.
    pub signal: Signal,
    /// What is left.
    pub available: u64,
    /// What there is in all.
    pub capacity: u64,
}

/// A threshold that is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// Of what.
    pub signal: Signal,
    /// The least that is to be left.
    pub threshold: u64,
    /// What is left.
    pub available: u64,
    /// What is to be freed: up to the threshold, and the minimum reclaim above it. At least 1.
    pub missing: u64,
}

/// How a device is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outlook {
    /// The conditions that hold.
    pub pressure: BTreeSet<Pressure>,
    /// What is short now, in the order of [`Signal`].
    pub short: Vec<Shortage>,
}

/// One pod to go, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Eviction {
    /// The pod's uid.
    pub uid: String,
    /// Why, in the kubelet's words.
    pub message: String,
}

/// What is remembered of what was seen.
#[derive(Clone, Debug, Default)]
pub struct Monitor {
    /// Signals whose threshold was met, until they are above it by the minimum reclaim.
    met: BTreeSet<Signal>,
    /// When one of a condition's was met last.
    last_met: BTreeMap<Pressure, Timestamp>,
    /// Who was evicted last, and when.
    evicted: Option<(String, Timestamp)>,
}

impl Monitor {
    /// How the device is by what is seen of it now.
    ///
    /// # Guarantees
    /// Nothing is short of which more is left than its threshold and its minimum reclaim. A condition holds from the moment on in which
    /// something is short, and for the transition period after it is not any more. A clock that is set back holds it no longer than that.
    pub fn observe(&mut self, settings: &Settings, seen: &[Observation], now: Timestamp) -> Outlook {
        let mut outlook = Outlook::default();
        for signal in Signal::ALL {
            // What cannot be seen is not taken for short.
            let seen = seen.iter().find(|one| one.signal == signal);
            let shortage = seen.and_then(|one| settings.shortage(*one, self.met.contains(&signal)));
            let Some(shortage) = shortage else {
                self.met.remove(&signal);
                continue;
            };
            self.met.insert(signal);
            self.last_met.insert(signal.pressure(), now);
            outlook.short.push(shortage);
        }
        for (pressure, last) in &mut self.last_met {
            *last = (*last).min(now);
            if *last == now || now.since(*last) < settings.transition_period {
                outlook.pressure.insert(*pressure);
            }
        }
        outlook
    }

    /// Which pod goes for a shortage that is left, if one is to go now. It counts as evicted from then on.
    ///
    /// # Guarantees
    /// Names none that ends already or must not be evicted, and none of which too little would come free to matter. Names no other while
    /// the last one is still being torn down, for half a minute at most.
    pub fn choose(&mut self, shortage: &Shortage, pods: &[Candidate], now: Timestamp) -> Option<Eviction> {
        if let Some((last, at)) = &self.evicted
            && now.since(*at) < CLEANUP
            && *at <= now
            && pods.iter().any(|pod| pod.uid == *last)
        {
            return None;
        }
        let pod = rank::first(shortage, pods)?;
        self.evicted = Some((pod.uid.clone(), now));
        Some(Eviction { uid: pod.uid.clone(), message: rank::message(shortage, pod) })
    }
}
