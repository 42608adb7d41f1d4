//! Certificates of this server that renew themselves: looked at whenever one is shown, so that a connection always gets a fresh one.

use std::{
    ops::Range,
    sync::{Arc, PoisonError, RwLock},
};

use hearth_types::{Clock, Timestamp, relay};
use rustls::{
    ServerConfig, SignatureScheme,
    client::ResolvesClientCert,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use crate::ca::{CaError, CertificateAuthority, Issued};

/// The part of a certificate's life that is left when it is renewed: one in this many.
const RENEW_AT: i64 = 3;

struct Current {
    key: Arc<CertifiedKey>,
    /// When it need not be renewed. A clock that jumps out of that, either way, gets a new one.
    fresh: Range<Timestamp>,
    generation: u64,
}

/// A certificate with its key. Connections that are there keep the one that they were made with.
pub(crate) struct Renewed {
    what: &'static str,
    clock: Arc<dyn Clock>,
    issue: Box<dyn Fn() -> Result<Issued, CaError> + Send + Sync>,
    current: RwLock<Current>,
}

impl std::fmt::Debug for Renewed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Renewed").field("what", &self.what).finish_non_exhaustive()
    }
}

impl Renewed {
    /// Issues the first one. `what` it is for is for the log.
    pub(crate) fn new(
        what: &'static str,
        clock: Arc<dyn Clock>,
        issue: impl Fn() -> Result<Issued, CaError> + Send + Sync + 'static,
    ) -> Result<Self, CaError> {
        let current = RwLock::new(first(&issue)?);
        Ok(Self { what, clock, issue: Box::new(issue), current })
    }

    /// The certificate to show now, and which one it is. One that cannot be renewed is shown for as long as that lasts.
    pub(crate) fn current(&self) -> (Arc<CertifiedKey>, u64) {
        let now = self.clock.now();
        {
            let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
            if current.fresh.contains(&now) {
                return (current.key.clone(), current.generation);
            }
        }
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        // Another one may have been faster.
        if !current.fresh.contains(&now) {
            match first(&*self.issue) {
                Ok(new) => {
                    *current = Current { generation: current.generation + 1, ..new };
                    tracing::info!("the server's {} certificate was renewed", self.what);
                }
                Err(error) => tracing::error!(%error, "the server's {} certificate cannot be renewed", self.what),
            }
        }
        (current.key.clone(), current.generation)
    }
}

fn first(issue: &dyn Fn() -> Result<Issued, CaError>) -> Result<Current, CaError> {
    let issued = issue()?;
    let key = rustls::crypto::ring::sign::any_supported_type(&issued.key)
        .map_err(|error| CaError::Request(error.to_string()))?;
    let life = issued.not_after.0 - issued.not_before.0;
    let fresh = issued.not_before..Timestamp(issued.not_after.0 - life / RENEW_AT);
    Ok(Current { key: Arc::new(CertifiedKey::new(issued.chain, key)), fresh, generation: 0 })
}

impl ResolvesServerCert for Renewed {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current().0)
    }
}

impl ResolvesClientCert for Renewed {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.current().0)
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// What a relay of the region serves TLS with: a certificate for the name of relays, which is none of the region's API.
pub fn relay_tls(ca: &Arc<CertificateAuthority>, clock: Arc<dyn Clock>) -> Result<Arc<ServerConfig>, CaError> {
    let (ca, names) = (Arc::clone(ca), [relay::server_name(ca.zone())]);
    let certificate = Renewed::new("relay's", clock, move || ca.issue_server(&names))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| CaError::Request(error.to_string()))?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(certificate));
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::*;
    use crate::SystemClock;

    struct Hand(AtomicI64);

    impl Clock for Hand {
        fn now(&self) -> Timestamp {
            Timestamp(self.0.load(Ordering::SeqCst))
        }
    }

    #[test]
    fn a_certificate_is_renewed_in_time_and_when_the_clock_jumps() {
        let directory = tempfile::tempdir().expect("a directory");
        let clock = Arc::new(Hand(AtomicI64::new(SystemClock.now().0)));
        let ca = CertificateAuthority::load_or_create(directory.path(), "hearth.internal", clock.clone());
        let ca = ca.expect("a CA");
        let renewed = Renewed::new("serving", clock.clone(), move || ca.issue_server(&["api.hearth.internal".into()]));
        let renewed = renewed.expect("a certificate");
        let day = 86_400_000;
        for (days, changed) in [(0, false), (50, false), (20, true), (0, false), (-30, true)] {
            let (before, old) = renewed.current.read().map(|now| (now.key.clone(), now.generation)).expect("no panic");
            clock.0.fetch_add(days * day, Ordering::SeqCst);
            let (after, new) = renewed.current();
            assert_eq!((after.cert[0] != before.cert[0], new != old), (changed, changed), "after {days} days");
        }
    }
}
