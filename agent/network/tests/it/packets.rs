//! Not only TCP: datagrams and pings to every denied place, groups, broadcast and link-local addresses among them. Observers in
//! every namespace see whatever arrives there, which is first shown without any firewall.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, ipproto, recv, sendto, socket, sockopt};

use crate::protection::Scene;
use crate::world::*;

/// SSDP, mDNS, and a group of no use.
const GROUPS4: [&str; 3] = ["239.255.255.250", "224.0.0.251", "232.1.1.1"];
const GROUPS6: [&str; 2] = ["ff02::fb", "ff05::c"];
/// The host's side of the pod's link, for the length of this test.
const LINK_LOCAL: &str = "fe80::1";
/// Marks kept for the test; it sends a few hundred packets.
const MARKS: usize = 4000;
/// After the last packet was seen, others are still on their way for this long at most: it takes microseconds.
const REST: Duration = Duration::from_millis(300);

/// Passes on every datagram and ping that is delivered in a namespace.
fn observe(netns: &OwnedFd, link: Option<&str>, sender: &SyncSender<Vec<u8>>) {
    let sockets = inside(netns, || {
        let open = |family, protocol| socket(family, SocketType::RAW, Some(protocol)).unwrap();
        let v4 = [open(AddressFamily::INET, ipproto::UDP), open(AddressFamily::INET, ipproto::ICMP)];
        let v6 = [open(AddressFamily::INET6, ipproto::UDP), open(AddressFamily::INET6, ipproto::ICMPV6)];
        if let Some(link) = link {
            let index = rustix::net::netdevice::name_to_index(&v4[0], link).unwrap();
            for group in GROUPS4 {
                let group: Ipv4Addr = group.parse().unwrap();
                for socket in &v4 {
                    sockopt::set_ip_add_membership_with_ifindex(socket, &group, &Ipv4Addr::UNSPECIFIED, index).unwrap();
                }
            }
            for group in GROUPS6 {
                let group: Ipv6Addr = group.parse().unwrap();
                for socket in &v6 {
                    sockopt::set_ipv6_add_membership(socket, &group, index).unwrap();
                }
            }
        }
        v4.into_iter().chain(v6)
    });
    for socket in sockets {
        let sender = sender.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while let Ok((len, _)) = recv(&socket, &mut buffer, RecvFlags::empty()) {
                if sender.send(buffer[..len].to_vec()).is_err() {
                    return;
                }
            }
        });
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Udp,
    Ping,
}

/// A datagram or a ping with a mark, as an unprivileged program of a pod sends it; what goes wrong is of no interest.
fn send(to: SocketAddr, kind: Kind, mark: &str) {
    match kind {
        Kind::Udp => {
            let any: IpAddr = if to.is_ipv4() { ip("0.0.0.0") } else { ip("::") };
            let socket = UdpSocket::bind((any, 0)).unwrap();
            socket.set_broadcast(true).unwrap();
            let _ = socket.send_to(mark.as_bytes(), to);
        }
        Kind::Ping => {
            let (family, protocol, request) = match to {
                SocketAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP, 8),
                SocketAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6, 128),
            };
            let socket = socket(family, SocketType::DGRAM, Some(protocol)).unwrap();
            sockopt::set_socket_broadcast(&socket, true).unwrap();
            let mut message = vec![request, 0, 0, 0, 0, 0, 0, 1];
            message.extend_from_slice(mark.as_bytes());
            let _ = sendto(&socket, &message, SendFlags::empty(), &to);
        }
    }
}

struct Test {
    scene: Scene,
    probes: Vec<(SocketAddr, Kind)>,
    seen: Mutex<Receiver<Vec<u8>>>,
}

