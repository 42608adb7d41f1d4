//! Attach, adopt, detach, retain, teardown, restarts and neighbours of another instance.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use hearth_network::{NetworkError, Notice, PodNetwork, TeardownReport, teardown};

use crate::world::*;

#[test]
fn a_pods_namespace_has_what_programs_expect() {
    let world = World::new();
    let site = Site::new();
    world.host.block_on(|| async {
        let network = site.start().await;
        let pod = network.attach("pod", &INTERNET).await.unwrap();
        let (addresses, routes, sysctls) = inside(&pod.netns, || {
            (
                sh("ip -br addr"),
                sh("ip route; ip -6 route"),
                sh("cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv4/ping_group_range"),
            )
        });
        let PodNetwork { addresses: pod, .. } = &pod;
        assert!(addresses.contains("127.0.0.1/8 ::1/128"), "{addresses}");
        assert!(addresses.contains(&format!("{}/32 {}/128", pod.ipv4, pod.ipv6.unwrap())), "{addresses}");
        assert!(!addresses.contains("fe80"), "no addresses but those given: {addresses}");
        assert!(routes.contains(&format!("default via {} dev eth0", pod.gateway4)), "{routes}");
        assert!(routes.contains(&format!("default via {} dev eth0", pod.gateway6.unwrap())), "{routes}");
        assert_eq!(sysctls.split_whitespace().collect::<Vec<_>>(), ["0", "0", "2147483647"]);
        assert!(pod.link.starts_with(&format!("hearth-{}-", site.instance)) && pod.link.len() <= 15);
        assert_eq!(network.pods(), [("pod".to_owned(), pod.clone())]);
        assert!(world.host.sh(&format!("ip link show {}", pod.link)).contains("alias hearth pod pod"));
        network.stop().await;
    });
}

#[test]
fn a_namespace_lives_as_long_as_somebody_holds_it() {
    let world = World::new();
    let site = Site::new();
    world.host.block_on(|| async {
        let network = site.start().await;
        let PodNetwork { addresses, netns } = network.attach("pod", &INTERNET).await.unwrap();
        assert!(world.remains(&site.instance).contains(&addresses.link));
        drop(netns);
        eventually("the link is gone", || !world.remains(&site.instance).contains(&addresses.link));
        assert_eq!(network.pods().len(), 1, "the address is kept until the pod is detached");
        let again = network.attach("pod", &INTERNET).await.unwrap();
        assert_eq!(again.addresses, addresses);
        network.stop().await;
    });
}

#[test]
fn a_restarted_agent_adopts_its_pods_without_disturbing_them() {
    let world = World::new();
    let site = Site::new();
    let pod = world.host.block_on(|| async {
        let network = site.start().await;
        network.attach("pod", &INTERNET).await.unwrap()
    });
    serve_echo(&pod.netns);
    // A connection that is open across the restart.
    let (mut ours, mut theirs) = open_connection(&world, &pod);
    exchange(&mut ours, &mut theirs);
    let PodNetwork { addresses, netns } = pod;
    world.host.block_on(|| async {
        let network = site.start().await;
        exchange(&mut ours, &mut theirs);
        assert_eq!(network.pods(), [("pod".to_owned(), addresses.clone())]);
        let before = world.host.sh(&format!("cat /sys/class/net/{}/ifindex || true", addresses.link));
        let adopted = network.adopt("pod", netns, &INTERNET).await.unwrap();
        assert_eq!(adopted.addresses, addresses);
        let after = world.host.sh(&format!("cat /sys/class/net/{}/ifindex || true", addresses.link));
        assert_eq!(before, after, "the link is the same one");
        exchange(&mut ours, &mut theirs);
        let adopted = network.adopt("pod", adopted.netns, &INTERNET).await.unwrap();
        assert_eq!(adopted.addresses, addresses, "again is harmless");
        network.stop().await;
    });
}

/// A TCP connection from inside the pod to the internet: both ends.
fn open_connection(world: &World, pod: &PodNetwork) -> (std::net::TcpStream, std::net::TcpStream) {
    let listener = inside(&world.server.fd(), || std::net::TcpListener::bind((SERVER4, 0)).unwrap());
    let to = listener.local_addr().unwrap();
    // The network may be stopped: the firewall and its address translation are there all the same.
    let ours = inside(&pod.netns, || std::net::TcpStream::connect_timeout(&to, Duration::from_secs(5)).unwrap());
    let (theirs, _) = listener.accept().unwrap();
    for stream in [&ours, &theirs] {
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    }
    (ours, theirs)
}

