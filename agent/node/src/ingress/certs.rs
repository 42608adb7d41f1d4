//! The keys and certificates of the names that this device serves: P-256 keys made here, certificates asked for through
//! the session and renewed when two thirds of their life are over. All of it is on the disk, so that names are served
//! without a region in reach.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hearth_proto::v1;
use hearth_types::Timestamp;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::{
    crypto::ring::sign::any_ecdsa_type,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::sync::watch;
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

use super::public::Public;
use crate::{
    desired::Objects,
    files::{self, FileError},
};

/// The longest chain that is taken, in bytes of PEM and in certificates.
const MAX_CHAIN_BYTES: usize = 64 << 10;
const MAX_CHAIN: usize = 8;
/// After how long a request that was not answered, or refused, is made again, in milliseconds.
pub(super) const RETRY_MILLIS: i64 = 30_000;
/// Requests on their way at once.
const MAX_IN_FLIGHT: usize = 16;

/// Why a chain is not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChainError {
    #[error("the region's answer is no certificate chain: {0}")]
    Malformed(String),
    #[error("the region's certificate is for another key than the one made here")]
    OtherKey,
    #[error("the region's certificate is not for {0}")]
    OtherName(String),
    #[error(transparent)]
    File(#[from] FileError),
}

#[derive(Debug, Default)]
struct Host {
    key: Option<KeyPair>,
    certificate: Option<Arc<CertifiedKey>>,
    /// When to ask for the next one.
    renew_at: Timestamp,
    expires_at: Timestamp,
    /// The request on its way, and when it was made.
    asked: Option<(u64, Timestamp)>,
    not_before_retry: Timestamp,
}

#[derive(Debug)]
struct State {
    hosts: BTreeMap<String, Host>,
    /// Those of a public authority.
    public: Public,
    next_id: u64,
}

/// A handle on keys and certificates; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Certificates {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    state: Mutex<State>,
    changes: watch::Sender<u64>,
}

