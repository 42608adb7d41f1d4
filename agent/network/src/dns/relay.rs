//! Passes pods' DNS messages to the host's resolvers and the answers back, as they are, but for what is about the home: see
//! [`super::policy`]. An answer that leads there is replaced as a whole by one without records.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, netdevice, socket_with, sockopt};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::asking::Asking;
use super::message::{NOERROR, NXDOMAIN, Query, REFUSED, Refusal, SERVFAIL};
use super::policy::{NamePolicy, TYPE_A, TYPE_AAAA, Verdict, leads_home, leads_straight_home, with_addresses_of};
use super::resolv_conf::nameservers;
use crate::NetworkError;
use crate::denied::SharedDenied;
use crate::prefix::Prefix;
use crate::services::SharedBook;

/// The port that resolvers ask (RFC 1035 section 4.2).
const PORT: u16 = 53;
/// UDP queries being answered, all pods together: each has a socket and 16 KiB.
const MAX_QUERIES: usize = 256;
/// UDP queries being answered for one pod at most; see [`Admission`] for how the pods share the rest.
const MAX_QUERIES_A_POD: usize = 64;
/// TCP connections of all pods together, and of one.
const MAX_CONNECTIONS: usize = 64;
const MAX_CONNECTIONS_A_POD: usize = 8;
/// Queries on one TCP connection; then it is closed, and the pod may open another.
const MAX_QUERIES_A_CONNECTION: usize = 256;
/// Largest UDP query in bytes: a name and EDNS options are far below.
const MAX_QUERY: usize = 4096;
/// Largest UDP answer in bytes; EDNS sizes above 4096 are not in use.
const MAX_ANSWER: usize = 16 * 1024;
/// Patience with one resolver, and with all of them: resolvers in pods wait for 5 s.
const ATTEMPT: Duration = Duration::from_millis(1400);
const PATIENCE: Duration = Duration::from_millis(4500);
/// How often all resolvers are asked again over UDP.
const ROUNDS: usize = 2;
/// Patience with a pod that opened a TCP connection and says nothing, or does not read.
const IDLE: Duration = Duration::from_secs(10);
/// How often resolv.conf is looked at, at most.
const RECHECK: Duration = Duration::from_secs(1);
/// Largest resolv.conf that is read, in bytes.
const MAX_RESOLV_CONF: u64 = 64 * 1024;
/// Connections waiting to be accepted.
const BACKLOG: i32 = 64;
/// Ports tried where 53 is taken.
const PORT_ATTEMPTS: usize = 32;

/// The relay's sockets on the gateway addresses.
#[derive(Debug)]
pub(crate) struct Sockets {
    udp: Vec<std::net::UdpSocket>,
    tcp: Vec<std::net::TcpListener>,
    gateways: Vec<IpAddr>,
    /// The port they share: 53, or a free one where another program has port 53 of all addresses.
    pub(crate) port: u16,
}

impl Sockets {
    /// Opens the sockets in the calling thread's network namespace. The addresses need not be there yet.
    pub(crate) fn bind(gateways: &[IpAddr]) -> Result<Self, NetworkError> {
        match Self::bind_to(gateways, PORT) {
            Err(NetworkError::Relay { source, .. }) if source.kind() == io::ErrorKind::AddrInUse => {}
            other => return other,
        }
        tracing::info!("port 53 is taken by another program; the name relay of pods uses another port behind it");
        let mut last = None;
        for _ in 0..PORT_ATTEMPTS {
            match Self::bind_to(gateways, 0) {
                Ok(sockets) => return Ok(sockets),
                Err(e) => last = Some(e),
            }
        }
        Err(last.unwrap_or(NetworkError::Worker { doing: "find a port for the name relay" }))
    }

