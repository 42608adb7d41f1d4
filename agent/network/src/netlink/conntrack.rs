//! As much of connection tracking as Services need (`include/uapi/linux/netfilter/nfnetlink_conntrack.h`): which flows there are, and
//! that one is to be forgotten.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::socket::{Protocol, Socket};
use super::{Batch, NLA_F_NESTED, NLM_F_ACK, attributes};

const NFNL_SUBSYS_CTNETLINK: u16 = 1;
const IPCTNL_MSG_CT_NEW: u16 = NFNL_SUBSYS_CTNETLINK << 8;
const IPCTNL_MSG_CT_GET: u16 = IPCTNL_MSG_CT_NEW + 1;
const IPCTNL_MSG_CT_DELETE: u16 = IPCTNL_MSG_CT_NEW + 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
/// Length of `struct nfgenmsg`.
const NFGENMSG: usize = 4;
/// Requests in one datagram: an answer a request must fit into the socket's receive buffer (208 KiB by default).
const DELETIONS_A_BATCH: usize = 64;

/// One direction of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Direction {
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) protocol: u8,
}

/// A flow, as its first packet was and as its replies are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Flow {
    pub(crate) original: Direction,
    pub(crate) reply: Direction,
    /// How the kernel calls it: `nfgenmsg`'s family, and the original direction's attributes.
    family: u8,
    tuple: Vec<u8>,
}

/// The flows of TCP, UDP and the like of both families in the calling thread's namespace, of which `wanted` is true.
pub(crate) fn flows(wanted: impl Fn(&Flow) -> bool) -> io::Result<Vec<Flow>> {
    let socket = Socket::open(Protocol::Netfilter, 0)?;
    let mut all = Vec::new();
    for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
        let read = |payload: &[u8]| parse(payload).filter(&wanted);
        all.extend(socket.dump(IPCTNL_MSG_CT_GET, &[family, 0, 0, 0], IPCTNL_MSG_CT_NEW, read)?);
    }
    Ok(all)
}

/// Has the kernel forget flows: the next packet of each is a new one's. One that is gone already is fine.
pub(crate) fn forget(flows: &[Flow]) -> io::Result<()> {
    let socket = Socket::open(Protocol::Netfilter, 0)?;
    for chunk in flows.chunks(DELETIONS_A_BATCH) {
        let mut batch = Batch::new();
        for flow in chunk {
            batch.push("forget a flow", IPCTNL_MSG_CT_DELETE, NLM_F_ACK, &[flow.family, 0, 0, 0], |a| {
                a.bytes(CTA_TUPLE_ORIG | NLA_F_NESTED, &flow.tuple);
            });
        }
        for answer in socket.transact(&batch)? {
            match answer {
                Err(error) if error.raw_os_error() != Some(libc::ENOENT) => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}

fn parse(payload: &[u8]) -> Option<Flow> {
    let (mut original, mut reply) = (None, None);
    for (kind, value) in attributes(payload.get(NFGENMSG..)?) {
        match kind {
            CTA_TUPLE_ORIG => original = Some(value),
            CTA_TUPLE_REPLY => reply = Some(value),
            _ => {}
        }
    }
    let tuple = original?;
    Some(Flow {
        original: direction(tuple)?,
        reply: direction(reply?)?,
        family: *payload.first()?,
        tuple: tuple.to_vec(),
    })
}

/// `None` of what has no ports.
fn direction(tuple: &[u8]) -> Option<Direction> {
    let (mut from, mut to, mut protocol, mut from_port, mut to_port) = (None, None, None, None, None);
    let port = |value: &[u8]| value.try_into().ok().map(u16::from_be_bytes);
    for (kind, value) in attributes(tuple) {
        for (inner, value) in attributes(value) {
            match (kind, inner) {
                (CTA_TUPLE_IP, CTA_IP_V4_SRC | CTA_IP_V6_SRC) => from = address(value),
                (CTA_TUPLE_IP, CTA_IP_V4_DST | CTA_IP_V6_DST) => to = address(value),
                (CTA_TUPLE_PROTO, CTA_PROTO_NUM) => protocol = value.first().copied(),
                (CTA_TUPLE_PROTO, CTA_PROTO_SRC_PORT) => from_port = port(value),
                (CTA_TUPLE_PROTO, CTA_PROTO_DST_PORT) => to_port = port(value),
                _ => {}
            }
        }
    }
    let (from, to) = (SocketAddr::new(from?, from_port?), SocketAddr::new(to?, to_port?));
    Some(Direction { from, to, protocol: protocol? })
}

fn address(value: &[u8]) -> Option<IpAddr> {
    let v4 = || <[u8; 4]>::try_from(value).ok().map(|octets| Ipv4Addr::from(octets).into());
    v4().or_else(|| <[u8; 16]>::try_from(value).ok().map(|octets| Ipv6Addr::from(octets).into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::messages;
    use proptest::prelude::*;

    #[test]
    fn a_flow_reads_back() {
        let mut batch = Batch::new();
        batch.push("x", IPCTNL_MSG_CT_NEW, 0, &[libc::AF_INET as u8, 0, 0, 0], |a| {
            for (kind, from, to, ports) in [
                (CTA_TUPLE_ORIG, [10, 0, 0, 1], [10, 9, 0, 1], (9, 53)),
                (CTA_TUPLE_REPLY, [10, 0, 0, 2], [10, 9, 0, 3], (5353, 9)),
            ] {
                a.nest(kind, &[], |a| {
                    a.nest(CTA_TUPLE_IP, &[], |a| {
                        a.bytes(CTA_IP_V4_SRC, &from).bytes(CTA_IP_V4_DST, &to);
                    });
                    a.nest(CTA_TUPLE_PROTO, &[], |a| {
                        let (from, to): (u16, u16) = ports;
                        a.u8(CTA_PROTO_NUM, 17);
                        a.bytes(CTA_PROTO_SRC_PORT, &from.to_be_bytes()).bytes(CTA_PROTO_DST_PORT, &to.to_be_bytes());
                    });
                });
            }
        });
        let flow = messages(batch.bytes()).next().and_then(|message| parse(message.payload)).expect("a flow");
        let at = |text: &str| text.parse().expect("an address");
        assert_eq!(flow.original, Direction { from: at("10.0.0.1:9"), to: at("10.9.0.1:53"), protocol: 17 });
        assert_eq!(flow.reply, Direction { from: at("10.0.0.2:5353"), to: at("10.9.0.3:9"), protocol: 17 });
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }
    }
}
