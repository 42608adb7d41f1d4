//! What a name server reads of strangers' bytes, on its own, for fuzzing: none of it may panic, whatever the bytes are, and what is said here
//! must hold.

use std::{
    net::IpAddr,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
};

use hearth_types::{
    Timestamp,
    dns::{
        keys::{KeySet, NewKey},
        record::{RecordKind, ZoneRecord, record_name},
    },
    routes::{RouteEntry, RouteLookup},
};
use hickory_proto::{
    op::{Message, MessageType, Query},
    rr::{DNSClass, Name, RecordType, rdata::opt::EdnsOption},
    serialize::binary::{BinDecodable as _, BinEncodable as _},
};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use tokio::sync::watch;

use crate::{Answerer, Asking, DnsConfig, Keys, Outcome, PrefixTable, Rcode, Silence, Transport, limits};

const NOW: Timestamp = Timestamp(1_800_000_000_000);
const SECRET: [u8; 32] = [7; 32];
/// The number of the COOKIE option (RFC 7873).
const COOKIE: u16 = 10;

/// A zone with a bit of everything.
#[derive(Default)]
struct Names {
    /// What an owner set at `r.b.zone`.
    set: Vec<ZoneRecord>,
}

impl RouteLookup for Names {
    fn lookup(&self, hostname: &str) -> Option<Arc<RouteEntry>> {
        let entry = RouteEntry { hostname: hostname.into(), owner: "b".into(), port: None, devices: Vec::new() };
        (hostname == "a.b.zone").then(|| Arc::new(entry))
    }

    fn records(&self, name: &str) -> Arc<[ZoneRecord]> {
        let of = |kind: RecordKind, text: &str| {
            kind.parse(text).map(|data| ZoneRecord { kind, ttl: None, data: data.into() })
        };
        match name {
            "*.b.zone" => of(RecordKind::Cname, "a.b.zone").into_iter().collect(),
            // To itself, and to one that leads back.
            "c.b.zone" => of(RecordKind::Cname, "c.b.zone").into_iter().collect(),
            "d.b.zone" => of(RecordKind::Cname, "e.d.b.zone").into_iter().collect(),
            "e.d.b.zone" => of(RecordKind::Cname, "d.b.zone").into_iter().collect(),
            // More than fits a datagram.
            "t.b.zone" => (0..3).filter_map(|_| of(RecordKind::Txt, &"x".repeat(900)).ok()).collect(),
            "r.b.zone" => self.set.iter().cloned().collect(),
            _ => Arc::from([]),
        }
    }

    fn lan_addresses(&self, hostname: &str) -> Vec<IpAddr> {
        if hostname == "a.lan.b.zone" { vec![[192, 168, 1, 2].into()] } else { Vec::new() }
    }

    fn has_names_below(&self, name: &str) -> bool {
        matches!(name, "b.zone" | "zone" | "lan.b.zone" | "d.b.zone")
    }

    fn serial(&self) -> u32 {
        1
    }
}

fn answerer(names: Names, signed: bool) -> Answerer {
    let mut config = DnsConfig::new(([127, 0, 0, 1], 0).into(), "zone", vec![[192, 0, 2, 1].into()], SECRET);
    config.limit_loopback = true;
    let table = PrefixTable::parse("clients 0.0.0.0/0 x\nclients 10.0.0.0/8 y\nclients 2001:db8::/32 z\n");
    let keys = if signed { Arc::new(keys()) } else { Arc::new(Keys::none()) };
    let answerer = Answerer::new(&config, Arc::new(names)).expect("a zone");
    answerer.with_locations(Arc::new(table.expect("a table"))).with_keys(watch::channel(keys).1)
}

fn keys() -> Keys {
    let new = || {
        let (algorithm, random) = (&ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
        let sealed = EcdsaKeyPair::generate_pkcs8(algorithm, &random).expect("a key").as_ref().to_vec();
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, &sealed, &random).expect("the same key");
        NewKey { public: pair.public_key().as_ref()[1..].try_into().expect("64 bytes"), sealed }
    };
    let set = KeySet::first(&new(), &new(), NOW);
    Keys::new(&set, |key| key.sealed_bytes().ok_or_else(|| "no bytes".to_owned())).expect("keys")
}

/// A message to the name server: the first byte says how it comes, the rest is what comes. It is answered by a message that can be read,
/// within its size and under its id, or not at all for one of the reasons that are known; the cookie of an answer is a good one.
pub fn query(bytes: &[u8]) {
    static PLAIN: LazyLock<Answerer> = LazyLock::new(|| answerer(Names::default(), false));
    static SIGNED: LazyLock<Answerer> = LazyLock::new(|| answerer(Names::default(), true));
    /// Milliseconds that pass between messages.
    static STEADY: AtomicU64 = AtomicU64::new(0);
    let Some((how, message)) = bytes.split_first() else { return };
    let answerer = if how & 1 == 0 { &*PLAIN } else { &*SIGNED };
    let transport = if how & 2 == 0 { Transport::Udp } else { Transport::Tcp };
    let ip: IpAddr = if how & 4 == 0 { [10, 0, 0, 1].into() } else { "2001:db8::1".parse().expect("an address") };
    // So slowly that some are beyond the rates.
    let steady = STEADY.fetch_add(u64::from(how >> 3), Ordering::Relaxed);
    let asking = Asking { ip, transport, now: NOW, steady };
    match answerer.respond(message, asking) {
        Outcome::Answer { bytes, rcode } => {
            let read = answered(message, &bytes, transport);
            if let Some(cookie) = cookie(&read) {
                shows_a_good_cookie(answerer, message, &cookie, asking, rcode);
            }
        }
        Outcome::Silent(why) => assert!(
            matches!(why, Silence::TooShort | Silence::Response)
                || (why == Silence::Limited && transport == Transport::Udp),
            "{why:?}"
        ),
    }
}

