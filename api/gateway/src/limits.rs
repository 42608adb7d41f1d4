//! Every limit of this crate, with its unit and its reason.

use std::time::Duration;

/// The limits that an operator may set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once in all. Each costs two file descriptors' worth of buffers: 2 x [`COPY_BUFFER`].
    pub connections: usize,
    /// Connections at once of one caller: an IPv4 address, or an IPv6 /64, which one home has.
    pub connections_per_caller: usize,
    /// How long a connection may take to send its ClientHello or its HTTP request head.
    pub first_flight: Duration,
    /// How long both directions of an open connection may be silent. Long, for WebSockets that only ping rarely.
    pub idle: Duration,
    /// How long open connections may go on after a shutdown was asked for.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            connections_per_caller: 256,
            first_flight: Duration::from_secs(5),
            idle: Duration::from_hours(1),
            drain: Duration::from_secs(10),
        }
    }
}

/// The longest ClientHello in bytes, with its record headers. Real ones have 200 to 2,000, with post-quantum shares.
pub const MAX_CLIENT_HELLO: usize = 16 << 10;

/// The longest head of a plain HTTP request in bytes: it is only read to be redirected.
pub const MAX_HTTP_HEAD: usize = 8 << 10;

/// The buffer of each direction of a connection in bytes.
pub const COPY_BUFFER: usize = 16 << 10;

/// Devices of a route that are tried, so that a route of many dead devices does not hold its caller for long.
pub const MAX_DEVICES_TRIED: usize = 3;

/// How long one device may take to be dialled, beyond what the dialler itself allows.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(6);

/// How long a caller may take to receive an alert or a redirect, and then to close.
pub const FAREWELL: Duration = Duration::from_secs(2);

/// How long the other direction of a half-closed connection may go on without a byte.
pub const HALF_CLOSED_IDLE: Duration = Duration::from_mins(5);

/// How long accepting pauses after an error such as too many open files, instead of spinning.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Bytes that are read and thrown away after a refusal, so that closing does not reset the refusal away.
pub const MAX_DISCARDED: usize = 64 << 10;
