//! The leases of this device's volumes that move: asked for by heartbeats, kept in memory, passed on to the shims of the pods that have them.
//!
//! A pod with such a volume runs only while its region's word on it holds ([`hearth_types::lease`]). The agent holds it back, or stops it, in good
//! time; its shim does so where the agent does not.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hearth_pod::Failure;
use hearth_proto::v1;
use hearth_runtime::boot_time;
use hearth_types::{
    GroupKind, ObjectKey, Uid,
    kinds::Pod,
    lease::{Deadline, Epoch, Holder, MAX_LEASE, MIN_LEASE, RENEWALS, Tenure},
};
use tokio::sync::Notify;

use crate::{desired::Objects, pod::claims_of};

/// Volumes of one word of the region at most; a device has far fewer.
const MAX_GRANTS: usize = 4096;

/// The claims of a pod that need a lease, in the epochs in which this device has them. Sorted.
pub(crate) type Leased = Vec<(Uid, Epoch)>;

/// Which claims of a pod need a lease, by what is desired.
pub(crate) fn leased(objects: &Objects, namespace: &str, pod: &Pod) -> Leased {
    let claim = |name: &str| {
        let object = objects.get(&ObjectKey::new(GroupKind::PERSISTENT_VOLUME_CLAIM, namespace, name))?;
        Some((object.uid().clone(), Tenure::of_claim(&object.value())?.epoch))
    };
    let mut leased: Leased = claims_of(pod).filter_map(claim).collect();
    leased.sort();
    leased.dedup();
    leased
}

/// How a shim is told of them, so that the next agent knows them again.
pub(crate) fn named(leased: &Leased) -> String {
    leased.iter().map(|(claim, epoch)| format!("{claim}@{epoch}")).collect::<Vec<_>>().join(",")
}

/// What is held; shared by session, manager and pods.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    holder: Mutex<Holder>,
    changed: Notify,
    wanted: Notify,
}

impl Leases {
    fn holder(&self) -> MutexGuard<'_, Holder> {
        self.holder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session begins, and numbers its heartbeats anew.
    pub(crate) fn begin_session(&self) {
        self.holder().begin_session();
    }

    /// A heartbeat is about to be sent: from now on its leases count, whenever they come.
    pub(crate) fn ask(&self, sequence: u64) {
        self.holder().ask(sequence, boot_time());
    }

    /// The region grants leases. Returns how often to ask for them anew.
    pub(crate) fn granted(&self, told: v1::Leases) -> Duration {
        let lease = Duration::from_millis(told.lease_millis).clamp(MIN_LEASE, MAX_LEASE);
        // What is told is never made longer.
        let counted = lease.min(Duration::from_millis(told.lease_millis));
        let claims = told.grants.into_iter().take(MAX_GRANTS);
        let claims = claims.map(|one| (Uid::from(one.claim_uid.as_str()), Epoch(one.epoch)));
        if self.holder().granted(told.sequence, counted, claims, boot_time()) {
            self.changed.notify_one();
        }
        lease / RENEWALS
    }

    /// A pod that an agent before started is held to this deadline.
    pub(crate) fn learn(&self, leased: &Leased, deadline: Deadline) {
        let mut holder = self.holder();
        for (claim, epoch) in leased {
            holder.learn(claim.clone(), *epoch, deadline);
        }
    }

    /// Until when a pod may run with these; `None` where it may not.
    pub(crate) fn deadline(&self, leased: &Leased) -> Option<Deadline> {
        self.holder().deadline(leased, boot_time())
    }

    /// Why a pod with these does not run now; `None` where it may. What is wanted is asked for at once.
    pub(crate) fn held(&self, leased: &Leased) -> Option<Failure> {
        if leased.is_empty() || self.deadline(leased).is_some_and(|deadline| deadline.is_open(boot_time())) {
            return None;
        }
        self.wanted.notify_one();
        Some(Failure::new(
            "VolumeLease",
            "it has a volume that moves, and its region has not said lately that it is still this device's: it runs again once the region has",
        ))
    }

    /// Forgets what is no longer this device's.
    pub(crate) fn retain(&self, is_here: impl Fn(&Uid) -> bool) {
        self.holder().retain(is_here);
    }

    /// Resolves once leases were granted since it last did.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Resolves once a lease is wanted since it last did.
    pub(crate) async fn wanted(&self) {
        self.wanted.notified().await;
    }
}
