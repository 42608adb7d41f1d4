//! What DNS and gateway need to know of the Routes: a lookup by hostname, and nothing of the store.

use std::{net::IpAddr, sync::Arc};

use crate::{DeviceName, dns::record::ZoneRecord};

/// What is known of a hostname.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteEntry {
    /// The hostname, in lower case, without a dot at the end.
    pub hostname: String,
    /// The devices behind it, in the order to try them: those with ready pods first.
    pub devices: Vec<DeviceName>,
}

/// The routes as they are now. Lookups are in memory and never wait.
pub trait RouteLookup: Send + Sync + 'static {
    /// The route of a hostname (lower case, no dot at the end).
    fn lookup(&self, hostname: &str) -> Option<Arc<RouteEntry>>;

    /// The records that owners set at a name (lower case, no dot at the end; its first label may be `*`). They are beside what a route
    /// of the same hostname gives.
    fn records(&self, name: &str) -> Arc<[ZoneRecord]> {
        let _ = name;
        Arc::from([])
    }

    /// The addresses inside the home's network of what answers at a hostname, where its owner lets them be told. They are told only under
    /// `*.lan.<owner>.<zone>`, whoever gives them.
    fn lan_addresses(&self, hostname: &str) -> Vec<IpAddr> {
        let _ = hostname;
        Vec::new()
    }

    /// Whether some route's hostname, or a name with records, lies below this name, so that the name exists without having
    /// addresses (an empty non-terminal, RFC 8020).
    fn has_names_below(&self, name: &str) -> bool;

    /// Whether the routes are known. Before, a name that is not found may exist all the same: nobody may be told that it does not.
    fn primed(&self) -> bool {
        true
    }

    /// A number that rises with every change, for the serial of the zone's SOA.
    fn serial(&self) -> u32;
}
