//! What the loops share.

use std::sync::Arc;

use hearth_types::{DeviceName, routes::{RouteEntry, RouteLookup}};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{Config, RegionError};

pub(crate) struct Hub {
    ready: watch::Sender<bool>,
    pub(crate) config: Config,
}

struct Routes;
impl RouteLookup for Routes {
    fn lookup(&self, _: &str) -> Option<Arc<RouteEntry>> {
        None
    }
    fn has_names_below(&self, _: &str) -> bool {
        false
    }
    fn serial(&self) -> u32 {
        0
    }
}

impl Hub {
    pub(crate) fn new(config: Config) -> Result<Self, RegionError> {
        Ok(Self { ready: watch::Sender::new(false), config })
    }
    pub(crate) async fn run(&self, shutdown: CancellationToken) -> Result<(), RegionError> {
        shutdown.cancelled().await;
        Ok(())
    }
    pub(crate) fn routes(&self) -> Arc<dyn RouteLookup> {
        Arc::new(Routes)
    }
    pub(crate) async fn ready(&self) {
        let _ = self.ready.subscribe().wait_for(|ready| *ready).await;
    }
    pub(crate) fn is_ready(&self) -> bool {
        *self.ready.borrow()
    }
    pub(crate) fn away(device: &DeviceName) -> hearth_types::tunnel::DialError {
        hearth_types::tunnel::DialError::Away(device.clone())
    }
}
