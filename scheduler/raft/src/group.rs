//! The group's members: who belongs, and what operators change about it. The leader does it; the others hand it on to it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;
use hearth_proto::v1::{self as proto, administer, peer_request::Request, peer_response::Response as Answer};
use hearth_state::Command;
use hearth_types::{
    Clock, Reason, Status,
    group::{Lane, MAX_SERVERS, Member, MemberRole, Server},
};
use openraft::{
    ChangeMembers, Instant as _,
    async_runtime::watch::WatchReceiver as _,
    errors::{ChangeMembershipError, ClientWriteError, RaftError},
    impls::BasicNode,
};
use tokio::time::Instant;

use crate::{
    core::{Core, NotHere},
    network::{CallFailure, Malformed, answer_of, server_in, server_out},
    types::{Proposal, TypeConfig},
};

/// How long a server that is asked what it is may take: others are waiting, and one that is well answers in a millisecond.
const DESCRIBE_LIMIT: Duration = Duration::from_millis(1_500);
/// How long the admission of a server may take, with all it has to get; whoever asked may ask again and goes on waiting.
pub(crate) const ADMIT_LIMIT: Duration = Duration::from_mins(2);
/// How long any other change may take.
pub(crate) const CHANGE_LIMIT: Duration = Duration::from_secs(20);
/// Entries that a learner may lack when it becomes a voter: what a busy group writes while the change itself is on its way.
const CAUGHT_UP: u64 = 200;
/// How often a state that nothing announces is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// How long a transfer of leadership is given before the server is asked again.
const TRANSFER_ROUND: Duration = Duration::from_secs(1);
/// How often the leader asks whether every member knows the newest feature level, until all do.
const FEATURE_LEVEL_INTERVAL: Duration = Duration::from_secs(5);
/// How often the leader looks for a change that it did not finish in time.
const FINISH_INTERVAL: Duration = Duration::from_secs(1);

/// What is asked of the group.
#[derive(Clone, Debug)]
pub(crate) enum Ask {
    Members,
    Admit(Server),
    Remove(u64),
    Transfer(Option<u64>),
}

impl Ask {
    /// As it travels.
    pub(crate) fn message(&self) -> proto::Administer {
        let ask = match self {
            Self::Members => administer::Ask::Members(true),
            Self::Admit(server) => administer::Ask::Admit(server_out(server)),
            Self::Remove(id) => administer::Ask::Remove(*id),
            Self::Transfer(to) => administer::Ask::TransferTo(to.unwrap_or_default()),
        };
        proto::Administer { ask: Some(ask) }
    }

    /// From a message.
    pub(crate) fn read(message: proto::Administer) -> Result<Self, Malformed> {
        Ok(match message.ask.ok_or_else(|| Malformed("nothing is asked".into()))? {
            administer::Ask::Members(_) => Self::Members,
            administer::Ask::Admit(server) => Self::Admit(server_in(server)),
            administer::Ask::Remove(id) => Self::Remove(id),
            administer::Ask::TransferTo(0) => Self::Transfer(None),
            administer::Ask::TransferTo(id) => Self::Transfer(Some(id)),
        })
    }
}

fn conflict(why: impl Into<String>) -> Status {
    Status::new(Reason::Conflict, why)
}

type Done<T> = Result<Result<T, Status>, NotHere>;

/// `?` for what is done at the leader.
macro_rules! done {
    ($result:expr) => {
        match $result? {
            Ok(value) => value,
            Err(status) => return Ok(Err(status)),
        }
    };
}

impl Core {
    /// Does as the leader what is asked.
    pub(crate) async fn administer_here(&self, ask: Ask) -> Done<proto::AdministerResponse> {
        let mut response = proto::AdministerResponse::default();
        match ask {
            Ask::Members => response.members = self.members_here().iter().map(member_out).collect(),
            Ask::Admit(server) => done!(self.admit_here(server).await),
            Ask::Remove(id) => done!(self.remove_here(id).await),
            Ask::Transfer(to) => response.leader = Some(server_out(&done!(self.transfer_here(to).await))),
        }
        Ok(Ok(response))
    }

    fn members_here(&self) -> Vec<Member> {
        let metrics = self.raft.metrics().borrow_watched().clone();
        let membership = metrics.membership_config.membership();
        let last = metrics.last_log_index.unwrap_or_default();
        let voters: Vec<u64> = membership.voter_ids().collect();
        let member = |(id, node): (&u64, &BasicNode)| {
            let leads = *id == self.here.id;
            let matched = metrics.replication.as_ref().and_then(|all| all.get(id).copied().flatten());
            let heard = metrics.heartbeat.as_ref().and_then(|all| all.get(id).copied().flatten());
            let behind = matched.map(|matched| last.saturating_sub(matched.index));
            Member {
                server: Server { id: *id, address: node.addr.clone() },
                role: if voters.contains(id) { MemberRole::Voter } else { MemberRole::Learner },
                leads,
                behind: if leads { Some(0) } else { behind },
                silent: if leads { Some(Duration::ZERO) } else { heard.map(|at| at.elapsed()) },
            }
        };
        membership.nodes().map(member).collect()
    }

