//! Public ingress: server name to route to tunnel, without ending TLS.
//!
//! One port takes HTTPS and plain HTTP; Routes of protocol TCP and UDP have ports of their own ([`GatewayConfig::ports`]). Of a TLS connection the gateway reads the server name in the ClientHello and
//! nothing else, finds the route, opens a stream to the device, and copies bytes both ways: it holds no keys and sees
//! ciphertext alone. Plain HTTP is told to come back over HTTPS.
//!
//! | module | what it answers |
//! |---|---|
//! | [`client_hello`] | which server name a ClientHello asks for (pure) |
//! | [`alert`] | what a caller is told whose connection cannot be passed on (pure) |
//! | [`request`] | what a plain HTTP request asks for, and the answer (pure) |
//! | [`hostname`] | how a name that a caller sent becomes one that can be looked up (pure) |
//! | [`limits`] | every bound, with its unit and its reason |
//!
//! Names of the server itself ([`OwnDoors`]: its API, its relay) lead to its other doors, which get the connection as it is.
//!
//! Guarantees: nothing hangs. Every phase of a connection has a deadline: the hello, the way to the device, the
//! handshake, a stalled write, silence. A connection holds no buffer while nothing moves.

pub mod alert;
pub mod client_hello;
pub mod decoders;
pub mod hostname;
pub mod limits;
pub mod request;

mod admission;
mod connect;
mod connection;
mod flows;
mod gateway;
mod metrics;
mod opening;
mod own;
mod ports;
mod pump;
mod records;
mod socket;

pub use gateway::{Gateway, GatewayConfig, GatewayError};
pub use limits::{Limits, Share};
pub use own::{Handed, OwnDoors};