impl Certificates {
    pub(crate) fn open(dir: PathBuf) -> Result<Self, FileError> {
        files::private_dir(&dir)?;
        let public = Public::open(dir.join("public"))?;
        let state = Mutex::new(State { hosts: BTreeMap::new(), public, next_id: 0 });
        let inner = Inner { dir, state, changes: watch::channel(0).0 };
        Ok(Self { inner: Arc::new(inner) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.inner.changes.send_modify(|count| *count += 1);
    }

    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    /// These names are served now: what is on the disk of them is loaded, and what is on the disk of names that went is
    /// removed. Reads some small files.
    pub(crate) fn serve(&self, names: BTreeSet<String>) {
        let mut state = self.state();
        let gone: Vec<String> = state.hosts.keys().filter(|name| !names.contains(*name)).cloned().collect();
        for name in gone {
            state.hosts.remove(&name);
            for path in [self.key_path(&name), self.chain_path(&name)] {
                if let Err(error) = files::remove(&path) {
                    tracing::warn!(error = files::chain(&error), "a key that is no longer used cannot be removed");
                }
            }
        }
        let mut new = false;
        for name in names {
            if let Entry::Vacant(vacant) = state.hosts.entry(name) {
                let host = self.load(vacant.key());
                vacant.insert(host);
                new = true;
            }
        }
        drop(state);
        if new {
            self.changed();
        }
    }

    /// The objects of this device are these now: Certificates among them are followed. Reads and writes small files.
    pub(crate) fn follow(&self, objects: &Objects) {
        let mut state = self.state();
        let before = state.public.wants();
        let came = state.public.follow(objects);
        let other = state.public.wants() != before;
        drop(state);
        // One may want to be asked for, or at another time.
        if came || other {
            self.changed();
        }
    }

    fn key_path(&self, name: &str) -> PathBuf {
        self.inner.dir.join(format!("{name}.key"))
    }

    fn chain_path(&self, name: &str) -> PathBuf {
        self.inner.dir.join(format!("{name}.pem"))
    }

    fn load(&self, name: &str) -> Host {
        let mut host = Host::default();
        let Some(pem) = read(&self.key_path(name)) else { return host };
        let Ok(key) = KeyPair::from_pem(&pem) else {
            tracing::warn!(name, "a key on this device's disk is damaged: another is made");
            return host;
        };
        if let Some(chain) = read(&self.chain_path(name)) {
            match certified_for(name, &key, chain.as_bytes()) {
                Ok((certificate, life)) => host.take(certificate, life),
                Err(error) => tracing::warn!(name, %error, "a certificate on this device's disk is of no use"),
            }
        }
        host.key = Some(key);
        host
    }

    /// The certificate of a name, and whether the name is served at all. A valid one of a public authority comes first.
    pub(crate) fn get(&self, name: &str) -> (bool, Option<Arc<CertifiedKey>>) {
        let state = self.state();
        match state.hosts.get(name) {
            Some(host) => (true, state.public.get(name).or_else(|| host.certificate.clone())),
            None => (false, None),
        }
    }

    /// A session begins: what was asked before will not be answered.
    pub(crate) fn begin_session(&self) {
        let mut state = self.state();
        for host in state.hosts.values_mut() {
            host.asked = None;
            host.not_before_retry = Timestamp(0);
        }
        state.public.begin_session();
    }

    /// The region has this CA since it was recovered: certificates of the one before are to be replaced, and serve until then.
    pub(crate) fn renew_those_of_others(&self, ca_pem: &[u8]) {
        let Some(ca) = CertificateDer::from_pem_slice(ca_pem).ok().and_then(|ca| key_ids(&ca).0) else { return };
        for host in self.state().hosts.values_mut() {
            let leaf = host.certificate.as_ref().and_then(|certificate| certificate.cert.first());
            if leaf.is_some_and(|leaf| key_ids(leaf).1.is_none_or(|issuer| issuer != ca)) {
                host.renew_at = Timestamp(0);
            }
        }
    }

    /// What to ask the region for now. Makes keys where there are none; a write each. Blocks.
    pub(crate) fn requests(&self, now: Timestamp) -> Vec<v1::CertificateRequest> {
        let mut state = self.state();
        let mut in_flight = state.hosts.values().filter(|host| host.asked.is_some()).count();
        let State { hosts, public, next_id } = &mut *state;
        let mut requests = public.requests(now, next_id);
        for (name, host) in hosts.iter_mut() {
            if in_flight >= MAX_IN_FLIGHT || !host.is_due(now) {
                continue;
            }
            match self.request(name, host) {
                Ok(csr_der) => {
                    *next_id += 1;
                    host.asked = Some((*next_id, now));
                    in_flight += 1;
                    requests.push(v1::CertificateRequest {
                        id: *next_id,
                        csr_der: csr_der.into(),
                        names: vec![name.clone()],
                        certificate: String::new(),
                    });
                }
                Err(error) => {
                    host.not_before_retry = Timestamp(now.0 + RETRY_MILLIS);
                    tracing::error!(name, error, "no certificate can be asked for");
                }
            }
        }
        requests
    }

    /// How long until a certificate of a public authority is to be renewed, if one has yet to be.
    pub(crate) fn next_renewal(&self, now: Timestamp) -> Option<Duration> {
        self.state().public.next_renewal(now)
    }

    fn request(&self, name: &str, host: &mut Host) -> Result<Vec<u8>, String> {
        if host.key.is_none() {
            let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|error| error.to_string())?;
            let written = files::replace(&self.key_path(name), key.serialize_pem().as_bytes(), true);
            written.map_err(|error| files::chain(&error))?;
            host.key = Some(key);
        }
        let key = host.key.as_ref().ok_or("no key")?;
        let mut params = CertificateParams::new(vec![name.to_owned()]).map_err(|error| error.to_string())?;
        params.distinguished_name = DistinguishedName::new();
        let csr = params.serialize_request(key).map_err(|error| error.to_string())?;
        Ok(csr.der().to_vec())
    }

    /// The region's answer to a request. Blocks.
    pub(crate) fn answer(&self, answer: &v1::Certificate, now: Timestamp) {
        let mut state = self.state();
        if state.public.answer(answer.id, crate::reporter::clip(&answer.error, 512), now) {
            return;
        }
        let asked = |host: &Host| host.asked.is_some_and(|(id, _)| id == answer.id);
        let Some((name, host)) = state.hosts.iter_mut().find(|(_, host)| asked(host)) else { return };
        host.asked = None;
        let taken = if answer.error.is_empty() {
            self.take(name, host, &answer.chain_pem).map_err(|error| error.to_string())
        } else {
            Err(format!("the region refuses: {}", crate::reporter::clip(&answer.error, 512)))
        };
        match taken {
            Ok(()) => tracing::info!(name, expires = %host.expires_at, "certificate received"),
            Err(error) => {
                host.not_before_retry = Timestamp(now.0 + RETRY_MILLIS);
                tracing::warn!(name, error, "no certificate; asking again later");
            }
        }
        drop(state);
        self.changed();
    }

    fn take(&self, name: &str, host: &mut Host, chain: &[u8]) -> Result<(), ChainError> {
        let key = host.key.as_ref().ok_or(ChainError::OtherKey)?;
        let (certificate, life) = certified_for(name, key, chain)?;
        files::replace(&self.chain_path(name), chain, true)?;
        host.take(certificate, life);
        Ok(())
    }
}

fn read(path: &Path) -> Option<String> {
    match files::read_bounded(path, MAX_CHAIN_BYTES as u64) {
        Ok(bytes) => bytes.and_then(|bytes| String::from_utf8(bytes).ok()),
        Err(error) => {
            tracing::warn!(error = files::chain(&error), "a key or certificate cannot be read");
            None
        }
    }
}

impl Host {
    fn take(&mut self, certificate: Arc<CertifiedKey>, (begins, ends): (Timestamp, Timestamp)) {
        self.certificate = Some(certificate);
        self.renew_at = two_thirds((begins, ends));
        self.expires_at = ends;
    }

