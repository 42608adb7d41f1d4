//! The TLS door: who may come in, and who is who.

mod authn;
mod guard;
mod guests;
mod io;
mod methods;
mod rate;

pub(crate) use guard::GuardLayer;
pub use io::{Begun, Incoming};
pub(crate) use io::{ConnInfo, Door, Room};
pub(crate) use rate::Rate;
