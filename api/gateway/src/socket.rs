//! A UDP socket that knows which of the machine's addresses was called, and answers from that one: callers take no answer from another.

use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr},
};

use nix::sys::socket::{setsockopt, sockopt::Ipv6DontFrag};
use noq_udp::{RecvMeta, Transmit, UdpSocketState};
use rustix::net::sockopt::{Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover};
use tokio::{io::Interest, net::UdpSocket};

/// What the kernel hands out at once: several datagrams of one sender (GRO), or a long one.
pub(crate) const RECEIVE_BYTES: usize = 64 * 1024;

#[derive(Debug)]
pub(crate) struct Socket {
    io: UdpSocket,
    state: UdpSocketState,
}

/// Datagrams of one sender.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Received {
    /// Who sent them.
    pub(crate) from: SocketAddr,
    /// The address of this machine that they came to.
    pub(crate) to: Option<IpAddr>,
    /// Bytes of all of them.
    pub(crate) length: usize,
    /// Bytes of each but the last; at least 1.
    pub(crate) stride: usize,
}

impl Socket {
    pub(crate) async fn bind(address: SocketAddr) -> io::Result<Self> {
        let io = UdpSocket::bind(address).await?;
        let state = UdpSocketState::new((&io).into())?;
        // The crate is made for QUIC, which never has its packets fragmented. What is carried here was made for a network that does.
        set_ip_mtu_discover(&io, Ipv4PathMtuDiscovery::WANT)?;
        if address.is_ipv6() {
            set_ipv6_mtu_discover(&io, Ipv6PathMtuDiscovery::WANT)?;
            setsockopt(&io, Ipv6DontFrag, &false)?;
        }
        Ok(Self { io, state })
    }

    /// What comes next, put at the buffer's begin.
    pub(crate) async fn receive(&self, buffer: &mut [u8]) -> io::Result<Received> {
        let mut meta = [RecvMeta::default()];
        let receive = || self.state.recv((&self.io).into(), &mut [IoSliceMut::new(buffer)], &mut meta).map(drop);
        self.io.async_io(Interest::READABLE, receive).await?;
        let [RecvMeta { addr, dst_ip, len, stride, .. }] = meta;
        Ok(Received { from: addr, to: dst_ip, length: len, stride: stride.max(1) })
    }

    /// Sends a datagram from the address that was called.
    pub(crate) async fn send(&self, to: SocketAddr, from: Option<IpAddr>, contents: &[u8]) -> io::Result<()> {
        let transmit = Transmit { destination: to, ecn: None, contents, segment_size: None, src_ip: from };
        self.io.async_io(Interest::WRITABLE, || self.state.try_send((&self.io).into(), &transmit)).await
    }
}
