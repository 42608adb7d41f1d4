//! What the gateway counts. No label names a caller, a hostname or a device.

use std::time::Duration;

use hearth_types::tunnel::DialError;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// Buckets of a dial in seconds: an open tunnel answers within a millisecond, a cold one within some round trips, and
/// a dial ends after 5 s.
const DIAL_BUCKETS: [f64; 9] = [0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];

/// What became of a connection: the label `outcome`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Passed on to a device, and ended by caller or device.
    Passed,
    /// Passed on, then ended for want of a handshake.
    HandshakeTimeout,
    /// Passed on, then ended for silence.
    Idle,
    /// Passed on, then ended since caller or device took no bytes for too long.
    Stalled,
    /// Passed on, then the caller's connection broke.
    CallerLost,
    /// Passed on, then the device's stream broke.
    DeviceLost,
    /// Handed over to another door of this server.
    Own,
    /// The same, and that door took it not in time.
    OwnBusy,
    /// Plain HTTP, redirected.
    Redirected,
    /// Nobody has the name.
    UnknownName,
    /// Nobody is known to have the name, and the routes are not known yet.
    Starting,
    /// TLS without a server name.
    NoName,
    /// Neither TLS nor HTTP, or broken.
    Malformed,
    /// No whole hello or head in time.
    OpeningTimeout,
    /// No device of the route could be reached, though one has a session.
    Unreachable,
    /// No device of the route has a session.
    Away,
    /// The caller went away before there was anything to pass on.
    HungUp,
    /// Too many connections in all.
    RefusedTotal,
    /// Too many connections of this caller, or new ones too fast.
    RefusedCaller,
    /// Too many connections to this owner's devices, or new ones too fast.
    RefusedOwner,
    /// Ended since the gateway was told to stop, or the port of a flow is served no longer.
    Drained,
    /// A flow that made room for another one.
    Evicted,
}

impl Outcome {
    /// The label's value.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::HandshakeTimeout => "handshake_timeout",
            Self::Idle => "idle",
            Self::Stalled => "stalled",
            Self::CallerLost => "caller_lost",
            Self::DeviceLost => "device_lost",
            Self::Own => "own",
            Self::OwnBusy => "own_busy",
            Self::Redirected => "redirected",
            Self::UnknownName => "unknown_name",
            Self::Starting => "starting",
            Self::NoName => "no_name",
            Self::Malformed => "malformed",
            Self::OpeningTimeout => "opening_timeout",
            Self::Unreachable => "unreachable",
            Self::Away => "away",
            Self::HungUp => "hung_up",
            Self::RefusedTotal => "refused_total",
            Self::RefusedCaller => "refused_caller",
            Self::RefusedOwner => "refused_owner",
            Self::Drained => "drained",
            Self::Evicted => "evicted",
        }
    }
}

/// Why a datagram is dropped: the label `reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dropped {
    /// It would begin a flow, and this says why there is none.
    NoFlow(Outcome),
    /// It would begin a flow, and its port has as many as it may.
    RefusedPort,
    /// Too much of its flow, or of all flows, waits for the device.
    Waiting,
    /// An unconfirmed flow's caller was sent enough.
    Unconfirmed,
    /// The kernel did not take it: it is too long for its way, or there is none.
    Send,
}

impl Dropped {
    fn label(self) -> &'static str {
        match self {
            Self::NoFlow(outcome) => outcome.label(),
            Self::RefusedPort => "refused_port",
            Self::Waiting => "waiting",
            Self::Unconfirmed => "unconfirmed",
            Self::Send => "send",
        }
    }
}

/// The gateway's metrics.
#[derive(Debug)]
pub(crate) struct Metrics {
    /// Open connections.
    pub(crate) open: IntGauge,
    connections: IntCounterVec,
    /// Bytes copied from callers to devices.
    pub(crate) to_device: IntCounter,
    /// Bytes copied from devices to callers.
    pub(crate) to_caller: IntCounter,
    /// Ports of Routes that are listened on.
    pub(crate) ports: IntGauge,
    /// Flows of datagrams that there are.
    pub(crate) flows_open: IntGauge,
    flows: IntCounterVec,
    /// Datagrams passed on from callers to devices.
    pub(crate) datagrams_to_device: IntCounter,
    /// Datagrams passed on from devices to callers.
    pub(crate) datagrams_to_caller: IntCounter,
    dropped: IntCounterVec,
    dials: IntCounterVec,
    dial_seconds: Histogram,
}

