//! The authoritative name server of a zone, over a snapshot of routes.
//!
//! Every app of a zone is reached through the gateway, so the zone's data is small: which names exist is asked of
//! [`hearth_types::routes::RouteLookup`] with each query, and every name that exists has the gateway's addresses.
//!
//! # What a resolver sees
//!
//! | the question | the answer |
//! |---|---|
//! | A, AAAA of a route's hostname, of the apex, of `api.<zone>` and `ns1.<zone>` | the gateway's addresses of that family, AA |
//! | SOA, NS of the apex | the records, with `ns1`'s addresses beside NS |
//! | another type of such a name, or a family that the gateway lacks | NOERROR without an answer, the SOA in authority (RFC 2308 section 2.2) |
//! | a name that only has names below it (`<owner>.<zone>`) | the same (RFC 8020) |
//! | any other name of the zone | NXDOMAIN, the SOA in authority (RFC 2308 section 2.1) |
//! | ANY | one RRset of the name (RFC 8482 section 4.1) |
//! | a name outside the zone, a class other than IN, AXFR, IXFR | REFUSED |
//! | an opcode other than QUERY, a meta type | NOTIMP |
//! | an EDNS version other than 0 | BADVERS (RFC 6891 section 6.1.3) |
//! | a message that cannot be read, or without exactly one question (RFC 9619) | FORMERR |
//! | a response, or less than a header | nothing |
//!
//! # Guarantees
//!
//! - A change of the routes is visible in the next answer: nothing is cached here.
//! - The question is returned byte for byte, so that a resolver's mixed case (0x20) comes back; lookups ignore case.
//! - Memory and time for each query, connection and client are bounded by the constants of [`limits`].
//! - No bytes from outside end the server.
//! - Answers over UDP to one network are limited by rate, since sources can be forged; some of what is beyond is asked to come over TCP.
//! - Until the routes are known, a name that is not found gets SERVFAIL: nobody is told that a name does not exist which does.
//!
//! # Caveats
//!
//! A UDP socket on the unspecified address answers from the address that the kernel's routing picks: a machine with
//! several addresses should listen on the one that its clients ask.

pub mod limits;

mod config;
mod cookie;
mod dnssec;
mod edns;
mod error;
mod gateways;
mod location;
mod message;
mod metrics;
mod rate;
mod rrset;
mod server;
mod slots;
mod tcp;
mod udp;
mod zone;

pub use config::DnsConfig;
pub use dnssec::{KeyError, Keys};
pub use error::DnsError;
pub use gateways::{Candidate, Gateway, watch_health};
pub use location::{Locate, Located, LocationError, Nowhere, PrefixTable};
pub use message::{Answerer, Asking, Outcome, Rcode, Silence, Transport};
pub use server::DnsServer;
pub use zone::Zone;
