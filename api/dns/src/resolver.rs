//! Asks other name servers, for what is not the zone's: owners' domains.

use std::{net::SocketAddr, time::Duration};

use hearth_types::{
    BoxFuture,
    domains::{DomainLookup, Found, challenge_name},
};
use n0_dns_resolver::{DnsProtocol, DnsResolver, Error, Nameserver};
use tokio::time::timeout;

/// How long one question may take: some servers on the way, asked twice.
const PATIENCE: Duration = Duration::from_secs(10);
/// Texts and addresses of one domain that are looked at.
const MAX_RECORDS: usize = 64;

/// A stub resolver: it believes the one that it asks, which is the operator's.
#[derive(Debug)]
pub struct Resolver {
    inner: DnsResolver,
}

impl Resolver {
    /// One that asks there, or without an address those that the system does.
    pub fn new(server: Option<SocketAddr>) -> Self {
        let builder = DnsResolver::builder();
        let builder = match server {
            Some(address) => builder.nameserver(Nameserver::new(address, DnsProtocol::Udp)),
            None => builder.use_system_config(),
        };
        Self { inner: builder.build() }
    }
}

impl DomainLookup for Resolver {
    fn look<'a>(&'a self, hostname: &'a str) -> BoxFuture<'a, Result<Found, String>> {
        Box::pin(async move {
            // With the dot, no search domain of the system is tried.
            let (name, challenge) = (format!("{hostname}."), format!("{}.", challenge_name(hostname)));
            let texts = ask(self.inner.lookup_txt(challenge)).await?;
            let texts = texts.into_iter().take(MAX_RECORDS).map(|record| {
                let bytes: Vec<u8> = record.iter().flatten().copied().collect();
                String::from_utf8_lossy(&bytes).into_owned()
            });
            let four = ask(self.inner.lookup_ipv4(name.clone())).await?;
            let six = ask(self.inner.lookup_ipv6(name)).await?;
            let addresses = four.into_iter().map(Into::into).chain(six.into_iter().map(Into::into));
            Ok(Found { texts: texts.collect(), addresses: addresses.take(MAX_RECORDS).collect() })
        })
    }
}

/// The records; none where the name does not exist.
async fn ask<T>(question: impl Future<Output = Result<Vec<T>, Error>>) -> Result<Vec<T>, String> {
    match timeout(PATIENCE, question).await {
        Ok(Ok(records)) => Ok(records),
        Ok(Err(Error::NxDomain { .. })) => Ok(Vec::new()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}
