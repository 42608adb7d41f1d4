//! Queries in datagrams: several are taken at once, and each is answered from the address of this machine that was asked.
//! From another one, nobody takes an answer (RFC 5452, section 9.1); where the kernel chose, it would be the first of the interface's.

use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr},
};

use nix::sys::socket::{setsockopt, sockopt::UdpGroSegment};
use noq_udp::{RecvMeta, Transmit, UdpSocketState};
use rustix::net::sockopt::{Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover};
use tokio::{io::Interest, net::UdpSocket};

use crate::{Transport, limits, server::Responder};

/// A socket that knows which of the machine's addresses was asked.
#[derive(Debug)]
pub(crate) struct Socket {
    io: UdpSocket,
    state: UdpSocketState,
}

impl Socket {
    pub(crate) async fn bind(address: SocketAddr) -> io::Result<Self> {
        let io = UdpSocket::bind(address).await?;
        let state = UdpSocketState::new((&io).into())?;
        // The crate is made for QUIC. Here datagrams are taken one by one, however many of them came alike,
        setsockopt(&io, UdpGroSegment, &false)?;
        // and no word of a path's size is believed, since it may be forged to have answers cut into fragments, which are easy to forge too.
        set_ip_mtu_discover(&io, Ipv4PathMtuDiscovery::OMIT)?;
        if address.is_ipv6() {
            set_ipv6_mtu_discover(&io, Ipv6PathMtuDiscovery::OMIT)?;
        }
        Ok(Self { io, state })
    }

    async fn receive(&self, buffers: &mut [IoSliceMut<'_>], metas: &mut [RecvMeta]) -> io::Result<usize> {
        self.io.async_io(Interest::READABLE, || self.state.recv((&self.io).into(), buffers, metas)).await
    }

    async fn send(&self, to: SocketAddr, from: Option<IpAddr>, contents: &[u8]) -> io::Result<()> {
        let transmit = Transmit { destination: to, ecn: None, contents, segment_size: None, src_ip: from };
        self.io.async_io(Interest::WRITABLE, || self.state.try_send((&self.io).into(), &transmit)).await
    }
}

/// Answers datagrams for ever. Several tasks may read one socket.
pub(crate) async fn serve(socket: &Socket, responder: &Responder) {
    let mut memory = vec![0; limits::UDP_BATCH * limits::MAX_QUERY];
    let mut metas = [RecvMeta::default(); limits::UDP_BATCH];
    loop {
        let mut buffers: Vec<_> = memory.chunks_mut(limits::MAX_QUERY).map(IoSliceMut::new).collect();
        let received = match socket.receive(&mut buffers, &mut metas).await {
            Ok(received) => received,
            Err(error) => {
                tracing::warn!(%error, "cannot receive DNS queries over UDP; trying again");
                tokio::time::sleep(limits::ERROR_PAUSE).await;
                continue;
            }
        };
        for (RecvMeta { addr: source, dst_ip, len, .. }, buffer) in metas.iter().zip(&buffers).take(received) {
            // Nobody can receive at port 0.
            if source.port() == 0 {
                continue;
            }
            let Some(answer) = responder.respond(&buffer[..*len], Transport::Udp, source.ip()) else { continue };
            if let Err(error) = socket.send(*source, *dst_ip, &answer).await {
                // Whoever forges addresses that have no route makes these, so they are no news.
                tracing::debug!(%error, %source, "cannot send a DNS answer over UDP");
                responder.metrics.unsent.inc();
            }
        }
    }
}
