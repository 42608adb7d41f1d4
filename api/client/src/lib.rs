//! A typed client of a region, for people's tools and for devices.
//!
//! | module | what it answers |
//! |---|---|
//! | [`config`] | where the region is and who asks: `client.yaml`, in kubeconfig format |
//! | [`Client`] | get, list, watch, apply and the rest, over gRPC |
//! | [`device`] | how a device joins and keeps its connection, by its key |
//! | [`relays`] | how a relay that runs by itself joins its region |
//! | [`servers`] | how a server joins its region, and what an operator does with servers |
//! | [`convert`] | between the wire's messages and `hearth-types` |
//!
//! Every error that crosses a door arrives as [`hearth_types::Status`].

mod client;
pub mod config;
mod connect;
pub mod convert;
pub mod device;
mod failover;
mod recovery;
pub mod relays;
pub mod servers;
mod verify;

pub use client::{
    Answers, Client, ClientError, DeleteOptions, Deleted, ListOptions, Outcome, Selection, WriteOptions, Written,
};
pub use config::{Config, ConfigError};
pub use connect::ConnectError;
pub use verify::Unverified;
