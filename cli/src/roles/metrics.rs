//! `/metrics` in the Prometheus text format, and `/healthz`, over plain HTTP.

use axum::{Router, extract::State, http::StatusCode, http::header, response::IntoResponse, routing::get};
use prometheus::{Encoder as _, Registry, TextEncoder};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// A registry with the process's own figures in it.
pub(crate) fn registry() -> anyhow::Result<Registry> {
    let registry = Registry::new();
    registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
    let version = prometheus::Gauge::with_opts(
        prometheus::Opts::new("hearth_build_info", "Always 1; the label says which version runs.")
            .const_label("version", env!("CARGO_PKG_VERSION")),
    )?;
    version.set(1.0);
    registry.register(Box::new(version))?;
    Ok(registry)
}

/// Serves until told to stop.
pub(crate) async fn serve(
    listener: TcpListener,
    registry: Registry,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let router =
        Router::new().route("/metrics", get(text)).route("/healthz", get(|| async { "ok\n" })).with_state(registry);
    axum::serve(listener, router).with_graceful_shutdown(async move { shutdown.cancelled().await }).await
}

async fn text(State(registry): State<Registry>) -> axum::response::Response {
    let mut out = Vec::new();
    match TextEncoder::new().encode(&registry.gather(), &mut out) {
        Ok(()) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], out).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
