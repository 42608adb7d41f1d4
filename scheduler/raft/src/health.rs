//! Whether the store still acknowledges writes.

use std::{io, path::Path, sync::Arc};

use tokio::sync::watch;

/// The failed state, which is entered once and left only by opening the store anew.
///
/// After a failed write or sync nothing is known about what the kernel still holds of the file, and a later sync that
/// succeeds proves nothing. So the store stops acknowledging for good; the next start reads back what there is,
/// rewrites the last segment and goes on from there.
#[derive(Clone, Debug)]
pub(crate) struct Health(Arc<watch::Sender<Option<Arc<str>>>>);

impl Health {
    pub(crate) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(None)))
    }

    /// Why the store failed; `None` while it works.
    pub(crate) fn failure(&self) -> Option<Arc<str>> {
        self.0.borrow().clone()
    }

    /// Enters the failed state; only the first reason counts.
    pub(crate) fn fail(&self, why: String) {
        let first = self.0.send_if_modified(|failure| {
            let first = failure.is_none();
            failure.get_or_insert_with(|| why.as_str().into());
            first
        });
        if first {
            tracing::error!(why, "the store failed and acknowledges no more writes");
        }
    }

    /// Enters the failed state because the disk failed.
    pub(crate) fn fail_io(&self, what: &str, dir: &Path, error: &io::Error) {
        let dir = dir.display();
        self.fail(if error.kind() == io::ErrorKind::StorageFull || error.kind() == io::ErrorKind::QuotaExceeded {
            format!("no space left in {dir}: make room there, then restart the server; reads go on meanwhile")
        } else {
            format!(
                "the disk failed ({what} in {dir}: {error}): check it, then restart the server; reads go on meanwhile"
            )
        });
    }

    /// Waits for the failed state.
    pub(crate) async fn failed(&self) -> Arc<str> {
        let mut receiver = self.0.subscribe();
        match receiver.wait_for(Option::is_some).await.map(|failure| failure.clone()) {
            Ok(Some(why)) => why,
            _ => std::future::pending().await,
        }
    }
}
