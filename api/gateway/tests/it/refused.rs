//! TLS callers that cannot be passed on: each gets its alert at once.

use std::{
    io,
    time::{Duration, Instant},
};

use hearth_gateway::{Gateway, GatewayConfig, GatewayError};
use rustls::AlertDescription;
use tokio::io::AsyncWriteExt;

use crate::fixture::{BOUND, Device, Fixture, NAME, RAW_NAME, gateway, gateway_with, read_all};

/// The alert that a real client got.
pub(crate) async fn alert(gateway: &Fixture, name: &str) -> AlertDescription {
    let error = gateway.tls(name).await.expect_err("an alert");
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::AlertReceived(alert)) => *alert,
        _ => panic!("not an alert: {error}"),
    }
}

#[tokio::test]
async fn a_name_that_nobody_has_is_refused_without_dialling() {
    let gateway = gateway().await;
    for name in ["nobody.alice.hearth.internal", "alice.hearth.internal", "example.com"] {
        assert_eq!(alert(&gateway, name).await, AlertDescription::UnrecognisedName, "{name}");
    }
    gateway.wait_outcomes("unknown_name", 3).await;
    assert!(gateway.devices.dialled.lock().unwrap().is_empty());
}

#[tokio::test]
async fn nobody_is_told_that_a_name_is_wrong_before_the_names_are_known() {
    let gateway = gateway().await;
    gateway.primed.store(false, std::sync::atomic::Ordering::Relaxed);
    let error = gateway.tls("new.alice.hearth.internal").await.expect_err("closed");
    assert!(error.get_ref().is_none_or(|inner| inner.downcast_ref::<rustls::Error>().is_none()), "no alert: {error}");
    let mut plain = gateway.tcp().await;
    plain.write_all(b"GET / HTTP/1.1\r\nHost: new.alice.hearth.internal\r\n\r\n").await.unwrap();
    assert!(read_all(&mut plain).await.starts_with(b"HTTP/1.1 503 "));
    gateway.wait_outcomes("starting", 2).await;
    gateway.tls(NAME).await.expect("what is known is served");
    gateway.primed.store(true, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(alert(&gateway, "new.alice.hearth.internal").await, AlertDescription::UnrecognisedName);
}

#[tokio::test]
async fn a_hello_without_a_name_is_refused() {
    let gateway = gateway().await;
    assert_eq!(alert(&gateway, "127.0.0.1").await, AlertDescription::MissingExtension);
    gateway.wait_outcomes("no_name", 1).await;
}

#[tokio::test]
async fn a_name_whose_devices_are_away_is_refused_at_once_and_as_one_that_nobody_has() {
    let away = &[("one", Device::Away), ("two", Device::Away)];
    let none: &[(&'static str, Device)] = &[];
    for devices in [none, away] {
        let gateway = gateway_with(devices, |limits| {
            // Nothing here may wait for a timeout.
            limits.connect = 2 * BOUND;
            limits.answer = 2 * BOUND;
        })
        .await;
        let mut answers = Vec::new();
        for name in [NAME, "nobody.alice.hearth.internal", RAW_NAME] {
            let mut tcp = gateway.tcp().await;
            tcp.write_all(&gateway.hello(name)).await.expect("taken");
            let tls = read_all(&mut tcp).await;
            assert_eq!(tls, [21, 3, 3, 0, 2, 2, 112], "{name}");
            let mut tcp = gateway.tcp().await;
            tcp.write_all(format!("GET / HTTP/1.1\r\nHost: {name}\r\n\r\n").as_bytes()).await.expect("taken");
            let page = String::from_utf8(read_all(&mut tcp).await).expect("text");
            assert!(page.starts_with("HTTP/1.1 404 "), "{page}");
            let lines = page.lines().filter(|line| !line.starts_with("Date: "));
            answers.push(lines.map(str::to_owned).collect::<Vec<_>>());
        }
        assert!(answers.iter().all(|one| *one == answers[0]), "{answers:?}");
        gateway.wait_outcomes("away", 2).await;
        gateway.wait_outcomes("unknown_name", 4).await;
    }
}

#[tokio::test]
async fn a_device_that_has_a_session_and_cannot_be_reached_is_said_so() {
    for devices in [&[("one", Device::Breaks)][..], &[("one", Device::Away), ("two", Device::Breaks)]] {
        let gateway = gateway_with(devices, |limits| {
            limits.connect = 2 * BOUND;
            limits.answer = 2 * BOUND;
        })
        .await;
        assert_eq!(alert(&gateway, NAME).await, AlertDescription::InternalError, "{devices:?}");
        gateway.wait_outcomes("unreachable", 1).await;
    }
}

#[tokio::test]
async fn a_device_that_hangs_is_given_up() {
    for device in [Device::Hangs, Device::Silent] {
        let gateway = gateway_with(&[("one", device)], |limits| limits.connect = Duration::from_millis(150)).await;
        let begun = Instant::now();
        assert_eq!(alert(&gateway, NAME).await, AlertDescription::InternalError, "{device:?}");
        assert!(begun.elapsed() >= Duration::from_millis(150), "{device:?}");
    }
}

#[tokio::test]
async fn a_caller_that_leaves_while_a_device_is_dialled_gives_its_place_back() {
    let gateway = gateway_with(&[("one", Device::Hangs)], |limits| limits.connect = 2 * BOUND).await;
    let mut tcp = gateway.tcp().await;
    tcp.write_all(&gateway.hello(NAME)).await.expect("taken");
    drop(tcp);
    gateway.wait_outcomes("hung_up", 1).await;
}

#[tokio::test]
async fn a_broken_hello_gets_an_alert_and_nothing_else() {
    let gateway = gateway().await;
    let mut cut_short = gateway.hello(NAME);
    cut_short[8] -= 1;
    for bytes in [&[22, 3, 1, 0, 5, 2][..], &[22, 3, 1, 0, 5, 1, 0xff, 0, 0], &cut_short] {
        let mut tcp = gateway.tcp().await;
        tcp.write_all(bytes).await.expect("taken");
        assert_eq!(read_all(&mut tcp).await, [21, 3, 3, 0, 2, 2, 50], "{bytes:?}");
    }
    gateway.wait_outcomes("malformed", 3).await;
}

#[tokio::test]
async fn a_port_in_use_is_told_by_the_errors_kind() {
    let gateway = gateway().await;
    let config = GatewayConfig::new(gateway.address);
    let routes = std::sync::Arc::new(NoRoutes);
    let error = Gateway::bind(config, routes, gateway.devices.clone(), &prometheus::Registry::new())
        .await
        .expect_err("the port is taken");
    assert!(matches!(&error, GatewayError::Listen { address, .. } if *address == gateway.address));
    assert!(error.to_string().contains(&gateway.address.to_string()), "{error}");
    assert_eq!(io::Error::from(error).kind(), io::ErrorKind::AddrInUse);
}

struct NoRoutes;

impl hearth_types::routes::RouteLookup for NoRoutes {
    fn lookup(&self, _: &str) -> Option<std::sync::Arc<hearth_types::routes::RouteEntry>> {
        None
    }

    fn has_names_below(&self, _: &str) -> bool {
        false
    }

    fn serial(&self) -> u32 {
        0
    }
}
