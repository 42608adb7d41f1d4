//! From the bytes of a query to the bytes of its answer. Pure.

use std::net::{Ipv4Addr, SocketAddr};

use hearth_types::routes::RouteLookup;
use hickory_proto::{
    op::{Edns, Header, MessageType, Metadata, OpCode, ResponseCode},
    rr::{DNSClass, Record, RecordType},
    serialize::binary::{BinDecodable, BinDecoder, BinEncoder},
};
use hickory_server::{
    net::xfer::Protocol,
    server::Request,
    zone_handler::{MessageResponseBuilder, Queries},
};

use crate::{
    limits,
    zone::{Found, Zone},
};

/// Bytes of a question after its name (RFC 1035 section 4.1.2).
const TYPE_AND_CLASS: usize = 4;

/// How a query came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// One datagram, whose source may be forged.
    Udp,
    /// A connection.
    Tcp,
}

impl Transport {
    pub(crate) const ALL: [Self; 2] = [Self::Udp, Self::Tcp];

    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        }
    }
}

/// The response codes that this server gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rcode {
    /// 0
    NoError,
    /// 1
    FormErr,
    /// 2
    ServFail,
    /// 3
    NxDomain,
    /// 4
    NotImp,
    /// 5
    Refused,
    /// 16, in the OPT record.
    BadVers,
}

impl Rcode {
    pub(crate) const ALL: [Self; 7] =
        [Self::NoError, Self::FormErr, Self::ServFail, Self::NxDomain, Self::NotImp, Self::Refused, Self::BadVers];

    /// The mnemonic of the IANA registry.
    pub fn label(self) -> &'static str {
        match self {
            Self::NoError => "NOERROR",
            Self::FormErr => "FORMERR",
            Self::ServFail => "SERVFAIL",
            Self::NxDomain => "NXDOMAIN",
            Self::NotImp => "NOTIMP",
            Self::Refused => "REFUSED",
            Self::BadVers => "BADVERS",
        }
    }
}

impl From<Rcode> for ResponseCode {
    fn from(rcode: Rcode) -> Self {
        match rcode {
            Rcode::NoError => Self::NoError,
            Rcode::FormErr => Self::FormErr,
            Rcode::ServFail => Self::ServFail,
            Rcode::NxDomain => Self::NXDomain,
            Rcode::NotImp => Self::NotImp,
            Rcode::Refused => Self::Refused,
            Rcode::BadVers => Self::BADVERS,
        }
    }
}

/// Why a message gets no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Silence {
    /// Less than a header, so without an id to answer to.
    TooShort,
    /// A response. Answering one would let two servers talk for ever.
    Response,
    /// The answer cannot be written.
    Defect,
    /// More answers to one network over UDP than [`limits::UDP_ANSWERS_PER_SECOND`].
    Limited,
}

impl Silence {
    pub(crate) const ALL: [Self; 4] = [Self::TooShort, Self::Response, Self::Defect, Self::Limited];

    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::TooShort => "too_short",
            Self::Response => "response",
            Self::Defect => "defect",
            Self::Limited => "limited",
        }
    }
}

/// What becomes of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// An answer.
    Answer {
        /// The message.
        bytes: Vec<u8>,
        /// Its response code.
        rcode: Rcode,
    },
    /// Nothing.
    Silent(Silence),
}

/// What to say, before it is written.
struct Reply {
    rcode: Rcode,
    authoritative: bool,
    answers: Vec<Record>,
    authorities: Vec<Record>,
    additionals: Vec<Record>,
}

impl Reply {
    fn bare(rcode: Rcode) -> Self {
        Self { rcode, authoritative: false, answers: Vec::new(), authorities: Vec::new(), additionals: Vec::new() }
    }

    fn negative(rcode: Rcode, soa: Record) -> Self {
        Self { authoritative: true, authorities: vec![soa], ..Self::bare(rcode) }
    }
}

/// The answer to a message of any bytes.
///
/// # Guarantees
///
/// An answer over UDP has at most [`limits::EDNS_PAYLOAD`] bytes, at most what the query announced, and at most
/// [`limits::PLAIN_PAYLOAD`] without EDNS. What does not fit loses first its additional records, and then all records
/// with TC set (RFC 2181 section 9), but never its OPT.
pub fn respond(message: &[u8], transport: Transport, zone: &Zone, routes: &dyn RouteLookup) -> Outcome {
    let Ok(header) = Header::read(&mut BinDecoder::new(message)) else {
        return Outcome::Silent(Silence::TooShort);
    };
    if header.message_type == MessageType::Response {
        return Outcome::Silent(Silence::Response);
    }
    let request = read(message, &header, transport);
    let reply = match &request {
        _ if header.op_code != OpCode::Query => Reply::bare(Rcode::NotImp),
        Some(request) => decide(request, zone, routes),
        None => Reply::bare(Rcode::FormErr),
    };
    let written = match &request {
        Some(request) => write(&header, &request.queries, request.edns.as_ref(), &reply, transport),
        // The header alone: what cannot be read cannot be repeated.
        None => Queries::read(&mut BinDecoder::new(&[]), 0)
            .ok()
            .and_then(|none| write(&header, &none, None, &reply, transport)),
    };
    match written {
        Some(bytes) => Outcome::Answer { bytes, rcode: reply.rcode },
        None => Outcome::Silent(Silence::Defect),
    }
}

