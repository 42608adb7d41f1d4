//! How this server calls the other servers of its region: mutual TLS, one connection per server and lane.
//!
//! # Guarantees
//! The server that answers has proved by a certificate of the region's CA that it is the one meant, and this one proves who it is by its own.
//! Its certificate is renewed while it runs, and connections are made anew with the new one. A connection that broke, or whose server has
//! another address now, is made anew with the next call.

use std::{
    collections::HashMap,
    error::Error as _,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use hearth_proto::{MAX_MESSAGE_BYTES, v1};
use hearth_types::{
    BoxFuture, Clock, Reason, Status,
    group::{CallError, Lane, PeerTransport, Server},
    identity,
};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore, time_provider::TimeProvider};
use rustls_pki_types::{ServerName, UnixTime};
use tokio::{net::TcpStream, sync::watch};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint};

use crate::{
    ca::{CaError, CertificateAuthority},
    certificate::Renewed,
    server::server_name,
    servers::says_removed,
};

/// The largest call and answer in bytes: a batch of log entries, each of which may hold a transaction of 16 MiB, or a part of a snapshot.
pub(crate) const MAX_PEER_BYTES: usize = MAX_MESSAGE_BYTES;
/// The largest headers of an answer in bytes: an error's details travel in one.
const MAX_HEADER_BYTES: u32 = 64 << 10;

/// The times of a lane's connection.
struct Times {
    /// How long TCP and TLS together may take.
    connect: Duration,
    /// How often a connection that has calls open is tried.
    probe: Duration,
    /// How long the answer to that may take before the connection counts as dead.
    dead: Duration,
}

/// What a lane can wait for. An election should not hang on a server that died without a word: at most a second on the urgent lane. The
/// others are for bulk, and a busy disk or link is no death.
const fn times(lane: Lane) -> Times {
    let millis = Duration::from_millis;
    match lane {
        Lane::Urgent => Times { connect: millis(500), probe: millis(500), dead: millis(500) },
        Lane::Entries => Times { connect: millis(2_000), probe: millis(1_000), dead: millis(2_000) },
        Lane::Bulk => Times { connect: millis(5_000), probe: millis(5_000), dead: millis(10_000) },
    }
}

/// The name in the certificate of a server, by which others know that it is this one. `api` can be nobody's name in the zone.
pub fn peer_name(id: u64, zone: &str) -> String {
    format!("server-{id}.{}", server_name(zone))
}

/// Why no connections to other servers can be made.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// This server's certificate cannot be made.
    #[error("cannot make the certificate by which this server proves itself to the others")]
    Certificate(#[from] CaError),
    /// TLS cannot be set up.
    #[error("cannot set up TLS to the region's other servers")]
    Tls(#[from] rustls::Error),
}

/// The connections of this server to the others. Cheap to clone; clones share them.
#[derive(Clone)]
pub struct PeerChannels(Arc<Inner>);

struct Inner {
    zone: String,
    tls: Arc<ClientConfig>,
    certificate: Arc<Renewed>,
    channels: Mutex<Channels>,
    removed: watch::Sender<bool>,
}

#[derive(Default)]
struct Channels {
    open: HashMap<(u64, Lane), Open>,
    made: u64,
}

/// A connection, or the intention to make one.
struct Open {
    address: String,
    /// Which of this server's certificates it was made with.
    certificate: u64,
    /// Tells it from one that was made later.
    number: u64,
    channel: Channel,
}

impl std::fmt::Debug for PeerChannels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PeerChannels").finish_non_exhaustive()
    }
}

/// TLS goes by the program's clock.
#[derive(Clone)]
struct Time(Arc<dyn Clock>);

impl std::fmt::Debug for Time {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Time")
    }
}

impl TimeProvider for Time {
    fn current_time(&self) -> Option<UnixTime> {
        let millis = self.0.now().0.max(0).unsigned_abs();
        Some(UnixTime::since_unix_epoch(Duration::from_millis(millis)))
    }
}

impl PeerChannels {
    /// The connections of server `id`. None is made before it is needed.
    pub fn new(ca: &Arc<CertificateAuthority>, id: u64, clock: Arc<dyn Clock>) -> Result<Self, PeerError> {
        let (issuer, user) = (ca.clone(), identity::server_user(id));
        let issue = move || issuer.issue_client(&user, &[identity::SERVERS]);
        let certificate = Arc::new(Renewed::new("client", clock.clone(), issue)?);
        let mut roots = RootCertStore::empty();
        roots.add(ca.certificate().clone())?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = ClientConfig::builder_with_details(provider, Arc::new(Time(clock)))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_client_cert_resolver(certificate.clone());
        tls.alpn_protocols = vec![b"h2".to_vec()];
        // A resumed session would not show a renewed certificate.
        tls.resumption = rustls::client::Resumption::disabled();
        Ok(Self(Arc::new(Inner {
            zone: ca.zone().to_owned(),
            tls: Arc::new(tls),
            certificate,
            channels: Mutex::default(),
            removed: watch::Sender::new(false),
        })))
    }

    /// Waits until another server says that this one was removed from the region for good.
    pub async fn removed(&self) {
        // The sender is this one's own: it is there for as long as this is.
        let _ = self.0.removed.subscribe().wait_for(|removed| *removed).await;
    }

