//! `status.<zone>`: what an owner sees in a browser of their devices and apps when something is away, by a link from
//! `hearth token create --status`. It is served at the API's door, and changes nothing.
//!
//! # Guarantees
//! Nothing is told to whoever shows no token that is good now; a token that expires or is deleted shows nothing from then on. What is shown is of
//! one owner alone, and no secret: names, states, times. A token that was deleted may be good for moments more at another server. Pages hold no script and let none in, and nobody keeps or frames them.

mod page;
mod view;

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use hearth_types::{
    GroupKind, ObjectKey, Reason, Status,
    store::{Consistency, Query},
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use tonic::body::Body;
use tower::{Layer, Service};

use self::view::View;
use crate::{resources::ResourceService, tokens::Tokens};

/// Objects of one kind on a page: a household has some dozens.
const MAX_OBJECTS: usize = 500;
/// How the browser keeps the token: for this host alone (RFC 6265bis section 4.1.3.2), over TLS, and out of reach of scripts.
const COOKIE: &str = "__Host-hearth-status";
/// How long the store may take before the page says so.
const PATIENCE: Duration = Duration::from_secs(5);

/// The name of the page's host.
pub fn status_host(zone: &str) -> String {
    format!("status.{zone}")
}

/// The page of a region.
pub(crate) struct StatusPage {
    pub(crate) resources: Arc<ResourceService>,
    pub(crate) tokens: Arc<Tokens>,
}

impl StatusPage {
    async fn answer(&self, method: &Method, path: &str, headers: &HeaderMap) -> Response<Body> {
        if !matches!(*method, Method::GET | Method::HEAD) {
            let mut refused = said(StatusCode::METHOD_NOT_ALLOWED, &page::sentence("Nothing can be changed here."));
            refused.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return refused;
        }
        let asked = async {
            match path {
                "/" => self.overview(headers).await,
                "/out" => Ok(leave()),
                _ => match path.strip_prefix("/in/") {
                    Some(token) => self.enter(token).await,
                    None => Ok(said(StatusCode::NOT_FOUND, &page::sentence("There is no such page."))),
                },
            }
        };
        let answered = match tokio::time::timeout(PATIENCE, asked).await {
            Ok(answered) => answered,
            Err(_) => Err(Status::unavailable("the region does not answer in time; try again")),
        };
        answered.unwrap_or_else(|status| refusal(&status))
    }

    /// A link was followed: the browser keeps the token, and its address line does not.
    async fn enter(&self, token: &str) -> Result<Response<Body>, Status> {
        let (_, left) = self.tokens.status_of(token).await?;
        // What `status_of` took is of a-z, 2-7 and a dot.
        let cookie = format!("{COOKIE}={token}; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age={}", left.as_secs());
        let cookie = HeaderValue::try_from(cookie).map_err(|_| Status::internal("the token is no text"))?;
        let mut response = said(StatusCode::SEE_OTHER, &page::sentence("Go on to the page itself."));
        response.headers_mut().insert(header::SET_COOKIE, cookie);
        response.headers_mut().insert(header::LOCATION, HeaderValue::from_static("/"));
        Ok(response)
    }

    async fn overview(&self, headers: &HeaderMap) -> Result<Response<Body>, Status> {
        let Some(token) = token_in(headers) else {
            return Ok(said(StatusCode::UNAUTHORIZED, &page::locked()));
        };
        let (owner, _) = self.tokens.status_of(token).await?;
        let of = |kind: GroupKind| Query { namespace: Some(owner.clone()), ..Query::all(kind) };
        // What this server knows now: the page is of use above all when the region is not at its best.
        let list = async |query: Query| self.resources.list(&query, MAX_OBJECTS, None, Consistency::Local).await;
        let mut devices = Vec::new();
        for key in self.resources.devices().of_owner(&owner, MAX_OBJECTS) {
            let key = ObjectKey::new(GroupKind::DEVICE, "", key.as_str());
            devices.extend(self.resources.store().get(&key, Consistency::Local).await?);
        }
        let (installs, routes) = (list(of(GroupKind::INSTALL)).await?, list(of(GroupKind::ROUTE)).await?);
        let view = View::of(&owner, &devices, &installs.items, &routes.items, self.resources.clock().now());
        Ok(said(StatusCode::OK, &page::overview(&view)))
    }
}

fn token_in(headers: &HeaderMap) -> Option<&str> {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = cookies.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find_map(|(name, value)| (name == COOKIE).then_some(value))
}

fn leave() -> Response<Body> {
    let mut response = said(StatusCode::OK, &page::sentence("This browser has forgotten the link."));
    let forget = format!("{COOKIE}=; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age=0");
    if let Ok(forget) = HeaderValue::try_from(forget) {
        response.headers_mut().insert(header::SET_COOKIE, forget);
    }
    response
}

/// What is told where there is no page: of a token nothing but that it is none.
fn refusal(status: &Status) -> Response<Body> {
    match status.reason {
        Reason::Unauthorized | Reason::Forbidden => said(StatusCode::FORBIDDEN, &page::locked()),
        _ => {
            tracing::warn!(%status, "a status page cannot be shown");
            said(StatusCode::SERVICE_UNAVAILABLE, &page::sentence("The region cannot say that now; try again."))
        }
    }
}

fn said(status: StatusCode, html: &str) -> Response<Body> {
    let mut response = Response::new(Body::new(html.to_owned()));
    *response.status_mut() = status;
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CACHE_CONTROL, "no-store"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; form-action 'none'; base-uri 'none'",
        ),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    for (name, value) in headers {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Lets the page answer for its host, and everybody else for theirs.
#[derive(Clone)]
pub(crate) struct StatusLayer {
    host: Arc<str>,
    page: Arc<StatusPage>,
}

impl StatusLayer {
    pub(crate) fn new(page: StatusPage) -> Self {
        Self { host: status_host(page.resources.zone()).into(), page: Arc::new(page) }
    }
}

impl<S> Layer<S> for StatusLayer {
    type Service = StatusService<S>;
    fn layer(&self, inner: S) -> StatusService<S> {
        StatusService { inner, layer: self.clone() }
    }
}

/// See [`StatusLayer`].
#[derive(Clone)]
pub(crate) struct StatusService<S> {
    inner: S,
    layer: StatusLayer,
}

impl<S> Service<Request<Body>> for StatusService<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if request.uri().host().is_none_or(|host| !host.eq_ignore_ascii_case(&self.layer.host)) {
            return Box::pin(self.inner.call(request));
        }
        let page = self.layer.page.clone();
        Box::pin(async move {
            let (head, _) = request.into_parts();
            Ok(page.answer(&head.method, head.uri.path(), &head.headers).await)
        })
    }
}
