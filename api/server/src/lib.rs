//! One resource service behind the doors of a region: authentication, authorisation, admission.
//!
//! | module | what it answers |
//! |---|---|
//! | [`resources`] | get, list, watch, apply and the rest, of every kind, over the store |
//! | [`ca`] | the region's own certificate authority |
//! | [`PeerChannels`] | how this server calls the other servers of its region |
//! | [`ApiServer`] | the services behind the TLS door, over gRPC |
//!
//! Whoever comes through the door is known by the key that the TLS handshake proved; services find the
//! `hearth_types::identity::Identity` in the request's extensions, those mounted from outside too.

mod acme;
pub mod ca;
mod certificate;
mod clock;
mod devices;
mod dnssec;
mod door;
mod grpc;
mod metrics;
mod own_object;
mod peers;
pub mod resources;
mod seal;
mod server;
mod servers;
mod status_page;
mod tokens;

pub use acme::AcmeSettings;
pub use ca::CertificateAuthority;
pub use certificate::relay_tls;
pub use clock::SystemClock;
pub use dnssec::{Step as DnssecStep, ZoneSigning};
pub use door::{Begun, Incoming};
pub use grpc::{BackupSource, DeviceDoorConnector, Frozen, NoDevices, TunnelConnector};
pub use peers::{PeerChannels, PeerError, peer_name};
pub use resources::ResourceService;
pub use server::{ApiConfig, ApiServer, ApiServerBuilder, Doors, ServeError, server_name};
pub use status_page::status_host;
