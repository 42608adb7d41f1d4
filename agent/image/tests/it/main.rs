//! Images on a real disk: hostile ones, real ones, and the store under interruptions.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

mod build;
mod corpus;
mod disk;
mod hostile;
mod layers;
mod real;
mod store;
mod support;
