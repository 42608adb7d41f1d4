//! A server of one request a connection that says whatever a test wants, and remembers what it was asked.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls;

use crate::image::{Blobs, INDEX, MANIFEST};

/// Bytes after which an endless body ends after all: the client should have gone long before.
const ENDLESS_BYTES: usize = 64 * 1024 * 1024;
/// How long a silent or slow server goes on.
const SILENCE: Duration = Duration::from_secs(20);
/// Time between two bytes of a slow one.
const TRICKLE: Duration = Duration::from_millis(10);

/// What was asked.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// With its query.
    pub(crate) path: String,
    headers: Vec<(String, String)>,
}

/// What is answered.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Body,
}

#[derive(Debug, Clone)]
pub(crate) enum Body {
    Full(Vec<u8>),
    /// The connection ends after these bytes of as many as the length says.
    Cut(Vec<u8>, usize),
    /// Chunks, without a length before them.
    Chunked(Vec<u8>),
    /// These bytes again and again.
    Endless,
    /// A byte now and then.
    Trickle(Vec<u8>),
    /// The head, these bytes of as many, and then nothing.
    Silent(Vec<u8>, usize),
    /// Not even a head.
    Mute,
}

type Handler = dyn Fn(&Request) -> Reply + Send + Sync;

/// A running server; it ends when dropped.
pub(crate) struct Server {
    /// `127.0.0.1:port`.
    pub(crate) host: String,
    seen: Arc<Mutex<Vec<Request>>>,
    task: JoinHandle<()>,
}

/// A certificate for 127.0.0.1, and what trusts it.
pub(crate) struct Tls {
    acceptor: TlsAcceptor,
    pub(crate) root: Vec<u8>,
}

impl Tls {
    pub(crate) fn new() -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".into()]).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        Self { acceptor: TlsAcceptor::from(Arc::new(config)), root: made.cert.pem().into_bytes() }
    }
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(had, _)| had.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub(crate) fn is_for(&self, part: &str) -> bool {
        self.path.contains(part)
    }
}

impl Reply {
    pub(crate) fn new(status: u16, body: Body) -> Self {
        Self { status, headers: Vec::new(), body }
    }

    pub(crate) fn ok(bytes: impl Into<Vec<u8>>) -> Self {
        Self::new(200, Body::Full(bytes.into()))
    }

    pub(crate) fn status(status: u16) -> Self {
        Self::new(status, Body::Full(Vec::new()))
    }

    pub(crate) fn redirect(to: impl Into<String>) -> Self {
        Self::status(307).with("Location", to)
    }

    pub(crate) fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}

impl Server {
    pub(crate) async fn start(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::listen(None, Arc::new(handler)).await
    }

    pub(crate) async fn start_tls(tls: &Tls, handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::listen(Some(tls.acceptor.clone()), Arc::new(handler)).await
    }

    async fn listen(tls: Option<TlsAcceptor>, handler: Arc<Handler>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let task = tokio::spawn(accept(listener, tls, handler, seen.clone()));
        Self { host, seen, task }
    }

    /// All requests so far.
    pub(crate) fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many requests had `part` in their path.
    pub(crate) fn count(&self, part: &str) -> usize {
        self.seen().iter().filter(|request| request.is_for(part)).count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    handler: Arc<Handler>,
    seen: Arc<Mutex<Vec<Request>>>,
) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (tls, handler, seen) = (tls.clone(), handler.clone(), seen.clone());
        tokio::spawn(async move {
            // What a client breaks off is its own affair.
            let _ = match tls {
                None => one::<TcpStream>(stream, &handler, &seen).await,
                Some(tls) => match tls.accept(stream).await {
                    Ok(stream) => one(stream, &handler, &seen).await,
                    Err(error) => Err(error),
                },
            };
        });
    }
}

