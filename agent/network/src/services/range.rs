//! The range of addresses that Services have, and which Service has which number in it.

use std::net::IpAddr;

use crate::NetworkError;
use crate::claims;
use crate::host::{self, Survey};
use crate::names::Instance;
use crate::prefix::{Prefix, choose_services4, nth, unique_local};
use crate::store::{Allocations, Prefixes, Store};

/// What tells the number of a Service from that of a pod, whose alias has the pod's own.
const SERVICE_BIT: u16 = 0x8000;

/// The range, of both families.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) ipv4: Prefix,
    pub(crate) ipv6: Prefix,
}

impl Range {
    /// The address with a number, which is a Service's or the alias of a pod.
    pub(crate) fn address4(self, number: u16) -> IpAddr {
        nth(self.ipv4, number)
    }

    pub(crate) fn address6(self, number: u16) -> IpAddr {
        nth(self.ipv6, number)
    }
}

/// Which Service has which number, by its uid.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Numbers(pub(crate) Allocations);

impl Numbers {
    pub(crate) fn of(&self, uid: &str) -> Option<u16> {
        self.0.get(uid).map(|number| number | SERVICE_BIT)
    }

    /// Numbers for these and no others; whether anything is another than before.
    pub(crate) fn keep(&mut self, uids: &[String]) -> Result<bool, NetworkError> {
        let gone: Vec<String> =
            self.0.iter().map(|(uid, _)| uid.to_owned()).filter(|uid| !uids.contains(uid)).collect();
        let mut changed = !gone.is_empty();
        for uid in gone {
            self.0.free(&uid);
        }
        for uid in uids {
            changed |= self.0.get(uid).is_none();
            self.0.allocate(uid, None)?;
        }
        Ok(changed)
    }
}

/// The range that was kept, or a new one where there is none or the host uses it meanwhile. Pods learn of it when they are adopted.
pub(crate) fn claim(
    instance: &Instance,
    store: &Store,
    pods: Prefixes,
    ipv6: bool,
) -> Result<(Range, Numbers), NetworkError> {
    let socket = host::route_socket()?;
    let kept = store.services()?;
    let numbers = kept.as_ref().map(|(_, numbers)| numbers.clone()).unwrap_or_default();
    let kept = kept.map(|(range, _)| range);
    for attempt in 0..claims::ATTEMPTS {
        let mut taken = Survey::take()?.taken(instance);
        taken.insert(pods.ipv4);
        let chosen = match kept {
            Some(kept) if attempt == 0 && !taken.iter().any(|t| t.overlaps(kept.ipv4)) => kept,
            _ => {
                let seed = instance.number().wrapping_add(attempt.wrapping_mul(rand::random()));
                let ipv4 = choose_services4(seed, &taken)
                    .ok_or(NetworkError::NoFreePrefix { prefix_len: crate::prefix::SERVICE_PREFIX4_LEN })?;
                Range { ipv4, ipv6: kept.map_or_else(|| unique_local(rand::random()), |kept| kept.ipv6) }
            }
        };
        if kept != Some(chosen) {
            store.save_services(chosen, &numbers)?;
        }
        let own = [pods.ipv4, pods.ipv6, chosen.ipv4, chosen.ipv6];
        let conflict = claims::put(instance, &socket, &own, (chosen.ipv4, ipv6.then_some(chosen.ipv6)))?;
        if !conflict {
            return Ok((chosen, numbers));
        }
    }
    Err(NetworkError::NoFreePrefix { prefix_len: crate::prefix::SERVICE_PREFIX4_LEN })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_service_keeps_its_number_and_a_new_one_does_not_get_that_of_the_last() {
        let mut numbers = Numbers::default();
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert!(numbers.keep(&names(&["a", "b"])).unwrap());
        assert!(!numbers.keep(&names(&["b", "a"])).unwrap());
        let (a, b) = (numbers.of("a").unwrap(), numbers.of("b").unwrap());
        assert!(a != b && a & SERVICE_BIT != 0);
        assert!(numbers.keep(&names(&["b", "c"])).unwrap());
        assert_eq!((numbers.of("a"), numbers.of("b")), (None, Some(b)));
        assert!(![a, b].contains(&numbers.of("c").unwrap()));
    }
}
