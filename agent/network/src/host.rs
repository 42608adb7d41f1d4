//! The host's side: its namespace, helper threads in it, kernel parameters, and what it says about its own network.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::sync::{Semaphore, oneshot};

use crate::NetworkError;
use crate::names::Instance;
use crate::netlink::Batch;
use crate::netlink::route::{self, Address, Link, Route};
use crate::netlink::socket::{Protocol, Socket};
use crate::prefix::{Neighbourhood, Prefix, on_link};

/// Helper threads at work at a time. The kernel serialises link changes under one lock, so more would only wait.
const MAX_WORKERS: usize = 8;
/// The calling thread's network namespace.
pub(crate) const THREAD_NETNS: &str = "/proc/thread-self/ns/net";
const SYSCTL: &str = "/proc/sys/net";

/// The network namespace that the agent runs in, and threads to work in it.
///
/// Entering another namespace changes the whole thread, so it happens on threads made for it that are never given back.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    netns: Arc<OwnedFd>,
    workers: Arc<Semaphore>,
}

impl Host {
    /// The calling thread's namespace.
    pub(crate) fn current() -> Result<Self, NetworkError> {
        let netns = open_netns(Path::new(THREAD_NETNS))?;
        Ok(Self { netns: Arc::new(netns), workers: Arc::new(Semaphore::new(MAX_WORKERS)) })
    }

    /// Runs `work` to its end on a thread of its own in the host's namespace, also where the caller stops waiting.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        doing: &'static str,
        work: impl FnOnce() -> Result<T, NetworkError> + Send + 'static,
    ) -> Result<T, NetworkError> {
        let dead = |_| NetworkError::Worker { doing };
        let permit = Arc::clone(&self.workers).acquire_owned().await.map_err(|_| NetworkError::Worker { doing })?;
        let (answer, answered) = oneshot::channel();
        let netns = Arc::clone(&self.netns);
        let spawned = std::thread::Builder::new().name("hearth-network".into()).spawn(move || {
            let result = enter(&netns).and_then(|()| work());
            drop(permit);
            // Nobody waits for the answer any more: the work is done all the same.
            let _ = answer.send(result);
        });
        spawned.map_err(|_| NetworkError::Worker { doing })?;
        answered.await.map_err(dead)?
    }
}

pub(crate) fn open_netns(path: &Path) -> Result<OwnedFd, NetworkError> {
    File::open(path)
        .map(OwnedFd::from)
        .map_err(|source| NetworkError::Namespace { step: "open the thread's network namespace", source })
}

/// Moves the calling thread into a network namespace.
pub(crate) fn enter(netns: &OwnedFd) -> Result<(), NetworkError> {
    move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))
        .map_err(|e| NetworkError::Namespace { step: "enter a network namespace", source: e.into() })
}

/// Opens a socket for links, addresses and routes of the calling thread's namespace.
pub(crate) fn route_socket() -> Result<Socket, NetworkError> {
    Socket::open(Protocol::Route, 0).map_err(|e| NetworkError::netlink("open a route socket", e))
}

/// Sends a batch whose every request must succeed.
pub(crate) fn must(socket: &Socket, batch: &Batch) -> Result<(), NetworkError> {
    let answers = socket.transact(batch).map_err(|e| NetworkError::netlink(batch.doings().join(", "), e))?;
    for (answer, doing) in answers.into_iter().zip(batch.doings()) {
        answer.map_err(|e| NetworkError::netlink(*doing, e))?;
    }
    Ok(())
}

/// Sends a batch of deletions: what is gone already counts as deleted. Returns how many deleted something.
pub(crate) fn delete(socket: &Socket, batch: &Batch) -> Result<usize, NetworkError> {
    if batch.doings().is_empty() {
        return Ok(0);
    }
    let answers = socket.transact(batch).map_err(|e| NetworkError::netlink(batch.doings().join(", "), e))?;
    let mut deleted = 0;
    for (answer, doing) in answers.into_iter().zip(batch.doings()) {
        match answer {
            Ok(()) => deleted += 1,
            Err(e) if is_gone(&e) => {}
            Err(e) => return Err(NetworkError::netlink(*doing, e)),
        }
    }
    Ok(deleted)
}

