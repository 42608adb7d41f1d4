//! Who counts as one caller, and how many connections there may be, in all and of each. Pure.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Those who count as one: an IPv4 address, or an IPv6 /64, since a home has at least that many addresses to itself (RFC 6177).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Caller(Network);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Network {
    V4(u32),
    V6(u64),
}

impl From<IpAddr> for Caller {
    fn from(ip: IpAddr) -> Self {
        Self(match ip.to_canonical() {
            IpAddr::V4(ip) => Network::V4(ip.to_bits()),
            IpAddr::V6(ip) => Network::V6((ip.to_bits() >> 64) as u64),
        })
    }
}

#[derive(Debug, Default)]
struct Counts {
    all: usize,
    callers: HashMap<Caller, usize>,
}

/// The counts of open connections. Clones are handles on the same ones.
#[derive(Clone, Debug)]
pub struct Slots {
    most: usize,
    most_per_caller: usize,
    counts: Arc<Mutex<Counts>>,
}

/// Which limit is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// That of all connections.
    All,
    /// That of one caller's.
    Caller,
}

/// A connection's place; given back when dropped.
#[derive(Debug)]
pub struct Slot {
    slots: Slots,
    caller: Caller,
}

impl Slots {
    /// For so many connections at once, and so many of one caller.
    pub fn new(most: usize, most_per_caller: usize) -> Self {
        Self { most, most_per_caller, counts: Arc::default() }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        // Nothing between two writes that belong together can panic, so a poisoned table is a sound one.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a caller's connection, or which limit stands against it.
    pub fn take(&self, ip: IpAddr) -> Result<Slot, Full> {
        let caller = Caller::from(ip);
        let mut counts = self.counts();
        if counts.all >= self.most {
            return Err(Full::All);
        }
        let count = counts.callers.get(&caller).copied().unwrap_or(0);
        if count >= self.most_per_caller {
            return Err(Full::Caller);
        }
        counts.all += 1;
        counts.callers.insert(caller, count + 1);
        drop(counts);
        Ok(Slot { slots: self.clone(), caller })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut counts = self.slots.counts();
        counts.all -= 1;
        if let Some(count) = counts.callers.get_mut(&self.caller) {
            *count -= 1;
            if *count == 0 {
                counts.callers.remove(&self.caller);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn a_caller_is_an_ipv4_address_or_an_ipv6_network() {
        let same = [("192.0.2.1", "::ffff:192.0.2.1"), ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9")];
        let different = [("192.0.2.1", "192.0.2.2"), ("2001:db8:1:2::1", "2001:db8:1:3::1")];
        assert!(same.iter().all(|(a, b)| Caller::from(ip(a)) == Caller::from(ip(b))));
        assert!(different.iter().all(|(a, b)| Caller::from(ip(a)) != Caller::from(ip(b))));
    }

    #[test]
    fn one_caller_cannot_take_every_slot() {
        let slots = Slots::new(3, 2);
        let first = slots.take(ip("192.0.2.1")).expect("the first");
        let _second = slots.take(ip("::ffff:192.0.2.1")).expect("the second");
        assert_eq!(slots.take(ip("192.0.2.1")).expect_err("a third of one caller"), Full::Caller);
        let _other = slots.take(ip("192.0.2.2")).expect("another caller");
        assert_eq!(slots.take(ip("192.0.2.3")).expect_err("a fourth in all"), Full::All);
        drop(first);
        let _again = slots.take(ip("192.0.2.1")).expect("a slot was given back");
    }

    #[test]
    fn what_ends_gives_its_place_back_and_callers_without_any_are_forgotten() {
        let slots = Slots::new(3, 2);
        let first = slots.take(ip("2a00::1")).expect("room");
        let _second = slots.take(ip("2a00::2")).expect("room");
        assert_eq!(slots.take(ip("2a00::3")).expect_err("of the same home"), Full::Caller);
        let third = slots.take(ip("25.0.0.1")).expect("room");
        assert_eq!(slots.take(ip("25.0.0.2")).expect_err("full"), Full::All);
        drop(third);
        drop(first);
        let counted = || {
            let counts = slots.counts();
            (counts.all, counts.callers.len())
        };
        assert_eq!(counted(), (1, 1));
        assert!(slots.take(ip("2a00::3")).is_ok() && slots.take(ip("25.0.0.2")).is_ok());
        assert_eq!(counted(), (1, 1));
    }

    #[test]
    fn addresses_of_one_ipv6_network_count_as_one_caller() {
        let slots = Slots::new(9, 1);
        let held = slots.take(ip("2001:db8::1")).expect("the first");
        assert_eq!(slots.take(ip("2001:db8::2")).expect_err("the same /64"), Full::Caller);
        let _other = slots.take(ip("2001:db8:0:1::1")).expect("another /64");
        drop(held);
        assert_eq!(slots.counts().callers.len(), 1, "callers without connections are forgotten");
    }
}
