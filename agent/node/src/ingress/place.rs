//! How many connections of users there may be at once.

use std::sync::Arc;

use prometheus::IntGauge;
use tokio::sync::OwnedSemaphorePermit;

use super::Ingress;

/// A connection's place among those that are allowed at once; also held by what it was upgraded to.
pub(super) struct Place {
    _permit: OwnedSemaphorePermit,
    gauge: IntGauge,
}

impl Place {
    pub(super) fn take(ingress: &Ingress) -> Option<Self> {
        let permit = Arc::clone(&ingress.inner.connections).try_acquire_owned().ok()?;
        let gauge = ingress.inner.metrics.ingress_connections.clone();
        gauge.inc();
        Some(Self { _permit: permit, gauge })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}
