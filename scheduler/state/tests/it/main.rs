//! Tests of the state machine: tables, a naive model, and properties that hold for any commands.

mod bind;
mod bounds;
mod model;
mod ops;
mod support;
mod watch;
