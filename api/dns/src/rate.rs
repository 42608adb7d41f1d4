//! How many answers over UDP a network gets, in all and for one name: sources of datagrams are easily forged, and whoever is named as one must not
//! be flooded with answers it never asked for (response rate limiting, as other authoritative servers have it). Pure: time is an input.

use std::{
    hash::{BuildHasher as _, RandomState},
    net::IpAddr,
    sync::{Mutex, PoisonError},
};

use crate::limits;

/// What becomes of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is answered.
    Answer,
    /// It gets an answer without records that asks for TCP.
    Slip,
    /// It gets nothing.
    Drop,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    /// Whose it is; 0 is nobody's.
    of: u64,
    /// Answers left, in thousandths.
    left: u64,
    /// When that was so, in milliseconds.
    at: u64,
    /// Queries without an answer in a row.
    limited: u32,
}

/// Buckets of answers, in a table of fixed size. Each may be in one of [`WAYS`] places. A new one takes the place of the fullest there, which knows least:
/// so that a flood of made-up sources pushes out buckets that were hardly used, and not that of whoever is being flooded.
#[derive(Debug)]
struct Buckets {
    /// Answers a second.
    rate: u64,
    /// A full bucket, in thousandths.
    full: u64,
    sets: Box<[Mutex<[Slot; WAYS]>]>,
}

/// Places in which one bucket may be.
const WAYS: usize = 8;

impl Buckets {
    fn new(rate: u64, burst: u64, slots: usize) -> Self {
        let sets = (0..slots / WAYS).map(|_| Mutex::default()).collect();
        Self { rate, full: burst.saturating_mul(1000), sets }
    }

    /// What is left in a bucket at a time.
    fn left(&self, slot: &Slot, now: u64) -> u64 {
        let earned = now.saturating_sub(slot.at).saturating_mul(self.rate);
        if slot.of == 0 { u64::MAX } else { slot.left.saturating_add(earned).min(self.full) }
    }

    fn check(&self, of: u64, now: u64) -> Verdict {
        let of = of.max(1);
        let set = &self.sets[(of % self.sets.len() as u64) as usize];
        let mut set = set.lock().unwrap_or_else(PoisonError::into_inner);
        let fullest = || (0..WAYS).max_by_key(|at| self.left(&set[*at], now)).unwrap_or(0);
        let at = set.iter().position(|slot| slot.of == of).unwrap_or_else(fullest);
        let slot = &mut set[at];
        if slot.of != of {
            *slot = Slot { of, left: self.full, at: now, limited: 0 };
        }
        slot.left = self.left(slot, now);
        slot.at = slot.at.max(now);
        if slot.left >= 1000 {
            slot.left -= 1000;
            slot.limited = 0;
            return Verdict::Answer;
        }
        slot.limited = slot.limited.wrapping_add(1);
        if slot.limited.is_multiple_of(limits::UDP_SLIP) { Verdict::Slip } else { Verdict::Drop }
    }
}

/// The rates of a name server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rates {
    pub(crate) network: u64,
    pub(crate) network_burst: u64,
    pub(crate) name: u64,
    pub(crate) name_burst: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Limiter {
    /// Keyed anew at each start, so that nobody can choose who shares a place.
    hasher: RandomState,
    networks: Buckets,
    names: Buckets,
}

impl Limiter {
    pub(crate) fn new(rates: Rates) -> Self {
        Self {
            hasher: RandomState::new(),
            networks: Buckets::new(rates.network, rates.network_burst, limits::UDP_NETWORKS),
            names: Buckets::new(rates.name, rates.name_burst, limits::UDP_NAMES),
        }
    }

    /// What becomes of a query from an address at a time in milliseconds, before anything was done for it.
    pub(crate) fn check(&self, ip: IpAddr, now: u64) -> Verdict {
        self.networks.check(self.hasher.hash_one(network(ip)), now)
    }

    /// What becomes of an answer about a name, in lower case, before it was signed. Answers that a name does not exist are about the name above.
    pub(crate) fn check_name(&self, ip: IpAddr, name: &[u8], denied: bool, now: u64) -> Verdict {
        self.names.check(self.hasher.hash_one((network(ip), name, denied)), now)
    }
}

