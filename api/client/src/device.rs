//! How a device joins a region and keeps its connection: it proves itself by its Ed25519 key, in a
//! certificate that it makes and signs itself, and it trusts the CA that it pinned when it joined.

use std::sync::Arc;

use futures_core::Stream;
use hearth_proto::{
    MAX_MESSAGE_BYTES,
    v1::{self, recovery_client::RecoveryClient},
};
use hearth_types::{DeviceKey, Reason, Status, token::JoinToken};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ED25519};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use rustls::{
    ClientConfig, ServerConfig,
    client::danger::ServerCertVerifier,
    crypto::ring::sign::any_eddsa_type,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName},
    server::AlwaysResolvesServerRawPublicKeys,
    sign::CertifiedKey,
};
use tonic::transport::Channel;

use crate::{
    client::{roots, timed},
    connect::{self, Target},
    convert,
    verify::{Pin, PinnedVerifier, Unverified, spki_hash},
};

/// What comes before the 32 bytes of the seed in PKCS #8 version 1 (RFC 5958, RFC 8410 section 7).
const PKCS8_PREFIX: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];

/// The largest answer of a server that is not verified, in bytes: a statement, a CA, and the rotations of a key.
const MAX_STATEMENT_MESSAGE: usize = 256 << 10;

/// Why a device cannot connect.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The key cannot be used.
    #[error("the device's key is no Ed25519 key: {0}")]
    Key(String),
    /// No certificate can be made of it.
    #[error("cannot make a certificate of the device's key")]
    Certificate(#[source] rcgen::Error),
    /// The pinned CA cannot be used.
    #[error("the region's CA that was pinned when the device joined cannot be read: {0}")]
    Ca(String),
    /// The server's name is none.
    #[error("{0:?} is no server name")]
    ServerName(String),
    /// TLS cannot be set up.
    #[error("cannot set up TLS")]
    Tls(#[source] rustls::Error),
    /// The channel cannot be made.
    #[error("cannot make a channel to the region")]
    Channel(#[source] tonic::transport::Error),
}

impl From<DeviceError> for Status {
    fn from(error: DeviceError) -> Self {
        let source = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
        Self::new(Reason::BadRequest, format!("{error}{source}"))
    }
}

/// A device's key with the certificate that shows it. Kept in memory only; `Debug` shows the public key.
pub struct DeviceIdentity {
    key: DeviceKey,
    pkcs8: PrivatePkcs8KeyDer<'static>,
    certificate: CertificateDer<'static>,
}

impl std::fmt::Debug for DeviceIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeviceIdentity").field("key", &self.key).finish_non_exhaustive()
    }
}

impl DeviceIdentity {
    /// The identity of an Ed25519 seed (RFC 8032 section 5.1.5), as iroh keeps its secret keys.
    pub fn from_seed(seed: &[u8; 32]) -> Result<Self, DeviceError> {
        Self::from_pkcs8(&[PKCS8_PREFIX.as_slice(), seed].concat())
    }

    /// The identity of an Ed25519 key in PKCS #8, version 1 or 2.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, DeviceError> {
        let pair =
            Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).map_err(|error| DeviceError::Key(error.to_string()))?;
        let key = pair.public_key().as_ref().try_into().map_err(|_| DeviceError::Key("not 32 bytes".into()))?;
        let pkcs8 = PrivatePkcs8KeyDer::from(der.to_vec());
        let signer = KeyPair::from_pkcs8_der_and_sign_algo(&pkcs8, &PKCS_ED25519).map_err(DeviceError::Certificate)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "hearth device");
        let certificate = params.self_signed(&signer).map_err(DeviceError::Certificate)?.der().clone();
        Ok(Self { key: DeviceKey(key), pkcs8, certificate })
    }

    /// The private key, PKCS #8.
    pub(crate) fn pkcs8(&self) -> PrivatePkcs8KeyDer<'static> {
        self.pkcs8.clone_key()
    }

    /// TLS 1.3 of one protocol (ALPN) by which the device shows who is at its address: its key alone, as a raw public key (RFC 7250). Whoever asks proves
    /// nothing, and is to be told nothing else.
    pub fn prover(&self, alpn: &[u8]) -> Result<ServerConfig, DeviceError> {
        let signer = any_eddsa_type(&self.pkcs8).map_err(DeviceError::Tls)?;
        let spki = signer.public_key().ok_or_else(|| DeviceError::Key("it has no public key".into()))?.to_vec();
        let shown = CertifiedKey::new(vec![CertificateDer::from(spki)], signer);
        let mut tls = ServerConfig::builder_with_provider(connect::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(DeviceError::Tls)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(Arc::new(shown))));
        tls.alpn_protocols = vec![alpn.to_vec()];
        // The key is to be proved each time.
        tls.send_tls13_tickets = 0;
        Ok(tls)
    }

    /// The public key: what the region knows the device by.
    pub fn key(&self) -> DeviceKey {
        self.key
    }
}

/// A region as a device that joined it knows it.
#[derive(Clone, Debug)]
pub struct Region {
    /// The API servers, `host:port` each; the one that answered last is tried first.
    pub addresses: Vec<String>,
    /// `api.<zone>`.
    pub server_name: String,
    /// The CA that was pinned at join, PEM.
    pub ca_pem: Vec<u8>,
    /// The device's clock is not set: the dates in certificates are not looked at, everything else is.
    pub ignore_validity: bool,
    /// There are servers beside these to go to: one that does not answer is left sooner.
    pub has_others: bool,
}

