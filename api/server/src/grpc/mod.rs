//! The gRPC services. Each turns messages into calls and errors into statuses, and does nothing else.

pub(crate) mod convert;
mod enrollment;
mod pods;
mod region;
mod resources;

pub(crate) use enrollment::EnrollmentDoor;
pub(crate) use pods::PodsDoor;
pub use pods::{DeviceDoorConnector, NoDevices, TunnelConnector};
pub(crate) use region::RegionDoor;
pub(crate) use resources::ResourcesDoor;
