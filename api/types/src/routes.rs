//! What DNS and gateway need to know of the Routes: a lookup by hostname, and nothing of the store.

use std::{fmt, net::IpAddr, sync::Arc};

use serde_json::Value;

use crate::{BoxFuture, DeviceName, dns::record::ZoneRecord, external::External};

/// What goes to a public port of a Route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// Connections.
    Tcp,
    /// Datagrams.
    Udp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// A public port at the gateways. The two transports have nothing to do with each other: `53/TCP` and `53/UDP` may be two Routes'.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicPort {
    /// What comes there.
    pub transport: Transport,
    /// Its number, from 1.
    pub number: u16,
}

impl fmt::Display for PublicPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.transport)
    }
}

/// What is known of a hostname.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteEntry {
    /// The hostname, in lower case, without a dot at the end.
    pub hostname: String,
    /// Whose it is: the namespace of the Route.
    pub owner: String,
    /// The public port, where the Route has one of its own (`spec.protocol` TCP or UDP); `None` for HTTPS, told apart by name.
    pub port: Option<PublicPort>,
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

    /// The device that alone answers at a hostname, where its owner lets public addresses of it be told. They are told only once that device was
    /// found there.
    fn external(&self, hostname: &str) -> Option<Arc<External>> {
        let _ = hostname;
        None
    }

    /// All devices whose owners let public addresses of them be told.
    fn externals(&self) -> Vec<Arc<External>> {
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

    /// The Routes that have a port of their own, by port, ascending: of those that want the same one, the first by [`PortClaim`].
    fn by_port(&self) -> Vec<Arc<RouteEntry>> {
        Vec::new()
    }

    /// Resolves when the [serial](Self::serial) is another than this one.
    fn changed(&self, _serial: u32) -> BoxFuture<'_, ()> {
        Box::pin(std::future::pending())
    }
}

/// What a Route says of a public port. Ordered: of those for one port the first has it, which is the oldest, then the first by
/// namespace and name. Everybody who looks at the same Routes comes to the same result.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortClaim {
    /// The port.
    pub port: PublicPort,
    /// The Route's creation (RFC 3339, UTC).
    created: String,
    /// The Route's namespace.
    pub namespace: String,
    /// The Route's name.
    pub name: String,
}

impl PortClaim {
    /// The claim of a Route; `None` where it wants no port, or is being deleted.
    pub fn of(route: &Value) -> Option<Self> {
        let text = |pointer: &str| route.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let transport = match text("/spec/protocol").as_str() {
            "TCP" => Transport::Tcp,
            "UDP" => Transport::Udp,
            _ => return None,
        };
        if !text("/metadata/deletionTimestamp").is_empty() {
            return None;
        }
        let number = route.pointer("/spec/port")?.as_u64().and_then(|port| u16::try_from(port).ok())?;
        Some(Self {
            port: PublicPort { transport, number },
            created: text("/metadata/creationTimestamp"),
            namespace: text("/metadata/namespace"),
            name: text("/metadata/name"),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn route(name: &str, created: &str, spec: &Value) -> Value {
        json!({"metadata": {"name": name, "namespace": "n", "creationTimestamp": created}, "spec": spec})
    }

    #[test]
    fn of_two_claims_for_a_port_the_older_is_first_and_then_the_name_decides() {
        let tcp = json!({"protocol": "TCP", "port": 2222});
        let claim = |name, created| PortClaim::of(&route(name, created, &tcp)).expect("a claim");
        let (old, new) = (claim("z", "2026-01-01T00:00:00Z"), claim("a", "2026-01-01T00:00:01Z"));
        assert!(old < new);
        assert!(claim("a", "2026-01-01T00:00:00Z") < old);
        let udp = PortClaim::of(&route("a", "2026-01-01T00:00:00Z", &json!({"protocol": "UDP", "port": 2222})))
            .expect("a claim");
        assert_eq!((udp.port.to_string().as_str(), udp.port == old.port), ("2222/UDP", false), "another port");
        for spec in [json!({"port": 2222}), json!({"protocol": "HTTPS"}), json!({"protocol": "TCP", "port": 65536})] {
            assert_eq!(PortClaim::of(&route("a", "", &spec)), None, "{spec}");
        }
        let mut going = route("a", "", &tcp);
        going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        assert_eq!(PortClaim::of(&going), None);
    }
}
