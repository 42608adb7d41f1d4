//! The region's own certificate authority: name-constrained to the region's zone, so that trusting it
//! gives it no power over any other name.
//!
//! Source: RFC 5280 section 4.2.1.10 (name constraints), RFC 2986 (certificate requests).

use std::{
    fs, io,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hearth_types::{
    BoxFuture, Clock, DeviceKey, Reason, Status, Timestamp, identity::CertificateSigner, names, recovery::SigningKey,
    relay,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CidrSubnet, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints,
    PKCS_ECDSA_P256_SHA256, PKCS_ED25519, PublicKeyData, SerialNumber, SubjectPublicKeyInfo,
};
use ring::{
    digest, hkdf,
    rand::{SecureRandom as _, SystemRandom},
};
use rustls_pki_types::{
    CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _,
};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

const DAY: Duration = Duration::from_hours(24);
/// How long the CA is valid: longer than a device stays in its corner.
const CA_VALIDITY: Duration = Duration::from_hours(3652 * 24);
/// How long a leaf is valid: what public CAs give, so that renewal is a habit.
pub const LEAF_VALIDITY: Duration = Duration::from_hours(90 * 24);
/// How far a leaf's validity begins before its making, for verifiers whose clock is slow.
const BACKDATE: Duration = Duration::from_hours(1);
/// Names in one certificate at most.
pub const MAX_NAMES: usize = 64;
/// What comes before the 32 bytes of an Ed25519 key in a SubjectPublicKeyInfo (RFC 8410 section 4).
const ED25519_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 3, 0x21, 0];
/// The largest certificate request in bytes: one with [`MAX_NAMES`] of the longest names fits.
pub const MAX_CSR_BYTES: usize = 32 << 10;

/// A time in rcgen's own type, whose crate need not be named this way.
macro_rules! moment {
    ($time:expr) => {
        rcgen::date_time_ymd(1970, 1, 1) + Duration::from_millis($time.0.max(0).unsigned_abs())
    };
}

/// Why the CA cannot be used or does not sign.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file of it cannot be read or written.
    #[error("cannot {what} {}", path.display())]
    File {
        /// `read` or `write`.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The certificate is there and its key is not.
    #[error(
        "the region's CA key {} is missing while its certificate is there: restore it from a backup; a new CA would lock out every device", .0.display()
    )]
    KeyMissing(PathBuf),
    /// Key or certificate cannot be read.
    #[error("{}: {why}", path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The CA is for another zone.
    #[error("the region's CA in {} is for the zone {found:?}, not {wanted:?}: a region keeps its zone; use another data directory for another zone", path.display())]
    OtherZone {
        /// Which file.
        path: PathBuf,
        /// The CA's zone.
        found: String,
        /// The zone that was asked for.
        wanted: String,
    },
    /// A name that the CA does not sign.
    #[error("the region's CA signs no certificate for {name:?}: {why}")]
    Name {
        /// The name.
        name: String,
        /// Why not.
        why: String,
    },
    /// A request that the CA does not sign.
    #[error("the certificate request is refused: {0}")]
    Request(String),
    /// Making a key or certificate failed.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// The region has one, which is not there.
    #[error(
        "the region has data already, and its CA is missing: there is no ca.key in {path}. Nothing was changed. Restore the folder from \
         a backup. Whoever accepts that every device has to join anew and every client.yaml has to be made anew removes the \
         region's data as well",
        path = .0.display()
    )]
    Lost(PathBuf),
    /// The system has no randomness.
    #[error("the system gives no random numbers")]
    Random,
}

impl From<CaError> for Status {
    fn from(error: CaError) -> Self {
        match error {
            CaError::Name { .. } | CaError::Request(_) => Self::new(Reason::BadRequest, error.to_string()),
            _ => Self::internal(error.to_string()),
        }
    }
}

/// A certificate with its key, made by the CA.
pub struct Issued {
    /// The certificate and the CA's, DER.
    pub chain: Vec<CertificateDer<'static>>,
    /// The certificate alone, PEM.
    pub certificate_pem: String,
    /// The key, PKCS #8 in PEM.
    pub key_pem: String,
    /// The key, PKCS #8.
    pub key: PrivateKeyDer<'static>,
    /// When it begins to be valid.
    pub not_before: Timestamp,
    /// When it ends to be valid.
    pub not_after: Timestamp,
}

