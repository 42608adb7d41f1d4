//! One file per kind: what is asked for and what is seen in, [`Action`]s out.
//!
//! Every `reconcile` is level-triggered: it looks at what is, not at what changed. Applying its actions and calling it
//! again gives none, until something else changes. Time and ids are inputs; nothing here reads a clock.
//!
//! | module | what it keeps |
//! |---|---|
//! | [`install`] | an Install's claims, Deployment and Route, and conditions that tell the truth |
//! | [`deployment`] | a ReplicaSet per template, scaled by strategy |
//! | [`replicaset`] | as many pods as asked for |
//! | [`pod`] | pods that nothing will end are removed |
//! | [`node`] | a Node per Device, Ready while its session lives |
//! | [`claim`] | the phase of claims, and their finalizer until the data is gone |
//! | [`certificate`] | a Certificate for each device that serves its owner's apps, where a public authority issues |
//! | [`route`] | the endpoints of a Route |
//! | [`namespace`] | a namespace's contents go before it |
//! | [`garbage`] | objects whose owner is gone |
//! | [`refusal`] | says of an object that what its controller asked for was refused |
//! | [`expiry`] | old Events and join tokens |

mod action;
pub mod certificate;
pub mod claim;
pub mod deployment;
pub mod domain;
pub mod expiry;
pub mod garbage;
pub mod install;
mod meta;
pub mod namespace;
pub mod node;
pub mod pod;
mod pressure;
pub mod refusal;
pub mod replicaset;
pub mod route;
#[cfg(test)]
mod testing;
mod view;

pub use action::{Action, Reconciled, Wanted, prepare};
pub use view::{Phase, PodView, SeenPod};
