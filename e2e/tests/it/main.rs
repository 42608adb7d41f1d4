//! Proof with real processes, real containers and real clients.

#![allow(clippy::unwrap_used, missing_docs)]

mod acme;
mod backup;
mod bad_input;
mod bombs;
mod cli;
mod contract;
mod crash;
mod datagrams;
mod debian;
mod debug;
mod disconnect;
mod domains;
mod external;
mod faults;
mod fitness;
mod floods;
mod group;
mod host_paths;
mod images;
mod inside;
mod isolation;
mod kinds;
mod lab;
mod lan;
mod lending;
mod life;
mod load;
mod middle;
mod moves;
mod names;
mod nat;
mod offline;
mod partitions;
mod ports;
mod power;
mod pressure;
mod recover;
mod relay;
mod renewal;
mod requests;
mod services;
mod status;
mod trace;
mod transparency;
mod volumes;
// Emulating a machine of another architecture's kernel is not worth a test's time.
#[cfg(target_arch = "x86_64")]
mod vm;
