//! What the store reads from outside, on its own, for fuzzing: none of it may panic, or take memory out of proportion to its input,
//! whatever the bytes are.

use std::path::Path;

use hearth_proto::v1::{self as proto, peer_request::Request, peer_response::Response};
use openraft::raft::TransferLeaderRequest;
use prost::Message as _;

use crate::{
    group::{Ask, member_in},
    log::{record, vote},
    machine,
    network::wire,
    open::{IDENTITY, IDENTITY_MAGIC, Identity},
    sealed,
    types::{Vote, log_id},
};

/// A segment of the log, with its records and what they say.
pub fn log_segment(bytes: &[u8]) {
    for last in [false, true] {
        let _ = record::check_head(bytes, 1);
        if let Ok(scan) = record::scan(bytes, last) {
            for payload in scan.payloads {
                let _ = record::read_payload(&bytes[payload]);
            }
        }
    }
    let _ = record::read_payload(bytes);
}

/// A snapshot: the bytes as they are, and as what is in one, with the checksums that belong to it.
pub fn snapshot(bytes: &[u8]) {
    machine::decode_snapshot(bytes);
    if let Some((length, rest)) = bytes.split_first() {
        let (head, state) = rest.split_at((*length as usize).min(rest.len()));
        machine::decode_snapshot(&machine::seal_snapshot(head, state));
    }
}

/// A small sealed file, as it is; and vote and identity with these bytes in them, under the checksum that belongs to them.
pub fn sealed_file(bytes: &[u8]) {
    if let Some((magic, content)) = bytes.split_first_chunk::<8>() {
        let _ = sealed::open(*magic, bytes);
        assert_eq!(sealed::open(*magic, &sealed::seal(*magic, content)), Ok(content), "what is sealed opens");
    }
    let _ = vote::decode(&sealed::seal(vote::MAGIC, bytes));
    let _ = Identity::decode(Path::new(IDENTITY), &sealed::seal(IDENTITY_MAGIC, bytes));
}

/// A call of another server.
pub fn peer_request(bytes: &[u8]) {
    match proto::PeerRequest::decode(bytes).ok().and_then(|message| message.request) {
        Some(Request::AppendEntries(message)) => drop(wire::append_in(message)),
        Some(Request::RequestVote(message)) => drop(wire::vote_request_in(message)),
        Some(Request::SnapshotChunk(message)) => drop(wire::leader_in(message.leader)),
        Some(Request::TransferLeader(message)) => drop(wire::transfer_in(message)),
        Some(Request::Forward(message)) => {
            message.commands.iter().for_each(|command| drop(hearth_state::Command::decode(command)));
        }
        Some(Request::Administer(message)) => drop(Ask::read(message)),
        Some(Request::ReadIndex(_) | Request::Describe(_)) | None => {}
    }
}

/// The answer of another server.
pub fn peer_response(bytes: &[u8]) {
    match proto::PeerResponse::decode(bytes).ok().and_then(|message| message.response) {
        Some(Response::Refused(message)) => {
            drop(serde_json::from_slice::<hearth_types::Status>(&message.status));
        }
        Some(Response::AppendEntries(message)) => drop(wire::appended_in(message)),
        Some(Response::RequestVote(message)) => drop(wire::voted_in(message)),
        Some(Response::SnapshotChunk(message)) => drop(message.installed.map(|ballot| wire::vote_in(Some(ballot)))),
        Some(Response::TransferLeader(message)) => {
            let asked = TransferLeaderRequest::new(Vote::new_committed(1, 1), 2, Some(log_id(1, 1)));
            drop(wire::transferred_in(message, &asked));
        }
        Some(Response::Forward(message)) => {
            message.done.iter().for_each(|done| drop(serde_json::from_slice::<hearth_state::Response>(&done.response)));
        }
        Some(Response::Administer(message)) => drop(message.members.into_iter().map(member_in).collect::<Vec<_>>()),
        Some(Response::ReadIndex(_) | Response::Describe(_)) | None => {}
    }
}
