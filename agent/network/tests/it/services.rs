//! Services, as pods see them.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use hearth_network::{Network, PodNetwork, Service, ServicePod, ServicePort, ServiceProtocol};

use crate::world::*;

/// Where pods send back what comes over TCP, and their names over UDP.
const MIRROR: u16 = 7003;
/// Far above what a packet takes here, whatever else the machine does.
const PATIENCE: Duration = Duration::from_secs(5);
const DB: u16 = 5432;
const NAME: &str = "db.alice.svc.cluster.local";

/// Serves for the rest of the process.
fn serve_mirror(netns: &OwnedFd, name: &'static str) {
    let any = (Ipv6Addr::UNSPECIFIED, MIRROR);
    let (tcp, udp) = inside(netns, || (TcpListener::bind(any).unwrap(), UdpSocket::bind(any).unwrap()));
    std::thread::spawn(move || {
        for mut stream in tcp.incoming().flatten() {
            std::thread::spawn(move || std::io::copy(&mut stream.try_clone().unwrap(), &mut stream));
        }
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(name.as_bytes(), peer);
        }
    });
}

/// What the relay tells a pod: the code, and the addresses.
fn resolve(pod: &PodNetwork, name: &str, v6: bool) -> (u8, Vec<IpAddr>) {
    let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(label.len() as u8);
        query.extend_from_slice(label.as_bytes());
    }
    query.extend_from_slice(&[0, 0, if v6 { 28 } else { 1 }, 0, 1]);
    let relay = pod.addresses.dns[0];
    let answer = inside(&pod.netns, || {
        let socket = UdpSocket::bind(("0.0.0.0", 0)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.connect((relay, 53)).unwrap();
        socket.send(&query).unwrap();
        let mut buffer = [0; 512];
        let len = socket.recv(&mut buffer).expect("the relay answers");
        buffer[..len].to_vec()
    });
    let size = if v6 { 28 } else { 16 };
    let addresses = answer[query.len()..].chunks(size).map(|record| {
        let data = &record[12..];
        let v4 = || IpAddr::from(<[u8; 4]>::try_from(data).unwrap());
        <[u8; 16]>::try_from(data).map_or_else(|_| v4(), IpAddr::from)
    });
    (answer[3] & 0xf, addresses.collect())
}

/// The addresses that a name has for a pod, of both families.
fn both(pod: &PodNetwork, name: &str) -> Vec<IpAddr> {
    [false, true].into_iter().flat_map(|v6| resolve(pod, name, v6).1).collect()
}

/// Sends a datagram and waits for an answer.
fn answers(from: &OwnedFd, to: SocketAddr) -> bool {
    inside(from, || {
        let any: IpAddr = if to.is_ipv4() { ip("0.0.0.0") } else { ip("::") };
        let socket = UdpSocket::bind((any, 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(400))).unwrap();
        socket.connect(to).unwrap();
        let _ = socket.send(b"hello");
        let mut buffer = [0; 64];
        socket.recv(&mut buffer).is_ok()
    })
}

fn is_echoed(stream: &mut TcpStream, text: &[u8]) -> bool {
    let mut buffer = vec![0; text.len()];
    stream.write_all(text).is_ok() && stream.read_exact(&mut buffer).is_ok() && buffer == text
}

