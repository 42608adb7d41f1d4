//! How servers call each other.

use std::{process::Command, sync::Arc, time::Duration};

use hearth_api::{CertificateAuthority, PeerChannels, SystemClock, peer_name};
use hearth_client::convert;
use hearth_proto::v1;
use hearth_types::{
    Reason,
    group::{CallError, Lane, PeerTransport as _, Server},
    identity,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    time::Instant,
};
use tonic::transport::Channel;

use crate::region::{LIMIT, Region, ZONE, eventually, seed};

const LANES: [Lane; 3] = [Lane::Urgent, Lane::Entries, Lane::Bulk];

async fn call(from: &PeerChannels, to: &Server, lane: Lane, text: &str) -> Result<String, CallError> {
    let answer = tokio::time::timeout(LIMIT, from.call(to, lane, text.to_owned().into())).await.expect("in time")?;
    Ok(String::from_utf8(answer.to_vec()).unwrap())
}

#[tokio::test]
async fn servers_call_each_other_and_know_who_calls() {
    let one = Region::start().await;
    let two = one.server(2, "127.0.0.1:0").await;
    for (from, to) in [(&one, &two), (&two, &one)] {
        let channels = from.channels(from.id);
        for lane in LANES {
            let expected = format!("{}->{}: hello", from.id, to.id);
            assert_eq!(call(&channels, &to.known_as(), lane, "hello").await.unwrap(), expected);
        }
        let error = call(&channels, &to.known_as(), Lane::Entries, "bad").await.unwrap_err();
        assert_eq!(error.0, format!("{}: not a request", to.known_as()));
    }
    // A batch of entries of the largest transactions.
    let large = "x".repeat(40 << 20);
    let answer = call(&one.channels(1), &two.known_as(), Lane::Bulk, &large).await.unwrap();
    assert_eq!(answer.len(), large.len() + "1->2: ".len());
}

async fn refused(channel: Channel) -> (Reason, String) {
    let mut peers = v1::peers_client::PeersClient::new(channel);
    let error = peers.call(v1::PeerCall { request: "hello".into() }).await.expect_err("let in");
    let status = convert::status(&error);
    (status.reason, status.message)
}

#[tokio::test]
async fn only_servers_may_call_and_each_only_as_itself() {
    let region = Region::start().await;
    let elsewhere = tempfile::tempdir().unwrap();
    let other_ca = CertificateAuthority::load_or_create(elsewhere.path(), ZONE, Arc::new(SystemClock)).unwrap();
    let client = |user: &str, groups: &[&str]| region.raw(Some(&region.ca.issue_client(user, groups).unwrap()));
    let imposter = other_ca.issue_client("hearth:server:2", &[identity::SERVERS]).unwrap();
    let serving = region.ca.issue_server(&[peer_name(2, ZONE)]).unwrap();
    for (who, channel, expected) in [
        ("an admin", client("admin", &["system:masters"]), Reason::Forbidden),
        ("an admin by a server's name", client("hearth:server:2", &["system:masters"]), Reason::Forbidden),
        ("a server without a number", client("hearth:server:", &[identity::SERVERS]), Reason::Forbidden),
        ("this very server", client("hearth:server:1", &[identity::SERVERS]), Reason::Forbidden),
        ("a device", region.device(&seed(1)), Reason::Unauthorized),
        ("nobody", region.raw(None), Reason::Unauthorized),
        ("a server of another CA", region.raw(Some(&imposter)), Reason::Unauthorized),
        ("what a server serves with", region.raw(Some(&serving)), Reason::Unauthorized),
    ] {
        let (reason, message) = refused(channel).await;
        assert_eq!(reason, expected, "{who}: {message}");
    }
    let (_, message) = refused(client("admin", &["system:masters"])).await;
    assert!(message.ends_with("it takes a server of the region"), "{message}");
    // A server may do nothing else.
    let server = client("hearth:server:2", &[identity::SERVERS]);
    let list = hearth_client::Client::from_channel(server).members().await.unwrap_err();
    assert_eq!(list.reason, Reason::Forbidden, "{list}");
    // Who answers is the one who was meant, or is not talked to.
    let error = call(&region.channels(2), &Server { id: 3, ..region.known_as() }, Lane::Urgent, "x").await.unwrap_err();
    assert!(error.0.contains("server-3.api.hearth.internal"), "{error}");
    let stranger = PeerChannels::new(&Arc::new(other_ca), 2, Arc::new(SystemClock)).unwrap();
    let error = call(&stranger, &region.known_as(), Lane::Urgent, "x").await.unwrap_err();
    assert!(error.0.contains("invalid peer certificate"), "{error}");
}

