//! Limits of what pods send and receive: each its own, and those that they share. Times are bounded from below alone: a transfer that is not
//! limited is done a hundred times faster.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::Command;
use std::time::{Duration, Instant};

use hearth_network::{Bandwidth, PodNetwork, PodPolicy, SharedBandwidth, check_shaping};

use crate::world::*;

/// 1 MB a second.
const BITS: u64 = 8_000_000;
const SIZE: usize = 1_000_000;
/// What the bucket lets through at once, and the headers of packets: less than a fifth.
const LEAST: Duration = Duration::from_millis(800);
/// The bucket of shared limits holds what comes in a second.
const SHARED_SIZE: usize = 2_200_000;
const BOUND: Duration = Duration::from_secs(30);

const INGRESS: Bandwidth = Bandwidth { ingress: Some(BITS), egress: None };
const EGRESS: Bandwidth = Bandwidth { ingress: None, egress: Some(BITS) };
const BOTH: Bandwidth = Bandwidth { ingress: Some(BITS), egress: Some(BITS) };

fn limited(bandwidth: Bandwidth) -> PodPolicy {
    PodPolicy { bandwidth, ..INTERNET }
}

fn guest(policy: PodPolicy) -> PodPolicy {
    PodPolicy { guest: true, ..policy }
}

/// A connection that `from` opens to `address` in `to`: both ends.
fn connect(from: &OwnedFd, to: &OwnedFd, address: IpAddr) -> (TcpStream, TcpStream) {
    let listener = inside(to, || TcpListener::bind((address, 0)).unwrap());
    let to = listener.local_addr().unwrap();
    let ours = inside(from, || TcpStream::connect_timeout(&to, Duration::from_secs(5)).unwrap());
    let (theirs, _) = listener.accept().unwrap();
    for stream in [&ours, &theirs] {
        stream.set_read_timeout(Some(BOUND)).unwrap();
        stream.set_write_timeout(Some(BOUND)).unwrap();
    }
    (ours, theirs)
}

/// How long it takes until `size` bytes have arrived.
fn send(mut from: &TcpStream, mut to: &TcpStream, size: usize) -> Duration {
    std::thread::scope(|scope| {
        let begin = Instant::now();
        scope.spawn(move || {
            let chunk = vec![7; 64 << 10];
            let mut left = size;
            while left > 0 {
                left -= from.write(&chunk[..left.min(chunk.len())]).unwrap();
            }
        });
        let (mut buffer, mut arrived) = (vec![0; 64 << 10], 0);
        while arrived < size {
            arrived += to.read(&mut buffer).unwrap();
        }
        begin.elapsed()
    })
}

/// To the internet and back: how long both take.
fn exchange(world: &World, pod: &OwnedFd, server: &str) -> (Duration, Duration) {
    let (ours, theirs) = connect(pod, &world.server.fd(), ip(server));
    (send(&ours, &theirs, SIZE), send(&theirs, &ours, SIZE))
}

fn copy(fd: &OwnedFd) -> OwnedFd {
    fd.as_fd().try_clone_to_owned().unwrap()
}

#[test]
fn a_pods_limit_holds_each_way_by_either_family_and_for_what_the_host_sends() {
    let world = World::new();
    let site = Site::new();
    check_shaping().unwrap();
    world.host.block_on(|| async {
        let network = site.start().await;
        let slow = network.attach("slow", &limited(BOTH)).await.unwrap();
        let receives = network.attach("receives", &limited(INGRESS)).await.unwrap();
        let free = network.attach("free", &INTERNET).await.unwrap();
        tokio::task::block_in_place(|| {
            for server in [SERVER4, SERVER6] {
                let (sent, received) = exchange(&world, &slow.netns, server);
                assert!(sent >= LEAST && received >= LEAST, "{server}: {sent:?}, {received:?}");
            }
            let (sent, received) = exchange(&world, &receives.netns, SERVER4);
            assert!(sent < LEAST && received >= LEAST, "one way alone: {sent:?}, {received:?}");
            let (sent, received) = exchange(&world, &free.netns, SERVER4);
            assert!(sent < LEAST && received < LEAST, "nobody else's: {sent:?}, {received:?}");
            // As the ingress does.
            let (host, pod) = connect(&world.host.fd(), &slow.netns, slow.addresses.ipv4.into());
            let (asked, answered) = (send(&host, &pod, SIZE), send(&pod, &host, SIZE));
            assert!(asked >= LEAST && answered >= LEAST, "{asked:?}, {answered:?}");
        });
        network.stop().await;
    });
}