    async fn admit_here(&self, server: Server) -> Done<()> {
        let members = self.members_here();
        let known = members.iter().find(|member| member.server.id == server.id);
        if let Some(other) =
            members.iter().find(|member| member.server.address == server.address && member.server.id != server.id)
        {
            return Ok(Err(conflict(format!(
                "{} has the address of server {}; give each server an address of its own (--advertise)",
                other.server, server.id
            ))));
        }
        let node = BTreeMap::from([(server.id, BasicNode::new(server.address.clone()))]);
        match known {
            Some(member) if member.server != server => {
                tracing::info!(from = %member.server.address, "{server}: its address changed");
                done!(self.change(ChangeMembers::SetNodes(node), true).await);
            }
            Some(_) => {}
            None if members.len() >= MAX_SERVERS => {
                return Ok(Err(conflict(format!(
                    "the region has {} servers, and {MAX_SERVERS} are the most; remove one first: hearth region remove ID",
                    members.len()
                ))));
            }
            None => {
                if let Err(status) = self.fits(&server).await {
                    return Ok(Err(status));
                }
                tracing::info!("{server} learns");
                done!(self.change(ChangeMembers::AddNodes(node), true).await);
            }
        }
        if known.is_some_and(|member| member.role == MemberRole::Voter) {
            return Ok(Ok(()));
        }
        done!(self.caught_up(server.id).await);
        tracing::info!("{server} votes");
        self.change(ChangeMembers::AddVoterIds([server.id].into()), true).await
    }

    /// Whether a server can be reached, is of this region, and knows the cluster's feature level.
    async fn fits(&self, server: &Server) -> Result<(), Status> {
        let described = self.describe(server).await.map_err(|failure| {
            conflict(format!(
                "{server} cannot be reached from the leader: {failure}; check its address (--advertise) and the network between the servers"
            ))
        })?;
        let level = self.shared.machine().state.feature_level();
        if described.feature_level < level {
            return Err(conflict(format!(
                "{server} knows feature levels up to {}, the region is at {level}; update Hearth there first",
                described.feature_level
            )));
        }
        Ok(())
    }

    async fn describe(&self, server: &Server) -> Result<proto::DescribeResponse, CallFailure> {
        let message = Request::Describe(proto::Describe {});
        let answer = self.caller.call(server, Lane::Urgent, message, DESCRIBE_LIMIT).await?;
        answer_of!(server, answer, Answer::Describe)
    }

