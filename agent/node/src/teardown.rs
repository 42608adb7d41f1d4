//! Removing everything of an instance from the host but its data, without anything that an agent knew.

use std::path::Path;

use hearth_types::InstanceId;

use crate::{Paths, files};

/// Why something of the instance may be left.
#[derive(Debug, thiserror::Error)]
pub enum TeardownError {
    /// Processes, cgroups or mounts.
    #[error("cannot end the containers of this instance")]
    Runtime(#[source] hearth_runtime::RuntimeError),
    /// Links, routes or firewall.
    #[error("cannot remove the pod network of this instance")]
    Network(#[source] hearth_network::NetworkError),
    /// Writable layers.
    #[error(transparent)]
    File(#[from] files::FileError),
}

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TeardownReport {
    /// Processes, cgroups and mounts.
    pub runtime: hearth_runtime::TeardownReport,
    /// Links, routes and firewall.
    pub network: hearth_network::TeardownReport,
}

/// Ends every container of an instance and removes its processes, cgroups, mounts, links and firewall.
///
/// # Guarantees
/// Needs no living agent, and does nothing where there is nothing; data stays: claims, images, logs, and what the device
/// should run, so that the next agent brings it up again. Blocks.
///
/// # Assumptions
/// The agent of the instance has ended; it would bring its pods up again.
pub fn teardown(data_dir: &Path, instance: &InstanceId) -> Result<TeardownReport, TeardownError> {
    let paths = Paths::new(data_dir);
    // Containers first: without processes, nothing uses network or mounts any more.
    let runtime = hearth_runtime::teardown(&paths.run(), instance.as_str()).map_err(TeardownError::Runtime)?;
    let network = hearth_network::teardown(instance.as_str()).map_err(TeardownError::Network)?;
    files::remove(&paths.scratch())?;
    Ok(TeardownReport { runtime, network })
}