    fn is_due(&self, now: Timestamp) -> bool {
        let waits = self.asked.is_some_and(|(_, at)| now.0 - at.0 < RETRY_MILLIS) || now < self.not_before_retry;
        if waits {
            return false;
        }
        // Without a clock, nobody knows whether a certificate is old.
        self.certificate.is_none() || (crate::identity::is_clock_set(now) && now >= self.renew_at)
    }
}

/// The identifiers of a certificate's own key and of its issuer's (RFC 5280 sections 4.2.1.1 and 4.2.1.2).
fn key_ids(certificate: &CertificateDer<'_>) -> (Option<Vec<u8>>, Option<Vec<u8>>) {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return (None, None) };
    let (mut own, mut issuer) = (None, None);
    for extension in parsed.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => own = Some(id.0.to_vec()),
            ParsedExtension::AuthorityKeyIdentifier(id) => {
                issuer = id.key_identifier.as_ref().map(|id| id.0.to_vec());
            }
            _ => {}
        }
    }
    (own, issuer)
}

/// When a certificate begins and ends to be valid.
pub(super) type Life = (Timestamp, Timestamp);

/// When two thirds of a life are over.
pub(super) fn two_thirds((begins, ends): Life) -> Timestamp {
    Timestamp(begins.0 + (ends.0 - begins.0) / 3 * 2)
}

/// The first certificate of a chain, as DER.
pub(super) fn leaf(chain: &[u8]) -> Option<Vec<u8>> {
    Some(CertificateDer::pem_slice_iter(chain).next()?.ok()?.to_vec())
}

/// A key with its chain, checked: the leaf is for this key and this name.
fn certified_for(name: &str, key: &KeyPair, chain: &[u8]) -> Result<(Arc<CertifiedKey>, Life), ChainError> {
    let (certificate, names, life) = certified(key, chain)?;
    if !names.contains(name) {
        return Err(ChainError::OtherName(name.to_owned()));
    }
    Ok((certificate, life))
}

/// A key with its chain, checked: the leaf is for this key. Its names are in lower case.
pub(super) fn certified(
    key: &KeyPair,
    chain: &[u8],
) -> Result<(Arc<CertifiedKey>, BTreeSet<String>, Life), ChainError> {
    let malformed = |error: &dyn std::fmt::Display| ChainError::Malformed(error.to_string());
    if chain.len() > MAX_CHAIN_BYTES {
        return Err(ChainError::Malformed(format!("it has {} bytes", chain.len())));
    }
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain)
        .take(MAX_CHAIN + 1)
        .collect::<Result<_, _>>()
        .map_err(|error| malformed(&error))?;
    let leaf = chain.first().filter(|_| chain.len() <= MAX_CHAIN);
    let leaf = leaf.ok_or_else(|| ChainError::Malformed(format!("it has {} certificates", chain.len())))?;
    let (_, parsed) = X509Certificate::from_der(leaf).map_err(|error| malformed(&error))?;
    let mut names = BTreeSet::new();
    for extension in parsed.extensions() {
        if let ParsedExtension::SubjectAlternativeName(all) = extension.parsed_extension() {
            names.extend(all.general_names.iter().filter_map(|one| match one {
                GeneralName::DNSName(dns) => Some(dns.to_ascii_lowercase()),
                _ => None,
            }));
        }
    }
    let validity = parsed.validity();
    let life = [validity.not_before, validity.not_after].map(|time| Timestamp(time.timestamp().saturating_mul(1000)));
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let signer = any_ecdsa_type(&der).map_err(|error| malformed(&error))?;
    let certified = CertifiedKey::new(chain, signer);
    certified.keys_match().map_err(|_| ChainError::OtherKey)?;
    Ok((Arc::new(certified), names, (life[0], life[1])))
}

impl ResolvesServerCert for Certificates {
    /// No certificate ends the handshake with an alert: a name that is not served is refused.
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.get(&hello.server_name()?.to_ascii_lowercase()).1
    }
}

#[cfg(test)]
pub(super) mod tests {
    use rcgen::{BasicConstraints, CertificateSigningRequestParams, IsCa, Issuer};

