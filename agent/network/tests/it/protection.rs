//! Each protection is first shown to be needed: what is denied with the firewall succeeds without it.

use std::net::{IpAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use hearth_network::{Network, Notice, PodNetwork};

use crate::world::*;

/// Two pods with internet, the second serving; and everything they could try. There are two firewalls, the host's and the one
/// inside of each pod, and each is tested without the other.
pub(crate) struct Scene {
    pub(crate) world: World,
    site: Site,
    pub(crate) one: PodNetwork,
    pub(crate) two: PodNetwork,
}

impl Scene {
    /// Pods are attached, and the agent is gone with its firewalls.
    fn unprotected() -> Self {
        let scene = Self::without_agent();
        scene.flush_host();
        scene.flush_pods();
        scene
    }

    /// Pods are attached, and the agent is gone.
    pub(crate) fn without_agent() -> Self {
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
        let scene = Self { world, site, one, two };
        for pod in [&scene.one, &scene.two] {
            serve_echo(&pod.netns);
        }
        scene
    }

    pub(crate) fn flush_host(&self) {
        self.world.host.sh("nft flush ruleset");
    }

    pub(crate) fn flush_pods(&self) {
        for pod in [&self.one, &self.two] {
            inside(&pod.netns, || sh("nft delete table inet hearth"));
        }
    }

    /// Starts the network, which protects by the host's firewall alone, and runs `check` under it.
    pub(crate) fn protected(&self, check: impl FnOnce() + Send) {
        self.world.host.block_on(|| async {
            let network = self.site.start().await;
            tokio::task::block_in_place(check);
            network.stop().await;
        });
    }

    /// Every single address that a pod must not reach.
    pub(crate) fn denied(&self) -> Vec<IpAddr> {
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
fn with_the_hosts_rules_flushed_and_no_agent_a_pod_reaches_the_internet_and_nothing_else() {
    let scene = Scene::without_agent();
    serve_echo(&scene.world.router.fd());
    scene.flush_host();
    let from = &scene.one.netns;
    let reached: Vec<_> = scene.denied().into_iter().filter(|to| call(from, *to).is_ok()).collect();
    assert!(reached.is_empty(), "{reached:?}");
    // Nobody masquerades any more, and the world knows the way back.
    assert_eq!(call(from, ip(SERVER4)), Ok(scene.one.addresses.ipv4.into()));
    assert_eq!(call(from, ip(SERVER6)), Ok(scene.one.addresses.ipv6.unwrap().into()));
    let host = scene.world.host.fd();
    assert!(call(&host, scene.one.addresses.ipv4.into()).is_ok(), "a pod still answers the host");
    assert!(call(&host, scene.one.addresses.ipv6.unwrap().into()).is_ok());
    assert!(call(from, scene.one.addresses.ipv4.into()).is_ok() && call(from, ip("127.0.0.1")).is_ok(), "and itself");
    // Refused at once: a program does not hang.
    let begin = std::time::Instant::now();
    assert!(call(from, ip(NEIGHBOUR4)).is_err() && call(from, ip(NEIGHBOUR6)).is_err());
    assert!(begin.elapsed() < Duration::from_millis(300), "{:?}", begin.elapsed());
    // A pod's root is root of its own user namespace only.
    let pods_root = |command: &str| {
        inside(from, || sh(&format!("unshare --user --map-root-user {command} 2>&1 && echo done || true")))
    };
    assert!(pods_root("true").contains("done"));
    for command in ["nft flush ruleset", "nft delete table inet hearth", "ip link set eth0 down"] {
        assert!(!pods_root(command).contains("done"), "{command}");
    }
    assert!(inside(from, || sh("nft list table inet hearth")).contains("hook output"));
    scene.flush_pods();
    let unreachable: Vec<_> = scene.denied().into_iter().filter_map(|to| Some((to, call(from, to).err()?))).collect();
    assert!(unreachable.is_empty(), "must be reachable without either firewall: {unreachable:?}");
}

#[test]
fn with_the_hosts_rules_flushed_an_isolated_pod_stays_isolated() {
    let world = World::new();
    let site = Site::new();
    let pod = world.host.block_on(|| async {
        let network = site.start().await;
        let pod = network.attach("pod", &ISOLATED).await.unwrap();
        world.route_to_pods(&network);
        network.stop().await;
        pod
    });
    world.host.sh("nft flush ruleset");
    serve_echo(&pod.netns);
    let relay = std::net::SocketAddr::new(pod.addresses.dns[0], 53);
    world.host.run(|| drop(std::net::TcpListener::bind(relay).unwrap()));
    for to in [SERVER4, SERVER6, HOST4] {
        assert!(call(&pod.netns, ip(to)).is_err(), "{to}");
    }
    assert!(call(&world.host.fd(), pod.addresses.ipv4.into()).is_ok());
    inside(&pod.netns, || sh("nft delete table inet hearth"));
    assert!(call(&pod.netns, ip(SERVER4)).is_ok(), "it is the firewall that denies");
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
                // There is no resolver, which is told to those who may ask.
                let code = inside(netns, || {
                    let socket = UdpSocket::bind(("0.0.0.0", 0)).unwrap();
                    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                    socket.connect(relay).unwrap();
                    socket.send(b"\0\x01\x01\0\0\x01\0\0\0\0\0\0\x07example\x03com\0\0\x01\0\x01").unwrap();
                    let mut answer = [0; 512];
                    socket.recv(&mut answer).unwrap();
                    answer[3] & 0xf
                });
                [call(netns, ip(SERVER4)).is_ok(), call(netns, ip(SERVER6)).is_ok(), code == 2]
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
            // Without the firewall inside, which would hide whether this one works.
            inside(&pod.netns, || sh("nft delete table inet hearth"));
            let table = format!("inet {}", site.table());
            let rules = || {
                world.host.sh(&format!(
                    "(nft -s -t list table {table} && nft list set {table} denied4 && nft list set {table} lan4) 2>&1 || true"
                ))
            };
            let whole = rules();
            assert!(whole.contains("10.0.0.0/8") && whole.contains("192.168.77.0/24"), "{whole}");
            for damage in [
                "flush ruleset".to_owned(),
                "flush ruleset".to_owned(),
                format!("delete table {table}"),
                format!("flush table {table}"),
                format!("flush chain {table} from_pod"),
                format!("flush chain {table} forwarded"),
                format!("delete chain {table} source_check"),
                format!("insert rule {table} from_pod accept"),
                format!("delete element {table} denied4 {{ 192.168.0.0/16 }}"),
                format!("flush set {table} lan4"),
                format!("add table {table} {{ flags dormant; }}"),
            ] {
                world.host.sh(&format!("nft \"{damage}\""));
                eventually(&format!("the table is whole again after: {damage}"), || rules() == whole);
                assert!(call(&pod.netns, ip(NEIGHBOUR4)).is_err(), "{damage}");
                assert!(call(&pod.netns, ip(SERVER4)).is_ok(), "{damage}");
            }
            // What we change ourselves is not taken for somebody else's: the table stays the same one.
            let handle = || world.host.sh(&format!("nft -a list tables | grep \"{table}\""));
            let before = handle();
            world.host.sh("ip addr add 192.168.99.1/24 dev eth0");
            eventually("the new neighbours are known", || rules().contains("192.168.99.0/24"));
            // When this is noticed, everything before it was heard of and dealt with.
            world.host.sh("nft \"add table ip last; add chain ip last x { type filter hook input priority 0; policy drop; }\"");
            eventually("the last change is heard of", || network.notices().iter().any(Notice::cuts_pods_off));
            assert_eq!(handle(), before);
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
        assert!(!network.has_ipv6() && network.notices().contains(&Notice::NoIpv6));
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
        let noticed =
            || network.notices().iter().any(|n| n.cuts_pods_off() && n.to_string().contains("ip filter FORWARD"));
        assert!(noticed(), "{:?}", network.notices());
        tokio::task::block_in_place(|| {
            assert!(call(&pod.netns, ip(SERVER4)).is_err());
            // What is noticed is what is.
            world.host.sh("nft \"chain ip filter FORWARD { policy accept; }\"");
            eventually("the notice goes with its cause", || !noticed());
            assert!(call(&pod.netns, ip(SERVER4)).is_ok());
            world.host.sh("nft \"chain ip filter FORWARD { policy drop; }\"");
            eventually("the notice comes with its cause", noticed);
            world.host.sh("nft delete table ip filter");
            eventually("the notice goes with its cause", || !noticed());
        });
        network.stop().await;
    });
}

#[test]
fn addresses_denied_by_request_are_out_of_reach() {
    let world = World::new();
    let site = Site::new();
    world.host.block_on(|| async {
        let network = site.start().await;
        let PodNetwork { addresses, netns } = network.attach("pod", &INTERNET).await.unwrap();
        let reach =
            |netns: &OwnedFd| tokio::task::block_in_place(|| [SERVER4, SERVER6].map(|to| call(netns, ip(to)).is_ok()));
        assert_eq!(reach(&netns), [true, true]);
        network.deny(&[ip(SERVER4)].into()).await.unwrap();
        assert_eq!(reach(&netns), [false, true]);
        // Another address of the same home.
        network.deny(&[ip("2a00:99:0:7::1")].into()).await.unwrap();
        assert_eq!(reach(&netns), [true, false]);
        // The firewall inside learns of it by the adoption, and holds without the other one.
        let PodNetwork { netns, .. } = network.adopt("pod", netns, &INTERNET).await.unwrap();
        world.route_to_pods(&network);
        network.stop().await;
        world.host.sh("nft flush ruleset");
        assert_eq!(reach(&netns), [true, false]);
        assert!(addresses.ipv6.is_some());
    });
}

#[test]
#[allow(clippy::print_stdout, reason = "a test that is skipped says so")]
fn one_pod_cannot_use_up_the_hosts_connections() {
    let world = World::new();
    let site = Site::new();
    world.host.block_on(|| async {
        let network = site.start().await;
        let loud = network.attach("loud", &INTERNET).await.unwrap();
        let quiet = network.attach("quiet", &INTERNET).await.unwrap();
        if network.notices().contains(&Notice::ConnectionsNotCounted) {
            println!("skipped: {}", Notice::ConnectionsNotCounted);
            return network.stop().await;
        }
        tokio::task::block_in_place(|| {
            assert!(call(&loud.netns, ip(SERVER4)).is_ok());
            inside(&loud.netns, || {
                let socket = UdpSocket::bind(("0.0.0.0", 0)).unwrap();
                for port in 10_000..14_500 {
                    // In the end this is refused.
                    let _ = socket.send_to(b"x", (ip(SERVER4), port));
                }
            });
            assert!(call(&loud.netns, ip(SERVER4)).is_err(), "over its limit");
            assert!(call(&quiet.netns, ip(SERVER4)).is_ok() && call(&quiet.netns, ip(SERVER6)).is_ok());
        });
        network.stop().await;
    });
}

/// Everybody on the LAN may ask any machine there to pass packets on; a host that does so for its pods only must not.
#[test]
fn the_host_is_a_router_for_its_pods_only_unless_it_was_one_before() {
    for was_router in [false, true] {
        let world = World::new();
        let forwarding = u8::from(was_router);
        world
            .host
            .sh(&format!("sysctl -qw net.ipv4.ip_forward={forwarding} net.ipv6.conf.all.forwarding={forwarding}"));
        // The neighbour takes the host for its router, and the host would know the way.
        world.neighbour.sh(&format!("ip route add {SERVER4} via {HOST4}; ip route add {SERVER6} via {HOST6}"));
        // Containers that came later than we: docker finds forwarding enabled and changes nothing.
        let container = Netns::new("ctr");
        world.host.sh(&format!("ip link add docker0 type veth peer name eth0 netns {}; ip link set docker0 up; ip addr add 172.18.0.1/16 dev docker0", container.name));
        container.sh("ip link set eth0 up; ip addr add 172.18.0.2/16 dev eth0; ip route add default via 172.18.0.1");
        world.router.sh(&format!("ip route add 172.18.0.0/16 via {HOST4}"));
        serve_echo(&container.fd());
        let site = Site::new();
        let passes =
            || tokio::task::block_in_place(|| [SERVER4, SERVER6].map(|to| call(&world.neighbour.fd(), ip(to)).is_ok()));
        world.host.block_on(|| async {
            // The second start finds forwarding enabled, and remembers by whom.
            for _ in 0..2 {
                let network = site.start().await;
                let pod = network.attach("pod", &INTERNET).await.unwrap();
                assert_eq!(passes(), [was_router; 2]);
                tokio::task::block_in_place(|| {
                    assert!(call(&pod.netns, ip(SERVER4)).is_ok() && call(&pod.netns, ip(SERVER6)).is_ok());
                    assert!(call(&container.fd(), ip(SERVER4)).is_ok(), "containers go on");
                });
                network.stop().await;
            }
            // Somebody's port forwarding goes on too.
            tokio::task::block_in_place(|| {
                world.host.sh(&format!("nft \"add table ip nat; add chain ip nat pre {{ type nat hook prerouting priority -100; }}; add rule ip nat pre iifname eth0 tcp dport 8080 dnat to 172.18.0.2:{ECHO}\""));
                let published = std::net::SocketAddr::new(ip(HOST4), 8080);
                assert!(call_port(&world.neighbour.fd(), published).is_ok());
            });
            world.host.sh(&format!("nft delete table inet {}", site.table()));
            assert_eq!(passes(), [true; 2], "it is the firewall that denies");
        });
    }
}
