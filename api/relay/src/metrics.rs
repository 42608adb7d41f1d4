//! What a relay counts.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

use hearth_types::relay::Holder;
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry, core::Collector};
use tokio::time::Instant;

use crate::{limits, rate::Allowance, server::Rates};

/// The label of gateways, and of owners beyond [`limits::MAX_COUNTED_OWNERS`]. No owner has such a name.
const GATEWAYS: &str = "_gateways";
const OTHERS: &str = "_others";

fn register<T: Collector + Clone + 'static>(registry: &Registry, metric: T) -> prometheus::Result<T> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

/// What is counted.
#[derive(Debug)]
pub(crate) struct Metrics {
    /// Connections that showed a pass.
    pub(crate) clients: IntGauge,
    /// Connections refused, by reason: `full`, `owner_full`, `pass`, `handshake`, `timeout`.
    pub(crate) refused: IntCounterVec,
    /// Connections ended since their pass was no longer good.
    pub(crate) expired: IntCounter,
    bytes: IntCounterVec,
}

impl Metrics {
    pub(crate) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let counter =
            |name, help, labels: &[&str]| register(registry, IntCounterVec::new(Opts::new(name, help), labels)?);
        Ok(Self {
            clients: register(
                registry,
                IntGauge::new("hearth_relay_clients", "Devices and gateways that are connected to the relay.")?,
            )?,
            refused: counter(
                "hearth_relay_refused_total",
                "Connections to the relay refused, by reason.",
                &["reason"],
            )?,
            expired: register(
                registry,
                IntCounter::new(
                    "hearth_relay_expired_total",
                    "Connections to the relay ended since their pass was no longer good.",
                )?,
            )?,
            bytes: counter(
                "hearth_relay_bytes_total",
                "Bytes that devices of an owner sent to the relay and received from it. The first thousand owners have a series of their own.",
                &["owner", "direction"],
            )?,
        })
    }
}

/// One owner's share of the relay; gateways have one together.
#[derive(Debug)]
pub(crate) struct Account {
    /// Bytes from its devices.
    pub(crate) received: IntCounter,
    /// Bytes to its devices.
    pub(crate) sent: IntCounter,
    /// What its devices may send; gateways have no limit of their own, since each byte of theirs is an answer to a device's.
    pub(crate) allowance: Option<Allowance>,
    /// Held once for each connection.
    connections: Arc<()>,
}

/// A place among an owner's connections.
pub(crate) type Place = Arc<()>;

impl Account {
    /// A place for one more connection; `None` where the owner has too many.
    pub(crate) fn place(&self) -> Option<Place> {
        let held = Arc::strong_count(&self.connections) - 1;
        let limited = self.allowance.is_some() && held >= limits::MAX_CLIENTS_PER_OWNER;
        (!limited).then(|| Arc::clone(&self.connections))
    }
}

/// The shares of all who are connected. One is forgotten with its last connection; what was counted stays counted.
#[derive(Debug)]
pub(crate) struct Accounts {
    rates: Rates,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// Those who have a series of their own.
    counted: HashSet<String>,
    open: HashMap<String, Arc<Account>>,
    /// What was counted, received and sent, when it was told last.
    told: HashMap<String, (u64, u64)>,
}

/// What went over the relay for an owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Metered {
    pub(crate) owner: String,
    /// Bytes from its devices.
    pub(crate) received: u64,
    /// Bytes to its devices.
    pub(crate) sent: u64,
}

impl Accounts {
    pub(crate) fn new(rates: Rates) -> Self {
        Self { rates, table: Mutex::default() }
    }

