//! The agent starts: what the agent before left is taken over or removed.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use hearth_runtime::Adopted;
use hearth_types::{GroupKind, Object, kinds::Pod};

use super::Service;
use crate::{
    files::chain,
    pod::{StoredPod, claims_of, load_all, remove_unknown},
    shared::blocking,
};

impl Service {
    /// Brings up everything on the disk; what lives is taken over.
    pub(super) async fn take_over(&mut self, adopted: Adopted) {
        let dir = self.shared.paths.pods();
        self.stored = blocking(move || load_all(&dir)).await.into_iter().collect();
        self.dead = adopted.dead.into_iter().map(|pod| (pod.uid.clone(), pod)).collect();
        let mut alive: HashMap<String, hearth_runtime::Pod> =
            adopted.pods.into_iter().map(|pod| (pod.uid().to_owned(), pod)).collect();
        let mut silent = HashSet::new();
        for failed in adopted.failed {
            tracing::error!(
                uid = failed.uid,
                error = chain(&failed.error),
                "a pod of the agent before cannot be taken over: it is left as it is"
            );
            // What ran is taken to run until its shim answers.
            alive.extend(failed.pod.map(|pod| (failed.uid.clone(), pod)));
            silent.insert(failed.uid);
        }
        for (uid, pod) in &alive {
            if let Err(error) = self.shared.ids.claim(uid, pod.id_map()) {
                tracing::error!(error = chain(&error), "the user ids of a living pod cannot be written down");
            }
        }
        self.publish();
        let device = self.device();
        self.hold_guests(device.as_ref()).await;
        let mut pods: Vec<Object> =
            self.desired.objects().values().filter(|o| *o.kind() == GroupKind::POD).cloned().collect();
        // Last, since it takes until they are known not to answer.
        pods.sort_by_key(|pod| silent.contains(pod.uid().as_str()));
        tracing::info!(
            pods = pods.len(),
            alive = alive.len(),
            dead = self.dead.len(),
            "bringing up the pods on this device's disk"
        );
        if self.desired.is_known() {
            let stored = self.stored.keys().cloned();
            let keep = pods.iter().map(|pod| pod.uid().to_string()).chain(alive.keys().cloned()).chain(stored);
            let keep = keep.chain(silent.iter().cloned()).collect();
            if let Err(error) = self.shared.network.retain(&keep).await {
                tracing::error!(error = chain(&error), "networks of pods that are gone cannot be removed");
            }
        }
        // Whoever lives has its claims, before anybody else asks for them.
        for uid in alive.keys() {
            let stored = || self.stored.get(uid).and_then(StoredPod::object);
            let desired = pods.iter().find(|pod| pod.uid().as_str() == uid).cloned();
            if let Some(object) = desired.or_else(stored) {
                self.hold_claims(&object);
            }
        }
        for object in pods {
            let sandbox = alive.remove(object.uid().as_str());
            self.start(object, sandbox).await;
        }
        self.orphans = alive.into_values().collect();
        if self.desired.is_known() {
            self.remove_orphans().await;
        } else if !self.orphans.is_empty() {
            let count = self.orphans.len();
            tracing::warn!(
                count,
                "pods run that this device's disk does not know: they run on until the region has spoken"
            );
        }
    }

    fn hold_claims(&self, object: &Object) {
        let Ok(pod) = object.view::<Pod>() else { return };
        let claims: Vec<&str> = claims_of(&pod).collect();
        if let Err(error) = self.shared.claims.take(object.namespace(), &claims, object.uid(), object.name()) {
            tracing::error!(pod = %object.key(), %error, "two living pods have one volume");
        }
    }

    /// Stops what runs, or left remains, and is not desired: the region's word on it was accepted before.
    pub(super) async fn remove_orphans(&mut self) {
        if !self.desired.is_known() {
            return;
        }
        for sandbox in std::mem::take(&mut self.orphans) {
            let object = self.stored.get(sandbox.uid()).and_then(StoredPod::object);
            tracing::info!(
                pod = sandbox.name(),
                namespace = sandbox.namespace(),
                "stopping a pod that is no longer desired"
            );
            match object {
                Some(object) => {
                    self.start(object.clone(), Some(sandbox)).await;
                    self.vanish(object.uid()).await;
                }
                None => remove_unknown(Arc::clone(&self.shared), sandbox).await,
            }
        }
        // Those that were being taken down when the agent died.
        let left: Vec<StoredPod> = self.stored.drain().map(|(_, stored)| stored).collect();
        for object in left.iter().filter_map(StoredPod::object) {
            self.start(object.clone(), None).await;
            self.vanish(object.uid()).await;
        }
        for uid in std::mem::take(&mut self.dead).into_keys() {
            if let Err(error) = self.shared.runtime.forget(&uid).await {
                tracing::error!(uid, error = chain(&error), "the remains of a dead pod cannot be removed");
                continue;
            }
            let shared = Arc::clone(&self.shared);
            if let Err(error) = blocking(move || shared.ids.free(&uid)).await {
                tracing::error!(error = chain(&error), "the user ids of a dead pod cannot be freed");
            }
        }
        self.shared.taken_over();
    }
}
