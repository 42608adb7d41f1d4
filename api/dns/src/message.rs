//! From the bytes of a query to the bytes of its answer. Pure.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use hearth_types::{Timestamp, routes::RouteLookup};
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
use tokio::sync::watch;

use crate::{
    Answering, DnsConfig, DnsError, Gateway, Keys, Locate, Located, Nowhere,
    cookie::{Cookies, Shown},
    dnssec::{Signatures, nsec},
    edns::{self, Asked},
    gateways, limits,
    rate::{Limiter, Rates, Verdict},
    rrset::{RrSet, code},
    zone::{Answer, Facts, Zone},
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
    /// 23, in the OPT record.
    BadCookie,
}

impl Rcode {
    pub(crate) const ALL: [Self; 8] = [
        Self::NoError,
        Self::FormErr,
        Self::ServFail,
        Self::NxDomain,
        Self::NotImp,
        Self::Refused,
        Self::BadVers,
        Self::BadCookie,
    ];

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
            Self::BadCookie => "BADCOOKIE",
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
            Rcode::BadCookie => Self::BADCOOKIE,
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
    /// More answers to one network over UDP than [`limits::UDP_ANSWERS_PER_SECOND`], or for one name than
    /// [`limits::UDP_ANSWERS_PER_NAME`].
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

/// Who asks, and when.
#[derive(Clone, Copy, Debug)]
pub struct Asking {
    /// Where the message came from.
    pub ip: IpAddr,
    /// How.
    pub transport: Transport,
    /// The time by the clock, for signatures and cookies.
    pub now: Timestamp,
    /// Milliseconds that only go up, for rates.
    pub steady: u64,
}

/// Everything from which answers are made. What changes is fed from outside, and is in the next answer.
pub struct Answerer {
    zone: Zone,
    routes: Arc<dyn RouteLookup>,
    pub(crate) keys: watch::Receiver<Arc<Keys>>,
    pub(crate) gateways: watch::Receiver<Arc<[Gateway]>>,
    answering: watch::Receiver<Arc<Answering>>,
    pub(crate) locate: Arc<dyn Locate>,
    cookies: Cookies,
    limiter: Limiter,
    limit_loopback: bool,
    signatures: Signatures,
}

impl std::fmt::Debug for Answerer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answerer").field("zone", &self.zone).finish_non_exhaustive()
    }
}

/// What to say, before it is written.
struct Reply {
    rcode: Rcode,
    authoritative: bool,
    truncated: bool,
    answers: Vec<RrSet>,
    authorities: Vec<RrSet>,
    additionals: Vec<RrSet>,
    /// How many bits of the client's address decided.
    scope: u8,
}

impl Reply {
    fn bare(rcode: Rcode) -> Self {
        let (answers, authorities, additionals) = (Vec::new(), Vec::new(), Vec::new());
        Self { rcode, authoritative: false, truncated: false, answers, authorities, additionals, scope: 0 }
    }
}

/// What a query is about, once its form was found to be good.
enum Decision {
    /// It gets no more than a code.
    Code(Rcode),
    /// It is about a name of the zone.
    Found(Answer, u8),
}

impl Answerer {
    /// Answers for a zone that is not signed, by the configuration's gateways.
    pub fn new(config: &DnsConfig, routes: Arc<dyn RouteLookup>) -> Result<Self, DnsError> {
        let zone = Zone::new(config)?;
        let gateways = watch::channel(Arc::clone(zone.gateways())).1;
        Ok(Self {
            zone,
            routes,
            keys: watch::channel(Arc::new(Keys::none())).1,
            gateways,
            answering: watch::channel(Arc::default()).1,
            locate: Arc::new(Nowhere),
            cookies: Cookies::new(&config.cookie_secret),
            limiter: Limiter::new(Rates {
                network: config.udp_answers_per_second,
                network_burst: config.udp_burst,
                name: config.udp_answers_per_name,
                name_burst: config.udp_name_burst,
            }),
            limit_loopback: config.limit_loopback,
            signatures: Signatures::new(),
        })
    }

