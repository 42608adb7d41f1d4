//! Each protection is first shown to be needed: what is denied with the firewall succeeds without it.

use std::net::{IpAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use hearth_network::{Network, PodNetwork};

use crate::world::*;

/// Two pods with internet, the second serving; and everything they could try.
struct Scene {
    world: World,
    site: Site,
    one: PodNetwork,
    two: PodNetwork,
}

impl Scene {
    /// Pods are attached, and the agent is gone with its firewall.
    fn unprotected() -> Self {
        let world = World::new();
        let site = Site::new();
        let (one, two) = world.host.block_on(|| async {
            let network = site.start().await;
            let one = network.attach("one", &INTERNET).await.unwrap();
            let two = network.attach("two", &INTERNET).await.unwrap();
            world.route_to_pods(&network);
            network.stop().await;
            (one, two)
        });
        world.host.sh(&format!("nft delete table inet {}", site.table()));
        for pod in [&one, &two] {
            serve_echo(&pod.netns);
        }
        Self { world, site, one, two }
    }

    /// Starts the network and runs `check` under it.
    fn protected(&self, check: impl FnOnce() + Send) {
        self.world.host.block_on(|| async {
            let network = self.site.start().await;
            tokio::task::block_in_place(check);
            network.stop().await;
        });
    }

    /// Everything that a pod must not reach.
    fn denied(&self) -> Vec<IpAddr> {
        let two = &self.two.addresses;
        [HOST4, HOST6, NEIGHBOUR4, NEIGHBOUR6, "192.168.77.1", "2a00:77::1"]
            .iter()
            .chain(&FORBIDDEN)
            .map(|a| ip(a))
            .chain([two.ipv4.into(), two.ipv6.unwrap().into(), two.gateway4.into(), two.gateway6.unwrap().into()])
            .collect()
    }
}

#[test]
fn a_pod_reaches_the_internet_and_nothing_else() {
    let scene = Scene::unprotected();
    serve_echo(&scene.world.router.fd());
    let from = &scene.one.netns;
    let unreachable: Vec<_> = scene.denied().into_iter().filter_map(|to| Some((to, call(from, to).err()?))).collect();
    assert!(unreachable.is_empty(), "must be reachable without the firewall: {unreachable:?}");

    scene.protected(|| {
        let reached: Vec<_> = scene.denied().into_iter().filter(|to| call(from, *to).is_ok()).collect();
        assert!(reached.is_empty(), "{reached:?}");
        assert_eq!(call(from, ip(SERVER4)), Ok(ip(HOST4)), "masqueraded as the host");
        assert_eq!(call(from, ip(SERVER6)), Ok(ip(HOST6)));
    });
}

#[test]
fn only_the_host_opens_connections_to_a_pod() {
    let scene = Scene::unprotected();
    let pod = &scene.one.addresses;
    let addresses: [IpAddr; 2] = [pod.ipv4.into(), pod.ipv6.unwrap().into()];
    let others = [scene.world.neighbour.fd(), scene.world.server.fd()];
    for to in addresses {
        for from in &others {
            assert!(call(from, to).is_ok(), "{to} must be reachable without the firewall");
        }
    }
    scene.protected(|| {
        for (to, gateway) in addresses.into_iter().zip([pod.gateway4.into(), pod.gateway6.unwrap().into()]) {
            for from in &others {
                assert!(call(from, to).is_err(), "{to}");
            }
            assert_eq!(call(&scene.world.host.fd(), to), Ok(gateway), "the host sees pods as their gateway");
        }
    });
}

fn eth0() -> u32 {
    sh("ip -o link show eth0").split(':').next().unwrap().parse().unwrap()
}

/// Whether a datagram sent from a forged source arrives.
fn forged_arrives(
    pod: &OwnedFd,
    source: IpAddr,
    to: IpAddr,
    sink: &Mutex<Receiver<(IpAddr, String)>>,
    mark: &str,
) -> bool {
    inside(pod, || {
        let socket = match source {
            // A link-local address needs its link: eth0 is the second of the namespace.
            IpAddr::V6(a) if a.is_unicast_link_local() => UdpSocket::bind(std::net::SocketAddrV6::new(a, 0, 0, eth0())),
            _ => UdpSocket::bind((source, 0)),
        }
        .unwrap();
        for _ in 0..3 {
            // With the firewall on this may be refused at once.
            let _ = socket.send_to(mark.as_bytes(), (to, UDP_SINK));
        }
    });
    // What was sent after it from the right address: when that has arrived, the forged one would have.
    let sink = sink.lock().unwrap();
    while let Ok((from, text)) = sink.recv_timeout(Duration::from_millis(500)) {
        if text == mark {
            assert!(from == source || [HOST4, HOST6].map(ip).contains(&from));
            return true;
        }
    }
    false
}

#[test]
fn a_pod_cannot_speak_from_a_source_that_is_not_its_own() {
    let scene = Scene::unprotected();
    let sink = Mutex::new(serve_sink(&scene.world.server.fd()));
    let pod = &scene.one;
    // A stranger's, the other pod's, and the host's own addresses.
    let (four, six) = (scene.two.addresses.ipv4, scene.two.addresses.ipv6.unwrap());
    let forged: Vec<(IpAddr, IpAddr)> = vec![
        (ip("45.45.45.77"), ip(SERVER4)),
        (ip("2a00:99::77"), ip(SERVER6)),
        (four.into(), ip(SERVER4)),
        (six.into(), ip(SERVER6)),
        (ip("fe80::77"), ip(SERVER6)),
    ];
    inside(&pod.netns, || {
        for (source, _) in &forged {
            let len = if source.is_ipv4() { "32" } else { "128" };
            let nodad = if source.is_ipv4() { "" } else { "nodad" };
            sh(&format!("ip addr add {source}/{len} dev eth0 {nodad}"));
        }
    });
    // The kernel's own check would hide whether the firewall's works.
    let link = &pod.addresses.link;
    scene.world.host.sh(&format!("sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.{link}.rp_filter=0"));
    for (n, (source, to)) in forged.iter().enumerate().filter(|(_, (s, _))| *s != ip("fe80::77")) {
        assert!(forged_arrives(&pod.netns, *source, *to, &sink, &format!("off {n}")), "{source} without the firewall");
    }
    scene.protected(|| {
        for (n, (source, to)) in forged.iter().enumerate() {
            assert!(!forged_arrives(&pod.netns, *source, *to, &sink, &format!("on {n}")), "{source}");
        }
        let own: IpAddr = pod.addresses.ipv4.into();
        assert!(forged_arrives(&pod.netns, own, ip(SERVER4), &sink, "honest"), "the check finds honest packets");
    });
}

#[test]
fn an_isolated_pod_only_answers_the_host() {
    let world = World::new();
    let site = Site::new();
    world.host.block_on(|| async {
        let network = site.start().await;
        let pod = network.attach("pod", &INTERNET).await.unwrap();
        serve_echo(&pod.netns);
        let PodNetwork { addresses, netns } = pod;
        let reach = |netns: &OwnedFd| {
            tokio::task::block_in_place(|| {
                let relay = std::net::SocketAddr::new(addresses.dns[0], 53);
                let relay = inside(netns, || std::net::TcpStream::connect_timeout(&relay, Duration::from_millis(400)));
                [call(netns, ip(SERVER4)).is_ok(), call(netns, ip(SERVER6)).is_ok(), relay.is_ok()]
            })
        };
        assert_eq!(reach(&netns), [true; 3]);
        let PodNetwork { netns, .. } = network.adopt("pod", netns, &ISOLATED).await.unwrap();
        assert_eq!(reach(&netns), [false; 3]);
        let host = world.host.fd();
        tokio::task::block_in_place(|| {
            assert!(call(&host, addresses.ipv4.into()).is_ok());
            assert!(call(&host, addresses.ipv6.unwrap().into()).is_ok());
        });
        let PodNetwork { netns, .. } = network.adopt("pod", netns, &INTERNET).await.unwrap();
        assert_eq!(reach(&netns), [true; 3], "and back");
        network.stop().await;
    });
}

#[test]
fn a_new_network_of_the_host_is_kept_from_pods_at_once() {
    let world = World::new();
    let site = Site::new();
    world.host.block_on(|| async {
        let network = site.start().await;
        let pod = network.attach("pod", &INTERNET).await.unwrap();
        tokio::task::block_in_place(|| {
            // The internet's prefix: allowed as long as the host is not on it.
            assert_eq!(call(&pod.netns, ip(SERVER6)), Ok(ip(HOST6)));
            // A router advertisement would make this route. The other one keeps the server reachable all the same.
            world.host.sh("ip route add 2a00:99::2/128 via 2a00:77::1; ip route add 2a00:99::/64 dev eth0");
            eventually("the new neighbours are denied", || call(&pod.netns, ip(SERVER6)).is_err());
            assert!(call(&world.host.fd(), ip(SERVER6)).is_ok(), "it is the firewall that denies");
            assert!(call(&pod.netns, ip(SERVER4)).is_ok());
            world.host.sh("ip route del 2a00:99::/64 dev eth0");
            eventually("the host left that network", || call(&pod.netns, ip(SERVER6)).is_ok());
        });
        network.stop().await;
    });
}

#[test]
fn a_flushed_firewall_comes_back() {
    let world = World::new();
    let site = Site::new();
    world.host.block_on(|| async {
        let network = site.start().await;
        let pod = network.attach("pod", &INTERNET).await.unwrap();
        tokio::task::block_in_place(|| {
            for _ in 0..3 {
                world.host.sh("nft flush ruleset");
                eventually("the table is back", || world.host.sh("nft list tables").contains(&site.table()));
                assert!(call(&pod.netns, ip(NEIGHBOUR4)).is_err());
                assert!(call(&pod.netns, ip(SERVER4)).is_ok());
            }
        });
        network.stop().await;
    });
}

#[test]
fn the_host_keeps_listening_to_router_advertisements() {
    let host = Netns::new("ra");
    host.sh("ip link add eth0 type veth peer name eth1; sysctl -qw net.ipv6.conf.eth1.accept_ra=0");
    let site = Site::new();
    host.block_on(|| async {
        let network = site.start().await;
        let pod = network.attach("pod", &INTERNET).await.unwrap();
        let link = &pod.addresses.link;
        let read = |name: &str| host.sh(&format!("cat /proc/sys/net/ipv6/conf/{name}")).trim().to_owned();
        assert_eq!(read("all/forwarding"), "1");
        assert_eq!((read("eth0/accept_ra"), read("default/accept_ra")), ("2".into(), "2".into()));
        assert_eq!(read("eth1/accept_ra"), "0", "who did not listen still does not");
        assert_eq!(read(&format!("{link}/accept_ra")), "0", "nobody listens to pods");
        network.stop().await;
    });
}

#[test]
fn without_ipv6_pods_have_ipv4() {
    let world = World::new();
    world.host.sh("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1");
    let site = Site::new();
    world.host.block_on(|| async {
        let network = site.start().await;
        let pod = network.attach("pod", &INTERNET).await.unwrap();
        assert!(!network.has_ipv6() && network.notices().iter().any(|n| n.contains("IPv6")));
        assert_eq!((pod.addresses.ipv6, pod.addresses.gateway6, pod.addresses.dns.len()), (None, None, 1));
        tokio::task::block_in_place(|| {
            assert!(call(&pod.netns, ip(SERVER4)).is_ok());
            assert!(call(&pod.netns, ip(NEIGHBOUR4)).is_err());
        });
        network.stop().await;
    });
}

/// A guard against tests that pass because nothing works.
#[test]
fn another_programs_forward_policy_is_noticed() {
    let world = World::new();
    world.host.sh("nft \"add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }\"");
    let site = Site::new();
    world.host.block_on(|| async {
        let network: Network = site.start().await;
        let pod = network.attach("pod", &INTERNET).await.unwrap();
        assert!(network.notices().iter().any(|n| n.contains("ip filter FORWARD")), "{:?}", network.notices());
        tokio::task::block_in_place(|| assert!(call(&pod.netns, ip(SERVER4)).is_err()));
        network.stop().await;
    });
}
