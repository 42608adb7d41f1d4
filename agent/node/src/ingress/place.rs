//! How many connections of users there may be at once.

use std::{net::IpAddr, sync::Arc};

use hearth_types::{callers::Slot, lan::is_private_use};
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
    Slot { _slot: Slot },
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
        let slot = ingress.inner.outsiders.take(caller).ok()?;
        Some(Self::counted(Held::Slot { _slot: slot }, gauge))
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
