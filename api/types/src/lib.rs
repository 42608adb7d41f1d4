//! The contract of Hearth: kinds, their registry (schema, defaults, printer columns), identifiers,
//! selectors, validation and patching, and the traits that the rest is injected through.
//!
//! This crate is pure: it knows no tokio, no network, no disk and no clock. Times and ids are inputs.
//!
//! | module | what it answers |
//! |---|---|
//! | [`object`] | what is stored: canonical JSON with a parsed header |
//! | [`kinds`] | what kinds there are, as typed views |
//! | [`registry`] | per kind: names, scope, schema, defaults, columns, selectable fields |
//! | [`acme`] | how certificates of a public authority are ordered, and what DNS answers for that |
//! | [`admission`] | how an object that somebody sent becomes one that may be stored |
//! | [`validate`] | names, specs and fields, with the path of what is wrong |
//! | [`patch`] | merge patch and three-way apply |
//! | [`callers`] | who counts as one caller, and how many connections each may have |
//! | [`external`] | which devices the internet reaches at an address of their own |
//! | [`group`] | the servers of a region: who belongs, who leads, how they call each other |
//! | [`hours`] | hours of a week in the time of a place |
//! | [`lease`] | who may write a volume that moves, and until when |
//! | [`identity`] | who makes a request; who signs certificates |
//! | [`recovery`] | how a region that lost everything comes back from its devices |
//! | [`relay`] | which relays there are, and who may use them |
//! | [`restores`] | which revisions a region does not have since it was restored |
//! | [`routes`] | what DNS and gateway know of hostnames |
//! | [`servers`] | which numbers were given to servers |
//! | [`selector`] | label and field selectors |
//! | [`store`] | the trait [`store::Store`] and its transactions |
//! | [`token`] | the join token, as text |
//! | [`transparency`] | logs of Certificate Transparency, as an operator names them |
//! | [`tunnel`] | the traits [`tunnel::Dialer`] and [`tunnel::DialNotifier`] |
//! | [`status`] | the one error that crosses doors, shaped as Kubernetes' `Status` |

pub mod acme;
pub mod admission;
pub mod callers;
pub mod condition;
pub mod dns;
pub mod domains;
pub mod downward;
pub mod external;
pub mod group;
pub mod hours;
pub mod id;
pub mod identity;
pub mod kinds;
mod label_map;
pub mod lan;
pub mod lease;
pub mod manifest;
pub mod names;
pub mod object;
mod own_secret;
pub mod patch;
pub mod qos;
pub mod quantity;
pub mod recovery;
pub mod registry;
pub mod relay;
pub mod restores;
pub mod routes;
pub mod selector;
pub mod servers;
pub mod status;
pub mod store;
pub mod time;
pub mod token;
pub mod transparency;
pub mod tunnel;
pub mod validate;

pub use id::{DeviceKey, DeviceName, Incarnation, InstanceId, RequestId, Revision, Uid};
pub use label_map::LabelMap;
pub use object::{GroupKind, Object, ObjectKey};
pub use status::{Reason, Status};
pub use time::{Clock, Timestamp};

/// A boxed future, as the traits of this crate return them so that they can be used as `dyn`.
pub type BoxFuture<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>>;
