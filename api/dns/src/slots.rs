//! How many TCP connections there may be, in all and of one client.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

/// Who asks, for counting: an IPv4 address, or the /64 of an IPv6 address, of which a home has all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Client {
    V4(u32),
    V6(u64),
}

impl From<IpAddr> for Client {
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
    clients: HashMap<Client, usize>,
}

/// The counts of open connections.
#[derive(Clone, Debug)]
pub(crate) struct Slots {
    most: usize,
    most_per_client: usize,
    counts: Arc<Mutex<Counts>>,
}

/// Which limit is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    All,
    Client,
}

impl Full {
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::All => "connections",
            Self::Client => "connections_of_client",
        }
    }
}

/// A connection's place; given back when dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    slots: Slots,
    client: Client,
}

impl Slots {
    pub(crate) fn new(most: usize, most_per_client: usize) -> Self {
        Self { most, most_per_client, counts: Arc::default() }
    }

    pub(crate) fn take(&self, ip: IpAddr) -> Result<Slot, Full> {
        let client = Client::from(ip);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.all >= self.most {
            return Err(Full::All);
        }
        let count = counts.clients.get(&client).copied().unwrap_or(0);
        if count >= self.most_per_client {
            return Err(Full::Client);
        }
        counts.all += 1;
        counts.clients.insert(client, count + 1);
        Ok(Slot { slots: self.clone(), client })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut counts = self.slots.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.all -= 1;
        if let Some(count) = counts.clients.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                counts.clients.remove(&self.client);
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
    fn one_client_cannot_take_every_slot() {
        let slots = Slots::new(3, 2);
        let first = slots.take(ip("192.0.2.1")).expect("the first");
        let _second = slots.take(ip("::ffff:192.0.2.1")).expect("the second");
        assert_eq!(slots.take(ip("192.0.2.1")).expect_err("a third of one client"), Full::Client);
        let _other = slots.take(ip("192.0.2.2")).expect("another client");
        assert_eq!(slots.take(ip("192.0.2.3")).expect_err("a fourth in all"), Full::All);
        drop(first);
        let _again = slots.take(ip("192.0.2.1")).expect("a slot was given back");
    }

    #[test]
    fn addresses_of_one_ipv6_network_count_as_one_client() {
        let slots = Slots::new(9, 1);
        let held = slots.take(ip("2001:db8::1")).expect("the first");
        assert_eq!(slots.take(ip("2001:db8::2")).expect_err("the same /64"), Full::Client);
        let _other = slots.take(ip("2001:db8:0:1::1")).expect("another /64");
        drop(held);
        assert_eq!(
            slots.counts.lock().expect("not poisoned").clients.len(),
            1,
            "clients without connections are forgotten"
        );
    }
}
