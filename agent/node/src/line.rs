//! By what this device is reached and what its line is like: looked at while somebody reaches into it, and told to the region when it changed
//! for good. Whoever wants to know how it is now asks the device (`door`).

use std::{net::SocketAddr, sync::Arc, time::Duration};

use hearth_tunnel::{DeviceTunnel, LineStatus, TunnelPath, TunnelStatus};
use hearth_types::kinds::{DeviceNetwork, NatMapping, RelayDistance, TunnelKind, UdpPassage};
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::shared::Shared;

/// How often it is looked while a tunnel is open: at nothing but what is in memory.
const EVERY: Duration = Duration::from_secs(2);
/// How long something has to hold before it is told: a tunnel begins by a relay, and goes straight some seconds later.
const SETTLE: Duration = Duration::from_secs(10);
/// The least time between two tellings, each of which is an entry in the region's log.
const BETWEEN: Duration = Duration::from_mins(5);
/// Round trips that differ by less are the same, whatever their ratio: in milliseconds.
const SAME_MILLIS: u32 = 20;

/// Looks for as long as the agent runs.
pub(crate) async fn run(shared: Arc<Shared>, tunnel: DeviceTunnel) {
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut settled, mut gateway) = (Settled::default(), None);
    loop {
        tick.tick().await;
        let tunnels = tunnel.tunnels();
        // The same gateway's as before: another one's may go another way.
        let same = tunnels.iter().find(|one| Some(one.gateway_key) == gateway);
        let Some(chosen) = same.or(tunnels.first()) else { continue };
        gateway = Some(chosen.gateway_key);
        let Some(line) = tunnel.line(Duration::ZERO).await else { continue };
        if let Some(network) = settled.see(network(chosen, &line), Instant::now()) {
            shared.tell_of_device("network", json!(network));
        }
    }
}

/// Whether an address is another than this machine's own, so that a router is in between.
pub(crate) fn is_translated(public: SocketAddr) -> bool {
    // What is no address of this machine cannot be bound.
    std::net::UdpSocket::bind((public.ip(), 0)).is_err()
}

fn network(tunnel: &TunnelStatus, line: &LineStatus) -> DeviceNetwork {
    let millis = |time: Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
    let (path, relay, address) = match &tunnel.path {
        Some(TunnelPath::Direct(address)) => (Some(TunnelKind::Direct), None, Some(address.to_string())),
        Some(TunnelPath::Relay(name)) => (Some(TunnelKind::Relay), Some(name.clone()), None),
        None => (None, None, None),
    };
    let mapping = match (line.public, line.port_varies) {
        (Some(public), _) if !is_translated(public) => Some(NatMapping::None),
        (_, Some(true)) => Some(NatMapping::AddressDependent),
        (_, Some(false)) => Some(NatMapping::EndpointIndependent),
        (_, None) => None,
    };
    DeviceNetwork {
        path,
        relay,
        address,
        round_trip_millis: tunnel.rtt.map(millis),
        udp: line.udp.map(|open| if open { UdpPassage::Open } else { UdpPassage::Blocked }),
        mapping,
        relays: line
            .relays
            .iter()
            .map(|(name, time)| RelayDistance { name: name.clone(), round_trip_millis: millis(*time) })
            .collect(),
        last_transition_time: None,
    }
}

/// What was told, and what may be told next. Pure.
#[derive(Debug, Default)]
struct Settled {
    told: Option<(DeviceNetwork, Instant)>,
    /// What is seen now, if it is another, and since when.
    next: Option<(DeviceNetwork, Instant)>,
}

impl Settled {
    /// What is to be told now that this is seen, if anything.
    fn see(&mut self, mut seen: DeviceNetwork, now: Instant) -> Option<DeviceNetwork> {
        if let Some((told, _)) = &self.told {
            // What cannot be told now has not changed by that.
            seen.udp = seen.udp.or(told.udp);
            seen.mapping = seen.mapping.or(told.mapping);
            if seen.path.is_none() || is_same(told, &seen) {
                self.next = None;
                return None;
            }
        } else if seen.path.is_none() {
            return None;
        }
        let since = match &self.next {
            Some((next, since)) if is_same(next, &seen) => *since,
            _ => now,
        };
        let often = self.told.as_ref().is_some_and(|(_, at)| now.duration_since(*at) < BETWEEN);
        if now.duration_since(since) < SETTLE || often {
            self.next = Some((seen, since));
            return None;
        }
        self.next = None;
        self.told = Some((seen.clone(), now));
        Some(seen)
    }
}

fn is_same(one: &DeviceNetwork, other: &DeviceNetwork) -> bool {
    let near = |a: u32, b: u32| {
        let (short, long) = (a.min(b), a.max(b));
        long - short < SAME_MILLIS || long < short.saturating_mul(2)
    };
    let times = match (one.round_trip_millis, other.round_trip_millis) {
        (Some(a), Some(b)) => near(a, b),
        _ => true,
    };
    times && one.is_like(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(relay: Option<&str>, millis: u32) -> DeviceNetwork {
        DeviceNetwork {
            path: Some(if relay.is_some() { TunnelKind::Relay } else { TunnelKind::Direct }),
            relay: relay.map(str::to_owned),
            round_trip_millis: Some(millis),
            udp: Some(UdpPassage::Open),
            ..DeviceNetwork::default()
        }
    }

    #[test]
    fn what_holds_is_told_once_and_what_passes_is_not() {
        let (mut settled, begin) = (Settled::default(), Instant::now());
        let at = |seconds| begin + Duration::from_secs(seconds);
        // By a relay at first, and straight then.
        assert_eq!(settled.see(seen(Some("a"), 40), at(0)), None);
        assert_eq!(settled.see(seen(None, 12), at(4)), None);
        assert_eq!(settled.see(seen(None, 14), at(13)), None);
        assert_eq!(settled.see(seen(None, 12), at(14)), Some(seen(None, 12)));
        for second in 15..1000 {
            // It jitters, and nobody can tell of UDP for a while.
            let udp = (second % 7 == 0).then_some(UdpPassage::Open);
            assert_eq!(settled.see(DeviceNetwork { udp, ..seen(None, 12 + second as u32 % 15) }, at(second)), None);
        }
        assert_eq!(settled.see(seen(None, 90), at(1000)), None);
        assert_eq!(settled.see(seen(None, 95), at(1010)), Some(seen(None, 95)), "it has become slow");
    }

    #[test]
    fn a_path_that_changes_all_the_time_costs_an_entry_in_five_minutes() {
        let (mut settled, begin) = (Settled::default(), Instant::now());
        // Each holds for eleven seconds.
        let relay = |second: u64| if (second / 11).is_multiple_of(2) { Some("a") } else { None };
        let told = (0..3600)
            .filter(|second| settled.see(seen(relay(*second), 10), begin + Duration::from_secs(*second)).is_some());
        assert!((2..=12).contains(&told.count()));
    }
}
