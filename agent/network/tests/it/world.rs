//! Namespaces with unique names, the hosts in them, and probes. Nothing outside of these namespaces is touched.

use std::fs::File;
use std::future::Future;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use hearth_network::{Bandwidth, Network, NetworkConfig, PodPolicy, SharedBandwidth};

pub(crate) const ECHO: u16 = 7000;
pub(crate) const UDP_SINK: u16 = 7001;
/// Datagrams kept for the test; it sends a few dozen.
const SINK_DATAGRAMS: usize = 1000;
/// A refused connection fails at once, a dropped one after this; an allowed one takes a millisecond.
const PROBE: Duration = Duration::from_millis(400);
const UNLIMITED: Bandwidth = Bandwidth { ingress: None, egress: None };
pub(crate) const INTERNET: PodPolicy = PodPolicy { internet: true, guest: false, bandwidth: UNLIMITED };
pub(crate) const ISOLATED: PodPolicy = PodPolicy { internet: false, guest: false, bandwidth: UNLIMITED };

/// A network namespace that is deleted with this value, also after a panic.
pub(crate) struct Netns {
    pub(crate) name: String,
}

impl Netns {
    pub(crate) fn new(role: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("hnt-{}-{}-{role}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let netns = Self { name };
        sh(&format!("ip netns add {}", netns.name));
        netns.sh("ip link set lo up");
        netns
    }

    pub(crate) fn fd(&self) -> OwnedFd {
        File::open(format!("/run/netns/{}", self.name)).unwrap().into()
    }

    /// Runs a shell script inside; its output. Panics where a command fails.
    pub(crate) fn sh(&self, script: &str) -> String {
        let script = format!("ip netns exec {} sh -ec '{script}'", self.name);
        sh(&script)
    }

    /// Runs `work` on a thread inside.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        inside(&self.fd(), work)
    }

