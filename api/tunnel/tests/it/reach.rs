//! Dialling, reuse, and every way in which a device is not there.

use std::time::{Duration, Instant};

use hearth_tunnel::{DeviceDialError, IDLE};
use hearth_types::{
    DeviceName,
    tunnel::{DialError, DialNotice, Dialer, StreamKind},
};

use crate::region::{Known, Region, device, device_idle, echo, eventually, exchange, key};

#[tokio::test(flavor = "multi_thread")]
async fn a_device_is_dialled_on_demand_and_its_tunnel_reused() {
    let region = Region::start(IDLE).await;
    let (name, tunnel, incoming) = region.device("one", 1);
    let _echo = echo(incoming);
    assert!(!tunnel.has_socket().await, "a device that nobody asked for has no socket");
    for round in 0..3u8 {
        let stream = region.hub.dial(&name, StreamKind::Ingress).await.expect("a stream");
        assert_eq!(stream.peer().key, key(1).0);
        assert_eq!(exchange(stream, &[round; 1000]).await.expect("an echo"), [round; 1000]);
    }
    assert_eq!(region.sessions.notices(), 1);
    assert_eq!((region.hub.open_tunnels(), tunnel.open_tunnels()), (1, 1));
    region.hub.close().await;
    eventually("the device hears of the end", || async { tunnel.open_tunnels() == 0 }).await;
    assert!(matches!(region.hub.dial(&name, StreamKind::Ingress).await, Err(DialError::Broken { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_dials_share_one_notice() {
    let region = Region::start(IDLE).await;
    let (name, _tunnel, incoming) = region.device("one", 1);
    let _echo = echo(incoming);
    let dials: Vec<_> = (0..50u8)
        .map(|number| {
            let (hub, name) = (region.hub.clone(), name.clone());
            tokio::spawn(async move {
                let stream = hub.dial(&name, StreamKind::Ingress).await.expect("a stream");
                assert_eq!(exchange(stream, &[number; 100]).await.expect("an echo"), [number; 100]);
            })
        })
        .collect();
    for dial in dials {
        dial.await.expect("a dial");
    }
    assert_eq!(region.sessions.notices(), 1);
    assert_eq!(region.hub.open_tunnels(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn both_families_are_listened_on() {
    let region = Region::start_at("[::]:0", IDLE).await;
    let port = region.hub.notice().addresses[0].port();
    for (seed, address) in [(1, "127.0.0.1"), (2, "::1")] {
        let (tunnel, incoming) = device(seed, region.hub.notice().gateway_key);
        let name = DeviceName::from(address);
        region.sessions.set(&name, Known { keys: vec![key(seed)], session: None, ..Known::default() });
        let _echo = echo(incoming);
        let notice = DialNotice {
            gateway_key: region.hub.notice().gateway_key,
            addresses: vec![(address.parse::<std::net::IpAddr>().unwrap(), port).into()],
            relays: Vec::new(),
        };
        tunnel.dial(notice).await.expect(address);
        eventually("the hub has it", || async { region.hub.open_tunnels() == usize::from(seed) }).await;
        let stream = region.hub.dial(&name, StreamKind::Ingress).await.expect("a stream");
        assert_eq!(exchange(stream, b"hello").await.expect("an echo"), b"hello");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_tunnel_closes_but_one_with_a_stream_does_not() {
    let idle = Duration::from_secs(1);
    let region = Region::start(idle).await;
    let (name, tunnel, incoming) = region.device("one", 1);
    let _echo = echo(incoming);
    let stream = region.hub.dial(&name, StreamKind::Ingress).await.expect("a stream");
    tokio::time::sleep(idle * 3).await;
    assert_eq!(region.hub.open_tunnels(), 1, "a stream holds it open");
    assert_eq!(exchange(stream, b"still here").await.expect("an echo"), b"still here");
    eventually("it closes", || async { region.hub.open_tunnels() + tunnel.open_tunnels() == 0 }).await;
    eventually("it is counted", || async { region.count("hearth_tunnel_ended_total", "idle") > 0 }).await;
    let stream = region.hub.dial(&name, StreamKind::Ingress).await.expect("another stream");
    assert_eq!(exchange(stream, b"again").await.expect("an echo"), b"again");
    assert_eq!(region.sessions.notices(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_device_closes_an_idle_tunnel_too() {
    let region = Region::start(IDLE).await;
    let name = DeviceName::from("one");
    let (tunnel, incoming) = device_idle(1, region.hub.notice().gateway_key, Duration::from_secs(1));
    region.sessions.set(&name, Known { keys: vec![key(1)], session: Some(tunnel.clone()), ..Known::default() });
    let _echo = echo(incoming);
    drop(region.hub.dial(&name, StreamKind::Ingress).await.expect("a stream"));
    eventually("it closes", || async { region.hub.open_tunnels() + tunnel.open_tunnels() == 0 }).await;
    region.hub.dial(&name, StreamKind::Ingress).await.expect("another stream");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_died_silently_and_came_back_is_reached_again() {
    let region = Region::start(IDLE).await;
    let name = DeviceName::from("one");
    region.sessions.set(&name, Known { keys: vec![key(1)], ..Known::default() });
    let mut device = device_process(region.hub.notice());
    eventually("the device has dialled", || async { region.hub.open_tunnels() == 1 }).await;
    let stream = region.hub.dial(&name, StreamKind::Ingress).await.expect("a stream");
    assert_eq!(exchange(stream, b"before").await.expect("an echo"), b"before");

    device.0.kill().expect("killed");
    device.0.wait().expect("dead");
    let (_, _new, incoming) = region.device("one", 1);
    let _echo = echo(incoming);
    // The hub has heard nothing of the death, but of the new session.
    let begun = Instant::now();
    let stream = region.hub.dial(&name, StreamKind::Ingress).await.expect("a stream");
    assert_eq!(exchange(stream, b"after").await.expect("an echo"), b"after");
    assert!(begun.elapsed() < Duration::from_secs(1), "reached after {:?}", begun.elapsed());
    assert_eq!(region.sessions.notices(), 1);
    eventually("the dead tunnel is gone", || async { region.hub.open_tunnels() == 1 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_died_silently_is_asked_again_when_it_is_silent_for_long() {
    let region = Region::start(IDLE).await;
    let name = DeviceName::from("one");
    region.sessions.set(&name, Known { keys: vec![key(1)], ..Known::default() });
    let mut device = device_process(region.hub.notice());
    eventually("the device has dialled", || async { region.hub.open_tunnels() == 1 }).await;
    device.0.kill().expect("killed");
    device.0.wait().expect("dead");
    region.sessions.hang_up(&name);
    // Its tunnel is used until the silence is noticed.
    let begun = Instant::now();
    let stream = region.hub.dial(&name, StreamKind::Ingress).await.expect("a stream");
    exchange(stream, b"lost").await.expect_err("nobody is there");
    assert!(begun.elapsed() < hearth_tunnel::SILENCE + Duration::from_secs(2), "noticed after {:?}", begun.elapsed());
    let error = region.hub.dial(&name, StreamKind::Ingress).await.expect_err("nobody is there");
    assert_eq!(error, DialError::Away(name));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_session_of_the_same_process_leaves_open_streams_alone() {
    let region = Region::start(IDLE).await;
    let (name, tunnel, incoming) = region.device("one", 1);
    let _echo = echo(incoming);
    let old = region.hub.dial(&name, StreamKind::Ingress).await.expect("a stream");
    tokio::time::sleep(hearth_tunnel::NOTICE_GRACE).await;
    region.sessions.reconnect(&name);
    // All who come at once share one notice, and all who come later one tunnel.
    let dials: Vec<_> = (0..20).map(|_| tokio::spawn(dialled(region.hub.clone(), name.clone()))).collect();
    for dial in dials {
        assert!(dial.await.expect("a dial") < Duration::from_secs(1));
    }
    dialled(region.hub.clone(), name.clone()).await;
    assert_eq!(region.sessions.notices(), 2);
    assert_eq!((region.hub.open_tunnels(), tunnel.open_tunnels()), (2, 2), "the old stream holds the old tunnel");
    assert_eq!(exchange(old, b"still here").await.expect("an echo"), b"still here");
    eventually("the old tunnel ends with its last stream", || async {
        (region.hub.open_tunnels(), tunnel.open_tunnels()) == (1, 1)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_changes_right_after_the_dial_delays_the_next_stream_at_most_a_little() {
    let region = Region::start(IDLE).await;
    let (name, _tunnel, incoming) = region.device("one", 1);
    let _echo = echo(incoming);
    dialled(region.hub.clone(), name.clone()).await;
    region.sessions.reconnect(&name);
    // The device takes the notice as answered by the tunnel that it has just opened, until it is asked again.
    let took = dialled(region.hub.clone(), name.clone()).await;
    assert!(took < hearth_tunnel::ASK_AGAIN + Duration::from_secs(1), "reached after {took:?}");
    assert_eq!(region.sessions.notices(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_is_used_while_its_device_has_no_session() {
    let region = Region::start(IDLE).await;
    let (name, _tunnel, incoming) = region.device("one", 1);
    let _echo = echo(incoming);
    dialled(region.hub.clone(), name.clone()).await;
    region.sessions.hang_up(&name);
    assert!(dialled(region.hub.clone(), name.clone()).await < Duration::from_secs(1));
    assert_eq!((region.sessions.notices(), region.hub.open_tunnels()), (1, 1));
}

/// How long it took until a new stream answered.
async fn dialled(hub: hearth_tunnel::TunnelHub, name: DeviceName) -> Duration {
    let begun = Instant::now();
    let stream = hub.dial(&name, StreamKind::Ingress).await.expect("a stream");
    assert_eq!(exchange(stream, b"hello").await.expect("an echo"), b"hello");
    begun.elapsed()
}

/// A device in a process of its own, so that it can be killed as only a process can: without a word.
struct DeviceProcess(std::process::Child);

impl Drop for DeviceProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const NOTICE_VARIABLE: &str = "HEARTH_TEST_DIAL_PORT";

fn device_process(notice: &DialNotice) -> DeviceProcess {
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "reach::the_device_of_another_test"])
        .env(NOTICE_VARIABLE, notice.addresses[0].port().to_string())
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("this test binary");
    DeviceProcess(child)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the other process of a_device_that_died_silently_and_came_back_is_reached_again"]
async fn the_device_of_another_test() {
    let Ok(port) = std::env::var(NOTICE_VARIABLE) else { return };
    let gateway_key = key(7).0;
    let (tunnel, incoming) = device(1, gateway_key);
    let notice =
        DialNotice { gateway_key, addresses: vec![([127, 0, 0, 1], port.parse().unwrap()).into()], relays: Vec::new() };
    tunnel.dial(notice).await.expect("a tunnel");
    tokio::time::timeout(Duration::from_mins(1), echo(incoming)).await.expect_err("killed before");
}

/// Lets a value be made on another runtime.
trait BlockOnSpawn {
    fn block_on_spawn<T: Send + 'static>(&self, make: impl Future<Output = T> + Send + 'static) -> T;
}

impl BlockOnSpawn for tokio::runtime::Runtime {
    fn block_on_spawn<T: Send + 'static>(&self, make: impl Future<Output = T> + Send + 'static) -> T {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        self.spawn(async move { sender.send(make.await) });
        receiver.recv().expect("made")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_was_restarted_cleanly_is_dialled_at_once() {
    let region = Region::start(IDLE).await;
    let (name, old, incoming) = region.device("one", 1);
    let _echo = echo(incoming);
    let stream = region.hub.dial(&name, StreamKind::Ingress).await.expect("a stream");
    assert_eq!(exchange(stream, b"before").await.expect("an echo"), b"before");
    old.close().await;
    let (_, _new, incoming) = region.device("one", 1);
    let _echo = echo(incoming);
    let begun = Instant::now();
    let stream = region.hub.dial(&name, StreamKind::Ingress).await.expect("a stream");
    assert_eq!(exchange(stream, b"after").await.expect("an echo"), b"after");
    assert!(begun.elapsed() < Duration::from_secs(2));
}

/// The gateway dies without a word and is started again with its key, at another port or at the same.
async fn restart_of_the_gateway(same_port: bool) {
    let doomed = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let region = doomed.block_on_spawn(Region::start(IDLE));
    let (name, tunnel, incoming) = region.device("one", 1);
    let _echo = echo(incoming);
    let (hub, device) = (region.hub.clone(), name.clone());
    doomed
        .spawn(async move { hub.dial(&device, StreamKind::Ingress).await.map(drop) })
        .await
        .unwrap()
        .expect("a stream");
    let old = region.hub.notice().addresses[0];
    doomed.shutdown_background();
    drop(region);
    tokio::time::sleep(hearth_tunnel::NOTICE_GRACE).await;

    let listen = if same_port { old.to_string() } else { "127.0.0.1:0".to_owned() };
    let next = Region::start_at(&listen, IDLE).await;
    next.sessions.set(&name, Known { keys: vec![key(1)], session: Some(tunnel.clone()), ..Known::default() });
    let stream = next.hub.dial(&name, StreamKind::Ingress).await.expect("a stream of the new gateway");
    assert_eq!(exchange(stream, b"again").await.expect("an echo"), b"again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_restarted_at_its_port_gets_a_new_tunnel() {
    restart_of_the_gateway(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_restarted_at_another_port_gets_a_new_tunnel() {
    restart_of_the_gateway(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_without_tunnels_closes_its_socket_and_can_be_dialled_again() {
    let region = Region::start(Duration::from_secs(1)).await;
    let (name, tunnel, incoming) = region.device("one", 1);
    let _echo = echo(incoming);
    drop(region.hub.dial(&name, StreamKind::Ingress).await.expect("a stream"));
    let begun = Instant::now();
    while tunnel.has_socket().await {
        assert!(begun.elapsed() < hearth_tunnel::ENDPOINT_LINGER + Duration::from_secs(10), "the socket stays open");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let stream = region.hub.dial(&name, StreamKind::Ingress).await.expect("a stream");
    assert_eq!(exchange(stream, b"again").await.expect("an echo"), b"again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_no_devices_is_refused() {
    let region = Region::start(IDLE).await;
    let (name, _tunnel, _incoming) = region.device("one", 1);
    let (stranger, _streams) = device(2, region.hub.notice().gateway_key);
    // The stranger answers in the device's place.
    region.sessions.set(&name, Known { keys: vec![key(1)], session: Some(stranger.clone()), ..Known::default() });
    let error = region.hub.dial(&name, StreamKind::Ingress).await.expect_err("no stream to a stranger");
    assert!(matches!(error, DialError::Timeout { .. }), "{error}");
    assert_eq!(region.count("hearth_tunnel_refused_total", "unknown_key"), 1);
    assert_eq!(region.hub.open_tunnels(), 0);
    eventually("the stranger is sent away", || async { stranger.open_tunnels() == 0 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_taken_from_its_device_loses_its_tunnel() {
    let region = Region::start(IDLE).await;
    let (name, tunnel, incoming) = region.device("one", 1);
    let _echo = echo(incoming);
    drop(region.hub.dial(&name, StreamKind::Ingress).await.expect("a stream"));
    region.sessions.set(&name, Known { keys: vec![key(9)], session: None, ..Known::default() });
    let error = region.hub.dial(&name, StreamKind::Ingress).await.expect_err("its key is revoked");
    assert_eq!(error, DialError::Away(name.clone()));
    eventually("the tunnel is closed", || async { tunnel.open_tunnels() == 0 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_is_away_or_unknown_fails_at_once() {
    let region = Region::start(IDLE).await;
    let name = DeviceName::from("away");
    region.sessions.set(&name, Known { keys: vec![key(1)], session: None, ..Known::default() });
    let begun = Instant::now();
    let dial = |name: &'static str| {
        let hub = region.hub.clone();
        async move { hub.dial(&name.into(), StreamKind::Ingress).await.expect_err("not there") }
    };
    assert_eq!(dial("away").await, DialError::Away(name));
    assert_eq!(dial("nobody").await, DialError::Unknown("nobody".into()));
    assert!(begun.elapsed() < Duration::from_secs(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_outside_the_roster_is_not_dialled() {
    let region = Region::start(IDLE).await;
    let (tunnel, _incoming) = device(1, [0; 32]);
    let error = tunnel.dial(region.hub.notice().clone()).await.expect_err("not in the roster");
    assert!(matches!(error, DeviceDialError::NotInRoster(_)), "{error}");
    assert!(!tunnel.has_socket().await, "not even a socket was made for it");
}

#[tokio::test(flavor = "multi_thread")]
async fn notices_that_are_malformed_or_too_many_are_refused() {
    let region = Region::start(IDLE).await;
    let good = region.hub.notice().clone();
    let (tunnel, _incoming) = device(1, good.gateway_key);
    for addresses in [vec![], vec!["127.0.0.1:0"], vec!["0.0.0.0:1"], vec!["224.0.0.1:1"], vec!["127.0.0.1:1"; 17]] {
        let addresses = addresses.iter().map(|it| it.parse().unwrap()).collect();
        let error = tunnel.dial(DialNotice { addresses, ..good.clone() }).await.expect_err("malformed");
        assert!(matches!(error, DeviceDialError::BadNotice { .. }), "{error}");
    }
    region.sessions.set(&"one".into(), Known { keys: vec![key(1)], session: None, ..Known::default() });
    let mut refused = 0;
    for _ in 0..50 {
        match tunnel.dial(good.clone()).await {
            Ok(()) => {}
            Err(DeviceDialError::TooFast(_)) => refused += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert!((30..=40).contains(&refused), "{refused} refused");
    assert_eq!(tunnel.open_tunnels(), 1, "notices beside an open tunnel are harmless");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_does_not_answer_is_given_up() {
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let gateway = key(7).0;
    let (tunnel, _incoming) = device(1, gateway);
    let notice = DialNotice { gateway_key: gateway, addresses: vec![silent.local_addr().unwrap()], relays: Vec::new() };
    let begun = Instant::now();
    tunnel.dial(notice).await.expect_err("nobody answers");
    assert!(begun.elapsed() < Duration::from_secs(7));
    tokio::time::timeout(Duration::from_secs(5), tunnel.close()).await.expect("closing is bounded");
}
