//! What the gateway counts.

use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// Buckets in seconds from a hello to the open stream: a reused tunnel takes well below a millisecond, a device that
/// is asked to dial some round trips.
const OPEN_BUCKETS: [f64; 9] = [0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];

/// Counters and gauges.
#[derive(Debug)]
pub(crate) struct Metrics {
    /// Open connections.
    pub(crate) open: IntGauge,
    /// Connections by what became of them: `routed`, `redirected`, `unknown_name`, `no_name`, `unreachable`,
    /// `malformed`, `timeout`, `closed`.
    pub(crate) connections: IntCounterVec,
    /// Connections that were refused, by the limit: `connections`, `connections_of_caller`.
    pub(crate) refused: IntCounterVec,
    /// How routed connections ended: `done`, `idle`, `error`, `shutdown`.
    pub(crate) ended: IntCounterVec,
    /// From the hello to the open stream.
    pub(crate) open_seconds: Histogram,
    /// Bytes to devices.
    pub(crate) to_device: IntCounter,
    /// Bytes to callers.
    pub(crate) to_caller: IntCounter,
}

impl Metrics {
    pub(crate) fn register(registry: &Registry) -> prometheus::Result<Self> {
        fn put<C: prometheus::core::Collector + Clone + 'static>(registry: &Registry, it: C) -> prometheus::Result<C> {
            registry.register(Box::new(it.clone()))?;
            Ok(it)
        }
        let by = |name, help, label| put(registry, IntCounterVec::new(Opts::new(name, help), &[label])?);
        let bytes = by("hearth_gateway_bytes_total", "Bytes copied, by direction.", "direction")?;
        let open_seconds = HistogramOpts::new("hearth_gateway_open_seconds", "From a ClientHello to the open stream.")
            .buckets(OPEN_BUCKETS.to_vec());
        Ok(Self {
            open: put(registry, IntGauge::new("hearth_gateway_connections_open", "Open connections.")?)?,
            connections: by("hearth_gateway_connections_total", "Connections, by what became of them.", "result")?,
            refused: by("hearth_gateway_refused_total", "Connections refused at once, by the limit.", "limit")?,
            ended: by("hearth_gateway_ended_total", "Routed connections that ended, by how.", "reason")?,
            open_seconds: put(registry, Histogram::with_opts(open_seconds)?)?,
            to_device: bytes.with_label_values(&["to_device"]),
            to_caller: bytes.with_label_values(&["to_caller"]),
        })
    }
}