    /// With port 0: the kernel chooses for the first socket, and the others take the same.
    fn bind_to(gateways: &[IpAddr], mut port: u16) -> Result<Self, NetworkError> {
        let mut sockets = Self { udp: Vec::new(), tcp: Vec::new(), gateways: gateways.to_vec(), port };
        for gateway in gateways {
            let address = SocketAddr::new(*gateway, port);
            let failed = |protocol| move |source| NetworkError::Relay { address, protocol, source };
            let udp = std::net::UdpSocket::from(free_bound(address, SocketType::DGRAM).map_err(failed("UDP"))?);
            if port == 0 {
                port = udp.local_addr().map_err(failed("UDP"))?.port();
            }
            let tcp = free_bound(SocketAddr::new(*gateway, port), SocketType::STREAM).map_err(failed("TCP"))?;
            sockets.udp.push(udp);
            sockets.tcp.push(tcp.into());
        }
        sockets.port = port;
        Ok(sockets)
    }

    /// Serves until the returned set is dropped. Upstreams are reached from the namespace of the runtime's threads.
    pub(crate) fn serve(
        self,
        resolv_conf: PathBuf,
        zone: Option<&str>,
        pods: Vec<Prefix>,
        denied: SharedDenied,
        services: SharedBook,
        asking: Asking,
    ) -> Result<JoinSet<()>, NetworkError> {
        let relay = Arc::new(Relay {
            upstreams: Upstreams::new(resolv_conf, self.gateways.clone()),
            names: NamePolicy::new(zone),
            denied,
            services,
            asking,
            pods,
            queries: Admission::new(MAX_QUERIES, MAX_QUERIES_A_POD),
            connections: Admission::new(MAX_CONNECTIONS, MAX_CONNECTIONS_A_POD),
        });
        let mut tasks = JoinSet::new();
        for (gateway, (udp, tcp)) in self.gateways.iter().zip(self.udp.into_iter().zip(self.tcp)) {
            let address = SocketAddr::new(*gateway, self.port);
            let failed = |protocol| move |source| NetworkError::Relay { address, protocol, source };
            let udp = UdpSocket::from_std(udp).map_err(failed("UDP"))?;
            let tcp = TcpListener::from_std(tcp).map_err(failed("TCP"))?;
            tasks.spawn(Arc::clone(&relay).serve_udp(udp));
            tasks.spawn(Arc::clone(&relay).serve_tcp(tcp));
        }
        Ok(tasks)
    }
}

/// A nonblocking socket bound to an address that may appear later (`IP_FREEBIND`): there is no gateway before there is a pod.
fn free_bound(address: SocketAddr, kind: SocketType) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let fd = socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    if address.is_ipv4() {
        sockopt::set_ip_freebind(&fd, true)?;
    } else {
        sockopt::set_ipv6_freebind(&fd, true)?;
        sockopt::set_ipv6_v6only(&fd, true)?;
    }
    if kind == SocketType::STREAM {
        // Connections of the last agent may linger in TIME_WAIT.
        sockopt::set_socket_reuseaddr(&fd, true)?;
    }
    bind(&fd, &address)?;
    if kind == SocketType::STREAM {
        listen(&fd, BACKLOG)?;
    }
    Ok(fd)
}

#[derive(Debug)]
struct Relay {
    upstreams: Upstreams,
    names: NamePolicy,
    denied: SharedDenied,
    /// The names of Services.
    services: SharedBook,
    /// Who may ask for other names.
    asking: Asking,
    /// The prefixes that pods' addresses are in.
    pods: Vec<Prefix>,
    queries: Admission,
    connections: Admission,
}

impl Relay {
    async fn serve_udp(self: Arc<Self>, socket: UdpSocket) {
        let socket = Arc::new(socket);
        // Dropped with this task, and the queries with it.
        let mut answering = JoinSet::new();
        let mut buffer = vec![0u8; MAX_QUERY + 1];
        loop {
            while answering.try_join_next().is_some() {}
            // Errors of a UDP socket are about earlier answers (an unreachable pod), never about the next query.
            let Ok((len, client)) = socket.recv_from(&mut buffer).await else { continue };
            if len > MAX_QUERY {
                continue;
            }
            let query = match Query::parse(&buffer[..len]) {
                Ok(query) => query,
                Err(Refusal::Ignore) => continue,
                Err(Refusal::Answer(answer)) => {
                    let _ = socket.try_send_to(&answer, client);
                    continue;
                }
            };
            // Over the limit: no answer, and the pod's resolver asks again.
            let pod = client_of(client.ip(), &self.pods);
            let Some(ticket) = self.queries.admit(pod) else { continue };
            let (relay, socket) = (Arc::clone(&self), Arc::clone(&socket));
            answering.spawn(async move {
                let answer = relay.resolve(&query, pod, Transport::Udp).await;
                let _ = socket.send_to(&answer, client).await;
                drop(ticket);
            });
        }
    }

