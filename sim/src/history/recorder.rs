//! Writes a history down while it happens.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Operation, Outcome};

/// An operation that was begun.
#[derive(Debug)]
#[must_use = "an operation that is never finished counts as one of unknown outcome"]
pub struct Token(usize);

struct Inner<C, A> {
    operations: Vec<Operation<C, A>>,
    last: u64,
}

/// Records operations of any number of clients. Moments are unique, so that the order in which they were recorded is the order of their times.
pub struct Recorder<C, A> {
    inner: Mutex<Inner<C, A>>,
    clock: Box<dyn Fn() -> u64 + Send + Sync>,
}

impl<C, A> Recorder<C, A> {
    /// An empty history; `clock` tells the time in nanoseconds, real or virtual, and never goes back.
    pub fn new(clock: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self { inner: Mutex::new(Inner { operations: Vec::new(), last: 0 }), clock: Box::new(clock) }
    }

    /// A client asks for something, now.
    pub fn invoke(&self, client: u64, call: C) -> Token {
        let mut inner = self.inner();
        let invoked = self.moment(&mut inner);
        inner.operations.push(Operation { client, invoked, returned: u64::MAX, call, outcome: Outcome::Unknown });
        Token(inner.operations.len() - 1)
    }

    /// The client is told, now.
    pub fn finish(&self, token: Token, outcome: Outcome<A>) {
        let mut inner = self.inner();
        let returned = self.moment(&mut inner);
        let operation = &mut inner.operations[token.0];
        operation.returned = returned;
        operation.outcome = outcome;
    }

    /// What was recorded so far, in the order of invocation. What is not finished is of unknown outcome.
    pub fn history(&self) -> Vec<Operation<C, A>>
    where
        C: Clone,
        A: Clone,
    {
        self.inner().operations.clone()
    }

    fn moment(&self, inner: &mut Inner<C, A>) -> u64 {
        inner.last = (self.clock)().max(inner.last + 1);
        inner.last
    }

    fn inner(&self) -> MutexGuard<'_, Inner<C, A>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
