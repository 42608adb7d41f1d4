//! Watches the host's network while the agent runs: its neighbours change when it joins another network, and others flush
//! firewalls (Debian's nftables service flushes all of them whenever it is restarted).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::sync::Mutex;

use crate::NetworkError;
use crate::firewall::{self, Firewall};
use crate::host::{Host, Survey};
use crate::netlink::nft::{self, NFT_MSG_DELTABLE};
use crate::netlink::socket::{Protocol, Socket};
use crate::netlink::{messages, route};
use crate::prefix::Prefix;

/// Least time between two looks at the host's network: a route daemon that changes routes all the time must not keep a
/// home device busy. The first change of a burst is acted on at once.
const SETTLE: Duration = Duration::from_millis(250);
/// After a failure to put the firewall right.
const RETRY: Duration = Duration::from_secs(1);
/// Largest notification: the kernel's are below 4 KiB, nf_tables' at most 32 KiB.
const NOTIFICATION_BYTES: usize = 32 * 1024;
/// `NFNLGRP_NFTABLES` as a mask for `bind`.
const GROUP_NFTABLES: u32 = 1 << 6;

/// The firewall as it is to be, kept by one task at a time.
#[derive(Debug)]
pub(crate) struct Guard {
    firewall: Firewall,
    on_link: Mutex<Option<BTreeSet<Prefix>>>,
}

/// Sockets that hear of changes. Opened before the first look, so that nothing is missed between.
#[derive(Debug)]
pub(crate) struct Ears {
    routes: Socket,
    tables: Socket,
}

impl Ears {
    /// Opens the sockets in the calling thread's network namespace.
    pub(crate) fn open() -> Result<Self, NetworkError> {
        let failed = |e| NetworkError::netlink("listen to changes of the host's network", e);
        // To listen has the kernel load nf_tables in the background, and whoever asks for something of it meanwhile, as nft
        // does next, is told that there is no such thing. A question loads it first; the answer does not matter.
        let _ = nft::table_exists("hearth");
        Ok(Self {
            routes: Socket::open(Protocol::Route, route::GROUPS_ADDRESSES_AND_ROUTES).map_err(failed)?,
            tables: Socket::open(Protocol::Netfilter, GROUP_NFTABLES).map_err(failed)?,
        })
    }
}

impl Guard {
    pub(crate) fn new(firewall: Firewall) -> Arc<Self> {
        Arc::new(Self { firewall, on_link: Mutex::new(None) })
    }

    /// Puts the whole table in place.
    pub(crate) async fn install(self: &Arc<Self>, host: &Host) -> Result<(), NetworkError> {
        let mut known = self.on_link.lock().await;
        let firewall = self.firewall.clone();
        let on_link = host
            .run("install the firewall", move || {
                let on_link = Survey::take()?.on_link();
                firewall::run("installing the firewall", &firewall.script(&on_link))?;
                Ok(on_link)
            })
            .await?;
        *known = Some(on_link);
        Ok(())
    }

    /// Puts the table back where somebody removed it.
    async fn reinstall_if_missing(self: &Arc<Self>, host: &Host) -> Result<(), NetworkError> {
        let table = self.firewall.instance.table();
        let exists = host
            .run("look for the firewall", move || {
                nft::table_exists(&table).map_err(|e| NetworkError::netlink("look up the firewall table", e))
            })
            .await?;
        if !exists {
            self.install(host).await?;
            tracing::warn!("somebody removed the firewall of the pods; it was put back");
        }
        Ok(())
    }

    /// Tells the firewall of the host's neighbours, where they changed.
    async fn refresh_on_link(self: &Arc<Self>, host: &Host) -> Result<(), NetworkError> {
        let mut known = self.on_link.lock().await;
        let firewall = self.firewall.clone();
        let before = known.clone();
        let on_link = host
            .run("tell the firewall of the host's neighbours", move || {
                let on_link = Survey::take()?.on_link();
                if before.as_ref() != Some(&on_link) {
                    firewall::run("updating the host's neighbours", &firewall.on_link_script(&on_link))?;
                    tracing::info!(prefixes = on_link.len(), "pods are kept from the host's neighbours");
                }
                Ok(on_link)
            })
            .await?;
        *known = Some(on_link);
        Ok(())
    }

