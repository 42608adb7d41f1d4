//! Every limit of this crate, with its unit and its reason.

use std::time::Duration;

/// Connections at once at one gateway. An idle one costs about 2 KB here and as much in the kernel.
/// Never more than half of the file descriptors that the process may open, so that callers cannot take those that
/// the rest of the process needs.
pub const MAX_CONNECTIONS: usize = 10_000;

/// Connections at once of one caller: an IPv4 address or an IPv6 /64, which is the least that a home gets
/// (RFC 6177). A browser opens some dozens; many people may share the address of a carrier's NAT.
pub const MAX_CONNECTIONS_PER_CALLER: usize = 512;

/// New connections a second of one caller, once [`CALLER_BURST`] are used up. A page opens some dozens and keeps them; each
/// new one costs a device a handshake.
pub const CALLER_RATE: u32 = 64;

/// New connections of one caller at once: all that it may have.
pub const CALLER_BURST: u32 = 512;

/// Connections at once to the devices of one owner: a fifth of [`MAX_CONNECTIONS`], so that what happens to one home
/// leaves the others their places. A device takes some hundred.
pub const MAX_CONNECTIONS_PER_OWNER: usize = 2_000;

/// New connections a second to the devices of one owner, once [`OWNER_BURST`] are used up: a mini-PC does some hundred
/// handshakes a second.
pub const OWNER_RATE: u32 = 256;

/// New connections to the devices of one owner at once.
pub const OWNER_BURST: u32 = 1_024;

/// Callers, and owners, of whom it is remembered how fast their connections came: some 100 bytes each. Those who have
/// connections are always remembered.
pub const MAX_REMEMBERED: usize = 20_000;

/// Flows at once at one gateway: a flow is a caller's address and port that sends datagrams to a port of a Route. Each is a stream of
/// a device's tunnel and some 5 KB. They are counted beside the connections, so that datagrams, whose senders anybody can make
/// up, take no connection's place.
pub const MAX_FLOWS: usize = 4_096;

/// Flows at once of one caller, as with [`MAX_CONNECTIONS_PER_CALLER`]: a household's players behind one address, or a resolver
/// that asks from another port each time.
pub const MAX_FLOWS_PER_CALLER: usize = 256;

/// New flows a second of one caller, once [`FLOW_CALLER_BURST`] are used up. With [`MAX_UNCONFIRMED_BYTES`] it is what a made-up sender can
/// be sent at most.
pub const FLOW_CALLER_RATE: u32 = 32;

/// New flows of one caller at once.
pub const FLOW_CALLER_BURST: u32 = 256;

/// Flows at once to the devices of one owner: a quarter of [`MAX_FLOWS`].
pub const MAX_FLOWS_PER_OWNER: usize = 1_024;

/// New flows a second to the devices of one owner, once [`FLOW_OWNER_BURST`] are used up.
pub const FLOW_OWNER_RATE: u32 = 256;

/// New flows to the devices of one owner at once.
pub const FLOW_OWNER_BURST: u32 = 1_024;

/// Flows at once of one port. Beyond, the unconfirmed one that was silent the longest makes room; a flow is confirmed once its
/// caller has sent again after an answer.
pub const MAX_FLOWS_PER_PORT: usize = 256;

/// After how long of its caller's silence a confirmed flow ends: what RFC 4787 (REQ-5) asks of NATs. Answers alone keep no flow, so that
/// nobody who has gone is sent to for longer.
pub const FLOW_IDLE: Duration = Duration::from_mins(2);

/// The same of an unconfirmed one, as Linux' connection tracking has it (`nf_conntrack_udp_timeout`).
pub const FLOW_UNCONFIRMED: Duration = Duration::from_secs(30);

/// The same at ports below 1024, where it is a question and its answer as a rule (RFC 4787, REQ-5 a).
pub const FLOW_WELL_KNOWN: Duration = Duration::from_secs(10);

/// Bytes that an unconfirmed flow's caller is sent at most: the longest datagram. The caller's address may be made up, and what it
/// never asked for come down on it.
pub const MAX_UNCONFIRMED_BYTES: usize = 64 * 1024;

/// Datagrams of one flow that wait for its device, which may have to be dialled first. Those beyond are dropped.
pub const MAX_WAITING: usize = 64;

/// The same in bytes: two of the longest.
pub const MAX_WAITING_BYTES: usize = 128 * 1024;

/// Bytes of all flows that wait.
pub const MAX_WAITING_BYTES_IN_ALL: usize = 32 * 1024 * 1024;

/// TCP and UDP ports of Routes at once: each is a socket.
pub const MAX_PORTS: usize = 1_000;

/// After how long a port that could not be listened on is tried again.
pub const PORT_RETRY: Duration = Duration::from_secs(10);

/// From the accepted connection to a whole ClientHello or request head: some round trips on a bad line.
pub const OPENING_TIMEOUT: Duration = Duration::from_secs(5);

/// From the whole ClientHello to a device's first byte, over all devices that are tried. Longer than the 5 s that one
/// dial may take, so that a second device gets its turn; a person does not wait longer in front of a browser.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(12);

/// From an open stream to the device's first byte. A tunnel that died unnoticed is found dead after 4 s; a device
/// answers a ClientHello without asking its apps.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Devices of one route that are tried for one connection; each costs a dial.
pub const MAX_DEVICES_TRIED: usize = 4;

/// From the device's first byte to the caller's first protected record, which ends the handshake. Two round trips,
/// and time for a person's slow phone.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);

/// After how long without a byte in either direction a connection ends. WebSockets are silent for long.
pub const IDLE_TIMEOUT: Duration = Duration::from_hours(1);

