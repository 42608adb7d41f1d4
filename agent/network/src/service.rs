//! The handle that the agent holds.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::OwnedMutexGuard;
use tokio::task::JoinSet;

use crate::bandwidth::{self, Bandwidth, Limits};
use crate::claims;
use crate::dns::asking::Asking;
use crate::dns::relay::Sockets;
use crate::firewall::{Firewall, Strangers};
use crate::host::{self, Host, Survey};
use crate::names::{GATEWAY_INDEX, Instance, check_uid, has_internet};
use crate::netlink::{Batch, route};
use crate::pod::{self, Plan};
use crate::prefix::{Prefix, choose4, home_of, nth, unique_local};
use crate::services::{self, Numbers, Range, Services, SharedBook};
use crate::shared::SharedBandwidth;
use crate::store::{Allocations, Forwarding, Prefixes, Store};
use crate::watch::{self, Ears, Guard};
use crate::{NetworkConfig, NetworkError, Notice, PodAddresses, PodNetwork, PodPolicy};

/// This instance's pod network. Clones are cheap handles on the same one; the name relay and the watch over the firewall
/// end with the last of them, while pods, links and firewall stay.
#[derive(Clone, Debug)]
pub struct Network {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    instance: Instance,
    host: Host,
    store: Store,
    prefixes: Prefixes,
    ipv6: bool,
    guard: Arc<Guard>,
    limits: Arc<Limits>,
    allocations: Mutex<Allocations>,
    services: Services,
    asking: Asking,
    busy: KeyedLocks,
    /// Relay and watchers; aborted when dropped.
    tasks: Mutex<JoinSet<()>>,
}

/// What is found and made before anything runs.
struct Foundation {
    store: Store,
    prefixes: Prefixes,
    allocations: Allocations,
    services: (Range, Numbers),
    asking: Asking,
    ipv6: bool,
    sockets: Sockets,
    ears: Ears,
    strangers: Strangers,
}

impl Network {
    pub(crate) fn host(&self) -> &Host {
        &self.inner.host
    }

    pub(crate) fn guard(&self) -> &Arc<Guard> {
        &self.inner.guard
    }

    pub(crate) fn store(&self) -> &Store {
        &self.inner.store
    }

    pub(crate) fn services(&self) -> &Services {
        &self.inner.services
    }

    pub(crate) fn prefixes_of_pods(&self) -> [Prefix; 2] {
        [self.inner.prefixes.ipv4, self.inner.prefixes.ipv6]
    }

    /// The number of each pod, by its uid.
    pub(crate) fn numbers_of_pods(&self) -> HashMap<String, u16> {
        self.inner.allocations().iter().map(|(uid, index)| (uid.to_owned(), index)).collect()
    }

