//! Tests of the durable store: on a disk in memory that fails and forgets, and on the real one.

mod backup;
mod basic;
mod crash;
mod damage;
mod faults;
mod group;
mod kill;
mod network;
mod support;
mod watch;
