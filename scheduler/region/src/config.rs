//! What a region's loops are given, and how long they wait.

use std::{sync::Arc, time::Duration};

use hearth_types::{
    Clock, group::Group, identity::CertificateSigner, lease::LEASE, recovery::SigningKey, store::Store,
};

use crate::{domains::Domains, remote::ServerChannels};

/// How often a device sends a heartbeat. Three of them fit into [`SILENCE`], so that two lost ones change nothing.
pub const HEARTBEAT: Duration = Duration::from_secs(10);
/// How long a device says nothing before it counts as silent. The same time is given to devices after a change of leader.
pub const SILENCE: Duration = Duration::from_secs(40);
/// How long a device may be without a session after one ended before it counts as silent: a reconnect with jitter fits.
pub const RECONNECT_GRACE: Duration = Duration::from_secs(10);
/// How long placement collects pending pods before it plans, so that one apply is one plan.
pub const PLACEMENT_DEBOUNCE: Duration = Duration::from_millis(3);

/// How long the loops wait. Production uses the defaults; tests shorten them.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// See [`HEARTBEAT`].
    pub heartbeat: Duration,
    /// See [`SILENCE`].
    pub silence: Duration,
    /// See [`RECONNECT_GRACE`].
    pub reconnect_grace: Duration,
    /// See [`PLACEMENT_DEBOUNCE`].
    pub placement_debounce: Duration,
    /// How long a device holds a volume that moves after it last asked its region; see [`hearth_types::lease`].
    pub lease: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: HEARTBEAT,
            silence: SILENCE,
            reconnect_grace: RECONNECT_GRACE,
            placement_debounce: PLACEMENT_DEBOUNCE,
            lease: LEASE,
        }
    }
}

/// What a region's loops are given.
#[derive(Clone)]
pub struct Config {
    /// The DNS suffix, in lower case, without a dot at either end.
    pub zone: String,
    /// The region's name.
    pub region: String,
    /// Wall-clock time.
    pub clock: Arc<dyn Clock>,
    /// The region's store.
    pub store: Arc<dyn Store>,
    /// The region's servers: this one runs its controllers, placement and sessions only while it leads.
    pub group: Arc<dyn Group>,
    /// How the server that leads is called, where it is another one.
    pub channels: Arc<dyn ServerChannels>,
    /// Signs certificates for the ingresses of devices.
    pub signer: Arc<dyn CertificateSigner>,
    /// Signs the copies of objects that devices keep.
    pub signing: Arc<SigningKey>,
    /// The TCP and UDP ports that Routes may have; `None`: no Route has one.
    pub ports: Option<std::ops::RangeInclusive<u16>>,
    /// How owners' domains are looked up; `None`: they are not, and none is routed.
    pub domains: Option<Domains>,
    /// Where metrics are registered.
    pub registry: prometheus::Registry,
    /// How long the loops wait.
    pub timing: Timing,
}
