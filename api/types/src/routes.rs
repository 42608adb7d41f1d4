//! What DNS and gateway need to know of the Routes: a lookup by hostname, and nothing of the store.

use std::sync::Arc;

use crate::DeviceName;

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

    /// Whether some route's hostname lies below this name, so that the name exists without having
    /// addresses (an empty non-terminal, RFC 8020).
    fn has_names_below(&self, name: &str) -> bool;

    /// Whether the routes are known. Before, a name that is not found may exist all the same: nobody may be told that it does not.
    fn primed(&self) -> bool {
        true
    }

    /// A number that rises with every change, for the serial of the zone's SOA.
    fn serial(&self) -> u32;
}
