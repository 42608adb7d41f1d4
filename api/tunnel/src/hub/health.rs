//! Which relays answer.
//!
//! # Flow
//! Each relay is asked every second, over a connection of its own, so that one whose process is stopped is noticed as well as one whose
//! packets vanish. One that did not answer [`limits::RELAY_MISSES`] times is left: the endpoint goes to another one, and devices that are
//! reached by the dead one are asked to dial anew. It is asked on, and used again once it answers.

use std::{io, sync::Arc};

use futures_util::future::join_all;
use iroh::{RelayUrl, Watcher as _};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_rustls::TlsConnector;

use super::{Inner, dial};
use crate::{limits, quic, resolver::dialled};

/// The answer of a relay that is there (RFC 9112).
const ANSWER: &[u8] = b"HTTP/1.1 200";

/// Looks after the relays for as long as the gateway runs.
pub(super) async fn run(inner: Arc<Inner>) {
    let connector = connector(&inner);
    let mut turns = interval(limits::RELAY_CHECK);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // How often in a row each did not answer.
    let mut missed: Vec<(RelayUrl, u32)> = Vec::new();
    loop {
        tokio::select! {
            () = inner.shutdown.cancelled() => return,
            _ = turns.tick() => {}
        }
        let urls = inner.relays.urls();
        let answers = join_all(urls.iter().map(|url| answers(&connector, url))).await;
        let before = std::mem::take(&mut missed);
        let again = answers.iter().zip(&urls).any(|(answers, _)| !answers);
        missed = urls
            .into_iter()
            .zip(answers)
            .filter(|(_, answers)| !answers)
            .map(|(url, _)| {
                let times = before.iter().find(|(one, _)| *one == url).map_or(0, |(_, times)| *times);
                (url, times.saturating_add(1))
            })
            .collect();
        let dead: Vec<_> =
            missed.iter().filter(|(_, times)| *times >= limits::RELAY_MISSES).map(|(url, _)| url.clone()).collect();
        inner.metrics.relays_dead.set(i64::try_from(dead.len()).unwrap_or(i64::MAX));
        if inner.relays.set_dead(dead.clone()) {
            leave(&inner, &dead).await;
        }
        if again && missed.iter().any(|(_, times)| *times < limits::RELAY_MISSES) {
            // Whoever missed once is asked again at once: waiting has been done.
            turns.reset_immediately();
        }
    }
}

/// Goes to another relay where the gateway's own is among the dead, and has the devices that were reached by those dial anew.
async fn leave(inner: &Arc<Inner>, dead: &[RelayUrl]) {
    for url in dead {
        tracing::warn!(relay = %inner.relays.get(url).map_or_else(|| url.to_string(), |relay| relay.name), "a relay does not answer; using others");
    }
    inner.apply_relays().await;
    if dead.is_empty() {
        return;
    }
    // Where devices will look for it: which relay is its next home it finds out in some seconds.
    let alive = inner.relays.alive().into_iter().filter_map(|relay| relay.url.parse().ok());
    quic::be_at(&inner.endpoint, alive.collect::<Vec<RelayUrl>>()).await;
    let mut home = inner.endpoint.home_relay_status();
    let moved = async {
        while home.get().iter().any(|status| dead.contains(status.url()) || !status.is_connected()) {
            if home.updated().await.is_err() {
                return;
            }
        }
    };
    if timeout(limits::RELAY_MOVE, moved).await.is_err() {
        tracing::debug!("no other relay is connected yet");
    }
    inner.moved.notify_waiters();
    let reached = inner.tables().reached_by(dead);
    for device in reached {
        dial::ask_anew(inner, device);
    }
}

fn connector(inner: &Inner) -> TlsConnector {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has suites of both versions")
        .dangerous()
        .with_custom_certificate_verifier(inner.relays.verifier())
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

async fn answers(connector: &TlsConnector, url: &RelayUrl) -> bool {
    match timeout(limits::RELAY_PATIENCE, ask(connector, url)).await {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            tracing::debug!(%url, %error, "a relay does not answer");
            false
        }
        Err(_) => {
            tracing::debug!(%url, "a relay does not answer in time");
            false
        }
    }
}

async fn ask(connector: &TlsConnector, url: &RelayUrl) -> io::Result<()> {
    let no_host = || io::Error::new(io::ErrorKind::InvalidInput, "the relay's URL has no host");
    // An IPv6 address stands in brackets in a URL and without them in a name.
    let host = url.host_str().ok_or_else(no_host)?.trim_matches(['[', ']']).to_owned();
    let port = url.port_or_known_default().ok_or_else(no_host)?;
    let stream = TcpStream::connect((dialled(&host), port)).await?;
    let name = ServerName::try_from(host.clone()).map_err(io::Error::other)?;
    let mut stream = connector.connect(name, stream).await?;
    let request = format!("GET /ping HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = [0; ANSWER.len()];
    stream.read_exact(&mut answer).await?;
    if answer == ANSWER { Ok(()) } else { Err(io::Error::other("it answers otherwise than a relay")) }
}
