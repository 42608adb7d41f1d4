//! Raft's messages as they travel, and back. Everything that comes in is hostile: it is bounded by the transport, read without a
//! panic, and what does not make sense is an error.

use hearth_proto::v1 as proto;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderError, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};

use crate::{
    log::record::{self, Record},
    types::{Entry, LogId, TypeConfig, Vote, log_id},
};

/// A message that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Malformed(pub(crate) String);

fn missing(what: &str) -> Malformed {
    Malformed(format!("{what} is missing"))
}

pub(crate) fn id_out(id: LogId) -> proto::LogId {
    proto::LogId { term: id.leader_id.term, index: id.index }
}

pub(crate) fn id_in(id: proto::LogId) -> LogId {
    log_id(id.term, id.index)
}

pub(crate) fn vote_out(vote: &Vote) -> proto::Ballot {
    proto::Ballot { term: vote.leader_id.term, candidate: vote.leader_id.voted_for, elected: vote.committed }
}

pub(crate) fn vote_in(ballot: Option<proto::Ballot>) -> Result<Vote, Malformed> {
    let ballot = ballot.ok_or_else(|| missing("the ballot"))?;
    let new = if ballot.elected { Vote::new_committed } else { Vote::new };
    Ok(new(ballot.term, ballot.candidate))
}

/// The ballot of a leader: of one that was elected.
pub(crate) fn leader_in(ballot: Option<proto::Ballot>) -> Result<Vote, Malformed> {
    let vote = vote_in(ballot)?;
    if vote.committed { Ok(vote) } else { Err(Malformed("the sender was not elected".into())) }
}

pub(crate) fn append_out(request: &AppendEntriesRequest<TypeConfig>) -> proto::AppendEntries {
    let entry = |entry: &Entry| {
        let mut bytes = Vec::new();
        record::push_payload(&mut bytes, entry);
        bytes.into()
    };
    proto::AppendEntries {
        leader: Some(vote_out(&request.vote)),
        previous: request.prev_log_id.map(id_out),
        commit: request.leader_commit.map(id_out),
        entries: request.entries.iter().map(entry).collect(),
    }
}

pub(crate) fn append_in(message: proto::AppendEntries) -> Result<AppendEntriesRequest<TypeConfig>, Malformed> {
    let vote = leader_in(message.leader)?;
    let prev_log_id = message.previous.map(id_in);
    let mut entries = Vec::with_capacity(message.entries.len());
    let mut last = prev_log_id;
    for bytes in &message.entries {
        let read = record::read_payload(bytes).map_err(|unread| Malformed(format!("an entry: {}", unread.why)))?;
        let Record::Entry(entry) = read else {
            return Err(Malformed("an entry is none".into()));
        };
        let next = last.map_or(Some(0), |id| id.index.checked_add(1));
        if Some(entry.log_id.index) != next
            || Some(entry.log_id.leader_id) < last.map(|id| id.leader_id)
            || entry.log_id.leader_id.term > vote.leader_id.term
        {
            return Err(Malformed(format!("entry {} cannot follow {last:?}", entry.log_id)));
        }
        last = Some(entry.log_id);
        entries.push(entry);
    }
    Ok(AppendEntriesRequest { vote, prev_log_id, entries, leader_commit: message.commit.map(id_in) })
}

pub(crate) fn appended_out(response: &AppendEntriesResponse<TypeConfig>) -> proto::AppendEntriesResponse {
    use proto::append_entries_response::Outcome;
    let outcome = match response {
        AppendEntriesResponse::Success => Outcome::Success(true),
        // Nothing is not the same as the entry 0 of the term 0, which is never anything but the first membership.
        AppendEntriesResponse::PartialSuccess(None) | AppendEntriesResponse::Conflict => Outcome::Conflict(true),
        AppendEntriesResponse::PartialSuccess(Some(id)) => Outcome::Partial(id_out(*id)),
        AppendEntriesResponse::HigherVote(vote) => Outcome::Higher(vote_out(vote)),
    };
    proto::AppendEntriesResponse { outcome: Some(outcome) }
}

pub(crate) fn appended_in(
    message: proto::AppendEntriesResponse,
) -> Result<AppendEntriesResponse<TypeConfig>, Malformed> {
    use proto::append_entries_response::Outcome;
    Ok(match message.outcome.ok_or_else(|| missing("the outcome"))? {
        Outcome::Success(_) => AppendEntriesResponse::Success,
        Outcome::Partial(id) => AppendEntriesResponse::PartialSuccess(Some(id_in(id))),
        Outcome::Conflict(_) => AppendEntriesResponse::Conflict,
        Outcome::Higher(ballot) => AppendEntriesResponse::HigherVote(vote_in(Some(ballot))?),
    })
}

