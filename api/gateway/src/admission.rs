//! Who may have a connection: bounded in all, for each caller and for each owner; and how many new ones a second.

use std::{
    collections::HashMap,
    hash::Hash,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hearth_types::callers::Caller;
use tokio::time::Instant;

use crate::{
    limits::{MAX_REMEMBERED, Share},
    metrics::Outcome,
};

/// What one of many who share has of the connections.
#[derive(Debug)]
struct Use {
    open: usize,
    /// When the connections so far would all have come at the allowed rate (the generic cell rate algorithm, ITU-T I.371).
    paid: Instant,
}

/// Connections by who has them. One that has none, and whose last ones came slowly enough, is forgotten.
#[derive(Debug)]
struct Shares<K> {
    share: Share,
    uses: HashMap<K, Use>,
}

impl<K: Eq + Hash> Shares<K> {
    fn new(share: Share) -> Self {
        Self { share, uses: HashMap::new() }
    }

    fn take(&mut self, key: K, now: Instant) -> bool {
        if self.uses.len() >= MAX_REMEMBERED && !self.uses.contains_key(&key) {
            self.uses.retain(|_, one| one.open > 0 || one.paid > now);
            if self.uses.len() >= MAX_REMEMBERED {
                // Rather forget how fast some came than refuse all others.
                self.uses.retain(|_, one| one.open > 0);
            }
        }
        let one = self.uses.entry(key).or_insert(Use { open: 0, paid: now });
        let interval = Duration::from_secs(1) / self.share.per_second.max(1);
        let paid = one.paid.max(now) + interval;
        if one.open >= self.share.open || paid > now + interval * self.share.burst.max(1) {
            return false;
        }
        one.open += 1;
        one.paid = paid;
        true
    }

    fn give_back(&mut self, key: &K, now: Instant) {
        if let Some(one) = self.uses.get_mut(key) {
            one.open = one.open.saturating_sub(1);
            if one.open == 0 && one.paid <= now {
                self.uses.remove(key);
            }
        }
    }
}

/// Counts connections, and refuses those beyond the limits.
#[derive(Debug)]
pub(crate) struct Admission {
    total: usize,
    open: Mutex<Open>,
}

#[derive(Debug)]
struct Open {
    total: usize,
    callers: Shares<Caller>,
    owners: Shares<Arc<str>>,
}

/// The right to have a connection, given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    admission: Arc<Admission>,
    caller: Caller,
}

/// The right to have a connection to an owner's devices, given back when dropped.
#[derive(Debug)]
pub(crate) struct OwnerPermit {
    admission: Arc<Admission>,
    owner: Arc<str>,
}

impl Admission {
    /// `total` connections at once, and what each caller and each owner may have of them.
    pub(crate) fn new(total: usize, caller: &Share, owner: &Share) -> Arc<Self> {
        let open = Open { total: 0, callers: Shares::new(caller.clone()), owners: Shares::new(owner.clone()) };
        Arc::new(Self { total, open: Mutex::new(open) })
    }

    /// A permit, or which limit stands against it.
    pub(crate) fn admit(self: &Arc<Self>, ip: IpAddr) -> Result<Permit, Outcome> {
        let caller = Caller::from(ip);
        let mut open = self.lock();
        if open.total >= self.total {
            return Err(Outcome::RefusedTotal);
        }
        if !open.callers.take(caller, Instant::now()) {
            return Err(Outcome::RefusedCaller);
        }
        open.total += 1;
        Ok(Permit { admission: Arc::clone(self), caller })
    }

    /// A permit for a connection to this owner's devices; `None` where the owner has too many.
    pub(crate) fn admit_to(self: &Arc<Self>, owner: &str) -> Option<OwnerPermit> {
        let owner: Arc<str> = owner.into();
        let taken = self.lock().owners.take(Arc::clone(&owner), Instant::now());
        taken.then(|| OwnerPermit { admission: Arc::clone(self), owner })
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        // Nothing between two writes that belong together can panic, so a poisoned table is a sound one.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut open = self.admission.lock();
        open.total -= 1;
        open.callers.give_back(&self.caller, Instant::now());
    }
}

impl Drop for OwnerPermit {
    fn drop(&mut self) {
        self.admission.lock().owners.give_back(&self.owner, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn share(open: usize, per_second: u32, burst: u32) -> Share {
        Share { open, per_second, burst }
    }

    fn admission(total: usize, caller: Share, owner: Share) -> Arc<Admission> {
        Admission::new(total, &caller, &owner)
    }

    #[tokio::test(start_paused = true)]
    async fn limits_hold_and_places_are_given_back() {
        let admission = admission(3, share(2, 10, 100), share(2, 10, 100));
        let a: Vec<_> = (0..2).map(|_| admission.admit(ip("192.0.2.1")).expect("a place")).collect();
        assert_eq!(admission.admit(ip("192.0.2.1")).map(|_| ()), Err(Outcome::RefusedCaller));
        let b = admission.admit(ip("192.0.2.2")).expect("a place");
        assert_eq!(admission.admit(ip("192.0.2.3")).map(|_| ()), Err(Outcome::RefusedTotal));
        drop(a);
        let again = admission.admit(ip("192.0.2.1")).expect("a place again");
        let owned: Vec<_> = (0..2).map(|_| admission.admit_to("alice").expect("a place")).collect();
        assert!(admission.admit_to("alice").is_none());
        let other = admission.admit_to("bob").expect("another's place");
        tokio::time::advance(Duration::from_secs(10)).await;
        drop((again, b, owned, other));
        let open = admission.lock();
        assert_eq!((open.total, open.callers.uses.len(), open.owners.uses.len()), (0, 0, 0), "nothing is left behind");
    }

    #[tokio::test(start_paused = true)]
    async fn new_connections_come_in_a_burst_and_then_at_a_rate() {
        let admission = admission(100, share(100, 4, 3), share(100, 4, 3));
        let burst = |expected: usize| {
            let came = (0..10).filter(|_| admission.admit(ip("192.0.2.1")).is_ok()).count();
            let owned = (0..10).filter(|_| admission.admit_to("alice").is_some()).count();
            assert_eq!((came, owned), (expected, expected));
        };
        burst(3);
        admission.admit(ip("192.0.2.2")).expect("others are not held back");
        tokio::time::advance(Duration::from_millis(250)).await;
        burst(1);
        tokio::time::advance(Duration::from_mins(1)).await;
        burst(3);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_of_those_who_have_gone_is_bounded() {
        let admission = admission(usize::MAX, share(10, 1, 1), share(1, 1, 1));
        let kept = admission.admit(ip("192.0.2.1")).expect("a place");
        for network in 0..2 * MAX_REMEMBERED as u32 {
            let ip = std::net::Ipv6Addr::from(u128::from(network) << 64);
            drop(admission.admit(ip.into()).expect("a place"));
        }
        let open = admission.lock();
        assert!(open.callers.uses.len() <= MAX_REMEMBERED);
        assert_eq!(open.callers.uses[&Caller::from(ip("192.0.2.1"))].open, 1);
        drop(open);
        drop(kept);
    }

    proptest! {
        #[test]
        fn no_more_come_than_burst_and_rate_allow(steps in prop::collection::vec(0_u64..700, 1..200)) {
            let start = Instant::now();
            let mut shares = Shares::new(share(usize::MAX, 2, 5));
            let (mut now, mut came) = (start, 0);
            for step in steps {
                now += Duration::from_millis(step);
                came += u64::from(shares.take((), now));
                prop_assert!(came <= 5 + (now - start).as_millis() as u64 / 500);
            }
        }
    }
}