    async fn serve_tcp(self: Arc<Self>, listener: TcpListener) {
        let mut answering = JoinSet::new();
        loop {
            while answering.try_join_next().is_some() {}
            let (stream, client) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(e) => {
                    tracing::warn!(error = %e, "the name relay cannot accept a connection");
                    // Out of descriptors, most likely: do not spin.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let pod = client_of(client.ip(), &self.pods);
            let Some(ticket) = self.connections.admit(pod) else { continue };
            let relay = Arc::clone(&self);
            answering.spawn(async move {
                // An error means that the pod went away.
                let _ = relay.serve_connection(stream, pod).await;
                drop(ticket);
            });
        }
    }

    async fn serve_connection(&self, mut stream: TcpStream, pod: Client) -> io::Result<()> {
        for _ in 0..MAX_QUERIES_A_CONNECTION {
            let message = timeout(IDLE, read_message(&mut stream)).await??;
            let answer = match Query::parse(&message) {
                Ok(query) => self.resolve(&query, pod, Transport::Tcp).await,
                Err(Refusal::Answer(answer)) => answer,
                Err(Refusal::Ignore) => return Ok(()),
            };
            timeout(IDLE, write_message(&mut stream, &answer)).await??;
        }
        Ok(())
    }

    /// What a pod is told: of the Services that it may use, and nothing that is about the home.
    async fn resolve(&self, query: &Query, pod: Client, transport: Transport) -> Vec<u8> {
        if let Some(answer) = self.services.answer(query, pod, transport == Transport::Udp) {
            return answer;
        }
        if !self.asking.may(pod) {
            return query.failure(REFUSED);
        }
        let verdict = self.names.judge(query, &self.denied.get());
        if verdict == Verdict::Private {
            return query.failure(NXDOMAIN);
        }
        let answer = self.ask(query, transport).await;
        if verdict == Verdict::Own {
            return self.outwards(query, answer, transport).await;
        }
        if Query::is_truncated(&answer) {
            // It may end in the middle of a record.
            return query.truncated();
        }
        match leads_home(&answer, query.question_end(), &self.denied.get()) {
            Ok(false) => answer,
            Ok(true) => query.failure(NOERROR),
            Err(_) => query.failure(SERVFAIL),
        }
    }

    /// An answer about a name of the region's own, as it is; but where it leads straight to a device of this home, with the gateways' addresses: pods may
    /// not go there, and not every router leads its own address back.
    async fn outwards(&self, query: &Query, answer: Vec<u8>, transport: Transport) -> Vec<u8> {
        let is_straight = matches!(query.kind(), TYPE_A | TYPE_AAAA)
            && !Query::is_truncated(&answer)
            && leads_straight_home(&answer, query.question_end(), &self.denied.get());
        let Some(gateways) = self.names.zone_query(query.kind()).filter(|_| is_straight) else { return answer };
        let told = self.ask(&gateways, transport).await;
        if Query::is_truncated(&told) {
            return query.truncated();
        }
        with_addresses_of(query, &told, gateways.question_end())
    }

    /// The answer of the first resolver that gives one; SERVFAIL where none does in time.
    async fn ask(&self, query: &Query, transport: Transport) -> Vec<u8> {
        let (servers, first) = self.upstreams.current();
        let rounds = if transport == Transport::Udp { ROUNDS } else { 1 };
        let attempts = (0..rounds * servers.len()).map(|i| (first + i) % servers.len());
        let mut failure = None;
        let asking = async {
            for index in attempts {
                let answered = match transport {
                    Transport::Udp => timeout(ATTEMPT, ask_udp(servers[index], query)).await,
                    Transport::Tcp => timeout(PATIENCE, ask_tcp(servers[index], query)).await,
                };
                match answered {
                    // It works but cannot answer this one: another may.
                    Ok(Ok(answer)) if is_failure(&answer) => failure = Some(answer),
                    Ok(Ok(answer)) => {
                        self.upstreams.prefer(index);
                        return Some(answer);
                    }
                    Ok(Err(error)) => tracing::debug!(server = %servers[index], %error, "a resolver did not answer"),
                    Err(_) => tracing::debug!(server = %servers[index], "a resolver did not answer in time"),
                }
                if failure.is_some() && servers.len() == 1 {
                    return None;
                }
            }
            None
        };
        let answer = timeout(PATIENCE, asking).await.ok().flatten();
        answer.or(failure).unwrap_or_else(|| query.failure(SERVFAIL))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transport {
    Udp,
    Tcp,
}

/// SERVFAIL or REFUSED.
fn is_failure(answer: &[u8]) -> bool {
    answer.get(3).is_some_and(|b| matches!(b & 0x0f, 2 | 5))
}

async fn ask_udp(server: SocketAddr, query: &Query) -> io::Result<Vec<u8>> {
    // A socket a query: a source port of its own makes answers hard to forge (RFC 5452).
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
    socket.connect(server).await?;
    let id = rand::random();
    socket.send(&query.with_id(id)).await?;
    let mut buffer = vec![0u8; MAX_ANSWER + 1];
    loop {
        let len = socket.recv(&mut buffer).await?;
        if len > MAX_ANSWER {
            return Err(io::Error::other("the answer is larger than 16 KiB"));
        }
        if let Some(answer) = query.accept(id, buffer[..len].to_vec()) {
            return Ok(answer);
        }
    }
}

async fn ask_tcp(server: SocketAddr, query: &Query) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let id = rand::random();
    write_message(&mut stream, &query.with_id(id)).await?;
    let answer = read_message(&mut stream).await?;
    query.accept(id, answer).ok_or_else(|| io::Error::other("the answer is to another question"))
}

/// RFC 1035 section 4.2.2: two bytes of length, then the message.
async fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut message = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn write_message(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let len = u16::try_from(message.len()).map_err(io::Error::other)?;
    // One write, so that length and message share a segment (RFC 7766 section 8).
    let mut framed = Vec::with_capacity(2 + message.len());
    framed.extend_from_slice(&len.to_be_bytes());
    framed.extend_from_slice(message);
    stream.write_all(&framed).await
}

/// Whoever asks: the number of a pod, the same for both of its addresses; the host itself is 0.
type Client = u16;

/// Bits of an address that are the number of the pod, whichever family.
const POD_BITS: u16 = 0x7fff;

fn client_of(address: IpAddr, pods: &[Prefix]) -> Client {
    let low = match address {
        IpAddr::V4(a) => a.to_bits() as u16,
        IpAddr::V6(a) => a.to_bits() as u16,
    };
    if pods.iter().any(|prefix| prefix.contains(address)) { low & POD_BITS } else { 0 }
}

/// Bounds what goes on at a time, in all and for each client.
///
/// A client may have no more under way than is still free (a dynamic threshold as in Choudhury and Hahne, 1998): however many
/// flood, they hold each other down, and something is always free for one that has nothing under way.
#[derive(Debug)]
struct Admission {
    all: Arc<Semaphore>,
    each: Arc<Mutex<HashMap<Client, usize>>>,
    limit_each: usize,
}

/// Leave to go on; given back when dropped.
#[derive(Debug)]
struct Ticket {
    _permit: OwnedSemaphorePermit,
    client: Client,
    each: Arc<Mutex<HashMap<Client, usize>>>,
}

impl Admission {
    fn new(limit: usize, limit_each: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(limit)), each: Arc::default(), limit_each }
    }

