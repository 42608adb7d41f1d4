//! The ingress without a gateway: at the device's own addresses, where its owner lets them be told, or says that the router leads there. Inside
//! the home, whoever comes there does without the internet; and from the internet, without a gateway in between.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use hearth_types::{
    external::{self, is_global},
    kinds::Publish,
    lan::{self, is_private_use},
};
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::sleep,
};

use super::{Ingress, serve};
use crate::shared::Shared;

/// After how long an address that could not be listened at is tried again: one of IPv6 takes a moment until it is certain that it is nobody
/// else's (RFC 4862 section 5.4).
const RETRY: Duration = Duration::from_secs(1);
/// Pause after the kernel could not hand out a connection.
const PAUSE: Duration = Duration::from_millis(100);

/// At which addresses of its own a device serves, as its Device says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Direct {
    /// At those inside the home, which are told.
    pub(super) lan: bool,
    /// At those of the internet, which are told.
    external: bool,
    /// By which the internet reaches it: the router's, or its own.
    external_ips: BTreeSet<IpAddr>,
    /// Where it is at as the region has it: of its own addresses, and that of the router behind which the region saw it.
    found_at: BTreeSet<IpAddr>,
}

impl Direct {
    /// `found_at` is what the region has of [`external::told`].
    pub(super) fn of(publish: &Publish, found_at: impl Iterator<Item = IpAddr>) -> Self {
        let ips = publish.external_ips.iter().filter_map(|text| text.parse().ok()).take(external::MAX_ADDRESSES);
        let found_at = found_at.take(external::MAX_ADDRESSES).collect();
        Self { lan: publish.lan, external: publish.external, external_ips: ips.collect(), found_at }
    }

    /// By which pods would come back into the home.
    fn ways_back(&self) -> BTreeSet<IpAddr> {
        self.external_ips.union(&self.found_at).copied().collect()
    }

    /// Whether the internet is to reach it.
    pub(super) fn is_external(&self) -> bool {
        self.external || !self.external_ips.is_empty()
    }

    /// Those of the machine's addresses at which to listen, few of each kind. What a router forwards comes to a private one.
    fn choose(&self, there: &[IpAddr]) -> BTreeSet<IpAddr> {
        let inside = there.iter().filter(|ip| is_private_use(**ip) && (self.lan || self.is_external()));
        let wanted = |ip: &IpAddr| self.external || self.external_ips.contains(ip);
        let outside = there.iter().filter(|ip| is_global(**ip) && wanted(ip));
        inside.take(lan::MAX_ADDRESSES).chain(outside.take(external::MAX_ADDRESSES)).copied().collect()
    }

    /// As what an address is told at which it listens; nothing where its owner does not want that, or where DNS cannot: an address implies
    /// the port.
    fn kind(&self, ip: IpAddr, port: u16) -> Option<&'static str> {
        let (wanted, kind) = if is_private_use(ip) {
            (self.lan, "InternalIP")
        } else {
            (self.external && port == external::PORT, external::KIND)
        };
        wanted.then_some(kind)
    }
}

/// Listens while the owner wants it, at the addresses that there are, and tells the region of those. Never returns.
///
/// Guarantees: only addresses that homes number their networks with or that the internet reaches, few of each, and only while they are listened at.
pub(crate) async fn run(
    shared: Arc<Shared>,
    ingress: Ingress,
    mut addresses: watch::Receiver<Arc<[IpAddr]>>,
    port: u16,
) {
    let mut wanted = ingress.inner.direct.subscribe();
    let mut doors: BTreeMap<IpAddr, JoinSet<()>> = BTreeMap::new();
    let mut failed: BTreeMap<IpAddr, io::ErrorKind> = BTreeMap::new();
    let (mut told, mut denied) = (None, BTreeSet::new());
    loop {
        let direct = wanted.borrow_and_update().clone();
        let ways_back = direct.ways_back();
        if denied != ways_back {
            // Its own are kept from them anyway.
            match shared.network.deny(&ways_back).await {
                Ok(()) => denied.clone_from(&ways_back),
                Err(error) => {
                    tracing::error!(
                        error = crate::files::chain(&error),
                        "pods are not kept from the home's public addresses; trying on"
                    );
                }
            }
        }
        let there = direct.choose(&addresses.borrow_and_update().clone());
        // What is open ends with its address.
        doors.retain(|ip, _| there.contains(ip));
        failed.retain(|ip, _| there.contains(ip));
        for ip in there {
            if doors.contains_key(&ip) {
                continue;
            }
            match TcpListener::bind((ip, port)).await {
                Ok(listener) => {
                    failed.remove(&ip);
                    let mut door = JoinSet::new();
                    door.spawn(accept(ingress.clone(), listener));
                    doors.insert(ip, door);
                }
                Err(error) => {
                    if failed.insert(ip, error.kind()) != Some(error.kind()) {
                        tracing::warn!(%ip, port, %error, "users cannot be served at this address of the device; trying on");
                    }
                }
            }
        }
        let open: Vec<IpAddr> = doors.keys().copied().collect();
        let kinds = open.iter().filter_map(|ip| Some((direct.kind(*ip, port)?, ip.to_string())));
        // What a router passes on comes to whatever port, and the router's is the one that is told.
        let router = direct.external.then(|| (external::KIND, external::SEEN.to_owned()));
        let now: Vec<(&str, String)> = kinds.chain(router).collect();
        if told.as_ref() != Some(&now) {
            tracing::info!(listening = ?open, port, told = ?now, "users are served at these addresses of the device");
            if direct.external && port != external::PORT {
                tracing::warn!(
                    port,
                    "no public address of this device's own is told, since DNS tells no port: --lan-port must be 443 for that"
                );
            }
            let list: Vec<_> = now.iter().map(|(kind, ip)| json!({"type": kind, "address": ip})).collect();
            shared.tell_of_device("addresses", json!(list));
            told = Some(now);
        }
        tokio::select! {
            Ok(()) = wanted.changed() => {}
            Ok(()) = addresses.changed() => {}
            () = sleep(RETRY), if !failed.is_empty() || denied != ways_back => {}
            else => std::future::pending().await,
        }
    }
}