async fn one<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    handler: &Arc<Handler>,
    seen: &Mutex<Vec<Request>>,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8(head).unwrap();
    let mut lines = head.lines();
    let mut first = lines.next().unwrap().split(' ');
    let (method, path) = (first.next().unwrap().to_owned(), first.next().unwrap().to_owned());
    let headers = lines.filter_map(|line| line.split_once(": ")).map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
    let request = Request { method, path, headers };
    seen.lock().unwrap().push(request.clone());
    let reply = handler(&request);
    answer(&mut stream, &request, reply).await?;
    stream.shutdown().await
}

async fn answer<S: AsyncWrite + Unpin>(stream: &mut S, request: &Request, reply: Reply) -> std::io::Result<()> {
    if matches!(reply.body, Body::Mute) {
        tokio::time::sleep(SILENCE).await;
        return Ok(());
    }
    let mut head = format!("HTTP/1.1 {} Some\r\nConnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        head = format!("{head}{name}: {value}\r\n");
    }
    let framing = match &reply.body {
        Body::Full(bytes) | Body::Trickle(bytes) => format!("Content-Length: {}\r\n\r\n", bytes.len()),
        Body::Cut(_, length) | Body::Silent(_, length) => format!("Content-Length: {length}\r\n\r\n"),
        Body::Chunked(_) => "Transfer-Encoding: chunked\r\n\r\n".into(),
        Body::Endless | Body::Mute => "\r\n".into(),
    };
    stream.write_all((head + &framing).as_bytes()).await?;
    if request.method == "HEAD" {
        return Ok(());
    }
    match reply.body {
        Body::Full(bytes) | Body::Cut(bytes, _) => stream.write_all(&bytes).await,
        Body::Chunked(bytes) => {
            stream.write_all(format!("{:x}\r\n", bytes.len()).as_bytes()).await?;
            stream.write_all(&bytes).await?;
            stream.write_all(b"\r\n0\r\n\r\n").await
        }
        Body::Endless => {
            let piece = vec![b' '; 64 * 1024];
            for _ in 0..ENDLESS_BYTES / piece.len() {
                stream.write_all(&piece).await?;
            }
            Ok(())
        }
        Body::Trickle(bytes) => {
            let slowly = async {
                for byte in bytes {
                    stream.write_all(&[byte]).await?;
                    stream.flush().await?;
                    tokio::time::sleep(TRICKLE).await;
                }
                Ok(())
            };
            tokio::time::timeout(SILENCE, slowly).await.unwrap_or(Ok(()))
        }
        Body::Silent(bytes, _) => {
            stream.write_all(&bytes).await?;
            stream.flush().await?;
            tokio::time::sleep(SILENCE).await;
            Ok(())
        }
        Body::Mute => Ok(()),
    }
}

/// An honest registry of these blobs, in every repository; every tag stands for `top`.
pub(crate) fn honest(blobs: &Blobs, top: &serde_json::Value, request: &Request) -> Reply {
    let top = top["digest"].as_str().unwrap();
    let Some((_, rest)) = request.path.split_once("/manifests/").or_else(|| request.path.split_once("/blobs/")) else {
        return Reply::status(404);
    };
    let digest = if rest.starts_with("sha256:") { rest } else { top };
    let Some(bytes) = blobs.0.get(digest) else { return Reply::status(404) };
    if request.is_for("/manifests/") {
        let is_index = bytes.windows(11).any(|window| window == b"\"manifests\"");
        let media_type = if is_index { INDEX } else { MANIFEST };
        return Reply::ok(bytes.clone()).with("Content-Type", media_type).with("Docker-Content-Digest", digest);
    }
    match request.header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()) {
        Some(from) => partial(bytes, from),
        None => Reply::ok(bytes.clone()),
    }
}

/// The rest of `bytes` as an answer to a range.
pub(crate) fn partial(bytes: &[u8], from: usize) -> Reply {
    let range = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
    Reply::new(206, Body::Full(bytes[from..].to_vec())).with("Content-Range", range)
}
