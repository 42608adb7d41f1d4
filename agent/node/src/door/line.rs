//! By what this device is reached now, and what its line is like.

use std::time::Duration;

use hearth_proto::v1;
use hearth_tunnel::{DeviceTunnel, StreamPeer, TunnelPath};
use tokio::sync::Semaphore;
use tonic::Status;

use super::refuse;
use crate::line::is_translated;

/// How long the first look at the line is waited for: it takes up to three seconds where UDP is blocked, and never more than five.
const PATIENCE: Duration = Duration::from_secs(6);

pub(super) async fn serve(
    tunnel: &DeviceTunnel,
    questions: &Semaphore,
    asking: Option<StreamPeer>,
) -> Result<v1::LineResponse, Status> {
    let permit = questions.acquire().await;
    let _permit = permit.map_err(|_| refuse(hearth_types::Reason::InternalError, "the device's door is closing"))?;
    let line = tunnel.line(PATIENCE).await.unwrap_or_default();
    let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    // After the wait: a direct path may have been found meanwhile.
    let tunnels = tunnel.tunnels().into_iter().map(|one| {
        let (direct, relay) = match one.path {
            Some(TunnelPath::Direct(address)) => (address.to_string(), String::new()),
            Some(TunnelPath::Relay(name)) => (String::new(), name),
            None => (String::new(), String::new()),
        };
        v1::TunnelPath {
            gateway_key: one.gateway_key.to_vec().into(),
            asked_by: asking.is_some_and(|peer| peer.key == one.gateway_key),
            direct,
            relay,
            round_trip_micros: one.rtt.map(micros),
        }
    });
    Ok(v1::LineResponse {
        tunnels: tunnels.collect(),
        udp: line.udp,
        port_varies: line.port_varies,
        public_address: line.public.map(|address| address.to_string()).unwrap_or_default(),
        translated: line.public.map(is_translated),
        relays: line
            .relays
            .into_iter()
            .map(|(relay, time)| v1::RelayLatency { relay, round_trip_micros: micros(time) })
            .collect(),
    })
}