impl Metrics {
    pub(crate) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let counter = |name, help, label| register(registry, IntCounterVec::new(Opts::new(name, help), &[label])?);
        let bytes = counter("hearth_gateway_bytes_total", "Bytes copied between callers and devices.", "direction")?;
        let datagrams =
            counter("hearth_gateway_datagrams_total", "Datagrams passed on between callers and devices.", "direction")?;
        Ok(Self {
            flows_open: register(
                registry,
                IntGauge::new(
                    "hearth_gateway_flows_open",
                    "Callers' addresses and ports that send datagrams to ports of Routes.",
                )?,
            )?,
            flows: counter(
                "hearth_gateway_flows_total",
                "Flows of datagrams that ended, by what became of them.",
                "outcome",
            )?,
            datagrams_to_device: datagrams.with_label_values(&["to_device"]),
            datagrams_to_caller: datagrams.with_label_values(&["to_caller"]),
            dropped: counter(
                "hearth_gateway_datagrams_dropped_total",
                "Datagrams that were dropped, by reason.",
                "reason",
            )?,
            open: register(
                registry,
                IntGauge::new("hearth_gateway_connections_open", "Open connections of callers.")?,
            )?,
            connections: counter(
                "hearth_gateway_connections_total",
                "Connections that ended, by what became of them.",
                "outcome",
            )?,
            to_device: bytes.with_label_values(&["to_device"]),
            to_caller: bytes.with_label_values(&["to_caller"]),
            ports: register(
                registry,
                IntGauge::new("hearth_gateway_ports_open", "TCP and UDP ports of Routes that are listened on.")?,
            )?,
            dials: counter("hearth_gateway_dials_total", "Streams to devices asked for, by result.", "result")?,
            dial_seconds: register(
                registry,
                Histogram::with_opts(
                    HistogramOpts::new(
                        "hearth_gateway_dial_seconds",
                        "From asking for a stream to a device to having it.",
                    )
                    .buckets(DIAL_BUCKETS.to_vec()),
                )?,
            )?,
        })
    }

    /// Counts a connection that ended.
    pub(crate) fn ended(&self, outcome: Outcome) {
        self.connections.with_label_values(&[outcome.label()]).inc();
    }

    /// Counts a flow that ended.
    pub(crate) fn flow_ended(&self, outcome: Outcome) {
        self.flows.with_label_values(&[outcome.label()]).inc();
    }

    /// Counts a datagram that is dropped.
    pub(crate) fn dropped(&self, why: Dropped) {
        self.dropped.with_label_values(&[why.label()]).inc();
    }

    /// Counts a dial. How long it took is kept for those that led to a stream.
    pub(crate) fn dialled(&self, result: Result<(), &DialError>, took: Duration) {
        let label = match result {
            Ok(()) => "ok",
            Err(DialError::Unknown(_)) => "unknown",
            Err(DialError::Away(_)) => "away",
            Err(DialError::Timeout { .. }) => "timeout",
            Err(DialError::Broken { .. }) => "broken",
        };
        self.dials.with_label_values(&[label]).inc();
        if result.is_ok() {
            self.dial_seconds.observe(took.as_secs_f64());
        }
    }

    /// Counts an open stream on which the device said nothing: the dial came out well, the tunnel was dead.
    pub(crate) fn silent(&self) {
        self.dials.with_label_values(&["silent"]).inc();
    }
}

fn register<C: prometheus::core::Collector + Clone + 'static>(registry: &Registry, it: C) -> prometheus::Result<C> {
    registry.register(Box::new(it.clone()))?;
    Ok(it)
}
