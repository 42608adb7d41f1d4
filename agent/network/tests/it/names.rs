//! The name relay, as pods see it.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use hearth_network::PodNetwork;

use crate::world::*;

const SERVFAIL: u8 = 2;
const WAIT: Duration = Duration::from_secs(6);

/// A query for the A record of a name of one label and `test`.
fn query(id: u16, label: &str) -> Vec<u8> {
    query_name(id, &format!("{label}.test"))
}

fn query_name(id: u16, name: &str) -> Vec<u8> {
    let mut bytes = id.to_be_bytes().to_vec();
    bytes.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.extend_from_slice(&[0, 0, 1, 0, 1]);
    bytes
}

/// What the test's resolver answers: `big` is truncated over UDP, `silent` gets nothing, all else one address.
fn respond(query: &[u8], tcp: bool, address: Ipv4Addr) -> Option<Vec<u8>> {
    let label = &query[13..13 + usize::from(query[12])];
    // A public name that leads into the home.
    let address = if label == b"rebind" { Ipv4Addr::new(192, 168, 77, 20) } else { address };
    // The name of an app whose owner publishes the router's address.
    let address = if label == b"straight" { Ipv4Addr::new(25, 0, 0, 1) } else { address };
    let mut answer = query.to_vec();
    (answer[2], answer[3]) = (0x81, 0x80);
    let records = match label {
        b"silent" => return None,
        b"big" if !tcp => {
            answer[2] |= 2;
            return Some(answer);
        }
        b"big" => 200u16,
        _ => 1,
    };
    answer[6..8].copy_from_slice(&records.to_be_bytes());
    for _ in 0..records {
        answer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend_from_slice(&address.octets());
    }
    Some(answer)
}

/// A resolver on port 53 of `at`, for the rest of the process; every answer over UDP follows a forged one.
fn serve_names(netns: &OwnedFd, at: IpAddr, address: Ipv4Addr) {
    let (udp, tcp) = inside(netns, || (UdpSocket::bind((at, 53)).unwrap(), TcpListener::bind((at, 53)).unwrap()));
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((len, peer)) = udp.recv_from(&mut buffer) {
            if let Some(answer) = respond(&buffer[..len], false, address) {
                let mut forged = answer.clone();
                forged[0] ^= 0x5a;
                let _ = udp.send_to(&forged, peer);
                let _ = udp.send_to(&answer, peer);
            }
        }
    });
    std::thread::spawn(move || {
        for stream in tcp.incoming().flatten() {
            std::thread::spawn(move || {
                let mut stream = stream;
                while let Some(query) = read_framed(&mut stream) {
                    let Some(answer) = respond(&query, true, address) else { return };
                    write_framed(&mut stream, &answer);
                }
            });
        }
    });
}

fn read_framed(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut len = [0; 2];
    stream.read_exact(&mut len).ok()?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(len))];
    stream.read_exact(&mut message).ok()?;
    Some(message)
}

fn write_framed(stream: &mut TcpStream, message: &[u8]) {
    let mut framed = (message.len() as u16).to_be_bytes().to_vec();
    framed.extend_from_slice(message);
    stream.write_all(&framed).unwrap();
}

fn ask_udp(from: &OwnedFd, relay: IpAddr, message: &[u8]) -> std::io::Result<Vec<u8>> {
    inside(from, || {
        let any: IpAddr = if relay.is_ipv4() { ip("0.0.0.0") } else { ip("::") };
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect((relay, 53))?;
        socket.set_read_timeout(Some(WAIT))?;
        socket.send(message)?;
        let mut buffer = vec![0; 65535];
        let len = socket.recv(&mut buffer)?;
        buffer.truncate(len);
        Ok(buffer)
    })
}

fn open_tcp(from: &OwnedFd, relay: IpAddr) -> TcpStream {
    let stream = inside(from, || TcpStream::connect_timeout(&SocketAddr::new(relay, 53), WAIT).unwrap());
    stream.set_read_timeout(Some(WAIT)).unwrap();
    stream
}

