//! TLS over TCP to one of a region's servers, as a connector for tonic.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, crypto::CryptoProvider, pki_types::ServerName};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint};

/// How long one address may take for TCP and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The same where there are other servers to go to: three round trips of a bad line.
const CONNECT_TIMEOUT_OF_SEVERAL: Duration = Duration::from_secs(3);
/// How often a connection without traffic is tried, so that a dead one is noticed; it also keeps NAT entries alive.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// How long the answer may take before the connection counts as dead.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(15);
/// Both where there are other servers to go to: a server that lost power is left within twice this.
const KEEPALIVE_OF_SEVERAL: Duration = Duration::from_secs(3);
/// The most bytes of headers that are taken: an error's details travel in one.
const MAX_HEADER_BYTES: u32 = 64 << 10;

/// Why a region cannot be reached. Every server that is known was tried; this is the last one's answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// No TCP connection.
    #[error("cannot reach the region's API at https://{address}: {why}; is it running? (hearth status)")]
    Tcp {
        /// `host:port`.
        address: String,
        /// What the system said.
        why: String,
    },
    /// It took too long.
    #[error("cannot reach the region's API at https://{address}: no answer within {seconds} s")]
    Timeout {
        /// `host:port`.
        address: String,
        /// How long was waited.
        seconds: u64,
    },
    /// TCP, but no TLS.
    #[error("cannot trust the region's API at https://{address}: {why}")]
    Tls {
        /// `host:port`.
        address: String,
        /// What the handshake said.
        why: String,
    },
}

/// The only crypto provider of the program, named so that no process-wide default is needed.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// What is known of a region's servers. Shared by all connections of one channel.
pub(crate) struct Target {
    pub(crate) addresses: Vec<String>,
    pub(crate) server_name: ServerName<'static>,
    pub(crate) tls: Arc<ClientConfig>,
    /// The address that answered last: it is tried first.
    pub(crate) preferred: AtomicUsize,
    /// There are others to go to where this does not answer, here or at who has this.
    pub(crate) has_others: bool,
}

impl Target {
    pub(crate) fn new(addresses: Vec<String>, server_name: ServerName<'static>, tls: Arc<ClientConfig>) -> Self {
        let has_others = addresses.len() > 1;
        Self { addresses, server_name, tls, preferred: AtomicUsize::new(0), has_others }
    }

    async fn connect(&self) -> Result<TlsStream<TcpStream>, ConnectError> {
        let first = self.preferred.load(Ordering::Relaxed);
        let patience = if self.has_others { CONNECT_TIMEOUT_OF_SEVERAL } else { CONNECT_TIMEOUT };
        let mut last = None;
        for step in 0..self.addresses.len() {
            let index = (first + step) % self.addresses.len();
            let address = &self.addresses[index];
            match tokio::time::timeout(patience, self.connect_to(address)).await {
                Ok(Ok(stream)) => {
                    self.preferred.store(index, Ordering::Relaxed);
                    return Ok(stream);
                }
                Ok(Err(error)) => last = Some(error),
                Err(_) => last = Some(ConnectError::Timeout { address: address.clone(), seconds: patience.as_secs() }),
            }
        }
        Err(last.unwrap_or_else(|| ConnectError::Tcp { address: String::new(), why: "no address is known".into() }))
    }

    async fn connect_to(&self, address: &str) -> Result<TlsStream<TcpStream>, ConnectError> {
        let tcp = TcpStream::connect(address)
            .await
            .map_err(|error| ConnectError::Tcp { address: address.into(), why: io_text(&error) })?;
        // Small messages are the rule; none should wait for the one before it. A failure costs time, no more.
        let _ = tcp.set_nodelay(true);
        TlsConnector::from(self.tls.clone())
            .connect(self.server_name.clone(), tcp)
            .await
            .map_err(|error| ConnectError::Tls { address: address.into(), why: tls_text(&error) })
    }
}

/// `connection refused` rather than `Connection refused (os error 111)`.
fn io_text(error: &io::Error) -> String {
    if error.raw_os_error().is_some() && error.kind() != io::ErrorKind::Other {
        error.kind().to_string()
    } else {
        error.to_string()
    }
}

fn tls_text(error: &io::Error) -> String {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other))) => other.0.to_string(),
        Some(error) => error.to_string(),
        None => io_text(error),
    }
}

/// Whether a call failed since the server is not the one that is trusted.
pub(crate) fn is_untrusted(status: &tonic::Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if matches!(error.downcast_ref(), Some(ConnectError::Tls { .. })) {
            return true;
        }
        source = error.source();
    }
    false
}

/// A channel that connects when it is first used, and again whenever the connection is lost.
pub(crate) fn channel(target: Target) -> Result<Channel, tonic::transport::Error> {
    let name = match &target.server_name {
        ServerName::DnsName(name) => name.as_ref().to_owned(),
        _ => "region".to_owned(),
    };
    let (interval, patience) = if target.has_others {
        (KEEPALIVE_OF_SEVERAL, KEEPALIVE_OF_SEVERAL)
    } else {
        (KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT)
    };
    // The scheme stays `http` for tonic, which else wants to do TLS itself.
    let endpoint = Endpoint::from_shared(format!("http://{name}"))?
        .http2_keep_alive_interval(interval)
        .keep_alive_timeout(patience)
        .keep_alive_while_idle(true)
        .http2_max_header_list_size(MAX_HEADER_BYTES);
    let target = Arc::new(target);
    Ok(endpoint.connect_with_connector_lazy(tower::service_fn(move |_: http::Uri| {
        let target = target.clone();
        async move { target.connect().await.map(TokioIo::new) }
    })))
}
