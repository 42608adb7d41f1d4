//! A small internet with homes behind routers of every kind.
//!
//! ```text
//!   server 198.51.100.2 ┐                     ┌ router 203.0.113.(n) ── home 192.168.(n).10
//!   relays 198.51.100.x ┤                     │
//!                  internet (forwards) ───────┤
//!   cafe   192.0.2.2    ┘                     └ carrier 100.64.(n).0/24 ── router ── home
//! ```
//!
//! Every part is a network namespace; routers are nftables rules. What a router is believed to do is measured by [`Behaviour::measure`],
//! which knows nothing of the rules.

use std::{
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::netns::Netns;

/// How long a probe's packet may be under way: a namespace is some microseconds away.
const PROBE: Duration = Duration::from_millis(400);
/// What is sent to find out: any datagram.
const QUESTION: &[u8] = b"who am I";

/// How a router maps and filters (RFC 4787), and what it lets out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// No router: the home has an address of the internet.
    Public,
    /// Whoever sends to the outside port reaches the inside: endpoint-independent mapping and filtering.
    FullCone,
    /// Who was sent to from the inside, from any port of theirs: address-dependent filtering.
    RestrictedCone,
    /// Who was sent to from the inside, from that very port: address and port-dependent filtering. What most homes have.
    PortRestricted,
    /// Another outside port for each destination.
    Symmetric,
    /// Two port-restricted routers in a row.
    Double,
    /// A port-restricted router behind a carrier's symmetric one, with addresses of RFC 6598 in between.
    CarrierGrade,
    /// No UDP gets out but to port 53.
    UdpBlocked,
    /// TCP to port 443 gets out, and nothing else.
    Only443,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Public,
        Self::FullCone,
        Self::RestrictedCone,
        Self::PortRestricted,
        Self::Symmetric,
        Self::Double,
        Self::CarrierGrade,
        Self::UdpBlocked,
        Self::Only443,
    ];

    /// What it must look like from inside.
    pub fn behaviour(self) -> Behaviour {
        use Filtering::{AddressAndPort, AddressDependent, Independent};
        let (mapping, filtering) = match self {
            Self::Public | Self::FullCone => (Mapping::Independent, Independent),
            Self::RestrictedCone => (Mapping::Independent, AddressDependent),
            Self::PortRestricted | Self::Double => (Mapping::Independent, AddressAndPort),
            Self::Symmetric | Self::CarrierGrade => (Mapping::Dependent, AddressAndPort),
            Self::UdpBlocked | Self::Only443 => return Behaviour::Blocked,
        };
        Behaviour::Open { mapping, filtering }
    }

    /// Whether two ends of these kinds can find a direct path by hole punching: each has to know the port by which the other lets it in, or
    /// has to let it in by any.
    pub fn can_be_direct(self, other: Self) -> bool {
        let one_way = |from: Behaviour, to: Behaviour| match (from, to) {
            (Behaviour::Open { mapping, .. }, Behaviour::Open { filtering, .. }) => {
                // A port that nobody can foresee passes only where ports do not matter.
                mapping == Mapping::Independent || filtering != Filtering::AddressAndPort
            }
            _ => false,
        };
        let (one, other) = (self.behaviour(), other.behaviour());
        one_way(one, other) && one_way(other, one)
    }

    fn rules(self) -> Option<&'static str> {
        // Nothing comes in that nobody inside asked for, as at home; nor to the router itself, whose refusals would take ports.
        const MASQUERADE: &str = "table ip home {
            chain out { type nat hook postrouting priority srcnat; oifname wan masquerade; }
            chain in { type filter hook input priority filter; iifname wan ct state new drop; }
            chain through { type filter hook forward priority filter; iifname wan ct state new drop; }
        }";
        match self {
            Self::Public => None,
            // The one inside has every port, so that whatever comes to one is for it; its ports are kept on the way out.
            Self::FullCone => Some(
                "table ip home {
            chain out { type nat hook postrouting priority srcnat; oifname wan masquerade; }
            chain back { type nat hook prerouting priority dstnat; iifname wan udp dport 1024-65535 dnat to @HOME@; }
        }",
            ),
            // The same, for those to whom something was sent.
            Self::RestrictedCone => Some(
                "table ip home {
            set asked { type ipv4_addr; flags dynamic, timeout; timeout 60s; }
            chain note { type filter hook forward priority filter; oifname wan meta l4proto udp update @asked { ip daddr }; }
            chain out { type nat hook postrouting priority srcnat; oifname wan masquerade; }
            chain back { type nat hook prerouting priority dstnat; iifname wan ip saddr @asked udp dport 1024-65535 dnat to @HOME@; }
            chain in { type filter hook input priority filter; iifname wan ct state new drop; }
        }",
            ),
            Self::PortRestricted | Self::Double => Some(MASQUERADE),
            Self::Symmetric | Self::CarrierGrade => Some(
                "table ip home {
            chain out { type nat hook postrouting priority srcnat; oifname wan masquerade fully-random; }
            chain in { type filter hook input priority filter; iifname wan ct state new drop; }
            chain through { type filter hook forward priority filter; iifname wan ct state new drop; }
        }",
            ),
            Self::UdpBlocked => Some(
                "table ip home {
            chain out { type nat hook postrouting priority srcnat; oifname wan masquerade; }
            chain in { type filter hook input priority filter; iifname wan ct state new drop; }
            chain through { type filter hook forward priority filter; iifname wan ct state new drop;
                oifname wan udp dport != 53 drop; }
        }",
            ),
            Self::Only443 => Some(
                "table ip home {
            chain out { type nat hook postrouting priority srcnat; oifname wan masquerade; }
            chain in { type filter hook input priority filter; iifname wan ct state new drop; }
            chain through { type filter hook forward priority filter; iifname wan ct state new drop;
                oifname wan tcp dport != 443 drop; oifname wan meta l4proto != tcp drop; }
        }",
            ),
        }
    }
}