/// The address in an answer to `query(id, ..)`.
fn address_in(answer: &[u8], id: u16) -> Option<Ipv4Addr> {
    assert_eq!(answer[..2], id.to_be_bytes());
    let last: [u8; 4] = answer.get(answer.len() - 4..)?.try_into().ok()?;
    (answer[3].is_multiple_of(16) && answer[7] > 0).then_some(last.into())
}

#[test]
fn pods_resolve_names_over_udp_and_tcp_and_both_families() {
    let world = World::new();
    let site = Site::new();
    serve_names(&world.server.fd(), ip(SERVER4), Ipv4Addr::new(1, 2, 3, 4));
    site.set_resolvers(&format!("nameserver {SERVER4}\n"));
    world.host.block_on(|| async {
        let network = site.start().await;
        let pod = network.attach("pod", &INTERNET).await.unwrap();
        tokio::task::block_in_place(|| {
            assert_eq!(pod.addresses.dns.len(), 2);
            for relay in pod.addresses.dns.clone() {
                let answer = ask_udp(&pod.netns, relay, &query(77, "web")).unwrap();
                assert_eq!(address_in(&answer, 77), Some(Ipv4Addr::new(1, 2, 3, 4)));
                let answer = ask_udp(&pod.netns, relay, &query(78, "big")).unwrap();
                assert_eq!((answer[2] & 2, answer[7]), (2, 0), "truncation is passed on");
                let mut stream = open_tcp(&pod.netns, relay);
                for (id, label, records) in [(1, "web", 1), (2, "big", 200), (3, "web", 1)] {
                    write_framed(&mut stream, &query(id, label));
                    let answer = read_framed(&mut stream).unwrap();
                    assert_eq!(answer[..2], id.to_be_bytes());
                    assert_eq!(u16::from_be_bytes([answer[6], answer[7]]), records);
                }
            }
            // Not the LAN, and not by the host's own address.
            world.route_to_pods(&network);
            let stranger = world.neighbour.fd();
            for relay in pod.addresses.dns.clone() {
                let refused = inside(&stranger, || {
                    TcpStream::connect_timeout(&SocketAddr::new(relay, 53), Duration::from_millis(400))
                });
                assert!(refused.is_err(), "the relay is no open resolver: {relay}");
            }
            assert!(ask_udp_briefly(&pod.netns, ip(HOST4)).is_err());
        });
        network.stop().await;
    });
}

fn ask_udp_briefly(from: &OwnedFd, to: IpAddr) -> std::io::Result<usize> {
    inside(from, || {
        let socket = UdpSocket::bind(("0.0.0.0", 0))?;
        socket.connect((to, 53))?;
        socket.set_read_timeout(Some(Duration::from_millis(400)))?;
        socket.send(&query(1, "web"))?;
        socket.recv(&mut [0; 512])
    })
}

#[test]
fn dead_and_missing_resolvers_are_a_clear_failure_and_changes_are_noticed() {
    let world = World::new();
    let site = Site::new();
    serve_names(&world.server.fd(), ip(SERVER6), Ipv4Addr::new(5, 6, 7, 8));
    world.host.block_on(|| async {
        let network = site.start().await;
        let pod = network.attach("pod", &INTERNET).await.unwrap();
        tokio::task::block_in_place(|| {
            let relay = pod.addresses.dns[0];
            let ask = |label: &str| ask_udp(&pod.netns, relay, &query(9, label)).unwrap();
            let code = |answer: &[u8]| answer[3] & 0xf;
            assert_eq!(code(&ask("web")), SERVFAIL, "no resolver at all");

            // One that refuses the connection, one that never answers, and one that works.
            site.set_resolvers(&format!("nameserver {SERVER4}\nnameserver 45.45.45.99\nnameserver {SERVER6}\n"));
            eventually("the new resolvers are used", || address_in(&ask("web"), 9) == Some(Ipv4Addr::new(5, 6, 7, 8)));
            let begin = Instant::now();
            assert!(address_in(&ask("web"), 9).is_some());
            assert!(begin.elapsed() < Duration::from_secs(1), "the one that works is asked first now");

            let begin = Instant::now();
            assert_eq!(code(&ask("silent")), SERVFAIL, "upstream says nothing");
            assert!(begin.elapsed() < Duration::from_secs(5), "before the pod's own resolver gives up");

            std::fs::remove_file(site.config().resolv_conf).unwrap();
            eventually("the missing file is noticed", || code(&ask("web")) == SERVFAIL);
        });
        network.stop().await;
    });
}