fn is_gone(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::ENODEV | libc::ESRCH | libc::ENOENT | libc::EADDRNOTAVAIL))
}

/// Writes a kernel parameter of the calling thread's namespace; `name` is relative to /proc/sys/net.
pub(crate) fn set_sysctl(name: &str, value: &str) -> Result<(), NetworkError> {
    let path = PathBuf::from(SYSCTL).join(name);
    fs::write(&path, value).map_err(|source| NetworkError::Sysctl { verb: "write", path, source })
}

fn sysctl(name: &str) -> Result<String, NetworkError> {
    let path = PathBuf::from(SYSCTL).join(name);
    let text = fs::read_to_string(&path).map_err(|source| NetworkError::Sysctl { verb: "read", path, source })?;
    Ok(text.trim().to_owned())
}

/// Whether the host has IPv6 at all: compiled in and not disabled.
pub(crate) fn has_ipv6() -> bool {
    sysctl("ipv6/conf/all/disable_ipv6").is_ok_and(|v| v == "0")
}

/// Which families the host forwards already.
pub(crate) fn forwards() -> Result<(bool, bool), NetworkError> {
    let v6 = sysctl("ipv6/conf/all/forwarding").is_ok_and(|v| v == "1");
    Ok((sysctl("ipv4/ip_forward")? == "1", v6))
}

/// Names the time since the machine started: kernel parameters last as long.
pub(crate) fn boot_id() -> Result<String, NetworkError> {
    let path = PathBuf::from("/proc/sys/kernel/random/boot_id");
    let text = fs::read_to_string(&path).map_err(|source| NetworkError::Sysctl { verb: "read", path, source })?;
    Ok(text.trim().to_owned())
}

/// Lets the host forward packets, and keeps its own IPv6 address and default route while doing so.
///
/// # Caveats
/// A router ignores router advertisements unless a link's `accept_ra` is 2 (kernel: `ip-sysctl.rst`), so links that listened
/// (1) are told to listen still (2), before forwarding is enabled: also `default`, for links that appear later. Nothing is
/// set back at teardown: others, like docker, may rely on forwarding by then.
pub(crate) fn enable_forwarding(ipv6: bool) -> Result<(), NetworkError> {
    if sysctl("ipv4/ip_forward")? != "1" {
        set_sysctl("ipv4/ip_forward", "1")?;
    }
    if !ipv6 || sysctl("ipv6/conf/all/forwarding")? == "1" {
        return Ok(());
    }
    let conf = PathBuf::from(SYSCTL).join("ipv6/conf");
    let read = |source| NetworkError::Sysctl { verb: "read", path: conf.clone(), source };
    for entry in fs::read_dir(&conf).map_err(read)? {
        let path = entry.map_err(read)?.path().join("accept_ra");
        // A link may vanish meanwhile, and then needs nothing.
        if fs::read_to_string(&path).is_ok_and(|v| v.trim() == "1") {
            match fs::write(&path, "2") {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(NetworkError::Sysctl { verb: "write", path, source });
                }
                _ => {}
            }
        }
    }
    set_sysctl("ipv6/conf/all/forwarding", "1")
}

/// The host's links, addresses and routes at one time.
#[derive(Debug)]
pub(crate) struct Survey {
    pub(crate) links: Vec<Link>,
    addresses: Vec<Address>,
    pub(crate) routes: Vec<Route>,
}

/// Asks the kernel for all links.
pub(crate) fn links(socket: &Socket) -> Result<Vec<Link>, NetworkError> {
    socket
        .dump(route::RTM_GETLINK, &route::DUMP_ALL, route::RTM_NEWLINK, route::parse_link)
        .map_err(|e| NetworkError::netlink("list links", e))
}

/// Asks the kernel for all addresses.
pub(crate) fn addresses(socket: &Socket) -> Result<Vec<Address>, NetworkError> {
    socket
        .dump(route::RTM_GETADDR, &route::DUMP_ALL, route::RTM_NEWADDR, route::parse_address)
        .map_err(|e| NetworkError::netlink("list addresses", e))
}

