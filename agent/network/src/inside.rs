//! Sockets of a pod's network namespace: connections to what listens on its loopback, and datagrams from within.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::host::enter;
use crate::{Network, NetworkError};

/// How long a program may take to accept: within a machine only one that does not accept at all takes any time.
const CONNECT_BOUND: Duration = Duration::from_secs(10);

impl Network {
    /// Connects to a TCP port of 127.0.0.1, else of ::1, of the pod with this network namespace.
    ///
    /// # Guarantees
    /// What comes out is a socket of that namespace: nothing of the host is reached, whatever listens there.
    pub async fn connect_inside(&self, netns: OwnedFd, port: u16) -> Result<TcpStream, NetworkError> {
        let made = self.host().run("make sockets in a pod's network", move || {
            enter(&netns)?;
            let of = |family| {
                let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
                socket_with(family, SocketType::STREAM, flags, None).map_err(io::Error::from)
            };
            Ok([of(AddressFamily::INET), of(AddressFamily::INET6)])
        });
        let mut failed = Vec::new();
        let loopbacks = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        for (socket, ip) in made.await?.into_iter().zip(loopbacks) {
            let connected = async {
                // The kernel's socket as it is: the type of the standard library names one that is to be connected.
                let socket = TcpSocket::from_std_stream(std::net::TcpStream::from(socket?));
                match timeout(CONNECT_BOUND, socket.connect(SocketAddr::new(ip, port))).await {
                    Ok(connected) => connected,
                    Err(_) => Err(io::ErrorKind::TimedOut.into()),
                }
            };
            match connected.await {
                Ok(stream) => return Ok(stream),
                Err(error) => failed.push(format!("{ip}: {error}")),
            }
        }
        Err(NetworkError::Inside { port, why: failed.join("; ") })
    }

    /// A UDP socket of the pod with this network namespace, connected to an address of that pod.
    ///
    /// # Guarantees
    /// The app sees one sender with the pod's own address. Neither firewall has to let answers out: they never leave the pod. While the
    /// socket is open the namespace lives on.
    pub async fn datagrams_inside(&self, netns: OwnedFd, to: SocketAddr) -> Result<UdpSocket, NetworkError> {
        let made = self.host().run("make sockets in a pod's network", move || {
            enter(&netns)?;
            let unspecified =
                if to.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
            let connected = || {
                let socket = std::net::UdpSocket::bind((unspecified, 0))?;
                socket.connect(to)?;
                socket.set_nonblocking(true)?;
                Ok(socket)
            };
            Ok(connected())
        });
        made.await?
            .and_then(UdpSocket::from_std)
            .map_err(|error: io::Error| NetworkError::Inside { port: to.port(), why: format!("{}: {error}", to.ip()) })
    }
}