    /// Waits until a learner has nearly everything.
    async fn caught_up(&self, id: u64) -> Done<()> {
        let deadline = Instant::now() + ADMIT_LIMIT;
        let mut seen = false;
        loop {
            if !self.leads() {
                return Err(NotHere);
            }
            // What is told of the members comes a moment after a change.
            match self.members_here().iter().find(|member| member.server.id == id) {
                None if seen => return Ok(Err(conflict(format!("server {id} was removed meanwhile")))),
                None => {}
                Some(member) if member.behind.is_some_and(|behind| behind <= CAUGHT_UP) => return Ok(Ok(())),
                Some(_) => seen = true,
            }
            if Instant::now() >= deadline {
                let seconds = ADMIT_LIMIT.as_secs();
                let why = format!("server {id} has not caught up within {seconds} s; it goes on, ask again");
                return Ok(Err(Status::new(Reason::Timeout, why)));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn remove_here(&self, id: u64) -> Done<()> {
        let members = self.members_here();
        let Some(member) = members.iter().find(|member| member.server.id == id) else {
            return Ok(Err(Status::new(Reason::NotFound, format!("server {id} does not belong to the region"))));
        };
        if member.role == MemberRole::Learner {
            return self.change(ChangeMembers::RemoveNodes([id].into()), false).await;
        }
        let left: Vec<&Member> =
            members.iter().filter(|member| member.role == MemberRole::Voter && member.server.id != id).collect();
        if left.is_empty() {
            return Ok(Err(conflict(format!(
                "server {id} is the last one that votes; the region would be gone. Stop it instead, or add another first"
            ))));
        }
        let answers = join_all(left.iter().map(|member| async {
            let well = member.leads || self.describe(&member.server).await.is_ok();
            (member.server.clone(), well)
        }));
        let answers = answers.await;
        let silent: Vec<String> =
            answers.iter().filter(|(_, well)| !well).map(|(server, _)| server.to_string()).collect();
        let answering = answers.len() - silent.len();
        if answering <= answers.len() / 2 {
            return Ok(Err(conflict(format!(
                "without server {id}, {answering} of the {} servers left would answer, which is no majority: the region could not be \
                 written to. Bring these back or remove them first: {}",
                answers.len(),
                silent.join(", ")
            ))));
        }
        if id == self.here.id {
            // Whoever is to go hands over first; the next leader removes it.
            done!(self.transfer_here(None).await);
            return Err(NotHere);
        }
        tracing::info!("{} is removed", member.server);
        self.change(ChangeMembers::RemoveVoters([id].into()), false).await
    }

    async fn transfer_here(&self, to: Option<u64>) -> Done<Server> {
        let deadline = Instant::now() + CHANGE_LIMIT;
        let mut changes = self.leaders.listen();
        loop {
            let members = self.members_here();
            let voters = members.iter().filter(|member| member.role == MemberRole::Voter);
            let target = match to {
                Some(id) if members.iter().all(|member| member.server.id != id) => {
                    return Ok(Err(Status::new(
                        Reason::NotFound,
                        format!("server {id} does not belong to the region"),
                    )));
                }
                Some(id) => voters.clone().find(|member| member.server.id == id),
                None => voters
                    .clone()
                    .filter(|member| !member.leads)
                    // The one that answered last, of those that have most.
                    .min_by_key(|member| (member.behind.unwrap_or(u64::MAX), member.silent.unwrap_or(Duration::MAX))),
            };
            let Some(target) = target.map(|member| member.server.clone()) else {
                return Ok(Err(conflict(match to {
                    Some(id) => format!("server {id} does not vote yet, and cannot lead"),
                    None => "there is no other server that votes".to_owned(),
                })));
            };
            if target.id == self.here.id {
                return Ok(Ok(target));
            }
            if self.raft.trigger().transfer_leader(target.id).await.is_err() {
                return Err(NotHere);
            }
            let round = Instant::now() + TRANSFER_ROUND;
            while Instant::now() < round {
                match self.leadership().leader {
                    Some(leader) if leader.id == target.id => return Ok(Ok(leader)),
                    // Another one was elected: whoever asked asks there.
                    Some(leader) if leader.id != self.here.id => return Err(NotHere),
                    _ => {}
                }
                let _ = tokio::time::timeout_at(round, changes.raised()).await;
            }
            if Instant::now() >= deadline {
                return Ok(Err(Status::new(
                    Reason::Timeout,
                    format!("{target} did not take over within {} s", CHANGE_LIMIT.as_secs()),
                )));
            }
        }
    }

    /// Changes the membership, in turn, after what another change left unfinished.
    async fn change(&self, change: ChangeMembers<u64, BasicNode>, retain: bool) -> Done<()> {
        let _turn = self.changing.lock().await;
        done!(self.finish_change().await);
        let metrics = self.raft.metrics().borrow_watched().clone();
        if metrics.membership_config.membership().get_node(&self.here.id).is_none() {
            // It has seen itself out, and lays the lead down in a moment.
            return Err(NotHere);
        }
        self.change_in_turn(change, retain).await
    }

    /// Finishes, as the leader, changes of voters that were left half done: as long as one is, majorities of the old and of the new voters
    /// are needed.
    pub(crate) async fn finish_changes(self: Arc<Self>) {
        let mut changes = self.leaders.listen();
        loop {
            if self.leads() {
                let _turn = self.changing.lock().await;
                if let Ok(Err(status)) = self.finish_change().await {
                    tracing::warn!(%status, "a change of the region's servers is still unfinished");
                }
            }
            let _ = tokio::time::timeout(FINISH_INTERVAL, changes.raised()).await;
        }
    }

    /// Goes on with a change of voters between whose two entries the leader was lost, or the time was over (the Raft paper, section 6).
    async fn finish_change(&self) -> Done<()> {
        let metrics = self.raft.metrics().borrow_watched().clone();
        if metrics.membership_config.membership().get_joint_config().len() < 2 {
            return Ok(Ok(()));
        }
        tracing::info!("finishing a change of the region's servers");
        self.change_in_turn(ChangeMembers::AddVoterIds(BTreeSet::new()), false).await
    }

    async fn change_in_turn(&self, change: ChangeMembers<u64, BasicNode>, retain: bool) -> Done<()> {
        let deadline = Instant::now() + CHANGE_LIMIT;
        loop {
            let changing = self.raft.change_membership(change.clone(), retain);
            let Ok(changed) = tokio::time::timeout_at(deadline, changing).await else {
                let why = "no majority of servers had the change on disk in time; ask again";
                return Ok(Err(Status::new(Reason::Timeout, why)));
            };
            match changed {
                Ok(changed) => {
                    // What is told of the members follows.
                    let told = |metrics: &openraft::RaftMetrics<TypeConfig>| {
                        *metrics.membership_config.log_id() >= Some(changed.log_id)
                    };
                    let _ = self.raft.wait(Some(LOOK * 50)).metrics(told, "the change is told").await;
                    return Ok(Ok(()));
                }
                Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => return Err(NotHere),
                Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(
                    ChangeMembershipError::InProgress(_),
                ))) if Instant::now() < deadline => {
                    tokio::time::sleep(LOOK).await;
                }
                Err(RaftError::APIError(error)) => return Ok(Err(conflict(error.to_string()))),
                Err(error) => return Ok(Err(self.unavailable(&error))),
            }
        }
    }

    /// Raises the cluster's feature level once every member knows the newest one that this server does.
    pub(crate) async fn keep_feature_level(self: Arc<Self>, clock: Arc<dyn Clock>) {
        let newest = self.shared.known;
        let mut changes = self.leaders.listen();
        while self.shared.machine().state.feature_level() < newest {
            if self.leadership().here && self.all_know(newest).await {
                match self.raise_feature_level(&*clock).await {
                    Ok(()) => return,
                    Err(status) => tracing::warn!(%status, "the feature level was not raised"),
                }
            }
            let _ = tokio::time::timeout(FEATURE_LEVEL_INTERVAL, changes.raised()).await;
        }
    }

    /// Raises the cluster's feature level to the newest one that this server knows, which every member has to know.
    pub(crate) async fn raise_feature_level(&self, clock: &dyn Clock) -> Result<(), Status> {
        let level = self.shared.known;
        if self.shared.machine().state.feature_level() >= level {
            return Ok(());
        }
        self.propose(Proposal::new(Command::RaiseFeatureLevel { level, now: clock.now() })).await.map(drop)
    }

    async fn all_know(&self, level: u32) -> bool {
        let members = self.members_here();
        let known = members.iter().map(|member| async {
            member.leads || self.describe(&member.server).await.is_ok_and(|server| server.feature_level >= level)
        });
        // A server that does not answer may be of an older release.
        join_all(known).await.into_iter().all(|known| known)
    }
}

fn member_out(member: &Member) -> proto::PeerMember {
    proto::PeerMember {
        server: Some(server_out(&member.server)),
        voter: member.role == MemberRole::Voter,
        leads: member.leads,
        behind: member.behind,
        silent_millis: member.silent.map(|silent| silent.as_millis() as u64),
    }
}

/// The member that a message describes.
pub(crate) fn member_in(member: proto::PeerMember) -> Member {
    Member {
        server: server_in(member.server.unwrap_or_default()),
        role: if member.voter { MemberRole::Voter } else { MemberRole::Learner },
        leads: member.leads,
        behind: member.behind,
        silent: member.silent_millis.map(Duration::from_millis),
    }
}

#[cfg(test)]
mod tests {
    use hearth_types::Timestamp;
    use openraft::{EntryPayload, Membership};

