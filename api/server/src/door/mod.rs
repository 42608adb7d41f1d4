//! The TLS door: who may come in, and who is who.

mod authn;
mod guard;
mod guests;
mod io;
mod methods;
mod rate;

pub(crate) use guard::GuardLayer;
pub(crate) use io::{ConnInfo, Door, Room};
pub(crate) use rate::Rate;
