//! One request and its answer: TLS, redirects, time limits, and bodies that end where they must.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RANGE};
use reqwest::{Client, Method, Response, StatusCode, Url};
use rustls::pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio::time::{Instant, timeout};

use crate::addresses::{self, Addresses};
use crate::config::{Config, ConfigError, PullLimits};
use crate::error::chain;
use crate::name::host_and_port;
use crate::{PullError, error::clip};

/// Redirects that one request follows: registries send blobs on to object stores, in one or two steps.
const MAX_REDIRECTS: usize = 5;
/// Time that an unused connection is kept for the next request.
const POOL_IDLE: Duration = Duration::from_secs(30);

/// The HTTP client of a puller.
#[derive(Debug)]
pub(crate) struct Http {
    client: Client,
    config: Config,
}

/// One request.
#[derive(Debug, Clone)]
pub(crate) struct Ask<'a> {
    pub(crate) method: Method,
    pub(crate) url: Url,
    /// Host for messages.
    pub(crate) host: &'a str,
    /// What is asked for, for messages.
    pub(crate) what: &'a str,
    pub(crate) accept: &'static str,
    /// The first byte wanted, where it is not the first.
    pub(crate) from: Option<u64>,
    /// Sent to the URL's own origin alone.
    pub(crate) authorization: Option<HeaderValue>,
}

/// The head of an answer, and the body to be read.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    /// Whether it comes from the origin that was asked, without having left it: only then may a challenge be answered.
    pub(crate) is_own: bool,
    pub(crate) body: Body,
}

/// A body, with its limits on time.
#[derive(Debug)]
pub(crate) struct Body {
    response: Response,
    host: String,
    limits: PullLimits,
    window: Instant,
    in_window: u64,
}

