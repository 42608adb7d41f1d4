//! Watches the host's network while the agent runs: its neighbours change when it joins another network, and others flush
//! firewalls (Debian's nftables service flushes all of them whenever it is restarted).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::sync::{Mutex, watch};

use crate::denied::{Denied, SharedDenied};
use crate::firewall::{self, Firewall, Home};
use crate::host::{Host, Survey};
use crate::netlink::socket::{Protocol, Socket};
use crate::netlink::{messages, route};
use crate::netlink::{nft, tc};
use crate::prefix::Prefix;
use crate::services::Plan;
use crate::shared::SharedBandwidth;
use crate::{NetworkError, Notice};

/// Least time between two looks at the host's network: a route daemon that changes routes all the time must not keep a
/// home device busy. The first change of a burst is acted on at once.
const SETTLE: Duration = Duration::from_millis(250);
/// The same where notifications were lost: a table that is put back for that alone may be what makes others lose theirs.
const SETTLE_AFTER_LOSS: Duration = Duration::from_secs(5);
/// After a failure to put the firewall right.
const RETRY: Duration = Duration::from_secs(1);
/// Largest notification: the kernel's are below 4 KiB, nf_tables' at most 32 KiB.
const NOTIFICATION_BYTES: usize = 32 * 1024;
/// `NFNLGRP_NFTABLES` as a mask for `bind`.
const GROUP_NFTABLES: u32 = 1 << 6;

/// The firewall as it is to be, kept by one task at a time.
#[derive(Debug)]
pub(crate) struct Guard {
    firewall: Firewall,
    /// What the table was last told of the host; also the turn to change the table.
    told: Mutex<Option<Home>>,
    /// Denied by request, beside what the host's network says.
    requested: RwLock<BTreeSet<Prefix>>,
    denied: SharedDenied,
    /// The last generation of the ruleset in which the table is as we made it: what changes it later is not us.
    generation: AtomicU32,
    /// Whether the kernel can count connections; found out by the first installation.
    counts: AtomicBool,
    notices: RwLock<Arc<[Notice]>>,
    /// The host's own addresses towards its neighbours.
    addresses: watch::Sender<Arc<[IpAddr]>>,
    /// What pods share, and whether the kernel holds them to it; found out by the last installation.
    shared: RwLock<SharedBandwidth>,
    shares: AtomicBool,
    /// Where Services lead, and whether the kernel can lead there; found out by the last installation.
    services: RwLock<Arc<Plan>>,
    serves: AtomicBool,
}

/// Sockets that hear of changes. Opened before the first look, so that nothing is missed between.
#[derive(Debug)]
pub(crate) struct Ears {
    routes: Socket,
    tables: Socket,
    limits: Socket,
}

impl Ears {
    /// Opens the sockets in the calling thread's network namespace.
    pub(crate) fn open() -> Result<Self, NetworkError> {
        let failed = |e| NetworkError::netlink("listen to changes of the host's network", e);
        // To listen has the kernel load nf_tables in the background, and whoever asks for something of it meanwhile, as nft
        // does next, is told that there is no such thing. A question loads it first; the answer does not matter.
        let _ = nft::table_exists("hearth");
        Ok(Self {
            routes: Socket::open(Protocol::Route, route::GROUPS_ADDRESSES_AND_ROUTES).map_err(failed)?,
            tables: Socket::open(Protocol::Netfilter, GROUP_NFTABLES).map_err(failed)?,
            limits: Socket::open(Protocol::Route, tc::GROUP_TC).map_err(failed)?,
        })
    }
}

impl Guard {
    pub(crate) fn new(firewall: Firewall, shared: SharedBandwidth) -> Arc<Self> {
        Arc::new(Self {
            firewall,
            told: Mutex::new(None),
            requested: RwLock::default(),
            denied: SharedDenied::new(Denied::new(&BTreeSet::new())),
            generation: AtomicU32::new(0),
            counts: AtomicBool::new(true),
            notices: RwLock::new(Arc::new([])),
            addresses: watch::channel(Arc::from([])).0,
            shared: RwLock::new(shared),
            shares: AtomicBool::new(true),
            services: RwLock::default(),
            serves: AtomicBool::new(true),
        })
    }