#[test]
fn a_taken_port_53_is_worked_around() {
    let world = World::new();
    let site = Site::new();
    // A home's own name server, on all addresses, as dnsmasq and Pi-hole do.
    world.host.run(|| {
        serve_names(&world.host.fd(), ip("0.0.0.0"), Ipv4Addr::new(9, 9, 9, 9));
    });
    serve_names(&world.server.fd(), ip(SERVER4), Ipv4Addr::new(1, 2, 3, 4));
    site.set_resolvers(&format!("nameserver {SERVER4}\n"));
    world.host.block_on(|| async {
        let network = site.start().await;
        let pod = network.attach("pod", &INTERNET).await.unwrap();
        tokio::task::block_in_place(|| {
            for relay in pod.addresses.dns.clone() {
                let answer = ask_udp(&pod.netns, relay, &query(3, "web")).unwrap();
                assert_eq!(address_in(&answer, 3), Some(Ipv4Addr::new(1, 2, 3, 4)), "{relay}");
                let mut stream = open_tcp(&pod.netns, relay);
                write_framed(&mut stream, &query(4, "web"));
                assert!(address_in(&read_framed(&mut stream).unwrap(), 4).is_some());
            }
            assert!(ask_udp_briefly(&pod.netns, ip(HOST4)).is_err(), "the host's own name server stays out of reach");
        });
        network.stop().await;
    });
}

#[test]
fn pods_are_not_told_about_the_home() {
    let world = World::new();
    let mut site = Site::new();
    serve_names(&world.server.fd(), ip(SERVER4), Ipv4Addr::new(1, 2, 3, 4));
    site.set_resolvers(&format!("nameserver {SERVER4}\n"));
    for zone in [None, Some("test"), Some("home.internal")] {
        site.zone = zone.map(str::to_owned);
        world.host.block_on(|| async {
            let network = site.start().await;
            let pod = network.attach("pod", &INTERNET).await.unwrap();
            tokio::task::block_in_place(|| {
                let relay = pod.addresses.dns[0];
                let mut stream = open_tcp(&pod.netns, relay);
                // Code and number of answers, over UDP and TCP alike.
                let mut ask = |name: &str| {
                    let message = query_name(5, name);
                    let udp = ask_udp(&pod.netns, relay, &message).unwrap();
                    write_framed(&mut stream, &message);
                    let tcp = read_framed(&mut stream).unwrap();
                    assert_eq!(udp, tcp, "{name}");
                    assert_eq!(udp[..2], [0, 5]);
                    (udp[3] & 0xf, udp[7])
                };
                assert_eq!(ask("web.test"), (0, 1));
                let own = zone == Some("test");
                assert_eq!(ask("rebind.test"), (0, u8::from(own)), "an answer that leads home is none");
                assert_eq!(ask("printer.local"), (3, 0));
                assert_eq!(ask("nas"), (3, 0));
                assert_eq!(ask("20.77.168.192.in-addr.arpa"), (3, 0));
                let own = zone == Some("home.internal");
                assert_eq!(ask("photos.home.internal"), if own { (0, 1) } else { (3, 0) });
            });
            network.detach("pod").await.unwrap();
            network.stop().await;
        });
    }
}

