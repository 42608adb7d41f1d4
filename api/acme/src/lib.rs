//! Certificates of a public authority by ACME (RFC 8555), proved by DNS through the region's own name servers (DNS-01).
//!
//! The server that leads orders, one order at a time, with the region's one account: so one place keeps the authority's limits, and no
//! device knows a secret of the account's. A device makes its key and a request for it (PKCS #10), which its session puts into its
//! Certificate object; the result is put there too, and comes back through the session. What is in use stays in use until the next one is
//! there.
//!
//! | module | what it answers |
//! |---|---|
//! | [`pace`] | when an order may be made, and how long to wait after one that failed; pure |
//! | `status` | what a Certificate's status says after each step; pure |
//! | `facts` | what certificates and requests hold |
//! | `http` | one request to an authority, bounded in time and bytes |
//! | `account` | the region's account |
//! | `order` | one order, from its making to the certificate |
//! | `run` | what is to be done next |
//! | `metrics` | what is counted |
//! | `ct` | which certificates of the zone's names nobody here asked for |

mod account;
mod ct;
mod facts;
mod http;
mod metrics;
mod order;
pub mod pace;
mod run;
mod status;

use std::sync::Arc;

use hearth_types::{
    Clock,
    acme::{EventSink, Vault},
    group::Group,
    routes::RouteLookup,
    store::Store,
};

pub use run::Acme;

/// What orders are made with.
#[derive(Clone)]
pub struct AcmeConfig {
    /// The zone.
    pub zone: String,
    /// The region's store.
    pub store: Arc<dyn Store>,
    /// The region's servers: this one orders only while it leads.
    pub group: Arc<dyn Group>,
    /// Wall-clock time.
    pub clock: Arc<dyn Clock>,
    /// Opens and seals the account's secrets.
    pub vault: Arc<dyn Vault>,
    /// What this server's DNS answers with.
    pub routes: Arc<dyn RouteLookup>,
    /// Where people are told.
    pub events: Arc<dyn EventSink>,
}
