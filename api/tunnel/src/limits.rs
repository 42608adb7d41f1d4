//! Every limit of this crate, with its unit and its reason.

use std::time::Duration;

/// How long a dial may take in all, from the question to the open stream. Handshake and notice need some hundred
/// milliseconds on a slow line; a caller who waits in front of a browser does not wait longer than this.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// After how long without a stream the gateway closes a tunnel: an open one costs about 100 KB and a packet a second.
pub const IDLE: Duration = Duration::from_mins(1);

/// How much longer the device waits before it closes an idle tunnel. The gateway opens the streams, so it shall be
/// the one to close: it cannot race with itself.
pub const DEVICE_IDLE_MARGIN: Duration = Duration::from_secs(30);

/// How long the device's socket outlives its last tunnel, so that a busy device does not bind one a minute.
pub const ENDPOINT_LINGER: Duration = Duration::from_secs(15);

/// How often each end of an open tunnel says that it is there.
pub const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// After how long of silence a path, and with its last path the tunnel, is dead: four lost keep-alives.
pub const SILENCE: Duration = Duration::from_secs(4);

/// After how long of silence a tunnel is not used for new streams while another dial may replace it: two lost
/// keep-alives and some jitter.
pub const SUSPECT_AFTER: Duration = Duration::from_millis(2500);

/// How often a tunnel's monitor looks whether it is idle or silent.
pub const MONITOR_TICK: Duration = Duration::from_millis(500);

/// Open tunnels at one gateway: the devices of a full region, at about 100 KB each.
pub const MAX_TUNNELS: usize = 10_000;

/// Handshakes under way at one gateway: each costs a signature and some 50 KB until it ends.
pub const MAX_HANDSHAKES: usize = 256;

/// Dials under way at one gateway: more than the devices that anybody asks for within [`DIAL_TIMEOUT`].
pub const MAX_DIALS: usize = 4096;

/// Streams at once on one tunnel: one user's browsers open some dozens; a home has some users.
pub const MAX_STREAMS: u32 = 1024;

/// Bytes that one stream may have in flight: fills 100 Mbit/s at 80 ms.
pub const STREAM_WINDOW: u32 = 1 << 20;

/// Bytes that all streams of a tunnel may have in flight to one end: bounds what a tunnel can cost in memory.
pub const TUNNEL_WINDOW: u32 = 8 << 20;

/// How long a new stream may take to name its kind, and then to find a taker, before it is reset.
pub const ACCEPT_TIMEOUT: Duration = Duration::from_secs(5);

/// Streams that wait for the device's handler to take them.
pub const INCOMING_QUEUE: usize = 64;

/// Gateways that a device has tunnels to at once: those of a region, and some.
pub const MAX_GATEWAYS: usize = 32;

/// Addresses of a gateway that a device tries.
pub const MAX_ADDRESSES: usize = 16;

/// Dial notices of one gateway that a device obeys in a burst.
pub const NOTICE_BURST: u32 = 10;

/// After how long one more notice is obeyed beyond the burst.
pub const NOTICE_INTERVAL: Duration = Duration::from_secs(1);

/// A notice that arrives within this time after a tunnel to its gateway was opened is taken as answered by it: the
/// notice may have been sent before the gateway saw the tunnel. A later notice says that the gateway has none.
pub const NOTICE_GRACE: Duration = Duration::from_secs(1);

/// After how long a gateway asks again a device whose tunnel is not good enough: the device may have taken the first
/// notice as answered by that very tunnel ([`NOTICE_GRACE`]), and does no longer when the second one comes.
pub const ASK_AGAIN: Duration = Duration::from_millis(1100);

/// How long closing an endpoint waits for its peers to hear of it.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// How often a gateway asks each relay whether it is there: a TLS handshake each time, some milliseconds of processor time for all of them.
pub const RELAY_CHECK: Duration = Duration::from_secs(1);

/// How long a relay has for its answer: three round trips of 300 ms.
pub const RELAY_PATIENCE: Duration = Duration::from_secs(1);

/// After how many answers that did not come in a row a relay counts as dead, so that one lost packet changes nothing. With the two times
/// above, a dead one is noticed within three seconds.
pub const RELAY_MISSES: u32 = 2;

/// How long an endpoint has to begin a connection to a relay: it takes a message within the process.
pub const RELAY_BEGIN: Duration = Duration::from_millis(20);

/// How long a gateway that leaves a dead relay waits to be at another one before it asks its devices to dial anew.
pub const RELAY_MOVE: Duration = Duration::from_secs(1);