fn open(from: &OwnedFd, to: SocketAddr) -> TcpStream {
    let stream = inside(from, || TcpStream::connect_timeout(&to, PATIENCE)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn port(name: &str, protocol: ServiceProtocol, port: u16) -> ServicePort {
    ServicePort { name: Some(name.into()), protocol, port }
}

/// A database of two pods, of which those that are named are ready.
fn db(ready: &[&str], clients: &[&str]) -> Service {
    let pod = |uid: &str| ServicePod {
        uid: uid.into(),
        ready: ready.contains(&uid),
        targets: vec![Some(ECHO), Some(MIRROR), Some(MIRROR)],
    };
    Service {
        uid: "uid-of-db".into(),
        namespace: "alice".into(),
        name: "db".into(),
        headless: false,
        ports: vec![
            port("sql", ServiceProtocol::Tcp, DB),
            port("mirror", ServiceProtocol::Tcp, 80),
            port("datagrams", ServiceProtocol::Udp, 53),
        ],
        pods: ["one", "two"].map(pod).into(),
        clients: clients.iter().map(|uid| (*uid).to_owned()).collect(),
    }
}

fn headless(service: Service) -> Service {
    Service { uid: "uid-of-peers".into(), name: "peers".into(), headless: true, ..service }
}

struct Scene {
    host: Netns,
    site: Site,
}

/// Two servers, one of which may not reach the internet, a client, and a stranger. All serve.
struct Pods {
    one: PodNetwork,
    two: PodNetwork,
    client: PodNetwork,
    stranger: PodNetwork,
}

impl Pods {
    async fn attach(network: &Network) -> Self {
        let attach = async |uid, policy| network.attach(uid, &policy).await.unwrap();
        let pods = Self {
            one: attach("one", INTERNET).await,
            two: attach("two", ISOLATED).await,
            client: attach("client", INTERNET).await,
            stranger: attach("stranger", INTERNET).await,
        };
        let all = [("one", &pods.one), ("two", &pods.two), ("client", &pods.client), ("stranger", &pods.stranger)];
        for (name, pod) in all {
            serve_echo(&pod.netns);
            serve_mirror(&pod.netns, name);
        }
        pods
    }
}

impl Scene {
    fn new() -> Self {
        Self { host: Netns::new("services"), site: Site::new() }
    }
}

/// The same pod: its alias ends as its address does.
fn is_alias(alias: IpAddr, pod: &PodNetwork, service: IpAddr) -> bool {
    match (alias, service) {
        (IpAddr::V4(alias), IpAddr::V4(service)) => {
            let (alias, service, own) = (alias.to_bits(), service.to_bits(), pod.addresses.ipv4.to_bits());
            alias >> 16 == service >> 16 && alias & 0xffff == own & 0x7fff
        }
        (IpAddr::V6(alias), IpAddr::V6(service)) => {
            let own = pod.addresses.ipv6.unwrap().to_bits();
            alias.to_bits() >> 64 == service.to_bits() >> 64 && alias.to_bits() as u64 == own as u64
        }
        _ => false,
    }
}

#[test]
fn those_who_may_reach_a_service_by_its_name_and_nobody_else_does() {
    let Scene { host, site } = Scene::new();
    host.block_on(|| async {
        let network = site.start().await;
        let pods = Pods::attach(&network).await;
        let all = ["client", "one", "two"];
        network.set_services(vec![db(&["one"], &all), headless(db(&["one", "two"], &all))]).await.unwrap();
        tokio::task::block_in_place(|| {
            let Pods { one, two, client, stranger } = &pods;
            let addresses = both(client, NAME);
            assert_eq!(addresses.len(), 2, "{addresses:?}");
            for name in ["db", "db.alice", "db.alice.svc"] {
                assert_eq!(both(client, name), addresses, "{name}");
            }
            for to in &addresses {
                let at = |port| SocketAddr::new(*to, port);
                // Its own Service is no special case, and neither is a pod without internet.
                for from in [client, one, two] {
                    let seen = call_port(&from.netns, at(DB)).unwrap();
                    assert!(is_alias(seen, from, *to), "{seen} for {:?}", from.addresses);
                    assert!(answers(&from.netns, at(53)), "{to}");
                }
                for wrong in [at(ECHO), at(MIRROR), at(54)] {
                    assert!(call_port(&client.netns, wrong).is_err() && !answers(&client.netns, wrong), "{wrong}");
                }
                let begin = Instant::now();
                assert!(call_port(&stranger.netns, at(DB)).unwrap_err().contains("refused"));
                assert!(begin.elapsed() < Duration::from_millis(300), "refused at once: {:?}", begin.elapsed());
                assert!(!answers(&stranger.netns, at(53)));
                assert!(call_port(&host.fd(), at(DB)).is_err(), "it is the pods'");
            }
            for name in [NAME, "db", "db.bob.svc.cluster.local", "nothing.svc.cluster.local", "db.alice.svc"] {
                assert_eq!(resolve(stranger, name, false), (3, vec![]), "{name}");
            }
            // Names of the ready pods, at their own ports.
            let aliases = both(client, "peers.alice.svc.cluster.local");
            assert_eq!(aliases.len(), 4, "{aliases:?}");
            for alias in &aliases {
                let server = [one, two].into_iter().find(|pod| addresses.iter().any(|to| is_alias(*alias, pod, *to)));
                assert!(server.is_some(), "{alias}");
                assert!(call(&client.netns, *alias).is_ok() && call(&one.netns, *alias).is_ok(), "{alias}");
                assert!(call(&stranger.netns, *alias).is_err());
                assert!(call_port(&client.netns, SocketAddr::new(*alias, DB)).is_err(), "not the Service's own port");
            }
            // Only so: not by a pod's own address, and not back to who called.
            for (from, to) in [(client, one), (one, client), (two, client), (stranger, one)] {
                for address in [IpAddr::from(to.addresses.ipv4), to.addresses.ipv6.unwrap().into()] {
                    assert!(call(&from.netns, address).is_err(), "{address}");
                }
                let alias = (u32::from_be_bytes(match addresses[0] {
                    IpAddr::V4(a) => a.octets(),
                    IpAddr::V6(_) => unreachable!(),
                }) & 0xffff_0000)
                    | (client.addresses.ipv4.to_bits() & 0x7fff);
                assert!(call(&from.netns, std::net::Ipv4Addr::from_bits(alias).into()).is_err());
            }
        });
        network.stop().await;
    });
}

#[test]
fn what_changes_counts_for_new_connections_and_a_permission_that_ends_for_all() {
    let Scene { host, site } = Scene::new();
    host.block_on(|| async {
        let network = site.start().await;
        let pods = Pods::attach(&network).await;
        let Pods { two, client, .. } = &pods;
        let set =
            async |ready: &[&str], clients: &[&str]| network.set_services(vec![db(ready, clients)]).await.unwrap();
        set(&["one"], &["client"]).await;
        let address = tokio::task::block_in_place(|| both(client, NAME));
        let at = |port| SocketAddr::new(address[0], port);
        let mut streams: Vec<TcpStream> =
            address.iter().map(|to| open(&client.netns, SocketAddr::new(*to, 80))).collect();
        for stream in &mut streams {
            assert!(is_echoed(stream, b"first"));
        }
        // None is ready: the name is there, and connections are refused.
        set(&[], &["client"]).await;
        tokio::task::block_in_place(|| {
            assert_eq!(both(client, NAME), address);
            assert!(call_port(&client.netns, at(DB)).unwrap_err().contains("refused"));
        });
        for stream in &mut streams {
            assert!(is_echoed(stream, b"an established connection goes on"));
        }
        // Several are: all of them are called.
        set(&["one", "two"], &["client", "one", "two"]).await;
        let table = host.sh(&format!("nft list table inet {}", site.table()));
        assert!(table.contains("numgen random mod 2"), "{table}");
        tokio::task::block_in_place(|| {
            for to in &address {
                (0..8).for_each(|_| assert!(call_port(&client.netns, SocketAddr::new(*to, DB)).is_ok()));
            }
        });
        for stream in &mut streams {
            assert!(is_echoed(stream, b"still"));
        }
        // Datagrams of one port go to a pod that is ready, whatever they did before.
        let talk = inside(&client.netns, || UdpSocket::bind(("0.0.0.0", 0)).unwrap());
        talk.set_read_timeout(Some(PATIENCE)).unwrap();
        talk.connect(at(53)).unwrap();
        let mut buffer = [0; 64];
        for ready in ["one", "two", "one"] {
            set(&[ready], &["client"]).await;
            talk.send(b"to whom?").unwrap();
            let len = talk.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..len], ready.as_bytes());
        }
        set(&["one", "two"], &["client"]).await;
        // No more a client: what is open ends, too.
        set(&["one", "two"], &["one"]).await;
        for stream in &mut streams {
            stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            assert!(!is_echoed(stream, b"over"));
        }
        // A pod that goes is in no rule when its number is free.
        set(&["one", "two"], &["client", "two"]).await;
        network.detach("two").await.unwrap();
        let table = host.sh(&format!("nft list table inet {}", site.table()));
        assert!(!table.contains(&two.addresses.ipv4.to_string()), "{table}");
        assert!(!table.contains("numgen"), "{table}");
        tokio::task::block_in_place(|| assert!(call_port(&client.netns, at(DB)).is_ok()));
        // One that comes is.
        let again = network.attach("two", &INTERNET).await.unwrap();
        serve_echo(&again.netns);
        tokio::task::block_in_place(|| {
            (0..8).for_each(|_| assert!(call_port(&again.netns, at(DB)).is_ok()));
            (0..8).for_each(|_| assert!(call_port(&client.netns, at(DB)).is_ok()));
        });
        network.set_services(Vec::new()).await.unwrap();
        let table = host.sh(&format!("nft list table inet {}", site.table()));
        assert!(!table.contains("service_pods"), "{table}");
        tokio::task::block_in_place(|| assert_eq!(resolve(client, NAME, false), (3, vec![])));
        network.stop().await;
    });
}