/// An answer without records that asks whoever really sent the query to come again over TCP (TC set), which nobody can do from a forged
/// address. No longer than the query itself. Silence for what would get no answer with records.
pub fn respond_truncated(message: &[u8]) -> Outcome {
    let limited = Outcome::Silent(Silence::Limited);
    let Ok(header) = Header::read(&mut BinDecoder::new(message)) else { return limited };
    if header.message_type == MessageType::Response || header.op_code != OpCode::Query {
        return limited;
    }
    let Some(request) = read(message, &header, Transport::Udp) else { return limited };
    // Without EDNS: what the query announced plays no part in so short an answer.
    let reply = Reply::bare(Rcode::NoError);
    match encode(&header, &request.queries, None, &reply, Extent::Truncated, limits::PLAIN_PAYLOAD) {
        Some(bytes) => Outcome::Answer { bytes, rcode: Rcode::NoError },
        None => limited,
    }
}

/// The message, if it has one question and can be read.
fn read(message: &[u8], header: &Header, transport: Transport) -> Option<Request> {
    // Before the questions are read, since the decoder makes room for as many as the header says: 65,535 of them are
    // megabytes for twelve bytes.
    if header.counts.queries != 1 {
        return None;
    }
    // Who asks makes no difference, and so is not told.
    let nobody = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    let protocol = match transport {
        Transport::Udp => Protocol::Udp,
        Transport::Tcp => Protocol::Tcp,
    };
    let request = Request::from_bytes(message.to_vec(), nobody, protocol).ok()?;
    let [question] = request.queries.queries() else { return None };
    // The question is repeated byte for byte. A compressed name in it would point into the header, which differs.
    let uncompressed = question.name().iter().map(|label| label.len() + 1).sum::<usize>() + 1 + TYPE_AND_CLASS;
    (request.queries.as_bytes().len() == uncompressed).then_some(request)
}

fn decide(request: &Request, zone: &Zone, routes: &dyn RouteLookup) -> Reply {
    if request.version() != 0 {
        return Reply::bare(Rcode::BadVers);
    }
    let [query] = request.queries.queries() else {
        return Reply::bare(Rcode::FormErr);
    };
    if query.query_class() != DNSClass::IN {
        return Reply::bare(Rcode::Refused);
    }
    match query.query_type() {
        RecordType::AXFR | RecordType::IXFR => return Reply::bare(Rcode::Refused),
        RecordType::OPT => return Reply::bare(Rcode::FormErr),
        // TKEY, MAILB, MAILA and whatever may come in the range of meta types (RFC 6895 section 3.1).
        RecordType::TSIG | RecordType::Unknown(128..=255) => return Reply::bare(Rcode::NotImp),
        _ => {}
    }
    match zone.find(query.name(), query.original().name(), query.query_type(), routes) {
        Found::Records { answers, additionals } => {
            Reply { rcode: Rcode::NoError, authoritative: true, answers, authorities: Vec::new(), additionals }
        }
        // Nobody knows yet what there is: a resolver asks again, and keeps no "there is no such name".
        Found::NoData | Found::NoName if !routes.primed() => Reply::bare(Rcode::ServFail),
        Found::NoData => Reply::negative(Rcode::NoError, zone.negative_soa(routes)),
        Found::NoName => Reply::negative(Rcode::NxDomain, zone.negative_soa(routes)),
        Found::OutOfZone => Reply::bare(Rcode::Refused),
    }
}

/// How much of a reply is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extent {
    All,
    WithoutAdditionals,
    Truncated,
}

fn write(
    header: &Header,
    queries: &Queries,
    asked: Option<&Edns>,
    reply: &Reply,
    transport: Transport,
) -> Option<Vec<u8>> {
    let edns = asked.map(|asked| {
        let mut edns = Edns::new();
        edns.set_max_payload(limits::EDNS_PAYLOAD);
        // RFC 3225 section 3: "the DO bit of the query MUST be copied in the response".
        edns.set_dnssec_ok(asked.flags().dnssec_ok);
        edns
    });
    let most = match (transport, asked) {
        (Transport::Tcp, _) => u16::MAX,
        (Transport::Udp, None) => limits::PLAIN_PAYLOAD,
        (Transport::Udp, Some(asked)) => asked.max_payload().clamp(limits::PLAIN_PAYLOAD, limits::EDNS_PAYLOAD),
    };
    [Extent::All, Extent::WithoutAdditionals, Extent::Truncated]
        .into_iter()
        .find_map(|extent| encode(header, queries, edns.as_ref(), reply, extent, most))
}

/// The bytes of a reply, if that much of it fits. Left to itself, the encoder would cut an RRset and drop the OPT.
fn encode(
    header: &Header,
    queries: &Queries,
    edns: Option<&Edns>,
    reply: &Reply,
    extent: Extent,
    most: u16,
) -> Option<Vec<u8>> {
    let mut metadata = Metadata::response_from_request(header);
    metadata.response_code = reply.rcode.into();
    metadata.authoritative = reply.authoritative;
    metadata.truncation = extent == Extent::Truncated;
    let nothing: &[Record] = &[];
    let (answers, authorities) = match extent {
        Extent::Truncated => (nothing, nothing),
        _ => (&*reply.answers, &*reply.authorities),
    };
    let additionals = if extent == Extent::All { &*reply.additionals } else { nothing };
    let response =
        MessageResponseBuilder::new(queries, edns).build(metadata, answers, authorities, nothing, additionals);
    let mut bytes = Vec::with_capacity(usize::from(limits::PLAIN_PAYLOAD));
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_max_size(most);
    let written = response.destructive_emit(&mut encoder).ok()?;
    (written.truncation == metadata.truncation).then_some(bytes)
}
