//! The way to other servers: Raft's calls, made through an injected [`PeerTransport`].

mod incoming;
mod reach;
mod service;
pub(crate) mod wire;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use hearth_proto::v1::{self as proto, peer_request::Request, peer_response::Response};
use hearth_types::{
    Status,
    group::{Lane, PeerTransport, Server},
};
use openraft::{
    Membership, RaftNetworkFactory, RaftNetworkV2,
    errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable},
    impls::BasicNode,
    network::RPCOption,
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
        VoteRequest, VoteResponse,
    },
};
use prost::Message as _;

pub(crate) use self::{
    incoming::Incoming,
    reach::Reach,
    service::{server_in, server_out},
    wire::Malformed,
};
use crate::{
    machine::{RaftSnapshot, SnapshotFile},
    types::{TypeConfig, Vote},
};

/// How long entries may be on their way: a megabyte and a sync at the other end, on a slow link.
const ENTRIES_LIMIT: Duration = Duration::from_secs(10);
/// How long a part of a snapshot may be on its way, and the last one to be read and checked at the other end.
const CHUNK_LIMIT: Duration = Duration::from_secs(30);
/// Bytes of a snapshot that travel at once: little enough for a slow link, and to begin anew with after it broke.
const CHUNK_BYTES: usize = 512 << 10;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallFailure {
    /// It was not answered. Whether it arrived is unknown.
    #[error("{0}")]
    Unanswered(String),
    /// It took too long. Whether it arrived is unknown.
    #[error("no answer from {0} within {1:?}")]
    TooLong(Server, Duration),
    /// The other server does not lead, and did nothing.
    #[error("{0} does not lead")]
    NoLeader(Server),
    /// The other server refused it.
    #[error(transparent)]
    Refused(Status),
    /// The answer makes no sense.
    #[error("{0} gave an answer that makes no sense: {1}")]
    Senseless(Server, Malformed),
}

impl CallFailure {
    /// What a refusal of another server says.
    pub(crate) fn refused(by: &Server, refusal: &proto::PeerRefusal) -> Self {
        if refusal.no_leader {
            return Self::NoLeader(by.clone());
        }
        match serde_json::from_slice(&refusal.status) {
            Ok(status) => Self::Refused(status),
            Err(error) => Self::Senseless(by.clone(), Malformed(error.to_string())),
        }
    }
}

/// Calls other servers of the region.
#[derive(Clone)]
pub(crate) struct Caller {
    pub(crate) region: Arc<str>,
    pub(crate) transport: Arc<dyn PeerTransport>,
    pub(crate) reach: Reach,
}

impl Caller {
    /// Calls a server and returns its answer; gives up after `limit`.
    pub(crate) async fn call(
        &self,
        to: &Server,
        lane: Lane,
        request: Request,
        limit: Duration,
    ) -> Result<Response, CallFailure> {
        let message = proto::PeerRequest { region: self.region.to_string(), to: to.id, request: Some(request) };
        let call = self.transport.call(to, lane, message.encode_to_vec().into());
        let answer = match tokio::time::timeout(limit, call).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(CallFailure::Unanswered(error.0)),
            Err(_) => Err(CallFailure::TooLong(to.clone(), limit)),
        };
        self.reach.note(to, answer.as_ref().err());
        let answer = answer?;
        let senseless = |why: String| CallFailure::Senseless(to.clone(), Malformed(why));
        let answer = proto::PeerResponse::decode(answer).map_err(|error| senseless(error.to_string()))?;
        match answer.response {
            Some(Response::Refused(refusal)) => Err(CallFailure::refused(to, &refusal)),
            Some(response) => Ok(response),
            None => Err(senseless("it is empty".into())),
        }
    }
}

/// Picks the one response that a request can have.
macro_rules! answer_of {
    ($to:expr, $response:expr, $variant:path) => {
        match $response {
            $variant(message) => Ok(message),
            _ => Err(CallFailure::Senseless($to.clone(), Malformed("it answers something else".into()))),
        }
    };
}
pub(crate) use answer_of;

/// Where the members are now: openraft keeps the address that a server had when its connection was made.
#[derive(Clone)]
pub(crate) struct Addresses {
    known: Arc<Mutex<BTreeMap<u64, String>>>,
    reach: Reach,
}

impl Addresses {
    pub(crate) fn new(reach: Reach) -> Self {
        Self { known: Arc::default(), reach }
    }

    /// Takes them from a membership.
    pub(crate) fn update(&self, membership: &Membership<u64, BasicNode>) {
        let now = membership.nodes().map(|(id, node)| (*id, node.addr.clone())).collect();
        self.reach.keep(|id| membership.get_node(&id).is_some());
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }

    fn of(&self, id: u64) -> Option<String> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }
}

/// Makes the connections of Raft.
pub(crate) struct Network {
    pub(crate) caller: Caller,
    pub(crate) addresses: Addresses,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Peer;

    async fn new_client(&mut self, id: u64, node: &BasicNode) -> Peer {
        let addresses = self.addresses.clone();
        Peer { caller: self.caller.clone(), addresses, server: Server { id, address: node.addr.clone() } }
    }
}

/// Another server, as Raft calls it.
pub(crate) struct Peer {
    caller: Caller,
    addresses: Addresses,
    server: Server,
}

type Rpc<T> = Result<T, RPCError<TypeConfig>>;