    fn admit(&self, client: Client) -> Option<Ticket> {
        let mut each = self.each.lock().unwrap_or_else(PoisonError::into_inner);
        let count = each.get(&client).copied().unwrap_or(0);
        if count >= self.limit_each.min(self.all.available_permits()) {
            return None;
        }
        let permit = Arc::clone(&self.all).try_acquire_owned().ok()?;
        each.insert(client, count + 1);
        Some(Ticket { _permit: permit, client, each: Arc::clone(&self.each) })
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut each = self.each.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = each.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                each.remove(&self.client);
            }
        }
    }
}

/// The host's resolvers, read again when resolv.conf changes.
#[derive(Debug)]
struct Upstreams {
    path: PathBuf,
    /// Never asked: that would be asking ourselves.
    gateways: Vec<IpAddr>,
    read: Mutex<ReadConf>,
    preferred: AtomicUsize,
}

#[derive(Debug, Default)]
struct ReadConf {
    checked: Option<Instant>,
    /// Size and time of change of the file that was read; `None` where there was none.
    stamp: Option<(u64, SystemTime)>,
    servers: Arc<[SocketAddr]>,
}

impl Upstreams {
    fn new(path: PathBuf, gateways: Vec<IpAddr>) -> Self {
        Self { path, gateways, read: Mutex::default(), preferred: AtomicUsize::new(0) }
    }

