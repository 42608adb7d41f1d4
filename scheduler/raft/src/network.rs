//! The way to other servers. A region of one server has none; issue "a region that cannot lose what it acknowledged"
//! puts a network behind the same trait.

use openraft::{
    AnyError, RaftNetworkFactory, RaftNetworkV2,
    errors::{RPCError, ReplicationClosed, StreamingError, Unreachable},
    impls::BasicNode,
    network::{NetSnapshot, RPCOption},
    raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse},
};

use crate::{
    machine::SnapshotFile,
    types::{TypeConfig, Vote},
};

/// How Raft reaches other servers.
pub(crate) trait Network:
    RaftNetworkFactory<TypeConfig, Network: NetSnapshot<TypeConfig, SnapshotData = SnapshotFile>>
{
}

impl<N> Network for N where
    N: RaftNetworkFactory<TypeConfig, Network: NetSnapshot<TypeConfig, SnapshotData = SnapshotFile>>
{
}

/// The network of a region of one server: nobody is in reach.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Alone;

impl RaftNetworkFactory<TypeConfig> for Alone {
    type Network = Self;

    async fn new_client(&mut self, _: u64, _: &BasicNode) -> Self {
        *self
    }
}

fn nobody() -> Unreachable<TypeConfig> {
    Unreachable::new(&AnyError::error("this region has one server"))
}

type Rpc<T> = Result<T, RPCError<TypeConfig>>;

impl RaftNetworkV2<TypeConfig> for Alone {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        _: AppendEntriesRequest<TypeConfig>,
        _: RPCOption,
    ) -> Rpc<AppendEntriesResponse<TypeConfig>> {
        Err(RPCError::Unreachable(nobody()))
    }

    async fn vote(&mut self, _: VoteRequest<TypeConfig>, _: RPCOption) -> Rpc<VoteResponse<TypeConfig>> {
        Err(RPCError::Unreachable(nobody()))
    }

    // The default would grant every pre-vote.
    async fn pre_vote(&mut self, _: VoteRequest<TypeConfig>, _: RPCOption) -> Rpc<VoteResponse<TypeConfig>> {
        Err(RPCError::Unreachable(nobody()))
    }

    async fn full_snapshot(
        &mut self,
        _: Vote,
        _: openraft::type_config::alias::SnapshotOf<TypeConfig, SnapshotFile>,
        _: impl Future<Output = ReplicationClosed> + Send + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        Err(StreamingError::Unreachable(nobody()))
    }
}