fn rpc_error(failure: CallFailure) -> RPCError<TypeConfig> {
    match failure {
        CallFailure::Unanswered(_) | CallFailure::NoLeader(_) | CallFailure::Refused(_) => {
            RPCError::Unreachable(Unreachable::new(&failure))
        }
        CallFailure::TooLong(..) | CallFailure::Senseless(..) => RPCError::Network(NetworkError::new(&failure)),
    }
}

impl Peer {
    /// Calls it where it is now.
    async fn call(&self, lane: Lane, request: Request, limit: Duration) -> Result<Response, CallFailure> {
        let address = self.addresses.of(self.server.id).unwrap_or_else(|| self.server.address.clone());
        self.caller.call(&Server { id: self.server.id, address }, lane, request, limit).await
    }

    fn senseless(&self, malformed: Malformed) -> RPCError<TypeConfig> {
        rpc_error(CallFailure::Senseless(self.server.clone(), malformed))
    }

    async fn request_vote(
        &self,
        request: VoteRequest<TypeConfig>,
        pre_vote: bool,
        limit: Duration,
    ) -> Rpc<VoteResponse<TypeConfig>> {
        let message = Request::RequestVote(wire::vote_request_out(&request, pre_vote));
        let response = self.call(Lane::Urgent, message, limit).await.map_err(rpc_error)?;
        let message = answer_of!(self.server, response, Response::RequestVote).map_err(rpc_error)?;
        wire::voted_in(message).map_err(|malformed| self.senseless(malformed))
    }

    /// Sends a snapshot in parts, from where the other end has it.
    async fn send_snapshot(&self, vote: Vote, snapshot: &SnapshotFile) -> Result<Vote, CallFailure> {
        let local =
            |error: std::io::Error| CallFailure::Unanswered(format!("the snapshot to send cannot be read: {error}"));
        let total = snapshot.size().await.map_err(local)?;
        // Files of one name with other content are of another leader or size.
        let id = format!("{}-{}-{}-{total}", vote.leader_id.term, vote.leader_id.voted_for, snapshot.name());
        let mut offset = 0;
        let mut data = Bytes::new();
        loop {
            let message =
                proto::SnapshotChunk { leader: Some(wire::vote_out(&vote)), id: id.clone(), total, offset, data };
            let message = Request::SnapshotChunk(message);
            let response = self.call(Lane::Bulk, message, CHUNK_LIMIT).await?;
            let answer = answer_of!(self.server, response, Response::SnapshotChunk)?;
            let senseless = |malformed| CallFailure::Senseless(self.server.clone(), malformed);
            if let Some(ballot) = answer.installed {
                return wire::vote_in(Some(ballot)).map_err(senseless);
            }
            if answer.received >= total {
                return Err(senseless(Malformed("it has all of a snapshot and did not install it".into())));
            }
            offset = answer.received;
            data = snapshot.part(offset, CHUNK_BYTES).await.map_err(local)?.into();
        }
    }
}

impl RaftNetworkV2<TypeConfig> for Peer {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<AppendEntriesResponse<TypeConfig>> {
        let (lane, limit) = match request.entries.last() {
            None => (Lane::Urgent, option.hard_ttl()),
            Some(_) => (Lane::Entries, ENTRIES_LIMIT),
        };
        let last = request.entries.last().map(|entry| entry.log_id).or(request.prev_log_id);
        let message = Request::AppendEntries(wire::append_out(&request));
        let response = self.call(lane, message, limit).await.map_err(rpc_error)?;
        let message = answer_of!(self.server, response, Response::AppendEntries).map_err(rpc_error)?;
        let answer = wire::appended_in(message).map_err(|malformed| self.senseless(malformed))?;
        let senseless = match &answer {
            AppendEntriesResponse::PartialSuccess(upto) => *upto > last || *upto < request.prev_log_id,
            // Before the first entry there is nothing to conflict with.
            AppendEntriesResponse::Conflict => request.prev_log_id.is_none(),
            AppendEntriesResponse::Success | AppendEntriesResponse::HigherVote(_) => false,
        };
        if senseless {
            return Err(self.senseless(Malformed(format!("{answer} to entries up to {last:?}"))));
        }
        Ok(answer)
    }

    async fn vote(&mut self, request: VoteRequest<TypeConfig>, option: RPCOption) -> Rpc<VoteResponse<TypeConfig>> {
        self.request_vote(request, false, option.hard_ttl()).await
    }

    async fn pre_vote(&mut self, request: VoteRequest<TypeConfig>, option: RPCOption) -> Rpc<VoteResponse<TypeConfig>> {
        self.request_vote(request, true, option.hard_ttl()).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: RaftSnapshot,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let sent = tokio::select! {
            biased;
            closed = cancel => return Err(StreamingError::Closed(closed)),
            sent = self.send_snapshot(vote, &snapshot.snapshot) => sent,
        };
        sent.map(SnapshotResponse::new).map_err(|failure| match rpc_error(failure) {
            RPCError::Unreachable(error) => StreamingError::Unreachable(error),
            RPCError::Network(error) => StreamingError::Network(error),
            other => StreamingError::Network(NetworkError::new(&other)),
        })
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<TransferLeaderResponse<TypeConfig>> {
        let message = Request::TransferLeader(wire::transfer_out(&request));
        let limit = option.hard_ttl();
        let response = self.call(Lane::Urgent, message, limit).await.map_err(rpc_error)?;
        let message = answer_of!(self.server, response, Response::TransferLeader).map_err(rpc_error)?;
        wire::transferred_in(message, &request).map_err(|malformed| self.senseless(malformed))
    }
}
