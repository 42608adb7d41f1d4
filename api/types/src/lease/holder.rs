//! What a device was granted. In memory: a reboot, or another agent, knows nothing of it.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use super::{
    Deadline, Epoch, Moment,
    bug::{self, Bug},
};
use crate::Uid;

/// Heartbeats whose answer may still come; one that is older would grant nothing that is left.
const ASKED: usize = 32;

/// The leases of a device's volumes, by a clock of its own that counts suspend.
#[derive(Debug, Default)]
pub struct Holder {
    asked: VecDeque<(u64, Moment)>,
    by_claim: HashMap<Uid, (Epoch, Deadline)>,
}

impl Holder {
    /// Numbers begin anew: no answer of an earlier session counts.
    pub fn begin_session(&mut self) {
        self.asked.clear();
    }

    /// A heartbeat of this number is about to be sent.
    pub fn ask(&mut self, sequence: u64, now: Moment) {
        if self.asked.len() >= ASKED {
            self.asked.pop_front();
        }
        self.asked.push_back((sequence, now));
    }

    /// The region grants leases in answer to a heartbeat. `false` where none of that number was sent.
    pub fn granted(
        &mut self,
        sequence: u64,
        lease: Duration,
        claims: impl IntoIterator<Item = (Uid, Epoch)>,
        now: Moment,
    ) -> bool {
        let found = self.asked.iter().find(|(asked, _)| *asked == sequence);
        let Some(asked) = found.map(|(_, at)| if bug::has(Bug::CountedFromArrival) { now } else { *at }) else {
            return false;
        };
        for (claim, epoch) in claims {
            self.learn(claim, epoch, Deadline::of(asked, lease));
        }
        true
    }

    /// A lease is known, as of a pod that an agent before started. Of one claim the later epoch counts, and of that the later deadline.
    pub fn learn(&mut self, claim: Uid, epoch: Epoch, deadline: Deadline) {
        match self.by_claim.get_mut(&claim) {
            Some(known) => *known = (*known).max((epoch, deadline)),
            None => drop(self.by_claim.insert(claim, (epoch, deadline))),
        }
    }

    /// Until when all of these claims are held in these epochs: `None` where one of them is not, or not any more.
    pub fn deadline<'a>(&self, claims: impl IntoIterator<Item = &'a (Uid, Epoch)>, now: Moment) -> Option<Deadline> {
        let mut first = None;
        for (claim, epoch) in claims {
            let (held, deadline) = self.by_claim.get(claim)?;
            if held != epoch || now >= deadline.end {
                return None;
            }
            first = Some(first.map_or(*deadline, |first: Deadline| first.min(*deadline)));
        }
        first
    }

    /// Forgets claims that are no longer this device's.
    pub fn retain(&mut self, is_here: impl Fn(&Uid) -> bool) {
        self.by_claim.retain(|claim, _| is_here(claim));
    }
}
