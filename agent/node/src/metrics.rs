//! What the agent counts.

use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

/// The agent's metrics; labels are of bounded sets, never names of objects.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    pub(crate) pods: IntGaugeVec,
    pub(crate) container_starts: IntCounterVec,
    pub(crate) container_start_seconds: Histogram,
    pub(crate) container_restarts: IntCounter,
    pub(crate) session_up: IntGauge,
    pub(crate) sessions: IntCounterVec,
    pub(crate) desired_refused: IntCounterVec,
    pub(crate) streams: IntCounterVec,
    pub(crate) ingress_requests: IntCounterVec,
    pub(crate) ingress_connections: IntGauge,
    pub(crate) ingress_flows: IntGauge,
    pub(crate) evictions: IntCounterVec,
    pub(crate) failures: IntCounterVec,
}

impl Metrics {
    pub(crate) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let made = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(made.clone()))?;
            Ok::<_, prometheus::Error>(made)
        };
        let gauge = |name: &str, help: &str| {
            let made = IntGauge::new(name, help)?;
            registry.register(Box::new(made.clone()))?;
            Ok::<_, prometheus::Error>(made)
        };
        let pods = IntGaugeVec::new(Opts::new("hearth_agent_pods", "Pods on this device by phase."), &["phase"])?;
        registry.register(Box::new(pods.clone()))?;
        let container_start_seconds = Histogram::with_opts(
            HistogramOpts::new("hearth_agent_container_start_seconds", "From the decision to the exec'd entrypoint.")
                .buckets(vec![0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0]),
        )?;
        registry.register(Box::new(container_start_seconds.clone()))?;
        let container_restarts =
            IntCounter::new("hearth_agent_container_restarts_total", "Containers that were started again.")?;
        registry.register(Box::new(container_restarts.clone()))?;
        Ok(Self {
            pods,
            container_start_seconds,
            container_restarts,
            container_starts: counters(
                "hearth_agent_container_starts_total",
                "Containers that were to be started, by result.",
                &["result"],
            )?,
            session_up: gauge("hearth_agent_session_up", "1 while the device has a session with its region.")?,
            sessions: counters(
                "hearth_agent_sessions_total",
                "Sessions that were tried, by how they ended.",
                &["end"],
            )?,
            desired_refused: counters(
                "hearth_agent_desired_refused_total",
                "Words of the region that were not believed, by reason.",
                &["reason"],
            )?,
            streams: counters("hearth_agent_streams_total", "Streams that gateways opened, by kind.", &["kind"])?,
            ingress_requests: counters(
                "hearth_agent_ingress_requests_total",
                "Requests of users by class of status.",
                &["class"],
            )?,
            ingress_connections: gauge("hearth_agent_ingress_connections", "Connections of users that are open.")?,
            ingress_flows: gauge("hearth_agent_ingress_flows", "Flows of users' datagrams that are open.")?,
            evictions: counters(
                "hearth_agent_evictions_total",
                "Pods that were evicted since the device ran short, by what of (the kubelet's signals).",
                &["signal"],
            )?,
            failures: counters(
                "hearth_agent_failures_total",
                "Steps that failed, by step: image, volumes, network, sandbox.",
                &["step"],
            )?,
        })
    }
}