    /// The resolvers, and which to ask first.
    fn current(&self) -> (Arc<[SocketAddr]>, usize) {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let first_time = read.checked.is_none();
        if read.checked.is_none_or(|at| at.elapsed() >= RECHECK) {
            read.checked = Some(Instant::now());
            let metadata = std::fs::metadata(&self.path).ok();
            let stamp =
                metadata.filter(|m| m.len() <= MAX_RESOLV_CONF).and_then(|m| Some((m.len(), m.modified().ok()?)));
            if first_time || stamp != read.stamp {
                read.stamp = stamp;
                read.servers = stamp.map(|_| self.load()).unwrap_or_default();
                self.preferred.store(0, Ordering::Relaxed);
                if read.servers.is_empty() {
                    tracing::warn!(path = ?self.path, "no name server is configured: pods cannot resolve names");
                }
            }
        }
        (Arc::clone(&read.servers), self.preferred.load(Ordering::Relaxed))
    }

    fn load(&self) -> Arc<[SocketAddr]> {
        let text = std::fs::read_to_string(&self.path).unwrap_or_default();
        let scope = |name: &str| {
            let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).ok()?;
            netdevice::name_to_index(&socket, name).ok()
        };
        nameservers(&text, scope).into_iter().filter(|s| !self.gateways.contains(&s.ip())).collect()
    }

    /// Remembers which resolver works, so that a dead first one delays one query and not all.
    fn prefer(&self, index: usize) {
        self.preferred.store(index, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_addresses_of_a_pod_are_one_client() {
        let pods: Vec<Prefix> = ["10.64.128.0/17", "fd00:1:2:3::/64"].map(|p| p.parse().unwrap()).to_vec();
        let client = |address: &str| client_of(address.parse().unwrap(), &pods);
        assert_eq!((client("10.64.128.9"), client("fd00:1:2:3::9")), (9, 9));
        assert_eq!((client("10.64.255.254"), client("fd00:1:2:3::7ffe")), (0x7ffe, 0x7ffe));
        assert_eq!((client("192.168.1.9"), client("fd00:1:2:4::9")), (0, 0));
    }

    #[test]
    fn what_is_given_back_can_be_used_again() {
        let admission = Admission::new(8, 4);
        let first: Vec<_> = std::iter::from_fn(|| admission.admit(1)).collect();
        assert_eq!(first.len(), 4);
        assert!(admission.admit(2).is_some());
        drop(first);
        assert!(admission.each.lock().unwrap().is_empty(), "nothing is remembered of whoever has nothing under way");
        assert_eq!(std::iter::from_fn(|| admission.admit(1)).take(9).collect::<Vec<_>>().len(), 4);
    }

    proptest! {
        #[test]
        fn however_many_flood_another_is_served(flooding in 1u16..60, rounds in 1usize..100) {
            let admission = Admission::new(MAX_QUERIES, MAX_QUERIES_A_POD);
            let mut held = Vec::new();
            for _ in 0..rounds {
                held.extend((1..=flooding).filter_map(|client| admission.admit(client)));
            }
            prop_assert!(held.len() < MAX_QUERIES);
            prop_assert!(admission.admit(1000).is_some());
        }
    }
}
