//! Who may use the relay.

use std::{fmt, sync::Arc};

use hearth_types::{
    Clock, DeviceKey,
    recovery::PublicKey,
    relay::{BadPass, Pass},
};

/// Decides who may use the relay: asked when somebody connects, and again as long as they are connected.
pub trait Gate: fmt::Debug + Send + Sync + 'static {
    /// The pass of a caller who has proven a key, or why it is none.
    fn admit(&self, key: &DeviceKey, pass: &str) -> Result<Pass, BadPass>;
}

/// Lets in whom the region gave a pass.
pub struct PassGate {
    region: PublicKey,
    clock: Arc<dyn Clock>,
}

impl PassGate {
    /// The gate of the region whose passes are signed by this key.
    pub fn new(region: PublicKey, clock: Arc<dyn Clock>) -> Self {
        Self { region, clock }
    }
}

impl fmt::Debug for PassGate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PassGate").field("region", &self.region).finish_non_exhaustive()
    }
}

impl Gate for PassGate {
    fn admit(&self, key: &DeviceKey, pass: &str) -> Result<Pass, BadPass> {
        Pass::check(pass, self.region, key, self.clock.now())
    }
}