    /// Signs with these keys, as they are now.
    #[must_use]
    pub fn with_keys(self, keys: watch::Receiver<Arc<Keys>>) -> Self {
        Self { keys, ..self }
    }

    /// Answers with these gateways, as they are now; those of the configuration while there are none.
    #[must_use]
    pub fn with_gateways(self, gateways: watch::Receiver<Arc<[Gateway]>>) -> Self {
        Self { gateways, ..self }
    }

    /// Answers with the addresses of devices that were found there, as they are now.
    #[must_use]
    pub fn with_external(self, answering: watch::Receiver<Arc<Answering>>) -> Self {
        Self { answering, ..self }
    }

    /// Has this say which gateways are nearest.
    #[must_use]
    pub fn with_locations(self, locate: Arc<dyn Locate>) -> Self {
        Self { locate, ..self }
    }

    /// The answer to a message of any bytes.
    ///
    /// # Guarantees
    ///
    /// An answer over UDP has at most [`limits::EDNS_PAYLOAD`] bytes, at most what the query announced, and at most
    /// [`limits::PLAIN_PAYLOAD`] without EDNS. What does not fit loses first its additional records, and then all records
    /// with TC set (RFC 2181 section 9), but never its OPT.
    ///
    /// Over UDP, whoever shows no good cookie gets answers up to the configuration's rates. Of what is beyond, every
    /// [`limits::UDP_SLIP`]th gets a hint that is at most 16 bytes longer than the query: a cookie where the query had half of one, and else TC.
    pub fn respond(&self, message: &[u8], asking: Asking) -> Outcome {
        let Ok(header) = Header::read(&mut BinDecoder::new(message)) else {
            return Outcome::Silent(Silence::TooShort);
        };
        if header.message_type == MessageType::Response {
            return Outcome::Silent(Silence::Response);
        }
        let seconds = asking.now.0.div_euclid(1000);
        let request = read(message, &header, asking.transport);
        let asked = request
            .as_ref()
            .filter(|request| request.version() == 0)
            .and_then(|request| request.edns.as_ref().map(|edns| Asked::read(edns, &self.cookies, asking.ip, seconds)));
        let (asked, malformed) = match asked {
            Some(Ok(asked)) => (Some(asked), false),
            Some(Err(_)) => (None, true),
            None => (None, false),
        };
        let limited = self.is_limited(asked.as_ref(), asking);
        if limited && let Some(verdict) = beyond(self.limiter.check(asking.ip, asking.steady)) {
            return self.hint(verdict, &header, request.as_ref(), asked.as_ref(), asking);
        }
        let decision = match &request {
            _ if header.op_code != OpCode::Query => Decision::Code(Rcode::NotImp),
            None => Decision::Code(Rcode::FormErr),
            Some(_) if malformed => Decision::Code(Rcode::FormErr),
            Some(request) => self.decide(request, asked.as_ref(), asking),
        };
        if limited && let Decision::Found(answer, _) = &decision {
            let denied = answer.missing.is_some();
            let verdict = self.limiter.check_name(asking.ip, &answer.about, denied, asking.steady);
            if let Some(verdict) = beyond(verdict) {
                return self.hint(verdict, &header, request.as_ref(), asked.as_ref(), asking);
            }
        }
        let reply = match decision {
            Decision::Code(rcode) => Reply::bare(rcode),
            Decision::Found(answer, scope) => self.reply(answer, scope, asked.as_ref(), asking.now),
        };
        self.written(&header, request.as_ref(), asked.as_ref(), &reply, asking)
    }

    /// Whether an answer counts: who shows a good cookie is where it says (RFC 7873 section 5.2.5), and nobody forges a source on this machine.
    fn is_limited(&self, asked: Option<&Asked>, asking: Asking) -> bool {
        let known = asked.is_some_and(|asked| matches!(asked.cookie, Shown::Good(..)));
        let here = asking.ip.to_canonical().is_loopback() && !self.limit_loopback;
        asking.transport == Transport::Udp && !known && !here
    }