fn exchange(a: &mut std::net::TcpStream, b: &mut std::net::TcpStream) {
    use std::io::{Read as _, Write as _};
    let mut byte = [0];
    a.write_all(b"x").unwrap();
    b.read_exact(&mut byte).unwrap();
    b.write_all(b"y").unwrap();
    a.read_exact(&mut byte).unwrap();
    assert_eq!(byte, *b"y");
}

#[test]
fn adoption_repairs_what_is_missing() {
    let world = World::new();
    let site = Site::new();
    world.host.block_on(|| async {
        let network = site.start().await;
        let PodNetwork { addresses, mut netns } = network.attach("pod", &INTERNET).await.unwrap();
        for damage in [
            "ip link del eth0",
            "ip addr flush dev eth0",
            "ip link set eth0 down; ip link set lo down",
            "ip route flush table main; ip -6 route flush table main",
            "ip addr add 10.11.12.13/8 dev eth0; ip neigh flush dev eth0 nud permanent",
        ] {
            inside(&netns, || sh(damage));
            let pod = network.adopt("pod", netns, &INTERNET).await.unwrap();
            assert_eq!(pod.addresses, addresses, "{damage}");
            tokio::task::block_in_place(|| {
                assert!(call(&pod.netns, ip(SERVER4)).is_ok(), "{damage}");
                assert!(call(&pod.netns, ip(SERVER6)).is_ok(), "{damage}");
                assert!(!inside(&pod.netns, || sh("ip addr")).contains("10.11.12.13"));
            });
            netns = pod.netns;
        }
        network.stop().await;
    });
}

#[test]
fn a_pod_whose_allocation_was_lost_keeps_its_address() {
    let world = World::new();
    let site = Site::new();
    world.host.block_on(|| async {
        let network = site.start().await;
        for other in ["a", "b"] {
            network.attach(other, &INTERNET).await.unwrap();
        }
        let PodNetwork { addresses, netns } = network.attach("pod", &INTERNET).await.unwrap();
        network.stop().await;
        // A power cut in the middle of a write.
        std::fs::write(site.config().state_dir.join("pods.json"), b"{\"mag").unwrap();
        let network = site.start().await;
        assert!(network.pods().is_empty());
        let adopted = network.adopt("pod", netns, &INTERNET).await.unwrap();
        assert_eq!(adopted.addresses, addresses);
        network.stop().await;
    });
}

#[test]
fn prefixes_are_kept_and_avoid_the_hosts() {
    let world = World::new();
    let site = Site::new();
    let first = world.host.block_on(|| async {
        let network = site.start().await;
        let pod = network.attach("pod", &INTERNET).await.unwrap().addresses;
        network.detach("pod").await.unwrap();
        network.stop().await;
        pod
    });
    let second = world.host.block_on(|| async {
        let network = site.start().await;
        let pod = network.attach("other", &INTERNET).await.unwrap().addresses;
        network.detach("other").await.unwrap();
        network.stop().await;
        pod
    });
    assert_eq!((first.gateway4, first.gateway6), (second.gateway4, second.gateway6));
    assert_ne!(first.ipv4, second.ipv4, "a freed address rests");
    // The host moves to a home that uses the same range.
    world.host.sh(&format!("ip addr add {}/16 dev eth0", first.gateway4));
    world.host.block_on(|| async {
        let network = site.start().await;
        let pod = network.attach("third", &INTERNET).await.unwrap().addresses;
        assert_ne!(pod.ipv4.octets()[..2], first.ipv4.octets()[..2]);
        assert_eq!(pod.gateway6, first.gateway6, "the IPv6 prefix stays");
        network.stop().await;
    });
}