/// Asks the kernel for all routes.
pub(crate) fn routes(socket: &Socket) -> Result<Vec<Route>, NetworkError> {
    socket
        .dump(route::RTM_GETROUTE, &route::DUMP_ALL, route::RTM_NEWROUTE, route::parse_route)
        .map_err(|e| NetworkError::netlink("list routes", e))
}

impl Survey {
    pub(crate) fn take() -> Result<Self, NetworkError> {
        let socket = route_socket()?;
        Ok(Self { links: links(&socket)?, addresses: addresses(&socket)?, routes: routes(&socket)? })
    }

    /// Prefixes in use that pods of `instance` must not be given: all but its own.
    pub(crate) fn taken(&self, instance: &Instance) -> BTreeSet<Prefix> {
        let own: BTreeSet<u32> =
            self.links.iter().filter(|l| instance.link_index(&l.name).is_some()).map(|l| l.index).collect();
        let is_own = |index: Option<u32>| index.is_some_and(|i| own.contains(&i));
        let addresses = self.addresses.iter().filter(|a| !is_own(Some(a.index)));
        let routes = self.routes.iter().filter(|r| !is_own(r.index) && r.claim != Some(instance.route_priority()));
        addresses
            .flat_map(|a| [Prefix::new(a.peer, a.prefix_len), Prefix::new(a.local, a.prefix_len)])
            .flatten()
            .chain(routes.map(|r| r.prefix))
            .filter(|p| p.len() > 0)
            .collect()
    }

    /// The links that have the host's neighbours on them, or a router: hardware, and what has a route by a router. Bridges and
    /// links of containers and virtual machines are not among them, unless the host itself lives on such a bridge.
    pub(crate) fn uplinks(&self) -> BTreeSet<String> {
        let routed: BTreeSet<u32> = self.routes.iter().filter(|r| r.via_router).filter_map(|r| r.index).collect();
        let is_hardware = |name: &str| Path::new("/sys/class/net").join(name).join("device").exists();
        let links = self.links.iter().filter(|l| !l.name.starts_with("hearth-"));
        // Names with a quote or the like could break out of the rules; the kernel forbids only slashes and spaces.
        let plain = |name: &str| name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._:@".contains(&b));
        links
            .filter(|l| plain(&l.name) && (routed.contains(&l.index) || is_hardware(&l.name)))
            .map(|l| l.name.clone())
            .collect()
    }

    /// The host's own addresses on its [uplinks](Self::uplinks), of any scope.
    pub(crate) fn own_addresses(&self) -> BTreeSet<IpAddr> {
        self.on_uplinks().map(|a| a.local).collect()
    }

    /// Those of them by which others can call the host for some time.
    pub(crate) fn lasting_addresses(&self) -> BTreeSet<IpAddr> {
        self.on_uplinks().filter(|a| a.lasting).map(|a| a.local).collect()
    }

    fn on_uplinks(&self) -> impl Iterator<Item = &Address> {
        let uplinks = self.uplinks();
        let indices: BTreeSet<u32> = self.links.iter().filter(|l| uplinks.contains(&l.name)).map(|l| l.index).collect();
        self.addresses.iter().filter(move |a| indices.contains(&a.index))
    }

    /// Whether a pod of `instance` may be alive: a link goes with the namespace of its pod.
    pub(crate) fn has_pods(&self, instance: &Instance) -> bool {
        self.links.iter().any(|l| instance.link_index(&l.name).is_some())
    }

    /// The prefixes of the host's neighbours; links of pods are not neighbours.
    pub(crate) fn on_link(&self) -> BTreeSet<Prefix> {
        let links: HashMap<u32, &Link> = self.links.iter().map(|l| (l.index, l)).collect();
        let shared = |index: u32| links.get(&index).filter(|l| !l.name.starts_with("hearth-")).map(|l| l.shared);
        let addresses = self.addresses.iter().filter_map(|a| {
            let prefix = Prefix::new(a.peer, a.prefix_len)?;
            Some(Neighbourhood { prefix, shared_link: shared(a.index)?, is_address: true })
        });
        let routes = self.routes.iter().filter(|r| r.direct && !r.local_table).filter_map(|r| {
            Some(Neighbourhood { prefix: r.prefix, shared_link: shared(r.index?)?, is_address: false })
        });
        on_link(addresses.chain(routes))
    }
}