    use super::*;
    use crate::{RaftConfig, RaftStore, disk::MemoryDisk};

    struct Stopped;

    impl Clock for Stopped {
        fn now(&self) -> Timestamp {
            Timestamp(1_700_000_000_000)
        }
    }

    #[tokio::test]
    async fn a_change_of_voters_that_was_left_half_done_is_finished() {
        let config = RaftConfig::new("/store", 1, "home");
        let registry = prometheus::Registry::new();
        let store = RaftStore::open_on(Arc::new(MemoryDisk::default()), config, &registry, Arc::new(Stopped)).await;
        let store = store.expect("it opens");
        let raft = &store.core.raft;
        let voters = BTreeSet::from([1]);
        let nodes = BTreeMap::from([(1, BasicNode::new(store.core.here.address.clone()))]);
        let joint = Membership::new(vec![voters.clone(), voters], nodes).expect("a membership");
        raft.append_membership(joint, EntryPayload::Blank, []).await.expect("it is appended");
        let finished = |metrics: &openraft::RaftMetrics<TypeConfig>| {
            metrics.membership_config.membership().get_joint_config().len() == 1
        };
        raft.wait(Some(Duration::from_secs(20))).metrics(finished, "one set of voters").await.expect("it is finished");
        store.shutdown().await.expect("it ends");
    }
}
