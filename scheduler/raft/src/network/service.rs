//! What this server answers to the others.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::join_all;
use hearth_proto::v1::{self as proto, peer_request::Request, peer_response::Response};
use hearth_types::{
    BoxFuture, Reason, Status,
    group::{PeerService, Server},
};
use openraft::{
    errors::{Infallible, RaftError},
    raft::SnapshotResponse,
};
use prost::Message as _;

use super::{Incoming, Malformed, wire};
use crate::{
    core::{Core, NotHere},
    disk,
    group::Ask,
    types::Proposal,
};

/// How long a forwarded write may take here. Whoever forwarded it waits no longer either.
const FORWARD_LIMIT: Duration = crate::store::REQUEST_TIMEOUT;

impl PeerService for Core {
    fn answer(&self, from: u64, request: Bytes) -> BoxFuture<'_, Result<Bytes, Status>> {
        Box::pin(async move {
            let request = proto::PeerRequest::decode(request)
                .map_err(|error| Status::new(Reason::BadRequest, format!("a call of server {from}: {error}")))?;
            let response = match self.respond(from, request).await {
                Ok(response) => response,
                Err(refused) => Response::Refused(refused.out()),
            };
            Ok(proto::PeerResponse { response: Some(response) }.encode_to_vec().into())
        })
    }
}

/// Why a call is not answered as asked.
enum Refused {
    /// This server does not lead.
    NotHere,
    Status(Status),
}

impl Refused {
    fn out(self) -> proto::PeerRefusal {
        match self {
            Self::NotHere => proto::PeerRefusal { status: Bytes::new(), no_leader: true },
            Self::Status(status) => {
                proto::PeerRefusal { status: serde_json::to_vec(&status).unwrap_or_default().into(), no_leader: false }
            }
        }
    }
}

impl From<Status> for Refused {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

impl From<NotHere> for Refused {
    fn from(_: NotHere) -> Self {
        Self::NotHere
    }
}

impl From<Malformed> for Refused {
    fn from(malformed: Malformed) -> Self {
        Self::Status(Status::new(Reason::BadRequest, malformed.0))
    }
}

impl From<RaftError<crate::types::TypeConfig, Infallible>> for Refused {
    fn from(error: RaftError<crate::types::TypeConfig, Infallible>) -> Self {
        Self::Status(Status::unavailable(error.to_string()))
    }
}

impl Core {
    async fn respond(&self, from: u64, request: proto::PeerRequest) -> Result<Response, Refused> {
        let here = &self.here;
        if request.region != *self.caller.region || request.to != here.id {
            let why = format!(
                "server {from} of region {} called server {} of region {}; this is server {} of {}",
                request.region, request.to, request.region, here.id, self.caller.region
            );
            return Err(Status::new(Reason::BadRequest, why).into());
        }
        if let Some(why) = self.health.failure() {
            return Err(Status::unavailable(format!("server {} failed: {why}", here.id)).into());
        }
        match request.request.ok_or_else(|| Malformed("the request is unknown".into()))? {
            Request::AppendEntries(message) => {
                let request = wire::append_in(message)?;
                is_from(from, request.vote.leader_id.voted_for)?;
                let answer = self.raft.append_entries(request).await?;
                Ok(Response::AppendEntries(wire::appended_out(&answer)))
            }
            Request::RequestVote(message) => {
                let (request, pre_vote) = wire::vote_request_in(message)?;
                is_from(from, request.vote.leader_id.voted_for)?;
                let answer =
                    if pre_vote { self.raft.pre_vote(request).await? } else { self.raft.vote(request).await? };
                Ok(Response::RequestVote(wire::voted_out(&answer)))
            }
            Request::SnapshotChunk(message) => self.take_chunk(from, message).await,
            Request::TransferLeader(message) => {
                let request = wire::transfer_in(message)?;
                is_from(from, request.from_leader().leader_id.voted_for)?;
                let answer = self.raft.handle_transfer_leader(request).await;
                let answer = answer.map_err(|error| Status::unavailable(error.to_string()))?;
                Ok(Response::TransferLeader(wire::transferred_out(&answer)))
            }
            Request::Forward(message) => {
                let done = join_all(message.commands.into_iter().map(|command| self.take_forward(command))).await;
                Ok(Response::Forward(proto::ForwardResponse { done }))
            }
            Request::ReadIndex(_) => {
                if !self.leads() {
                    return Err(Refused::NotHere);
                }
                let log_id = self.reads.index().await?;
                Ok(Response::ReadIndex(proto::ReadIndexResponse { log_id: Some(wire::id_out(log_id)) }))
            }
            Request::Administer(message) => {
                if !self.leads() {
                    return Err(Refused::NotHere);
                }
                let ask = Ask::read(message)?;
                Ok(Response::Administer(self.administer_here(ask).await??))
            }
            Request::Describe(_) => Ok(Response::Describe(proto::DescribeResponse {
                feature_level: self.shared.known,
                term: self.leadership().term,
            })),
        }
    }

