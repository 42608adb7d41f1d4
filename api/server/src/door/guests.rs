//! Room for those whom nobody knows yet: connections in their handshake, and strangers behind it. Whoever holds a place and is nobody
//! must not keep others out: an address has a few places, and where all are taken the oldest has to go.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio_util::sync::CancellationToken;

/// The part of an address that one household or host has: of IPv6 the /64 (RFC 6177), since everybody can have all of its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Network(IpAddr);

impl Network {
    pub(crate) fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V6(v6) => {
                let mut octets = v6.octets();
                octets[8..].fill(0);
                Self(IpAddr::from(octets))
            }
            v4 => Self(v4),
        }
    }
}

#[derive(Default)]
struct Inner {
    next: u64,
    /// By age.
    open: BTreeMap<u64, (Network, CancellationToken)>,
    by_network: HashMap<Network, usize>,
}

/// The places.
pub(crate) struct Guests {
    inner: Mutex<Inner>,
    places: usize,
    per_network: usize,
}

impl Guests {
    /// So many places, of which one network has at most `per_network`.
    pub(crate) fn new(places: usize, per_network: usize) -> Arc<Self> {
        Arc::new(Self { inner: Mutex::default(), places, per_network })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for somebody, `None` where their network has enough. Where all are taken, the oldest guest loses theirs: who is let in is so
    /// within moments, and who waits there is not.
    pub(crate) fn admit(self: &Arc<Self>, address: IpAddr) -> Option<Guest> {
        let network = Network::of(address);
        let mut inner = self.inner();
        if inner.by_network.get(&network).is_some_and(|count| *count >= self.per_network) {
            return None;
        }
        while inner.open.len() >= self.places {
            let oldest = inner.open.first_key_value().map(|(id, _)| *id)?;
            if let Some(sent_away) = inner.leave(oldest) {
                sent_away.cancel();
            }
        }
        let (id, end) = (inner.next, CancellationToken::new());
        inner.next += 1;
        inner.open.insert(id, (network, end.clone()));
        *inner.by_network.entry(network).or_default() += 1;
        Some(Guest { guests: Arc::clone(self), id, end })
    }

    #[cfg(test)]
    fn count(&self) -> (usize, usize) {
        let inner = self.inner();
        (inner.open.len(), inner.by_network.values().sum())
    }
}

impl Inner {
    fn leave(&mut self, id: u64) -> Option<CancellationToken> {
        let (network, end) = self.open.remove(&id)?;
        if let Some(count) = self.by_network.get_mut(&network) {
            *count -= 1;
            if *count == 0 {
                self.by_network.remove(&network);
            }
        }
        Some(end)
    }
}

/// Somebody's place; given back when it is dropped.
pub(crate) struct Guest {
    guests: Arc<Guests>,
    id: u64,
    /// Cancelled when somebody newer needs the place.
    pub(crate) end: CancellationToken,
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.guests.inner().leave(self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn a_network_has_its_share_and_the_oldest_makes_room() {
        let guests = Guests::new(4, 2);
        let a = [guests.admit(ip("192.0.2.1")), guests.admit(ip("192.0.2.1"))].map(|guest| guest.expect("room"));
        assert!(guests.admit(ip("192.0.2.1")).is_none(), "it has its share");
        assert!(guests.admit(ip("::ffff:192.0.2.1")).is_none(), "under whatever name");
        let b = guests.admit(ip("2001:db8::1")).expect("room");
        let c = guests.admit(ip("2001:db8::ffff")).expect("room");
        assert!(guests.admit(ip("2001:db8::2")).is_none(), "one household");
        assert_eq!(guests.count(), (4, 4));
        // Full: the oldest goes, and nobody else.
        let d = guests.admit(ip("198.51.100.1")).expect("room is made");
        assert!(a[0].end.is_cancelled() && ![&a[1], &b, &c, &d].iter().any(|guest| guest.end.is_cancelled()));
        assert_eq!(guests.count(), (4, 4));
        drop(a);
        assert_eq!(guests.count(), (3, 3), "who lost a place has none to give back");
        drop((b, c, d));
        assert_eq!(guests.count(), (0, 0));
    }
}
