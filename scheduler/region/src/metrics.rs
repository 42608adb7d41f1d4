//! What the region's loops measure. Labels are bounded: controllers and reasons, never names of objects.

use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// The metrics.
pub(crate) struct Metrics {
    pub(crate) reconciles: IntCounterVec,
    pub(crate) reconcile_seconds: HistogramVec,
    pub(crate) queue_depth: IntGauge,
    pub(crate) sessions: IntGauge,
    pub(crate) sessions_ended: IntCounterVec,
    pub(crate) statuses: IntCounterVec,
    pub(crate) pending_pods: IntGauge,
    pub(crate) placements: IntCounterVec,
    pub(crate) plan_seconds: Histogram,
    pub(crate) heartbeat_delay_seconds: Histogram,
    pub(crate) events_dropped: IntCounter,
    pub(crate) relists: IntCounter,
    pub(crate) behind_devices: IntGauge,
    pub(crate) hand_ins_refused: IntCounter,
}

impl Metrics {
    pub(crate) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counters = |name: &str, help: &str, labels: &[&str]| -> Result<IntCounterVec, prometheus::Error> {
            let metric = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(metric.clone()))?;
            Ok(metric)
        };
        let counter = |name: &str, help: &str| -> Result<IntCounter, prometheus::Error> {
            let metric = IntCounter::new(name, help)?;
            registry.register(Box::new(metric.clone()))?;
            Ok(metric)
        };
        let gauge = |name: &str, help: &str| -> Result<IntGauge, prometheus::Error> {
            let metric = IntGauge::new(name, help)?;
            registry.register(Box::new(metric.clone()))?;
            Ok(metric)
        };
        let buckets = prometheus::exponential_buckets(0.000_1, 4.0, 9)?;
        let reconcile_seconds = HistogramVec::new(
            HistogramOpts::new("hearth_region_reconcile_seconds", "Time of one reconcile with its write")
                .buckets(buckets.clone()),
            &["controller"],
        )?;
        registry.register(Box::new(reconcile_seconds.clone()))?;
        let plan_seconds = Histogram::with_opts(
            HistogramOpts::new(
                "hearth_region_plan_seconds",
                "Time to plan one batch of pending pods, without its write",
            )
            .buckets(buckets),
        )?;
        registry.register(Box::new(plan_seconds.clone()))?;
        let heartbeat_delay_seconds = Histogram::with_opts(
            HistogramOpts::new(
                "hearth_region_heartbeat_delay_seconds",
                "How much later than it was due a heartbeat of a device came",
            )
            .buckets(vec![0.01, 0.05, 0.25, 1.0, 5.0, 20.0]),
        )?;
        registry.register(Box::new(heartbeat_delay_seconds.clone()))?;
        Ok(Self {
            reconciles: counters(
                "hearth_region_reconciles_total",
                "Reconciles by controller and result",
                &["controller", "result"],
            )?,
            reconcile_seconds,
            queue_depth: gauge("hearth_region_queue_depth", "Keys that wait for a reconcile")?,
            sessions: gauge("hearth_region_sessions", "Devices with a session")?,
            sessions_ended: counters(
                "hearth_region_sessions_ended_total",
                "Sessions that ended, by reason",
                &["reason"],
            )?,
            statuses: counters(
                "hearth_region_statuses_total",
                "Statuses that devices reported, by result",
                &["result"],
            )?,
            pending_pods: gauge("hearth_region_pending_pods", "Pods without a device")?,
            placements: counters("hearth_region_placements_total", "Pods planned, by result", &["result"])?,
            plan_seconds,
            heartbeat_delay_seconds,
            events_dropped: counter("hearth_region_events_dropped_total", "Events that a limit held back")?,
            behind_devices: gauge(
                "hearth_region_behind_devices",
                "Devices that have seen revisions that the region does not have: its store was restored from an older state",
            )?,
            hand_ins_refused: counter(
                "hearth_region_hand_ins_refused_total",
                "Hand-ins of devices to a recovered region that were refused, whole or in part",
            )?,
            relists: counter("hearth_region_relists_total", "Times a cache was filled anew because its watch ended")?,
        })
    }
}
