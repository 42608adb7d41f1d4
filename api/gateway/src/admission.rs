//! Who may have a connection: bounded in all and for each caller.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::metrics::Outcome;

/// Those who count as one caller: an IPv4 address, or an IPv6 /64, since a home has at least that many addresses
/// to itself (RFC 6177).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Caller {
    V4([u8; 4]),
    V6([u16; 4]),
}

impl Caller {
    fn of(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Self::V4(ip.octets()),
            IpAddr::V6(ip) => {
                let [a, b, c, d, ..] = ip.segments();
                Self::V6([a, b, c, d])
            }
        }
    }
}

/// Counts connections, and refuses those beyond the limits.
#[derive(Debug)]
pub(crate) struct Admission {
    total: usize,
    per_caller: usize,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    total: usize,
    by_caller: HashMap<Caller, usize>,
}

/// The right to have a connection, given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    admission: Arc<Admission>,
    caller: Caller,
}

impl Admission {
    pub(crate) fn new(total: usize, per_caller: usize) -> Arc<Self> {
        Arc::new(Self { total, per_caller, open: Mutex::default() })
    }

    /// A permit, or which limit stands against it.
    pub(crate) fn admit(self: &Arc<Self>, ip: IpAddr) -> Result<Permit, Outcome> {
        let caller = Caller::of(ip);
        let mut open = self.lock();
        if open.total >= self.total {
            return Err(Outcome::RefusedTotal);
        }
        if open.by_caller.get(&caller).copied().unwrap_or_default() >= self.per_caller {
            return Err(Outcome::RefusedCaller);
        }
        *open.by_caller.entry(caller).or_default() += 1;
        open.total += 1;
        Ok(Permit { admission: Arc::clone(self), caller })
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
        if let Entry::Occupied(mut count) = open.by_caller.entry(self.caller) {
            *count.get_mut() -= 1;
            // Callers without connections are forgotten: the table is as small as what is open.
            if *count.get() == 0 {
                count.remove();
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
        assert!(same.iter().all(|(a, b)| Caller::of(ip(a)) == Caller::of(ip(b))));
        assert!(different.iter().all(|(a, b)| Caller::of(ip(a)) != Caller::of(ip(b))));
    }

    #[test]
    fn limits_hold_and_places_are_given_back() {
        let admission = Admission::new(3, 2);
        let a: Vec<_> = (0..2).map(|_| admission.admit(ip("192.0.2.1")).expect("a place")).collect();
        assert_eq!(admission.admit(ip("192.0.2.1")).map(|_| ()), Err(Outcome::RefusedCaller));
        let b = admission.admit(ip("192.0.2.2")).expect("a place");
        assert_eq!(admission.admit(ip("192.0.2.3")).map(|_| ()), Err(Outcome::RefusedTotal));
        drop(a);
        let again = admission.admit(ip("192.0.2.1")).expect("a place again");
        drop((again, b));
        let open = admission.lock();
        assert_eq!((open.total, open.by_caller.len()), (0, 0), "nothing is left behind");
    }
}