/// Takes connections; those that it took end with it.
async fn accept(ingress: Ingress, listener: TcpListener) {
    let mut users = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, caller)) => drop(users.spawn(connection(ingress.clone(), stream, caller))),
                Err(error) => {
                    tracing::debug!(%error, "cannot take a connection at an address of this device");
                    sleep(PAUSE).await;
                }
            },
            Some(_) = users.join_next(), if !users.is_empty() => {}
        }
    }
}

async fn connection(ingress: Ingress, stream: TcpStream, caller: SocketAddr) {
    // Without it, answers wait for one another.
    if stream.set_nodelay(true).is_ok() {
        serve::direct(&ingress, stream, caller).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().expect("an address")).collect()
    }

    #[test]
    fn a_device_listens_where_its_owner_wants_it_and_tells_what_its_owner_lets_it() {
        let there = ips(&[
            "127.0.0.1",
            "192.168.1.2",
            "fd00::2",
            "fe80::2",
            "100.64.0.2",
            "2a00::2",
            "25.0.0.2",
            "2001:db8::2",
        ]);
        let publish = |lan, external, ips: &[&str]| {
            let external_ips = ips.iter().map(|ip| (*ip).to_owned()).collect();
            Direct::of(&Publish { lan, external, external_ips }, std::iter::empty())
        };
        for (direct, listens, told) in [
            (publish(false, false, &[]), &[][..], &[][..]),
            (publish(true, false, &[]), &["192.168.1.2", "fd00::2"], &["192.168.1.2", "fd00::2"]),
            // A router may pass on what comes to it.
            (publish(false, true, &[]), &["192.168.1.2", "fd00::2", "25.0.0.2", "2a00::2"], &["25.0.0.2", "2a00::2"]),
            // The router's, which leads to one inside, and the owner said nothing of telling others.
            (publish(false, false, &["25.0.0.9", "x"]), &["192.168.1.2", "fd00::2"], &[]),
            // The device's own, as the owner says.
            (publish(false, false, &["25.0.0.2"]), &["192.168.1.2", "25.0.0.2", "fd00::2"], &[]),
            (
                publish(true, true, &["25.0.0.9"]),
                &["192.168.1.2", "25.0.0.2", "2a00::2", "fd00::2"],
                &["192.168.1.2", "25.0.0.2", "2a00::2", "fd00::2"],
            ),
        ] {
            let chosen: Vec<IpAddr> = direct.choose(&there).into_iter().collect();
            let expected: BTreeSet<IpAddr> = ips(listens).into_iter().collect();
            assert_eq!(chosen, expected.into_iter().collect::<Vec<_>>(), "{direct:?}");
            let is_told = |ip: &&IpAddr| direct.kind(**ip, 443).is_some();
            let expected: BTreeSet<IpAddr> = ips(told).into_iter().collect();
            assert_eq!(chosen.iter().filter(is_told).copied().collect::<BTreeSet<_>>(), expected, "{direct:?}");
        }
        let direct = publish(true, true, &[]);
        let public = ips(&["25.0.0.2"])[0];
        assert_eq!(
            (direct.kind(public, 443), direct.kind(public, 8443)),
            (Some("ExternalIP"), None),
            "DNS tells no port"
        );
        let many: Vec<IpAddr> = (0..40).map(|last| IpAddr::from([25, 0, 0, last])).collect();
        assert_eq!(direct.choose(&many).len(), external::MAX_ADDRESSES);
    }

    #[test]
    fn pods_are_kept_from_where_the_region_saw_the_home() {
        let told = json!([
            {"type": "ExternalIP", "address": "25.0.0.9"}, {"type": "ExternalIP", "address": "10.0.0.1"}, {"type": "InternalIP", "address": "25.0.0.8"}
        ]);
        let ways_back = |external| {
            let device = json!({"spec": {"publish": {"external": external}}, "status": {"addresses": told}});
            let publish = Publish { lan: false, external, external_ips: vec!["25.0.0.1".to_owned()] };
            Direct::of(&publish, external::told(&device)).ways_back().into_iter().collect::<Vec<_>>()
        };
        assert_eq!(ways_back(true), ips(&["25.0.0.1", "25.0.0.9"]));
        assert_eq!(ways_back(false), ips(&["25.0.0.1"]), "what is told no more is of before");
    }
}
