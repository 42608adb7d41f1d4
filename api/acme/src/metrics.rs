//! What the watch of Certificate Transparency counts. No names of logs are labels.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry, core::Collector};

use crate::ct::Failure;

/// Counters and gauges.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    /// Entries that were read.
    pub(crate) entries: IntCounter,
    /// Of those, the ones that are no certificate that can be read.
    pub(crate) unreadable: IntCounter,
    /// Entries that logs have and that were not read yet.
    pub(crate) behind: IntGauge,
    /// Certificates that nobody asked for.
    pub(crate) unexpected: IntCounter,
    failures: IntCounterVec,
}

impl Metrics {
    /// Registers the metrics; fails where they are registered already.
    pub(crate) fn register(registry: &Registry) -> prometheus::Result<Self> {
        fn put<C: Collector + Clone + 'static>(registry: &Registry, it: C) -> prometheus::Result<C> {
            registry.register(Box::new(it.clone()))?;
            Ok(it)
        }
        let counter = |name, help| put(registry, IntCounter::new(name, help)?);
        let failures = Opts::new(
            "hearth_ct_failures_total",
            "Times that a log of Certificate Transparency was not read to its end, by reason.",
        );
        let failures = put(registry, IntCounterVec::new(failures, &["reason"])?)?;
        for failure in Failure::ALL {
            failures.with_label_values(&[failure.label()]);
        }
        Ok(Self {
            entries: counter("hearth_ct_entries_total", "Entries of logs of Certificate Transparency that were read.")?,
            unreadable: counter(
                "hearth_ct_unreadable_entries_total",
                "Entries of logs that are no certificate that can be read.",
            )?,
            behind: put(
                registry,
                IntGauge::new("hearth_ct_behind_entries", "Entries that logs have and that were not read yet.")?,
            )?,
            unexpected: counter(
                "hearth_ct_unexpected_certificates_total",
                "Certificates for names of the zone that no device asked for.",
            )?,
            failures,
        })
    }

    pub(crate) fn failed(&self, failure: Failure) {
        self.failures.with_label_values(&[failure.label()]).inc();
    }
}
