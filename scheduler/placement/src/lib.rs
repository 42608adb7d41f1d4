//! Where pods go: an immutable [`Snapshot`] of the devices and the pending pods in, a [`Plan`] out.
//!
//! Pure: no clock, no randomness. The same input gives the same plan, whatever order devices and pods come in.
//!
//! # Policy
//! A device must pass every [`Filter`]. Of those that do, the greatest [`Score`] wins, and the order of the score's fields
//! is the policy: own device, data, users, reliability, spread, balance, and the name to break ties.
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
pub use model::{Bound, Claim, Device, LATENCY_ANNOTATION, Pod, Resources, Shape, Snapshot, Taint, Toleration};
pub use plan::{Assignment, Plan, Unplaced, plan};
pub use score::{Reliability, Score};