    /// A channel to the API of another server, for other services that are between servers.
    pub fn channel(&self, to: &Server) -> Result<Channel, CallError> {
        self.0.channel(to, Lane::Entries).map(|(channel, _)| channel).map_err(|why| CallError(format!("{to}: {why}")))
    }

    /// Asks a server to see to it that this one belongs to the group, at this address; returns once it votes.
    pub async fn admit(&self, to: &Server, address: &str) -> Result<(), Status> {
        let (channel, number) = self.0.channel(to, Lane::Entries).map_err(Status::unavailable)?;
        let mut members = v1::members_client::MembersClient::new(channel);
        match members.admit(v1::AdmitRequest { address: address.to_owned() }).await {
            Ok(_) => Ok(()),
            Err(error) => Err(self.0.failed(to, Lane::Entries, number, &error)),
        }
    }
}

impl PeerTransport for PeerChannels {
    fn call(&self, to: &Server, lane: Lane, request: Bytes) -> BoxFuture<'static, Result<Bytes, CallError>> {
        let (inner, to) = (self.0.clone(), to.clone());
        Box::pin(async move {
            let (channel, number) = inner.channel(&to, lane).map_err(|why| CallError(format!("{to}: {why}")))?;
            let mut peers = v1::peers_client::PeersClient::new(channel)
                .max_decoding_message_size(MAX_PEER_BYTES)
                .max_encoding_message_size(MAX_PEER_BYTES);
            match peers.call(v1::PeerCall { request }).await {
                Ok(answer) => Ok(answer.into_inner().answer),
                Err(error) => {
                    let status = inner.failed(&to, lane, number, &error);
                    Err(CallError(format!("{to}: {}", status.message)))
                }
            }
        })
    }
}

impl Inner {
    fn channels(&self) -> MutexGuard<'_, Channels> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection to a server, with its number. Connects when it is used.
    fn channel(&self, to: &Server, lane: Lane) -> Result<(Channel, u64), String> {
        let (_, certificate) = self.certificate.current();
        let mut channels = self.channels();
        if let Some(open) = channels.open.get(&(to.id, lane))
            && open.address == to.address
            && open.certificate == certificate
        {
            return Ok((open.channel.clone(), open.number));
        }
        // Calls that are under way on the old one end by themselves.
        let channel = self.make(to, lane)?;
        channels.made += 1;
        let (address, number) = (to.address.clone(), channels.made);
        channels.open.insert((to.id, lane), Open { address, certificate, number, channel: channel.clone() });
        Ok((channel, number))
    }

    fn make(&self, to: &Server, lane: Lane) -> Result<Channel, String> {
        let (name, times) = (peer_name(to.id, &self.zone), times(lane));
        // The scheme stays `http` for tonic, which else wants to do TLS itself.
        let endpoint = Endpoint::from_shared(format!("http://{name}"))
            .map_err(|error| error.to_string())?
            .http2_keep_alive_interval(times.probe)
            .keep_alive_timeout(times.dead)
            .http2_max_header_list_size(MAX_HEADER_BYTES);
        let name = ServerName::try_from(name).map_err(|error| error.to_string())?;
        let (tls, address) = (self.tls.clone(), to.address.clone());
        Ok(endpoint.connect_with_connector_lazy(tower::service_fn(move |_: http::Uri| {
            let (tls, name, address) = (tls.clone(), name.clone(), address.clone());
            async move {
                let connecting = connect(&address, name, tls);
                tokio::time::timeout(times.connect, connecting).await.unwrap_or_else(|_| {
                    let text = format!("no connection within {} ms", times.connect.as_millis());
                    Err(io::Error::new(io::ErrorKind::TimedOut, text))
                })
            }
        })))
    }

    /// What a failed call means. A connection that broke is forgotten, so that the next call makes one.
    fn failed(&self, to: &Server, lane: Lane, number: u64, error: &tonic::Status) -> Status {
        // What a server says has details; what has none is the connection's.
        if let Some(status) = Some(error.details())
            .filter(|details| !details.is_empty())
            .and_then(|details| serde_json::from_slice(details).ok())
        {
            if says_removed(&status) {
                self.removed.send_replace(true);
            }
            return status;
        }
        let mut channels = self.channels();
        if channels.open.get(&(to.id, lane)).is_some_and(|open| open.number == number) {
            channels.open.remove(&(to.id, lane));
        }
        let mut why = error.message().to_owned();
        let mut source = error.source();
        while let Some(error) = source {
            why = error.to_string();
            source = error.source();
        }
        Status::new(Reason::ServiceUnavailable, why)
    }
}

async fn connect(
    address: &str,
    name: ServerName<'static>,
    tls: Arc<ClientConfig>,
) -> io::Result<TokioIo<TlsStream<TcpStream>>> {
    let tcp = TcpStream::connect(address).await?;
    // Small messages are the rule; none should wait for the one before it. A failure costs time, no more.
    let _ = tcp.set_nodelay(true);
    TlsConnector::from(tls).connect(name, tcp).await.map(TokioIo::new)
}