#[tokio::test]
async fn a_connection_is_made_anew_when_it_broke_and_when_the_address_changed() {
    let one = Region::start().await;
    let mut two = one.server(2, "127.0.0.1:0").await;
    let channels = one.channels(1);
    call(&channels, &two.known_as(), Lane::Urgent, "a").await.unwrap();
    // At the same address and at another one.
    for address in [two.address.clone(), "127.0.0.1:0".to_owned()] {
        two.stop.cancel();
        (&mut two.server).await.unwrap().unwrap();
        let error = call(&channels, &two.known_as(), Lane::Urgent, "b").await.unwrap_err();
        assert!(error.0.starts_with(&two.known_as().to_string()), "{error}");
        two = eventually("the port is free", || async {
            TcpListener::bind(&address).await.ok()?;
            Some(one.server(2, &address).await)
        })
        .await;
        assert_eq!(call(&channels, &two.known_as(), Lane::Urgent, "c").await.unwrap(), "1->2: c");
    }
}

/// Passes bytes on until it falls silent, without a word of that.
async fn through(to: String) -> (String, watch::Sender<bool>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (silence, silent) = watch::channel(false);
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let (mut silent, to) = (silent.clone(), to.clone());
            tokio::spawn(async move {
                let mut far = TcpStream::connect(to).await.unwrap();
                let falls_silent = async { silent.wait_for(|silent| *silent).await.map(drop) };
                tokio::select! {
                    biased;
                    // Both ends stay open until the test is over.
                    _ = falls_silent => std::future::pending().await,
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                }
            });
        }
    });
    (address, silence)
}

#[tokio::test]
async fn a_server_that_died_without_a_word_is_noticed_soon_where_it_is_urgent() {
    let one = Region::start().await;
    let two = one.server(2, "127.0.0.1:0").await;
    let (address, silence) = through(two.address.clone()).await;
    let (channels, to) = (one.channels(1), Server { id: 2, address });
    for lane in LANES {
        call(&channels, &to, lane, "a").await.unwrap();
    }
    silence.send_replace(true);
    // What is under way on the other lanes may be a disk that is slow.
    let (begun, patient) = (Instant::now(), tokio::spawn(channels.call(&to, Lane::Bulk, "b".into())));
    call(&channels, &to, Lane::Urgent, "b").await.expect_err("it is dead");
    let noticed = begun.elapsed();
    assert!(noticed < Duration::from_secs(4), "{noticed:?}, which should be one second");
    // Nobody answers a new connection either.
    let begun = Instant::now();
    let error = call(&channels, &to, Lane::Urgent, "c").await.unwrap_err();
    assert!(error.0.contains("no connection within 500 ms"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    assert!(!patient.is_finished());
    patient.abort();
}

/// The serial number of the certificate that a server shows now.
async fn serial(region: &Region) -> String {
    let (address, name) = (region.address.clone(), peer_name(region.id, ZONE));
    let shown = tokio::task::spawn_blocking(move || {
        let command = format!(
            "openssl s_client -connect {address} -servername {name} </dev/null 2>/dev/null | openssl x509 -noout -serial -checkhost {name}"
        );
        Command::new("sh").args(["-c", &command]).output().expect("openssl is installed")
    });
    let shown = String::from_utf8(shown.await.unwrap().stdout).unwrap();
    assert!(shown.contains("does match"), "{shown}");
    shown
}

#[tokio::test]
async fn running_servers_change_their_certificates_while_calls_go_on() {
    let one = Region::start().await;
    let two = one.server(2, "127.0.0.1:0").await;
    let channels = [one.channels(1), two.channels(2)];
    let (to_two, to_one) = (two.known_as(), one.known_as());
    let begun = tokio::spawn(channels[0].call(&to_two, Lane::Entries, "slow".into()));
    let mut before = serial(&two).await;
    // Two thirds of 90 days, several times: a certificate of the beginning is long over.
    for days in [0, 61, 61, 61, 61] {
        one.clock.advance(Duration::from_hours(days * 24));
        for lane in LANES {
            assert_eq!(call(&channels[0], &to_two, lane, "a").await.unwrap(), "1->2: a", "after {days} days");
            assert_eq!(call(&channels[1], &to_one, lane, "a").await.unwrap(), "2->1: a", "after {days} days");
        }
        let after = serial(&two).await;
        assert_eq!(after == before, days == 0, "{before} {after}");
        before = after;
    }
    assert!(!begun.is_finished(), "what was under way was not cut");
    two.release.notify_one();
    assert_eq!(tokio::time::timeout(LIMIT, begun).await.unwrap().unwrap().unwrap(), "1->2: slow");
}
