//! The messages that wait for one device: bounded, and emptied at once when the session ends, since a connection whose other side
//! does not read would keep them for as long as it lives.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use futures_core::Stream;
use futures_util::task::AtomicWaker;
use hearth_proto::v1::RegionMessage;
use tonic::Status;

/// Messages to one device that wait at most. One that reads so slowly is dropped, and gets everything anew when it is back.
const CAPACITY: usize = 256;

#[derive(Default)]
struct Queue {
    messages: VecDeque<Result<RegionMessage, Status>>,
    closed: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    waker: AtomicWaker,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where messages are put.
pub(super) struct Outbox(Arc<Shared>);

/// Where the connection takes them. Dropped with the connection.
pub struct Outgoing(Arc<Shared>);

/// Both ends of a new queue.
pub(super) fn new() -> (Outbox, Outgoing) {
    let shared = Arc::new(Shared::default());
    (Outbox(Arc::clone(&shared)), Outgoing(shared))
}

impl Outbox {
    /// Puts a message in; `false` where there is no room, or nobody takes any more.
    pub(super) fn send(&self, message: RegionMessage) -> bool {
        let mut queue = self.0.queue();
        if queue.closed || queue.messages.len() >= CAPACITY {
            return false;
        }
        queue.messages.push_back(Ok(message));
        drop(queue);
        self.0.waker.wake();
        true
    }

    /// Ends the stream after what waits and a last word.
    pub(super) fn close(&self, last: Option<Result<RegionMessage, Status>>) {
        let mut queue = self.0.queue();
        if !queue.closed {
            queue.messages.extend(last);
            queue.closed = true;
        }
        drop(queue);
        self.0.waker.wake();
    }

    /// Ends the stream now; what waits is thrown away.
    pub(super) fn abort(&self, status: Status) {
        let mut queue = self.0.queue();
        if !queue.closed {
            queue.messages.clear();
            queue.messages.push_back(Err(status));
            queue.closed = true;
        }
        drop(queue);
        self.0.waker.wake();
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.close(None);
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        let mut queue = self.0.queue();
        queue.messages.clear();
        queue.closed = true;
    }
}

impl Stream for Outgoing {
    type Item = Result<RegionMessage, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        // Registered before looking, so that no message comes in between unseen.
        self.0.waker.register(context.waker());
        let mut queue = self.0.queue();
        match queue.messages.pop_front() {
            Some(message) => Poll::Ready(Some(message)),
            None if queue.closed => Poll::Ready(None),
            None => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;

    use super::*;

    #[tokio::test]
    async fn messages_come_in_order_and_a_full_queue_refuses() {
        let (outbox, mut outgoing) = new();
        assert!((0..CAPACITY).all(|_| outbox.send(RegionMessage::default())));
        assert!(!outbox.send(RegionMessage::default()));
        assert!(outgoing.next().await.expect("the first").is_ok());
        assert!(outbox.send(RegionMessage::default()));
        outbox.abort(Status::resource_exhausted("too slow"));
        assert!(!outbox.send(RegionMessage::default()));
        assert!(outgoing.next().await.expect("the reason").is_err());
        assert!(outgoing.next().await.is_none());
    }

    #[tokio::test]
    async fn what_waits_is_sent_before_the_last_word() {
        let (outbox, mut outgoing) = new();
        assert!(outbox.send(RegionMessage::default()));
        outbox.close(Some(Ok(RegionMessage::default())));
        drop(outbox);
        assert_eq!(outgoing.by_ref().count().await, 2);
    }

    #[tokio::test]
    async fn nobody_sends_to_a_connection_that_is_gone() {
        let (outbox, outgoing) = new();
        drop(outgoing);
        assert!(!outbox.send(RegionMessage::default()));
    }
}
