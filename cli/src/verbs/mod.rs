//! The client verbs, one file each.

pub(crate) mod apply;
pub(crate) mod delete;
pub(crate) mod describe;
pub(crate) mod events;
pub(crate) mod exec;
pub(crate) mod get;
pub(crate) mod image;
pub(crate) mod join;
pub(crate) mod logs;
mod pod_of;
pub(crate) mod token;
pub(crate) mod version;
pub(crate) mod wait;
mod wait_condition;
