//! The client verbs, one file each.

pub(crate) mod api_resources;
pub(crate) mod apply;
pub(crate) mod completion;
pub(crate) mod cordon;
pub(crate) mod create;
pub(crate) mod delete;
pub(crate) mod describe;
pub(crate) mod edit;
pub(crate) mod events;
pub(crate) mod exec;
pub(crate) mod explain;
pub(crate) mod get;
pub(crate) mod image;
pub(crate) mod join;
pub(crate) mod label;
pub(crate) mod logs;
mod modify;
pub(crate) mod patch;
mod pod_of;
pub(crate) mod region;
pub(crate) mod rollout;
pub(crate) mod scale;
pub(crate) mod taint;
pub(crate) mod token;
pub(crate) mod version;
pub(crate) mod wait;
mod wait_condition;
