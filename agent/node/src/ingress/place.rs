//! How many connections of users there may be at once.

use std::sync::Arc;

use prometheus::IntGauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Ingress;

/// A connection's place among those that are allowed at once; also held by what it was upgraded to.
pub(super) struct Place {
    _permit: OwnedSemaphorePermit,
    gauge: IntGauge,
}

impl Place {
    pub(super) fn take(ingress: &Ingress) -> Option<Self> {
        Self::of(&ingress.inner.connections, &ingress.inner.metrics.ingress_connections)
    }

    /// That of a flow of datagrams, which are counted by themselves.
    pub(super) fn take_for_flow(ingress: &Ingress) -> Option<Self> {
        Self::of(&ingress.inner.flows, &ingress.inner.metrics.ingress_flows)
    }

    /// That of a connection from inside the home: as many as there may be, they leave the gateways theirs.
    pub(super) fn take_for_neighbour(ingress: &Ingress) -> Option<Self> {
        Self::of(&ingress.inner.neighbours, &ingress.inner.metrics.ingress_connections)
    }

    fn of(places: &Arc<Semaphore>, gauge: &IntGauge) -> Option<Self> {
        let permit = Arc::clone(places).try_acquire_owned().ok()?;
        gauge.inc();
        Some(Self { _permit: permit, gauge: gauge.clone() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}