#[test]
fn a_limit_changes_under_an_open_connection() {
    let world = World::new();
    let site = Site::new();
    world.host.block_on(|| async {
        let network = site.start().await;
        let pod = network.attach("pod", &INTERNET).await.unwrap();
        let (ours, theirs) = tokio::task::block_in_place(|| connect(&pod.netns, &world.server.fd(), ip(SERVER4)));
        for (bandwidth, slow) in [(Bandwidth::default(), false), (BOTH, true), (Bandwidth::default(), false)] {
            network.limit("pod", copy(&pod.netns), bandwidth).await.unwrap();
            let (sent, received) =
                tokio::task::block_in_place(|| (send(&ours, &theirs, SIZE), send(&theirs, &ours, SIZE)));
            assert_eq!((sent >= LEAST, received >= LEAST), (slow, slow), "{bandwidth:?}: {sent:?}, {received:?}");
        }
        network.stop().await;
    });
}

#[test]
fn a_limit_stays_across_restarts_and_is_put_back_where_somebody_takes_it() {
    let world = World::new();
    let site = Site::new();
    let PodNetwork { addresses, netns } = world.host.block_on(|| async {
        let network = site.start().await;
        let pod = network.attach("pod", &limited(BOTH)).await.unwrap();
        network.stop().await;
        pod
    });
    let host_side = || world.host.sh(&format!("tc qdisc show dev {} root", addresses.link));
    let pod_side = || inside(&netns, || sh("tc qdisc show dev eth0 root"));
    let is_limited = |text: String| text.contains("qdisc tbf 4872:") && text.contains("rate 8Mbit");
    assert!(is_limited(host_side()) && is_limited(pod_side()), "no agent runs: {} {}", host_side(), pod_side());
    world.host.block_on(|| async {
        let network = site.start().await;
        // What was lost while nobody looked is put right by adoption.
        inside(&netns, || sh("tc qdisc del dev eth0 root"));
        let adopted = network.adopt("pod", copy(&netns), &limited(BOTH)).await.unwrap();
        assert!(is_limited(pod_side()), "{}", pod_side());
        tokio::task::block_in_place(|| {
            for taken in ["del dev LINK root", "replace dev LINK root tbf rate 1gbit burst 1mb limit 1mb"] {
                world.host.sh(&format!("tc qdisc {}", taken.replace("LINK", &addresses.link)));
                eventually("the limit is back", || is_limited(host_side()));
            }
        });
        // One that was lifted stays so.
        network.limit("pod", adopted.netns, EGRESS).await.unwrap();
        world.host.sh(&format!("tc qdisc add dev {} root tbf rate 1gbit burst 1mb limit 1mb", addresses.link));
        let other = network.attach("other", &limited(INGRESS)).await.unwrap();
        world.host.sh(&format!("tc qdisc del dev {} root", other.addresses.link));
        let other_side = || world.host.sh(&format!("tc qdisc show dev {} root", other.addresses.link));
        tokio::task::block_in_place(|| eventually("the other's is back", || is_limited(other_side())));
        assert!(!is_limited(host_side()), "{}", host_side());
        network.stop().await;
    });
}

#[test]
fn root_in_a_pod_cannot_take_its_limit_away() {
    let world = World::new();
    let site = Site::new();
    world.host.block_on(|| async {
        let network = site.start().await;
        let pod = network.attach("pod", &limited(BOTH)).await.unwrap();
        let (before, tries, after) = inside(&pod.netns, || {
            let show = || sh("tc qdisc show dev eth0 root");
            let before = show();
            // Root of a user namespace of its own with all capabilities, as a pod may have at the most.
            let tries = ["tc qdisc del dev eth0 root", "ip link del eth0", "tc qdisc replace dev eth0 root pfifo"].map(
                |what| {
                    let out =
                        Command::new("unshare").args(["--user", "--map-root-user", "sh", "-c", what]).output().unwrap();
                    (what, out.status.success(), String::from_utf8_lossy(&out.stderr).into_owned())
                },
            );
            (before, tries, show())
        });
        for (what, done, why) in tries {
            assert!(!done && why.contains("not permitted"), "{what}: {why}");
        }
        assert!(before.contains("tbf") && before == after, "{before} {after}");
        network.stop().await;
    });
}

