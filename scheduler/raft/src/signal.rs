//! A signal that something changed, for any number of listeners, woken in the order in which they began to wait.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::Notify;

#[derive(Default)]
struct Inner {
    /// How often it was raised.
    count: AtomicU64,
    notify: Notify,
}

/// The signal; clones are the same one.
#[derive(Clone, Default)]
pub(crate) struct Signal(Arc<Inner>);

impl Signal {
    /// Wakes all listeners.
    pub(crate) fn raise(&self) {
        self.0.count.fetch_add(1, Ordering::SeqCst);
        self.0.notify.notify_waiters();
    }

    /// A listener that has seen everything so far.
    pub(crate) fn listen(&self) -> Listener {
        Listener { signal: self.clone(), seen: self.0.count.load(Ordering::SeqCst) }
    }
}

/// Waits for a signal.
pub(crate) struct Listener {
    signal: Signal,
    seen: u64,
}

impl Listener {
    /// What was raised until now counts as seen.
    pub(crate) fn mark_seen(&mut self) {
        self.seen = self.signal.0.count.load(Ordering::SeqCst);
    }

    /// Waits until it is raised; returns at once where it was raised since it was last seen.
    pub(crate) async fn raised(&mut self) {
        let inner = Arc::clone(&self.signal.0);
        let mut notified = pin!(inner.notify.notified());
        // Listening begins before looking, so that nothing is missed.
        notified.as_mut().enable();
        if inner.count.load(Ordering::SeqCst) == self.seen {
            notified.await;
        }
        self.mark_seen();
    }
}