    use super::*;

    /// A CA as a region has one.
    pub(in super::super) struct Ca {
        issuer: Issuer<'static, KeyPair>,
        pub(in super::super) der: CertificateDer<'static>,
    }

    impl Ca {
        pub(in super::super) fn new() -> Self {
            let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let der = params.self_signed(&key).expect("a certificate").der().clone();
            Self { issuer: Issuer::new(params, key), der }
        }

        pub(in super::super) fn sign(&self, request: &v1::CertificateRequest, names: &[&str]) -> v1::Certificate {
            let csr = request.csr_der.to_vec().into();
            let mut csr = CertificateSigningRequestParams::from_der(&csr).expect("a request");
            let names = names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
            csr.params.subject_alt_names = CertificateParams::new(names).expect("names").subject_alt_names;
            let chain_pem = csr.signed_by(&self.issuer).expect("signed").pem();
            v1::Certificate { id: request.id, chain_pem: chain_pem.into_bytes().into(), error: String::new() }
        }
    }

    fn names(list: &[&str]) -> BTreeSet<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    const NOW: Timestamp = Timestamp(1_800_000_000_000);

    #[test]
    fn a_certificate_is_asked_for_once_and_kept() {
        let dir = tempfile::tempdir().expect("a directory");
        let ca = Ca::new();
        let certs = Certificates::open(dir.path().to_owned()).expect("opened");
        certs.serve(names(&["a.alice.test"]));
        assert!(matches!(certs.get("a.alice.test"), (true, None)));
        let requests = certs.requests(NOW);
        assert_eq!(requests.len(), 1);
        assert!(certs.requests(NOW).is_empty(), "one request at a time");
        certs.answer(&ca.sign(&requests[0], &["a.alice.test"]), NOW);
        let (_, first) = certs.get("a.alice.test");
        assert!(first.is_some());
        // Another agent finds key and chain on the disk.
        let again = Certificates::open(dir.path().to_owned()).expect("opened");
        again.serve(names(&["a.alice.test"]));
        let (_, second) = again.get("a.alice.test");
        assert_eq!(second.expect("loaded").cert, first.expect("there").cert);
        assert!(again.requests(NOW).is_empty());
        // A name that goes takes its key along.
        again.serve(names(&[]));
        assert!(matches!(again.get("a.alice.test"), (false, None)));
        assert_eq!(std::fs::read_dir(dir.path()).expect("listed").count(), 1, "the folder of public ones alone");
    }

    #[test]
    fn what_the_region_must_not_answer_is_not_taken() {
        let dir = tempfile::tempdir().expect("a directory");
        let ca = Ca::new();
        let certs = Certificates::open(dir.path().to_owned()).expect("opened");
        certs.serve(names(&["a.test", "b.test"]));
        let requests = certs.requests(NOW);
        certs.answer(&ca.sign(&requests[0], &["evil.test"]), NOW);
        assert!(matches!(certs.get("a.test"), (true, None)), "another name");
        let swapped = v1::Certificate { id: requests[1].id, ..ca.sign(&requests[0], &["b.test"]) };
        certs.answer(&swapped, NOW);
        assert!(matches!(certs.get("b.test"), (true, None)), "another key");
        assert!(certs.requests(NOW).is_empty(), "not at once again");
        let later = Timestamp(NOW.0 + RETRY_MILLIS);
        let again = certs.requests(later);
        assert_eq!(again.len(), 2);
        let refused = v1::Certificate { id: again[0].id, error: "no".into(), ..v1::Certificate::default() };
        certs.answer(&refused, later);
        certs.begin_session();
        assert_eq!(certs.requests(later).len(), 2, "a new session asks anew");
    }

    #[test]
    fn renewal_is_due_after_two_thirds_of_a_life_and_needs_a_clock() {
        let mut host = Host { renew_at: NOW, ..Host::default() };
        assert!(host.is_due(Timestamp(0)), "without a certificate at once");
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
        let cert = CertificateParams::new(vec!["a.test".into()]).expect("names").self_signed(&key).expect("signed");
        let (certificate, life) = certified_for("a.test", &key, cert.pem().as_bytes()).expect("certified");
        host.take(certificate.clone(), life);
        host.take(certificate, (Timestamp(NOW.0 - 2000), Timestamp(NOW.0 + 1000)));
        assert_eq!(host.renew_at, NOW);
        assert!(host.is_due(NOW));
        assert!(!host.is_due(Timestamp(NOW.0 - 1000)));
        assert!(!host.is_due(Timestamp(3_000)), "1970 says nothing");
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_chains_never_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
            assert!(certified_for("a.test", &key, &bytes).is_err());
        }
    }
}
