//! Certificates of a public authority, which the region orders with requests made here: as the Certificate objects of this device say. The
//! key is made here and stays here; each renewal has a new one. What is in use stays in use until the next one is there, also through a
//! restart.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hearth_proto::v1;
use hearth_types::{GroupKind, Timestamp, kinds::Certificate, names};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::sign::CertifiedKey;
use serde::{Deserialize, Serialize};

use super::certs::{self, Life, RETRY_MILLIS};
use crate::{
    desired::Objects,
    files::{self, FileError, Format},
};

/// Certificates of one device at most: one for its owner's names, and some for names elsewhere.
const MAX_CERTIFICATES: usize = 64;
/// Names of one at most.
const MAX_NAMES: usize = hearth_types::acme::MAX_NAMES;
/// A key with its chain.
const IN_USE: Format = Format { magic: "hearth-agent-certificate", version: 1, max_bytes: 128 << 10 };
/// A key with the request for a certificate for it.
const NEXT: Format = Format { magic: "hearth-agent-certificate-request", version: 1, max_bytes: 32 << 10 };

#[derive(Serialize, Deserialize)]
struct StoredInUse {
    key_pem: String,
    chain_pem: String,
}

#[derive(Serialize, Deserialize)]
struct StoredNext {
    key_pem: String,
    /// PKCS #10, DER in base64.
    csr: String,
    names: Vec<String>,
}

/// A certificate in use.
#[derive(Debug)]
struct InUse {
    key: KeyPair,
    certificate: Arc<CertifiedKey>,
    names: BTreeSet<String>,
    life: Life,
}

/// A key whose certificate is not there yet.
#[derive(Debug)]
struct Next {
    key: KeyPair,
    csr: Vec<u8>,
    names: Vec<String>,
}

/// One Certificate object.
#[derive(Debug, Default)]
struct Owned {
    names: Vec<String>,
    in_use: Option<InUse>,
    next: Option<Next>,
    renew_at: Timestamp,
    /// The region has the request, and is at it.
    ordered: bool,
    asked: Option<(u64, Timestamp)>,
    not_before_retry: Timestamp,
}

/// The Certificates of this device.
#[derive(Debug)]
pub(super) struct Public {
    dir: PathBuf,
    all: BTreeMap<String, Owned>,
}

impl Public {
    pub(super) fn open(dir: PathBuf) -> Result<Self, FileError> {
        files::private_dir(&dir)?;
        Ok(Self { dir, all: BTreeMap::new() })
    }

    fn path(&self, name: &str, what: &str) -> PathBuf {
        self.dir.join(format!("{name}.{what}"))
    }

    /// The certificate of a name that is valid now, if there is one.
    pub(super) fn get(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
        let now = Timestamp(i64::try_from(now).unwrap_or(i64::MAX));
        let valid = |one: &&InUse| !crate::identity::is_clock_set(now) || (one.life.0 <= now && now < one.life.1);
        let covers = |one: &&InUse| one.names.iter().any(|pattern| is_like(pattern, name));
        self.all
            .values()
            .filter_map(|owned| owned.in_use.as_ref())
            .filter(covers)
            .find(valid)
            .map(|one| Arc::clone(&one.certificate))
    }

    /// These are the objects of this device now: what the region ordered is taken, and what has no Certificate any more is removed. Reads
    /// and writes small files. Returns whether a certificate came.
    pub(super) fn follow(&mut self, objects: &Objects) -> bool {
        let mut wanted: BTreeMap<String, Certificate> = BTreeMap::new();
        for object in objects.values().filter(|object| *object.kind() == GroupKind::CERTIFICATE) {
            // The name becomes a file name, too.
            let usable = names::dns_subdomain(object.name()).is_ok() && !object.is_deleting();
            match object.view::<Certificate>() {
                Ok(view) if usable && wanted.len() < MAX_CERTIFICATES => {
                    drop(wanted.insert(object.name().into(), view))
                }
                _ => tracing::warn!(certificate = %object.key(), "a Certificate cannot be followed"),
            }
        }
        let gone: Vec<String> = self.all.keys().filter(|name| !wanted.contains_key(*name)).cloned().collect();
        for name in gone {
            self.all.remove(&name);
            for what in ["cert", "next"] {
                remove(&self.path(&name, what));
            }
        }
        let mut came = false;
        for (name, view) in wanted {
            if !self.all.contains_key(&name) {
                let owned = self.load(&name);
                self.all.insert(name.clone(), owned);
            }
            came |= self.take(&name, &view);
        }
        came
    }

