//! One request to an authority: HTTPS alone, no redirects, bounded in time and in bytes.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use hearth_types::acme::Settings;
use http::{
    HeaderMap, Request, StatusCode,
    header::{ACCEPT_ENCODING, CONTENT_ENCODING, RETRY_AFTER},
};
use http_body_util::BodyExt as _;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a request may take in all.
const REQUEST: Duration = Duration::from_secs(30);
/// The largest answer in bytes: a chain of certificates with alternatives has some 20 KiB.
const MAX_BODY: usize = 256 << 10;

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpError {
    #[error("the roots by which the authority's TLS is verified cannot be used: {0}")]
    Roots(String),
    #[error("cannot set up TLS")]
    Tls(#[source] rustls::Error),
    #[error("cannot set up HTTP")]
    Client(#[source] reqwest::Error),
    #[error("the answer has more than {0} bytes")]
    TooLarge(usize),
}

/// A client. Clones share what they remember.
#[derive(Clone, Debug)]
pub(crate) struct Http {
    client: reqwest::Client,
    /// The largest answer in bytes.
    most: usize,
    /// For how long the last refusal asked not to be asked again, in seconds.
    asked_pause: Arc<Mutex<Option<Duration>>>,
}

impl Http {
    /// A client that trusts the settings' roots, or the system's.
    pub(crate) fn new(settings: &Settings) -> Result<Self, HttpError> {
        let mut builder =
            reqwest::Client::builder().tls_backend_preconfigured(tls(settings.roots.as_deref())?).https_only(true);
        builder = limits(builder);
        Ok(Self { client: builder.build().map_err(HttpError::Client)?, most: MAX_BODY, asked_pause: Arc::default() })
    }

    /// A client for a log of Certificate Transparency: it trusts the system's roots and the settings'. A log on this machine may do
    /// without TLS.
    pub(crate) fn for_log(settings: &Settings) -> Result<Self, HttpError> {
        let mut store = roots(settings.roots.as_deref())?;
        store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let builder = limits(reqwest::Client::builder().tls_backend_preconfigured(config(store)?));
        Ok(Self { client: builder.build().map_err(HttpError::Client)?, most: MAX_BODY, asked_pause: Arc::default() })
    }

    /// The pause that the last refusal asked for; asked once.
    pub(crate) fn take_asked_pause(&self) -> Option<Duration> {
        self.asked_pause.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The body of what a URL has.
    pub(crate) async fn get(&self, url: &str) -> Result<Bytes, Error> {
        let response = self.client.get(url).send().await.map_err(other)?.error_for_status().map_err(other)?;
        read(response, self.most).await
    }

    /// What a URL has, of at most so many bytes as they come; `None`: nothing is there. Stores of objects say "forbidden" for that.
    pub(crate) async fn find(&self, url: &str, most: usize) -> Result<Option<Found>, Error> {
        let asked = self.client.get(url).header(ACCEPT_ENCODING, "gzip, identity");
        let response = asked.send().await.map_err(other)?;
        if matches!(response.status(), StatusCode::NOT_FOUND | StatusCode::GONE | StatusCode::FORBIDDEN) {
            return Ok(None);
        }
        let response = response.error_for_status().map_err(other)?;
        let encoding = response.headers().get(CONTENT_ENCODING);
        let encoding = encoding.map(|value| String::from_utf8_lossy(value.as_bytes()).trim().to_ascii_lowercase());
        Ok(Some(Found { body: read(response, most).await?, encoding }))
    }
}

/// What a URL has.
pub(crate) struct Found {
    /// As it came.
    pub(crate) body: Bytes,
    /// How it is compressed (`Content-Encoding`), in lower case.
    pub(crate) encoding: Option<String>,
}

fn limits(builder: reqwest::ClientBuilder) -> reqwest::ClientBuilder {
    builder
        .connect_timeout(CONNECT)
        .timeout(REQUEST)
        .redirect(reqwest::redirect::Policy::none())
        .no_gzip()
        .no_deflate()
        .no_brotli()
        .no_zstd()
        .no_proxy()
        .referer(false)
        .retry(reqwest::retry::never())
        .user_agent(concat!("hearth/", env!("CARGO_PKG_VERSION")))
}

fn other(error: reqwest::Error) -> Error {
    Error::Other(Box::new(error))
}

async fn read(mut response: reqwest::Response, most: usize) -> Result<Bytes, Error> {
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(other)? {
        if body.len() + chunk.len() > most {
            return Err(Error::Other(Box::new(HttpError::TooLarge(most))));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

impl HttpClient for Http {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let this = self.clone();
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let Ok(body) = body.collect().await;
            let request = Request::from_parts(head, body.to_bytes());
            let request = reqwest::Request::try_from(request).map_err(other)?;
            let response = this.client.execute(request).await.map_err(other)?;
            let mut parts = http::Response::new(()).into_parts().0;
            (parts.status, parts.headers) = (response.status(), response.headers().clone());
            if parts.status.is_client_error() || parts.status.is_server_error() {
                let pause = retry_after(&parts.headers, std::time::SystemTime::now());
                *this.asked_pause.lock().unwrap_or_else(PoisonError::into_inner) = pause;
            }
            let body = read(response, this.most).await?;
            Ok(BytesResponse { parts, body: Box::new(body) })
        })
    }
}

/// What `Retry-After` asks for: seconds, or a date (RFC 9110 section 10.2.3).
fn retry_after(headers: &HeaderMap, now: std::time::SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    match text.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => Some(httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default()),
    }
}

/// The roots of a text.
fn roots(pem: Option<&str>) -> Result<rustls::RootCertStore, HttpError> {
    let mut store = rustls::RootCertStore::empty();
    let bad = |error: &dyn std::fmt::Display| HttpError::Roots(error.to_string());
    for certificate in pem.into_iter().flat_map(|pem| CertificateDer::pem_slice_iter(pem.as_bytes())) {
        store.add(certificate.map_err(|error| bad(&error))?).map_err(|error| bad(&error))?;
    }
    Ok(store)
}

fn tls(pem: Option<&str>) -> Result<rustls::ClientConfig, HttpError> {
    let mut store = roots(pem)?;
    if pem.is_none() {
        store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    if store.is_empty() {
        let why =
            if pem.is_some() { "they hold no certificate" } else { "this machine has none: install ca-certificates" };
        return Err(HttpError::Roots(why.into()));
    }
    config(store)
}

fn config(store: rustls::RootCertStore) -> Result<rustls::ClientConfig, HttpError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(HttpError::Tls)?
        .with_root_certificates(store)
        .with_no_client_auth();
    Ok(config)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn a_pause_is_asked_for_in_seconds_or_by_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_770);
        let headers = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, text.parse().expect("a header"));
            retry_after(&headers, now)
        };
        assert_eq!(headers("120"), Some(Duration::from_secs(120)));
        assert_eq!(headers("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::from_secs(7)));
        assert_eq!(headers("Sun, 06 Nov 1994 08:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(headers("soon"), None);
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }

    #[test]
    fn roots_that_are_none_are_refused() {
        for roots in ["", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            assert!(matches!(tls(Some(roots)), Err(HttpError::Roots(_))), "{roots:?}");
        }
    }
}