    fn decide(&self, request: &Request, asked: Option<&Asked>, asking: Asking) -> Decision {
        let code = |rcode| Decision::Code(rcode);
        if request.version() != 0 {
            return code(Rcode::BadVers);
        }
        let [query] = request.queries.queries() else {
            return code(Rcode::FormErr);
        };
        if query.query_class() != DNSClass::IN {
            return code(Rcode::Refused);
        }
        match query.query_type() {
            RecordType::AXFR | RecordType::IXFR => return code(Rcode::Refused),
            // RFC 9824 section 3.5.
            RecordType::OPT | RecordType::Unknown(code::NXNAME) => return code(Rcode::FormErr),
            // TKEY, MAILB, MAILA and whatever may come in the range of meta types (RFC 6895 section 3.1).
            RecordType::TSIG | RecordType::Unknown(128..=255) => return code(Rcode::NotImp),
            _ => {}
        }
        let (client, bits) = Asked::client(asked.and_then(|asked| asked.subnet), asking.ip);
        let located = self.locate.locate(client, bits);
        let keys = self.keys.borrow().clone();
        let gateways = self.gateways.borrow().clone();
        let gateways = if gateways.is_empty() { self.zone.gateways().clone() } else { gateways };
        let nowhere = Located { scope: 0, nearest: Arc::from([]) };
        let answering = self.answering.borrow().clone();
        let facts = Facts {
            routes: self.routes.as_ref(),
            answering: &answering,
            near: gateways::nearest(&gateways, &located),
            all: gateways::nearest(&gateways, &nowhere),
            keys: keys.sign(asking.now).then_some(&*keys),
            now: asking.now,
        };
        let kind = u16::from(query.query_type());
        match self.zone.find(query.name(), query.original().name(), kind, &facts) {
            None => code(Rcode::Refused),
            // Nobody knows yet what there is: a resolver asks again, and keeps no "there is no such name".
            Some(answer) if answer.missing.is_some() && !self.routes.primed() => code(Rcode::ServFail),
            Some(answer) => {
                let scope = if answer.tailored { located.scope } else { 0 };
                Decision::Found(answer, scope)
            }
        }
    }

    /// What is said of an answer, signed where that is wanted.
    fn reply(&self, answer: Answer, scope: u8, asked: Option<&Asked>, now: Timestamp) -> Reply {
        let (dnssec, compact) = asked.map_or((false, false), |asked| (asked.dnssec, asked.compact));
        let keys = self.keys.borrow().clone();
        let signed = dnssec && keys.sign(now);
        let (mut rcode, mut authorities) = (Rcode::NoError, Vec::new());
        if let Some(missing) = answer.missing {
            authorities.push(self.zone.negative_soa(self.routes.as_ref()));
            if missing.name && (!signed || compact) {
                rcode = Rcode::NxDomain;
            }
            if signed {
                let types = if missing.name { vec![code::NXNAME] } else { missing.types };
                authorities.push(nsec(&missing.owner, &types, self.zone.negative_ttl()));
            }
        }
        let sign = |sets: Vec<RrSet>| -> Vec<RrSet> {
            let with = |set: RrSet| {
                let signature = signed.then(|| self.signatures.sign(&set, self.zone.apex(), &keys, now)).flatten();
                std::iter::once(set).chain(signature)
            };
            sets.into_iter().flat_map(with).collect()
        };
        Reply {
            rcode,
            authoritative: true,
            truncated: false,
            answers: sign(answer.answers),
            authorities: sign(authorities),
            additionals: sign(answer.additionals),
            scope,
        }
    }

