//! The relays that an end of tunnels may use, and by what it knows them.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
};

use hearth_types::relay::{MAX_RELAYS, Relay, RelayAccess};
use iroh::{Endpoint, RelayConfig, RelayMap, RelayUrl, tls::CaTlsConfig};
use rustls::{
    DigitallySignedStruct, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, ServerName, UnixTime},
};

/// What an end of tunnels is told of relays.
#[derive(Clone)]
pub struct RelaySet {
    /// Which there are, and the pass for them.
    pub access: RelayAccess,
    /// By what their certificates are verified. The name in a certificate is not that of the URL but the one that all relays of the
    /// region have.
    pub trust: Arc<dyn ServerCertVerifier>,
    /// That name: [`hearth_types::relay::server_name`].
    pub server_name: String,
}

impl fmt::Debug for RelaySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the pass.
        f.debug_struct("RelaySet").field("relays", &self.access.relays).finish_non_exhaustive()
    }
}

/// The relays as they are known now. Clones are one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Relays {
    known: Arc<Mutex<Known>>,
    trust: Arc<Trust>,
}

#[derive(Default)]
struct Known {
    relays: Vec<(RelayUrl, Relay)>,
    pass: String,
    /// Those that do not answer: not used while others do.
    dead: Vec<RelayUrl>,
}

impl fmt::Debug for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Known").field("relays", &self.relays).field("dead", &self.dead).finish_non_exhaustive()
    }
}

impl Relays {
    fn known(&self) -> MutexGuard<'_, Known> {
        // Every change is one step, so a poisoned table is a sound one.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what the region says in the place of what it said before.
    pub(crate) fn set(&self, set: RelaySet) {
        self.trust.set(set.trust, &set.server_name);
        let relays = set.access.relays.into_iter().take(MAX_RELAYS);
        let relays: Vec<_> = relays.filter_map(|relay| Some((relay.url.parse().ok()?, relay))).collect();
        let mut known = self.known();
        known.dead.retain(|url| relays.iter().any(|(one, _)| one == url));
        (known.relays, known.pass) = (relays, set.access.pass);
    }

    /// The relays of an endpoint that is about to be made.
    pub(crate) fn map(&self) -> RelayMap {
        self.known().usable().collect()
    }

    /// Brings an endpoint's relays to what is known now, without disturbing those that stay.
    pub(crate) async fn apply(&self, endpoint: &Endpoint, had: &[RelayUrl]) {
        let wanted: Vec<RelayConfig> = self.known().usable().collect();
        for url in had.iter().filter(|url| wanted.iter().all(|one| one.url != **url)) {
            endpoint.remove_relay(url).await;
        }
        for config in wanted {
            endpoint.insert_relay(config.url.clone(), Arc::new(config)).await;
        }
    }

    /// The URLs of all that are known.
    pub(crate) fn urls(&self) -> Vec<RelayUrl> {
        self.known().relays.iter().map(|(url, _)| url.clone()).collect()
    }

    /// Of what somebody names, those that the region told of.
    pub(crate) fn among(&self, named: &[String]) -> Vec<RelayUrl> {
        let known = self.known();
        let among = known.relays.iter().filter(|(_, relay)| named.contains(&relay.url));
        among.map(|(url, _)| url.clone()).collect()
    }

    /// A relay by its URL.
    pub(crate) fn get(&self, url: &RelayUrl) -> Option<Relay> {
        self.known().relays.iter().find(|(one, _)| one == url).map(|(_, relay)| relay.clone())
    }

    /// Those that are not known not to answer.
    pub(crate) fn alive(&self) -> Vec<Relay> {
        let known = self.known();
        known.relays.iter().filter(|(url, _)| !known.dead.contains(url)).map(|(_, relay)| relay.clone()).collect()
    }

    /// These do not answer. `true`: they are others than before.
    pub(crate) fn set_dead(&self, dead: Vec<RelayUrl>) -> bool {
        let mut known = self.known();
        let other = known.dead != dead;
        known.dead = dead;
        other
    }

    /// How an endpoint verifies its relays.
    pub(crate) fn tls(&self) -> CaTlsConfig {
        let trust = Arc::clone(&self.trust);
        CaTlsConfig::custom_server_cert_verifier(Arc::new(move |_| Ok(trust.clone())))
    }

    /// The same for the health check.
    pub(crate) fn verifier(&self) -> Arc<dyn ServerCertVerifier> {
        self.trust.clone()
    }
}

impl Known {
    fn usable(&self) -> impl Iterator<Item = RelayConfig> {
        // Where none answers it is rather this end that has no network.
        let all_dead = self.relays.iter().all(|(url, _)| self.dead.contains(url));
        let usable = self.relays.iter().filter(move |(url, _)| all_dead || !self.dead.contains(url));
        usable.map(|(url, relay)| {
            let mut config = RelayConfig::from(url.clone()).with_auth_token(self.pass.clone());
            match &mut config.quic {
                Some(quic) if relay.discovery_port != 0 => quic.port = relay.discovery_port,
                quic => *quic = None,
            }
            config
        })
    }
}

/// Verifies relays by what the region said last. Before it said anything no server is trusted; tunnels themselves are proven by raw keys.
#[derive(Debug, Default)]
struct Trust(RwLock<Option<(Arc<dyn ServerCertVerifier>, ServerName<'static>)>>);

impl Trust {
    fn set(&self, verifier: Arc<dyn ServerCertVerifier>, name: &str) {
        let now = ServerName::try_from(name.to_owned()).ok().map(|name| (verifier, name));
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = now;
    }

    fn now(&self) -> Result<(Arc<dyn ServerCertVerifier>, ServerName<'static>), Error> {
        let now = self.0.read().unwrap_or_else(PoisonError::into_inner).clone();
        now.ok_or_else(|| Error::General("no relays are known yet".to_owned()))
    }
}

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let (verifier, name) = self.now()?;
        verifier.verify_server_cert(end_entity, intermediates, &name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.now()?.0.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.now()?.0.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        // What this program's only provider can do; asked before anything is verified.
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
