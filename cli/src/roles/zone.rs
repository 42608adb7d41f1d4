//! What the zone's name server is fed with: the keys that sign, and the gateways that answer.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use hearth_api::ZoneSigning;
use hearth_dns::{Answering, Candidate, Gateway, Keys, Nowhere, PrefixTable, watch_external, watch_health};
use hearth_types::{Status, dns::keys::KeySet, external, routes::RouteLookup};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The pause before the keys are asked for again.
const KEYS_PAUSE: Duration = Duration::from_millis(200);

/// The table of locations, if there is one.
pub(super) fn locations(path: Option<&Path>) -> Result<Option<Arc<PrefixTable>>> {
    path.map(|path| Ok(Arc::new(PrefixTable::load(path).context("--dns-locations")?))).transpose()
}

/// What says which gateways are nearest to whom.
pub(super) fn locator(table: Option<&Arc<PrefixTable>>) -> Arc<dyn hearth_dns::Locate> {
    match table {
        Some(table) => Arc::clone(table) as _,
        None => Arc::new(Nowhere),
    }
}

/// Makes the zone's keys where the region has none. Tried until there is a leader that stores them; what is damaged is said, and no reason for
/// the region to stay down.
pub(super) async fn first_keys(signing: &ZoneSigning) {
    while let Err(status) = signing.ensure().await {
        if status.object.is_some() {
            tracing::error!(%status, "the zone is not signed");
            return;
        }
        tracing::warn!(%status, "cannot make the zone's keys yet");
        tokio::time::sleep(KEYS_PAUSE).await;
    }
}

/// Feeds the keys as they are stored. Those that were known last go on signing where what is stored cannot be used.
pub(super) async fn feed_keys(
    signing: Arc<ZoneSigning>,
    keys: watch::Sender<Arc<Keys>>,
    stop: CancellationToken,
) -> Result<()> {
    let take = |set: Result<KeySet, Status>| match set {
        Ok(set) => match Keys::new(&set, |key| signing.open(key)) {
            Ok(ready) => drop(keys.send_replace(Arc::new(ready))),
            Err(error) => tracing::error!(%error, "the zone is signed by the keys that were known before, if any"),
        },
        Err(status) => tracing::error!(%status, "the zone is signed by the keys that were known before, if any"),
    };
    stop.run_until_cancelled(signing.follow(take)).await;
    Ok(())
}

/// Feeds the gateways that answer: this server's own, those of the region's other servers, taken to be at the same port, and those that the
/// table of locations names.
pub(super) async fn feed_gateways(
    own: Vec<SocketAddr>,
    table: Option<Arc<PrefixTable>>,
    mut servers: watch::Receiver<Arc<[String]>>,
    gateways: watch::Sender<Arc<[Gateway]>>,
    stop: CancellationToken,
) -> Result<()> {
    let (told, candidates) = watch::channel(candidates(&own, table.as_deref(), &servers.borrow_and_update()));
    let naming = async {
        while servers.changed().await.is_ok() {
            told.send_replace(self::candidates(&own, table.as_deref(), &servers.borrow_and_update()));
        }
    };
    tokio::join!(stop.run_until_cancelled(naming), watch_health(candidates, gateways, stop.clone()));
    Ok(())
}

/// Feeds which devices answer at the public addresses that their owners let be told.
pub(super) async fn feed_external(
    routes: Arc<dyn RouteLookup>,
    zone: String,
    answering: watch::Sender<Arc<Answering>>,
    stop: CancellationToken,
) -> Result<()> {
    Ok(watch_external(routes, zone, external::PORT, answering, stop).await?)
}

fn candidates(own: &[SocketAddr], table: Option<&PrefixTable>, servers: &[String]) -> Arc<[Candidate]> {
    let Some(port) = own.first().map(SocketAddr::port) else { return Arc::from([]) };
    let others = servers.iter().filter_map(|address| address.parse::<SocketAddr>().ok()).map(|address| address.ip());
    let named = table.into_iter().flat_map(PrefixTable::gateways);
    let mut all: Vec<Candidate> = Vec::new();
    let ips = own.iter().map(|address| (address.ip(), true)).chain(others.chain(named).map(|ip| (ip, false)));
    for (ip, own) in ips.map(|(ip, own): (IpAddr, bool)| (ip.to_canonical(), own)) {
        if !all.iter().any(|known| known.address.ip() == ip) {
            let location = table.and_then(|table| table.gateway(ip));
            all.push(Candidate { address: SocketAddr::new(ip, port), location, own });
        }
    }
    all.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_regions_servers_and_the_table_name_gateways_each_once() {
        let table = PrefixTable::parse("gateway 198.51.100.1 nyc\ngateway 192.0.2.1 ams").expect("a table");
        let own = [SocketAddr::from(([192, 0, 2, 1], 443))];
        let servers = ["192.0.2.1:7443", "192.0.2.2:7443", "a.name:7443"].map(str::to_owned);
        let found: Vec<_> = candidates(&own, Some(&table), &servers)
            .iter()
            .map(|one| (one.address.to_string(), one.location.as_deref().unwrap_or_default().to_owned(), one.own))
            .collect();
        let one = |address: &str, location: &str, own| (address.to_owned(), location.to_owned(), own);
        let expected =
            [one("192.0.2.1:443", "ams", true), one("192.0.2.2:443", "", false), one("198.51.100.1:443", "nyc", false)];
        assert_eq!(found, expected);
    }
}
