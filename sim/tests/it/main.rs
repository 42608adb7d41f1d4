//! Runs of the simulation, and the checks of what judges them: the checker of histories and the invariants.

#![allow(clippy::unwrap_used)] // a test may panic

mod brute;
mod checker;
mod invariants;
mod seeds;