    /// Writes what another server was asked to write.
    async fn take_forward(&self, command: Bytes) -> proto::Forwarded {
        let proposal = Proposal::decode(command);
        let written = async {
            if let Some(why) = proposal.command.unread() {
                return Err(Status::new(Reason::BadRequest, why).into());
            }
            let (response, log_id) = self.write_here(proposal, FORWARD_LIMIT).await??;
            // An outcome has the objects in it.
            let known = matches!(response, hearth_state::Response::Txn(_));
            let response = if known { Ok(Vec::new()) } else { serde_json::to_vec(&response) };
            let response = response.map_err(|error| Status::internal(error.to_string()))?.into();
            Ok::<_, Refused>(proto::Forwarded { refused: None, applied: Some(wire::id_out(log_id)), response })
        };
        written.await.unwrap_or_else(|refused| proto::Forwarded {
            refused: Some(refused.out()),
            applied: None,
            response: Bytes::new(),
        })
    }

    async fn take_chunk(&self, from: u64, message: proto::SnapshotChunk) -> Result<Response, Refused> {
        let vote = wire::leader_in(message.leader)?;
        is_from(from, vote.leader_id.voted_for)?;
        let failed = |error: std::io::Error| Status::unavailable(format!("the snapshot cannot be taken in: {error}"));
        let mut slot = self.incoming.lock().await;
        let (disk, dir) = (&self.disk, &self.dir);
        let mut incoming = match slot.take() {
            Some(incoming) if incoming.is(&message.id, message.total) => incoming,
            other => {
                let (on, dir, id, total) = (Arc::clone(disk), dir.clone(), message.id.clone(), message.total);
                let begun = disk::call(disk, move || {
                    if let Some(other) = other {
                        other.discard();
                    }
                    Incoming::begin(&on, &dir, &id, total)
                });
                begun.await.map_err(failed)?
            }
        };
        let incoming = disk::call(disk, move || {
            incoming.add(message.offset, &message.data)?;
            Ok(incoming)
        });
        let incoming = incoming.await.map_err(failed)?;
        let received = incoming.received();
        if !incoming.is_whole() {
            *slot = Some(incoming);
            return Ok(Response::SnapshotChunk(proto::SnapshotChunkResponse { received, installed: None }));
        }
        let shared = Arc::clone(&self.shared);
        let snapshot = disk::call(disk, move || shared.adopt(&incoming.finish()?)).await.map_err(failed)?;
        let installed = self.raft.install_full_snapshot(vote, snapshot).await;
        let SnapshotResponse { vote } = installed.map_err(|error| Status::unavailable(error.to_string()))?;
        tracing::info!(from, bytes = received, "took in a snapshot");
        let installed = Some(wire::vote_out(&vote));
        Ok(Response::SnapshotChunk(proto::SnapshotChunkResponse { received, installed }))
    }
}

/// A server speaks for itself alone.
fn is_from(from: u64, claimed: u64) -> Result<(), Malformed> {
    if from == claimed { Ok(()) } else { Err(Malformed(format!("server {from} speaks for server {claimed}"))) }
}

/// The server that a message names.
pub(crate) fn server_in(server: proto::PeerServer) -> Server {
    Server { id: server.id, address: server.address }
}

/// A server, as messages name it.
pub(crate) fn server_out(server: &Server) -> proto::PeerServer {
    proto::PeerServer { id: server.id, address: server.address.clone() }
}