    /// Whether a change of routes or addresses is about something else than this instance's own pods.
    fn concerns_neighbours(&self, datagram: &[u8]) -> bool {
        messages(datagram).filter_map(|m| route::changed_prefix(m.kind, m.payload)).any(|prefix| {
            let own = self.firewall.pods4.overlaps(prefix)
                || self.firewall.pods6.is_some_and(|(pods, _)| pods.overlaps(prefix));
            !(own && prefix.is_host())
        })
    }

    fn concerns_table(&self, datagram: &[u8]) -> bool {
        let own = self.firewall.instance.table();
        messages(datagram)
            .filter(|m| m.kind == NFT_MSG_DELTABLE)
            .any(|m| nft::table_name(m.payload) == Some(own.as_str()))
    }

    /// Keeps the host's neighbours up to date; ends only when it is dropped.
    pub(crate) async fn watch_routes(self: Arc<Self>, host: Host, ears: AsyncFd<Socket>) {
        loop {
            wait_for(&ears, |datagram| self.concerns_neighbours(datagram)).await;
            while let Err(error) = self.refresh_on_link(&host).await {
                tracing::error!(%error, "the firewall does not know the host's new neighbours; trying again");
                // The table itself may be what is missing.
                let _ = self.reinstall_if_missing(&host).await;
                tokio::time::sleep(RETRY).await;
            }
            tokio::time::sleep(SETTLE).await;
        }
    }

    /// Keeps the table in place; ends only when it is dropped.
    pub(crate) async fn watch_tables(self: Arc<Self>, host: Host, ears: AsyncFd<Socket>) {
        loop {
            wait_for(&ears, |datagram| self.concerns_table(datagram)).await;
            while let Err(error) = self.reinstall_if_missing(&host).await {
                tracing::error!(%error, "the pods' firewall was removed and cannot be put back; trying again");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// The two sockets, registered with the runtime.
#[expect(
    deprecated,
    reason = "its successor is an unsafe fn, which this crate may not call; what that asks for holds: a `Socket` owns its \
              descriptor for as long as it lives and always reports the same one"
)]
pub(crate) fn register(ears: Ears) -> Result<(AsyncFd<Socket>, AsyncFd<Socket>), NetworkError> {
    let failed = |e| NetworkError::netlink("listen to changes of the host's network", e);
    Ok((AsyncFd::new(ears.routes).map_err(failed)?, AsyncFd::new(ears.tables).map_err(failed)?))
}

/// Waits until a notification is relevant, and takes all that have arrived by then. A notification that was lost (the
/// kernel says so with `ENOBUFS`) counts as relevant.
async fn wait_for(ears: &AsyncFd<Socket>, relevant: impl Fn(&[u8]) -> bool) {
    let mut buffer = vec![0u8; NOTIFICATION_BYTES];
    let mut found = false;
    loop {
        let Ok(mut ready) = ears.readable().await else {
            // The runtime is shutting down.
            return std::future::pending().await;
        };
        match ready.try_io(|socket| socket.get_ref().receive(&mut buffer)) {
            Ok(Ok(len)) => found |= relevant(&buffer[..len]),
            Ok(Err(e)) if e.raw_os_error() == Some(libc::ENOBUFS) => found = true,
            Ok(Err(error)) => {
                tracing::warn!(%error, "cannot hear of changes of the host's network; looking anyway");
                tokio::time::sleep(RETRY).await;
                return;
            }
            Err(_would_block) if found => return,
            Err(_would_block) => {}
        }
    }
}
