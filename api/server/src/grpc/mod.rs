//! The gRPC services. Each turns messages into calls and errors into statuses, and does nothing else.

mod backup;
pub(crate) mod convert;
mod enrollment;
mod peers;
mod pods;
mod region;
mod relays;
mod resources;
mod servers;

pub use backup::{BackupSource, Frozen};
pub(crate) use backup::{Backups, NoBackups};
pub(crate) use enrollment::{EnrollmentDoor, join_rate, joining_key};
pub(crate) use peers::PeersDoor;
pub(crate) use pods::PodsDoor;
pub use pods::{DeviceDoorConnector, NoDevices, TunnelConnector};
pub(crate) use region::RegionDoor;
pub(crate) use relays::RelaysDoor;
pub(crate) use resources::ResourcesDoor;
pub(crate) use servers::ServersDoor;