/// Whether the outside port depends on who is sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// One port for all.
    Independent,
    /// One for each destination.
    Dependent,
}

/// Who may answer to the outside port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filtering {
    /// Everybody.
    Independent,
    /// Those that were sent to.
    AddressDependent,
    /// Those that were sent to, from the port that was sent to.
    AddressAndPort,
}

/// What a home's line does with UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// It lets none through.
    Blocked,
    /// It lets some through.
    Open {
        /// How ports are mapped.
        mapping: Mapping,
        /// Who may come in.
        filtering: Filtering,
    },
}

impl Behaviour {
    /// Finds out from inside a home, as RFC 5780 has it: one socket there asks at two addresses, and is answered from those and from others.
    pub fn measure(home: &Netns, internet: &Internet) -> Result<Self> {
        let inside = socket_in(home, SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0))?;
        let here = |host: u8, port| socket_in(&internet.probes, SocketAddrV4::new(probe(host), port));
        let (first, same_host, second) = (here(10, 3478)?, here(10, 3479)?, here(11, 3478)?);
        let Some(seen) = ask(&inside, &first)? else { return Ok(Self::Blocked) };
        // From another port of the first, and from a host that was never sent to: before anything is sent to either.
        let stranger = here(12, 3478)?;
        let from_stranger = reaches(&stranger, seen, &inside)?;
        let from_other_port = reaches(&same_host, seen, &inside)?;
        let other = ask(&inside, &second)?.context("the second probe is not reached where the first one is")?;
        let filtering = match (from_stranger, from_other_port) {
            (true, _) => Filtering::Independent,
            (false, true) => Filtering::AddressDependent,
            (false, false) => Filtering::AddressAndPort,
        };
        let mapping = if seen == other { Mapping::Independent } else { Mapping::Dependent };
        Ok(Self::Open { mapping, filtering })
    }
}

/// The address by which a socket inside is seen at another; `None` where nothing arrives.
fn ask(inside: &UdpSocket, at: &UdpSocket) -> Result<Option<SocketAddr>> {
    inside.send_to(QUESTION, at.local_addr()?).map(drop).or_else(no_way)?;
    receive(at)
}

fn reaches(from: &UdpSocket, seen: SocketAddr, inside: &UdpSocket) -> Result<bool> {
    from.send_to(QUESTION, seen).map(drop).or_else(no_way)?;
    Ok(receive(inside)?.is_some())
}

/// A router that refuses says so; that is an answer too.
fn no_way(error: std::io::Error) -> std::io::Result<()> {
    use std::io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable, PermissionDenied};
    match error.kind() {
        ConnectionRefused | HostUnreachable | NetworkUnreachable | PermissionDenied => Ok(()),
        _ => Err(error),
    }
}

fn receive(socket: &UdpSocket) -> Result<Option<SocketAddr>> {
    socket.set_read_timeout(Some(PROBE))?;
    let mut buffer = [0; 64];
    match socket.recv_from(&mut buffer) {
        Ok((length, from)) => {
            ensure!(&buffer[..length] == QUESTION, "somebody else speaks to the probe: {from}");
            Ok(Some(from))
        }
        Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => Ok(None),
        Err(error) => no_way(error).map(|()| None).map_err(Into::into),
    }
}

/// Probes live here.
fn probe(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 51, 101, host)
}

/// The part in the middle, which forwards, and the probes.
pub struct Internet {
    /// Where packets pass.
    pub netns: Netns,
    probes: Netns,
}

impl Internet {
    /// With nobody in it yet.
    pub fn new() -> Result<Self> {
        let (netns, probes) = (Netns::new("inet")?, Netns::new("probe")?);
        netns.run("sysctl -qw net.ipv4.ip_forward=1")?;
        let addresses = ["198.51.101.10/24", "198.51.101.11/24", "198.51.101.12/24"];
        netns.link("probes", &["198.51.101.1/24"], &probes, "eth0", &addresses)?;
        probes.run("ip route add default via 198.51.101.1")?;
        Ok(Self { netns, probes })
    }