    /// What decides which of them are asked for, and when.
    pub(super) fn wants(&self) -> Vec<(String, Vec<String>, bool, Timestamp)> {
        let of = |(name, owned): (&String, &Owned)| (name.clone(), owned.names.clone(), owned.ordered, owned.renew_at);
        self.all.iter().map(of).collect()
    }

    fn load(&self, name: &str) -> Owned {
        let mut owned = Owned::default();
        let damaged = |what: &str, why: String| {
            tracing::warn!(certificate = name, why, "{what} on this device's disk is of no use")
        };
        match IN_USE.read::<StoredInUse>(&self.path(name, "cert")) {
            Ok(None) => {}
            Ok(Some(stored)) => match in_use(&stored) {
                Ok(one) => owned.in_use = Some(one),
                Err(why) => damaged("a certificate", why),
            },
            Err(error) => damaged("a certificate", files::chain(&error)),
        }
        match NEXT.read::<StoredNext>(&self.path(name, "next")) {
            Ok(None) => {}
            Ok(Some(stored)) => match (KeyPair::from_pem(&stored.key_pem), STANDARD.decode(&stored.csr)) {
                (Ok(key), Ok(csr)) => owned.next = Some(Next { key, csr, names: stored.names }),
                _ => damaged("a request", "it is damaged".into()),
            },
            Err(error) => damaged("a request", files::chain(&error)),
        }
        owned
    }

    /// Takes what a Certificate says. Returns whether a certificate came.
    fn take(&mut self, name: &str, view: &Certificate) -> bool {
        let (cert, next) = (self.path(name, "cert"), self.path(name, "next"));
        let Entry::Occupied(mut entry) = self.all.entry(name.to_owned()) else { return false };
        let owned = entry.get_mut();
        owned.names.clone_from(&view.spec.dns_names);
        owned.names.sort();
        owned.names.dedup();
        let status = view.status.clone().unwrap_or_default();
        let request = status.request.map(|request| request.csr);
        owned.ordered = owned.next.as_ref().is_some_and(|next| request == Some(STANDARD.encode(&next.csr)));
        let Some(chain) = status.certificate else { return false };
        let said = certs::leaf(chain.as_bytes());
        let is_present = |present: &InUse| present.certificate.cert.first().map(|leaf| leaf.to_vec()) == said;
        let stored = |key: &KeyPair| StoredInUse { key_pem: key.serialize_pem(), chain_pem: chain.clone() };
        let mut came = false;
        // The new key's first; of the present key's, one that the region ordered anew.
        let of_next =
            owned.next.as_ref().map(|next| stored(&next.key)).and_then(|stored| Some((in_use(&stored).ok()?, stored)));
        let of_present = || {
            // Most often it is what is in use, and not worth being read as a whole.
            let present = owned.in_use.as_ref().filter(|present| !is_present(present))?;
            let stored = stored(&present.key);
            Some((in_use(&stored).ok()?, stored))
        };
        let is_next = of_next.is_some();
        if let Some((one, stored)) = of_next.or_else(of_present) {
            match IN_USE.write(&cert, &stored, true) {
                Ok(()) => {
                    tracing::info!(certificate = name, expires = %one.life.1, "certificate of the public authority received");
                    owned.in_use = Some(one);
                    // What was asked is answered by this.
                    (owned.asked, owned.not_before_retry) = (None, Timestamp(0));
                    came = true;
                    if is_next {
                        owned.next = None;
                        remove(&next);
                    }
                }
                Err(error) => tracing::error!(error = files::chain(&error), "a certificate cannot be kept"),
            }
        }
        let same = owned.in_use.as_ref().is_some_and(is_present);
        owned.renew_at = match (&owned.in_use, status.renewal_time.as_deref().and_then(Timestamp::parse)) {
            (Some(_), Some(at)) if same => at,
            (Some(present), _) => certs::two_thirds(present.life),
            (None, _) => Timestamp(0),
        };
        came
    }

    /// A session begins: what was asked before will not be answered.
    pub(super) fn begin_session(&mut self) {
        for owned in self.all.values_mut() {
            (owned.asked, owned.not_before_retry) = (None, Timestamp(0));
        }
    }

    /// What to ask the region for now. Makes keys; a write each. Blocks.
    pub(super) fn requests(&mut self, now: Timestamp, next_id: &mut u64) -> Vec<v1::CertificateRequest> {
        let mut requests = Vec::new();
        let dir = self.dir.clone();
        for (name, owned) in self.all.iter_mut().filter(|(_, owned)| owned.is_due(now)) {
            match owned.request(&dir.join(format!("{name}.next"))) {
                Ok(csr) => {
                    *next_id += 1;
                    owned.asked = Some((*next_id, now));
                    requests.push(v1::CertificateRequest {
                        id: *next_id,
                        csr_der: csr.into(),
                        names: Vec::new(),
                        certificate: name.clone(),
                    });
                }
                Err(why) => {
                    owned.not_before_retry = Timestamp(now.0 + RETRY_MILLIS);
                    tracing::error!(certificate = name, why, "no certificate can be asked for");
                }
            }
        }
        requests
    }

