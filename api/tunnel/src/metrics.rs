//! What the tunnels' ends count.

use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use crate::stream::ByteCounters;

/// Buckets of a dial in seconds: an open tunnel answers within a millisecond, a cold one within some round trips.
const DIAL_BUCKETS: [f64; 9] = [0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];

fn register<C: prometheus::core::Collector + Clone + 'static>(registry: &Registry, it: C) -> prometheus::Result<C> {
    registry.register(Box::new(it.clone()))?;
    Ok(it)
}

fn bytes(registry: &Registry) -> prometheus::Result<ByteCounters> {
    let all = IntCounterVec::new(
        Opts::new("hearth_tunnel_stream_bytes_total", "Bytes of streams, without the tunnel's own."),
        &["direction"],
    )?;
    let all = register(registry, all)?;
    Ok(ByteCounters { received: all.with_label_values(&["received"]), sent: all.with_label_values(&["sent"]) })
}

/// The gateway's end.
#[derive(Debug)]
pub(crate) struct HubMetrics {
    /// Open tunnels.
    pub(crate) tunnels: IntGauge,
    /// Open streams.
    pub(crate) streams: IntGauge,
    /// Dials by result: `ok`, `unknown`, `away`, `timeout`, `broken`.
    pub(crate) dials: IntCounterVec,
    /// How long dials took.
    pub(crate) dial_seconds: Histogram,
    /// Dial notices sent.
    pub(crate) notices: IntCounter,
    /// Incoming tunnels refused by reason: `unknown_key`, `full`, `handshake`.
    pub(crate) refused: IntCounterVec,
    /// Tunnels ended by reason: `idle`, `lost`, `replaced`, `revoked`, `closed`.
    pub(crate) ended: IntCounterVec,
    /// Relays that do not answer.
    pub(crate) relays_dead: IntGauge,
    /// Bytes of streams.
    pub(crate) bytes: ByteCounters,
}

impl HubMetrics {
    pub(crate) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let counter = |name, help, label| register(registry, IntCounterVec::new(Opts::new(name, help), &[label])?);
        let gauge = |name, help| register(registry, IntGauge::new(name, help)?);
        Ok(Self {
            tunnels: gauge("hearth_tunnel_open", "Open tunnels of devices.")?,
            streams: gauge("hearth_tunnel_streams_open", "Open streams on tunnels.")?,
            dials: counter("hearth_tunnel_dials_total", "Streams asked for, by result.", "result")?,
            dial_seconds: register(
                registry,
                Histogram::with_opts(
                    HistogramOpts::new("hearth_tunnel_dial_seconds", "From asking for a stream to having it.")
                        .buckets(DIAL_BUCKETS.to_vec()),
                )?,
            )?,
            notices: register(
                registry,
                IntCounter::new("hearth_tunnel_notices_total", "Devices asked to dial through their session.")?,
            )?,
            refused: counter("hearth_tunnel_refused_total", "Incoming tunnels refused, by reason.", "reason")?,
            ended: counter("hearth_tunnel_ended_total", "Tunnels that ended, by reason.", "reason")?,
            relays_dead: gauge("hearth_tunnel_relays_dead", "Relays of the region that do not answer this gateway.")?,
            bytes: bytes(registry)?,
        })
    }
}

/// The device's end.
#[derive(Debug)]
pub(crate) struct DeviceMetrics {
    /// Open tunnels.
    pub(crate) tunnels: IntGauge,
    /// Open streams.
    pub(crate) streams: IntGauge,
    /// Notices by result: `dialled`, `present`, `refused`, `limited`, `failed`.
    pub(crate) notices: IntCounterVec,
    /// Streams by what became of them: `ingress`, `rpc`, `unknown_kind`, `busy`, `refused`.
    pub(crate) accepted: IntCounterVec,
    /// Bytes of streams.
    pub(crate) bytes: ByteCounters,
}

impl DeviceMetrics {
    pub(crate) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let counter = |name, help, label| register(registry, IntCounterVec::new(Opts::new(name, help), &[label])?);
        let gauge = |name, help| register(registry, IntGauge::new(name, help)?);
        Ok(Self {
            tunnels: gauge("hearth_tunnel_open", "Open tunnels to gateways.")?,
            streams: gauge("hearth_tunnel_streams_open", "Open streams on tunnels.")?,
            notices: counter("hearth_tunnel_notices_total", "Dial notices, by what became of them.", "result")?,
            accepted: counter("hearth_tunnel_streams_total", "Streams that arrived, by kind or refusal.", "kind")?,
            bytes: bytes(registry)?,
        })
    }
}
