//! Which pod has which claim: one at a time, so that a volume has one writer also while a pod is replaced.
//!
//! The region may ask for a pod before its predecessor has stopped, and may have forgotten the predecessor. So this device
//! itself keeps the new one waiting until nothing is left of the old one.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use hearth_types::Uid;
use tokio::sync::Notify;

/// Who has a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Holder {
    uid: Uid,
    /// The pod's name, for messages.
    pod: String,
}

/// Why a pod cannot have a claim now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("persistentvolumeclaim \"{claim}\" is in use by pod \"{pod}\"; a volume has one writer at a time")]
pub(crate) struct InUse {
    claim: String,
    pod: String,
}

/// The claims that pods have, by namespace and name. In memory: at the agent's start, those of living pods are taken
/// before anything else begins.
#[derive(Debug, Default)]
pub(crate) struct ClaimHolders {
    held: Mutex<BTreeMap<(String, String), Holder>>,
    released: Notify,
}

impl ClaimHolders {
    fn held(&self) -> MutexGuard<'_, BTreeMap<(String, String), Holder>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes claims for a pod, which may have some already: all of them or, where another pod has one, none, so that no two
    /// pods wait for each other.
    pub(crate) fn take(&self, namespace: &str, claims: &[&str], uid: &Uid, pod: &str) -> Result<(), InUse> {
        let mut held = self.held();
        let key = |claim: &str| (namespace.to_owned(), claim.to_owned());
        for claim in claims {
            if let Some(other) = held.get(&key(claim)).filter(|other| other.uid != *uid) {
                return Err(InUse { claim: (*claim).to_owned(), pod: other.pod.clone() });
            }
        }
        for claim in claims {
            held.insert(key(claim), Holder { uid: uid.clone(), pod: pod.to_owned() });
        }
        Ok(())
    }

    /// Nothing is left of a pod that could write.
    pub(crate) fn release(&self, uid: &Uid) {
        let mut held = self.held();
        let before = held.len();
        held.retain(|_, holder| holder.uid != *uid);
        if held.len() < before {
            self.released.notify_one();
        }
    }

    /// Whether a pod has a claim.
    pub(crate) fn is_held(&self, namespace: &str, claim: &str) -> bool {
        self.held().contains_key(&(namespace.to_owned(), claim.to_owned()))
    }

    /// Resolves once claims were released since it last did.
    pub(crate) async fn released(&self) {
        self.released.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_claim_has_one_pod_until_nothing_is_left_of_it() {
        let claims = ClaimHolders::default();
        let (old, new) = (Uid::from("1"), Uid::from("2"));
        claims.take("alice", &["data"], &old, "notes-old").expect("free");
        claims.take("alice", &["data"], &old, "notes-old").expect("its own");
        let refused = claims.take("alice", &["cache", "data"], &new, "notes-new").expect_err("in use");
        assert_eq!(refused, InUse { claim: "data".into(), pod: "notes-old".into() });
        assert!(!claims.is_held("alice", "cache"), "all or none");
        claims.take("bob", &["data"], &new, "notes-new").expect("another owner's");
        claims.release(&old);
        claims.released().await;
        claims.take("alice", &["cache", "data"], &new, "notes-new").expect("free again");
        assert!(claims.is_held("alice", "data"));
    }
}