    /// How long until the next of them is to be renewed, if one has yet to be.
    pub(super) fn next_renewal(&self, now: Timestamp) -> Option<Duration> {
        let ahead = self.all.values().filter(|owned| owned.in_use.is_some() && owned.renew_at > now);
        ahead.map(|owned| owned.renew_at.since(now)).min()
    }

    /// The region's answer, where it is to a request of these.
    pub(super) fn answer(&mut self, id: u64, error: &str, now: Timestamp) -> bool {
        let asked = |owned: &Owned| owned.asked.is_some_and(|(asked, _)| asked == id);
        let Some((name, owned)) = self.all.iter_mut().find(|(_, owned)| asked(owned)) else { return false };
        owned.asked = None;
        // Where it is taken, the object says so before this time.
        owned.not_before_retry = Timestamp(now.0 + RETRY_MILLIS);
        if !error.is_empty() {
            tracing::warn!(
                certificate = name,
                error,
                "the region takes no request for a certificate; asking again later"
            );
        }
        true
    }
}

impl Owned {
    fn is_due(&self, now: Timestamp) -> bool {
        let waits = self.asked.is_some_and(|(_, at)| now.0 - at.0 < RETRY_MILLIS) || now < self.not_before_retry;
        if waits || self.ordered || self.names.is_empty() || self.names.len() > MAX_NAMES {
            return false;
        }
        match &self.in_use {
            None => true,
            Some(present) if !present.names.iter().eq(&self.names) => true,
            // Without a clock, nobody knows whether a certificate is old.
            Some(_) => crate::identity::is_clock_set(now) && now >= self.renew_at,
        }
    }

    /// The request for the next certificate; its key is made where there is none, and is on the disk when this returns.
    fn request(&mut self, path: &Path) -> Result<Vec<u8>, String> {
        if let Some(next) = self.next.as_ref().filter(|next| next.names == self.names) {
            return Ok(next.csr.clone());
        }
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|error| error.to_string())?;
        let mut params = CertificateParams::new(self.names.clone()).map_err(|error| error.to_string())?;
        params.distinguished_name = DistinguishedName::new();
        let csr = params.serialize_request(&key).map_err(|error| error.to_string())?.der().to_vec();
        let stored = StoredNext { key_pem: key.serialize_pem(), csr: STANDARD.encode(&csr), names: self.names.clone() };
        NEXT.write(path, &stored, true).map_err(|error| files::chain(&error))?;
        self.next = Some(Next { key, csr: csr.clone(), names: self.names.clone() });
        Ok(csr)
    }
}

fn in_use(stored: &StoredInUse) -> Result<InUse, String> {
    let key = KeyPair::from_pem(&stored.key_pem).map_err(|error| error.to_string())?;
    let (certificate, names, life) =
        certs::certified(&key, stored.chain_pem.as_bytes()).map_err(|error| error.to_string())?;
    Ok(InUse { key, certificate, names, life })
}

/// Whether a certificate's name is a name: itself, or one label more in the place of `*` (RFC 6125 section 6.4.3).
fn is_like(pattern: &str, name: &str) -> bool {
    match pattern.strip_prefix("*.") {
        Some(rest) => name.split_once('.').is_some_and(|(label, above)| !label.is_empty() && above == rest),
        None => pattern == name,
    }
}

fn remove(path: &Path) {
    if let Err(error) = files::remove(path) {
        tracing::warn!(error = files::chain(&error), "a key that is no longer used cannot be removed");
    }
}

#[cfg(test)]
mod tests {
    use hearth_types::Object;
    use serde_json::{Value, json};

    use super::{super::certs::tests::Ca, *};

    const NOW: Timestamp = Timestamp(1_800_000_000_000);

    fn objects(status: Value) -> Objects {
        let object = Object::from_value(json!({"apiVersion": "hearth.dev/v1alpha1", "kind": "Certificate",
            "metadata": {"name": "nas", "namespace": "alice", "uid": "u"},
            "spec": {"device": "nas", "dnsNames": ["alice.test", "*.alice.test", "*.lan.alice.test"]}, "status": status}))
        .expect("an object");
        std::iter::once((object.key().clone(), object)).collect()
    }

    const NAMES: [&str; 3] = ["*.alice.test", "*.lan.alice.test", "alice.test"];