#[test]
fn after_a_move_the_addresses_of_dead_pods_do_not_hold_the_prefix_and_those_of_living_ones_do() {
    let world = World::new();
    let site = Site::new();
    world.host.block_on(|| async {
        let network = site.start().await;
        let first = network.attach("installed", &INTERNET).await.unwrap();
        network.stop().await;
        // The host moves to a home that uses the same range, with the pod alive.
        world.host.sh(&format!("ip addr add {}/16 dev eth0", first.addresses.gateway4));
        let network = site.start().await;
        assert_eq!(network.pods()[0].1, first.addresses);
        assert!(network.notices().iter().any(|n| matches!(n, Notice::Overlap { .. })), "{:?}", network.notices());
        network.stop().await;
        // And after a reboot: the pod is still written down, and nothing of it is left.
        drop(first.netns);
        eventually("the link is gone", || !world.remains(&site.instance).contains(&first.addresses.link));
        let network = site.start().await;
        let second = network.attach("installed", &INTERNET).await.unwrap();
        assert_ne!(second.addresses.ipv4.octets()[..2], first.addresses.ipv4.octets()[..2]);
        assert!(!network.notices().iter().any(|n| matches!(n, Notice::Overlap { .. })), "{:?}", network.notices());
        tokio::task::block_in_place(|| assert!(call(&second.netns, ip(SERVER4)).is_ok()));
        network.stop().await;
    });
}

#[test]
fn retain_removes_all_others_and_links_nobody_knows() {
    let world = World::new();
    let site = Site::new();
    world.host.block_on(|| async {
        let network = site.start().await;
        let mut pods = Vec::new();
        for uid in ["a", "b", "c", "lost"] {
            pods.push(network.attach(uid, &INTERNET).await.unwrap());
        }
        network.stop().await;
        let file = site.config().state_dir.join("pods.json");
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, text.replace("\"lost\":{\"index\":5}", "\"ghost\":{\"index\":99}")).unwrap();
        let network = site.start().await;
        network.retain(&HashSet::from(["b".to_owned(), "unknown".to_owned()])).await.unwrap();
        let left: Vec<String> = network.pods().into_iter().map(|(uid, _)| uid).collect();
        assert_eq!(left, ["b"]);
        let links = world.host.sh("ip -br link");
        assert_eq!(links.matches(&format!("hearth-{}-", site.instance)).count(), 1, "{links}");
        assert!(links.contains(&pods[1].addresses.link));
        network.stop().await;
    });
}

#[test]
fn a_hundred_pods_come_and_go_at_once() {
    let world = World::new();
    let site = Site::new();
    world.host.block_on(|| async {
        let network = site.start().await;
        for _ in 0..2 {
            let mut tasks = tokio::task::JoinSet::new();
            for n in 0..100 {
                let network = network.clone();
                tasks.spawn(async move { network.attach(&format!("pod-{n}"), &INTERNET).await.unwrap() });
            }
            let pods = tasks.join_all().await;
            let distinct: BTreeSet<IpAddr> =
                pods.iter().flat_map(|p| [p.addresses.ipv4.into(), p.addresses.ipv6.unwrap().into()]).collect();
            assert_eq!(distinct.len(), 200);
            tokio::task::block_in_place(|| {
                for pod in pods.iter().step_by(9) {
                    assert!(call(&pod.netns, ip(SERVER4)).is_ok() && call(&pod.netns, ip(SERVER6)).is_ok());
                    assert!(call(&pod.netns, ip(HOST4)).is_err());
                }
            });
            let mut tasks = tokio::task::JoinSet::new();
            for n in 0..100 {
                let network = network.clone();
                tasks.spawn(async move { network.detach(&format!("pod-{n}")).await.unwrap() });
            }
            tasks.join_all().await;
            assert!(network.pods().is_empty());
            assert!(!world.remains(&site.instance).contains(&format!("hearth-{}-", site.instance)));
        }
        network.stop().await;
    });
}

#[test]
fn the_same_pod_asked_for_at_once_is_made_once_at_a_time() {
    let world = World::new();
    let site = Site::new();
    world.host.block_on(|| async {
        let network = site.start().await;
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..20 {
            let network = network.clone();
            tasks.spawn(async move {
                if n % 3 == 2 {
                    network.detach("pod").await.unwrap();
                } else {
                    network.attach("pod", &INTERNET).await.unwrap();
                }
            });
        }
        tasks.join_all().await;
        let pod = network.attach("pod", &INTERNET).await.unwrap();
        tokio::task::block_in_place(|| assert!(call(&pod.netns, ip(SERVER4)).is_ok()));
        network.detach("pod").await.unwrap();
        network.detach("pod").await.unwrap();
        network.stop().await;
    });
}

