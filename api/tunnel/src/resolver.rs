//! How the hosts of relays become addresses: one that says its address ([`hearth_types::relay::host_at`]) needs nobody who knows it, so
//! that a relay at the gateway's port works where DNS does not know the zone, or is not reached.

use std::{
    iter,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    pin::Pin,
};

use hearth_types::relay::address_in;
use iroh::dns::{BoxIter, DNS_TIMEOUT, DnsError, DnsResolver, Resolver, TxtRecordData};

/// The host as it is to be dialled: its address, where it says that.
pub(crate) fn dialled(host: &str) -> String {
    address_in(host).map_or_else(|| host.to_owned(), |ip| ip.to_string())
}

/// Asks the system's resolver for what does not say its address.
#[derive(Debug)]
pub(crate) struct Hosts(DnsResolver);

impl Hosts {
    pub(crate) fn resolver() -> DnsResolver {
        DnsResolver::custom(Self::new())
    }

    fn new() -> Self {
        Self(DnsResolver::builder().with_system_defaults().build())
    }
}

type Lookup<T> = Pin<Box<dyn Future<Output = Result<BoxIter<T>, DnsError>> + Send>>;

impl Resolver for Hosts {
    fn lookup_ipv4(&self, host: String) -> Lookup<Ipv4Addr> {
        let inner = self.0.clone();
        Box::pin(async move {
            let found: BoxIter<Ipv4Addr> = match address_in(&host) {
                Some(IpAddr::V4(ip)) => Box::new(iter::once(ip)),
                Some(IpAddr::V6(_)) => Box::new(iter::empty()),
                None => {
                    let found = inner.lookup_ipv4(host, DNS_TIMEOUT).await?;
                    Box::new(found.filter_map(|ip| if let IpAddr::V4(ip) = ip { Some(ip) } else { None }))
                }
            };
            Ok(found)
        })
    }

    fn lookup_ipv6(&self, host: String) -> Lookup<Ipv6Addr> {
        let inner = self.0.clone();
        Box::pin(async move {
            let found: BoxIter<Ipv6Addr> = match address_in(&host) {
                Some(IpAddr::V6(ip)) => Box::new(iter::once(ip)),
                Some(IpAddr::V4(_)) => Box::new(iter::empty()),
                None => {
                    let found = inner.lookup_ipv6(host, DNS_TIMEOUT).await?;
                    Box::new(found.filter_map(|ip| if let IpAddr::V6(ip) = ip { Some(ip) } else { None }))
                }
            };
            Ok(found)
        })
    }

    fn lookup_txt(&self, host: String) -> Lookup<TxtRecordData> {
        let inner = self.0.clone();
        Box::pin(async move {
            let found: BoxIter<TxtRecordData> =
                Box::new(inner.lookup_txt(host, DNS_TIMEOUT).await?.collect::<Vec<_>>().into_iter());
            Ok(found)
        })
    }

    fn clear_cache(&self) {
        self.0.clear_cache();
    }

    fn reset(&self) -> Box<dyn Resolver> {
        Box::new(Self::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_host_that_says_its_address_is_asked_of_nobody() {
        let resolver = Hosts::resolver();
        let host = "198-51-100-7.relay.api.example.test";
        let found: Vec<_> = resolver.lookup_ipv4(host, DNS_TIMEOUT).await.expect("known").collect();
        assert_eq!(found, [IpAddr::from([198, 51, 100, 7])]);
        assert_eq!(resolver.lookup_ipv6(host, DNS_TIMEOUT).await.expect("known").count(), 0);
        let host = "2001-db8-0-0-0-0-0-1.relay.api.example.test";
        let found: Vec<_> = resolver.lookup_ipv6(host, DNS_TIMEOUT).await.expect("known").collect();
        assert_eq!(found, ["2001:db8::1".parse::<IpAddr>().expect("an address")]);
        assert_eq!((dialled(host), dialled("192.0.2.1")), ("2001:db8::1".to_owned(), "192.0.2.1".to_owned()));
    }
}