impl Http {
    pub(crate) fn new(config: Config) -> Result<Self, ConfigError> {
        config.check()?;
        let client = Client::builder()
            .tls_backend_preconfigured(tls(&config)?)
            .dns_resolver(Arc::new(Addresses::new(config.reach.clone())))
            .connect_timeout(config.limits.connect)
            .pool_idle_timeout(POOL_IDLE)
            .user_agent(concat!("hearth/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            // What is verified are the bytes that were sent; whether another crate turns these features on or not.
            .no_gzip()
            .no_deflate()
            .no_brotli()
            .no_zstd()
            .no_proxy()
            .referer(false)
            .retry(reqwest::retry::never())
            .build()
            .map_err(|error| ConfigError::Client(Box::new(error)))?;
        Ok(Self { client, config })
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn limits(&self) -> &PullLimits {
        &self.config.limits
    }

    /// Sends a request and follows redirects.
    ///
    /// # Guarantees
    /// `authorization` reaches no origin but that of `ask.url`: the first redirect to another takes it away for good. HTTPS never becomes
    /// HTTP, and HTTP is spoken only to hosts that the configuration names.
    pub(crate) async fn send(&self, mut ask: Ask<'_>) -> Result<Answer, PullError> {
        let origin = ask.url.origin();
        let mut is_own = true;
        for _ in 0..=MAX_REDIRECTS {
            let response = self.once(&ask).await?;
            if !is_redirect(response.status()) {
                return Ok(self.answer(response, &ask, is_own));
            }
            ask.url = self.next_url(&ask, response.headers().get(LOCATION))?;
            if ask.url.origin() != origin {
                is_own = false;
                ask.authorization = None;
            }
        }
        Err(PullError::invalid(ask.host, ask.what, format!("there are more than {MAX_REDIRECTS} redirects")))
    }

    async fn once(&self, ask: &Ask<'_>) -> Result<Response, PullError> {
        addresses::check_literal(&ask.url, &self.config.reach)?;
        let mut request = self
            .client
            .request(ask.method.clone(), ask.url.clone())
            .header(ACCEPT, ask.accept)
            .header(ACCEPT_ENCODING, "identity");
        if let Some(from) = ask.from {
            request = request.header(RANGE, format!("bytes={from}-"));
        }
        if let Some(authorization) = &ask.authorization {
            request = request.header(AUTHORIZATION, authorization.clone());
        }
        let limit = self.limits().connect + self.limits().headers;
        let host = shown_host(ask);
        match timeout(limit, request.send()).await {
            Ok(Ok(response)) => Ok(response),
            // Without its URL: the query of an object store's URL is a secret.
            Ok(Err(error)) => Err(addresses::refusal(&error)
                .unwrap_or_else(|| PullError::unreachable(&host, chain(&error.without_url())))),
            Err(_) => Err(PullError::unreachable(&host, format!("no answer within {} s", limit.as_secs_f32()))),
        }
    }

    fn answer(&self, response: Response, ask: &Ask<'_>, is_own: bool) -> Answer {
        Answer {
            status: response.status(),
            headers: response.headers().clone(),
            is_own,
            body: Body {
                response,
                host: shown_host(ask),
                limits: self.limits().clone(),
                window: Instant::now(),
                in_window: 0,
            },
        }
    }

    fn next_url(&self, ask: &Ask<'_>, location: Option<&HeaderValue>) -> Result<Url, PullError> {
        let bad = |reason: &str| PullError::invalid(ask.host, ask.what, format!("the redirect {reason}"));
        let location = location.and_then(|value| value.to_str().ok()).ok_or_else(|| bad("says not where to"))?;
        let mut url = ask.url.join(location).map_err(|_| bad("is no URL"))?;
        match (ask.url.scheme(), url.scheme()) {
            (_, "https") => {}
            ("https", "http") => return Err(bad("leads from https to http")),
            (_, "http") if self.is_insecure(&url) => {}
            (_, "http") => return Err(bad("leads to a host that is not named as insecure, over http")),
            (_, other) => return Err(bad(&format!("leads to {:?}", clip(other)))),
        }
        // A login in a URL would become an Authorization of its own.
        if url.set_username("").is_err() || url.set_password(None).is_err() {
            return Err(bad("names no host"));
        }
        Ok(url)
    }

    /// Whether the configuration allows plain HTTP to the host of a URL.
    pub(crate) fn is_insecure(&self, url: &Url) -> bool {
        let Some(host) = url.host_str() else { return false };
        let port = url.port_or_known_default().unwrap_or_default();
        self.config.insecure.contains(&format!("{host}:{port}"))
            || (url.port().is_none() && self.config.insecure.contains(host))
    }
}

impl Body {
    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// [`PullError::Unreachable`] where the connection breaks, nothing comes for too long, or too little over a while.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, PullError> {
        let piece = match timeout(self.limits.idle, self.response.chunk()).await {
            Ok(Ok(piece)) => piece,
            Ok(Err(error)) => {
                return Err(PullError::unreachable(&self.host, chain(&error.without_url())));
            }
            Err(_) => {
                let waited = self.limits.idle.as_secs_f32();
                return Err(PullError::unreachable(&self.host, format!("nothing came for {waited} s")));
            }
        };
        self.in_window += piece.as_ref().map_or(0, |piece| piece.len() as u64);
        let elapsed = self.window.elapsed();
        if elapsed >= self.limits.slow_window {
            let expected = elapsed.as_secs_f64() * self.limits.slow_bytes_per_second as f64;
            if piece.is_some() && (self.in_window as f64) < expected {
                let reason = format!("it sends only {} bytes in {} s", self.in_window, elapsed.as_secs_f32());
                return Err(PullError::unreachable(&self.host, reason));
            }
            (self.window, self.in_window) = (Instant::now(), 0);
        }
        Ok(piece)
    }

    /// The length that the headers promise, if they do.
    pub(crate) fn content_length(&self) -> Option<u64> {
        self.response.content_length()
    }

    /// All of the body, or `None` where it is longer than `limit`: no more than that and one piece is read.
    pub(crate) async fn read(&mut self, limit: u64) -> Result<Option<Vec<u8>>, PullError> {
        if self.response.content_length().is_some_and(|length| length > limit) {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        while let Some(piece) = self.next().await? {
            if (bytes.len() + piece.len()) as u64 > limit {
                return Ok(None);
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(Some(bytes))
    }
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// The registry, and the host that it sent us on to.
fn shown_host(ask: &Ask<'_>) -> String {
    let (name, _) = host_and_port(ask.host);
    match ask.url.host_str() {
        Some(now) if now != name && !now.ends_with(ask.host) => format!("{} (through {now})", ask.host),
        _ => ask.host.to_owned(),
    }
}

/// TLS 1.2 and 1.3 with ring. The machine's own roots: what its administrator trusts or no longer trusts holds here too, and is updated
/// with the machine and not with Hearth.
fn tls(config: &Config) -> Result<rustls::ClientConfig, ConfigError> {
    let mut roots = rustls::RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    let (added, _) = roots.add_parsable_certificates(native.certs);
    for (at, pem) in config.extra_roots.iter().enumerate() {
        let bad = |reason: String| ConfigError::Roots { number: at + 1, reason };
        let certificates: Vec<_> =
            CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|error| bad(error.to_string()))?;
        if certificates.is_empty() {
            return Err(bad("it holds no certificate in PEM".into()));
        }
        for certificate in certificates {
            roots.add(certificate).map_err(|error| bad(error.to_string()))?;
        }
    }
    if added == 0 && config.extra_roots.is_empty() {
        tracing::warn!("this machine has no CA certificates: no registry can be trusted; install ca-certificates");
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| ConfigError::Client(Box::new(error)))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}
