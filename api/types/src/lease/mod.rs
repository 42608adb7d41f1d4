//! Leases of volumes that move: who may write one, until when, and who says so.
//!
//! A volume of the policy `Move` ([`VolumePolicy`]) may go on, empty, on another device while its own is silent. That there are never two
//! writers follows from four rules; each is code here, and the simulation in this module's tests looks for a world in which one is broken.
//!
//! 1. **A lease counts from when it was asked for.** A device counts its lease from the moment it *sent* the heartbeat that a grant answers
//!    ([`Deadline::of`]), by a clock that counts suspend, and in memory alone, so that a reboot leaves none. Delays only shorten it.
//! 2. **The region waits longer than the device works.** It counts from when it *received* the heartbeat ([`Grants`]), which is later. Both
//!    sides allow for clocks that run wrong by a tenth ([`DRIFT`]): `chronyd` slews by up to 8.3 %.
//! 3. **Authority is a record in the store** ([`Authority`]). A server that leads writes it anew before it grants anything, and then waits
//!    for as long as any lease that may have been granted under the record before. A grant is sent only after a linearizable read that began
//!    when the heartbeat was there has seen the server's own record; a release is one transaction with a check of that record. So a
//!    server that was stopped and wakes up grants and releases nothing, whatever it believes: no clock of its own is asked.
//! 4. **Who decides to release grants no more** ([`Grants::revoke`]), and waits for what it granted.
//!
//! The holder's side is the agent's [`Holder`], and a [`Watchdog`], which lives in the shim of the pod: it ends the pod also where the agent
//! is stopped or gone.

mod authority;
mod bug;
mod grants;
mod holder;
#[cfg(test)]
mod tests;
mod watchdog;

use std::{fmt, time::Duration};

pub use authority::Authority;
use bug::Bug;
pub use grants::Grants;
pub use holder::Holder;
use serde::{Deserialize, Serialize};
use serde_json::Value;
pub use watchdog::{Act, Watchdog};

use crate::store::{CLAIM_DEVICE, CLAIM_EPOCH, CLAIM_EPOCH_BEFORE};

/// How long a lease is unless the region says otherwise: four heartbeats may be lost.
pub const LEASE: Duration = Duration::from_mins(1);
/// The shortest one: below it, a busy machine would lose its lease for nothing.
pub const MIN_LEASE: Duration = Duration::from_secs(5);
/// The longest one: it is how long a volume has no writer after its device is gone.
pub const MAX_LEASE: Duration = Duration::from_hours(1);
/// The part by which clocks may run fast or slow: one in so many.
pub const DRIFT: u32 = 10;
/// Heartbeats within a lease: so many less one may be lost.
pub const RENEWALS: u32 = 5;
/// How long it takes at most to kill what is killed, and the part of a short lease.
const KILL: (Duration, u32) = (Duration::from_secs(2), 20);
/// How long before that programs are asked to end, and the part of a short lease.
const WARN: (Duration, u32) = (Duration::from_secs(5), 10);

/// The annotation of a PersistentVolumeClaim that says what becomes of the volume while its device is silent: one of [`VOLUME_POLICIES`].
/// Said when the claim is made, and never changed: who has the data already is not held by a lease.
pub const VOLUME_POLICY_ANNOTATION: &str = "hearth.dev/volume-policy";
/// What [`VOLUME_POLICY_ANNOTATION`] and an App's `spec.volumes[].policy` may say; the first, unless one does.
pub const VOLUME_POLICIES: [&str; 2] = ["Keep", "Move"];

/// What a device that holds leases says among [`DeviceInfo::features`](crate::kinds::DeviceInfo).
pub const FEATURE: &str = "volume-leases";

/// A moment of one machine's clock since it started, in nanoseconds. Those of different machines, or of different starts, have nothing to do
/// with each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Moment(pub u64);

impl Moment {
    /// The moment so long after; saturates.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// How long after an earlier moment; nothing where that is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// Which of a volume's writers: minted by the replicated `apply` alone, when a claim gets a device, and greater each time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What becomes of a volume while its device is silent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VolumePolicy {
    /// It stays with its data, and its pod waits.
    #[default]
    Keep,
    /// Once its lease is over, another device may have it, and begins with an empty directory.
    Move,
}

impl VolumePolicy {
    /// Reads it of a claim; what is odd counts as not said.
    pub fn of_claim(claim: &Value) -> Self {
        let said = annotation(claim, VOLUME_POLICY_ANNOTATION);
        if said == Some(VOLUME_POLICIES[1]) { Self::Move } else { Self::Keep }
    }
}

/// What a claim says of its writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tenure<'a> {
    /// The device that may have a lease; `None`: it was released, and waits for its next one.
    pub device: Option<&'a str>,
    /// The epoch that was minted last.
    pub epoch: Epoch,
    /// The one before: whoever has the data of that one goes on with it.
    pub before: Option<Epoch>,
}

impl<'a> Tenure<'a> {
    /// Reads it of a claim; `None` where it has never been under a lease.
    pub fn of_claim(claim: &'a Value) -> Option<Self> {
        let epoch = |key| annotation(claim, key).and_then(|text| text.parse().ok()).map(Epoch);
        Some(Self {
            device: annotation(claim, CLAIM_DEVICE).filter(|device| !device.is_empty()),
            epoch: epoch(CLAIM_EPOCH)?,
            before: epoch(CLAIM_EPOCH_BEFORE),
        })
    }
}

fn annotation<'a>(claim: &'a Value, key: &str) -> Option<&'a str> {
    claim.pointer("/metadata/annotations")?.get(key)?.as_str()
}

/// When a holder has to be gone, by its own clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Deadline {
    /// Its programs are killed from then on, and nothing of it is started.
    pub end: Moment,
    /// Its programs are asked to end from then on.
    pub warn: Moment,
}

impl Deadline {
    /// Of a lease of this length that was asked for at this moment of a clock that counts suspend. What the kernel needs to kill what is
    /// killed is taken off.
    pub fn of(asked: Moment, lease: Duration) -> Self {
        let lease = lease.min(MAX_LEASE);
        let spare = if bug::has(Bug::DriftForgotten) { Duration::ZERO } else { lease / DRIFT };
        let end = asked.plus(lease.saturating_sub(spare + share(lease, KILL)));
        let warn = Moment(end.0 - u64::try_from(share(lease, WARN).as_nanos()).unwrap_or(end.0).min(end.0));
        Self { end, warn }
    }

    /// Whether something may be begun under it.
    pub fn is_open(&self, now: Moment) -> bool {
        now < self.warn
    }
}

/// A fixed time, or the part of a lease that is shorter.
fn share(lease: Duration, (most, part): (Duration, u32)) -> Duration {
    most.min(lease / part)
}

/// How long whoever grants a lease waits before somebody else gets one.
pub fn patience(lease: Duration) -> Duration {
    lease + lease / DRIFT
}
