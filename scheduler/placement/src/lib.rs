//! Where pods go: an immutable [`Snapshot`] of the devices and the pending pods in, a [`Plan`] out.
//!
//! Pure: no clock, no randomness. The same input gives the same plan, whatever order devices and pods come in.
//!
//! # Policy
//! A device must pass every [`Filter`]. Of those that do, the greatest [`Score`] wins, and the order of the score's fields
//! is the policy: own device, data, users, reliability, spread, balance, and the name to break ties.
//!
//! A volume has one writer: a claim is one pod's until that pod ended, also where it is only stopping. This is stricter than
//! Kubernetes' `ReadWriteOnce`, which lets pods of one node share: both access modes that claims may have mean `ReadWriteOncePod` here.
//!
//! What a device lends is a bound: it takes pods of others only if each of their containers has a limit for cpu and memory. A pod whose data has
//! no home yet does not go to such a device while one of its owner's own is only not ready or cordoned, since the data would stay there.
//!
//! # Cost
//! Pods of one shape (as the replicas of a Deployment) share one heap of candidates. A pod costs the logarithm
//! of the number of candidates; a shape costs one look at each device of its owner, and at those that lend
//! only where the owner's own have no room.

mod explain;
mod filter;
mod model;
mod plan;
mod score;
#[cfg(test)]
mod tests;

pub use explain::{MAX_LISTED, Refusal, Why};
pub use filter::Filter;
pub use model::{
    Bound, Claim, Device, LATENCY_ANNOTATION, Pod, Resources, Shape, Snapshot, Taint, Toleration, Unlimited, User,
};
pub use plan::{Assignment, Plan, Unplaced, plan};
pub use score::{Reliability, Score};
