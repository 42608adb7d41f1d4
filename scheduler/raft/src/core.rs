//! What a store shares with the tasks that serve it: writes and reads that find the leader wherever it is.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use hearth_proto::v1::{self as proto, peer_request::Request, peer_response::Response as Answer};
use hearth_state::{Command, Response};
use hearth_types::{
    Reason, Status,
    group::{Lane, Leadership, Server},
};
use openraft::{
    Raft,
    errors::{ClientWriteError, LinearizableReadError, RaftError},
    raft::ReadPolicy,
};
use tokio::{
    sync::{Mutex, watch},
    time::{Instant, timeout_at},
};

use crate::{
    disk::Disk,
    forwards::Forwards,
    group::Ask,
    health::Health,
    leadership::LeadershipWatch,
    machine::{Shared, StateMachine},
    network::{CallFailure, Caller, Incoming, Malformed, answer_of, wire},
    reads::Reads,
    sabotage::{self, Bug},
    signal::Listener,
    store::REQUEST_TIMEOUT,
    types::{LogId, Proposal, TypeConfig, log_id},
};

pub(crate) type RaftHandle = Raft<TypeConfig, StateMachine>;

/// How long to wait before a request is tried anew where nothing says that the leader changed: a fraction of an election.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// How long one server's word on a read may take: it needs an answer from a majority, and is asked again.
const READ_INDEX_LIMIT: Duration = Duration::from_secs(3);

/// This server does not lead, and did nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NotHere;

/// The parts of a running store.
pub(crate) struct Core {
    pub(crate) raft: RaftHandle,
    pub(crate) shared: Arc<Shared>,
    pub(crate) health: Health,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) dir: PathBuf,
    /// This server.
    pub(crate) here: Server,
    pub(crate) caller: Caller,
    pub(crate) leaders: LeadershipWatch,
    pub(crate) reads: Reads,
    pub(crate) forwards: Forwards,
    pub(crate) incoming: Mutex<Option<Incoming>>,
    /// The turn of whoever changes the membership.
    pub(crate) changing: Mutex<()>,
    pub(crate) closed: watch::Sender<bool>,
}

/// The attempts at something that the leader has to do.
struct Retries<'a> {
    core: &'a Core,
    deadline: Instant,
    /// Whether some attempt may have got through.
    unknown: bool,
}

impl Retries<'_> {
    /// After an attempt that failed: waits until the leader changed since `changes` was made, or a pause is over. An error once there is to
    /// be no other attempt.
    async fn after(&mut self, failed: Attempt, mut changes: Listener) -> Result<(), GaveUp> {
        let why = match failed {
            Attempt::Refused(status) => return Err(GaveUp::Refused(status)),
            Attempt::NotDone(why) => why,
            Attempt::Unknown(why) => {
                self.unknown = true;
                why
            }
        };
        if *self.core.closed.borrow() {
            return Err(GaveUp::Refused(self.core.unavailable(&why)));
        }
        tracing::debug!(why, "tried again");
        let pause = (Instant::now() + RETRY_PAUSE).min(self.deadline);
        let _ = timeout_at(pause, changes.raised()).await;
        if Instant::now() < self.deadline { Ok(()) } else { Err(GaveUp::TooLate { why, unknown: self.unknown }) }
    }
}

/// Why nothing came of all attempts.
enum GaveUp {
    /// It is refused for good.
    Refused(Status),
    /// The last attempt failed for this reason. `unknown`: one of them may have got through.
    TooLate { why: String, unknown: bool },
}

/// Why an attempt did not get through.
#[derive(Clone, Debug)]
pub(crate) enum Attempt {
    /// Nothing happened: there was nobody to ask, or they said so.
    NotDone(String),
    /// It may have happened.
    Unknown(String),
    /// It is refused for good.
    Refused(Status),
}

impl Core {
    /// Who leads, as far as is known here.
    pub(crate) fn leadership(&self) -> Leadership {
        self.leaders.now()
    }

    /// Whether this server leads, as far as it knows.
    pub(crate) fn leads(&self) -> bool {
        self.raft.is_leader()
    }

    /// Whether this server is the only voter.
    pub(crate) fn alone(&self) -> bool {
        self.raft.voter_ids().eq([self.here.id])
    }

    /// Writes, at the leader wherever it is, and returns the answer once the entry is applied here too: what is read here afterwards
    /// has it.
    pub(crate) async fn propose(&self, mut proposal: Proposal) -> Result<Response, Status> {
        let mut retries = self.retries(REQUEST_TIMEOUT);
        loop {
            let changes = self.leaders.listen();
            let failed = match self.propose_once(&proposal, retries.deadline).await {
                Ok(response) => return Ok(response),
                Err(failed) => failed,
            };
            let seconds = REQUEST_TIMEOUT.as_secs();
            retries.after(failed, changes).await.map_err(|gave_up| match gave_up {
                GaveUp::Refused(status) => status,
                GaveUp::TooLate { why, unknown: true } => Status::new(
                    Reason::Timeout,
                    format!("the write was not done within {seconds} s ({why}); whether it will be is unknown, send it again under the same request id"),
                ),
                GaveUp::TooLate { why, unknown: false } => {
                    Status::unavailable(format!("the write was not done within {seconds} s: {why}; send it again"))
                }
            })?;
            if sabotage::has(Bug::RetriedUnderAnotherId) {
                proposal = proposal.under_another_id(1);
            }
        }
    }

