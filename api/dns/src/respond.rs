//! From a query's bytes to a response's bytes: pure.

use hearth_types::routes::RouteLookup;
use hickory_proto::{
    op::{Edns, Header, HeaderCounts, LowerQuery, MessageType, Metadata, OpCode, ResponseCode},
    rr::{DNSClass, Record, RecordType},
    serialize::binary::{BinDecodable, BinDecoder, BinEncodable, BinEncoder},
};
use hickory_server::{
    net::xfer::Protocol,
    server::Request,
    zone_handler::{MessageResponseBuilder, Queries},
};

use crate::{
    limits::{MAX_QUERY, MAX_QUERY_ADDITIONALS, MAX_UDP_PAYLOAD, MIN_UDP_PAYLOAD},
    zone::{Answer, Zone},
};

/// How a query came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// In a datagram: the answer is bounded and may be truncated.
    Udp,
    /// On a connection.
    Tcp,
}

impl Transport {
    /// Its name in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        }
    }
}

/// A response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The bytes to send.
    pub bytes: Vec<u8>,
    /// What it says.
    pub code: ResponseCode,
}

/// The records of a response.
#[derive(Default)]
struct Sections {
    answers: Vec<Record>,
    soa: Option<Record>,
    additionals: Vec<Record>,
}

/// The response to a query; none to what is no query or too short to be answered.
///
/// Guarantees: never panics. A response is never answered, so that two servers cannot keep each other busy. Over UDP
/// it has at most as many bytes as the asker takes and [`MAX_UDP_PAYLOAD`](crate::MAX_UDP_PAYLOAD); an answer that
/// does not fit is replaced by an empty one with the truncation bit (RFC 2181 section 9). The question comes back
/// byte for byte.
pub fn respond(query: &[u8], transport: Transport, zone: &Zone, routes: &dyn RouteLookup) -> Option<Response> {
    let header = Header::read(&mut BinDecoder::new(query)).ok()?;
    if header.metadata.message_type == MessageType::Response {
        return None;
    }
    if header.metadata.op_code != OpCode::Query {
        return bare(&header.metadata, ResponseCode::NotImp);
    }
    // Looked at before anything is allocated for what the header claims to follow.
    let HeaderCounts { queries, answers, authorities, additionals } = header.counts;
    if query.len() > MAX_QUERY || queries != 1 || answers > 0 || authorities > 1 || additionals > MAX_QUERY_ADDITIONALS
    {
        return bare(&header.metadata, ResponseCode::FormErr);
    }
    // Neither address nor protocol are looked at: they are this crate's business.
    let nowhere = ([0, 0, 0, 0], 0).into();
    let Ok(request) = Request::from_bytes(query.to_vec(), nowhere, Protocol::Udp) else {
        return bare(&header.metadata, ResponseCode::FormErr);
    };
    let Some(question) = request.queries.queries().first() else {
        return bare(&header.metadata, ResponseCode::FormErr);
    };
    let mut metadata = Metadata::response_from_request(&request.metadata);
    let edns = request.edns.as_ref().map(our_edns);
    let mut sections = Sections::default();
    metadata.response_code = if request.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
        ResponseCode::BADVERS
    } else {
        fill(question, zone, routes, &mut metadata, &mut sections)
    };
    let limit = match transport {
        Transport::Tcp => u16::MAX,
        Transport::Udp => request.max_payload().clamp(MIN_UDP_PAYLOAD, MAX_UDP_PAYLOAD),
    };
    let bytes = encode(&request.queries, &metadata, edns.as_ref(), &sections, limit).or_else(|| {
        metadata.truncation = true;
        encode(&request.queries, &metadata, edns.as_ref(), &Sections::default(), limit)
    });
    match bytes {
        Some(bytes) => Some(Response { bytes, code: metadata.response_code }),
        None => bare(&header.metadata, ResponseCode::ServFail),
    }
}

/// What we say of ourselves to who speaks EDNS (RFC 6891), with the asker's DO bit (RFC 3225 section 3).
fn our_edns(theirs: &Edns) -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(MAX_UDP_PAYLOAD).set_version(0).set_dnssec_ok(theirs.flags().dnssec_ok);
    edns
}

/// Fills the sections, and says how the question was answered.
fn fill(
    question: &LowerQuery,
    zone: &Zone,
    routes: &dyn RouteLookup,
    metadata: &mut Metadata,
    sections: &mut Sections,
) -> ResponseCode {
    match question.query_type() {
        // There is no zone to transfer.
        RecordType::AXFR | RecordType::IXFR => return ResponseCode::Refused,
        RecordType::OPT => return ResponseCode::FormErr, // RFC 6891 section 6.1.1: not a question
        _ => {}
    }
    if question.query_class() != DNSClass::IN {
        return ResponseCode::Refused;
    }
    let name = question.original().name();
    let answer = zone.answer(name, question.query_type(), routes);
    metadata.authoritative = answer != Answer::NotHere;
    match answer {
        Answer::Records { answers, additionals } => {
            sections.answers = answers;
            sections.additionals = additionals;
            ResponseCode::NoError
        }
        Answer::NoData(soa) => {
            sections.soa = Some(soa);
            ResponseCode::NoError
        }
        Answer::NoName(soa) => {
            sections.soa = Some(soa);
            ResponseCode::NXDomain
        }
        Answer::NotHere => ResponseCode::Refused,
    }
}

/// The bytes of a response, if it fits.
fn encode(
    queries: &Queries,
    metadata: &Metadata,
    edns: Option<&Edns>,
    sections: &Sections,
    limit: u16,
) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(usize::from(MIN_UDP_PAYLOAD));
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_max_size(u16::MAX);
    let Sections { answers, soa, additionals } = sections;
    MessageResponseBuilder::new(queries, edns)
        .build(*metadata, answers, [], soa, additionals)
        .destructive_emit(&mut encoder)
        .ok()?;
    (bytes.len() <= usize::from(limit)).then_some(bytes)
}

/// A header alone.
fn bare(query: &Metadata, code: ResponseCode) -> Option<Response> {
    let mut metadata = Metadata::response_from_request(query);
    metadata.response_code = code;
    let mut bytes = Vec::with_capacity(12);
    let header = Header { metadata, counts: HeaderCounts::default() };
    header.emit(&mut BinEncoder::new(&mut bytes)).ok()?;
    Some(Response { bytes, code })
}