#[test]
fn a_pod_is_led_to_the_gateways_where_the_internet_is_led_straight_to_its_home() {
    let world = World::new();
    let mut site = Site::new();
    serve_names(&world.server.fd(), ip(SERVER4), Ipv4Addr::new(1, 2, 3, 4));
    site.set_resolvers(&format!("nameserver {SERVER4}\n"));
    site.zone = Some("test".to_owned());
    world.host.block_on(|| async {
        let network = site.start().await;
        let pod = network.attach("pod", &INTERNET).await.unwrap();
        let ask = |name: &str| {
            let (relay, message) = (pod.addresses.dns[0], query_name(5, name));
            tokio::task::block_in_place(|| {
                let udp = ask_udp(&pod.netns, relay, &message).unwrap();
                let mut stream = open_tcp(&pod.netns, relay);
                write_framed(&mut stream, &message);
                assert_eq!(read_framed(&mut stream).unwrap(), udp, "{name}");
                assert_eq!((&udp[..2], udp[3] & 0xf, udp[7]), (&[0, 5][..], 0, 1), "{name}");
                assert_eq!(udp[12..message.len()], message[12..], "{name}");
                <[u8; 4]>::try_from(&udp[udp.len() - 4..]).unwrap()
            })
        };
        assert_eq!(ask("straight.test"), [25, 0, 0, 1], "somebody else's home");
        network.deny(&[ip("25.0.0.1")].into()).await.unwrap();
        assert_eq!(ask("straight.test"), [1, 2, 3, 4], "as the zone itself has it");
        assert_eq!(ask("rebind.test"), [192, 168, 77, 20], "a region of the home is where it is");
        network.stop().await;
    });
}

/// Whether a pod's question is answered before the relay loses its patience with a flood that began just now. A flood may fill
/// the relay's socket for a moment, so it is asked again, as resolvers do.
fn is_answered(pod: &PodNetwork) -> bool {
    let socket = inside(&pod.netns, || UdpSocket::bind(("0.0.0.0", 0)).unwrap());
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    (0..12).any(|_| {
        socket.send_to(&query(5, "web"), (pod.addresses.dns[0], 53)).unwrap();
        socket.recv(&mut [0; 512]).is_ok()
    })
}

#[test]
fn pods_that_flood_by_both_families_do_not_silence_another() {
    let world = World::new();
    let site = Site::new();
    serve_names(&world.server.fd(), ip(SERVER4), Ipv4Addr::new(1, 2, 3, 4));
    site.set_resolvers(&format!("nameserver {SERVER4}\n"));
    world.host.block_on(|| async {
        let network = site.start().await;
        let mut loud = Vec::new();
        for uid in ["a", "b", "c"] {
            loud.push(network.attach(uid, &INTERNET).await.unwrap());
        }
        let quiet = network.attach("quiet", &INTERNET).await.unwrap();
        tokio::task::block_in_place(|| {
            for pod in &loud {
                for relay in pod.addresses.dns.clone() {
                    inside(&pod.netns, || {
                        let any: IpAddr = if relay.is_ipv4() { ip("0.0.0.0") } else { ip("::") };
                        let socket = UdpSocket::bind((any, 0)).unwrap();
                        (0..500).for_each(|id| drop(socket.send_to(&query(id, "silent"), (relay, 53))));
                    });
                }
            }
            assert!(is_answered(&quiet), "while the others wait for their answers");
        });
        network.stop().await;
    });
}

#[test]
fn one_pod_that_floods_does_not_silence_another() {
    let world = World::new();
    let site = Site::new();
    serve_names(&world.server.fd(), ip(SERVER4), Ipv4Addr::new(1, 2, 3, 4));
    site.set_resolvers(&format!("nameserver {SERVER4}\n"));
    world.host.block_on(|| async {
        let network = site.start().await;
        let loud = network.attach("loud", &INTERNET).await.unwrap();
        let quiet = network.attach("quiet", &INTERNET).await.unwrap();
        tokio::task::block_in_place(|| {
            let relay = loud.addresses.dns[0];
            inside(&loud.netns, || {
                let socket = UdpSocket::bind(("0.0.0.0", 0)).unwrap();
                for id in 0..2000 {
                    socket.send_to(&query(id, "silent"), (relay, 53)).unwrap();
                }
            });
            assert!(is_answered(&quiet));
            // Most of it never came as far as the relay's socket.
            let counted = world.host.sh(&format!("nft list set inet {} questions", site.table()));
            assert!(counted.contains(&loud.addresses.link), "{counted}");
        });
        network.stop().await;
    });
}