impl Test {
    fn new() -> Self {
        let scene = Scene::without_agent();
        let link = scene.one.addresses.link.clone();
        // A link-local address on each side, and no need to ask for it.
        scene.world.host.sh(&format!("ip addr add {LINK_LOCAL}/64 dev {link} nodad"));
        let mac = scene.world.host.sh(&format!("cat /sys/class/net/{link}/address"));
        let index = inside(&scene.one.netns, || {
            sh(&format!(
                "ip addr add fe80::2/64 dev eth0 nodad; ip neigh replace {LINK_LOCAL} lladdr {} dev eth0 nud permanent",
                mac.trim()
            ));
            sh("cat /proc/net/dev_snmp6/eth0 | grep ifIndex").split_whitespace().nth(1).unwrap().parse::<u32>().unwrap()
        });
        let (sender, seen) = sync_channel(MARKS);
        for netns in [&scene.world.neighbour, &scene.world.router, &scene.world.server] {
            observe(&netns.fd(), None, &sender);
        }
        observe(&scene.world.host.fd(), Some(&link), &sender);
        observe(&scene.two.netns, None, &sender);

        let on_link =
            GROUPS6.iter().chain([&LINK_LOCAL]).map(|a| SocketAddrV6::new(a.parse().unwrap(), UDP_SINK, 0, index));
        let groups4 = GROUPS4.iter().chain([&"255.255.255.255"]).map(|a| SocketAddr::new(ip(a), UDP_SINK));
        let single = scene.denied().into_iter().map(|a| SocketAddr::new(a, UDP_SINK));
        let places: Vec<SocketAddr> = single.chain(groups4).chain(on_link.map(SocketAddr::V6)).collect();
        let probes = places.iter().flat_map(|to| [(*to, Kind::Udp), (*to, Kind::Ping)]).collect();
        Self { scene, probes, seen: Mutex::new(seen) }
    }

    /// Sends everything, then what may arrive; which of the former arrived.
    fn arrived(&self, round: &str) -> Vec<(SocketAddr, Kind)> {
        let honest = [SERVER4, SERVER6].map(|a| SocketAddr::new(ip(a), UDP_SINK));
        inside(&self.scene.one.netns, || {
            for (n, (to, kind)) in self.probes.iter().enumerate() {
                send(*to, *kind, &format!("<{round}:{n}>"));
            }
            for to in honest {
                for kind in [Kind::Udp, Kind::Ping] {
                    send(to, kind, &format!("<{round}:honest {to} {kind:?}>"));
                }
            }
        });
        let mut marks = BTreeSet::new();
        let end = Instant::now() + Duration::from_secs(10);
        let is_honest = |mark: &&String| mark.contains("honest");
        loop {
            match self.seen.lock().unwrap().recv_timeout(REST) {
                Ok(packet) => marks.extend(mark_in(&packet, round)),
                Err(RecvTimeoutError::Timeout) if marks.iter().filter(is_honest).count() == 2 * honest.len() => break,
                Err(_) => assert!(Instant::now() < end, "what may arrive does: {marks:?}"),
            }
        }
        let arrived = |n: usize| marks.contains(&n.to_string());
        self.probes.iter().enumerate().filter(|(n, _)| arrived(*n)).map(|(_, probe)| *probe).collect()
    }
}

/// The mark of this round in a packet.
fn mark_in(packet: &[u8], round: &str) -> Option<String> {
    let text = String::from_utf8_lossy(packet);
    let (_, mark) = text.split_once(&format!("<{round}:"))?;
    Some(mark.split_once('>')?.0.to_owned())
}

#[test]
fn no_datagram_and_no_ping_reaches_the_home_by_either_firewall() {
    let test = Test::new();
    test.scene.flush_host();
    assert_eq!(test.arrived("inside"), [], "the firewall inside alone");
    test.scene.flush_pods();
    let arrived = test.arrived("none");
    let missing: Vec<_> = test.probes.iter().filter(|probe| !arrived.contains(probe)).collect();
    assert!(missing.is_empty(), "must arrive without either firewall, or the test shows nothing: {missing:?}");
    test.scene.protected(|| assert_eq!(test.arrived("host"), [], "the host's firewall alone"));
}
