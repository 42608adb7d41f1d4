//! Every limit of this crate, with its unit and its reason.

use std::time::Duration;

/// Connections of devices and gateways at once: the devices of a full region that are all being used, at about 60 KB each.
pub const MAX_CLIENTS: usize = 10_000;

/// Connections at once that have not shown their pass yet: each costs a TLS handshake and some 60 KB until it ends.
pub const MAX_UNKNOWN: usize = 512;

/// How long a connection may take from its first byte to its pass.
pub const ESTABLISH_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections of one owner's devices at once: a home has some devices, each with one connection, and old ones linger.
pub const MAX_CLIENTS_PER_OWNER: usize = 64;

/// Bytes a second that the devices of one owner may send through one relay: 100 Mbit/s. More waits, and QUIC's congestion
/// control adapts to it.
pub const OWNER_BYTES_PER_SECOND: u64 = 12_500_000;

/// Bytes that an owner's devices may send at once above that: a fifth of a second.
pub const OWNER_BURST_BYTES: u64 = 2_500_000;

/// Owners whose bytes are counted by their own name; those of all later ones are counted together. A scrape of so many takes some
/// hundred kilobytes.
pub const MAX_COUNTED_OWNERS: usize = 1000;

/// How often it is logged how much each owner's devices sent and received: a line for each that did.
pub const METER_LOG: Duration = Duration::from_hours(1);

/// How often it is looked whether passes of those who are connected have expired.
pub const PASS_CHECK: Duration = Duration::from_secs(10);