/// An answer can be read, and is one to this message.
fn answered(message: &[u8], answer: &[u8], transport: Transport) -> Message {
    let most = match transport {
        Transport::Udp => usize::from(limits::EDNS_PAYLOAD),
        Transport::Tcp => usize::from(u16::MAX),
    };
    assert!(answer.len() <= most, "{} bytes", answer.len());
    assert_eq!(answer[..2], message[..2], "the id");
    let read = Message::from_bytes(answer).expect("an answer can be read");
    assert_eq!(read.metadata.message_type, MessageType::Response);
    assert!(!read.metadata.recursion_available);
    read
}

fn cookie(message: &Message) -> Option<Vec<u8>> {
    let options = message.edns.as_ref()?.options();
    options.as_ref().iter().find_map(|(_, option)| match option {
        EdnsOption::Unknown(COOKIE, cookie) => Some(cookie.clone()),
        _ => None,
    })
}

/// Whoever returns the cookie that they were given is known by it: what was answered stays so, and nothing is held back.
fn shows_a_good_cookie(answerer: &Answerer, message: &[u8], cookie: &[u8], asking: Asking, was: Rcode) {
    let Ok(mut again) = Message::from_bytes(message) else { return };
    let Some(edns) = &mut again.edns else { return };
    edns.options_mut().remove(COOKIE.into());
    edns.options_mut().insert(EdnsOption::Unknown(COOKIE, cookie.to_vec()));
    let Ok(bytes) = again.to_bytes() else { return };
    match answerer.respond(&bytes, asking) {
        Outcome::Answer { bytes: answer, rcode } => {
            assert!(rcode != Rcode::BadCookie, "the cookie that was given is none");
            // What hickory writes anew of odd bytes may be another question.
            let same = bytes.len() == message.len() && was != Rcode::BadCookie;
            assert!(!same || bytes[..12] != message[..12] || rcode == was, "{was:?} became {rcode:?}");
            answered(&bytes, &answer, asking.transport);
        }
        Outcome::Silent(why) => panic!("whoever shows a good cookie is answered: {why:?}"),
    }
}

/// What an owner sets: the first byte says of which type it is, the second of which name, the rest is the text. What is taken comes out of
/// the name server as what it is, and can be read by others.
pub fn record(bytes: &[u8]) {
    let Some((kind, text)) = bytes.split_first() else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let _ = record_name(text);
    let kind = RecordKind::ALL[usize::from(*kind) % RecordKind::ALL.len()];
    let Ok(data) = kind.parse(text) else { return };
    let record = ZoneRecord { kind, ttl: Some(60), data: data.clone().into() };
    let answerer = answerer(Names { set: vec![record] }, false);
    let mut question = Message::query();
    let mut query = Query::query(Name::from_ascii("r.b.zone.").expect("a name"), RecordType::from(kind.code()));
    query.set_query_class(DNSClass::IN);
    question.add_query(query);
    let message = question.to_bytes().expect("a query");
    let asking = Asking { ip: [192, 0, 2, 7].into(), transport: Transport::Tcp, now: NOW, steady: 0 };
    let Outcome::Answer { bytes, rcode } = answerer.respond(&message, asking) else { panic!("no answer") };
    assert_eq!(rcode, Rcode::NoError);
    let read = answered(&message, &bytes, Transport::Tcp);
    let found = read.answers.iter().find(|one| one.record_type() == RecordType::from(kind.code()));
    let found = found.unwrap_or_else(|| panic!("{kind:?} {text:?} is not in {read:?}"));
    let written = found.data.to_bytes().expect("what was read can be written");
    assert_eq!(written, data, "{kind:?} {text:?} came out as {found}");
}

#[cfg(test)]
mod tests {
    /// What fuzzing begins with, and what it once found.
    #[test]
    fn seeds_of_fuzzing_are_read_as_they_must_be() {
        let mut read = 0;
        for (target, run) in [("dns_query", super::query as fn(&[u8])), ("dns_record", super::record)] {
            let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds").join(target);
            for file in std::fs::read_dir(folder).expect("seeds") {
                run(&std::fs::read(file.expect("a seed").path()).expect("a seed"));
                read += 1;
            }
        }
        assert!(read >= 10, "{read} seeds");
    }
}
