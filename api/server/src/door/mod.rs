//! The TLS door: who may come in, and who is who.

mod authn;
mod guard;
mod io;
mod methods;

pub(crate) use guard::GuardLayer;
pub(crate) use io::{Door, strangers};