impl std::fmt::Debug for Issued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issued").field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

/// The region's certificate authority: a P-256 key on disk.
pub struct CertificateAuthority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
    zone: String,
    not_before: Timestamp,
    not_after: Timestamp,
    spki_hash: [u8; 32],
    signing: Arc<SigningKey>,
    clock: Arc<dyn Clock>,
    random: SystemRandom,
}

impl std::fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CertificateAuthority").field("zone", &self.zone).finish_non_exhaustive()
    }
}

impl CertificateAuthority {
    /// Reads the CA from a directory, and makes it where there is none: `ca.key` (mode 0600) and `ca.pem`.
    /// A crash in between leaves a key without a certificate, which the next start completes.
    pub fn load_or_create(directory: &Path, zone: &str, clock: Arc<dyn Clock>) -> Result<Self, CaError> {
        Self::for_region(directory, zone, clock, false)
    }

    /// The CA of a region: as [`CertificateAuthority::load_or_create`], but for a region that has data already none is made, since
    /// everybody who knows the region would be shut out by a new one.
    pub fn for_region(
        directory: &Path,
        zone: &str,
        clock: Arc<dyn Clock>,
        region_exists: bool,
    ) -> Result<Self, CaError> {
        names::dns_subdomain(zone).map_err(|why| CaError::Name { name: zone.into(), why: why.into() })?;
        let (key_path, certificate_path) = (directory.join("ca.key"), directory.join("ca.pem"));
        let create = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
        create.map_err(|source| CaError::File { what: "create", path: directory.into(), source })?;
        let key_pem = read(&key_path)?;
        let certificate_pem = read(&certificate_path)?;
        let key = match (&key_pem, &certificate_pem) {
            (Some(pem), _) => KeyPair::from_pem(pem)
                .map_err(|error| CaError::Malformed { path: key_path.clone(), why: error.to_string() })?,
            (None, Some(_)) => return Err(CaError::KeyMissing(key_path)),
            (None, None) if region_exists => return Err(CaError::Lost(directory.into())),
            (None, None) => {
                let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
                write_atomically(&key_path, key.serialize_pem().as_bytes(), 0o600)?;
                key
            }
        };
        let pem = if let Some(pem) = certificate_pem {
            pem
        } else {
            let pem = authority(zone, clock.now())?.self_signed(&key)?.pem();
            write_atomically(&certificate_path, pem.as_bytes(), 0o644)?;
            pem
        };
        Self::assemble(&certificate_path, pem, key, zone, clock)
    }

