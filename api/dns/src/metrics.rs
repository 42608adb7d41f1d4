//! What the name server counts.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry, core::Collector};

use crate::message::{Rcode, Silence, Transport};

/// Counters and gauges. No names or addresses are labels.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    /// By protocol, then by response code; resolved once, since looking labels up costs more than an answer.
    answered: [[IntCounter; Rcode::ALL.len()]; Transport::ALL.len()],
    silent: [[IntCounter; Silence::ALL.len()]; Transport::ALL.len()],
    /// Answers that a socket did not take.
    pub(crate) unsent: IntCounter,
    /// Open TCP connections.
    pub(crate) tcp_open: IntGauge,
    /// TCP connections closed at once, by the limit.
    pub(crate) tcp_refused: IntCounterVec,
}

impl Metrics {
    pub(crate) fn register(registry: &Registry) -> prometheus::Result<Self> {
        fn put<C: Collector + Clone + 'static>(registry: &Registry, it: C) -> prometheus::Result<C> {
            registry.register(Box::new(it.clone()))?;
            Ok(it)
        }
        let by = |name, help, labels: &[&str]| put(registry, IntCounterVec::new(Opts::new(name, help), labels)?);
        let queries =
            by("hearth_dns_queries_total", "Queries answered, by protocol and response code.", &["protocol", "rcode"])?;
        let silent = by(
            "hearth_dns_unanswered_total",
            "Messages that got no answer, by protocol and reason.",
            &["protocol", "reason"],
        )?;
        Ok(Self {
            answered: Transport::ALL
                .map(|by| Rcode::ALL.map(|rcode| queries.with_label_values(&[by.label(), rcode.label()]))),
            silent: Transport::ALL
                .map(|by| Silence::ALL.map(|reason| silent.with_label_values(&[by.label(), reason.label()]))),
            unsent: put(registry, IntCounter::new("hearth_dns_unsent_total", "UDP answers that the socket refused.")?)?,
            tcp_open: put(registry, IntGauge::new("hearth_dns_tcp_connections_open", "Open TCP connections.")?)?,
            tcp_refused: by(
                "hearth_dns_tcp_refused_total",
                "TCP connections closed at once, by the limit.",
                &["limit"],
            )?,
        })
    }

    pub(crate) fn answered(&self, transport: Transport, rcode: Rcode) {
        self.answered[transport as usize][rcode as usize].inc();
    }

    pub(crate) fn silent(&self, transport: Transport, reason: Silence) {
        self.silent[transport as usize][reason as usize].inc();
    }
}