pub(crate) fn vote_request_out(request: &VoteRequest<TypeConfig>, pre_vote: bool) -> proto::RequestVote {
    proto::RequestVote {
        candidate: Some(vote_out(&request.vote)),
        last: request.last_log_id.map(id_out),
        transfer: request.leadership_transfer,
        pre_vote,
    }
}

pub(crate) fn vote_request_in(message: proto::RequestVote) -> Result<(VoteRequest<TypeConfig>, bool), Malformed> {
    let vote = vote_in(message.candidate)?;
    if vote.committed {
        return Err(Malformed("the candidate is elected already".into()));
    }
    let mut request = VoteRequest::new(vote, message.last.map(id_in));
    request.leadership_transfer = message.transfer;
    Ok((request, message.pre_vote))
}

pub(crate) fn voted_out(response: &VoteResponse<TypeConfig>) -> proto::RequestVoteResponse {
    proto::RequestVoteResponse {
        ballot: Some(vote_out(&response.vote)),
        granted: response.vote_granted,
        last: response.last_log_id.map(id_out),
    }
}

pub(crate) fn voted_in(message: proto::RequestVoteResponse) -> Result<VoteResponse<TypeConfig>, Malformed> {
    Ok(VoteResponse::new(vote_in(message.ballot)?, message.last.map(id_in), message.granted))
}

pub(crate) fn transfer_out(request: &TransferLeaderRequest<TypeConfig>) -> proto::TransferLeader {
    proto::TransferLeader {
        leader: Some(vote_out(request.from_leader())),
        to: *request.to_node_id(),
        last: request.last_log_id().copied().map(id_out),
    }
}

pub(crate) fn transfer_in(message: proto::TransferLeader) -> Result<TransferLeaderRequest<TypeConfig>, Malformed> {
    Ok(TransferLeaderRequest::new(leader_in(message.leader)?, message.to, message.last.map(id_in)))
}

pub(crate) fn transferred_out(response: &TransferLeaderResponse<TypeConfig>) -> proto::TransferLeaderResponse {
    use proto::transfer_leader_response::Outcome;
    let outcome = match response {
        Ok(()) => Outcome::Accepted(true),
        Err(TransferLeaderError::VoteChanged { actual, .. }) => Outcome::Changed(vote_out(actual)),
        Err(TransferLeaderError::LogNotFlushed { actual: Some(id), .. }) => Outcome::Unflushed(id_out(*id)),
        Err(TransferLeaderError::LogNotFlushed { actual: None, .. }) => Outcome::Empty(true),
    };
    proto::TransferLeaderResponse { outcome: Some(outcome) }
}

pub(crate) fn transferred_in(
    message: proto::TransferLeaderResponse,
    request: &TransferLeaderRequest<TypeConfig>,
) -> Result<TransferLeaderResponse<TypeConfig>, Malformed> {
    use proto::transfer_leader_response::Outcome;
    let unflushed =
        |actual| Err(TransferLeaderError::LogNotFlushed { expected: request.last_log_id().copied(), actual });
    Ok(match message.outcome.ok_or_else(|| missing("the outcome"))? {
        Outcome::Accepted(_) => Ok(()),
        Outcome::Changed(ballot) => {
            let actual = vote_in(Some(ballot))?;
            Err(TransferLeaderError::VoteChanged { expected: *request.from_leader(), actual })
        }
        Outcome::Unflushed(id) => unflushed(Some(id_in(id))),
        Outcome::Empty(_) => unflushed(None),
    })
}

#[cfg(test)]
mod tests {
    use hearth_proto::v1::peer_request::Request;
    use hearth_state::Command;
    use hearth_types::Timestamp;
    use openraft::Membership;
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;
    use crate::types::{Payload, Proposal};

    fn ids() -> impl Strategy<Value = Option<LogId>> {
        proptest::option::of((0..9_u64, 0..99_u64).prop_map(|(term, index)| log_id(term, index)))
    }

    fn votes() -> impl Strategy<Value = Vote> {
        (0..9_u64, 0..9_u64, any::<bool>())
            .prop_map(|(term, id, elected)| if elected { Vote::new_committed(term, id) } else { Vote::new(term, id) })
    }