    /// What becomes of a query beyond the rates.
    fn hint(
        &self,
        verdict: Beyond,
        header: &Header,
        request: Option<&Request>,
        asked: Option<&Asked>,
        asking: Asking,
    ) -> Outcome {
        let limited = Outcome::Silent(Silence::Limited);
        let (Beyond::Slip, Some(request)) = (verdict, request.filter(|_| header.op_code == OpCode::Query)) else {
            return limited;
        };
        let half = asked.filter(|asked| asked.cookie != Shown::Nothing);
        let reply = match half {
            // Whoever really sent it asks again with the whole cookie (RFC 7873 section 5.2.3).
            Some(_) => Reply::bare(Rcode::BadCookie),
            // Without EDNS: what the query announced plays no part in so short an answer.
            None => Reply { truncated: true, ..Reply::bare(Rcode::NoError) },
        };
        let edns = half.and_then(|asked| {
            let cookie = self.cookies.answer(asked.cookie, asking.ip, asking.now.0.div_euclid(1000))?;
            Some(edns::answer(None, asked.dnssec, 0, Some(cookie)))
        });
        let extent = if reply.truncated { Extent::Truncated } else { Extent::All };
        match encode(header, &request.queries, edns.as_ref(), &reply, extent, limits::PLAIN_PAYLOAD) {
            Some(bytes) => Outcome::Answer { bytes, rcode: reply.rcode },
            None => limited,
        }
    }

    fn written(
        &self,
        header: &Header,
        request: Option<&Request>,
        asked: Option<&Asked>,
        reply: &Reply,
        asking: Asking,
    ) -> Outcome {
        let opt = request.and_then(|request| request.edns.as_ref()).map(|opt| {
            let seconds = asking.now.0.div_euclid(1000);
            let cookie = asked.and_then(|asked| self.cookies.answer(asked.cookie, asking.ip, seconds));
            edns::answer(asked, opt.flags().dnssec_ok, reply.scope, cookie)
        });
        let most = match (asking.transport, asked, &opt) {
            (Transport::Tcp, ..) => u16::MAX,
            (Transport::Udp, Some(asked), _) => asked.payload,
            // Of another version, or malformed: the answer has no records.
            (Transport::Udp, None, _) => limits::PLAIN_PAYLOAD,
        };
        let write = |queries: &Queries| {
            [Extent::All, Extent::WithoutAdditionals, Extent::Truncated]
                .into_iter()
                .find_map(|extent| encode(header, queries, opt.as_ref(), reply, extent, most))
        };
        let written = match request {
            Some(request) => write(&request.queries),
            // The header alone: what cannot be read cannot be repeated.
            None => Queries::read(&mut BinDecoder::new(&[]), 0).ok().and_then(|none| write(&none)),
        };
        match written {
            Some(bytes) => Outcome::Answer { bytes, rcode: reply.rcode },
            None => Outcome::Silent(Silence::Defect),
        }
    }
}

/// What becomes of a query beyond the rates.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Beyond {
    Slip,
    Drop,
}

fn beyond(verdict: Verdict) -> Option<Beyond> {
    match verdict {
        Verdict::Answer => None,
        Verdict::Slip => Some(Beyond::Slip),
        Verdict::Drop => Some(Beyond::Drop),
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

/// How much of a reply is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extent {
    All,
    WithoutAdditionals,
    Truncated,
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
    let records = |sets: &[RrSet]| -> Vec<Record> { sets.iter().flat_map(RrSet::records).collect() };
    let (answers, authorities) = match extent {
        Extent::Truncated => (Vec::new(), Vec::new()),
        _ => (records(&reply.answers), records(&reply.authorities)),
    };
    let additionals = if extent == Extent::All { records(&reply.additionals) } else { Vec::new() };
    let nothing: &[Record] = &[];
    let response = MessageResponseBuilder::new(queries, edns).build(
        metadata,
        answers.iter(),
        authorities.iter(),
        nothing,
        additionals.iter(),
    );
    let mut bytes = Vec::with_capacity(usize::from(limits::PLAIN_PAYLOAD));
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_max_size(most);
    let written = response.destructive_emit(&mut encoder).ok()?;
    (written.truncation == metadata.truncation).then_some(bytes)
}
