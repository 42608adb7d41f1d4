//! What the API counts. Labels are bounded: methods come from a table, codes from gRPC.

use prometheus::{HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

/// From a cached read to a write that waits for a slow disk, in seconds.
const BUCKETS: [f64; 11] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.0, 10.0];

/// The API's metrics.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    pub(crate) requests: IntCounterVec,
    pub(crate) latency: HistogramVec,
    pub(crate) open: IntGaugeVec,
    pub(crate) connections: IntGauge,
    pub(crate) handshake_failures: IntCounter,
    pub(crate) turned_away: IntCounter,
}

impl Metrics {
    /// Registers the metrics; fails where they are registered already.
    pub(crate) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let opts = |name: &str, help: &str| Opts::new(format!("hearth_api_{name}"), help);
        let latency = HistogramOpts::from(opts(
            "request_duration_seconds",
            "Time until the answer to a request began, by service and method.",
        ));
        let metrics = Self {
            requests: IntCounterVec::new(
                opts("requests_total", "Requests that ended, by service, method and gRPC code."),
                &["service", "method", "code"],
            )?,
            latency: HistogramVec::new(latency.buckets(BUCKETS.to_vec()), &["service", "method"])?,
            open: IntGaugeVec::new(
                opts("requests_open", "Requests under way, by service and method; Watch counts the watches."),
                &["service", "method"],
            )?,
            connections: IntGauge::with_opts(opts("connections", "Connections whose TLS handshake is done."))?,
            turned_away: IntCounter::with_opts(opts(
                "connections_turned_away_total",
                "Connections of unknown clients that were closed because there were too many.",
            ))?,
            handshake_failures: IntCounter::with_opts(opts(
                "handshake_failures_total",
                "TLS handshakes that failed or took too long.",
            ))?,
        };
        registry.register(Box::new(metrics.requests.clone()))?;
        registry.register(Box::new(metrics.latency.clone()))?;
        registry.register(Box::new(metrics.open.clone()))?;
        registry.register(Box::new(metrics.connections.clone()))?;
        registry.register(Box::new(metrics.handshake_failures.clone()))?;
        registry.register(Box::new(metrics.turned_away.clone()))?;
        Ok(metrics)
    }
}