    /// Somebody with an address of their own, `198.51.(net).2`.
    pub fn host(&self, name: &str, net: u8) -> Result<Host> {
        let netns = Netns::new(name)?;
        let (here, there) = (format!("198.51.{net}.1"), format!("198.51.{net}.2"));
        let device = format!("h{net}");
        self.netns.link(&device, &[&format!("{here}/24")], &netns, "eth0", &[&format!("{there}/24")])?;
        netns.run(&format!("ip route add default via {here}"))?;
        Ok(Host { netns, address: there, device })
    }

    /// A home behind a line of a kind; `number` tells homes apart.
    pub fn home(&self, kind: Kind, number: u8) -> Result<Home> {
        let home = Netns::new("home")?;
        let device = format!("w{number}");
        let (gate, wan) = (format!("203.0.{number}.1"), format!("203.0.{number}.2"));
        if kind == Kind::Public {
            self.netns.link(&device, &[&format!("{gate}/24")], &home, "eth0", &[&format!("{wan}/24")])?;
            home.run(&format!("ip route add default via {gate}"))?;
            return Ok(Home { netns: home, routers: Vec::new(), device, kind });
        }
        let (lan, inside) = (format!("192.168.{number}.1"), format!("192.168.{number}.10"));
        let outer = self.router(&device, &gate, &wan)?;
        let mut routers = vec![outer];
        if matches!(kind, Kind::Double | Kind::CarrierGrade) {
            // The line in between, on which the second router has an address that is not of the internet.
            let (carrier, customer) = (format!("100.64.{number}.1"), format!("100.64.{number}.2"));
            let inner = Netns::new("inner")?;
            inner.run("sysctl -qw net.ipv4.ip_forward=1")?;
            routers[0].link("lan", &[&format!("{carrier}/24")], &inner, "wan", &[&format!("{customer}/24")])?;
            inner.run(&format!("ip route add default via {carrier}"))?;
            inner.nft(Kind::PortRestricted.rules().context("rules")?)?;
            routers.push(inner);
        }
        let last = routers.last().context("a router")?;
        last.link("lan", &[&format!("{lan}/24")], &home, "eth0", &[&format!("{inside}/24")])?;
        home.run(&format!("ip route add default via {lan}"))?;
        routers[0].nft(&kind.rules().context("rules")?.replace("@HOME@", &inside))?;
        Ok(Home { netns: home, routers, device, kind })
    }

    fn router(&self, device: &str, gate: &str, wan: &str) -> Result<Netns> {
        let router = Netns::new("rtr")?;
        self.netns.link(device, &[&format!("{gate}/24")], &router, "wan", &[&format!("{wan}/24")])?;
        router.run(&format!("ip route add default via {gate}"))?;
        router.run("sysctl -qw net.ipv4.ip_forward=1")?;
        Ok(router)
    }

    /// Loses this share of all packets that pass, in percent.
    pub fn lose(&self, percent: u8) -> Result<()> {
        self.netns.nft(&format!(
            "table ip loss {{ chain through {{ type filter hook forward priority filter; numgen random mod 100 < {percent} drop; }}\n}}"
        ))
    }

    /// Loses every packet to and from an address, without a word.
    pub fn vanish(&self, address: &str) -> Result<()> {
        self.netns.nft(&format!(
            "table ip gone {{ chain through {{ type filter hook forward priority filter; ip saddr {address} drop; ip daddr {address} drop; }}\n}}"
        ))
    }
}

/// A socket that lives in a namespace.
fn socket_in(netns: &Netns, address: SocketAddrV4) -> Result<UdpSocket> {
    let file = netns.file()?;
    // A thread's namespace ends with it; the socket stays where it was made.
    let made = std::thread::spawn(move || -> Result<UdpSocket> {
        rustix::thread::move_into_link_name_space(
            std::os::fd::AsFd::as_fd(&file),
            Some(rustix::thread::LinkNameSpaceType::Network),
        )?;
        Ok(UdpSocket::bind(address)?)
    });
    made.join().map_err(|_| anyhow::anyhow!("the probe's thread panicked"))?
}

/// Somebody with an address of the internet.
pub struct Host {
    /// Where it lives.
    pub netns: Netns,
    /// Its address.
    pub address: String,
    /// Its link at the internet's end.
    pub device: String,
}

/// A home, its routers from the outer to the inner, and its line.
pub struct Home {
    /// Where devices live.
    pub netns: Netns,
    /// On the way out, the outer one first.
    pub routers: Vec<Netns>,
    /// The line, at the internet's end.
    pub device: String,
    /// What line it has.
    pub kind: Kind,
}
