//! Claims: who waits for one, and whose data goes.

use hearth_types::{GroupKind, Object};
use hearth_volume::ClaimId;
use serde_json::json;

use super::Service;
use crate::{
    files::chain,
    pod::{Input, WorkerHandle, claims_of, uses_claim},
    shared::blocking,
};

impl Service {
    /// Who waits for a claim looks again at once.
    pub(super) async fn claims_released(&mut self) {
        for worker in self.workers.values().filter(|worker| !worker.vanished) {
            if claims_of(&worker.entry.pod()).next().is_some() {
                let _ = worker.inbox.send(Input::ConfigChanged).await;
            }
        }
        self.delete_claims().await;
    }

    /// Deletes the data of claims that are marked and that no pod uses, and says so.
    pub(super) async fn delete_claims(&mut self) {
        let marked: Vec<Object> = self
            .desired
            .objects()
            .values()
            .filter(|object| *object.kind() == GroupKind::PERSISTENT_VOLUME_CLAIM && object.is_deleting())
            .cloned()
            .collect();
        self.deleted.retain(|uid| marked.iter().any(|claim| claim.uid() == uid));
        for claim in marked {
            if self.deleted.contains(claim.uid()) {
                continue;
            }
            let in_use = self.workers.values().any(|worker| {
                worker.object.namespace() == claim.namespace() && uses_claim(&worker.entry.pod(), claim.name())
                    // A pod that is torn down has let go of it, even where its object is still there.
                    && !is_gone(worker)
            });
            if in_use || self.shared.claims.is_held(claim.namespace(), claim.name()) {
                continue;
            }
            let id = ClaimId {
                namespace: claim.namespace().to_owned(),
                name: claim.name().to_owned(),
                uid: claim.uid().as_str().to_owned(),
            };
            let volumes = self.shared.volumes.clone();
            match blocking(move || volumes.delete_claim(&id)).await {
                Ok(()) => {
                    self.shared.trash.notify_one();
                    self.deleted.insert(claim.uid().clone());
                    let status = claim.value().get("status").cloned().unwrap_or_else(|| json!({"phase": "Lost"}));
                    self.shared.reporter.status(claim.key(), claim.uid(), &status, true);
                }
                Err(error) => {
                    self.shared.metrics.failures.with_label_values(&["volumes"]).inc();
                    tracing::error!(claim = %claim.key(), error = chain(&error), "a claim's data cannot be deleted");
                }
            }
        }
    }
}

/// Whether a worker's pod is torn down: its last status was reported as finished.
fn is_gone(worker: &WorkerHandle) -> bool {
    let snapshot = worker.entry.snapshot.borrow();
    let ended = matches!(snapshot.phase, hearth_pod::Phase::Succeeded | hearth_pod::Phase::Failed);
    ended && snapshot.sandbox.is_none()
}