/// The network that counts as one: an IPv4 /24 or an IPv6 /56.
fn network(ip: IpAddr) -> u64 {
    match ip.to_canonical() {
        IpAddr::V4(ip) => (1 << 63) | u64::from(ip.to_bits() >> 8),
        IpAddr::V6(ip) => (1 << 62) | (ip.to_bits() >> 72) as u64,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn limiter() -> Limiter {
        Limiter::new(Rates {
            network: limits::UDP_ANSWERS_PER_SECOND,
            network_burst: limits::UDP_BURST,
            name: limits::UDP_ANSWERS_PER_NAME,
            name_burst: limits::UDP_NAME_BURST,
        })
    }

    #[test]
    fn a_network_gets_a_burst_then_a_rate_and_now_and_then_a_hint() {
        let limiter = limiter();
        let burst = usize::try_from(limits::UDP_BURST).expect("small");
        let all: Vec<_> = (0..burst + 10).map(|_| limiter.check(ip("192.0.2.1"), 5)).collect();
        assert!(all[..burst].iter().all(|one| *one == Verdict::Answer));
        assert_eq!(all[burst..].iter().filter(|one| **one == Verdict::Slip).count(), 10 / limits::UDP_SLIP as usize);
        assert!(!all[burst..].contains(&Verdict::Answer));
        assert_ne!(limiter.check(ip("192.0.2.77"), 5), Verdict::Answer, "the same /24");
        assert_eq!(limiter.check(ip("192.0.2.77"), 5 + 1000 / limits::UDP_ANSWERS_PER_SECOND + 1), Verdict::Answer);
        assert_eq!(network(ip("2001:db8:0:1::1")), network(ip("2001:db8:0:fe::2")));
        assert_ne!(network(ip("2001:db8:0:100::1")), network(ip("2001:db8::1")));
        assert_eq!(network(ip("::ffff:192.0.2.1")), network(ip("192.0.2.9")));
    }

    #[test]
    fn one_name_is_limited_and_other_names_and_networks_are_not() {
        let limiter = limiter();
        let ask = |from: &str, name: &[u8], denied| limiter.check_name(ip(from), name, denied, 5);
        let burst = limits::UDP_NAME_BURST;
        assert!((0..burst).all(|_| ask("192.0.2.1", b"a", false) == Verdict::Answer));
        assert_ne!(ask("192.0.2.200", b"a", false), Verdict::Answer);
        assert_eq!(ask("192.0.2.1", b"b", false), Verdict::Answer);
        assert_eq!(ask("192.0.2.1", b"a", true), Verdict::Answer);
        assert_eq!(ask("192.0.3.1", b"a", false), Verdict::Answer);
        assert_eq!(limiter.check_name(ip("192.0.2.1"), b"a", false, 5 + 1000), Verdict::Answer, "a second later");
    }

    #[test]
    fn made_up_sources_do_not_free_whoever_is_flooded() {
        let limiter = limiter();
        let victim = ip("192.0.2.1");
        // Far more networks than there are places, and the victim between them.
        let answered = (0..200_000_u32)
            .filter(|at| {
                limiter.check(std::net::Ipv4Addr::from(0x0a00_0000 + (at << 8)).into(), 5);
                limiter.check(victim, 5) == Verdict::Answer
            })
            .count();
        assert_eq!(answered as u64, limits::UDP_BURST);
    }

    proptest! {
        #[test]
        fn no_network_gets_more_than_its_burst_and_rate(steps in proptest::collection::vec(0..30_u64, 1..2000)) {
            let limiter = limiter();
            let (mut now, mut answered) = (0, 0);
            for step in steps {
                now += step;
                answered += u64::from(limiter.check(ip("192.0.2.1"), now) == Verdict::Answer);
            }
            prop_assert!(answered * 1000 <= limits::UDP_BURST * 1000 + now * limits::UDP_ANSWERS_PER_SECOND);
        }
    }
}