#[test]
fn without_the_hosts_rules_services_lead_nowhere_and_with_them_where_they_did() {
    let Scene { host, site } = Scene::new();
    let services = || vec![db(&["one"], &["client"]), headless(db(&["one"], &["client"]))];
    let (pods, addresses) = host.block_on(|| async {
        let network = site.start().await;
        let pods = Pods::attach(&network).await;
        network.set_services(services()).await.unwrap();
        let addresses = tokio::task::block_in_place(|| both(&pods.client, NAME));
        // Somebody flushes all rules while the agent runs.
        host.sh("nft flush ruleset");
        tokio::task::block_in_place(|| {
            for to in &addresses {
                eventually("the rules are back", || call_port(&pods.client.netns, SocketAddr::new(*to, DB)).is_ok());
            }
        });
        network.stop().await;
        (pods, addresses)
    });
    host.sh("nft flush ruleset");
    let Pods { one, client, .. } = &pods;
    let aliases = addresses.iter().map(|to| match to {
        IpAddr::V4(a) => {
            std::net::Ipv4Addr::from_bits(a.to_bits() >> 16 << 16 | one.addresses.ipv4.to_bits() & 0x7fff).into()
        }
        IpAddr::V6(a) => {
            let low = one.addresses.ipv6.unwrap().to_bits() as u64;
            IpAddr::from(Ipv6Addr::from_bits(a.to_bits() >> 64 << 64 | u128::from(low)))
        }
    });
    let doors = addresses.iter().map(|to| SocketAddr::new(*to, DB));
    for to in doors.chain(aliases.map(|to| SocketAddr::new(to, MIRROR))) {
        assert!(call_port(&client.netns, to).is_err() && !answers(&client.netns, to), "{to}");
    }
    assert!(call(&client.netns, one.addresses.ipv4.into()).is_err());
    // The next agent knows the addresses.
    host.block_on(|| async {
        let network = site.start().await;
        for (uid, pod) in [("one", one), ("client", client)] {
            network.adopt(uid, pod.netns.try_clone().unwrap(), &INTERNET).await.unwrap();
        }
        network.set_services(services()).await.unwrap();
        tokio::task::block_in_place(|| {
            assert_eq!(both(client, NAME), addresses);
            assert!(call_port(&client.netns, SocketAddr::new(addresses[0], DB)).is_ok());
        });
        network.stop().await;
    });
}
