//! Which gateways there are, and which of them answer.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use tokio::{net::TcpStream, sync::watch, task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{Located, limits};

/// A gateway at one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// Where clients connect.
    pub address: IpAddr,
    /// Where it is, as the table of locations calls it.
    pub location: Option<Arc<str>>,
    /// Whether it answers.
    pub healthy: bool,
}

impl Gateway {
    /// A gateway that answers, anywhere.
    pub fn new(address: IpAddr) -> Self {
        Self { address: address.to_canonical(), location: None, healthy: true }
    }

    /// Whether a client could connect to it at all.
    pub(crate) fn is_usable(&self) -> bool {
        !self.address.is_unspecified() && !self.address.is_multicast()
    }
}

/// The addresses of the gateways nearest to a client, for each family those of the first location that has any that answers, and else of all that
/// answer. Where none answers, all are told: that they seem down may be this server's own fault.
pub(crate) fn nearest(all: &[Gateway], located: &Located) -> Vec<IpAddr> {
    let of_family = |ipv4| nearest_of(all.iter().filter(move |one| one.address.is_ipv4() == ipv4), located);
    let mut addresses = of_family(true);
    addresses.extend(of_family(false));
    addresses
}

fn nearest_of<'a>(all: impl Iterator<Item = &'a Gateway>, located: &Located) -> Vec<IpAddr> {
    let usable: Vec<&Gateway> = all.filter(|gateway| gateway.is_usable()).collect();
    let healthy: Vec<&Gateway> = usable.iter().copied().filter(|gateway| gateway.healthy).collect();
    let at = |location| healthy.iter().copied().filter(move |one| one.location.as_ref() == Some(location));
    let chosen: Vec<&Gateway> = match located.nearest.iter().find(|location| at(location).next().is_some()) {
        Some(location) => at(location).collect(),
        None if healthy.is_empty() => usable,
        None => healthy,
    };
    chosen.into_iter().map(|gateway| gateway.address).collect()
}

/// A gateway that may be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Where it takes connections.
    pub address: SocketAddr,
    /// Where it is, as the table of locations calls it.
    pub location: Option<Arc<str>>,
    /// Whether it is this server's own, which is not asked: it ends with this name server.
    pub own: bool,
}

/// Asks the candidates again and again whether they take connections, and tells which do. One that never did is not told of: it may be no
/// gateway at all.
pub async fn watch_health(
    mut candidates: watch::Receiver<Arc<[Candidate]>>,
    told: watch::Sender<Arc<[Gateway]>>,
    shutdown: CancellationToken,
) {
    // Tries without an answer since the last one with.
    let mut failures: HashMap<SocketAddr, u32> = HashMap::new();
    let watching = async {
        loop {
            let now: Arc<[Candidate]> = candidates.borrow_and_update().iter().take(limits::GATEWAYS).cloned().collect();
            let mut asking = JoinSet::new();
            for candidate in now.iter().filter(|candidate| !candidate.own) {
                let address = candidate.address;
                asking.spawn(async move {
                    let connected = timeout(limits::PROBE_PATIENCE, TcpStream::connect(address)).await;
                    (address, matches!(connected, Ok(Ok(_))))
                });
            }
            while let Some(Ok((address, answers))) = asking.join_next().await {
                if answers {
                    failures.insert(address, 0);
                } else if let Some(count) = failures.get_mut(&address) {
                    *count = count.saturating_add(1);
                }
            }
            failures.retain(|address, _| now.iter().any(|candidate| candidate.address == *address));
            let known = now.iter().filter(|candidate| candidate.own || failures.contains_key(&candidate.address));
            let gateways: Arc<[Gateway]> = known
                .map(|candidate| Gateway {
                    address: candidate.address.ip().to_canonical(),
                    location: candidate.location.clone(),
                    healthy: candidate.own || failures[&candidate.address] < limits::PROBE_FAILURES,
                })
                .collect();
            told.send_if_modified(|before| {
                let other = *before != gateways;
                *before = gateways;
                other
            });
            tokio::select! {
                changed = candidates.changed() => if changed.is_err() {
                    // Nobody will name others; these are still asked.
                    tokio::time::sleep(limits::PROBE_EVERY).await;
                },
                () = tokio::time::sleep(limits::PROBE_EVERY) => {}
            }
        }
    };
    shutdown.run_until_cancelled(watching).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gateway(last: u8, location: &str, healthy: bool) -> Gateway {
        Gateway { address: [192, 0, 2, last].into(), location: Some(location.into()), healthy }
    }

    fn told(all: &[Gateway], order: &[&str]) -> Vec<u8> {
        let located = Located { scope: 0, nearest: order.iter().map(|one| Arc::from(*one)).collect() };
        let last = |address| match address {
            IpAddr::V4(ip) => ip.octets()[3],
            IpAddr::V6(_) => unreachable!("none here"),
        };
        nearest(all, &located).into_iter().map(last).collect()
    }

    #[test]
    fn the_nearest_that_answer_are_told_then_any_that_answer_then_all() {
        let all =
            [gateway(1, "ams", false), gateway(2, "ams", true), gateway(3, "nyc", true), gateway(4, "sin", false)];
        assert_eq!(told(&all, &["ams", "nyc"]), [2]);
        assert_eq!(told(&all, &["sin", "nyc"]), [3], "none answers in sin");
        assert_eq!(told(&all, &["sin"]), [2, 3]);
        assert_eq!(told(&all, &[]), [2, 3]);
        assert_eq!(told(&[all[0].clone(), all[3].clone()], &["ams"]), [1, 4], "none answers at all");
        let nowhere = Gateway::new([0, 0, 0, 0].into());
        assert_eq!(told(&[nowhere, all[2].clone()], &[]), [3]);
    }

    #[tokio::test]
    async fn a_gateway_is_told_of_once_it_answered_and_left_out_once_it_stops() {
        let listener = tokio::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let gone = tokio::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let candidate = |address, own| Candidate { address, location: None, own };
        let (there, never) = (listener.local_addr().expect("bound"), gone.local_addr().expect("bound"));
        drop(gone);
        let own = SocketAddr::from(([192, 0, 2, 1], 443));
        let list: Arc<[Candidate]> =
            Arc::from([candidate(own, true), candidate(there, false), candidate(never, false)]);
        let (named, candidates) = watch::channel(list.clone());
        let (told, mut gateways) = watch::channel(Arc::from([]));
        let stop = CancellationToken::new();
        let task = tokio::spawn(watch_health(candidates, told, stop.clone()));
        let wait = std::time::Duration::from_secs(30);
        let all = timeout(wait, gateways.wait_for(|all| all.len() == 2)).await.expect("in time").expect("it runs");
        assert!(all.iter().all(|gateway| gateway.healthy));
        drop(all);
        drop(listener);
        // Each time the list is told again, everybody is asked again.
        let asked = async {
            while !gateways.borrow().iter().any(|gateway| !gateway.healthy) {
                named.send_replace(list.clone());
                tokio::task::yield_now().await;
            }
        };
        timeout(wait, asked).await.expect("in time");
        assert!(gateways.borrow().iter().any(|gateway| gateway.healthy && gateway.address == own.ip()));
        stop.cancel();
        task.await.expect("no panic");
    }
}
