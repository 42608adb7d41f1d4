//! Writes whose leader is elsewhere. Those that wait at the same time travel together: a call between servers costs as much as a small write.

use std::{
    collections::VecDeque,
    sync::{Arc, Weak},
};

use hearth_proto::v1::{self as proto, peer_request::Request, peer_response::Response as Answer};
use hearth_types::group::Lane;
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    time::{Instant, timeout_at},
};

use crate::{
    core::{Attempt, Core},
    network::{CallFailure, Malformed, answer_of},
    store::REQUEST_TIMEOUT,
    types::Proposal,
};

/// Writes that wait at most; behind them, others wait for their turn.
const WAITING: usize = 4_096;
/// Writes in one call.
const TOGETHER: usize = 512;
/// Bytes of writes in one call, but for one that is larger by itself: less than what a connection may have in flight.
const TOGETHER_BYTES: usize = 512 << 10;
/// Calls under way. More would not bring a write to the leader earlier than the next call does, and make each smaller.
const UNDER_WAY: usize = 4;

type Forwarded = Result<proto::Forwarded, Attempt>;

struct Waiting {
    command: bytes::Bytes,
    answer: oneshot::Sender<Forwarded>,
}

/// The queue of writes.
pub(crate) struct Forwards(mpsc::Sender<Waiting>);

/// The other end of the queue.
pub(crate) struct Calls(mpsc::Receiver<Waiting>);

impl Forwards {
    pub(crate) fn new() -> (Self, Calls) {
        let (sender, receiver) = mpsc::channel(WAITING);
        (Self(sender), Calls(receiver))
    }

    /// Has the leader write, and returns what it says of it.
    pub(crate) async fn write(&self, proposal: &Proposal, deadline: Instant) -> Forwarded {
        let closed = || Attempt::NotDone("the store is shutting down".into());
        let (answer, answered) = oneshot::channel();
        let waiting = Waiting { command: proposal.bytes(), answer };
        match timeout_at(deadline, self.0.send(waiting)).await {
            Ok(sent) => sent.map_err(|_| closed())?,
            Err(_) => return Err(Attempt::NotDone("too many writes wait for the leader".into())),
        }
        match timeout_at(deadline, answered).await {
            Ok(answer) => answer.map_err(|_| Attempt::Unknown("the store is shutting down".into()))?,
            Err(_) => Err(Attempt::Unknown("the leader did not answer in time".into())),
        }
    }
}

impl Calls {
    /// Makes calls, for as long as there is a store.
    pub(crate) async fn run(mut self, core: Weak<Core>) {
        let turns = Arc::new(Semaphore::new(UNDER_WAY));
        let mut waiting = VecDeque::new();
        loop {
            if waiting.is_empty() {
                let Some(first) = self.0.recv().await else { return };
                waiting.push_back(first);
            }
            let Ok(turn) = Arc::clone(&turns).acquire_owned().await else { return };
            while waiting.len() < TOGETHER
                && let Ok(next) = self.0.try_recv()
            {
                waiting.push_back(next);
            }
            let Some(core) = core.upgrade() else { return };
            let together = take_together(&mut waiting);
            tokio::spawn(async move {
                core.forward(together).await;
                drop(turn);
            });
        }
    }
}

/// Takes the first ones, as many as one call has room for.
fn take_together(waiting: &mut VecDeque<Waiting>) -> Vec<Waiting> {
    let mut bytes = 0;
    let fits = |one: &&Waiting| {
        bytes += one.command.len();
        bytes <= TOGETHER_BYTES
    };
    let count = waiting.iter().take_while(fits).count().max(1);
    waiting.drain(..count.min(waiting.len())).collect()
}

impl Core {
    /// Hands writes on in one call, and answers those who wait.
    async fn forward(&self, waiting: Vec<Waiting>) {
        let commands = waiting.iter().map(|one| one.command.clone()).collect();
        let done = self.forward_once(commands).await;
        let mut done = done.map(Vec::into_iter);
        for one in waiting {
            let answer = match &mut done {
                Ok(done) => done.next().ok_or_else(|| Attempt::Unknown("the leader left it out".into())),
                Err(failed) => Err(failed.clone()),
            };
            // Nobody waits any more where this fails.
            let _ = one.answer.send(answer);
        }
    }

    async fn forward_once(&self, commands: Vec<bytes::Bytes>) -> Result<Vec<proto::Forwarded>, Attempt> {
        let count = commands.len();
        let leader = self.leader_elsewhere()?;
        let message = Request::Forward(proto::Forward { commands });
        let answer = self.ask(&leader, Lane::Entries, message, REQUEST_TIMEOUT).await?;
        let answer = answer_of!(leader, answer, Answer::Forward).map_err(Attempt::from)?;
        if answer.done.len() != count {
            let why = format!("{} answers to {count} writes", answer.done.len());
            return Err(CallFailure::Senseless(leader, Malformed(why)).into());
        }
        Ok(answer.done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_has_what_fits_and_always_something() {
        let sizes = |waiting: &[Waiting]| waiting.iter().map(|one| one.command.len()).collect::<Vec<_>>();
        let cases: [(&[usize], &[usize]); 4] = [
            (&[10, 20, 30], &[10, 20, 30]),
            (&[TOGETHER_BYTES + 1, 5], &[TOGETHER_BYTES + 1]),
            (&[5, TOGETHER_BYTES - 5, 1], &[5, TOGETHER_BYTES - 5]),
            (&[5, TOGETHER_BYTES, 1], &[5]),
        ];
        for (queued, expected) in cases {
            let one = |size: &usize| Waiting { command: vec![0; *size].into(), answer: oneshot::channel().0 };
            let mut waiting: VecDeque<Waiting> = queued.iter().map(one).collect();
            assert_eq!(sizes(&take_together(&mut waiting)), expected);
            assert_eq!(sizes(waiting.make_contiguous()), queued[expected.len()..]);
        }
    }
}
