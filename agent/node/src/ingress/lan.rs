//! The ingress inside the home: at the addresses of this device that homes number their networks with, where its owner lets them be told. Who
//! comes there does without gateway and internet.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use hearth_types::lan::{MAX_ADDRESSES, is_private_use};
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::sleep,
};

use super::{Ingress, serve};
use crate::shared::Shared;

/// After how long an address that could not be listened at is tried again: one of IPv6 takes a moment until it is certain that it is nobody
/// else's (RFC 4862 section 5.4).
const RETRY: Duration = Duration::from_secs(1);
/// Pause after the kernel could not hand out a connection.
const PAUSE: Duration = Duration::from_millis(100);

/// Listens while the owner wants it, at the addresses that there are, and tells the region of those. Never returns.
///
/// Guarantees: only addresses that homes number their networks with, at most [`MAX_ADDRESSES`], and only while they are listened at.
pub(crate) async fn run(
    shared: Arc<Shared>,
    ingress: Ingress,
    mut addresses: watch::Receiver<Arc<[IpAddr]>>,
    port: u16,
) {
    let mut wanted = ingress.inner.lan.subscribe();
    let mut doors: BTreeMap<IpAddr, JoinSet<()>> = BTreeMap::new();
    let mut failed: BTreeMap<IpAddr, io::ErrorKind> = BTreeMap::new();
    let mut told = None;
    loop {
        let there = addresses.borrow_and_update().clone();
        let there: BTreeSet<IpAddr> = if *wanted.borrow_and_update() {
            there.iter().copied().filter(|ip| is_private_use(*ip)).take(MAX_ADDRESSES).collect()
        } else {
            BTreeSet::new()
        };
        // What is open ends with its address.
        doors.retain(|ip, _| there.contains(ip));
        failed.retain(|ip, _| there.contains(ip));
        for ip in there {
            if doors.contains_key(&ip) {
                continue;
            }
            match TcpListener::bind((ip, port)).await {
                Ok(listener) => {
                    failed.remove(&ip);
                    let mut door = JoinSet::new();
                    door.spawn(accept(ingress.clone(), listener));
                    doors.insert(ip, door);
                }
                Err(error) => {
                    if failed.insert(ip, error.kind()) != Some(error.kind()) {
                        tracing::warn!(%ip, port, %error, "users inside the home cannot be served at this address; trying on");
                    }
                }
            }
        }
        let open: Vec<IpAddr> = doors.keys().copied().collect();
        if told.as_ref() != Some(&open) {
            tracing::info!(addresses = ?open, port, "users inside the home are served here");
            let list: Vec<_> = open.iter().map(|ip| json!({"type": "InternalIP", "address": ip.to_string()})).collect();
            shared.tell_of_device("addresses", json!(list));
            told = Some(open);
        }
        tokio::select! {
            Ok(()) = wanted.changed() => {}
            Ok(()) = addresses.changed() => {}
            () = sleep(RETRY), if !failed.is_empty() => {}
            else => std::future::pending().await,
        }
    }
}

/// Takes connections; those that it took end with it.
async fn accept(ingress: Ingress, listener: TcpListener) {
    let mut users = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, caller)) => drop(users.spawn(connection(ingress.clone(), stream, caller))),
                Err(error) => {
                    tracing::debug!(%error, "cannot take a connection from inside the home");
                    sleep(PAUSE).await;
                }
            },
            Some(_) = users.join_next(), if !users.is_empty() => {}
        }
    }
}

async fn connection(ingress: Ingress, stream: TcpStream, caller: SocketAddr) {
    // Without it, answers wait for one another.
    if stream.set_nodelay(true).is_ok() {
        serve::neighbour(&ingress, stream, caller).await;
    }
}