/// Bytes that arrive of two senders that send as much as they can, until the first of them is done.
fn together(ends: [(&TcpStream, &TcpStream); 2]) -> Duration {
    std::thread::scope(|scope| {
        let begin = Instant::now();
        let both = ends.map(|(from, to)| scope.spawn(move || send(from, to, SHARED_SIZE / 2)));
        for one in both {
            one.join().unwrap();
        }
        begin.elapsed()
    })
}

/// How long it takes two pods to send and receive `SHARED_SIZE` bytes between them, half each.
fn shared(world: &World, pods: [&PodNetwork; 2]) -> (Duration, Duration) {
    let [one, two] = pods.map(|pod| connect(&pod.netns, &world.server.fd(), ip(SERVER4)));
    let sent = together([(&one.0, &one.1), (&two.0, &two.1)]);
    let received = together([(&one.1, &one.0), (&two.1, &two.0)]);
    (sent, received)
}

#[test]
fn guests_share_their_limit_and_all_pods_theirs() {
    let world = World::new();
    let mut site = Site::new();
    site.bandwidth = SharedBandwidth { guests: BOTH, ..SharedBandwidth::default() };
    world.host.block_on(|| async {
        let network = site.start().await;
        let one = network.attach("one", &guest(INTERNET)).await.unwrap();
        let two = network.attach("two", &guest(INTERNET)).await.unwrap();
        let own = network.attach("own", &INTERNET).await.unwrap();
        let isolated = network.attach("isolated", &guest(ISOLATED)).await.unwrap();
        let table = || world.host.sh("nft list ruleset");
        tokio::task::block_in_place(|| {
            // Each alone would be done in no more than a second of the limit, which the bucket holds.
            let (sent, received) = shared(&world, [&one, &two]);
            assert!(sent >= LEAST && received >= LEAST, "{sent:?}, {received:?}");
            let (sent, received) = shared(&world, [&own, &own]);
            assert!(sent < LEAST && received < LEAST, "the owner's are free: {sent:?}, {received:?}");
            assert!(call(&isolated.netns, ip(SERVER4)).is_err(), "a guest without internet has none");
            // What the host itself sends, as its ingress does, is held back and gets through all the same.
            let (host, pod) = connect(&world.host.fd(), &isolated.netns, isolated.addresses.ipv4.into());
            let (asked, answered) = (send(&host, &pod, SHARED_SIZE), send(&pod, &host, SHARED_SIZE));
            assert!(asked >= LEAST && answered >= LEAST, "{asked:?}, {answered:?}");
            // Debian's nftables service does so.
            world.host.sh("nft flush ruleset");
            eventually("the limit is back", || table().contains("shared_egress"));
        });
        let all = SharedBandwidth { all: EGRESS, ..SharedBandwidth::default() };
        network.limit_shared(all).await.unwrap();
        tokio::task::block_in_place(|| {
            let (sent, received) = shared(&world, [&one, &own]);
            assert!(sent >= LEAST && received < LEAST, "{sent:?}, {received:?}");
        });
        network.limit_shared(SharedBandwidth::default()).await.unwrap();
        assert!(!table().contains("shared_egress"));
        network.stop().await;
    });
}

#[test]
fn a_guest_that_was_none_becomes_one_by_adoption() {
    let world = World::new();
    let mut site = Site::new();
    site.bandwidth = SharedBandwidth { guests: EGRESS, ..SharedBandwidth::default() };
    world.host.block_on(|| async {
        let network = site.start().await;
        // As an agent of before left it.
        let PodNetwork { addresses, netns } = network.attach("pod", &INTERNET).await.unwrap();
        let adopted = network.adopt("pod", netns, &guest(INTERNET)).await.unwrap();
        assert_eq!(adopted.addresses, addresses);
        tokio::task::block_in_place(|| {
            let (ours, theirs) = connect(&adopted.netns, &world.server.fd(), ip(SERVER4));
            let took = send(&ours, &theirs, SHARED_SIZE);
            assert!(took >= LEAST, "{took:?}");
            // The host's word to it is a guest's, too.
            let to = SocketAddr::new(addresses.ipv4.into(), ECHO);
            serve_echo(&adopted.netns);
            assert!(call_port(&world.host.fd(), to).is_ok());
        });
        network.stop().await;
    });
}
