//! A client that asks one thing after the other, and notes how long each took.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, ServerName, UnixTime},
};

/// How long a request may take.
const LIMIT: Duration = Duration::from_secs(20);
/// Addresses of this machine that connections come from in turn: a gateway takes some hundred at once from one of them.
const CALLERS: u8 = 16;

/// Where to ask.
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    pub(crate) host: String,
    /// The server name of TLS; `None`: plain.
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
}

impl Target {
    /// An HTTPS server.
    pub(crate) fn https(address: &str, host: &str) -> Result<Self> {
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anyone(ring::default_provider())))
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // A new connection is one of somebody new.
        config.resumption = Resumption::disabled();
        let name = ServerName::try_from(host.to_owned())?;
        Ok(Self { address: address.parse()?, host: host.to_owned(), tls: Some((Arc::new(config), name)) })
    }

    /// An HTTP server.
    pub(crate) fn plain(address: &str, host: &str) -> Result<Self> {
        Ok(Self { address: address.parse()?, host: host.to_owned(), tls: None })
    }

    /// A connection, from the `number`th of this machine's addresses.
    pub(crate) fn connect(&self, number: u32) -> Result<Connection> {
        let fd = socket(AddressFamily::INET, SocketType::STREAM, None)?;
        if self.address.ip().is_loopback() {
            let from = IpAddr::V4(Ipv4Addr::new(127, 0, 1, 1 + (number % u32::from(CALLERS)) as u8));
            bind(&fd, &SocketAddr::new(from, 0))?;
        }
        connect(&fd, &self.address)?;
        let tcp = TcpStream::from(fd);
        tcp.set_nodelay(true)?;
        tcp.set_read_timeout(Some(LIMIT))?;
        Ok(match &self.tls {
            Some((config, name)) => {
                let tls = ClientConnection::new(Arc::clone(config), name.clone())?;
                Connection::Tls(Box::new(StreamOwned::new(tls, tcp)))
            }
            None => Connection::Plain(tcp),
        })
    }

    /// Asks for `/healthz` over a connection; returns how long the whole answer took.
    pub(crate) fn ask(&self, connection: &mut Connection) -> Result<Duration> {
        let begun = Instant::now();
        let request = format!("GET /healthz HTTP/1.1\r\nHost: {}\r\n\r\n", self.host);
        connection.write_all(request.as_bytes())?;
        connection.flush()?;
        let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
        loop {
            let count = connection.read(&mut buffer).context("no answer")?;
            ensure!(count > 0, "the connection ended after {:?}", String::from_utf8_lossy(&answer));
            answer.extend_from_slice(&buffer[..count]);
            if whole(&answer)? {
                return Ok(begun.elapsed());
            }
        }
    }
}

/// Whether an answer has come to its end.
fn whole(answer: &[u8]) -> Result<bool> {
    let text = String::from_utf8_lossy(answer);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return Ok(false) };
    ensure!(head.starts_with("HTTP/1.1 200"), "{text}");
    let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    Ok(body.len() >= length.unwrap_or(0_usize))
}

pub(crate) enum Connection {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Read for Connection {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Connection {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write(bytes),
            Self::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match self {
            Self::Plain(stream) => stream.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}

/// So many requests one after the other on one connection, after some that do not count.
pub(crate) fn one_by_one(target: &Target, requests: usize) -> Result<Vec<Duration>> {
    let mut connection = target.connect(0)?;
    for _ in 0..requests / 10 {
        target.ask(&mut connection)?;
    }
    (0..requests).map(|_| target.ask(&mut connection)).collect()
}

/// So many requests, each on a connection of its own, by some clients at once; how long each took with its connection.
pub(crate) fn on_new_connections(target: &Target, requests: u32, clients: u32) -> Result<Vec<Duration>> {
    let client = |client: u32| -> Result<Vec<Duration>> {
        let each = |number: u32| {
            let begun = Instant::now();
            let mut connection = target.connect(number)?;
            target.ask(&mut connection)?;
            Ok(begun.elapsed())
        };
        (client..requests).step_by(clients as usize).map(each).collect()
    };
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..clients).map(|number| scope.spawn(move || client(number))).collect();
        let mut taken = Vec::new();
        for one in all {
            taken.extend(one.join().map_err(|_| anyhow::anyhow!("a client panicked"))??);
        }
        Ok(taken)
    })
}

/// Takes any certificate, and has its key proven: this measures, and sends nothing that matters.
#[derive(Debug)]
struct Anyone(CryptoProvider);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