/// The same once one direction has ended: what is left is an answer under way.
pub const HALF_CLOSED_TIMEOUT: Duration = Duration::from_mins(1);

/// How long a peer may refuse to take a byte while some wait for it. A caller who reads nothing keeps a share of the
/// window of the device's tunnel, which all of the device's callers share.
pub const STALL_TIMEOUT: Duration = Duration::from_mins(1);

/// How long connections may go on after the gateway was told to stop.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection that was silent for this long is closed at once when the gateway was told to stop: it is most likely
/// between two requests. The gateway cannot see requests, so this is a guess.
pub const DRAIN_QUIET: Duration = Duration::from_secs(1);

/// How long a last message (alert or page) may take to be written, and then the caller to close: closing a socket
/// with unread bytes resets it (RFC 9112 section 9.6), and the message would be lost.
pub const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);

/// Bytes that are read and dropped while a caller is given time to read the last message.
pub const MAX_DRAINED_BYTES: usize = 256 * 1024;

/// Bytes copied at once in one direction of one connection, and the most that waits for a peer to take it: four full
/// TLS records would be 64 KiB, one and a tunnel's packets fill half of that.
pub const COPY_BYTES: usize = 32 * 1024;

/// How often a copy may go on without letting other connections have their turn.
pub const COPIES_PER_TURN: u32 = 16;

/// Silence after which the kernel asks whether a caller is still there; it gives up after [`KEEP_ALIVE_PROBES`].
pub const KEEP_ALIVE_IDLE: Duration = Duration::from_mins(1);

/// Between two such questions.
pub const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// Unanswered questions until the caller counts as gone.
pub const KEEP_ALIVE_PROBES: u32 = 4;

/// Pause after the kernel could not hand out a connection, so that a lack of descriptors does not spin.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What one of many may have of the connections, or of the flows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// How many at once.
    pub open: usize,
    /// New ones a second.
    pub per_second: u32,
    /// New ones at once, after a quiet time.
    pub burst: u32,
}

/// The limits that a gateway keeps: those above, but in tests.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Limits {
    /// [`MAX_CONNECTIONS`].
    pub connections: usize,
    /// [`MAX_CONNECTIONS_PER_CALLER`], [`CALLER_RATE`], [`CALLER_BURST`].
    pub caller: Share,
    /// [`MAX_CONNECTIONS_PER_OWNER`], [`OWNER_RATE`], [`OWNER_BURST`].
    pub owner: Share,
    /// [`MAX_FLOWS`].
    pub flows: usize,
    /// [`MAX_FLOWS_PER_CALLER`], [`FLOW_CALLER_RATE`], [`FLOW_CALLER_BURST`].
    pub flow_caller: Share,
    /// [`MAX_FLOWS_PER_OWNER`], [`FLOW_OWNER_RATE`], [`FLOW_OWNER_BURST`].
    pub flow_owner: Share,
    /// [`MAX_FLOWS_PER_PORT`].
    pub flows_per_port: usize,
    /// [`FLOW_IDLE`].
    pub flow_idle: Duration,
    /// [`FLOW_UNCONFIRMED`].
    pub flow_unconfirmed: Duration,
    /// [`FLOW_WELL_KNOWN`].
    pub flow_well_known: Duration,
    /// [`OPENING_TIMEOUT`].
    pub opening: Duration,
    /// [`CONNECT_TIMEOUT`].
    pub connect: Duration,
    /// [`ANSWER_TIMEOUT`].
    pub answer: Duration,
    /// [`HANDSHAKE_TIMEOUT`].
    pub handshake: Duration,
    /// [`IDLE_TIMEOUT`].
    pub idle: Duration,
    /// [`HALF_CLOSED_TIMEOUT`].
    pub half_closed: Duration,
    /// [`STALL_TIMEOUT`].
    pub stall: Duration,
    /// [`DRAIN_TIMEOUT`].
    pub drain: Duration,
    /// [`DRAIN_QUIET`].
    pub drain_quiet: Duration,
    /// [`FAREWELL_TIMEOUT`].
    pub farewell: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: MAX_CONNECTIONS,
            caller: Share { open: MAX_CONNECTIONS_PER_CALLER, per_second: CALLER_RATE, burst: CALLER_BURST },
            owner: Share { open: MAX_CONNECTIONS_PER_OWNER, per_second: OWNER_RATE, burst: OWNER_BURST },
            flows: MAX_FLOWS,
            flow_caller: Share { open: MAX_FLOWS_PER_CALLER, per_second: FLOW_CALLER_RATE, burst: FLOW_CALLER_BURST },
            flow_owner: Share { open: MAX_FLOWS_PER_OWNER, per_second: FLOW_OWNER_RATE, burst: FLOW_OWNER_BURST },
            flows_per_port: MAX_FLOWS_PER_PORT,
            flow_idle: FLOW_IDLE,
            flow_unconfirmed: FLOW_UNCONFIRMED,
            flow_well_known: FLOW_WELL_KNOWN,
            opening: OPENING_TIMEOUT,
            connect: CONNECT_TIMEOUT,
            answer: ANSWER_TIMEOUT,
            handshake: HANDSHAKE_TIMEOUT,
            idle: IDLE_TIMEOUT,
            half_closed: HALF_CLOSED_TIMEOUT,
            stall: STALL_TIMEOUT,
            drain: DRAIN_TIMEOUT,
            drain_quiet: DRAIN_QUIET,
            farewell: FAREWELL_TIMEOUT,
        }
    }
}