    /// Starts the network of an instance in the calling thread's network namespace: chooses prefixes at the first start and
    /// keeps them, installs the firewall, enables forwarding, starts the name relay. Pods that live on from the last agent
    /// stay connected; [`adopt`](Self::adopt) them.
    ///
    /// # Assumptions
    /// Called inside a tokio runtime whose threads are in the same network namespace; one `Network` an instance.
    pub async fn start(config: NetworkConfig) -> Result<Self, NetworkError> {
        let instance = Instance::parse(&config.instance)?;
        let host = Host::current()?;
        let foundation = {
            let (instance, dir) = (instance.clone(), config.state_dir.clone());
            host.run("prepare the pod network", move || prepare(&instance, &dir)).await?
        };
        let Foundation { store, prefixes, allocations, services, asking, ipv6, sockets, ears, strangers } = foundation;
        let (range, numbers) = services;

        let firewall = Firewall {
            instance: instance.clone(),
            pods4: prefixes.ipv4,
            gateway4: nth(prefixes.ipv4, GATEWAY_INDEX),
            pods6: ipv6.then(|| (prefixes.ipv6, nth(prefixes.ipv6, GATEWAY_INDEX))),
            relay_port: sockets.port,
            services: range,
            strangers,
        };
        let guard = Guard::new(firewall, config.bandwidth);
        guard.install(&host).await?;
        // Only now, with the firewall in place, may the host forward anything.
        host.run("enable forwarding", move || host::enable_forwarding(ipv6)).await?;

        guard.look_around(&host).await?;

        let pods = [Some(prefixes.ipv4), ipv6.then_some(prefixes.ipv6)].into_iter().flatten().collect();
        let (denied, book) = (guard.denied().clone(), SharedBook::new(ipv6));
        let zone = config.zone.as_deref();
        let mut tasks = sockets.serve(config.resolv_conf, zone, pods, denied, book.clone(), asking.clone())?;
        let [routes, tables, links] = watch::register(ears)?;
        let limits = Limits::new(instance.clone());
        tasks.spawn(Arc::clone(&guard).watch_routes(host.clone(), routes));
        tasks.spawn(Arc::clone(&guard).watch_tables(host.clone(), tables));
        tasks.spawn(Arc::clone(&limits).watch(host.clone(), links));

        let inner = Inner {
            instance,
            host,
            store,
            prefixes,
            ipv6,
            guard,
            limits,
            allocations: Mutex::new(allocations),
            services: Services::new(range, numbers, book),
            asking,
            busy: KeyedLocks::default(),
            tasks: Mutex::new(tasks),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Makes a network namespace for a pod, with loopback, addresses of both families and default routes.
    ///
    /// # Guarantees
    /// The same uid gets the same addresses until [`detach`](Self::detach). A second call makes a new namespace and cuts
    /// off the first: for a pod that is alive, call [`adopt`](Self::adopt). The work is finished, or undone, also where the
    /// caller stops waiting.
    ///
    /// # Errors
    /// After an error the pod has no link and, unless it had one before, no address.
    pub async fn attach(&self, pod_uid: &str, policy: &PodPolicy) -> Result<PodNetwork, NetworkError> {
        self.connect(pod_uid, *policy, None).await
    }

    /// Takes over the namespace of a pod that outlived the agent, and makes what is missing in it. The policy may be
    /// another than before.
    ///
    /// A pod whose allocation was lost keeps its address where it is free.
    pub async fn adopt(&self, pod_uid: &str, netns: OwnedFd, policy: &PodPolicy) -> Result<PodNetwork, NetworkError> {
        self.connect(pod_uid, *policy, Some(netns)).await
    }

    /// Changes what a living pod may send and receive, without disturbing it; nothing for a pod that has no link.
    ///
    /// # Errors
    /// [`NetworkError::NoShaping`] where the kernel cannot: then the pod goes on as it was.
    pub async fn limit(&self, pod_uid: &str, netns: OwnedFd, bandwidth: Bandwidth) -> Result<(), NetworkError> {
        let lock = self.inner.busy.lock(pod_uid).await;
        let (inner, uid) = (Arc::clone(&self.inner), pod_uid.to_owned());
        let limit = move || {
            let _lock = lock;
            inner.limit(&uid, &netns, bandwidth)
        };
        self.inner.host.run("limit a pod's bandwidth", limit).await
    }

    /// Changes what pods may send and receive together.
    ///
    /// # Errors
    /// [`NetworkError::NoSharing`] where the kernel cannot: then no guest is attached any more.
    pub async fn limit_shared(&self, bandwidth: SharedBandwidth) -> Result<(), NetworkError> {
        self.inner.guard.share(&self.inner.host, bandwidth).await
    }

    /// Removes a pod's link and frees its addresses; harmless for a pod that has none.
    pub async fn detach(&self, pod_uid: &str) -> Result<(), NetworkError> {
        let lock = self.inner.busy.lock(pod_uid).await;
        self.service_pod_goes(pod_uid).await?;
        let (inner, uid) = (Arc::clone(&self.inner), pod_uid.to_owned());
        self.inner
            .host
            .run("detach a pod", move || {
                let _lock = lock;
                inner.remove(&uid)
            })
            .await
    }

    /// Removes links and allocations of all pods that are not in `keep`, and links of this instance that no pod has.
    ///
    /// # Assumptions
    /// No pod outside of `keep` is being attached meanwhile.
    pub async fn retain(&self, keep: &HashSet<String>) -> Result<(), NetworkError> {
        let gone: Vec<String> =
            self.inner.allocations().iter().map(|(uid, _)| uid.to_owned()).filter(|uid| !keep.contains(uid)).collect();
        // Together, since the kernel takes its time for each link; how many at once is bounded by the helper threads.
        let mut detaching = JoinSet::new();
        for uid in gone {
            let network = self.clone();
            detaching.spawn(async move { network.detach(&uid).await });
        }
        while let Some(detached) = detaching.join_next().await {
            detached.map_err(|_| NetworkError::Worker { doing: "detach a pod" })??;
        }
        let inner = Arc::clone(&self.inner);
        self.inner.host.run("remove links without a pod", move || inner.remove_orphans()).await
    }

    /// All pods that have addresses, in order of uid.
    pub fn pods(&self) -> Vec<(String, PodAddresses)> {
        let allocations = self.inner.allocations();
        allocations.iter().map(|(uid, index)| (uid.to_owned(), self.inner.addresses(index))).collect()
    }

    /// Whether pods have IPv6 addresses: false where the host has IPv6 disabled.
    pub fn has_ipv6(&self) -> bool {
        self.inner.ipv6
    }

    /// Whether pods may reach an address: it is on the public internet, as far as this host knows, and not of this home. For what the host
    /// itself fetches on somebody else's word.
    pub fn is_public(&self, address: IpAddr) -> bool {
        !self.inner.guard.denied().get().contains(address.to_canonical())
    }

    /// What on this host may keep pods from the network: for example, another program's firewall whose default is to drop.
    /// Kept current as firewalls, addresses and routes change, and cheap to ask.
    pub fn notices(&self) -> Arc<[Notice]> {
        self.inner.guard.notices()
    }

    /// The host's own addresses on links that lead to its neighbours or to a router, without those of bridges and links of containers, and without
    /// temporary ones of IPv6 (RFC 8981) and those whose time is over. Current within some 250 ms.
    pub fn addresses(&self) -> tokio::sync::watch::Receiver<Arc<[IpAddr]>> {
        self.inner.guard.addresses()
    }

    /// Keeps pods from these addresses too, in the place of those of an earlier call: those under which the internet sees this
    /// home, behind which its router may answer. Of a global IPv6 address it is the whole home, a /56.
    ///
    /// Holds at once for the host's firewall and the name relay, and for the one inside of a pod from its next attachment or
    /// adoption on.
    pub async fn deny(&self, addresses: &BTreeSet<IpAddr>) -> Result<(), NetworkError> {
        let host_prefix = |a: &IpAddr| Prefix::new(*a, if a.is_ipv4() { 32 } else { 128 });
        let prefixes = addresses.iter().filter_map(host_prefix).map(home_of).collect();
        self.inner.guard.request(&self.inner.host, prefixes).await
    }

    /// Stops the name relay and the watch over the firewall, and returns when they have ended and their port is free. Pods
    /// keep their links, and the firewall stays.
    pub async fn stop(&self) {
        let mut tasks = {
            let mut tasks = self.inner.tasks.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *tasks)
        };
        tasks.shutdown().await;
    }

    async fn connect(
        &self,
        pod_uid: &str,
        policy: PodPolicy,
        netns: Option<OwnedFd>,
    ) -> Result<PodNetwork, NetworkError> {
        check_uid(pod_uid)?;
        if policy.guest && !self.inner.guard.is_shared() {
            return Err(NetworkError::NoSharing);
        }
        let lock = self.inner.busy.lock(pod_uid).await;
        let (inner, uid) = (Arc::clone(&self.inner), pod_uid.to_owned());
        let made = self
            .inner
            .host
            .run("attach a pod", move || {
                // Held to the end of the work, also where the caller stops waiting.
                let _lock = lock;
                match netns {
                    None => inner.attach(uid, policy),
                    Some(netns) => inner.adopt(uid, policy, netns),
                }
            })
            .await?;
        // It is a pod all the same without them, and whoever says which Services there are is told.
        if let Err(error) = self.service_pod_came(pod_uid).await {
            tracing::error!(pod = pod_uid, %error, "a pod has no Services");
        }
        Ok(made)
    }
}

impl Inner {
    fn allocations(&self) -> MutexGuard<'_, Allocations> {
        self.allocations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of a pod, written down before anything is made for it; whether it is new.
    fn allocate(&self, uid: &str, wanted: Option<u16>) -> Result<(u16, bool), NetworkError> {
        let mut allocations = self.allocations();
        let new = allocations.get(uid).is_none();
        let index = allocations.allocate(uid, wanted)?;
        if new && let Err(e) = self.store.save_allocations(&allocations) {
            allocations.free(uid);
            return Err(e);
        }
        Ok((index, new))
    }