    /// What a leader of term 9 sends after entry 4 of term 3.
    fn request() -> AppendEntriesRequest<TypeConfig> {
        let command = Command::Initialize { incarnation: "i".into(), now: Timestamp(7) };
        let payloads = [
            Payload::Blank,
            Payload::Normal(Proposal::new(command)),
            Payload::Membership(Membership::new_with_defaults(vec![[1, 2, 3].into()], [4])),
        ];
        let entries = payloads.into_iter().zip(5..).map(|(payload, index)| Entry { log_id: log_id(9, index), payload });
        AppendEntriesRequest {
            vote: Vote::new_committed(9, 2),
            prev_log_id: Some(log_id(3, 4)),
            entries: entries.collect(),
            leader_commit: Some(log_id(3, 2)),
        }
    }

    #[test]
    fn entries_survive_their_way() {
        let sent = request();
        let bytes = append_out(&sent).encode_to_vec();
        let read = append_in(proto::AppendEntries::decode(&*bytes).expect("a message")).expect("makes sense");
        assert_eq!(
            (read.vote, read.prev_log_id, read.leader_commit),
            (sent.vote, sent.prev_log_id, sent.leader_commit)
        );
        assert_eq!(format!("{:?}", read.entries), format!("{:?}", sent.entries));
        let command = |entries: &[Entry]| match &entries[1].payload {
            Payload::Normal(proposal) => proposal.command.clone(),
            _ => panic!("a command"),
        };
        assert_eq!(command(&read.entries), command(&sent.entries));
    }

    #[test]
    fn entries_that_cannot_follow_each_other_are_refused() {
        let refused = |change: &dyn Fn(&mut proto::AppendEntries)| {
            let mut message = append_out(&request());
            change(&mut message);
            append_in(message).expect_err("refused")
        };
        refused(&|message| drop(message.entries.remove(1)));
        refused(&|message| message.entries.swap(0, 1));
        refused(&|message| message.previous = None);
        refused(&|message| message.previous = Some(proto::LogId { term: 3, index: u64::MAX }));
        refused(&|message| message.previous = Some(proto::LogId { term: 10, index: 4 }));
        refused(&|message| message.leader = None);
        refused(&|message| message.leader = Some(proto::Ballot { term: 9, candidate: 2, elected: false }));
        // Entries of a later term than the leader's.
        refused(&|message| message.leader = Some(proto::Ballot { term: 8, candidate: 2, elected: true }));
        // A record that is no entry, and none at all.
        refused(&|message| message.entries[0] = vec![4].into());
        refused(&|message| message.entries[0] = Vec::new().into());
    }

    proptest! {
        #[test]
        fn votes_and_answers_survive_their_way(vote in votes(), last in ids(), transfer: bool, pre: bool, granted: bool) {
            prop_assert_eq!(vote_in(Some(vote_out(&vote))), Ok(vote));
            let response = VoteResponse::<TypeConfig>::new(vote, last, granted);
            prop_assert_eq!(voted_in(voted_out(&response)), Ok(response));
            let mut request = VoteRequest::new(Vote::new(vote.leader_id.term, vote.leader_id.voted_for), last);
            request.leadership_transfer = transfer;
            prop_assert_eq!(vote_request_in(vote_request_out(&request, pre)), Ok((request, pre)));
            let asked = TransferLeaderRequest::new(Vote::new_committed(3, 1), 2, Some(log_id(3, 9)));
            let unflushed = TransferLeaderError::LogNotFlushed { expected: Some(log_id(3, 9)), actual: last };
            let changed = TransferLeaderError::VoteChanged { expected: Vote::new_committed(3, 1), actual: vote };
            for answer in [Ok(()), Err(unflushed), Err(changed)] {
                prop_assert_eq!(transferred_in(transferred_out(&answer), &asked), Ok(answer));
            }
            let answers = [
                AppendEntriesResponse::Success,
                AppendEntriesResponse::Conflict,
                AppendEntriesResponse::HigherVote(vote),
                last.map_or(AppendEntriesResponse::Conflict, |id| AppendEntriesResponse::PartialSuccess(Some(id))),
            ];
            for answer in answers {
                prop_assert_eq!(appended_in(appended_out(&answer)), Ok(answer));
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0..400_usize, flip: u8) {
            read(&bytes);
            // Nearly a message.
            let mut message = proto::PeerRequest {
                region: "home".into(),
                to: 1,
                request: Some(Request::AppendEntries(append_out(&request()))),
            }
            .encode_to_vec();
            if let Some(byte) = message.get_mut(at) {
                *byte ^= flip;
            }
            read(&message);
        }
    }

    fn read(bytes: &[u8]) {
        crate::decoders::peer_request(bytes);
        crate::decoders::peer_response(bytes);
    }
}
