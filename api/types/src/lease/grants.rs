//! What the server that has authority granted, and may have to wait for. In memory: no renewal is written anywhere.

use std::{collections::HashMap, time::Duration};

use super::{
    Epoch, Moment,
    bug::{self, Bug},
    patience,
};
use crate::Uid;

/// The newest grant of a claim.
#[derive(Clone, Copy, Debug)]
struct Grant {
    epoch: Epoch,
    /// Until then its holder may write.
    until: Moment,
    /// No more are given.
    revoked: bool,
}

/// The grants of one time of authority. Moments are of the server's own clock, which may stop, and must not run fast by more than a
/// part in [`DRIFT`](super::DRIFT).
#[derive(Debug)]
pub struct Grants {
    lease: Duration,
    /// Until then there may be leases that whoever had authority before granted.
    unknown_until: Moment,
    by_claim: HashMap<Uid, Grant>,
}

impl Grants {
    /// Authority begins, as its record in the store has at this moment been written for certain. `before`: the longest lease that may
    /// have been granted under the record that it replaced.
    pub fn new(now: Moment, lease: Duration, before: Duration) -> Self {
        let wait = if bug::has(Bug::AuthorityDoesNotWait) { Duration::ZERO } else { wait(lease.max(before)) };
        Self { lease, unknown_until: now.plus(wait), by_claim: HashMap::new() }
    }

    /// How long each lease is.
    pub fn lease(&self) -> Duration {
        self.lease
    }

    /// Notes that a lease is about to be granted, to be asked for *after* the heartbeat that it answers was received. `false`: it must not
    /// be, since the claim is about to be given away, or another epoch of it may still be held.
    pub fn grant(&mut self, claim: &Uid, epoch: Epoch, now: Moment) -> bool {
        let until = now.plus(wait(self.lease));
        if bug::has(Bug::GrantsToAnybody) {
            self.by_claim.insert(claim.clone(), Grant { epoch, until, revoked: false });
            return true;
        }
        match self.by_claim.get_mut(claim) {
            Some(known) if known.epoch == epoch => {
                if known.revoked {
                    return false;
                }
                known.until = known.until.max(until);
                true
            }
            Some(known) if known.epoch > epoch || known.until > now => false,
            _ => {
                self.by_claim.insert(claim.clone(), Grant { epoch, until, revoked: false });
                true
            }
        }
    }

    /// No more leases of a claim are granted in this epoch. Returns how long to wait until none is held; once that is nothing, the claim may
    /// be released.
    pub fn revoke(&mut self, claim: &Uid, epoch: Epoch, now: Moment) -> Duration {
        let known = self.by_claim.entry(claim.clone()).or_insert(Grant { epoch, until: now, revoked: true });
        // Also one that nobody was granted yet.
        if known.epoch <= epoch {
            (known.epoch, known.revoked) = (epoch, true);
        }
        known.until.max(self.unknown_until).since(now)
    }

    /// The claim stays where it is: leases are granted again. Only where the release has certainly not happened.
    pub fn restore(&mut self, claim: &Uid, epoch: Epoch) {
        if let Some(known) = self.by_claim.get_mut(claim).filter(|known| known.epoch == epoch) {
            known.revoked = false;
        }
    }

    /// How long until no lease of a claim is held, if none is granted from now on.
    pub fn left(&self, claim: &Uid, now: Moment) -> Duration {
        let until = self.by_claim.get(claim).map_or(now, |known| known.until);
        until.max(self.unknown_until).since(now)
    }

    /// Forgets claims that are gone and of which no lease is held.
    pub fn retain(&mut self, now: Moment, exists: impl Fn(&Uid) -> bool) {
        self.by_claim.retain(|claim, grant| grant.until > now || exists(claim));
    }
}

fn wait(lease: Duration) -> Duration {
    if bug::has(Bug::DriftForgotten) { lease } else { patience(lease) }
}