#[test]
fn two_instances_live_side_by_side_and_one_teardown_spares_the_other() {
    let world = World::new();
    let (first, second) = (Site::new(), Site::new());
    world.host.block_on(|| async {
        let (one, two) = (first.start().await, second.start().await);
        let a = one.attach("pod", &INTERNET).await.unwrap();
        let b = two.attach("pod", &INTERNET).await.unwrap();
        assert_ne!(a.addresses.gateway4, b.addresses.gateway4);
        serve_echo(&a.netns);
        serve_echo(&b.netns);
        tokio::task::block_in_place(|| {
            for (from, to) in [(&a, &b), (&b, &a)] {
                assert!(call(&from.netns, ip(SERVER4)).is_ok());
                assert!(call(&from.netns, to.addresses.ipv4.into()).is_err());
                assert!(call(&from.netns, to.addresses.ipv6.unwrap().into()).is_err());
                let relay = std::net::SocketAddr::new(to.addresses.gateway4.into(), 53);
                assert!(call_port(&from.netns, relay).is_err());
            }
        });
        one.stop().await;
        let report = tokio::task::block_in_place(|| teardown(&first.instance)).unwrap();
        assert_eq!(report, TeardownReport { links: 1, routes: 4, tables: 1 });
        let again = tokio::task::block_in_place(|| teardown(&first.instance)).unwrap();
        assert_eq!(again, TeardownReport::default());
        assert!(!world.remains(&first.instance).contains(&first.instance));
        tokio::task::block_in_place(|| {
            assert!(call(&b.netns, ip(SERVER4)).is_ok() && call(&b.netns, ip(SERVER6)).is_ok());
            assert!(call(&b.netns, ip(HOST4)).is_err());
        });
        two.stop().await;
        tokio::task::block_in_place(|| teardown(&second.instance)).unwrap();
        assert_eq!(world.remains(&second.instance), "");
    });
}

#[test]
fn bad_names_are_refused() {
    let host = Netns::new("bad");
    let site = Site::new();
    host.block_on(|| async {
        let mut config = site.config();
        config.instance = "UPPER".into();
        assert!(matches!(hearth_network::Network::start(config).await, Err(NetworkError::BadInstance(_))));
        assert!(matches!(teardown("../x"), Err(NetworkError::BadInstance(_))));
        let network = site.start().await;
        assert!(matches!(network.attach("a/b", &INTERNET).await, Err(NetworkError::BadPodUid(_))));
        assert!(network.pods().is_empty());
        network.stop().await;
    });
}

/// Prints figures; asserts nothing about time, which a shared machine cannot keep.
#[test]
#[allow(clippy::print_stdout, reason = "figures are what it is for")]
fn attaching_is_measured() {
    let host = Netns::new("time");
    let site = Site::new();
    host.block_on(|| async {
        let network = site.start().await;
        let mut times: Vec<Duration> = Vec::new();
        let mut pods = Vec::new();
        for n in 0..50 {
            let begin = Instant::now();
            pods.push(network.attach(&format!("pod-{n}"), &INTERNET).await.unwrap());
            times.push(begin.elapsed());
        }
        times.sort();
        let begin = Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        for n in 50..100 {
            let network = network.clone();
            tasks.spawn(async move { network.attach(&format!("pod-{n}"), &INTERNET).await.unwrap() });
        }
        let more = tasks.join_all().await;
        println!("attach one by one: median {:?}, p90 {:?}; 50 at once: {:?}", times[25], times[45], begin.elapsed());
        let begin = Instant::now();
        network.detach("pod-7").await.unwrap();
        println!("detach: {:?}", begin.elapsed());
        assert_eq!(pods.len() + more.len(), 100);
        network.stop().await;
    });
}

#[test]
fn not_even_the_first_packet_of_a_pod_is_lost() {
    let world = World::new();
    let site = Site::new();
    world.host.block_on(|| async {
        let network = site.start().await;
        for n in 0..40 {
            let pod = network.attach(&format!("pod-{n}"), &INTERNET).await.unwrap();
            // A lost packet is sent again after a second, more than a call waits.
            let to = if n % 2 == 0 { SERVER6 } else { SERVER4 };
            tokio::task::block_in_place(|| assert!(call(&pod.netns, ip(to)).is_ok(), "pod {n} to {to}"));
            let host = world.host.fd();
            serve_echo(&pod.netns);
            let pod6 = pod.addresses.ipv6.unwrap().into();
            tokio::task::block_in_place(|| assert!(call(&host, pod6).is_ok(), "host to pod {n}"));
        }
        network.stop().await;
    });
}
