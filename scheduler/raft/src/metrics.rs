//! What the store tells Prometheus.

use prometheus::{Histogram, HistogramOpts, IntCounter, IntGauge, Registry};

/// The store's metrics. Labels: none.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    /// Bytes appended to the log.
    pub(crate) appended_bytes: IntCounter,
    /// Seconds that a sync of the log took.
    pub(crate) sync_seconds: Histogram,
    /// Appends that one sync made durable.
    pub(crate) batch_appends: Histogram,
    /// The index of the last entry applied.
    pub(crate) applied_index: IntGauge,
    /// The revision.
    pub(crate) revision: IntGauge,
    /// Objects in the store.
    pub(crate) objects: IntGauge,
    /// Snapshots written since the start.
    pub(crate) snapshots: IntCounter,
    /// Snapshots that could not be written.
    pub(crate) snapshot_failures: IntCounter,
    /// Bytes of the last snapshot.
    pub(crate) snapshot_bytes: IntGauge,
    /// Watchers now.
    pub(crate) watchers: IntGauge,
    /// Watchers that were too slow.
    pub(crate) watchers_expired: IntCounter,
    /// Writes on their way now.
    pub(crate) writes_in_flight: IntGauge,
    /// Writes refused because too many were on their way.
    pub(crate) writes_refused: IntCounter,
    /// Whether this server leads.
    pub(crate) leader: IntGauge,
    /// The term.
    pub(crate) term: IntGauge,
    /// Servers of the region that vote.
    pub(crate) voters: IntGauge,
    /// Other servers that do not answer.
    pub(crate) peers_silent: IntGauge,
    /// 1 once the store acknowledges no more writes.
    pub(crate) failed: IntGauge,
}

impl Metrics {
    /// Makes and registers them.
    pub(crate) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counter = |name: &str, help: &str| -> Result<IntCounter, prometheus::Error> {
            let one = IntCounter::new(format!("hearth_store_{name}"), help)?;
            registry.register(Box::new(one.clone()))?;
            Ok(one)
        };
        let gauge = |name: &str, help: &str| -> Result<IntGauge, prometheus::Error> {
            let one = IntGauge::new(format!("hearth_store_{name}"), help)?;
            registry.register(Box::new(one.clone()))?;
            Ok(one)
        };
        let histogram = |name: &str, help: &str, buckets: Vec<f64>| -> Result<Histogram, prometheus::Error> {
            let options = HistogramOpts::new(format!("hearth_store_{name}"), help).buckets(buckets);
            let one = Histogram::with_opts(options)?;
            registry.register(Box::new(one.clone()))?;
            Ok(one)
        };
        Ok(Self {
            appended_bytes: counter("log_appended_bytes_total", "Bytes appended to the log of the store.")?,
            sync_seconds: histogram(
                "log_sync_seconds",
                "Seconds that making the log durable (fdatasync) took.",
                prometheus::exponential_buckets(0.000_05, 2.0, 16)?,
            )?,
            batch_appends: histogram(
                "log_batch_appends",
                "Appends that one sync of the log made durable.",
                prometheus::exponential_buckets(1.0, 2.0, 10)?,
            )?,
            applied_index: gauge("applied_index", "Index of the last log entry that was applied.")?,
            revision: gauge("revision", "Revision of the store.")?,
            objects: gauge("objects", "Objects in the store.")?,
            snapshots: counter("snapshots_total", "Snapshots written since the start.")?,
            snapshot_failures: counter(
                "snapshot_failures_total",
                "Times that a snapshot could not be written; the log grows meanwhile.",
            )?,
            snapshot_bytes: gauge("snapshot_bytes", "Size of the last snapshot in bytes.")?,
            watchers: gauge("watchers", "Watches that are open.")?,
            watchers_expired: counter("watchers_expired_total", "Watches that ended because they were too slow.")?,
            writes_in_flight: gauge("writes_in_flight", "Transactions that were proposed and not yet answered.")?,
            writes_refused: counter(
                "writes_refused_total",
                "Transactions refused because too many were on their way.",
            )?,
            leader: gauge("leader", "1 while this server leads the region, else 0.")?,
            term: gauge("term", "Raft's term: rises with every election.")?,
            voters: gauge("voters", "Servers of the region that vote.")?,
            peers_silent: gauge("peers_silent", "Other servers of the region that answered no call for two seconds.")?,
            failed: gauge("failed", "1 once the store stopped acknowledging writes, until a restart.")?,
        })
    }
}
