//! A relay that runs by itself: how it joins a region, and what it shows to those who use it.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use hearth_proto::v1;
use hearth_types::{Reason, Status, token::JoinToken};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tonic::transport::Channel;

use crate::{
    Client,
    client::{region, timed},
    connect, convert,
    device::{self, DeviceError, DeviceIdentity, Region},
    failover::Again,
    verify::{Pin, PinnedVerifier},
};

/// Redeems a relay's token under a name. The CA is pinned by the token's hash: a server of another region is refused before anything is said
/// to it. Joining again with the same token and key is harmless.
pub async fn join(
    token: &JoinToken,
    identity: &DeviceIdentity,
    name: &str,
    url: &str,
    discovery_port: u16,
) -> Result<v1::RelayAdmission, Status> {
    let verifier = Arc::new(PinnedVerifier::new(Pin::Hash(token.ca_hash), false));
    let channel = device::channel(token.addresses.clone(), &token.server_name, verifier.clone(), identity, false)?;
    let request = v1::JoinRelayRequest {
        token: token.secret.clone(),
        name: name.to_owned(),
        url: url.to_owned(),
        discovery_port: discovery_port.into(),
    };
    let answer = relays(channel).join(timed(request)).await.map_err(|error| convert::status(&error))?.into_inner();
    device::same_ca(&verifier, &answer.ca_pem)?;
    Ok(answer)
}

/// Tells the region where this relay is, and gets another certificate. [`Reason::Forbidden`]: it is no relay of the region any more.
pub async fn renew(
    region: &Region,
    identity: &DeviceIdentity,
    url: &str,
    discovery_port: u16,
) -> Result<v1::RelayAdmission, Status> {
    let channel = device::connect(region, identity)?;
    let request = v1::RenewRelayRequest { url: url.to_owned(), discovery_port: discovery_port.into() };
    let answer = relays(channel).renew(timed(request)).await;
    Ok(answer.map_err(|error| convert::status(&error))?.into_inner())
}

fn relays(channel: Channel) -> v1::relay_enrollment_client::RelayEnrollmentClient<Channel> {
    v1::relay_enrollment_client::RelayEnrollmentClient::new(channel)
}

impl Client {
    /// Makes a one-time token by which a relay joins the region. `valid` zero: the region's default.
    pub async fn create_relay_token(&self, valid: Duration) -> Result<v1::CreateTokenResponse, Status> {
        let request = v1::CreateTokenRequest {
            owner: String::new(),
            valid_seconds: valid.as_secs(),
            any_owner: false,
            server: false,
            relay: true,
            status: false,
        };
        let create = async |channel, request| region(channel).create_token(request).await;
        self.servers.call(Again::Never, request, create).await
    }
}

/// The certificate that a relay shows: none before the first one is set, and the newest then. Clones are one.
#[derive(Clone, Debug, Default)]
pub struct RelayCertificate(Arc<RwLock<Option<Arc<CertifiedKey>>>>);

impl RelayCertificate {
    /// Shows this chain, PEM, from now on; it must be for the identity's key.
    pub fn set(&self, identity: &DeviceIdentity, chain_pem: &[u8]) -> Result<(), Status> {
        let bad = |why: String| Status::new(Reason::BadRequest, format!("the relay's certificate: {why}"));
        let chain = CertificateDer::pem_slice_iter(chain_pem).collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(|error| bad(error.to_string()))?;
        let key = PrivateKeyDer::Pkcs8(identity.pkcs8());
        let key = rustls::crypto::ring::sign::any_supported_type(&key).map_err(|error| bad(error.to_string()))?;
        let certified = CertifiedKey::new(chain, key);
        certified.keys_match().map_err(|error| bad(error.to_string()))?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(certified));
        Ok(())
    }

    /// What a relay serves TLS with.
    pub fn server_config(&self) -> Result<Arc<ServerConfig>, DeviceError> {
        let config = ServerConfig::builder_with_provider(connect::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(DeviceError::Tls)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(self.clone()));
        Ok(Arc::new(config))
    }
}

impl ResolvesServerCert for RelayCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
