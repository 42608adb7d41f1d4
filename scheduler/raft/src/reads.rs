//! Reads that are confirmed together: whoever asks while a round is under way is answered by the next one, so that a thousand readers
//! cost as many messages as one.

use std::sync::Weak;

use hearth_types::Status;
use tokio::sync::{mpsc, oneshot};

use crate::{core::Core, types::LogId};

/// Readers that wait at most; behind them, others wait for their turn.
const WAITING: usize = 8_192;

type Answer = oneshot::Sender<Result<LogId, Status>>;

/// The queue of readers.
pub(crate) struct Reads(mpsc::Sender<Answer>);

/// The other end of the queue.
pub(crate) struct Rounds(mpsc::Receiver<Answer>);

impl Reads {
    pub(crate) fn new() -> (Self, Rounds) {
        let (sender, receiver) = mpsc::channel(WAITING);
        (Self(sender), Rounds(receiver))
    }

    /// The last entry that a read has to see which begins now. Those who ask at the same time are answered together.
    pub(crate) async fn index(&self) -> Result<LogId, Status> {
        let closed = || Status::unavailable("the store is shutting down");
        let (answer, index) = oneshot::channel();
        self.0.send(answer).await.map_err(|_| closed())?;
        index.await.map_err(|_| closed())?
    }
}

impl Rounds {
    /// Answers readers, round by round, for as long as there is a store.
    pub(crate) async fn run(mut self, core: Weak<Core>) {
        let mut waiting = Vec::new();
        while self.0.recv_many(&mut waiting, WAITING).await > 0 {
            let Some(core) = core.upgrade() else { return };
            let confirmed = core.confirm_read().await;
            for answer in waiting.drain(..) {
                // Nobody waits any more where this fails.
                let _ = answer.send(confirmed.clone());
            }
        }
    }
}