    fn assemble(path: &Path, pem: String, key: KeyPair, zone: &str, clock: Arc<dyn Clock>) -> Result<Self, CaError> {
        let malformed = |why: String| CaError::Malformed { path: path.into(), why };
        let certificate =
            CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| malformed(error.to_string()))?;
        let (_, parsed) = X509Certificate::from_der(&certificate).map_err(|error| malformed(error.to_string()))?;
        if parsed.public_key().subject_public_key.data.as_ref() != key.der_bytes() {
            return Err(malformed("the certificate is not that of the key beside it".into()));
        }
        let found = constrained_zone(&parsed).unwrap_or_default();
        if found != zone {
            return Err(CaError::OtherZone { path: path.into(), found, wanted: zone.into() });
        }
        let not_before = Timestamp(parsed.validity().not_before.timestamp().saturating_mul(1000));
        let not_after = Timestamp(parsed.validity().not_after.timestamp().saturating_mul(1000));
        let spki_hash = sha256(parsed.public_key().raw);
        let signing = Arc::new(signing_key(key.serialized_der())?);
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(|error| malformed(error.to_string()))?;
        let (zone, random) = (zone.to_owned(), SystemRandom::new());
        Ok(Self { issuer, certificate, pem, zone, not_before, not_after, spki_hash, signing, clock, random })
    }

    /// Writes the CA's certificate to a file that anybody may read, in one step.
    pub fn export(&self, path: &Path) -> Result<(), CaError> {
        write_atomically(path, self.pem.as_bytes(), 0o644)
    }

    /// The CA's certificate, PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The CA's certificate, DER.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// SHA-256 of the CA's SubjectPublicKeyInfo: what join tokens carry.
    pub fn spki_hash(&self) -> [u8; 32] {
        self.spki_hash
    }

    /// The CA's key, PKCS #8 in PEM: whoever has it can be the region.
    pub(crate) fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// 32 bytes that only who has the CA's key comes to, the same for one `info` always: HKDF-SHA256 (RFC 5869).
    pub(crate) fn derive(&self, info: &[u8]) -> Result<[u8; 32], CaError> {
        derive(self.issuer.key().serialized_der(), info)
    }

    /// The key by which the region signs the copies of objects that devices keep. It is derived from the CA's own, so that every server and every
    /// backup that has the one has the other.
    pub fn signing_key(&self) -> &Arc<SigningKey> {
        &self.signing
    }

    /// The zone whose names it signs.
    pub fn zone(&self) -> &str {
        &self.zone
    }

    /// A server certificate with a fresh P-256 key, for names inside the zone.
    pub fn issue_server(&self, names: &[String]) -> Result<Issued, CaError> {
        let mut params = self.leaf(names)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue(params)
    }

    /// A client certificate with a fresh P-256 key: the common name is the user, the organisations its
    /// groups, as in Kubernetes.
    pub fn issue_client(&self, user: &str, groups: &[&str]) -> Result<Issued, CaError> {
        let mut params = self.leaf(&[])?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, user);
        for group in groups {
            params.distinguished_name.push(DnType::OrganizationName, *group);
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(params)
    }

    /// A relay's certificate for the key that it has proven, for the name of relays, and the CA's behind it, PEM.
    pub(crate) fn issue_relay(&self, key: &DeviceKey) -> Result<String, CaError> {
        let mut params = self.leaf(&[relay::server_name(&self.zone)])?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let public = SubjectPublicKeyInfo::from_der(&[ED25519_PREFIX.as_slice(), &key.0].concat())?;
        Ok(params.signed_by(&public, &self.issuer)?.pem() + &self.pem)
    }

    fn issue(&self, params: CertificateParams) -> Result<Issued, CaError> {
        let (not_before, not_after) = self.validity();
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Issued {
            chain: vec![certificate.der().clone(), self.certificate.clone()],
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            not_before,
            not_after,
        })
    }

    /// A certificate for `names` with the key of a request. The request's signature is checked, so that
    /// nobody gets a certificate for a key that is not theirs; the names in it are ignored.
    fn sign_request(&self, csr_der: &[u8], names: &[String]) -> Result<Vec<u8>, CaError> {
        if csr_der.len() > MAX_CSR_BYTES {
            return Err(CaError::Request(format!("larger than {MAX_CSR_BYTES} bytes")));
        }
        if names.is_empty() {
            return Err(CaError::Request("it is for no name".into()));
        }
        let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr_der))
            .map_err(|error| CaError::Request(error.to_string()))?;
        let key = &request.public_key;
        // The algorithm is read from the signature; the key's own length tells P-256 from other curves.
        let p256 = *key.algorithm() == PKCS_ECDSA_P256_SHA256 && key.der_bytes().len() == 65;
        let ed25519 = *key.algorithm() == PKCS_ED25519 && key.der_bytes().len() == 32;
        if !p256 && !ed25519 {
            return Err(CaError::Request("its key is neither P-256 nor Ed25519".into()));
        }
        let mut params = self.leaf(names)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        Ok(params.signed_by(key, &self.issuer)?.pem().into_bytes())
    }

    /// What all leaves have in common: names inside the zone, 90 days, a random serial number.
    fn leaf(&self, names: &[String]) -> Result<CertificateParams, CaError> {
        if names.len() > MAX_NAMES {
            return Err(CaError::Request(format!("more than {MAX_NAMES} names")));
        }
        for name in names {
            let refuse = |why: &str| CaError::Name { name: name.clone(), why: why.into() };
            names::dns_subdomain(name).map_err(refuse)?;
            let inside = name.strip_suffix(&self.zone).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
            if !inside {
                return Err(refuse(&format!("it is not in the zone {:?}", self.zone)));
            }
        }
        let mut params = CertificateParams::new(names.to_vec())?;
        params.distinguished_name = DistinguishedName::new();
        // The common name has 64 characters at most (RFC 5280 appendix A); verifiers read the names beside it.
        if let Some(name) = names.first().filter(|name| name.len() <= 64) {
            params.distinguished_name.push(DnType::CommonName, name.as_str());
        }
        let (not_before, not_after) = self.validity();
        params.not_before = moment!(not_before);
        params.not_after = moment!(not_after);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(self.serial()?);
        Ok(params)
    }

    /// Never outside of the CA's own validity, so that at a leaf's first moment the CA is valid too.
    fn validity(&self) -> (Timestamp, Timestamp) {
        let now = self.clock.now().seconds();
        let begin = Timestamp(now.0 - i64::try_from(BACKDATE.as_millis()).unwrap_or(0));
        (begin.max(self.not_before), now.plus(LEAF_VALIDITY).min(self.not_after))
    }

    /// 127 random bits: unique without a counter (RFC 5280 section 4.1.2.2 wants at most 20 bytes, positive).
    fn serial(&self) -> Result<SerialNumber, CaError> {
        let mut bytes = [0; 16];
        self.random.fill(&mut bytes).map_err(|_| CaError::Random)?;
        bytes[0] = (bytes[0] & 0x7f) | 0x40;
        Ok(SerialNumber::from_slice(&bytes))
    }
}