    fn free(&self, uid: &str) -> Result<(), NetworkError> {
        let mut allocations = self.allocations();
        if allocations.free(uid).is_some() { self.store.save_allocations(&allocations) } else { Ok(()) }
    }

    fn attach(&self, uid: String, policy: PodPolicy) -> Result<PodNetwork, NetworkError> {
        let (index, new) = self.allocate(&uid, None)?;
        let plan = self.plan(uid, index, policy);
        self.asking.set(index, policy.internet);
        // One of the same number may be gone by itself, and its limit with it.
        self.limits.set(index, Bandwidth::default());
        match pod::create(&plan) {
            Ok(netns) => {
                self.limits.set(index, policy.bandwidth);
                Ok(PodNetwork { addresses: self.addresses(index), netns })
            }
            Err(e) => {
                if new {
                    self.free(&plan.uid)?;
                }
                Err(e)
            }
        }
    }

    fn adopt(&self, uid: String, policy: PodPolicy, netns: OwnedFd) -> Result<PodNetwork, NetworkError> {
        let known = self.allocations().get(&uid);
        let wanted = match known {
            Some(_) => None,
            None => self.index_in(&netns)?,
        };
        let (index, _) = self.allocate(&uid, wanted)?;
        let plan = self.plan(uid, index, policy);
        self.asking.set(index, policy.internet);
        // Before: what hears of the new limit must not put back the old one.
        self.limits.set(index, policy.bandwidth);
        let netns = pod::take_over(&plan, netns)?;
        Ok(PodNetwork { addresses: self.addresses(index), netns })
    }

