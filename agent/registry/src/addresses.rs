//! Which addresses are connected to: looked up here, so that no name of a hostile registry leads into the home.

use std::error::Error;
use std::net::{IpAddr, SocketAddr};

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use crate::PullError;
use crate::config::Reach;

/// Looks names up, and keeps of their addresses those that may be connected to: the connection is made to an address that was checked, so an
/// answer that changes in between gains nothing.
#[derive(Debug)]
pub(crate) struct Addresses {
    reach: Reach,
}

/// A name has none but refused addresses.
#[derive(Debug, thiserror::Error)]
#[error("{host} is at {address}, which is not on the internet")]
struct Refused {
    host: String,
    address: IpAddr,
}

impl Addresses {
    pub(crate) fn new(reach: Reach) -> Self {
        Self { reach }
    }
}

impl Resolve for Addresses {
    fn resolve(&self, name: Name) -> Resolving {
        let (reach, host) = (self.reach.clone(), name.as_str().to_owned());
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((host.as_str(), 0)).await?.collect();
            let (open, refused): (Vec<_>, Vec<_>) =
                found.into_iter().partition(|address| reach.allows(&host, address.ip()));
            if let (true, Some(first)) = (open.is_empty(), refused.first()) {
                return Err(Refused { host, address: first.ip() }.into());
            }
            Ok(Box::new(open.into_iter()) as Addrs)
        })
    }
}

/// A URL may name an address itself, which nobody looks up.
pub(crate) fn check_literal(url: &Url, reach: &Reach) -> Result<(), PullError> {
    let Some(host) = url.host_str() else { return Ok(()) };
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    match bare.parse::<IpAddr>() {
        Ok(address) if !reach.allows(host, address) => Err(PullError::NotPublic { host: host.into(), address }),
        _ => Ok(()),
    }
}

/// Whether a request failed since all addresses were refused.
pub(crate) fn refusal(error: &(dyn Error + 'static)) -> Option<PullError> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(Refused { host, address }) = error.downcast_ref() {
            return Some(PullError::NotPublic { host: host.clone(), address: *address });
        }
        next = error.source();
    }
    None
}