    /// What is asked of the leader is tried again for so long.
    fn retries(&self, limit: Duration) -> Retries<'_> {
        Retries { core: self, deadline: Instant::now() + limit, unknown: false }
    }

    fn check_health(&self) -> Result<(), Attempt> {
        match self.health.failure() {
            Some(why) => Err(Attempt::Refused(Status::unavailable(why.to_string()))),
            None => Ok(()),
        }
    }

    async fn propose_once(&self, proposal: &Proposal, deadline: Instant) -> Result<Response, Attempt> {
        self.check_health()?;
        if self.leads() {
            let limit = deadline.saturating_duration_since(Instant::now());
            return match self.write_here(proposal.clone(), limit).await {
                Ok(Ok((response, _))) => Ok(response),
                // It may be in the log, and another leader may commit it.
                Ok(Err(status)) => Err(Attempt::Unknown(status.message)),
                Err(NotHere) => Err(Attempt::Unknown("this server no longer leads".into())),
            };
        }
        let leader = self.leader_elsewhere()?;
        let done = self.forwards.write(proposal, deadline).await?;
        if let Some(refused) = done.refused {
            return Err(CallFailure::refused(&leader, &refused).into());
        }
        let senseless = |why: String| Attempt::from(CallFailure::Senseless(leader.clone(), Malformed(why)));
        let applied = done.applied.ok_or_else(|| senseless("the entry is missing".into()))?;
        let seen = timeout_at(deadline, self.shared.applied(applied.index)).await;
        let txn = match &*proposal.command {
            Command::Txn(txn) if done.response.is_empty() => txn,
            _ => return serde_json::from_slice(&done.response).map_err(|error| senseless(error.to_string())),
        };
        // What became of it is known here too, once the entry is applied.
        let known = seen.ok().and_then(|()| self.shared.machine().state.outcome(&txn.request_id).cloned());
        known.map(Response::Txn).ok_or_else(|| {
            let why = "the write is done, but this server cannot say what became of it; send it again under the same request id";
            Attempt::Refused(Status::new(Reason::Timeout, why))
        })
    }

    /// Writes as the leader.
    ///
    /// # Errors
    /// [`NotHere`] where this server does not lead: the entry may still be in its log, and be committed by another leader.
    pub(crate) async fn write_here(
        &self,
        proposal: Proposal,
        limit: Duration,
    ) -> Result<Result<(Response, LogId), Status>, NotHere> {
        match tokio::time::timeout(limit, self.raft.client_write(proposal)).await {
            Ok(Ok(written)) => Ok(Ok((written.data, written.log_id))),
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_)))) => Err(NotHere),
            Ok(Err(error)) => Ok(Err(self.unavailable(&error))),
            Err(_) => Ok(Err(Status::new(Reason::Timeout, "no majority of servers had it on disk in time"))),
        }
    }

    /// Waits until what is read here has every write that was acknowledged before the call.
    pub(crate) async fn catch_up(&self) -> Result<(), Status> {
        if let Some(why) = self.health.failure() {
            // A group of one that failed: nobody else can have acknowledged anything, and what this server acknowledged
            // it has applied.
            return if self.alone() { Ok(()) } else { Err(Status::unavailable(why.to_string())) };
        }
        if sabotage::has(Bug::StaleFollowerRead) && !self.leads() {
            return Ok(());
        }
        let too_long = |_| Status::new(Reason::Timeout, "the region did not confirm the read in time; read again");
        let read = async {
            let log_id = self.reads.index().await?;
            if !sabotage::has(Bug::ReadBeforeApplied) {
                self.shared.applied(log_id.index).await;
            }
            Ok(())
        };
        match tokio::time::timeout(REQUEST_TIMEOUT, read).await.map_err(too_long)? {
            Err(_) if self.alone() && self.health.failure().is_some() => Ok(()),
            done => done,
        }
    }

    /// One round of asking for it: at the leader, wherever it is.
    pub(crate) async fn confirm_read(&self) -> Result<LogId, Status> {
        let mut retries = self.retries(REQUEST_TIMEOUT);
        loop {
            let changes = self.leaders.listen();
            let failed = match self.confirm_once().await {
                Ok(log_id) => return Ok(log_id),
                Err(failed) => failed,
            };
            retries.after(failed, changes).await.map_err(|gave_up| match gave_up {
                GaveUp::Refused(status) => status,
                GaveUp::TooLate { why, .. } => {
                    let why = format!("the region did not confirm the read in time: {why}; read again");
                    Status::new(Reason::Timeout, why)
                }
            })?;
        }
    }

    async fn confirm_once(&self) -> Result<LogId, Attempt> {
        self.check_health()?;
        if self.leads() && sabotage::has(Bug::StaleLeaderRead) {
            return Ok(log_id(0, 0));
        }
        if self.leads() {
            let asked = self.raft.get_read_linearizer(ReadPolicy::ReadIndex);
            return match tokio::time::timeout(READ_INDEX_LIMIT, asked).await {
                Ok(Ok(linearizer)) => Ok(*linearizer.read_log_id().log_id()),
                Ok(Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(_)))) => {
                    Err(Attempt::NotDone("this server no longer leads".into()))
                }
                Ok(Err(error)) => Err(Attempt::NotDone(error.to_string())),
                Err(_) => Err(Attempt::NotDone("no majority of servers answered".into())),
            };
        }
        let leader = self.leader_elsewhere()?;
        let message = Request::ReadIndex(proto::ReadIndex {});
        let answer = self.ask(&leader, Lane::Urgent, message, READ_INDEX_LIMIT).await?;
        let answer = answer_of!(leader, answer, Answer::ReadIndex).map_err(Attempt::from)?;
        let log_id = answer.log_id.ok_or_else(|| Attempt::NotDone("the leader named no entry".into()))?;
        Ok(wire::id_in(log_id))
    }

    pub(crate) fn leader_elsewhere(&self) -> Result<Server, Attempt> {
        match self.leadership().leader {
            Some(leader) if leader.id != self.here.id => Ok(leader),
            _ => Err(Attempt::NotDone("no server leads the region now".into())),
        }
    }

    /// Calls a server that leads, and gives up where another one does.
    pub(crate) async fn ask(
        &self,
        leader: &Server,
        lane: Lane,
        message: Request,
        limit: Duration,
    ) -> Result<Answer, Attempt> {
        let mut changes = self.leaders.listen();
        let call = self.caller.call(leader, lane, message, limit);
        let superseded = async {
            while self.leadership().leader.is_none_or(|now| now.id == leader.id) {
                changes.raised().await;
            }
        };
        tokio::select! {
            biased;
            answer = call => answer.map_err(Attempt::from),
            () = superseded => Err(Attempt::Unknown(format!("{leader} no longer leads"))),
        }
    }

    /// Asks the leader for something that operators ask, wherever it is; each attempt is of its own, and can be repeated.
    pub(crate) async fn administer(&self, ask: &Ask, limit: Duration) -> Result<proto::AdministerResponse, Status> {
        let mut retries = self.retries(limit);
        loop {
            let changes = self.leaders.listen();
            let failed = match self.administer_once(ask, retries.deadline).await {
                Ok(response) => return Ok(response),
                Err(failed) => failed,
            };
            retries.after(failed, changes).await.map_err(|gave_up| match gave_up {
                GaveUp::Refused(status) => status,
                GaveUp::TooLate { why, .. } => {
                    Status::new(Reason::Timeout, format!("not done within {} s: {why}; ask again", limit.as_secs()))
                }
            })?;
        }
    }

    async fn administer_once(&self, ask: &Ask, deadline: Instant) -> Result<proto::AdministerResponse, Attempt> {
        if self.leads() {
            return match self.administer_here(ask.clone()).await {
                Ok(done) => done.map_err(Attempt::Refused),
                Err(NotHere) => Err(Attempt::NotDone("this server no longer leads".into())),
            };
        }
        let leader = self.leader_elsewhere()?;
        let limit = deadline.saturating_duration_since(Instant::now());
        let answer = self.ask(&leader, Lane::Entries, Request::Administer(ask.message()), limit).await?;
        answer_of!(leader, answer, Answer::Administer).map_err(Attempt::from)
    }

    pub(crate) fn unavailable(&self, error: &dyn fmt::Display) -> Status {
        match self.health.failure() {
            Some(why) => Status::unavailable(why.to_string()),
            None if *self.closed.borrow() => Status::unavailable("the store is shutting down"),
            None => Status::unavailable(format!("the region's store is not available: {error}; try again")),
        }
    }
}

impl From<CallFailure> for Attempt {
    fn from(failure: CallFailure) -> Self {
        match failure {
            CallFailure::NoLeader(_) => Self::NotDone(failure.to_string()),
            CallFailure::Refused(status) if status.reason == Reason::Timeout => Self::Unknown(status.message),
            CallFailure::Refused(status) if status.reason == Reason::ServiceUnavailable => {
                Self::Unknown(status.message)
            }
            CallFailure::Refused(status) => Self::Refused(status),
            CallFailure::Unanswered(_) | CallFailure::TooLong(..) | CallFailure::Senseless(..) => {
                Self::Unknown(failure.to_string())
            }
        }
    }
}