/// A channel to a region over mutual TLS 1.3, by the device's key. It connects when first used and again
/// whenever the connection is lost; must be called within a tokio runtime.
pub fn connect(region: &Region, identity: &DeviceIdentity) -> Result<Channel, DeviceError> {
    let roots = roots(&region.ca_pem).map_err(DeviceError::Ca)?;
    let verifier = PinnedVerifier::new(Pin::Roots(roots), region.ignore_validity);
    channel(region.addresses.clone(), &region.server_name, Arc::new(verifier), identity, region.has_others)
}

/// By what a region's relays are verified: the CA that was pinned, as its servers are.
pub fn relay_trust(ca_pem: &[u8], ignore_validity: bool) -> Result<Arc<dyn ServerCertVerifier>, DeviceError> {
    let roots = roots(ca_pem).map_err(DeviceError::Ca)?;
    Ok(Arc::new(PinnedVerifier::new(Pin::Roots(roots), ignore_validity)))
}

/// Joins the region of a token under a name. `owner` may be empty where the token names one. The CA is
/// pinned by the token's hash: a server of another region is refused before anything is said to it, and
/// the answer's `ca_pem` is the one to pin from now on.
///
/// Joining again with the same token, key and name is harmless and answers the same.
pub async fn join(
    token: &JoinToken,
    identity: &DeviceIdentity,
    device_name: &str,
    owner: &str,
    ignore_validity: bool,
) -> Result<v1::JoinResponse, Status> {
    let verifier = Arc::new(PinnedVerifier::new(Pin::Hash(token.ca_hash), ignore_validity));
    let channel = channel(token.addresses.clone(), &token.server_name, verifier.clone(), identity, false)?;
    let mut enrollment = v1::enrollment_client::EnrollmentClient::new(channel);
    let request = v1::JoinRequest { token: token.secret.clone(), device_name: device_name.into(), owner: owner.into() };
    let answer = enrollment.join(timed(request)).await.map_err(|error| convert::status(&error))?.into_inner();
    same_ca(&verifier, &answer.ca_pem)?;
    Ok(answer)
}

/// Refuses a CA that is not the one of the handshake.
pub(crate) fn same_ca(verifier: &PinnedVerifier, ca_pem: &[u8]) -> Result<(), Status> {
    let found = verifier.found().ok_or_else(|| Status::internal("an answer without a handshake"))?;
    let sent = <CertificateDer<'_> as rustls::pki_types::pem::PemObject>::from_pem_slice(ca_pem).ok();
    if sent.as_ref().and_then(spki_hash) != spki_hash(found) {
        return Err(Status::internal(
            "the region's answer carries another CA than its servers show; do not use it, ask its operator",
        ));
    }
    Ok(())
}

/// Whether a call failed since the server is not the one that is trusted.
pub fn is_untrusted(status: &tonic::Status) -> bool {
    connect::is_untrusted(status)
}

/// Asks the servers of what is to be a region for the statement that it was recovered. The server is not verified, and nothing is said to it: what it answers
/// is to be checked by the recovery key that was pinned.
pub async fn statement(region: &Region) -> Result<v1::StatementResponse, Status> {
    let tls = ClientConfig::builder_with_provider(connect::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(DeviceError::Tls)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Unverified::new()))
        .with_no_client_auth();
    let channel = channel_of(region.addresses.clone(), &region.server_name, tls, region.has_others)?;
    let mut recovery = RecoveryClient::new(channel).max_decoding_message_size(MAX_STATEMENT_MESSAGE);
    let answer = recovery.statement(timed(v1::StatementRequest {})).await;
    Ok(answer.map_err(|error| convert::status(&error))?.into_inner())
}

/// Hands copies in, over a channel of [`connect`].
pub async fn hand_in(
    channel: Channel,
    messages: impl Stream<Item = v1::HandInMessage> + Send + 'static,
) -> Result<v1::HandInResponse, Status> {
    let mut recovery = RecoveryClient::new(channel).max_encoding_message_size(MAX_MESSAGE_BYTES);
    let answer = recovery.hand_in(messages).await;
    Ok(answer.map_err(|error| convert::status(&error))?.into_inner())
}

pub(crate) fn channel(
    addresses: Vec<String>,
    server_name: &str,
    verifier: Arc<PinnedVerifier>,
    identity: &DeviceIdentity,
    has_others: bool,
) -> Result<Channel, DeviceError> {
    let tls = ClientConfig::builder_with_provider(connect::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(DeviceError::Tls)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(vec![identity.certificate.clone()], PrivateKeyDer::Pkcs8(identity.pkcs8.clone_key()))
        .map_err(DeviceError::Tls)?;
    channel_of(addresses, server_name, tls, has_others)
}

fn channel_of(
    addresses: Vec<String>,
    server_name: &str,
    mut tls: ClientConfig,
    has_others: bool,
) -> Result<Channel, DeviceError> {
    let name =
        ServerName::try_from(server_name.to_owned()).map_err(|_| DeviceError::ServerName(server_name.to_owned()))?;
    tls.alpn_protocols = vec![b"h2".to_vec()];
    // A session ticket would spare nothing here, and a device's key is to be proven every time.
    tls.resumption = rustls::client::Resumption::disabled();
    let mut target = Target::new(addresses, name, Arc::new(tls));
    target.has_others |= has_others;
    connect::channel(target).map_err(DeviceError::Channel)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_key_of_rfc_8032() {
        // RFC 8032 section 7.1, test 1.
        let mut seed = [0; 32];
        for (byte, pair) in
            seed.iter_mut().zip(b"9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60".chunks_exact(2))
        {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).expect("ASCII"), 16).expect("hex");
        }
        let identity = DeviceIdentity::from_seed(&seed).expect("an identity");
        assert_eq!(identity.key().to_string(), "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a");
        assert!(format!("{identity:?}").contains("d75a98"));
        DeviceIdentity::from_pkcs8(b"nonsense").expect_err("no key");
    }
}
