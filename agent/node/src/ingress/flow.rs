//! A flow of datagrams to a port of a Route: what one caller sends from one of its ports, in a stream of the tunnel. It has a socket of its
//! own towards the pod, so that the pod sees one sender and its answers find their way back. The socket is one of the pod's network
//! namespace: a pod may send no datagrams to its host, and these need no exception.

use std::{io, net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

use hearth_network::Network;
use hearth_types::{
    Uid,
    tunnel::datagram::{self, Datagrams},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::UdpSocket,
    time::{Instant, timeout},
};

use super::{
    Ingress,
    header::Call,
    place::Place,
    target::{self, Target},
};
use crate::shared::PodEntry;

/// How often it is looked at most whether the app is in another pod by now.
const LOOK: Duration = Duration::from_secs(1);
/// How long the gateway may take no answers, though there are some: the tunnel has died, or its other users fill it.
const STALL: Duration = Duration::from_secs(30);
/// Makes a socket towards an address of a pod.
pub(crate) type Sockets =
    Arc<dyn Fn(&PodEntry, SocketAddr) -> Pin<Box<dyn Future<Output = io::Result<UdpSocket>> + Send>> + Send + Sync>;

/// Sockets in the pods' own network namespaces.
pub(crate) fn sockets_inside(network: Network) -> Sockets {
    Arc::new(move |pod, to| {
        let (network, sandbox) = (network.clone(), pod.snapshot.borrow().sandbox.clone());
        Box::pin(async move {
            let sandbox = sandbox.ok_or_else(|| io::Error::other("the pod does not run"))?;
            let netns = sandbox.netns().map_err(io::Error::other)?;
            network.datagrams_inside(netns, to).await.map_err(io::Error::other)
        })
    })
}

/// Bytes of answers that are passed on at once.
const ANSWERS: usize = 64 << 10;

/// Carries datagrams until the gateway ends the stream, or the Route is here no longer. How long a caller may be silent is the gateway's
/// to judge.
///
/// Guarantees: answers that the gateway does not take in time are lost, those that wait are bounded by the socket's buffer. While no pod is
/// ready datagrams are lost, as those of a network are.
pub(super) async fn serve<S>(ingress: &Ingress, call: &Call, stream: S, _place: Place)
where
    S: AsyncRead + AsyncWrite + Send + Unpin,
{
    let (mut reads, mut writes) = tokio::io::split(stream);
    let mut flow = Flow { ingress, call, header: None, pod: None, looked: None, broken: false };
    let mut datagrams = Datagrams::default();
    loop {
        tokio::select! {
            read = reads.read_buf(datagrams.buffer()) => {
                if !matches!(read, Ok(1..)) {
                    return;
                }
                if flow.look().await.is_none() {
                    return;
                }
                while let Some(datagram) = datagrams.next() {
                    flow.send(datagram).await;
                }
            }
            () = readable(flow.pod.as_ref()) => {
                let answers = flow.receive();
                if answers.is_empty() {
                    continue;
                }
                if !matches!(timeout(STALL, writes.write_all(&answers)).await, Ok(Ok(()))) {
                    return;
                }
            }
        }
    }
}

struct Flow<'a> {
    ingress: &'a Ingress,
    call: &'a Call,
    /// What is put before each datagram, where the app wants to know who calls.
    header: Option<Vec<u8>>,
    /// A socket that is connected to the pod.
    pod: Option<(UdpSocket, Whose)>,
    looked: Option<Instant>,
    /// Whether the socket said an error: it may be one of a network that is there no more.
    broken: bool,
}

impl Flow<'_> {
    /// Finds the pod. `None` where the Route is this device's no longer.
    async fn look(&mut self) -> Option<()> {
        if self.looked.is_some_and(|at| at.elapsed() < LOOK) {
            return Some(());
        }
        self.looked = Some(Instant::now());
        let route = self.ingress.called(self.call)?;
        self.header = route.proxy.then(|| self.call.proxy_header());
        match target::choose(&route, &self.ingress.inner.pods) {
            Ok(target) if !self.broken && self.pod.as_ref().is_some_and(|(_, there)| *there == Whose::of(&target)) => {}
            Ok(target) => {
                let whose = Whose::of(&target);
                match (self.ingress.inner.sockets)(&target.pod, target.address).await {
                    Ok(socket) => {
                        self.pod = Some((socket, whose));
                        self.broken = false;
                    }
                    Err(error) => {
                        tracing::debug!(target = %target.address, %error, "no socket for a flow of datagrams");
                        self.pod = None;
                    }
                }
            }
            Err(outage) => {
                tracing::debug!(?outage, "no pod takes a flow's datagrams");
                self.pod = None;
            }
        }
        Some(())
    }

    async fn send(&mut self, datagram: &[u8]) {
        let Some((pod, whose)) = &self.pod else { return };
        let sent = match &self.header {
            None => pod.send(datagram).await,
            Some(header) => pod.send(&[header, datagram].concat()).await,
        };
        if let Err(error) = sent {
            // Nobody has the port (an ICMP message that came before), or it is too long with its header.
            tracing::debug!(target = %whose.address, %error, "a datagram was not taken");
            self.broken = true;
        }
    }

    /// The answers that are there, as the stream has them.
    fn receive(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        let Some((pod, _)) = &self.pod else { return out };
        let mut one = Vec::with_capacity(datagram::MAX_BYTES);
        while out.len() < ANSWERS {
            one.clear();
            match pod.try_recv_buf(&mut one) {
                // Longer than the longest cannot be.
                Ok(_) => drop(datagram::push(&mut out, &one)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    // Nobody has the port now: as if the datagram was lost.
                    self.broken = true;
                    if error.kind() != io::ErrorKind::ConnectionRefused {
                        tracing::debug!(%error, "cannot receive a pod's answers");
                        break;
                    }
                }
            }
        }
        out
    }
}

/// The network that a socket is one of.
#[derive(PartialEq, Eq)]
struct Whose {
    address: SocketAddr,
    uid: Uid,
    /// A pod whose sandbox died has another when it is back, and may have its old address.
    shim: Option<u32>,
}

impl Whose {
    fn of(target: &Target) -> Self {
        let shim = target.pod.snapshot.borrow().sandbox.as_ref().map(hearth_runtime::Pod::shim_pid);
        Self { address: target.address, uid: target.pod.uid.clone(), shim }
    }
}

async fn readable(pod: Option<&(UdpSocket, Whose)>) {
    match pod {
        // An error is seen when it is read.
        Some((pod, _)) => drop(pod.readable().await),
        None => std::future::pending().await,
    }
}