    /// The number that the address in a namespace says.
    fn index_in(&self, netns: &OwnedFd) -> Result<Option<u16>, NetworkError> {
        let found = pod::address_in(netns, self.prefixes.ipv4)?;
        Ok(match (found, self.prefixes.ipv4.address()) {
            (Some(IpAddr::V4(address)), IpAddr::V4(base)) => u16::try_from(address.to_bits() - base.to_bits()).ok(),
            _ => None,
        })
    }

    fn limit(&self, uid: &str, netns: &OwnedFd, bandwidth: Bandwidth) -> Result<(), NetworkError> {
        let Some(index) = self.allocations().get(uid) else { return Ok(()) };
        self.limits.set(index, bandwidth);
        bandwidth::limit_pod(&self.instance.link(index), netns, bandwidth)
    }

    fn remove(&self, uid: &str) -> Result<(), NetworkError> {
        let Some(index) = self.allocations().get(uid) else { return Ok(()) };
        self.limits.set(index, Bandwidth::default());
        self.asking.set(index, false);
        pod::remove(&host::route_socket()?, &self.instance.link(index))?;
        self.free(uid)
    }

    fn remove_orphans(&self) -> Result<(), NetworkError> {
        let socket = host::route_socket()?;
        let links = host::links(&socket)?;
        // Looked at after the links: a link made meanwhile has its number written down before.
        let orphans: Vec<u32> = {
            let allocations = self.allocations();
            let is_orphan = |name: &str| self.instance.link_index(name).is_some_and(|i| !allocations.holds(i));
            links.iter().filter(|l| is_orphan(&l.name)).map(|l| l.index).collect()
        };
        for index in orphans {
            let mut batch = Batch::new();
            route::delete_link(&mut batch, index);
            host::delete(&socket, &batch)?;
        }
        Ok(())
    }

    fn plan(&self, uid: String, index: u16, policy: PodPolicy) -> Plan {
        let Prefixes { ipv4, ipv6 } = self.prefixes;
        Plan {
            instance: self.instance.clone(),
            uid,
            index,
            policy,
            ipv4: nth(ipv4, index),
            gateway4: nth(ipv4, GATEWAY_INDEX),
            ipv6: self.ipv6.then(|| (nth(ipv6, index), nth(ipv6, GATEWAY_INDEX))),
            services: self.services.range(),
            denied: self.guard.denied().get(),
        }
    }

    fn addresses(&self, index: u16) -> PodAddresses {
        let v4 = |index| to_v4(nth(self.prefixes.ipv4, index));
        let v6 = |index| self.ipv6.then(|| to_v6(nth(self.prefixes.ipv6, index)));
        let (gateway4, gateway6) = (v4(GATEWAY_INDEX), v6(GATEWAY_INDEX));
        PodAddresses {
            ipv4: v4(index),
            ipv6: v6(index),
            gateway4,
            gateway6,
            dns: std::iter::once(IpAddr::V4(gateway4)).chain(gateway6.map(IpAddr::V6)).collect(),
            link: self.instance.link(index),
        }
    }
}

fn to_v4(address: IpAddr) -> Ipv4Addr {
    match address {
        IpAddr::V4(a) => a,
        IpAddr::V6(_) => unreachable!("an address in an IPv4 prefix"),
    }
}

fn to_v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V6(a) => a,
        IpAddr::V4(_) => unreachable!("an address in an IPv6 prefix"),
    }
}