    /// Runs a future on a tokio runtime whose threads are inside.
    pub(crate) fn block_on<T: Send, F: Future<Output = T>>(&self, work: impl FnOnce() -> F + Send) -> T {
        self.run(|| {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(2).enable_all().build().unwrap().block_on(work())
        })
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

pub(crate) fn sh(script: &str) -> String {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{script}\n{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Runs `work` on a thread inside a network namespace.
pub(crate) fn inside<T: Send>(netns: &OwnedFd, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            nix::sched::setns(netns.as_fd(), nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Four fresh characters: tests run side by side.
pub(crate) fn instance() -> String {
    let mut n = rand::random::<u32>();
    let mut next = || {
        let c = b"abcdefghijklmnopqrstuvwxyz234567"[(n & 31) as usize];
        n >>= 5;
        char::from(c)
    };
    [next(), next(), next(), next()].iter().collect()
}

/// Serves every TCP connection on port `ECHO` of every address: says who called, for the rest of the process.
pub(crate) fn serve_echo(netns: &OwnedFd) {
    let listener = inside(netns, || TcpListener::bind(("::", ECHO)).unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let peer = stream.peer_addr().map(|p| p.ip().to_canonical().to_string()).unwrap_or_default();
            let _ = writeln!(stream, "{peer}");
        }
    });
}

/// Listens to UDP on port `UDP_SINK` of every address, and passes on who sent what.
pub(crate) fn serve_sink(netns: &OwnedFd) -> mpsc::Receiver<(IpAddr, String)> {
    let socket = inside(netns, || UdpSocket::bind(("::", UDP_SINK)).unwrap());
    let (sender, receiver) = mpsc::sync_channel(SINK_DATAGRAMS);
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((len, peer)) = socket.recv_from(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..len]).into_owned();
            if sender.send((peer.ip().to_canonical(), text)).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Connects from a namespace to port `ECHO` of `to`: the address that the other side saw.
pub(crate) fn call(from: &OwnedFd, to: IpAddr) -> Result<IpAddr, String> {
    call_port(from, SocketAddr::new(to, ECHO))
}

pub(crate) fn call_port(from: &OwnedFd, to: SocketAddr) -> Result<IpAddr, String> {
    inside(from, || {
        let stream = TcpStream::connect_timeout(&to, PROBE).map_err(|e| e.to_string())?;
        stream.set_read_timeout(Some(PROBE)).unwrap();
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).map_err(|e| e.to_string())?;
        line.trim().parse().map_err(|_| format!("odd answer {line:?}"))
    })
}

/// Waits until `condition` holds, for ten seconds.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < end, "not in ten seconds: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A data directory and an instance on a host.
pub(crate) struct Site {
    pub(crate) instance: String,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) zone: Option<String>,
    pub(crate) bandwidth: SharedBandwidth,
}

impl Site {
    pub(crate) fn new() -> Self {
        let site = Self {
            instance: instance(),
            dir: tempfile::tempdir().unwrap(),
            zone: None,
            bandwidth: SharedBandwidth::default(),
        };
        site.set_resolvers("");
        site
    }

    pub(crate) fn config(&self) -> NetworkConfig {
        NetworkConfig {
            instance: self.instance.clone(),
            state_dir: self.dir.path().join("network"),
            resolv_conf: self.resolv_conf(),
            zone: self.zone.clone(),
            bandwidth: self.bandwidth,
        }
    }

    fn resolv_conf(&self) -> PathBuf {
        self.dir.path().join("resolv.conf")
    }

    pub(crate) fn set_resolvers(&self, text: &str) {
        std::fs::write(self.resolv_conf(), text).unwrap();
    }

    pub(crate) async fn start(&self) -> Network {
        Network::start(self.config()).await.unwrap()
    }

    pub(crate) fn table(&self) -> String {
        format!("hearth-{}", self.instance)
    }
}

/// `server` (the internet) - `router` - a LAN with `host` and `neighbour`, all dual-stack with global IPv6 addresses.
pub(crate) struct World {
    pub(crate) host: Netns,
    pub(crate) neighbour: Netns,
    pub(crate) router: Netns,
    pub(crate) server: Netns,
}

pub(crate) const HOST4: &str = "192.168.77.10";
pub(crate) const HOST6: &str = "2a00:77::10";
pub(crate) const NEIGHBOUR4: &str = "192.168.77.20";
pub(crate) const NEIGHBOUR6: &str = "2a00:77::20";
pub(crate) const SERVER4: &str = "45.45.45.2";
pub(crate) const SERVER6: &str = "2a00:99::2";

/// Addresses that the server has too: reachable by routing, and none of a pod's business.
pub(crate) const FORBIDDEN: [&str; 25] = [
    "10.9.9.9",
    "100.64.1.1",
    "172.16.5.5",
    "192.168.200.1",
    "169.254.169.254",
    "192.0.0.8",
    "192.0.2.9",
    "192.88.99.1",
    "198.18.0.1",
    "198.51.100.3",
    "203.0.113.3",
    "240.0.0.1",
    // Another network of the same home: the provider's /56 is one home's.
    "2a00:77:0:5::1",
    "fd99::1",
    "fc00::1",
    "2001::1",
    "2001:db8::1",
    "2002:c0a8:4d14::1",
    "3fff::1",
    "64:ff9b::a09:909",
    "64:ff9b::c0a8:4d14",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "100::1",
    "5f00::1",
];

impl World {
    pub(crate) fn new() -> Self {
        let [host, neighbour, router, server] = ["host", "lan", "router", "net"].map(Netns::new);
        for netns in [&host, &neighbour, &router, &server] {
            netns.sh("sysctl -qw net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.dad_transmits=0");
        }
        router.sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1; ip link add br0 type bridge; ip link set br0 up");
        for (netns, port) in [(&host, "p1"), (&neighbour, "p2")] {
            router.sh(&format!(
                "ip link add {port} type veth peer name eth0 netns {}; ip link set {port} master br0 up",
                netns.name
            ));
        }
        router.sh(&format!("ip link add wan type veth peer name eth0 netns {}", server.name));
        let address = |netns: &Netns, link: &str, v4: &str, v6: &str| {
            netns.sh(&format!(
                "ip link set {link} up; ip addr add {v4}/24 dev {link}; ip addr add {v6}/64 dev {link} nodad"
            ));
        };
        address(&host, "eth0", HOST4, HOST6);
        address(&neighbour, "eth0", NEIGHBOUR4, NEIGHBOUR6);
        address(&router, "br0", "192.168.77.1", "2a00:77::1");
        address(&router, "wan", "45.45.45.1", "2a00:99::1");
        address(&server, "eth0", SERVER4, SERVER6);
        for netns in [&host, &neighbour] {
            netns.sh("ip route add default via 192.168.77.1; ip route add default via 2a00:77::1");
        }
        server.sh("ip route add default via 45.45.45.1; ip route add default via 2a00:99::1");
        for forbidden in FORBIDDEN {
            let (len, via) = if ip(forbidden).is_ipv4() { (32, SERVER4) } else { (128, SERVER6) };
            server.sh(&format!("ip addr add {forbidden}/{len} dev lo"));
            router.sh(&format!("ip route add {forbidden}/{len} via {via}"));
        }
        for netns in [&host, &neighbour, &server] {
            serve_echo(&netns.fd());
        }
        // Fresh links need a moment.
        for from in [&host, &neighbour] {
            for to in [SERVER4, SERVER6] {
                eventually("the world is up", || call(&from.fd(), ip(to)).is_ok());
            }
        }
        Self { host, neighbour, router, server }
    }

    /// Lets the whole world route to the pods of a network, so that only the firewall keeps anybody away.
    pub(crate) fn route_to_pods(&self, network: &Network) {
        let (_, pod) = network.pods().into_iter().next().unwrap();
        for netns in [&self.router, &self.neighbour] {
            netns.sh(&format!(
                "ip route replace {}/17 via {HOST4}; ip route replace {}/64 via {HOST6}",
                std::net::Ipv4Addr::from_bits(pod.ipv4.to_bits() & !0x7fff),
                std::net::Ipv6Addr::from_bits(pod.ipv6.unwrap().to_bits() >> 64 << 64)
            ));
        }
    }

    /// What is left of an instance on the host: links, tables and routes.
    pub(crate) fn remains(&self, instance: &str) -> String {
        self.host.sh(&format!(
            "ip -o link | grep hearth-{instance} || true; nft list tables | grep hearth-{instance} || true; \
             ip route show proto 72; ip -6 route show proto 72"
        ))
    }
}
