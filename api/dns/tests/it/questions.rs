//! What each question gets, over UDP and TCP.

use hickory_proto::{
    op::{Edns, Message, OpCode, ResponseCode},
    rr::{DNSClass, Name, RData, Record, RecordType},
};

use crate::support::{Running, addresses, ask_tcp, ask_udp, config, question, question_of, with_edns};

/// Records as `owner type data`, sorted.
fn texts(records: &[Record]) -> Vec<String> {
    let text = |record: &Record| format!("{} {} {}", record.name, record.record_type(), record.data);
    let mut all: Vec<_> = records.iter().map(text).collect();
    all.sort();
    all
}

struct Case {
    name: &'static str,
    kind: RecordType,
    rcode: ResponseCode,
    /// Whether the answer is authoritative.
    aa: bool,
    answers: &'static [&'static str],
    /// Whether the authority section holds the SOA, and nothing else.
    soa: bool,
    additionals: &'static [&'static str],
}

const fn found(name: &'static str, kind: RecordType, answers: &'static [&'static str]) -> Case {
    Case { name, kind, rcode: ResponseCode::NoError, aa: true, answers, soa: false, additionals: &[] }
}

const fn no_data(name: &'static str, kind: RecordType) -> Case {
    Case { name, kind, rcode: ResponseCode::NoError, aa: true, answers: &[], soa: true, additionals: &[] }
}

const fn no_name(name: &'static str, kind: RecordType) -> Case {
    Case { rcode: ResponseCode::NXDomain, ..no_data(name, kind) }
}

const fn bare(name: &'static str, kind: RecordType, rcode: ResponseCode) -> Case {
    Case { name, kind, rcode, aa: false, answers: &[], soa: false, additionals: &[] }
}

const SOA: &str = "hearth.internal. SOA ns1.hearth.internal. hostmaster.hearth.internal. 3 3600 600 604800 5";

fn cases() -> Vec<Case> {
    use RecordType as T;
    use ResponseCode as R;
    vec![
        // A route's hostname.
        found(
            "photos.alice.hearth.internal.",
            T::A,
            &["photos.alice.hearth.internal. A 192.0.2.1", "photos.alice.hearth.internal. A 192.0.2.2"],
        ),
        found("photos.alice.hearth.internal.", T::AAAA, &["photos.alice.hearth.internal. AAAA 2001:db8::1"]),
        no_data("photos.alice.hearth.internal.", T::TXT),
        no_data("photos.alice.hearth.internal.", T::CNAME),
        no_data("photos.alice.hearth.internal.", T::HTTPS),
        no_data("photos.alice.hearth.internal.", T::SOA),
        no_data("photos.alice.hearth.internal.", T::NS),
        no_data("photos.alice.hearth.internal.", T::Unknown(65_280)),
        // In another case: the case of the question comes back.
        found("nOTEs.ALICE.heaRTh.internal.", T::AAAA, &["nOTEs.ALICE.heaRTh.internal. AAAA 2001:db8::1"]),
        // Below a hostname there is nothing, and there are no wildcards.
        no_name("www.photos.alice.hearth.internal.", T::A),
        no_name("*.alice.hearth.internal.", T::A),
        no_name("*.hearth.internal.", T::A),
        no_name("_acme-challenge.photos.alice.hearth.internal.", T::TXT),
        // Names of which only names below exist.
        no_data("alice.hearth.internal.", T::A),
        no_data("er.bob.hearth.internal.", T::AAAA),
        no_data("bob.hearth.internal.", T::ANY),
        found("deep.er.bob.hearth.internal.", T::AAAA, &["deep.er.bob.hearth.internal. AAAA 2001:db8::1"]),
        // Names that nobody has.
        no_name("carol.hearth.internal.", T::A),
        no_name("carol.hearth.internal.", T::ANY),
        no_name("lice.hearth.internal.", T::A),
        no_name("photos.hearth.internal.", T::AAAA),
        no_name("hearth.internal.hearth.internal.", T::A),
        // The names of the region itself.
        found("api.hearth.internal.", T::AAAA, &["api.hearth.internal. AAAA 2001:db8::1"]),
        no_data("api.hearth.internal.", T::MX),
        found("status.hearth.internal.", T::AAAA, &["status.hearth.internal. AAAA 2001:db8::1"]),
        found("relay.api.hearth.internal.", T::AAAA, &["relay.api.hearth.internal. AAAA 2001:db8::1"]),
        found("192-0-2-2.relay.api.hearth.internal.", T::A, &["192-0-2-2.relay.api.hearth.internal. A 192.0.2.2"]),
        no_data("192-0-2-2.relay.api.hearth.internal.", T::AAAA),
        no_data("198-51-100-9.relay.api.hearth.internal.", T::A),
        no_name("fra-1.relay.api.hearth.internal.", T::A),
        no_name("192-0-2-2.api.hearth.internal.", T::A),
        found("NS1.hearth.internal.", T::AAAA, &["NS1.hearth.internal. AAAA 2001:db8::1"]),
        no_name("api.alice.hearth.internal.", T::A),
        no_name("ns2.hearth.internal.", T::A),
        // The apex.
        found("hearth.internal.", T::A, &["hearth.internal. A 192.0.2.1", "hearth.internal. A 192.0.2.2"]),
        found("hearth.internal.", T::AAAA, &["hearth.internal. AAAA 2001:db8::1"]),
        found("hearth.internal.", T::SOA, &[SOA]),
        Case {
            additionals: &[
                "ns1.hearth.internal. A 192.0.2.1",
                "ns1.hearth.internal. A 192.0.2.2",
                "ns1.hearth.internal. AAAA 2001:db8::1",
            ],
            ..found("hearth.internal.", T::NS, &["hearth.internal. NS ns1.hearth.internal."])
        },
        no_data("hearth.internal.", T::DS),
        no_data("hearth.internal.", T::DNSKEY),
        // ANY: one RRset (RFC 8482).
        found(
            "notes.alice.hearth.internal.",
            T::ANY,
            &["notes.alice.hearth.internal. A 192.0.2.1", "notes.alice.hearth.internal. A 192.0.2.2"],
        ),
        found("hearth.internal.", T::ANY, &["hearth.internal. A 192.0.2.1", "hearth.internal. A 192.0.2.2"]),
        // Outside.
        bare("example.com.", T::A, R::Refused),
        bare("internal.", T::SOA, R::Refused),
        bare(".", T::NS, R::Refused),
        bare("nothearth.internal.", T::A, R::Refused),
        bare("hearth.internal.example.", T::A, R::Refused),
        bare("*.internal.", T::A, R::Refused),
        // Transfers and meta types.
        bare("hearth.internal.", T::AXFR, R::Refused),
        bare("hearth.internal.", T::IXFR, R::Refused),
        bare("hearth.internal.", T::TSIG, R::NotImp),
        bare("hearth.internal.", T::Unknown(249), R::NotImp),
        bare("hearth.internal.", T::Unknown(253), R::NotImp),
        bare("hearth.internal.", T::OPT, R::FormErr),
    ]
}

fn check(case: &Case, asked: &Message, bytes: &[u8], by: &str) {
    let of = format!("{} {} by {by}", case.name, case.kind);
    let answer = Message::from_vec(bytes).unwrap_or_else(|error| panic!("{of}: {error}"));
    assert_eq!(answer.metadata.response_code, case.rcode, "{of}");
    assert_eq!(answer.metadata.authoritative, case.aa, "{of}: AA");
    assert!(!answer.metadata.recursion_available, "{of}: RA");
    assert!(answer.metadata.recursion_desired, "{of}: RD is copied");
    assert!(!answer.metadata.truncation, "{of}: TC");
    assert_eq!(answer.metadata.id, asked.metadata.id, "{of}: id");
    assert_eq!(texts(&answer.answers), case.answers, "{of}: answers");
    assert_eq!(texts(&answer.additionals), case.additionals, "{of}: additionals");
    assert_eq!(texts(&answer.authorities), if case.soa { vec![SOA] } else { vec![] }, "{of}: authority");
    assert!(answer.authorities.iter().all(|soa| soa.ttl == 5), "{of}: the negative TTL");
    assert!(answer.answers.iter().chain(&answer.additionals).all(|record| record.ttl == 60), "{of}: the TTL");
    let [question] = &*answer.queries else { panic!("{of}: one question") };
    assert!(question.name().eq_case(asked.queries[0].name()), "{of}: the question's case");
    assert_eq!(answer.edns.is_some(), asked.edns.is_some(), "{of}: OPT");
}

#[tokio::test]
async fn every_kind_of_name_gets_its_answer_over_udp_and_tcp_with_and_without_edns() {
    let server = Running::start(config()).await;
    for case in cases() {
        let mut plain = question(case.name, case.kind);
        plain.metadata.recursion_desired = true;
        for asked in [plain.clone(), with_edns(plain, 4096)] {
            let bytes = asked.to_vec().unwrap();
            check(&case, &asked, &ask_udp(server.address, &bytes).await, "UDP");
            check(&case, &asked, &ask_tcp(server.address, &bytes).await, "TCP");
        }
    }
    for (protocol, rcode) in [("udp", "NXDOMAIN"), ("tcp", "REFUSED"), ("udp", "NOERROR"), ("tcp", "NOTIMP")] {
        assert!(server.metric("hearth_dns_queries_total", &[protocol, rcode]) > 0.0, "{protocol} {rcode} is counted");
    }
}

#[tokio::test]
async fn a_family_that_the_gateway_lacks_is_no_data() {
    for (gateway, has, lacks) in
        [("192.0.2.7", RecordType::A, RecordType::AAAA), ("2001:db8::7", RecordType::AAAA, RecordType::A)]
    {
        let mut config = config();
        config.gateway = addresses(&[gateway, gateway]);
        let server = Running::start(config).await;
        for name in
            ["photos.alice.hearth.internal.", "api.hearth.internal.", "ns1.hearth.internal.", "hearth.internal."]
        {
            let ask = async |kind| {
                Message::from_vec(&ask_udp(server.address, &question(name, kind).to_vec().unwrap()).await).unwrap()
            };
            let (with, without, any) = (ask(has).await, ask(lacks).await, ask(RecordType::ANY).await);
            assert_eq!(with.answers.len(), 1, "{name}: an address given twice is one record");
            assert_eq!(with.answers[0].data.to_string(), gateway);
            assert_eq!(any.answers, with.answers, "{name}: ANY");
            assert_eq!(without.metadata.response_code, ResponseCode::NoError);
            assert!(without.answers.is_empty(), "{name} {lacks}");
            assert!(matches!(&*without.authorities, [Record { data: RData::SOA(_), .. }]), "{name} {lacks}");
        }
    }
}

#[tokio::test]
async fn a_change_of_the_routes_is_in_the_next_answer_and_raises_the_serial() {
    let server = Running::start(config()).await;
    let name = "new.carol.hearth.internal";
    let ask = async |name: &str| {
        Message::from_vec(&ask_udp(server.address, &question(name, RecordType::A).to_vec().unwrap()).await).unwrap()
    };
    let serial = |message: &Message| match &*message.authorities {
        [Record { data: RData::SOA(soa), .. }] => soa.serial,
        other => panic!("no SOA but {other:?}"),
    };
    let before = ask("new.carol.hearth.internal.").await;
    assert_eq!(before.metadata.response_code, ResponseCode::NXDomain);
    server.routes.add(name);
    assert_eq!(ask("new.carol.hearth.internal.").await.answers.len(), 2);
    let owner = ask("carol.hearth.internal.").await;
    assert_eq!(owner.metadata.response_code, ResponseCode::NoError, "the owner's name now exists");
    assert_eq!(serial(&owner), serial(&before) + 1);
    server.routes.remove(name);
    let after = ask("new.carol.hearth.internal.").await;
    assert_eq!(after.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(serial(&after), serial(&before) + 2);
    assert_eq!(ask("carol.hearth.internal.").await.metadata.response_code, ResponseCode::NXDomain);
}

#[tokio::test]
async fn labels_with_dots_and_odd_bytes_are_not_taken_for_hostnames() {
    let server = Running::start(config()).await;
    let labels: [&[&[u8]]; 4] = [
        &[b"photos.alice", b"hearth", b"internal"],
        &[b"photos", b"alice", b"hearth.internal"],
        &[b"photos\0", b"alice", b"hearth", b"internal"],
        &[b"\xffphotos", b"alice", b"hearth", b"internal"],
    ];
    for labels in labels {
        let name = Name::from_labels(labels.iter().copied()).unwrap();
        let in_zone = labels.len() > 2 && labels[labels.len() - 1] == b"internal";
        let asked = question_of(name.clone(), RecordType::A, DNSClass::IN);
        let answer = Message::from_vec(&ask_udp(server.address, &asked.to_vec().unwrap()).await).unwrap();
        let expected = if in_zone { ResponseCode::NXDomain } else { ResponseCode::Refused };
        assert_eq!(answer.metadata.response_code, expected, "{name}");
    }
}

#[tokio::test]
async fn other_classes_are_refused_and_other_opcodes_not_implemented() {
    let server = Running::start(config()).await;
    for class in [DNSClass::CH, DNSClass::HS, DNSClass::ANY, DNSClass::NONE, DNSClass::Unknown(77)] {
        let asked = question_of("hearth.internal.".parse().unwrap(), RecordType::TXT, class);
        let answer = Message::from_vec(&ask_udp(server.address, &asked.to_vec().unwrap()).await).unwrap();
        assert_eq!(answer.metadata.response_code, ResponseCode::Refused, "{class}");
        assert!(!answer.metadata.authoritative, "{class}");
    }
    for opcode in [OpCode::Status, OpCode::Notify, OpCode::Update, OpCode::Unknown(1), OpCode::Unknown(15)] {
        let mut asked = question("hearth.internal.", RecordType::SOA);
        asked.metadata.op_code = opcode;
        let mut header_only = asked.to_vec().unwrap()[..12].to_vec();
        header_only[5] = 0;
        for bytes in [asked.to_vec().unwrap(), header_only] {
            let answer = Message::from_vec(&ask_udp(server.address, &bytes).await).unwrap();
            assert_eq!(answer.metadata.response_code, ResponseCode::NotImp, "{opcode}");
            assert_eq!(answer.metadata.op_code, opcode);
        }
    }
}

#[tokio::test]
async fn edns_is_answered_with_its_own_payload_size_and_other_versions_with_badvers() {
    let server = Running::start(config()).await;
    for (version, dnssec_ok, rcode) in
        [(0, false, ResponseCode::NoError), (0, true, ResponseCode::NoError), (1, false, ResponseCode::BADVERS)]
    {
        let mut asked = question("hearth.internal.", RecordType::SOA);
        let mut edns = Edns::new();
        edns.set_version(version).set_max_payload(4096).set_dnssec_ok(dnssec_ok);
        asked.edns = Some(edns);
        for bytes in [
            ask_udp(server.address, &asked.to_vec().unwrap()).await,
            ask_tcp(server.address, &asked.to_vec().unwrap()).await,
        ] {
            let answer = Message::from_vec(&bytes).unwrap();
            let edns = answer.edns.as_ref().expect("an OPT");
            // By number: hickory reads 16 as BADSIG, which shares it (RFC 6895 section 2.3).
            assert_eq!(u16::from(answer.metadata.response_code), u16::from(rcode));
            assert_eq!((edns.version(), edns.max_payload(), edns.flags().dnssec_ok), (0, 1232, dnssec_ok));
            assert_eq!(answer.answers.is_empty(), rcode == ResponseCode::BADVERS);
        }
    }
}

#[tokio::test]
async fn an_answer_that_does_not_fit_is_truncated_over_udp_and_whole_over_tcp() {
    let mut config = config();
    config.gateway = (0..200_u8).map(|last| std::net::IpAddr::from([192, 0, 2, last])).collect();
    let server = Running::start(config).await;
    let plain = question("photos.alice.hearth.internal.", RecordType::A);
    for (asked, most) in [
        (plain.clone(), 512),
        (with_edns(plain.clone(), 600), 600),
        (with_edns(plain.clone(), 65_535), 1232),
        (with_edns(plain.clone(), 512), 512),
    ] {
        let bytes = ask_udp(server.address, &asked.to_vec().unwrap()).await;
        let answer = Message::from_vec(&bytes).unwrap();
        assert!(bytes.len() <= most, "{} bytes, {most} allowed", bytes.len());
        assert!(answer.metadata.truncation && answer.metadata.authoritative);
        assert!(answer.answers.is_empty(), "no part of an RRset");
        assert_eq!(answer.queries, asked.queries);
        assert_eq!(answer.edns.is_some(), asked.edns.is_some(), "the OPT stays");
        let whole = Message::from_vec(&ask_tcp(server.address, &asked.to_vec().unwrap()).await).unwrap();
        assert!(!whole.metadata.truncation);
        assert_eq!(whole.answers.len(), 200);
    }
    // Additional records may be missing without TC (RFC 2181 section 9).
    let servers = ask_udp(server.address, &question("hearth.internal.", RecordType::NS).to_vec().unwrap()).await;
    let answer = Message::from_vec(&servers).unwrap();
    assert!(!answer.metadata.truncation);
    assert_eq!((answer.answers.len(), answer.additionals.len()), (1, 0));
}

#[tokio::test]
async fn answers_are_little_larger_than_questions() {
    let server = Running::start(config()).await;
    for case in cases() {
        let asked = with_edns(question(case.name, case.kind), 4096).to_vec().unwrap();
        let answer = ask_udp(server.address, &asked).await;
        assert!(answer.len() <= 4 * asked.len(), "{} {}: {} for {}", case.name, case.kind, answer.len(), asked.len());
    }
}

#[tokio::test]
async fn nobody_is_told_that_a_name_does_not_exist_before_the_names_are_known() {
    let server = Running::start(config()).await;
    let ask = async |name: &str, kind| {
        let bytes = ask_udp(server.address, &question(name, kind).to_vec().unwrap()).await;
        Message::from_vec(&bytes).unwrap().metadata.response_code
    };
    let missing = "new.alice.hearth.internal.";
    server.routes.unknown.store(true, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(ask(missing, RecordType::A).await, ResponseCode::ServFail);
    assert_eq!(ask("alice.hearth.internal.", RecordType::A).await, ResponseCode::ServFail, "it may be a host too");
    assert_eq!(
        ask("photos.alice.hearth.internal.", RecordType::A).await,
        ResponseCode::NoError,
        "what is known is said"
    );
    assert_eq!(ask("hearth.internal.", RecordType::SOA).await, ResponseCode::NoError);
    assert_eq!(ask("example.com.", RecordType::A).await, ResponseCode::Refused);
    server.routes.unknown.store(false, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(ask(missing, RecordType::A).await, ResponseCode::NXDomain);
}
