//! What a query's OPT record says (RFC 6891), and what its answer's says back. Pure.

use std::net::IpAddr;

use hickory_proto::{
    op::Edns,
    rr::rdata::opt::{ClientSubnet, EdnsCode, EdnsOption},
};

use crate::{
    cookie::{Cookies, Shown},
    limits,
};

/// The number of the COOKIE option (RFC 7873).
const COOKIE: u16 = 10;
/// "Compact answers OK" among the flags (RFC 9824 section 5.1).
const COMPACT_OK: u16 = 0x4000;

/// What a query says beside its question.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    /// Bytes of an answer over UDP at most.
    pub(crate) payload: u16,
    /// Whether it wants signatures (RFC 3225).
    pub(crate) dnssec: bool,
    /// Whether it knows "there is no such name" from a signed answer's content, and wants its code all the same (RFC 9824).
    pub(crate) compact: bool,
    pub(crate) cookie: Shown,
    /// Where the client of the resolver is (RFC 7871).
    pub(crate) subnet: Option<ClientSubnet>,
}

/// The options cannot be read: FORMERR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

impl Asked {
    /// Reads the OPT of a query of version 0. `now` is in seconds.
    pub(crate) fn read(edns: &Edns, cookies: &Cookies, ip: IpAddr, now: i64) -> Result<Self, Malformed> {
        let options = edns.options();
        // RFC 7873 section 5.2: of several, the first counts.
        let cookie = options.as_ref().iter().find_map(|(_, option)| match option {
            EdnsOption::Unknown(COOKIE, data) => Some(&**data),
            _ => None,
        });
        let subnet = match options.get(EdnsCode::Subnet) {
            Some(EdnsOption::Subnet(subnet)) => Some(*subnet),
            _ => None,
        };
        if subnet.is_some_and(|subnet| !well_formed(&subnet)) {
            return Err(Malformed);
        }
        Ok(Self {
            payload: edns.max_payload().clamp(limits::PLAIN_PAYLOAD, limits::EDNS_PAYLOAD),
            dnssec: edns.flags().dnssec_ok,
            compact: edns.flags().z & COMPACT_OK != 0,
            cookie: cookies.read(cookie, ip, now).map_err(|_| Malformed)?,
            subnet,
        })
    }

    /// Whose place decides which gateways are nearest, and how many bits of it are known.
    pub(crate) fn client(subnet: Option<ClientSubnet>, resolver: IpAddr) -> (IpAddr, u8) {
        match subnet.filter(|subnet| subnet.source_prefix() > 0) {
            Some(subnet) => (subnet.addr(), subnet.source_prefix()),
            None => (resolver.to_canonical(), u8::MAX),
        }
    }
}

/// RFC 7871 section 6 and 7.1.2: a query's scope is 0, and no bit behind its prefix is set.
fn well_formed(subnet: &ClientSubnet) -> bool {
    let (bits, most) = match subnet.addr() {
        IpAddr::V4(ip) => (u128::from(ip.to_bits()) << 96, 32),
        IpAddr::V6(ip) => (ip.to_bits(), 128),
    };
    let source = subnet.source_prefix();
    subnet.scope_prefix() == 0 && source <= most && bits.checked_shl(u32::from(source)).unwrap_or(0) == 0
}

/// The OPT of an answer. `asked` is `None` where the query's could not be read.
pub(crate) fn answer(asked: Option<&Asked>, dnssec: bool, scope: u8, cookie: Option<Vec<u8>>) -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(limits::EDNS_PAYLOAD);
    // RFC 3225 section 3: "the DO bit of the query MUST be copied in the response".
    edns.set_dnssec_ok(dnssec);
    if let Some(cookie) = cookie {
        edns.options_mut().insert(EdnsOption::Unknown(COOKIE, cookie));
    }
    if let Some(subnet) = asked.and_then(|asked| asked.subnet) {
        let scope = if subnet.source_prefix() == 0 { 0 } else { scope };
        let told = ClientSubnet::new(subnet.addr(), subnet.source_prefix(), scope);
        edns.options_mut().insert(EdnsOption::Subnet(told));
    }
    edns
}
