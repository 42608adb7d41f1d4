//! The page and the API.

use std::net::SocketAddr;
use std::time::Instant;

use axum::extract::rejection::JsonRejection;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Path, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

use crate::store::{MAX_TEXT_BYTES, Note, Store, StoreError};

/// Bytes of a request: the longest note, with every character escaped.
const MAX_BODY_BYTES: usize = 8 * MAX_TEXT_BYTES;
/// The longest piece of a header that is logged, in characters: it comes from outside.
const LOGGED_CHARS: usize = 200;

/// All routes of the app.
pub(crate) fn router(store: Store) -> Router {
    Router::new()
        .route("/", get(async || asset("text/html; charset=utf-8", include_str!("../web/index.html"))))
        .route("/app.js", get(async || asset("text/javascript; charset=utf-8", include_str!("../web/app.js"))))
        .route("/style.css", get(async || asset("text/css; charset=utf-8", include_str!("../web/style.css"))))
        .route("/favicon.svg", get(async || asset("image/svg+xml", include_str!("../web/favicon.svg"))))
        .route("/healthz", get(async || "ok\n"))
        .route("/api/notes", get(list).post(add))
        .route("/api/notes/{id}", delete(remove))
        .fallback(async || error(StatusCode::NOT_FOUND, "there is nothing here"))
        .method_not_allowed_fallback(async || error(StatusCode::METHOD_NOT_ALLOWED, "this cannot be done here"))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(middleware::from_fn(headers))
        .layer(middleware::from_fn(log))
        .with_state(store)
}

#[derive(Deserialize)]
struct NewNote {
    text: String,
}

async fn list(State(store): State<Store>) -> Json<Vec<Note>> {
    Json(store.list())
}

async fn add(State(store): State<Store>, body: Result<Json<NewNote>, JsonRejection>) -> Response {
    let Json(new) = match body {
        Ok(new) => new,
        Err(rejection) => return error(rejection.status(), &rejection.body_text()),
    };
    match blocking(move || store.add(&new.text)).await {
        Ok(note) => {
            (StatusCode::CREATED, [(header::LOCATION, format!("/api/notes/{}", note.id))], Json(note)).into_response()
        }
        Err(response) => response,
    }
}

async fn remove(State(store): State<Store>, Path(id): Path<String>) -> Response {
    let Ok(id) = Uuid::parse_str(&id) else { return error(StatusCode::NOT_FOUND, "there is no such note") };
    match blocking(move || store.remove(id)).await {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(response) => response,
    }
}

/// The disk may be slow: its work is not done on the threads that serve.
async fn blocking<T, F>(work: F) -> Result<T, Response>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, StoreError> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(problem)) => Err(refuse(&problem)),
        Err(panic) => {
            tracing::error!(%panic, "a request failed");
            Err(error(StatusCode::INTERNAL_SERVER_ERROR, "something went wrong here"))
        }
    }
}

fn refuse(problem: &StoreError) -> Response {
    let status = match problem {
        StoreError::Empty => StatusCode::UNPROCESSABLE_ENTITY,
        StoreError::TooLong(_) => StatusCode::PAYLOAD_TOO_LARGE,
        StoreError::TooMany => StatusCode::CONFLICT,
        StoreError::NotFound(_) => StatusCode::NOT_FOUND,
        StoreError::DiskFull => StatusCode::INSUFFICIENT_STORAGE,
        StoreError::InUse { .. } | StoreError::Io { .. } => {
            tracing::error!("{problem}");
            return error(StatusCode::INTERNAL_SERVER_ERROR, "the notes cannot be written at the moment");
        }
    };
    error(status, &problem.to_string())
}

fn error(status: StatusCode, message: &str) -> Response {
    (status, Json(json!({"error": message}))).into_response()
}

fn asset(content_type: &'static str, content: &'static str) -> Response {
    ([(header::CONTENT_TYPE, content_type), (header::CACHE_CONTROL, "no-cache")], content).into_response()
}

/// Nothing but the app's own files runs on its page, and no other site may frame it.
async fn headers(request: Request, next: Next) -> Response {
    const HEADERS: [(HeaderName, &str); 4] = [
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
             form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
        ),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    let mut response = next.run(request).await;
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// One line a request, with the caller as the ingress names it.
async fn log(request: Request, next: Next) -> Response {
    let start = Instant::now();
    let caller = caller(&request);
    let (method, path) =
        (request.method().clone(), request.uri().path().chars().take(LOGGED_CHARS).collect::<String>());
    let response = next.run(request).await;
    let status = response.status().as_u16();
    let micros = start.elapsed().as_micros() as u64;
    if path == "/healthz" {
        tracing::debug!(%method, path, status, caller, micros, "request");
    } else {
        tracing::info!(%method, path, status, caller, micros, "request");
    }
    response
}

/// `X-Forwarded-For` where there is one, else the peer. Printable only: it comes from outside.
fn caller(request: &Request) -> String {
    let forwarded = request.headers().get("x-forwarded-for").and_then(|value| value.to_str().ok());
    match (forwarded, request.extensions().get::<ConnectInfo<SocketAddr>>()) {
        (Some(forwarded), _) => forwarded.chars().filter(|c| !c.is_control()).take(LOGGED_CHARS).collect(),
        (None, Some(ConnectInfo(peer))) => peer.ip().to_canonical().to_string(),
        (None, None) => "unknown".into(),
    }
}
