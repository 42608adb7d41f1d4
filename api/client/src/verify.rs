//! How a device verifies the region's server: by the CA that it pinned, and by its own clock only once
//! that is set.

use std::sync::{Arc, OnceLock};

use ring::digest;
use rustls::{
    CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::connect;

/// By what a device knows its region.
pub(crate) enum Pin {
    /// The CA itself.
    Roots(RootCertStore),
    /// SHA-256 of the CA's SubjectPublicKeyInfo; the server sends the CA in its chain.
    Hash([u8; 32]),
}

/// What a token's CA hash did not fit.
#[derive(Debug, thiserror::Error)]
#[error(
    "it is not the region that the token is for: none of its certificates has the key of the CA whose hash is in the token"
)]
struct OtherCa;

/// Verifies a server against a [`Pin`].
pub(crate) struct PinnedVerifier {
    pin: Pin,
    ignore_validity: bool,
    provider: Arc<CryptoProvider>,
    /// The CA that a server with the right hash sent, DER.
    found: OnceLock<CertificateDer<'static>>,
}

impl std::fmt::Debug for PinnedVerifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PinnedVerifier").finish_non_exhaustive()
    }
}

impl PinnedVerifier {
    pub(crate) fn new(pin: Pin, ignore_validity: bool) -> Self {
        Self { pin, ignore_validity, provider: connect::provider(), found: OnceLock::new() }
    }

    /// The CA that was found by its hash, once a handshake succeeded.
    pub(crate) fn found(&self) -> Option<&CertificateDer<'static>> {
        self.found.get()
    }

    fn roots(&self, chain: &[CertificateDer<'_>]) -> Result<RootCertStore, Error> {
        match &self.pin {
            Pin::Roots(roots) => Ok(roots.clone()),
            Pin::Hash(hash) => {
                let ca = chain
                    .iter()
                    .find(|one| spki_hash(one).as_ref() == Some(hash))
                    .ok_or_else(|| Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(OtherCa)))))?;
                let mut roots = RootCertStore::empty();
                roots.add(ca.clone().into_owned())?;
                Ok(roots)
            }
        }
    }
}

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let roots = self.roots(intermediates)?;
        let now = if self.ignore_validity { begin_of_validity(end_entity).unwrap_or(now) } else { now };
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        let verified = verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        if let Pin::Hash(hash) = &self.pin
            && let Some(ca) = intermediates.iter().find(|one| spki_hash(one).as_ref() == Some(hash))
        {
            // A second handshake would find the same.
            let _ = self.found.set(ca.clone().into_owned());
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
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

/// Verifies nothing but that the server has the key of the certificate that it shows: for a question whose answer is signed by other means,
/// or that whoever is there may answer.
#[derive(Debug)]
pub struct Unverified(Arc<CryptoProvider>);

impl Unverified {
    /// With the program's only crypto provider.
    pub fn new() -> Self {
        Self(connect::provider())
    }
}

impl Default for Unverified {
    fn default() -> Self {
        Self::new()
    }
}

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// The moment from which a certificate is valid. A leaf begins after its CA and ends before it, so that at
/// this moment both are valid.
fn begin_of_validity(certificate: &CertificateDer<'_>) -> Option<UnixTime> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let seconds = u64::try_from(parsed.validity().not_before.timestamp()).ok()?;
    Some(UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds)))
}

/// SHA-256 of a certificate's SubjectPublicKeyInfo.
pub(crate) fn spki_hash(certificate: &CertificateDer<'_>) -> Option<[u8; 32]> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    digest::digest(&digest::SHA256, parsed.public_key().raw).as_ref().try_into().ok()
}
