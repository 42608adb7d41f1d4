//! openraft's generics, settled in one place.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use hearth_state::{Command, Response};
use hearth_types::store::{Op, Txn};
use openraft::impls::{BasicNode, leader_id_std};
use serde::{Deserialize, Serialize};

use crate::runtime::Runtime;

openraft::declare_raft_types!(
    /// The types of a region's Raft group.
    pub(crate) TypeConfig:
        D = Proposal,
        R = Response,
        NodeId = u64,
        Node = BasicNode,
        // One leader a term, as Raft has it.
        LeaderId = leader_id_std::LeaderId<u64, u64>,
        AsyncRuntime = Runtime,
);

/// Of an entry: the term alone.
pub(crate) type CommittedLeaderId = openraft::type_config::alias::CommittedLeaderIdOf<TypeConfig>;
pub(crate) type LogId = openraft::type_config::alias::LogIdOf<TypeConfig>;
pub(crate) type Vote = openraft::type_config::alias::VoteOf<TypeConfig>;
pub(crate) type Entry = openraft::type_config::alias::EntryOf<TypeConfig>;
pub(crate) type Payload = openraft::type_config::alias::PayloadOf<TypeConfig>;
pub(crate) type StoredMembership = openraft::type_config::alias::StoredMembershipOf<TypeConfig>;
pub(crate) type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<TypeConfig>;

/// The id of an entry.
pub(crate) fn log_id(term: u64, index: u64) -> LogId {
    LogId { leader_id: CommittedLeaderId::new(term), index }
}

/// What an entry takes in the log, nearly.
pub(crate) fn payload_size(payload: &Payload) -> u64 {
    let Payload::Normal(proposal) = payload else {
        return 64;
    };
    let Command::Txn(txn) = &*proposal.command else {
        return 128;
    };
    let op = |op: &Op| match op {
        Op::Create { object } | Op::Update { object, .. } => object.json().len(),
        Op::Delete { .. } | Op::Bind { .. } | Op::Check { .. } => 256,
    };
    128 + txn.ops.iter().map(op).sum::<usize>() as u64
}

/// A command on its way through Raft. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Proposal {
    pub(crate) command: Arc<Command>,
    /// The command's bytes, made by the proposer's task, so that Raft's one task has less to do; empty where they were
    /// let go, after they reached the log.
    pub(crate) encoded: Bytes,
}

impl Proposal {
    pub(crate) fn new(command: Command) -> Self {
        let encoded = command.encode().into();
        Self { command: Arc::new(command), encoded }
    }

    /// A command that came as its bytes.
    pub(crate) fn decode(encoded: Bytes) -> Self {
        Self { command: Arc::new(Command::decode(&encoded)), encoded }
    }

    /// The same for a store that takes it for another one: a bug that tests put back. `number` tells it from others of the same.
    pub(crate) fn under_another_id(&self, number: u64) -> Self {
        match &*self.command {
            Command::Txn(txn) => {
                let request_id = format!("{}-{number}", txn.request_id).as_str().into();
                Self::new(Command::Txn(Txn { request_id, ..txn.clone() }))
            }
            _ => self.clone(),
        }
    }

    pub(crate) fn bytes(&self) -> Bytes {
        if self.encoded.is_empty() { self.command.encode().into() } else { self.encoded.clone() }
    }
}

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.command {
            Command::Initialize { incarnation, .. } => write!(f, "initialize {incarnation}"),
            Command::Txn(txn) => write!(f, "transaction {} of {} operations", txn.request_id, txn.ops.len()),
            Command::RaiseFeatureLevel { level, .. } => write!(f, "feature level {level}"),
            Command::Unknown(bytes) => write!(f, "unknown entry of {} bytes", bytes.len()),
        }
    }
}

impl Serialize for Proposal {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.bytes())
    }
}

impl<'de> Deserialize<'de> for Proposal {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let command = Command::deserialize(deserializer)?;
        Ok(Self { command: Arc::new(command), encoded: Bytes::new() })
    }
}