    fn status(ca: &Ca, request: &v1::CertificateRequest, renewal: Timestamp) -> Value {
        let chain = ca.sign(request, &NAMES).chain_pem;
        json!({"certificate": String::from_utf8_lossy(&chain), "renewalTime": renewal.to_string()})
    }

    #[test]
    fn a_certificate_serves_until_the_next_one_is_there_and_each_has_a_key_of_its_own() {
        let dir = tempfile::tempdir().expect("a directory");
        let ca = Ca::new();
        let mut id = 0;
        let mut public = Public::open(dir.path().to_owned()).expect("opened");
        assert!(!public.follow(&objects(json!({}))));
        let first = public.requests(NOW, &mut id).pop().expect("a request");
        assert_eq!((&*first.certificate, first.names.len()), ("nas", 0));
        assert!(public.requests(NOW, &mut id).is_empty(), "one at a time");
        assert!(public.answer(first.id, "", NOW));
        let ordered = json!({"request": {"csr": STANDARD.encode(&first.csr_der), "time": ""}});
        public.follow(&objects(ordered.clone()));
        let much_later = Timestamp(NOW.0 + RETRY_MILLIS / 2);
        assert!(public.requests(Timestamp(NOW.0 + 86_400_000), &mut id).is_empty(), "the region is at it");
        // Another agent finds the key on the disk, and what was ordered for it.
        let mut public = Public::open(dir.path().to_owned()).expect("opened");
        public.follow(&objects(ordered));
        assert!(public.requests(NOW, &mut id).is_empty() && public.get("alice.test").is_none());
        let came = status(&ca, &first, much_later);
        assert!(public.follow(&objects(came.clone())) && !public.follow(&objects(came.clone())));
        let serves = |public: &Public, name: &str| public.get(name).and_then(|one| one.cert.first().cloned());
        let present = serves(&public, "photos.alice.test").expect("covered");
        for (name, covered) in [
            ("alice.test", true),
            ("photos.lan.alice.test", true),
            ("a.b.alice.test", false),
            ("bob.test", false),
            (".alice.test", false),
        ] {
            assert_eq!(serves(&public, name).is_some(), covered, "{name}");
        }
        assert!(public.requests(NOW, &mut id).is_empty(), "not due");
        let second = public.requests(much_later, &mut id).pop().expect("a renewal");
        assert_ne!(second.csr_der, first.csr_der, "of a new key");
        public.follow(&objects(came));
        assert_eq!(serves(&public, "alice.test"), Some(present.clone()), "in use until the next is there");
        // A chain for a key that is not here changes nothing.
        let mut other = Public::open(tempfile::tempdir().expect("a directory").keep()).expect("opened");
        other.follow(&objects(json!({})));
        let strange = other.requests(NOW, &mut id).pop().expect("a request");
        assert!(!public.follow(&objects(status(&ca, &strange, much_later))));
        assert_eq!(serves(&public, "alice.test"), Some(present.clone()));
        assert!(public.follow(&objects(status(&ca, &second, Timestamp(much_later.0 + 1)))));
        assert_ne!(serves(&public, "alice.test"), Some(present));
        assert!(public.requests(much_later, &mut id).is_empty());
        // A Certificate that goes takes its keys along.
        public.follow(&Objects::new());
        assert!(public.get("alice.test").is_none());
        assert_eq!(std::fs::read_dir(dir.path()).expect("listed").count(), 0);
        std::fs::remove_dir_all(&other.dir).expect("removed");
    }

    #[test]
    fn a_refusal_is_asked_again_later_and_other_names_are_asked_for_at_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let (ca, mut id) = (Ca::new(), 0);
        let mut public = Public::open(dir.path().to_owned()).expect("opened");
        public.follow(&objects(json!({})));
        let first = public.requests(NOW, &mut id).pop().expect("a request");
        assert!(public.answer(first.id, "no", NOW) && !public.answer(first.id, "", NOW));
        assert!(public.requests(NOW, &mut id).is_empty());
        let later = Timestamp(NOW.0 + RETRY_MILLIS);
        let again = public.requests(later, &mut id).pop().expect("a request");
        assert_eq!(again.csr_der, first.csr_der, "the key was made already");
        let chain = ca.sign(&first, &["alice.test"]).chain_pem;
        let far = Timestamp(NOW.0 * 2).to_string();
        public.follow(&objects(json!({"certificate": String::from_utf8_lossy(&chain), "renewalTime": far})));
        assert!(public.get("alice.test").is_some());
        public.begin_session();
        assert_eq!(public.requests(later, &mut id).len(), 1, "it has not all names");
    }
}