    /// What each owner who is counted by name has sent and received since this was asked last, and the others together; those who did nothing
    /// are left out.
    pub(crate) fn metered(&self, metrics: &Metrics) -> Vec<Metered> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let mut owners: Vec<String> = table.counted.iter().cloned().chain([OTHERS.to_owned()]).collect();
        owners.sort();
        let mut metered = Vec::new();
        for owner in owners {
            let of = |direction| metrics.bytes.with_label_values(&[owner.as_str(), direction]).get();
            let now = (of("received"), of("sent"));
            let before = table.told.insert(owner.clone(), now).unwrap_or_default();
            if now != before {
                metered.push(Metered { owner, received: now.0 - before.0, sent: now.1 - before.1 });
            }
        }
        metered
    }

    /// The share of who holds a pass.
    pub(crate) fn of(&self, holder: &Holder, metrics: &Metrics) -> Arc<Account> {
        let (name, limited) = match holder {
            Holder::Gateway => (GATEWAYS, false),
            Holder::Device { owner } => (owner.as_str(), true),
        };
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(account) = table.open.get(name) {
            return Arc::clone(account);
        }
        table.open.retain(|_, account| Arc::strong_count(account) > 1);
        let has_series = table.counted.contains(name) || table.counted.len() < limits::MAX_COUNTED_OWNERS;
        if has_series {
            table.counted.insert(name.to_owned());
        }
        let label = if has_series { name } else { OTHERS };
        let allowance =
            limited.then(|| Allowance::new(self.rates.bytes_per_second, self.rates.burst_bytes, Instant::now()));
        let account = Arc::new(Account {
            received: metrics.bytes.with_label_values(&[label, "received"]),
            sent: metrics.bytes.with_label_values(&[label, "sent"]),
            allowance,
            connections: Arc::new(()),
        });
        table.open.insert(name.to_owned(), Arc::clone(&account));
        account
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_have_a_series_each_until_there_are_too_many() {
        let registry = Registry::new();
        let metrics = Metrics::register(&registry).expect("registered");
        let accounts = Accounts::new(Rates::default());
        for n in 0..limits::MAX_COUNTED_OWNERS + 5 {
            accounts.of(&Holder::Device { owner: format!("owner-{n}") }, &metrics).received.inc_by(3);
        }
        accounts.of(&Holder::Device { owner: "owner-0".into() }, &metrics).received.inc_by(4);
        let families = registry.gather();
        let bytes = families.iter().find(|one| one.name() == "hearth_relay_bytes_total").expect("counted");
        let of = |owner: &str| {
            let found = bytes.get_metric().iter().find(|one| {
                one.get_label().iter().any(|label| label.value() == owner)
                    && one.get_label().iter().any(|label| label.value() == "received")
            });
            found.map(|one| one.get_counter().get_value() as u64)
        };
        assert_eq!(of("owner-0"), Some(7), "what was counted stays counted");
        let metered = accounts.metered(&metrics);
        assert_eq!(metered.len(), limits::MAX_COUNTED_OWNERS + 1);
        assert!(metered.contains(&Metered { owner: "owner-0".into(), received: 7, sent: 0 }));
        assert_eq!(accounts.metered(&metrics), [], "told once");
        accounts.of(&Holder::Device { owner: "owner-1".into() }, &metrics).sent.inc_by(5);
        assert_eq!(accounts.metered(&metrics), [Metered { owner: "owner-1".into(), received: 0, sent: 5 }]);
        assert_eq!(of(OTHERS), Some(15));
        assert_eq!(bytes.get_metric().len(), 2 * (limits::MAX_COUNTED_OWNERS + 1));
    }

    #[test]
    fn an_owner_has_so_many_places_and_gateways_have_no_such_limit() {
        let metrics = Metrics::register(&Registry::new()).expect("registered");
        let accounts = Accounts::new(Rates::default());
        let alice = accounts.of(&Holder::Device { owner: "alice".into() }, &metrics);
        let mut places: Vec<_> = (0..limits::MAX_CLIENTS_PER_OWNER).map_while(|_| alice.place()).collect();
        assert_eq!(places.len(), limits::MAX_CLIENTS_PER_OWNER);
        assert!(alice.place().is_none());
        places.pop();
        assert!(alice.place().is_some());
        let gateways = accounts.of(&Holder::Gateway, &metrics);
        let many: Vec<_> = (0..=limits::MAX_CLIENTS_PER_OWNER).map_while(|_| gateways.place()).collect();
        assert_eq!(many.len(), limits::MAX_CLIENTS_PER_OWNER + 1);
    }
}
