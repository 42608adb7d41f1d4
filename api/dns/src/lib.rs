//! The authoritative name server of a zone, over a snapshot of routes.
//!
//! Every app of a zone is reached through a gateway, so the zone's data is small: which names exist, and what owners set beside, is asked of
//! [`hearth_types::routes::RouteLookup`] with each query, and every hostname has the addresses of the gateways nearest to who asks.
//!
//! # What a resolver sees
//!
//! | the question | the answer |
//! |---|---|
//! | A, AAAA of a route's hostname, of the apex, of `api.<zone>`, `relay.api.<zone>` and `ns1.<zone>` | gateways' addresses of that family, AA |
//! | A, AAAA of a route's hostname whose device is published at public addresses, and answers there | those of that family; A of one that has IPv6 alone, the gateways' |
//! | A, AAAA, CNAME, TXT, SRV, CAA, HTTPS that an owner set | the records; a CNAME is followed inside the zone |
//! | a name that does not exist below one with a wildcard (RFC 4592) | what the wildcard has |
//! | A, AAAA of `<name>.lan.<owner>.<zone>` | addresses inside the home, where its owner lets them be told |
//! | SOA, NS of the apex | the records, with `ns1`'s addresses beside NS |
//! | DNSKEY, CDS, CDNSKEY of the apex | the keys that sign, and what is asked of the parent |
//! | another type of such a name, or a family that the gateways lack | NOERROR without an answer, the SOA in authority (RFC 2308 section 2.2) |
//! | a name that only has names below it (`<owner>.<zone>`) | the same (RFC 8020) |
//! | any other name of the zone | NXDOMAIN, the SOA in authority (RFC 2308 section 2.1) |
//! | ANY | one RRset of the name (RFC 8482 section 4.1) |
//! | a name outside the zone, a class other than IN, AXFR, IXFR | REFUSED |
//! | an opcode other than QUERY, a meta type | NOTIMP |
//! | an EDNS version other than 0 | BADVERS (RFC 6891 section 6.1.3) |
//! | a message that cannot be read, or without exactly one question (RFC 9619); a malformed cookie or client subnet | FORMERR |
//! | a response, or less than a header | nothing |
//!
//! With DO set, answers are signed by ECDSA P-256 (RFC 6605) where there are keys, and what does not exist is denied by one NSEC at the very name
//! (RFC 9824): its code is then NOERROR, or NXDOMAIN where the query says that it knows (CO).
//!
//! # Guarantees
//!
//! - A change of routes, records, keys or gateways is visible in the next answer: nothing but signatures is cached here.
//! - The question is returned byte for byte, so that a resolver's mixed case (0x20) comes back; lookups ignore case.
//! - Memory and time for each query, connection and client are bounded by the constants of [`limits`].
//! - No bytes from outside end the server.
//! - Answers over UDP to one network are limited by rate, in all and for each name, since sources can be forged; some of what is beyond is asked
//!   to come over TCP, or given a cookie. Whoever shows a good cookie (RFC 7873, RFC 9018) is not limited.
//! - An answer by the client's subnet (RFC 7871) says for which prefix it is. Only gateways that answer are told of, unless none does.
//! - Until the routes are known, a name that is not found gets SERVFAIL: nobody is told that a name does not exist which does.
//!
//! # Caveats
//!
//! A UDP socket on the unspecified address answers from the address that the kernel's routing picks: a machine with
//! several addresses should listen on the one that its clients ask.

pub mod decoders;
pub mod limits;

mod config;
mod cookie;
mod dnssec;
mod edns;
mod error;
mod external;
mod gateways;
mod location;
mod message;
mod metrics;
mod rate;
mod resolver;
mod rrset;
mod server;
mod tcp;
mod udp;
mod zone;

pub use config::DnsConfig;
pub use dnssec::{KeyError, Keys};
pub use error::DnsError;
pub use external::{Answering, watch_external};
pub use gateways::{Candidate, Gateway, watch_health};
pub use location::{Locate, Located, LocationError, Nowhere, PrefixTable};
pub use message::{Answerer, Asking, Outcome, Rcode, Silence, Transport};
pub use resolver::Resolver;
pub use server::DnsServer;
pub use zone::Zone;
