//! Bytes of any kind.

use std::sync::{
    Arc, LazyLock,
    atomic::{AtomicU64, Ordering},
};

use hearth_dns::{Answerer, Asking, DnsServer, Outcome, Silence, Transport};
use hearth_types::{
    Timestamp,
    routes::{RouteEntry, RouteLookup},
};
use hickory_proto::{
    op::{Message, MessageType, ResponseCode},
    rr::RecordType,
};
use proptest::prelude::*;

use crate::support::{
    Now, Running, ask_tcp, ask_udp, config, first_keys, keys, question, receive_tcp, routes, send_tcp, with_edns,
};

fn asking(transport: Transport, steady: u64) -> Asking {
    Asking { ip: [192, 0, 2, 77].into(), transport, now: Timestamp(1_800_000_000_000), steady }
}

/// A signed zone, so that all there is may be asked for.
fn answerer() -> Answerer {
    let routes = routes();
    routes.record("*.wild.alice.hearth.internal", "CNAME", "photos.alice.hearth.internal");
    routes.record("txt.alice.hearth.internal", "TXT", "hello");
    Answerer::new(&config(), routes).unwrap().with_keys(keys(&first_keys(Timestamp(0))).1)
}

/// One that has nothing left to give to anybody.
fn exhausted() -> Answerer {
    let mut config = config();
    (config.udp_answers_per_second, config.udp_burst) = (0, 0);
    Answerer::new(&config, routes()).unwrap()
}

fn answer(bytes: &[u8]) -> Option<Message> {
    match answerer().respond(bytes, asking(Transport::Udp, 0)) {
        Outcome::Answer { bytes, .. } => Some(Message::from_vec(&bytes).unwrap()),
        Outcome::Silent(_) => None,
    }
}

/// What must hold for any message.
fn sound(message: &[u8]) -> Result<(), TestCaseError> {
    static ANSWERER: LazyLock<Answerer> = LazyLock::new(answerer);
    static EXHAUSTED: LazyLock<Answerer> = LazyLock::new(exhausted);
    for (transport, most) in [(Transport::Udp, 1232), (Transport::Tcp, 65_535)] {
        // An hour later each time, so that nothing is limited.
        static STEADY: AtomicU64 = AtomicU64::new(0);
        let steady = STEADY.fetch_add(3_600_000, Ordering::Relaxed);
        match ANSWERER.respond(message, asking(transport, steady)) {
            Outcome::Answer { bytes, .. } => {
                prop_assert!(bytes.len() <= most);
                prop_assert_eq!(&bytes[..2], &message[..2], "the id");
                prop_assert!(message[2] & 0x80 == 0, "responses are not answered");
                let parsed = Message::from_vec(&bytes);
                prop_assert!(parsed.is_ok(), "an answer that cannot be read: {:?}", parsed);
                prop_assert_eq!(parsed.unwrap().metadata.message_type, MessageType::Response);
            }
            Outcome::Silent(Silence::TooShort) => prop_assert!(message.len() < 12),
            Outcome::Silent(Silence::Response) => prop_assert!(message[2] & 0x80 != 0),
            Outcome::Silent(Silence::Defect | Silence::Limited) => {
                prop_assert!(false, "an answer that cannot be written")
            }
        }
    }
    // Every second one gets a hint.
    for _ in 0..2 {
        if let Outcome::Answer { bytes, .. } = EXHAUSTED.respond(message, asking(Transport::Udp, 0)) {
            prop_assert!(bytes.len() <= message.len() + 16, "a hint must not be longer than what may be forged");
            let parsed = Message::from_vec(&bytes).unwrap();
            let cookie = u16::from(parsed.metadata.response_code) == 23;
            prop_assert!(parsed.metadata.truncation != cookie && parsed.metadata.message_type == MessageType::Response);
            prop_assert!(parsed.answers.is_empty() && parsed.authorities.is_empty());
            prop_assert_eq!(&bytes[..2], &message[..2], "the id");
        }
    }
    Ok(())
}