/// All that needs the kernel and the disk, on a helper thread in the host's namespace.
fn prepare(instance: &Instance, dir: &std::path::Path) -> Result<Foundation, NetworkError> {
    let store = Store::open(dir)?;
    let allocations = store.allocations()?;
    let ipv6 = host::has_ipv6();
    let prefixes = claim_prefixes(instance, &store, ipv6)?;
    let services = services::claim(instance, &store, prefixes, ipv6)?;
    let mut gateways = vec![nth(prefixes.ipv4, GATEWAY_INDEX)];
    gateways.extend(ipv6.then(|| nth(prefixes.ipv6, GATEWAY_INDEX)));
    let sockets = Sockets::bind(&gateways)?;
    let ears = Ears::open()?;
    let strangers = note_forwarding(&store, ipv6)?;
    // What the agent before let pods do, until they are adopted.
    let links = host::links(&host::route_socket()?)?;
    let asking =
        links.iter().filter(|link| has_internet(link.group)).filter_map(|link| instance.link_index(&link.name));
    let asking = Asking::new(asking);
    Ok(Foundation { store, prefixes, allocations, services, asking, ipv6, sockets, ears, strangers })
}

/// Which families the host is about to forward, or forwards since this machine started, for our sake only. Written down before
/// it is enabled: afterwards nobody could tell.
fn note_forwarding(store: &Store, ipv6: bool) -> Result<Strangers, NetworkError> {
    let (forwards4, forwards6) = host::forwards()?;
    let before = store.forwarding(&host::boot_id()?);
    let ours4 = before.ours4 || !forwards4;
    let ours6 = ipv6 && (before.ours6 || !forwards6);
    let now = Forwarding { ours4, ours6, ..before.clone() };
    if now != before {
        store.save_forwarding(&now)?;
    }
    Ok(Strangers { drop4: ours4, drop6: ours6 })
}

/// The prefixes that were kept, or new ones: at the first start, and where the host meanwhile uses them and no pod does.
fn claim_prefixes(instance: &Instance, store: &Store, ipv6: bool) -> Result<Prefixes, NetworkError> {
    let socket = host::route_socket()?;
    let kept = store.prefixes()?;
    for attempt in 0..claims::ATTEMPTS {
        let survey = Survey::take()?;
        // Allocations say nothing about it: they outlive pods and reboots.
        let no_pods = !survey.has_pods(instance);
        let taken = survey.taken(instance);
        let is_free = |p: Prefix| !taken.iter().any(|t| t.overlaps(p));
        let chosen = match kept {
            Some(kept) if attempt == 0 && (!no_pods || is_free(kept.ipv4)) => kept,
            _ => {
                let seed = instance.number().wrapping_add(attempt.wrapping_mul(rand::random()));
                let ipv4 = choose4(seed, &taken)
                    .ok_or(NetworkError::NoFreePrefix { prefix_len: crate::prefix::POD_PREFIX4_LEN })?;
                let ipv6 = kept.map_or_else(|| unique_local(rand::random()), |kept| kept.ipv6);
                Prefixes { ipv4, ipv6 }
            }
        };
        // Written down first: what is claimed in the kernel is always known to the next start.
        if kept != Some(chosen) {
            store.save_prefixes(chosen)?;
        }
        let mut own = vec![chosen.ipv4, chosen.ipv6];
        own.extend(store.services()?.into_iter().flat_map(|(range, _)| [range.ipv4, range.ipv6]));
        let conflict = claims::put(instance, &socket, &own, (chosen.ipv4, ipv6.then_some(chosen.ipv6)))?;
        if !conflict || !no_pods {
            return Ok(chosen);
        }
    }
    Err(NetworkError::NoFreePrefix { prefix_len: crate::prefix::POD_PREFIX4_LEN })
}

/// One lock a pod, for as long as somebody wants it.
#[derive(Debug, Default)]
struct KeyedLocks {
    locks: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl KeyedLocks {
    async fn lock(&self, key: &str) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
            // Those that nobody else holds or waits for are of no use any more.
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(locks.entry(key.to_owned()).or_default())
        };
        lock.lock_owned().await
    }
}
