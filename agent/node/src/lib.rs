//! The device agent: composes pods, runtime, images, network and volumes into a device that runs what its region
//! says, keeps running it when the region is silent, and ends its users' TLS.

use std::{path::PathBuf, sync::Arc};

use hearth_types::{Clock, InstanceId};

mod paths;

pub use paths::Paths;

/// What an agent is built from.
pub struct Config {
    /// The instance's data directory: absolute, without links. The agent writes below `<data-dir>/agent` only.
    pub data_dir: PathBuf,
    /// Names the instance's host objects.
    pub instance: InstanceId,
    /// Where the region's server is, `host:port`, instead of what the device learned when it joined.
    pub server: Option<String>,
    /// Forked by main before any thread existed, with [`zygote_config`].
    pub zygote: hearth_runtime::Zygote,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Where the agent's metrics are registered.
    pub registry: prometheus::Registry,
    /// The host's resolver configuration.
    pub resolv_conf: PathBuf,
}

/// What the zygote of an instance is forked with.
pub fn zygote_config(data_dir: &std::path::Path, instance: &InstanceId) -> hearth_runtime::ZygoteConfig {
    hearth_runtime::ZygoteConfig {
        run_dir: Paths::new(data_dir).run(),
        instance: instance.as_str().to_owned(),
        data_dir: data_dir.to_owned(),
    }
}
