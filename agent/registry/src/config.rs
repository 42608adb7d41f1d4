//! What a puller is told: hosts to trust, mirrors, and bounds.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::error::clip;

/// The key of the mirrors for registries that have none of their own.
pub(crate) const ANY_HOST: &str = "*";

/// Where and how to pull.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// Hosts (`host` or `host:port`, as image names have them) that are spoken to in plain HTTP. Everybody else is asked over HTTPS, also
    /// `localhost`.
    pub insecure: BTreeSet<String>,
    /// By host of a registry (`docker.io` for Docker Hub; `*` for those that are not named): the hosts to ask before it, in order. A path after
    /// a mirror's host goes before the repository there.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// The registries that images may be named from; `None` allows all. Mirrors need not be among them.
    pub allow: Option<BTreeSet<String>>,
    /// Which addresses may be connected to.
    pub reach: Reach,
    /// Certificate authorities to trust besides those of the machine: PEM, any number of certificates in each.
    pub extra_roots: Vec<Vec<u8>>,
    /// Bounds.
    pub limits: PullLimits,
}

/// Which addresses a puller may connect to: whoever names an image, and every registry by a redirect, could otherwise have the device knock at
/// the doors of its own home.
#[derive(Clone, Default)]
pub struct Reach {
    /// Whether an address is open to everybody; `None` where all are.
    pub is_public: Option<Arc<dyn Fn(IpAddr) -> bool + Send + Sync>>,
    /// Hosts, without a port, that may have any address.
    pub local: BTreeSet<String>,
}

impl Reach {
    pub(crate) fn allows(&self, host: &str, address: IpAddr) -> bool {
        // An IPv4 address in the clothes of IPv6 is the same place.
        let address = address.to_canonical();
        self.local.contains(host) || self.is_public.as_ref().is_none_or(|is_public| is_public(address))
    }
}

impl fmt::Debug for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reach").field("local", &self.local).finish_non_exhaustive()
    }
}

/// Bounds on what registries can make a device do, and on how long it waits for them.
#[derive(Debug, Clone)]
pub struct PullLimits {
    /// Layers of one image that are downloaded at a time.
    pub parallel_layers: usize,
    /// Bytes of all blobs of an image.
    pub image_bytes: u64,
    /// Bytes that stay free on the disk.
    pub spare_bytes: u64,
    /// Time to connect, with TLS.
    pub connect: Duration,
    /// Time from a request to the headers of its answer.
    pub headers: Duration,
    /// Time between two pieces of an answer.
    pub idle: Duration,
    /// Bytes a second, on the average of `slow_window`, below which an answer is given up and tried again.
    pub slow_bytes_per_second: u64,
    /// How long an answer may be too slow.
    pub slow_window: Duration,
    /// Tries of one request in a row without progress, at the registry itself. A mirror has one.
    pub tries: u32,
    /// The wait after the first failure; it doubles with each further one.
    pub backoff: Duration,
    /// The longest wait after a failure.
    pub max_backoff: Duration,
    /// The longest wait that a registry's `Retry-After` is obeyed for: where it asks for more, the pull ends and says so.
    pub max_retry_after: Duration,
}

impl Default for PullLimits {
    /// For slow lines of homes: nothing is given up that moves at 1 KiB/s.
    fn default() -> Self {
        Self {
            parallel_layers: 3,
            image_bytes: 32 * 1024 * 1024 * 1024,
            spare_bytes: 64 * 1024 * 1024,
            connect: Duration::from_secs(15),
            headers: Duration::from_secs(30),
            idle: Duration::from_secs(60),
            slow_bytes_per_second: 1024,
            slow_window: Duration::from_secs(60),
            tries: 5,
            backoff: Duration::from_millis(500),
            max_backoff: Duration::from_secs(15),
            max_retry_after: Duration::from_secs(60),
        }
    }
}

impl Config {
    /// Refuses hosts that would be taken for something else.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let mirrors = self.mirrors.values().flatten().map(|mirror| mirror.split('/').next().unwrap_or_default());
        let named = self.mirrors.keys().filter(|host| *host != ANY_HOST);
        let allowed = self.allow.iter().flatten();
        let mut hosts = self.insecure.iter().chain(named).chain(allowed).map(String::as_str).chain(mirrors);
        hosts.find(|host| !is_host(host)).map_or(Ok(()), |host| Err(ConfigError::Host(clip(host))))
    }
}

fn is_host(host: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte);
    let url = reqwest::Url::parse(&format!("https://{host}/"));
    host.bytes().all(plain) && !host.ends_with(':') && url.is_ok_and(|url| url.has_host())
}

/// Why a puller cannot be made of a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Extra roots are no certificates.
    #[error("the extra CA certificates (number {number}) cannot be read: {reason}")]
    Roots {
        /// Which of them, from 1.
        number: usize,
        /// What is wrong.
        reason: String,
    },
    /// A host is not written as image names have it.
    #[error("{0:?} is not a host: write host or host:port, without https://")]
    Host(String),
    /// The HTTP client cannot be made.
    #[error("cannot make the HTTP client")]
    Client(#[source] Box<dyn std::error::Error + Send + Sync>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_written_as_image_names_have_them() {
        let config = |insecure: &str, mirror: &str| Config {
            insecure: [insecure.into()].into(),
            mirrors: [("docker.io".into(), vec![mirror.into()])].into(),
            ..Config::default()
        };
        for good in ["example.com", "registry", "localhost:5000", "127.0.0.1:5000", "[::1]:5000"] {
            assert!(config(good, good).check().is_ok(), "{good}");
        }
        assert!(config("localhost", "cache.example:5000/hub/").check().is_ok());
        for bad in ["", "https://example.com", "http:", "me@example.com", "example.com:port", "a b", "example.com?x"] {
            assert!(matches!(config(bad, "x").check(), Err(ConfigError::Host(_))), "{bad}");
            assert!(matches!(config("x", bad).check(), Err(ConfigError::Host(_))), "{bad}");
        }
    }
}
