//! One request: to the pod and back.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, Uri, Version, header};
use http_body_util::{BodyExt as _, combinators::BoxBody};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use tokio::time::{Instant, sleep_until};

use super::{
    Ingress, headers, origin, page,
    place::Place,
    target::{self, Outage},
};

/// How long a pod may take to accept a connection: it is on the same machine.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long an app may take to begin its answer while nothing of the request moves.
const ANSWER_TIMEOUT: Duration = Duration::from_mins(2);
/// How long an unused connection to a pod is kept.
const IDLE: Duration = Duration::from_secs(30);
/// Unused connections that are kept for one pod, each of which was in use beside the others within [`IDLE`]. With fewer than are in use at
/// once, requests go on closing and opening connections: each that is closed keeps its port for a minute (TIME-WAIT), of the 28,000 that there
/// are towards one pod, and once few are left, looking for one takes the kernel longer than all else.
const MAX_IDLE: usize = 256;

type Error = Box<dyn std::error::Error + Send + Sync>;
/// What goes back to a user.
pub(super) type Answer = Response<BoxBody<Bytes, Error>>;
/// Connections to pods.
pub(super) type Upstream = Client<HttpConnector, Watched>;

/// A pool of connections to pods.
pub(super) fn upstream() -> Upstream {
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    connector.set_nodelay(true);
    connector.enforce_http(true);
    Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        .pool_max_idle_per_host(MAX_IDLE)
        .build(connector)
}

/// A user's connection, as far as its requests need to know.
pub(super) struct Connection {
    /// Its place among those that are allowed at once.
    pub(super) place: Arc<Place>,
    pub(super) caller: SocketAddr,
    /// The name that its TLS handshake was for.
    pub(super) name: String,
}

/// Answers a request that came over a connection.
pub(super) async fn answer(ingress: &Ingress, connection: &Connection, request: Request<Incoming>) -> Answer {
    let answer = respond(ingress, connection, request).await;
    let class = match answer.status().as_u16() {
        100..=199 => "1xx",
        200..=299 => "2xx",
        300..=399 => "3xx",
        400..=499 => "4xx",
        _ => "5xx",
    };
    ingress.inner.metrics.ingress_requests.with_label_values(&[class]).inc();
    answer
}

async fn respond(ingress: &Ingress, connection: &Connection, mut request: Request<Incoming>) -> Answer {
    let said = request.headers().clone();
    let own = |page: Response<http_body_util::Full<Bytes>>| page.map(|body| body.map_err(Into::into).boxed());
    let Some(authority) = authority(&request) else {
        return own(page::bad("The request names no host.", &said));
    };
    let host = headers::host_of(&authority);
    let Some(route) = ingress.route(&host).filter(|_| host == connection.name) else {
        return own(page::misdirected(&host, &said));
    };
    let target = match target::choose(&route, &ingress.inner.pods) {
        Ok(target) => target.address,
        Err(outage) => return own(page::outage(&outage, &host, &said)),
    };
    let method = request.method().clone();
    let same_app = |name: &str| ingress.route(name).is_some_and(|other| other.same_app(&route));
    origin::guard_request(request.headers_mut(), &method, &host, same_app);
    match pass_on(&ingress.inner.upstream, connection, target, &authority, request).await {
        Ok(mut answer) => {
            origin::guard_answer(answer.headers_mut(), &host);
            answer
        }
        Err(outage) => {
            // The pod may have ended while it was asked.
            let outage = target::choose(&route, &ingress.inner.pods).err().unwrap_or(outage);
            own(page::outage(&outage, &host, &said))
        }
    }
}

/// What the request is for: `:authority` in HTTP/2, `Host` in HTTP/1.1.
fn authority(request: &Request<Incoming>) -> Option<String> {
    let from_uri = request.uri().authority().map(|one| one.as_str().to_owned());
    let from_header = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).map(str::to_owned);
    from_uri.or(from_header).filter(|text| !text.is_empty() && !text.contains('@'))
}

async fn pass_on(
    upstream: &Upstream,
    connection: &Connection,
    target: SocketAddr,
    authority: &str,
    mut request: Request<Incoming>,
) -> Result<Answer, Outage> {
    let wanted = (request.version() == Version::HTTP_11).then(|| headers::upgrade(request.headers())).flatten();
    let client = wanted.is_some().then(|| hyper::upgrade::on(&mut request));
    let activity = Arc::new(Activity::default());
    let (mut head, body) = request.into_parts();
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    let uri = Uri::builder().scheme("http").authority(target.to_string()).path_and_query(path).build();
    head.uri = uri.map_err(|_| Outage::Unreachable)?;
    head.version = Version::HTTP_11;
    head.extensions = http::Extensions::new();
    headers::forward(&mut head.headers, authority, connection.caller.ip(), wanted);
    let body = Watched { body, activity: Arc::clone(&activity) };
    let asked = upstream.request(Request::from_parts(head, body));
    let mut response = tokio::select! {
        response = asked => response.map_err(|error| {
            tracing::debug!(%target, error = crate::files::chain(&error), "a pod did not answer");
            Outage::Unreachable
        })?,
        () = activity.silence(ANSWER_TIMEOUT) => return Err(Outage::TimedOut),
    };
    let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    let protocol = headers::upgrade(response.headers());
    if switched && let Some(client) = client {
        let app = hyper::upgrade::on(&mut response);
        tokio::spawn(tunnel(client, app, Arc::clone(&connection.place)));
    }
    let (mut head, body) = response.into_parts();
    headers::strip_hop_by_hop(&mut head.headers);
    if switched {
        restore_upgrade(&mut head.headers, protocol);
    }
    head.extensions = http::Extensions::new();
    // The server sets the version of its own connection.
    head.version = Version::default();
    Ok(Response::from_parts(head, body.map_err(Into::into).boxed()))
}

fn restore_upgrade(headers: &mut HeaderMap, protocol: Option<http::HeaderValue>) {
    if let Some(protocol) = protocol {
        headers.insert(header::CONNECTION, http::HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, protocol);
    }
}

/// Carries the bytes of a connection that switched protocols (WebSocket, RFC 6455) until either end is done.
async fn tunnel(client: hyper::upgrade::OnUpgrade, app: hyper::upgrade::OnUpgrade, _place: Arc<Place>) {
    match tokio::try_join!(client, app) {
        Ok((client, app)) => {
            // An end that breaks is an end.
            let _ = tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(app)).await;
        }
        Err(error) => tracing::debug!(%error, "a connection did not switch protocols"),
    }
}

/// When bytes of a request moved last.
#[derive(Debug)]
struct Activity {
    begin: Instant,
    last_millis: AtomicU64,
}

impl Default for Activity {
    fn default() -> Self {
        Self { begin: Instant::now(), last_millis: AtomicU64::new(0) }
    }
}

impl Activity {
    fn note(&self) {
        self.last_millis.store(self.begin.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// Resolves once nothing has moved for so long.
    async fn silence(&self, limit: Duration) {
        loop {
            let last = self.begin + Duration::from_millis(self.last_millis.load(Ordering::Relaxed));
            if last.elapsed() >= limit {
                return;
            }
            sleep_until(last + limit).await;
        }
    }
}

/// A request's body that notes when it moves: a large upload on a slow line is not a silent app.
pub(super) struct Watched {
    body: Incoming,
    activity: Arc<Activity>,
}

impl Body for Watched {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if frame.is_ready() {
            self.activity.note();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