impl CertificateSigner for CertificateAuthority {
    fn sign<'a>(&'a self, csr_der: &'a [u8], names: &'a [String]) -> BoxFuture<'a, Result<Vec<u8>, Status>> {
        let signed = self.sign_request(csr_der, names).map_err(Status::from);
        Box::pin(std::future::ready(signed))
    }
}

/// The parameters of the CA's own certificate.
fn authority(zone: &str, now: Timestamp) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = DistinguishedName::new();
    let name: String = format!("Hearth CA of {zone}").chars().take(64).collect();
    params.distinguished_name.push(DnType::CommonName, name);
    let now = now.seconds();
    params.not_before = moment!(Timestamp(now.0 - i64::try_from(DAY.as_millis()).unwrap_or(0)));
    params.not_after = moment!(now.plus(CA_VALIDITY));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName(zone.to_owned())],
        excluded_subtrees: vec![
            GeneralSubtree::IpAddress(CidrSubnet::V4([0; 4], [0; 4])),
            GeneralSubtree::IpAddress(CidrSubnet::V6([0; 16], [0; 16])),
        ],
    });
    Ok(params)
}

/// The one DNS subtree that a CA is constrained to.
fn constrained_zone(certificate: &X509Certificate<'_>) -> Option<String> {
    let constraints = certificate.name_constraints().ok()??.value;
    match constraints.permitted_subtrees.as_deref()? {
        [only] => match only.base {
            GeneralName::DNSName(zone) => Some(zone.to_owned()),
            _ => None,
        },
        _ => None,
    }
}

/// Says what a derived key is for, so that no other use comes to the same (RFC 5869, `info`).
const SIGNING_INFO: &[u8] = b"hearth copies signing key v1";

/// The signing key of a CA's key (PKCS #8, as it is on the disk).
fn signing_key(ca_key: &[u8]) -> Result<SigningKey, CaError> {
    derive(ca_key, SIGNING_INFO).map(|seed| SigningKey::from_seed(&seed))
}

fn derive(ca_key: &[u8], info: &[u8]) -> Result<[u8; 32], CaError> {
    let mut out = [0; 32];
    let derived = hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(ca_key);
    let info = [info];
    let filled = derived.expand(&info, hkdf::HKDF_SHA256).and_then(|okm| okm.fill(&mut out));
    filled.map_err(|_| CaError::Random)?;
    Ok(out)
}

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}

fn read(path: &Path) -> Result<Option<String>, CaError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(CaError::File { what: "read", path: path.into(), source }),
    }
}

/// A file is replaced in one step and on disk when this returns.
fn write_atomically(path: &Path, bytes: &[u8], mode: u32) -> Result<(), CaError> {
    let fail = |source: io::Error| CaError::File { what: "write", path: path.into(), source };
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().ok_or_else(|| fail(io::ErrorKind::InvalidInput.into()))?;
    let temporary = directory.join(format!(".{}.{}", name.to_string_lossy(), uuid::Uuid::new_v4()));
    let write = || {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        fs::File::open(directory)?.sync_all()
    };
    write().map_err(|source| {
        let _ = fs::remove_file(&temporary);
        fail(source)
    })
}
