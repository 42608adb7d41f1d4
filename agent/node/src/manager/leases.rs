//! Volumes that move: whose lease is over is held back, who has a new one is told, and what moved away is set aside.

use std::collections::HashSet;

use hearth_types::{GroupKind, Object, ObjectKey, kinds::Pod, lease::Tenure};
use hearth_volume::ClaimId;

use super::Service;
use crate::{
    desired,
    files::chain,
    leases::{Leased, leased, named},
    pod::{Input, uses_any},
    shared::blocking,
};

impl Service {
    /// What a pod that is to be started needs leases of. One that lives and is not held to them, as one of an older release, is ended at once.
    pub(super) async fn take_lease(
        &mut self,
        object: &Object,
        sandbox: Option<hearth_runtime::Pod>,
    ) -> (Leased, Option<hearth_runtime::Pod>) {
        let pod = object.view::<Pod>().ok();
        let leased = pod.map(|pod| leased(self.desired.objects(), object.namespace(), &pod)).unwrap_or_default();
        if leased.is_empty() {
            return (leased, sandbox);
        }
        let Some(sandbox) = sandbox else { return (leased, None) };
        if let Some(lease) = sandbox.lease().filter(|lease| lease.of == named(&leased)) {
            self.shared.leases.learn(&leased, lease.deadline);
            return (leased, Some(sandbox));
        }
        tracing::warn!(pod = %object.key(), "a pod runs that nothing holds to the lease of its volumes: it is ended, and made anew");
        match sandbox.clone().destroy().await {
            Ok(()) => (leased, None),
            Err(error) => {
                tracing::error!(pod = %object.key(), error = chain(&error), "it cannot be ended");
                (leased, Some(sandbox))
            }
        }
    }

    /// Tells workers why they are held, where that changed: outside of the hours of lending, or without a lease.
    pub(super) async fn hold_workers(&mut self) {
        let guests = self.held.clone();
        for worker in self.workers.values_mut().filter(|worker| !worker.vanished) {
            let held = guests.clone().filter(|_| worker.object.namespace() != self.shared.owner);
            let held = held.or_else(|| self.shared.leases.held(&worker.leased));
            if held != worker.held {
                worker.held.clone_from(&held);
                let _ = worker.inbox.send(Input::Held(held)).await;
            }
        }
    }

    /// The region granted leases: the shims are told, and who waited begins.
    pub(super) async fn leases_changed(&mut self) {
        for worker in self.workers.values().filter(|worker| !worker.vanished && !worker.leased.is_empty()) {
            if let Some(deadline) = self.shared.leases.deadline(&worker.leased) {
                let _ = worker.inbox.send(Input::Leased(deadline)).await;
            }
        }
        self.hold_workers().await;
    }

    /// Claims changed: who needs a lease of them now.
    pub(super) async fn claims_changed(&mut self, changed: &HashSet<ObjectKey>) {
        if !changed.iter().any(|key| key.kind == GroupKind::PERSISTENT_VOLUME_CLAIM) {
            return;
        }
        let objects = self.desired.objects();
        for worker in self.workers.values_mut() {
            let (pod, namespace) = (worker.entry.pod(), worker.object.namespace());
            if uses_any(&pod, namespace, changed) {
                worker.leased = leased(objects, namespace, &pod);
            }
        }
        let here: HashSet<_> = objects.values().map(|object| object.uid().clone()).collect();
        self.shared.leases.retain(|uid| here.contains(uid));
        self.hold_workers().await;
    }

    /// A claim is no longer this device's. What moved away is set aside once nothing uses it.
    pub(super) fn claim_vanished(&mut self, claim: &Object) {
        if Tenure::of_claim(&claim.value()).is_some() {
            self.moved.push(claim.clone());
        }
    }

    /// Sets aside what this device has of claims that moved away, and says where it is.
    pub(super) async fn retire_claims(&mut self) {
        for claim in std::mem::take(&mut self.moved) {
            let value = claim.value();
            let Some(tenure) = Tenure::of_claim(&value) else { continue };
            let (namespace, name) = (claim.namespace().to_owned(), claim.name().to_owned());
            if self.desired.objects().get(claim.key()).is_some_and(|now| now.uid() == claim.uid()) {
                // It came back before.
                continue;
            }
            if self.shared.claims.is_held(&namespace, &name) {
                self.moved.push(claim);
                continue;
            }
            let id = ClaimId { namespace, name, uid: claim.uid().as_str().to_owned() };
            let (volumes, of, epoch) = (self.shared.volumes.clone(), id.clone(), tenure.epoch);
            match blocking(move || volumes.retire_claim(&of, epoch.0)).await {
                Ok(Some(path)) => self.tell_aside(&id, &format!("{}", path.display())),
                Ok(None) => {}
                Err(error) => {
                    tracing::error!(claim = %claim.key(), error = chain(&error), "what a claim had that moved away cannot be set aside");
                }
            }
        }
    }

    fn tell_aside(&self, id: &ClaimId, path: &str) {
        let text = format!(
            "the volume {}/{} moved away while this device was silent: what it had here is kept in {path}, until it has been here again or a \
             person removes it",
            id.namespace, id.name
        );
        tracing::warn!("{text}");
        let Some(device) = desired::device(self.desired.objects()) else { return };
        let now = self.shared.now();
        self.shared.reporter.event((device.key(), device.uid()), "Warning", "VolumeSetAside", &text, now);
    }
}