    /// What is denied to pods now.
    pub(crate) fn denied(&self) -> &SharedDenied {
        &self.denied
    }

    pub(crate) fn addresses(&self) -> watch::Receiver<Arc<[IpAddr]>> {
        self.addresses.subscribe()
    }

    pub(crate) fn notices(&self) -> Arc<[Notice]> {
        Arc::clone(&self.notices.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Denies more prefixes, in the place of those that were denied by request before.
    pub(crate) async fn request(self: &Arc<Self>, host: &Host, prefixes: BTreeSet<Prefix>) -> Result<(), NetworkError> {
        *self.requested.write().unwrap_or_else(PoisonError::into_inner) = prefixes;
        self.refresh(host).await
    }

    fn shared(&self) -> SharedBandwidth {
        *self.shared.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether pods are held to what they share.
    pub(crate) fn is_shared(&self) -> bool {
        self.shares.load(Ordering::Relaxed)
    }

    /// What pods share from now on.
    pub(crate) async fn share(self: &Arc<Self>, host: &Host, shared: SharedBandwidth) -> Result<(), NetworkError> {
        let mut told = self.told.lock().await;
        let before = std::mem::replace(&mut *self.shared.write().unwrap_or_else(PoisonError::into_inner), shared);
        if before != shared || !self.is_shared() {
            self.install_in_turn(host, &mut told).await?;
        }
        if self.is_shared() { Ok(()) } else { Err(NetworkError::NoSharing) }
    }

    /// Where Services lead from now on; where they led before.
    pub(crate) async fn serve(self: &Arc<Self>, host: &Host, plan: Arc<Plan>) -> Result<Arc<Plan>, NetworkError> {
        let mut told = self.told.lock().await;
        let before =
            std::mem::replace(&mut *self.services.write().unwrap_or_else(PoisonError::into_inner), Arc::clone(&plan));
        if before == plan {
            return self.can_serve(&plan).map(|()| before);
        }
        let guard = Arc::clone(self);
        let (old, new) = (Arc::clone(&before), Arc::clone(&plan));
        let changed = host.run("tell the firewall of Services", move || {
            guard.change("updating the rules of Services", &guard.firewall.services_script(&old, &new))
        });
        if !self.serves.load(Ordering::Relaxed) || changed.await.is_err() {
            // Somebody may have emptied the table just now: then the whole of it is what is missing.
            self.install_in_turn(host, &mut told).await?;
        }
        self.can_serve(&plan).map(|()| before)
    }

    fn can_serve(&self, plan: &Plan) -> Result<(), NetworkError> {
        let can = self.serves.load(Ordering::Relaxed) || plan.addresses.is_empty();
        if can { Ok(()) } else { Err(NetworkError::NoServices) }
    }

    /// Puts the whole table in place.
    pub(crate) async fn install(self: &Arc<Self>, host: &Host) -> Result<(), NetworkError> {
        let mut told = self.told.lock().await;
        self.install_in_turn(host, &mut told).await
    }

    /// Puts the table back where somebody else changed it; whether that was so.
    async fn restore(self: &Arc<Self>, host: &Host, heard: Heard) -> Result<bool, NetworkError> {
        // In turn: a change of ours may be heard of before it is known to be ours.
        let mut told = self.told.lock().await;
        let known = self.generation.load(Ordering::Relaxed) as u16;
        let mut is_foreign = heard.ours.is_some_and(|generation| is_later(generation, known));
        if heard.lost && !is_foreign {
            // A large change of ours is too much to hear of, too: it was the last one, or somebody changed something since.
            let now = || nft::generation().map_err(|e| NetworkError::netlink("read the firewall's generation", e));
            let now = host.run("look whether the firewall was changed", now).await?;
            is_foreign = now != self.generation.load(Ordering::Relaxed);
        }
        if is_foreign {
            self.install_in_turn(host, &mut told).await?;
        }
        Ok(is_foreign)
    }

    async fn install_in_turn(self: &Arc<Self>, host: &Host, told: &mut Option<Home>) -> Result<(), NetworkError> {
        let guard = Arc::clone(self);
        let home = host
            .run("install the firewall", move || {
                let home = guard.home()?;
                guard.put(&home)?;
                Ok(home)
            })
            .await?;
        *told = Some(home);
        Ok(())
    }

    /// Tells the firewall of the host's neighbours, where they changed.
    async fn refresh(self: &Arc<Self>, host: &Host) -> Result<(), NetworkError> {
        let mut told = self.told.lock().await;
        let (guard, before) = (Arc::clone(self), told.clone());
        let home = host
            .run("tell the firewall of the host's neighbours", move || {
                let home = guard.home()?;
                if before.as_ref() != Some(&home) {
                    guard.change("updating the host's neighbours", &guard.firewall.home_script(&home))?;
                    tracing::info!(prefixes = home.denied.len(), "pods are kept from the host's neighbours");
                }
                Ok(home)
            })
            .await?;
        *told = Some(home);
        Ok(())
    }

    /// What the host is like now, which from here on is also what the relay and new pods go by. On a helper thread.
    fn home(&self) -> Result<Home, NetworkError> {
        let survey = Survey::take()?;
        let mut denied = survey.on_link();
        denied.extend(self.requested.read().unwrap_or_else(PoisonError::into_inner).iter());
        self.denied.set(Denied::new(&denied));
        let (uplinks, addresses) = (survey.uplinks(), survey.own_addresses());
        let now: Arc<[IpAddr]> = survey.lasting_addresses().into_iter().collect();
        self.addresses.send_if_modified(|before| {
            let changed = *before != now;
            *before = now;
            changed
        });
        Ok(Home { denied, uplinks, addresses })
    }

    /// The whole table, without what the kernel cannot: sharing a bandwidth, or counting connections.
    fn put(&self, home: &Home) -> Result<(), NetworkError> {
        let shared = self.shared();
        match self.put_with(home, shared) {
            Err(NetworkError::NftFailed { .. }) if shared.is_limited() => {
                // Either without works, and sharing was why, or nothing does, and the error is this one's.
                self.put_with(home, SharedBandwidth::default())?;
                self.shares.store(false, Ordering::Relaxed);
                tracing::error!(
                    "the kernel does not hold pods to the bandwidth that they share; guests are not started"
                );
                Ok(())
            }
            put => {
                self.shares.fetch_or(put.is_ok(), Ordering::Relaxed);
                put
            }
        }
    }

    fn put_with(&self, home: &Home, shared: SharedBandwidth) -> Result<(), NetworkError> {
        let services = Arc::clone(&self.services.read().unwrap_or_else(PoisonError::into_inner));
        match self.put_counting(home, shared, Some(&services)) {
            Err(error @ NetworkError::NftFailed { .. }) => {
                self.put_counting(home, shared, None)?;
                self.serves.store(false, Ordering::Relaxed);
                tracing::error!(%error, "the firewall cannot lead to Services; none is served");
                Ok(())
            }
            put => {
                self.serves.fetch_or(put.is_ok(), Ordering::Relaxed);
                put
            }
        }
    }

    fn put_counting(&self, home: &Home, shared: SharedBandwidth, services: Option<&Plan>) -> Result<(), NetworkError> {
        let doing = "installing the firewall";
        if !self.counts.load(Ordering::Relaxed) {
            return self.change(doing, &self.firewall.script(home, false, shared, services));
        }
        match self.change(doing, &self.firewall.script(home, true, shared, services)) {
            Err(NetworkError::NftFailed { .. }) => {
                self.change(doing, &self.firewall.script(home, false, shared, services))?;
                self.counts.store(false, Ordering::Relaxed);
                Ok(())
            }
            other => other,
        }
    }

    /// One transaction of ours. Where others changed the ruleset at the same time, it is not known which change was whose:
    /// then ours counts as foreign, and the table is made once more when it is heard of.
    fn change(&self, doing: &'static str, script: &str) -> Result<(), NetworkError> {
        let generation = || nft::generation().map_err(|e| NetworkError::netlink("read the firewall's generation", e));
        let before = generation()?;
        firewall::run(doing, script)?;
        let after = generation()?;
        let known = if after == before.wrapping_add(1) { after } else { before };
        self.generation.store(known, Ordering::Relaxed);
        Ok(())
    }

    /// Finds out anew what a person should know; what is new goes to the log.
    pub(crate) async fn look_around(self: &Arc<Self>, host: &Host) -> Result<(), NetworkError> {
        let guard = Arc::clone(self);
        let found = host.run("look at other firewalls", move || guard.find_notices()).await?;
        let before = self.notices();
        for notice in found.iter().filter(|notice| !before.contains(notice)) {
            tracing::warn!("{notice}");
        }
        *self.notices.write().unwrap_or_else(PoisonError::into_inner) = found.into();
        Ok(())
    }

    fn find_notices(&self) -> Result<Vec<Notice>, NetworkError> {
        let Firewall { instance, pods4, pods6, services, .. } = &self.firewall;
        let chains = firewall::foreign_drop_policies(instance)?.into_iter();
        let links = format!("{}*", instance.link_prefix());
        let mut notices: Vec<Notice> =
            chains.map(|chain| Notice::ForeignFirewall { chain, links: links.clone() }).collect();
        notices.extend(pods6.is_none().then_some(Notice::NoIpv6));
        let taken = Survey::take()?.taken(instance);
        if let Some(other) = taken.iter().find(|t| t.overlaps(*pods4)) {
            notices.push(Notice::Overlap { host: other.to_string(), pods: pods4.to_string() });
        }
        if let Some(other) = taken.iter().find(|t| t.overlaps(services.ipv4)) {
            notices.push(Notice::Overlap { host: other.to_string(), pods: services.ipv4.to_string() });
        }
        notices.extend((!self.counts.load(Ordering::Relaxed)).then_some(Notice::ConnectionsNotCounted));
        Ok(notices)
    }

    /// Whether a change of routes or addresses is about something else than this instance's own pods.
    fn concerns_neighbours(&self, datagram: &[u8]) -> bool {
        messages(datagram).filter_map(|m| route::changed_prefix(m.kind, m.payload)).any(|prefix| {
            let own = self.firewall.pods4.overlaps(prefix)
                || self.firewall.pods6.is_some_and(|(pods, _)| pods.overlaps(prefix));
            !(own && prefix.is_host())
        })
    }

    /// Takes in what a datagram of nf_tables says.
    fn hear(&self, datagram: &[u8], heard: &mut Heard) {
        let own = self.firewall.instance.table();
        for change in messages(datagram).filter_map(|m| nft::change(m.kind, m.payload)) {
            if change.table == own {
                heard.ours = Some(change.generation);
            } else {
                heard.others |= change.is_structure;
            }
        }
    }

    /// Keeps the host's neighbours up to date; ends only when it is dropped.
    pub(crate) async fn watch_routes(self: Arc<Self>, host: Host, ears: AsyncFd<Socket>) {
        loop {
            wait_for(&ears, |datagram| datagram.is_none_or(|datagram| self.concerns_neighbours(datagram))).await;
            while let Err(error) = self.refresh(&host).await {
                tracing::error!(%error, "the firewall does not know the host's new neighbours; trying again");
                // The table itself may be what is missing.
                let _ = self.install(&host).await;
                tokio::time::sleep(RETRY).await;
            }
            self.look_around_or_log(&host).await;
            tokio::time::sleep(SETTLE).await;
        }
    }

    /// Keeps the table as it is to be; ends only when it is dropped.
    pub(crate) async fn watch_tables(self: Arc<Self>, host: Host, ears: AsyncFd<Socket>) {
        loop {
            let mut heard = Heard::default();
            wait_for(&ears, |datagram| {
                match datagram {
                    Some(datagram) => self.hear(datagram, &mut heard),
                    None => heard.lost = true,
                }
                heard.lost || heard.others || heard.ours.is_some()
            })
            .await;
            loop {
                match self.restore(&host, heard).await {
                    Ok(false) => break,
                    Ok(true) => {
                        tracing::warn!("the pods' firewall was changed by somebody else; it was put back");
                        break;
                    }
                    Err(error) => {
                        tracing::error!(%error, "the pods' firewall was changed and cannot be put back; trying again");
                        tokio::time::sleep(RETRY).await;
                    }
                }
            }
            if heard.others || heard.lost {
                self.look_around_or_log(&host).await;
            }
            // What one instance writes may be what another one on this host misses, and the other way round.
            tokio::time::sleep(if heard.lost { SETTLE_AFTER_LOSS } else { SETTLE }).await;
        }
    }

    async fn look_around_or_log(self: &Arc<Self>, host: &Host) {
        if let Err(error) = self.look_around(host).await {
            tracing::warn!(%error, "what is known of other firewalls is out of date");
        }
    }
}

/// What notifications of nf_tables were about.
#[derive(Clone, Copy, Debug, Default)]
struct Heard {
    /// The last generation in which our table was changed.
    ours: Option<u16>,
    /// Tables or chains of others came, went or changed.
    others: bool,
    /// Something was missed.
    lost: bool,
}

/// Whether one generation is after another, in the circle of 65,536.
fn is_later(generation: u16, than: u16) -> bool {
    (1..=i16::MAX as u16).contains(&generation.wrapping_sub(than))
}

/// The sockets, registered with the runtime.
#[expect(
    deprecated,
    reason = "its successor is an unsafe fn, which this crate may not call; what that asks for holds: a `Socket` owns its \
              descriptor for as long as it lives and always reports the same one"
)]
pub(crate) fn register(ears: Ears) -> Result<[AsyncFd<Socket>; 3], NetworkError> {
    let failed = |e| NetworkError::netlink("listen to changes of the host's network", e);
    let listen = |socket| AsyncFd::new(socket).map_err(failed);
    Ok([listen(ears.routes)?, listen(ears.tables)?, listen(ears.limits)?])
}

/// Waits until a notification is relevant, and takes all that have arrived by then. `None` is one that was lost: the kernel
/// says so with `ENOBUFS`.
pub(crate) async fn wait_for(ears: &AsyncFd<Socket>, mut relevant: impl FnMut(Option<&[u8]>) -> bool) {
    let mut buffer = vec![0u8; NOTIFICATION_BYTES];
    let mut found = false;
    loop {
        let Ok(mut ready) = ears.readable().await else {
            // The runtime is shutting down.
            return std::future::pending().await;
        };
        match ready.try_io(|socket| socket.get_ref().receive(&mut buffer)) {
            Ok(Ok(len)) => found |= relevant(Some(&buffer[..len])),
            Ok(Err(e)) if e.raw_os_error() == Some(libc::ENOBUFS) => found |= relevant(None),
            Ok(Err(error)) => {
                tracing::warn!(%error, "cannot hear of changes of the host's network; looking anyway");
                tokio::time::sleep(RETRY).await;
                relevant(None);
                return;
            }
            Err(_would_block) if found => return,
            Err(_would_block) => {}
        }
    }
}
