//! Authentication. A client certificate is optional and may be anybody's: the handshake proves that the
//! client has its key, and what that is worth is decided here.
//!
//! A certificate that chains to the region's CA and is meant for clients makes a user. An Ed25519 key makes
//! a device, if one has it; that is asked at every request and not once a connection.

use std::sync::Arc;

use hearth_types::{
    DeviceKey, Reason, Status, Timestamp,
    identity::{self, Identity},
};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::CryptoProvider,
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use x509_parser::{
    oid_registry::OID_SIG_ED25519,
    prelude::{FromDer as _, X509Certificate},
};

use super::methods::Method;
use crate::{ca::CertificateAuthority, devices::DeviceIndex};

/// The longest chain that is looked at: our own certificates have two.
const MAX_CHAIN: usize = 4;
/// Groups of one user at most.
const MAX_GROUPS: usize = 64;

/// What a connection's handshake proved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// Nothing that counts.
    Nobody,
    /// A certificate of the region's CA.
    User { name: String, groups: Vec<String>, not_after: Timestamp },
    /// An Ed25519 key.
    Key(DeviceKey),
}

/// Takes every client certificate whose key the client has.
#[derive(Debug)]
pub(crate) struct AnyClient {
    provider: Arc<CryptoProvider>,
}

impl AnyClient {
    pub(crate) fn new(provider: Arc<CryptoProvider>) -> Self {
        Self { provider }
    }
}

impl ClientCertVerifier for AnyClient {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if intermediates.len() >= MAX_CHAIN {
            return Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure));
        }
        webpki::EndEntityCert::try_from(end_entity)
            .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        // TLS 1.2 shows certificates to everybody on the way; devices have no need for it.
        if device_key(cert).is_some() {
            return Err(Error::General("a device proves its key over TLS 1.3 only".into()));
        }
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The key of a certificate, where it is Ed25519.
fn device_key(certificate: &CertificateDer<'_>) -> Option<DeviceKey> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let key = parsed.public_key();
    if key.algorithm.algorithm != OID_SIG_ED25519 {
        return None;
    }
    key.subject_public_key.data.as_ref().try_into().ok().map(DeviceKey)
}

/// What the certificates of a finished handshake prove.
pub(crate) fn classify(chain: &[CertificateDer<'_>], ca: &CertificateAuthority, now: Timestamp) -> Peer {
    let Some((leaf, intermediates)) = chain.split_first() else {
        return Peer::Nobody;
    };
    user(leaf, intermediates, ca, now).or_else(|| device_key(leaf).map(Peer::Key)).unwrap_or(Peer::Nobody)
}

fn user(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    ca: &CertificateAuthority,
    now: Timestamp,
) -> Option<Peer> {
    let anchor: TrustAnchor<'_> = webpki::anchor_from_trusted_cert(ca.certificate()).ok()?;
    let seconds = std::time::Duration::from_millis(now.0.max(0).unsigned_abs());
    // Certificates for servers (a device's ingress has one) do not count: clientAuth is required.
    webpki::EndEntityCert::try_from(leaf)
        .ok()?
        .verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &[anchor],
            intermediates,
            UnixTime::since_unix_epoch(seconds),
            webpki::KeyUsage::client_auth(),
            None,
            None,
        )
        .ok()?;
    let (_, parsed) = X509Certificate::from_der(leaf).ok()?;
    let name = parsed.subject().iter_common_name().next()?.as_str().ok()?.to_owned();
    let groups = parsed.subject().iter_organization().take(MAX_GROUPS);
    let groups = groups.filter_map(|group| group.as_str().ok().map(str::to_owned)).collect();
    let not_after = Timestamp(parsed.validity().not_after.timestamp().saturating_mul(1000));
    Some(Peer::User { name, groups, not_after })
}

/// Who makes a request now.
pub(crate) fn identify(peer: &Peer, devices: &DeviceIndex, now: Timestamp) -> Identity {
    match peer {
        Peer::User { name, groups, not_after } if now <= *not_after => match identity::server_of(name, groups) {
            Some(id) => Identity::Server { id },
            None => Identity::User { name: name.clone(), groups: groups.clone() },
        },
        Peer::User { .. } | Peer::Nobody => Identity::Stranger { key: None },
        Peer::Key(key) => match devices.lookup(key) {
            Some((name, owner)) => Identity::Device { name, owner, key: *key },
            None => Identity::Stranger { key: Some(*key) },
        },
    }
}

/// Why somebody may not call a method.
pub(super) fn refusal(identity: &Identity, peer: &Peer, devices: &DeviceIndex, method: &Method) -> Status {
    let (what, takes) = (format!("{}/{}", method.service, method.name), method.takes());
    match (identity, peer) {
        (Identity::Stranger { .. }, Peer::User { .. }) => Status::new(
            Reason::Unauthorized,
            "the client's certificate has expired; make a new client.yaml with `hearth up` on the region's server",
        ),
        (Identity::Stranger { key: Some(_) }, _) if !devices.is_primed() => {
            Status::unavailable("the region's server is starting and does not know its devices yet; try again")
        }
        (Identity::Stranger { key: Some(key) }, _) => Status::new(
            Reason::Unauthorized,
            format!(
                "the key {key} belongs to no device of this region: it never joined or was removed; join with `hearth join`"
            ),
        ),
        (Identity::Stranger { key: None }, _) => Status::new(
            Reason::Unauthorized,
            "the client did not prove who it is: no certificate of this region's CA; use the region's client.yaml",
        ),
        _ => {
            Status::new(Reason::Forbidden, format!("{what} is forbidden: {identity} cannot call it; it takes {takes}"))
        }
    }
}
