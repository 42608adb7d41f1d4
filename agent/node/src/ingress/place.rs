//! How many connections of users there may be at once.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use hearth_types::lan::is_private_use;
use prometheus::IntGauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Ingress;

/// A connection's place among those that are allowed at once; also held by what it was upgraded to.
pub(super) struct Place {
    _held: Held,
    gauge: IntGauge,
}

/// By what it is counted.
enum Held {
    Permit { _permit: OwnedSemaphorePermit },
    Outsider { _outsider: Outsider },
}

impl Place {
    pub(super) fn take(ingress: &Ingress) -> Option<Self> {
        Self::of(&ingress.inner.connections, &ingress.inner.metrics.ingress_connections)
    }

    /// That of a flow of datagrams, which are counted by themselves.
    pub(super) fn take_for_flow(ingress: &Ingress) -> Option<Self> {
        Self::of(&ingress.inner.flows, &ingress.inner.metrics.ingress_flows)
    }

    /// That of a connection that comes without a gateway. As many as there may be of them, they leave the gateways theirs; and those from the internet
    /// leave those inside the home theirs, and each other.
    pub(super) fn take_for_direct(ingress: &Ingress, caller: IpAddr) -> Option<Self> {
        let gauge = &ingress.inner.metrics.ingress_connections;
        if is_private_use(caller) {
            return Self::of(&ingress.inner.neighbours, gauge);
        }
        let outsider = Outsiders::take(&ingress.inner.outsiders, caller)?;
        Some(Self::counted(Held::Outsider { _outsider: outsider }, gauge))
    }

    fn of(places: &Arc<Semaphore>, gauge: &IntGauge) -> Option<Self> {
        let permit = Arc::clone(places).try_acquire_owned().ok()?;
        Some(Self::counted(Held::Permit { _permit: permit }, gauge))
    }

    fn counted(held: Held, gauge: &IntGauge) -> Self {
        gauge.inc();
        Self { _held: held, gauge: gauge.clone() }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

/// Connections from the internet, in all and by who calls: an address of IPv4, or the /64 of one of IPv6, of which a home has all.
pub(super) struct Outsiders {
    most: usize,
    most_of_one: usize,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    all: usize,
    of_one: HashMap<IpAddr, usize>,
}

/// A place among them; given back when dropped.
struct Outsider {
    outsiders: Arc<Outsiders>,
    who: IpAddr,
}

impl Outsiders {
    pub(super) fn new(most: usize, most_of_one: usize) -> Self {
        Self { most, most_of_one, counts: Mutex::default() }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(this: &Arc<Self>, caller: IpAddr) -> Option<Outsider> {
        let who = match caller {
            IpAddr::V4(_) => caller,
            IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64).into(),
        };
        let mut counts = this.counts();
        let of_one = counts.of_one.get(&who).copied().unwrap_or_default();
        if counts.all >= this.most || of_one >= this.most_of_one {
            return None;
        }
        counts.all += 1;
        counts.of_one.insert(who, of_one + 1);
        drop(counts);
        Some(Outsider { outsiders: Arc::clone(this), who })
    }
}

impl Drop for Outsider {
    fn drop(&mut self) {
        let mut counts = self.outsiders.counts();
        counts.all -= 1;
        if let Some(of_one) = counts.of_one.get_mut(&self.who) {
            *of_one -= 1;
            if *of_one == 0 {
                counts.of_one.remove(&self.who);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_takes_all_places_of_the_internet_and_what_ends_gives_its_place_back() {
        let outsiders = Arc::new(Outsiders::new(3, 2));
        let take = |ip: &str| Outsiders::take(&outsiders, ip.parse().expect("an address"));
        let first = take("2a00::1").expect("room");
        let _second = take("2a00::2").expect("room");
        assert!(take("2a00::3").is_none(), "of the same home");
        let third = take("25.0.0.1").expect("room");
        assert!(take("25.0.0.2").is_none(), "full");
        drop(third);
        drop(first);
        let counted = || {
            let counts = outsiders.counts();
            (counts.all, counts.of_one.len())
        };
        assert_eq!(counted(), (1, 1));
        assert!(take("2a00::3").is_some() && take("25.0.0.2").is_some());
        assert_eq!(counted(), (1, 1));
    }
}
