//! How many connections there may be, in all and of one caller.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

/// Who calls, for counting: an IPv4 address, or the /64 of an IPv6 address, of which a home has all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Caller {
    V4(u32),
    V6(u64),
}

impl From<IpAddr> for Caller {
    fn from(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Self::V4(ip.to_bits()),
            IpAddr::V6(ip) => Self::V6((ip.to_bits() >> 64) as u64),
        }
    }
}

#[derive(Debug, Default)]
struct Counts {
    all: usize,
    callers: HashMap<Caller, usize>,
}

/// The counts of open connections.
#[derive(Clone, Debug)]
pub(crate) struct Slots {
    most: usize,
    most_per_caller: usize,
    counts: Arc<Mutex<Counts>>,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    All,
    Caller,
}

impl Full {
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::All => "connections",
            Self::Caller => "connections_of_caller",
        }
    }
}

/// A connection's place; dropped with it.
#[derive(Debug)]
pub(crate) struct Slot {
    slots: Slots,
    caller: Caller,
}

impl Slots {
    pub(crate) fn new(most: usize, most_per_caller: usize) -> Self {
        Self { most, most_per_caller, counts: Arc::default() }
    }

    pub(crate) fn take(&self, ip: IpAddr) -> Result<Slot, Full> {
        let caller = Caller::from(ip);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.all >= self.most {
            return Err(Full::All);
        }
        if counts.callers.get(&caller).is_some_and(|count| *count >= self.most_per_caller) {
            return Err(Full::Caller);
        }
        counts.all += 1;
        *counts.callers.entry(caller).or_default() += 1;
        Ok(Slot { slots: self.clone(), caller })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut counts = self.slots.counts.lock().unwrap_or_else(PoisonError::into_inner);
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

    #[test]
    fn places_are_counted_by_caller_and_given_back() {
        let slots = Slots::new(3, 2);
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
        let one = slots.take(ip("192.0.2.1")).expect("a place");
        let _mapped = slots.take(ip("::ffff:192.0.2.1")).expect("a place of the same caller");
        assert_eq!(slots.take(ip("192.0.2.1")).expect_err("full"), Full::Caller);
        let _other = slots.take(ip("192.0.2.2")).expect("a place of another");
        assert_eq!(slots.take(ip("192.0.2.3")).expect_err("full"), Full::All);
        drop(one);
        let _again = slots.take(ip("192.0.2.1")).expect("a place again");
    }

    #[test]
    fn a_homes_prefix_is_one_caller() {
        let slots = Slots::new(10, 1);
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
        let held = slots.take(ip("2001:db8:0:1::1")).expect("a place");
        assert_eq!(slots.take(ip("2001:db8:0:1:ffff::9")).expect_err("full"), Full::Caller);
        let _other = slots.take(ip("2001:db8:0:2::1")).expect("a place of another home");
        drop(held);
        assert_eq!(slots.counts.lock().expect("no panic").callers.len(), 1, "who has gone is forgotten");
    }
}