/// A good query with some bytes replaced, some removed at the end and some added.
fn damaged() -> impl Strategy<Value = Vec<u8>> {
    let names = prop::sample::select(vec![
        "photos.alice.hearth.internal.",
        "hearth.internal.",
        "x.example.",
        "a.wild.alice.hearth.internal.",
        "nobody.hearth.internal.",
    ]);
    let kinds =
        prop::sample::select(vec![RecordType::A, RecordType::NS, RecordType::ANY, RecordType::OPT, RecordType::DNSKEY]);
    let damage = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
    let option = prop_oneof![Just(8_u16), Just(10), any::<u16>()];
    let options = prop::collection::vec((option, prop::collection::vec(any::<u8>(), 0..45)), 0..3);
    let edns = (options, any::<u16>());
    (names, kinds, damage, 0..20_usize, prop::collection::vec(any::<u8>(), 0..40), edns).prop_map(
        |(name, kind, damage, cut, more, (options, flags))| {
            let mut bytes = with_edns(question(name, kind), 1400).to_vec().unwrap();
            // The OPT is last: its flags, and its length before its options.
            let end = bytes.len();
            bytes[end - 4..end - 2].copy_from_slice(&flags.to_be_bytes());
            let options: Vec<u8> = options
                .into_iter()
                .flat_map(|(code, data)| [&code.to_be_bytes()[..], &(data.len() as u16).to_be_bytes(), &data].concat())
                .collect();
            bytes[end - 2..].copy_from_slice(&(options.len() as u16).to_be_bytes());
            bytes.extend(options);
            for (at, byte) in damage {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes.truncate(bytes.len() - cut);
            bytes.extend(more);
            bytes
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_get_a_sound_answer_or_none(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        sound(&bytes)?;
    }

    #[test]
    fn arbitrary_bytes_behind_the_header_of_a_query_get_a_sound_answer(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut message = vec![1, 2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1];
        message.extend(bytes);
        sound(&message)?;
    }

    #[test]
    fn damaged_queries_get_a_sound_answer_or_none(bytes in damaged()) {
        sound(&bytes)?;
    }
}

#[test]
fn messages_without_exactly_one_readable_question_are_malformed() {
    let good = question("hearth.internal.", RecordType::SOA).to_vec().unwrap();
    let counted = |count: u16| {
        let mut bytes = good.clone();
        bytes[4..6].copy_from_slice(&count.to_be_bytes());
        bytes
    };
    let mut two = counted(2);
    two.extend_from_slice(&good[12..]);
    let mut opts = with_edns(question("hearth.internal.", RecordType::SOA), 1232).to_vec().unwrap();
    let opt = opts[opts.len() - 11..].to_vec();
    opts.extend(opt);
    opts[11] = 2;
    // A name that points to the header: the id 0x0000 as a root label, read at offset 0.
    let pointing = [0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 0x00, 0, 1, 0, 1].to_vec();
    // A name that points to itself.
    let looping = [0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 0x0c, 0, 1, 0, 1].to_vec();
    let cases = [
        ("no question", counted(0)),
        ("two questions", two),
        ("65,535 questions announced", counted(u16::MAX)),
        ("cut off", good[..good.len() - 1].to_vec()),
        ("a header alone", good[..12].to_vec()),
        ("two OPT records", opts),
        ("a name within the header", pointing),
        ("a name that points to itself", looping),
    ];
    for (what, bytes) in cases {
        let answer = answer(&bytes).unwrap_or_else(|| panic!("{what}: an answer"));
        assert_eq!(answer.metadata.response_code, ResponseCode::FormErr, "{what}");
        assert!(answer.queries.is_empty(), "{what}");
    }
}

#[test]
fn responses_and_fragments_of_a_header_get_nothing() {
    let good = question("hearth.internal.", RecordType::SOA).to_vec().unwrap();
    let mut response = good.clone();
    response[2] |= 0x80;
    let mut broken_response = response.clone();
    broken_response.pop();
    for bytes in [response, broken_response, good[..11].to_vec(), Vec::new()] {
        assert_eq!(answer(&bytes), None);
    }
}

#[tokio::test]
async fn a_flood_of_noise_does_not_end_the_server() {
    let server = Running::start(config()).await;
    let socket = tokio::net::UdpSocket::bind(crate::support::loopback()).await.unwrap();
    // xorshift32: noise that is the same in every run.
    let mut state = 0x9e37_79b9_u32;
    let mut noise = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    };
    for _ in 0..3000 {
        let length = (noise() % 700) as usize;
        let bytes: Vec<u8> = (0..length).map(|_| noise() as u8).collect();
        socket.send_to(&bytes, server.address).await.unwrap();
    }
    // Whatever of it was received, good questions are answered afterwards; one may be lost to a full buffer.
    let asked = question("photos.alice.hearth.internal.", RecordType::A).to_vec().unwrap();
    let patient = async {
        let client = tokio::net::UdpSocket::bind(crate::support::loopback()).await.unwrap();
        let mut buffer = [0; 512];
        loop {
            client.send_to(&asked, server.address).await.unwrap();
            let wait = std::time::Duration::from_millis(200);
            if let Ok(Ok(length)) = tokio::time::timeout(wait, client.recv(&mut buffer)).await {
                return buffer[..length].to_vec();
            }
        }
    };
    let bytes = tokio::time::timeout(crate::support::PATIENCE, patient).await.expect("an answer");
    assert_eq!(Message::from_vec(&bytes).unwrap().answers.len(), 2);
    assert!(!server.ended.is_finished());
    assert!(server.metric("hearth_dns_unanswered_total", &["udp", "response"]) > 0.0, "noise was read");
    ask_udp(server.address, &asked).await;
}

/// Routes that panic at one name, as a defect that a single query finds would.
#[derive(Debug)]
struct Defective;

impl RouteLookup for Defective {
    fn lookup(&self, hostname: &str) -> Option<Arc<RouteEntry>> {
        assert!(!hostname.starts_with("trap."), "the defect");
        None
    }

    fn has_names_below(&self, _name: &str) -> bool {
        false
    }

    fn serial(&self) -> u32 {
        1
    }
}

#[tokio::test]
async fn a_query_that_makes_the_server_panic_costs_only_its_own_answer() {
    let (registry, shutdown) = (prometheus::Registry::new(), tokio_util::sync::CancellationToken::new());
    let server = DnsServer::bind(config(), Arc::new(Defective), Arc::new(Now), &registry).await.unwrap();
    let address = server.local_addr();
    let running = tokio::spawn(server.run(shutdown.clone()));
    let trap = question("trap.hearth.internal.", RecordType::A).to_vec().unwrap();
    let good = question("hearth.internal.", RecordType::A).to_vec().unwrap();
    let client = tokio::net::UdpSocket::bind(crate::support::loopback()).await.unwrap();
    // More often than there are tasks that read the socket.
    for _ in 0..20 {
        client.send_to(&trap, address).await.unwrap();
        assert_eq!(Message::from_vec(&ask_udp(address, &good).await).unwrap().answers.len(), 2);
    }
    let mut connection = tokio::net::TcpStream::connect(address).await.unwrap();
    send_tcp(&mut connection, &trap).await;
    assert!(receive_tcp(&mut connection).await.is_err(), "the connection is closed");
    assert_eq!(Message::from_vec(&ask_tcp(address, &good).await).unwrap().answers.len(), 2);
    shutdown.cancel();
    running.await.expect("no panic").expect("a clean end");
}

/// Bytes of memory that this process has.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// nextest runs each test in a process of its own, so that its memory is what this took.
#[test]
fn a_flood_of_forged_sources_and_made_up_names_takes_no_memory_and_gets_little() {
    let answerer = answerer();
    let mut state = 0x9e37_79b9_u32;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    };
    let mut flood = |queries: u64, steady: u64| {
        let (mut asked, mut got) = (0_u64, 0_u64);
        for at in 0..queries {
            let (name, kind) = match at % 3 {
                0 => ("hearth.internal.".to_owned(), RecordType::ANY),
                1 => (format!("n{}.hearth.internal.", next()), RecordType::A),
                _ => (format!("n{}.wild.alice.hearth.internal.", next()), RecordType::A),
            };
            let mut message = with_edns(question(&name, kind), 4096);
            message.edns.as_mut().unwrap().set_dnssec_ok(true);
            let bytes = message.to_vec().unwrap();
            // Forged: any source at all, but every second one is the victim's.
            asked += if at % 2 == 0 { bytes.len() as u64 } else { 0 };
            let ip = if at % 2 == 0 { [198, 51, 100, 7].into() } else { std::net::Ipv4Addr::from(next()).into() };
            let asking = Asking { ip, transport: Transport::Udp, now: Timestamp(1_800_000_000_000), steady };
            if let Outcome::Answer { bytes, .. } = answerer.respond(&bytes, asking)
                && at % 2 == 0
            {
                got += bytes.len() as u64;
            }
        }
        (asked, got)
    };
    flood(10_000, 0);
    let before = resident();
    let (asked, got) = flood(30_000, 1000);
    let grown = resident().saturating_sub(before);
    assert!(grown < 8 << 20, "{grown} bytes more");
    assert!(got < asked / 2, "the victim got {got} bytes for {asked} that were sent");
}
