//! The keyed work queue: each key is there once, worked on by one at a time, and comes back with backoff where it failed.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    hash::Hash,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

/// The pause after a key's first failure; doubles with every failure in a row.
const FIRST_BACKOFF: Duration = Duration::from_millis(5);
/// The longest pause: a person who mended something waits no longer.
const MAX_BACKOFF: Duration = Duration::from_mins(1);

/// What became of the work on a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done { again: Option<Duration> },
    Failed,
}

struct State<K> {
    ready: VecDeque<K>,
    queued: HashSet<K>,
    running: HashSet<K>,
    /// Asked for while being worked on.
    dirty: HashSet<K>,
    delayed: BTreeMap<(Instant, u64), K>,
    due: HashMap<K, (Instant, u64)>,
    failures: HashMap<K, u32>,
    count: u64,
}

/// The queue. Bounded by the number of keys there can be, since each is there once.
pub(crate) struct Queue<K> {
    state: Mutex<State<K>>,
    wake: Notify,
}

impl<K: Clone + Eq + Hash> Queue<K> {
    pub(crate) fn new() -> Self {
        Self { state: Mutex::new(State::new()), wake: Notify::new() }
    }

    /// Forgets everything. Nobody may be working on a key.
    pub(crate) fn clear(&self) {
        *self.state() = State::new();
    }

    fn state(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keys that are ready to be worked on.
    pub(crate) fn depth(&self) -> usize {
        self.state().ready.len()
    }

    /// Asks for work on a key, now. Being there already is enough.
    pub(crate) fn add(&self, key: K) {
        self.state().add(key);
        self.wake.notify_one();
    }

    /// Asks for work on a key after a time, unless it is asked for earlier already.
    pub(crate) fn add_after(&self, key: K, after: Duration) {
        self.state().delay(key, Instant::now() + after);
        self.wake.notify_one();
    }

    /// The next key. Whoever gets it must say [`Queue::done`].
    pub(crate) async fn next(&self) -> K {
        loop {
            let woken = self.wake.notified();
            let wait = {
                let mut state = self.state();
                state.release(Instant::now());
                if let Some(key) = state.ready.pop_front() {
                    state.queued.remove(&key);
                    state.running.insert(key.clone());
                    if !state.ready.is_empty() {
                        // One wake-up may stand for several keys: pass it on.
                        self.wake.notify_one();
                    }
                    return key;
                }
                state.delayed.keys().next().map(|(at, _)| *at)
            };
            match wait {
                Some(at) => {
                    tokio::select! {
                        () = woken => {}
                        () = tokio::time::sleep_until(at) => {}
                    }
                }
                None => woken.await,
            }
        }
    }

    /// Says what became of the work on a key.
    pub(crate) fn done(&self, key: K, outcome: Outcome) {
        let mut state = self.state();
        state.running.remove(&key);
        let dirty = state.dirty.remove(&key);
        match outcome {
            Outcome::Done { again } => {
                state.failures.remove(&key);
                if let Some(again) = again {
                    state.delay(key.clone(), Instant::now() + again);
                }
                if dirty {
                    state.add(key);
                }
            }
            Outcome::Failed => {
                let failures = state.failures.entry(key.clone()).or_default();
                let pause = FIRST_BACKOFF.saturating_mul(1 << (*failures).min(20)).min(MAX_BACKOFF);
                *failures = failures.saturating_add(1);
                if dirty {
                    // Something changed meanwhile: what failed may work now.
                    state.add(key);
                } else {
                    state.delay(key, Instant::now() + pause);
                }
            }
        }
        drop(state);
        self.wake.notify_one();
    }
}

impl<K: Clone + Eq + Hash> State<K> {
    fn new() -> Self {
        Self {
            ready: VecDeque::new(),
            queued: HashSet::new(),
            running: HashSet::new(),
            dirty: HashSet::new(),
            delayed: BTreeMap::new(),
            due: HashMap::new(),
            failures: HashMap::new(),
            count: 0,
        }
    }

    fn add(&mut self, key: K) {
        if self.running.contains(&key) {
            self.dirty.insert(key);
            return;
        }
        // Something changed: a backoff is over, what failed may work now. The count of failures stays.
        if let Some(at) = self.due.remove(&key) {
            self.delayed.remove(&at);
        }
        if self.queued.insert(key.clone()) {
            self.ready.push_back(key);
        }
    }

    fn delay(&mut self, key: K, at: Instant) {
        if self.queued.contains(&key) {
            return;
        }
        if let Some(old) = self.due.get(&key).copied() {
            if old.0 <= at {
                return;
            }
            self.delayed.remove(&old);
        }
        self.count += 1;
        self.due.insert(key.clone(), (at, self.count));
        self.delayed.insert((at, self.count), key);
    }

    fn release(&mut self, now: Instant) {
        while let Some((&(at, count), _)) = self.delayed.first_key_value() {
            if at > now {
                return;
            }
            if let Some(key) = self.delayed.remove(&(at, count)) {
                self.due.remove(&key);
                self.add(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_is_there_once_and_runs_alone() {
        let queue = Queue::new();
        queue.add("a");
        queue.add("a");
        queue.add("b");
        assert_eq!((queue.next().await, queue.next().await, queue.depth()), ("a", "b", 0));
        queue.add("a");
        assert_eq!(queue.depth(), 0, "it is being worked on");
        queue.done("a", Outcome::Done { again: None });
        assert_eq!(queue.next().await, "a");
    }

    #[tokio::test(start_paused = true)]
    async fn what_changed_while_it_failed_is_looked_at_at_once() {
        let queue = Queue::new();
        queue.add("a");
        for _ in 0..16 {
            let key = queue.next().await;
            queue.done(key, Outcome::Failed);
        }
        let key = queue.next().await;
        queue.add("a");
        let start = Instant::now();
        queue.done(key, Outcome::Failed);
        assert_eq!(queue.next().await, "a");
        assert_eq!(start.elapsed(), Duration::ZERO, "no back-off");
        queue.done("a", Outcome::Failed);
        queue.next().await;
        assert!(start.elapsed() >= Duration::from_secs(60), "the count of failures stays");
    }

    #[tokio::test(start_paused = true)]
    async fn failures_come_back_with_a_growing_pause() {
        let queue = Queue::new();
        queue.add("a");
        let mut pauses = Vec::new();
        for _ in 0..16 {
            let start = Instant::now();
            let key = queue.next().await;
            pauses.push(start.elapsed().as_millis());
            queue.done(key, Outcome::Failed);
        }
        assert!(pauses[1] >= 5 && pauses[2] >= 10 && pauses[15] >= 60_000, "{pauses:?}");
        queue.next().await;
        queue.done("a", Outcome::Done { again: Some(Duration::from_secs(5)) });
        let start = Instant::now();
        assert_eq!(queue.next().await, "a");
        assert_eq!(start.elapsed().as_secs(), 5);
    }
}
