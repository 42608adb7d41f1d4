//! The group of servers that keep a region's state: who belongs to it, who leads, and how they call each other.

use std::{fmt, pin::Pin, time::Duration};

use bytes::Bytes;
use futures_core::Stream;
use serde::{Deserialize, Serialize};

use crate::{BoxFuture, Status};

/// Servers of a region at most: more make every write slower and nothing safer.
pub const MAX_SERVERS: usize = 7;

/// A server of a region.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Server {
    /// Its number in the region; never given to another one, not even after it was removed. The first server is 1.
    pub id: u64,
    /// Where its API answers, as `host:port`: servers, clients and devices all call it there.
    pub address: String,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "server {} at {}", self.id, self.address)
    }
}

/// What a server is in the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberRole {
    /// It votes, and what a majority of the voters has on disk is acknowledged.
    Voter,
    /// It gets everything and does not vote: it is still catching up.
    Learner,
}

/// A member of the group as the leader sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Which server.
    pub server: Server,
    /// What it is.
    pub role: MemberRole,
    /// Whether it leads.
    pub leads: bool,
    /// How many log entries it has yet to get; `None` while it has not answered this leader.
    pub behind: Option<u64>,
    /// How long ago it last answered the leader; `None` while it has not.
    pub silent: Option<Duration>,
}

/// Who leads, as a server knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// The term. Each has one leader at most, and a later one has a higher number.
    pub term: u64,
    /// The leader; `None` while there is none that this server knows.
    pub leader: Option<Server>,
    /// Whether it is this server, and it has applied everything that was acknowledged before its term.
    pub here: bool,
}

/// The group. Every server answers: what only the leader can do is handed on to it.
///
/// # Errors
/// `ServiceUnavailable` or `Timeout` where there is no leader or it did not answer: what was asked may have happened, and can
/// be asked again. `Conflict` where it is refused as things are; the message says what to do.
pub trait Group: Send + Sync + 'static {
    /// The number of this server.
    fn id(&self) -> u64;

    /// Who belongs to the group, in the order of numbers.
    fn members(&self) -> BoxFuture<'_, Result<Vec<Member>, Status>>;

    /// Adds a server that runs and has joined: it learns first, and votes once it has caught up; returns then. Of a server that belongs to
    /// the group already, sets the address.
    fn admit(&self, server: Server) -> BoxFuture<'_, Result<(), Status>>;

    /// Removes a server for good. Refused where the voters that would be left and that answer the leader are no majority
    /// of those left, so that writes would stop; and for the last server.
    fn remove(&self, id: u64) -> BoxFuture<'_, Result<(), Status>>;

    /// Has another server lead: `to`, or the voter that is least behind. Returns once it does.
    fn transfer_leader(&self, to: Option<u64>) -> BoxFuture<'_, Result<Server, Status>>;

    /// Who leads, now.
    fn leadership(&self) -> Leadership;

    /// Who leads: now, and each time that this server hears of a change. Values that nobody took are dropped, but for the newest.
    fn watch_leadership(&self) -> Pin<Box<dyn Stream<Item = Leadership> + Send>>;
}

/// How urgent a call between servers is. Each lane has a connection of its own, so that no heartbeat waits behind a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Votes, heartbeats, and confirmations of reads.
    Urgent,
    /// Log entries and forwarded writes.
    Entries,
    /// Snapshots.
    Bulk,
}

/// Why a server could not be called. Whether it got the request is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CallError(pub String);

/// How a server calls another one: the network, injected.
pub trait PeerTransport: Send + Sync + 'static {
    /// Calls a server, which has to prove that it is the one meant, and returns its answer. Dropping the future gives the call up.
    fn call(&self, to: &Server, lane: Lane, request: Bytes) -> BoxFuture<'static, Result<Bytes, CallError>>;
}

/// What a server answers to another one.
pub trait PeerService: Send + Sync + 'static {
    /// Answers a request of server `from`, which has proved that it is this one. What cannot be read is `BadRequest`; never panics,
    /// whatever the bytes are.
    fn answer(&self, from: u64, request: Bytes) -> BoxFuture<'_, Result<Bytes, Status>>;
}
