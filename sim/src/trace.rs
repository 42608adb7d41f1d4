//! What happened in a simulation, in order: to be read by a person, and to tell two runs apart.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::time::Instant;

struct Inner {
    start: Instant,
    hash: u64,
    lines: Vec<String>,
}

/// The trace; clones are the same one.
#[derive(Clone)]
pub struct Trace(Arc<Mutex<Inner>>);

impl Trace {
    /// An empty trace that begins now.
    pub fn begin() -> Self {
        Self(Arc::new(Mutex::new(Inner { start: Instant::now(), hash: 0xcbf2_9ce4_8422_2325, lines: Vec::new() })))
    }

    /// Something that a person wants to know.
    pub fn say(&self, what: fmt::Arguments<'_>) {
        let mut inner = self.inner();
        let line = format!("{:>9.3} {what}", inner.start.elapsed().as_secs_f64());
        inner.add(line.as_bytes());
        inner.lines.push(line);
    }

    /// Something that only tells two runs apart.
    pub fn count(&self, what: &[u64]) {
        let mut inner = self.inner();
        let now = inner.start.elapsed().as_nanos() as u64;
        inner.add(&now.to_le_bytes());
        for one in what {
            inner.add(&one.to_le_bytes());
        }
    }

    /// Nanoseconds of virtual time since the beginning.
    pub fn now(&self) -> u64 {
        self.inner().start.elapsed().as_nanos() as u64
    }

    /// A number that two runs share only if the same happened in both, at the same times.
    pub fn hash(&self) -> u64 {
        self.inner().hash
    }

    /// The lines.
    pub fn lines(&self) -> Vec<String> {
        self.inner().lines.clone()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// FNV-1a.
    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.hash = (self.hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}
