//! Every limit, with its unit and its reason.

use std::time::Duration;

/// Bytes of a UDP answer at most, and the payload size that answers announce: what fits every path's MTU without
/// fragments (DNS Flag Day 2020; RFC 9715).
pub const EDNS_PAYLOAD: u16 = 1232;

/// Bytes of a UDP answer to a query without EDNS (RFC 1035 section 4.2.1), and the least payload size (RFC 6891
/// section 6.2.3).
pub const PLAIN_PAYLOAD: u16 = 512;

/// Bytes of a query at most, UDP and TCP. One question and an OPT take less than 400; the rest is room for options
/// and padding (RFC 7830). A TCP connection that announces more is closed before anything is allocated for it.
pub const MAX_QUERY: usize = 4096;

/// Datagrams that one call to the kernel takes at most: each has room for [`MAX_QUERY`] bytes in each task that reads, so 64 KiB a task.
pub const UDP_BATCH: usize = 16;

/// Tasks that read the UDP socket at most: as many as there are cores, but beyond this the one socket is the limit.
pub const MAX_UDP_TASKS: usize = 4;

/// Answers a second over UDP to one network (an IPv4 /24, an IPv6 /56), since sources are easily forged: a resolver that serves a whole town
/// asks a zone of homes less, with answers cached for [`TTL`], and a victim gets some tens of kilobytes a second at most.
pub const UDP_ANSWERS_PER_SECOND: u64 = 200;

/// Answers that a network may get at once: a resolver that starts with an empty cache.
pub const UDP_BURST: u64 = 1000;

/// Every so many of the queries beyond get an answer without records that asks for TCP, so that a resolver in a network whose name is abused
/// still gets through (BIND's `slip`).
pub const UDP_SLIP: u32 = 2;

/// The same answers a second to one network: with every answer cached for [`TTL`], nobody needs one name so often, and everybody who is named in
/// forged queries gets it no more often either.
pub const UDP_ANSWERS_PER_NAME: u64 = 20;

/// The same answers that a network may get at once: many machines behind one address, each of which asks by itself.
pub const UDP_NAME_BURST: u64 = 100;

/// Networks whose answers are counted at once: 40 bytes each.
pub const UDP_NETWORKS: usize = 4096;

/// Networks with a name whose answers are counted at once: 40 bytes each.
pub const UDP_NAMES: usize = 16_384;

/// Names that one answer follows by CNAME (RFC 1034 section 3.6.2 asks servers to follow).
pub const CNAMES: usize = 8;

/// Signatures of sets that there are, kept at once: some 200 bytes each.
pub const SIGNATURES: usize = 4096;

/// Signatures that something does not exist, kept at once: some 200 bytes each. Few, since whoever asks for random names fills any number.
pub const DENIAL_SIGNATURES: usize = 512;

/// Seconds before now at which signatures begin to be valid, for validators whose clock is slow.
pub const INCEPTION_BACK: u32 = 3600;

/// Seconds after now for which signatures are valid at least: as long as a signature is used, and two days for clocks and caches.
pub const SIGNATURE_VALIDITY: u32 = 3 * 86_400;

/// Seconds more for which they are valid, by what is signed: so that not all of a cache's content ends at once.
pub const SIGNATURE_JITTER: u32 = 86_400;

/// Seconds for which a signature is used again.
pub const SIGNATURE_REUSE: u32 = 86_400;

/// Steps of a table of locations at most, 12 bytes each: some 300,000 prefixes of a routing table.
pub const LOCATION_NODES: usize = 4 << 20;

/// Gateways at most, of which an answer has all that are nearest: 1,232 bytes have room for 40 of each family.
pub const GATEWAYS: usize = 32;

/// How often gateways are asked whether they answer.
pub const PROBE_EVERY: Duration = Duration::from_secs(5);

/// How long a gateway may take to answer.
pub const PROBE_PATIENCE: Duration = Duration::from_secs(2);

/// After how many tries without an answer a gateway is left out: one lost packet is no failure.
pub const PROBE_FAILURES: u32 = 2;

/// Public addresses of devices that are looked after at most: some 200 bytes each; four of each device of a full region.
pub const EXTERNAL_PLACES: usize = 40_000;

/// How often it is looked whether a device answers at its public address, give or take an eighth: 10,000 homes are some 700 handshakes a second.
pub const EXTERNAL_EVERY: Duration = Duration::from_secs(15);

/// How long a handshake with a device may take: some round trips on a bad line.
pub const EXTERNAL_PATIENCE: Duration = Duration::from_secs(3);

/// The first pause after a try without an answer; it doubles up to the last one, so that a home whose line came back waits no longer, and those that
/// never answer cost little.
pub const EXTERNAL_RETRY: (Duration, Duration) = (Duration::from_secs(3), Duration::from_mins(2));

/// Devices that are asked at once: a socket and some 30 KB each.
pub const EXTERNAL_AT_ONCE: usize = 256;

/// How long changes of routes are gathered before it is looked which devices are to be asked: there may be a thousand a second.
pub const EXTERNAL_SETTLE: Duration = Duration::from_millis(500);

/// How long answers of devices are gathered before they are told.
pub const EXTERNAL_TURN: Duration = Duration::from_millis(100);

/// Open TCP connections at most: each holds a socket and at most [`MAX_QUERY`] bytes, so 2 MiB in all.
pub const TCP_CONNECTIONS: usize = 512;

/// Open TCP connections of one IPv4 address or one IPv6 /64 at most, so that no single client can take them all.
/// A resolver opens one or few (RFC 7766 section 6.2.2).
pub const TCP_CONNECTIONS_PER_CLIENT: usize = 32;

/// How long a TCP connection may wait for its next query (RFC 7766 section 6.2.3: "on the order of a few seconds").
pub const TCP_IDLE: Duration = Duration::from_secs(10);

/// How long a query may take to arrive once its first byte is there, and an answer to be taken.
pub const TCP_TRANSFER: Duration = Duration::from_secs(5);

/// How long to pause after the sockets' own errors (such as no file descriptors left), which would repeat at once.
pub const ERROR_PAUSE: Duration = Duration::from_millis(100);

/// How often to look for a port that both UDP and TCP can have when asked for port 0. Each try fails only if another
/// program has the UDP port that the kernel gave for TCP.
pub const PORT_ATTEMPTS: usize = 64;

/// How long an answer may be cached. Every name has the gateway's addresses, which change when a gateway is replaced.
pub const TTL: Duration = Duration::from_mins(1);

/// How long owners may have their own records cached at least and at most, in seconds; at most as long as a rollover of keys waits.
pub const RECORD_TTL: (u32, u32) = (1, 3600);

/// How long "there is no such name" may be cached (RFC 2308 section 5). Short, since people open a name in the same
/// minute in which they install its app.
pub const NEGATIVE_TTL: Duration = Duration::from_secs(5);

/// The longest TTL (RFC 2181 section 8).
pub const MAX_TTL: Duration = Duration::from_secs((1 << 31) - 1);

/// Seconds of the SOA for secondary servers, which nothing here has yet (RIPE-203): look for changes after an hour,
/// again after ten minutes, and give up after a week.
pub(crate) const SOA_REFRESH: u32 = 3600;
/// See [`SOA_REFRESH`].
pub(crate) const SOA_RETRY: u32 = 600;
/// See [`SOA_REFRESH`].
pub(crate) const SOA_EXPIRE: u32 = 604_800;
