//! What the relay keeps to itself: names that are about the home, and answers that lead there. Pure.
//!
//! Pods cannot reach the home, so they lose nothing; but the host's resolver, often the home's router, would tell them which
//! devices there are, and a public name that resolves to a private address (DNS rebinding) would send whoever asks through
//! the pod to a neighbour.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hearth_types::external::is_global;

use super::message::{HEADER, NOERROR, Query, SERVFAIL};
use crate::denied::Denied;
use crate::prefix::Prefix;

/// Names that are never the public internet's: special use (RFC 6761, RFC 6762, RFC 7686, RFC 8375, RFC 9462, RFC 9476,
/// RFC 9665, ICANN's `internal`), those that ICANN will not delegate because homes use them (`home`, `corp`, `lan` and the
/// like), and `svc`, with which names of Services end; each with all below it.
const PRIVATE_ZONES: [&str; 17] = [
    "local",
    "localhost",
    "localdomain",
    "internal",
    "home.arpa",
    "resolver.arpa",
    "service.arpa",
    "onion",
    "alt",
    "invalid",
    "home",
    "corp",
    "lan",
    "intranet",
    "private",
    "mail",
    "svc",
];

/// Types of record that a validating resolver asks of a top-level domain: NS, SOA, DS, DNSKEY.
const ZONE_TYPES: [u16; 4] = [2, 6, 43, 48];

pub(super) const TYPE_A: u16 = 1;
pub(super) const TYPE_AAAA: u16 = 28;
/// SVCB and HTTPS (RFC 9460), and their parameters that hold addresses.
const TYPES_SERVICE: [u16; 2] = [64, 65];
const KEY_IPV4HINT: u16 = 4;
const KEY_IPV6HINT: u16 = 6;

/// What follows the name of a record: type, class, time to live, length.
const RECORD_HEADER: usize = 10;

/// What to do with a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is of the region's own zone: its answers pass as they are.
    Own,
    /// Its answers are looked through.
    Public,
    /// It is about the home: there is no such name for pods.
    Private,
}

/// Which names are the region's own.
#[derive(Clone, Debug, Default)]
pub(crate) struct NamePolicy {
    /// Labels of the zone, in lower case.
    zone: Vec<Vec<u8>>,
}

impl NamePolicy {
    pub(crate) fn new(zone: Option<&str>) -> Self {
        let labels = zone.unwrap_or_default().split('.').filter(|label| !label.is_empty());
        Self { zone: labels.map(|label| label.to_ascii_lowercase().into_bytes()).collect() }
    }

    /// The question for addresses of the zone itself: the gateways have them.
    pub(crate) fn zone_query(&self, kind: u16) -> Option<Query> {
        Query::of(&self.zone, kind).filter(|_| !self.zone.is_empty())
    }

    pub(crate) fn judge(&self, query: &Query, denied: &Denied) -> Verdict {
        let labels = query.labels();
        if !self.zone.is_empty() && labels.ends_with(&self.zone) {
            return Verdict::Own;
        }
        let is_single = labels.len() == 1 && !ZONE_TYPES.contains(&query.kind());
        if is_single || in_private_zone(&labels) || reverse_prefix(&labels).is_some_and(|p| denied.covers(p)) {
            Verdict::Private
        } else {
            Verdict::Public
        }
    }
}

fn in_private_zone(labels: &[Vec<u8>]) -> bool {
    PRIVATE_ZONES.iter().any(|zone| {
        let mut own = labels.iter().rev();
        zone.rsplit('.').all(|label| own.next().is_some_and(|one| one == label.as_bytes()))
    })
}

/// The addresses that a name below `in-addr.arpa` or `ip6.arpa` is about (RFC 1035 section 3.5, RFC 3596 section 2.5). Labels
/// that are no numbers, as service discovery puts there (RFC 6763 section 11), count for nothing.
fn reverse_prefix(labels: &[Vec<u8>]) -> Option<Prefix> {
    let [rest @ .., family, arpa] = labels else { return None };
    if arpa != b"arpa" {
        return None;
    }
    let number = |label: &Vec<u8>, radix: u32| {
        let text = std::str::from_utf8(label).ok().filter(|t| t.bytes().all(|b| b.is_ascii_alphanumeric()))?;
        u8::from_str_radix(text, radix).ok()
    };
    match family.as_slice() {
        b"in-addr" => {
            let octets: Vec<u8> = rest.iter().rev().take(4).map_while(|label| number(label, 10)).collect();
            let bits = octets.iter().enumerate().fold(0, |bits, (at, octet)| bits | u32::from(*octet) << (24 - 8 * at));
            Prefix::new(Ipv4Addr::from_bits(bits).into(), 8 * octets.len() as u8).filter(|p| p.len() > 0)
        }
        b"ip6" => {
            let nibbles: Vec<u8> =
                rest.iter().rev().take(32).map_while(|label| number(label, 16).filter(|n| *n < 16)).collect();
            let bits = nibbles.iter().enumerate().fold(0, |bits, (at, n)| bits | u128::from(*n) << (124 - 4 * at));
            Prefix::new(Ipv6Addr::from_bits(bits).into(), 4 * nibbles.len() as u8).filter(|p| p.len() > 0)
        }
        _ => None,
    }
}

/// A message whose records cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// A record of an answer.
struct Record<'a> {
    kind: u16,
    ttl: [u8; 4],
    data: &'a [u8],
}

/// Whether any record of an answer is such. `question_end` is where its first record begins.
fn any_record(
    answer: &[u8],
    question_end: usize,
    mut is_such: impl FnMut(&Record<'_>) -> Result<bool, Malformed>,
) -> Result<bool, Malformed> {
    let count = |at: usize| u16_at(answer, at).map(usize::from);
    let records = count(6)? + count(8)? + count(10)?;
    // An error may lack the question.
    let mut at = if count(4)? == 0 { HEADER } else { question_end };
    for _ in 0..records {
        at = skip_name(answer, at)?;
        let (kind, len) = (u16_at(answer, at)?, usize::from(u16_at(answer, at + 8)?));
        let ttl = answer.get(at + 4..at + 8).and_then(|ttl| ttl.try_into().ok()).ok_or(Malformed)?;
        at += RECORD_HEADER;
        let data = answer.get(at..at + len).ok_or(Malformed)?;
        if is_such(&Record { kind, ttl, data })? {
            return Ok(true);
        }
        at += len;
    }
    Ok(false)
}

/// Whether any record of an answer leads to a denied address. `question_end` is where its first record begins.
pub(crate) fn leads_home(answer: &[u8], question_end: usize, denied: &Denied) -> Result<bool, Malformed> {
    any_record(answer, question_end, |record| record_leads_home(record.kind, record.data, denied))
}

/// Whether an answer has an address by which the internet reaches this home: that of a device whose owner publishes it, where pods may not go.
pub(crate) fn leads_straight_home(answer: &[u8], question_end: usize, denied: &Denied) -> bool {
    let is_straight = |ip: IpAddr| is_global(ip) && denied.contains(ip);
    let found = any_record(answer, question_end, |record| {
        Ok(match record.kind {
            TYPE_A => <[u8; 4]>::try_from(record.data).is_ok_and(|ip| is_straight(ip.into())),
            TYPE_AAAA => <[u8; 16]>::try_from(record.data).is_ok_and(|ip| is_straight(ip.into())),
            _ => false,
        })
    });
    found == Ok(true)
}

/// The answer to a question for addresses that has those of another name's answer; [`SERVFAIL`] where that is none.
pub(crate) fn with_addresses_of(query: &Query, other: &[u8], question_end: usize) -> Vec<u8> {
    let (mut records, mut count) = (Vec::new(), 0u16);
    let read = any_record(other, question_end, |record| {
        if record.kind == query.kind() {
            // The name is the question's, which every answer here begins with (RFC 1035 section 4.1.4).
            records.extend_from_slice(&[0xc0, HEADER as u8]);
            records.extend_from_slice(&record.kind.to_be_bytes());
            records.extend_from_slice(&[0, 1]);
            records.extend_from_slice(&record.ttl);
            records.extend_from_slice(&(record.data.len() as u16).to_be_bytes());
            records.extend_from_slice(record.data);
            count = count.saturating_add(1);
        }
        Ok(false)
    });
    let is_error = other.get(3).is_none_or(|flags| flags & 0x0f != 0);
    if is_error || read.is_err() {
        return query.failure(SERVFAIL);
    }
    let mut answer = query.failure(NOERROR);
    answer[6..8].copy_from_slice(&count.to_be_bytes());
    answer.extend_from_slice(&records);
    answer
}

fn record_leads_home(kind: u16, data: &[u8], denied: &Denied) -> Result<bool, Malformed> {
    match kind {
        TYPE_A => addresses::<4>(data, denied),
        TYPE_AAAA => addresses::<16>(data, denied),
        kind if TYPES_SERVICE.contains(&kind) => {
            // Priority, target, parameters.
            let mut at = skip_name(data, 2)?;
            while at < data.len() {
                let (key, len) = (u16_at(data, at)?, usize::from(u16_at(data, at + 2)?));
                let value = data.get(at + 4..at + 4 + len).ok_or(Malformed)?;
                let leads = match key {
                    KEY_IPV4HINT => addresses::<4>(value, denied)?,
                    KEY_IPV6HINT => addresses::<16>(value, denied)?,
                    _ => false,
                };
                if leads {
                    return Ok(true);
                }
                at += 4 + len;
            }
            Ok(false)
        }
        _ => Ok(false),
    }
}

fn addresses<const N: usize>(data: &[u8], denied: &Denied) -> Result<bool, Malformed>
where
    IpAddr: From<[u8; N]>,
{
    let (chunks, rest) = data.as_chunks::<N>();
    if chunks.is_empty() || !rest.is_empty() {
        return Err(Malformed);
    }
    Ok(chunks.iter().any(|octets| denied.contains(IpAddr::from(*octets))))
}

/// Where a name ends: at its root label, or after the pointer that ends it (RFC 1035 section 4.1.4), which is not followed.
fn skip_name(bytes: &[u8], mut at: usize) -> Result<usize, Malformed> {
    loop {
        match bytes.get(at).ok_or(Malformed)? {
            0 => return Ok(at + 1),
            len if *len < 64 => at += 1 + usize::from(*len),
            len if *len >= 192 => return Ok(at + 2),
            _ => return Err(Malformed),
        }
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16, Malformed> {
    let two: [u8; 2] = bytes.get(at..at + 2).and_then(|two| two.try_into().ok()).ok_or(Malformed)?;
    Ok(u16::from_be_bytes(two))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use super::*;
    use crate::dns::message::tests::query;
    use proptest::prelude::*;

    fn denied() -> Denied {
        Denied::new(&BTreeSet::from(["2a00:77::/56".parse().unwrap(), "45.1.2.0/24".parse().unwrap()]))
    }

    fn judge(name: &str, kind: u16, zone: Option<&str>) -> Verdict {
        NamePolicy::new(zone).judge(&Query::parse(&query(name, kind)).unwrap(), &denied())
    }

    #[test]
    fn names_of_the_home_do_not_exist_for_pods() {
        let nibbles = |text: &str| text.chars().rev().flat_map(|c| [c, '.']).collect::<String>() + "ip6.arpa";
        for name in [
            "printer.local",
            "LOCAL",
            "_ipp._tcp.local",
            "router.home.arpa",
            "nas.lan",
            "NAS.Home",
            "db.internal",
            "x.localhost",
            "_dns.resolver.arpa",
            "nas",
            "1.77.168.192.in-addr.arpa",
            "lb._dns-sd._udp.0.77.168.192.in-addr.arpa",
            "168.192.IN-ADDR.ARPA",
            "10.in-addr.arpa",
            "1.0.0.127.in-addr.arpa",
            "254.169.in-addr.arpa",
            "99.100.in-addr.arpa",
            "251.0.0.224.in-addr.arpa",
            "9.2.1.45.in-addr.arpa",
            &nibbles("fd00000000000001"),
            &nibbles("fe80"),
            &nibbles("2a00007700000042"),
        ] {
            assert_eq!(judge(name, 12, None), Verdict::Private, "{name}");
        }
    }

    #[test]
    fn names_of_the_internet_and_of_the_zone_pass() {
        for (name, kind) in [
            ("example.com", 1),
            ("local.example.com", 1),
            ("xlocal.com", 28),
            ("1.1.1.1.in-addr.arpa", 12),
            ("in-addr.arpa", 2),
            ("192.in-addr.arpa", 6),
            ("ipv4only.arpa", 28),
            ("com", 43),
            ("", 2),
            ("0.0.6.2.ip6.arpa", 12),
            ("x.1.1.1.in-addr.arpa", 12),
        ] {
            assert_eq!(judge(name, kind, None), Verdict::Public, "{name}");
        }
        let zone = Some("Hearth.internal.");
        assert_eq!(judge("photos.alice.hearth.INTERNAL", 1, zone), Verdict::Own);
        assert_eq!(judge("hearth.internal", 6, zone), Verdict::Own);
        assert_eq!(judge("other.internal", 1, zone), Verdict::Private);
        assert_eq!(judge("xhearth.internal", 1, zone), Verdict::Private);
    }

    /// An answer with these records: type and data; the first has a compressed name, the others a plain one.
    fn answer(records: &[(u16, Vec<u8>)]) -> (Vec<u8>, usize) {
        let mut bytes = query("web.example", 1);
        let end = bytes.len();
        (bytes[2], bytes[7]) = (0x81, records.len() as u8);
        for (n, (kind, data)) in records.iter().enumerate() {
            bytes.extend_from_slice(if n == 0 { &[0xc0, 12] } else { b"\x01a\x07example\x00" });
            bytes.extend_from_slice(&kind.to_be_bytes());
            bytes.extend_from_slice(&[0, 1, 0, 0, 0, 60]);
            bytes.extend_from_slice(&(data.len() as u16).to_be_bytes());
            bytes.extend_from_slice(data);
        }
        (bytes, end)
    }

    fn octets(address: &str) -> Vec<u8> {
        match address.parse().unwrap() {
            IpAddr::V4(a) => a.octets().to_vec(),
            IpAddr::V6(a) => a.octets().to_vec(),
        }
    }

    fn service(key: u16, value: &[u8]) -> Vec<u8> {
        // Priority 1, target ".", alpn h2, then the parameter.
        let mut data = vec![0, 1, 0, 0, 1, 0, 3, 2, b'h', b'2'];
        data.extend_from_slice(&key.to_be_bytes());
        data.extend_from_slice(&(value.len() as u16).to_be_bytes());
        data.extend_from_slice(value);
        data
    }

    #[test]
    fn answers_that_lead_home_are_found() {
        let leads = |records: &[(u16, Vec<u8>)]| {
            let (bytes, end) = answer(records);
            leads_home(&bytes, end, &denied())
        };
        let public = (1, octets("1.2.3.4"));
        for (kind, data) in [
            (1, octets("192.168.77.20")),
            (1, octets("127.0.0.1")),
            (1, octets("0.0.0.0")),
            (1, octets("45.1.2.3")),
            (28, octets("fd00::1")),
            (28, octets("::ffff:192.168.1.1")),
            (28, octets("2a00:77:0:12::1")),
            (28, octets("64:ff9b::c0a8:101")),
            (65, service(4, &[octets("1.1.1.1"), octets("10.0.0.1")].concat())),
            (64, service(6, &octets("fe80::1"))),
        ] {
            assert_eq!(leads(&[(kind, data.clone())]), Ok(true), "{kind} {data:?}");
            assert_eq!(leads(&[public.clone(), (5, b"\x01b\xc0\x0c".to_vec()), (kind, data)]), Ok(true));
        }
        for (kind, data) in [
            (28, octets("2606:4700::1")),
            (65, service(4, &octets("1.1.1.1"))),
            (65, service(1, &octets("192.168.1.1"))),
            (16, octets("192.168.1.1")),
        ] {
            assert_eq!(leads(&[public.clone(), (kind, data)]), Ok(false));
        }
        for (kind, data) in
            [(1, vec![1, 2, 3]), (1, vec![]), (28, octets("1.2.3.4")), (65, service(4, &[10, 0, 0])), (65, vec![0])]
        {
            assert_eq!(leads(&[(kind, data.clone())]), Err(Malformed), "{kind} {data:?}");
        }
    }

    /// What the relay does with a packet of a pod, and with one that comes back.
    fn relay(query: &[u8], answer: &[u8]) -> Option<Result<bool, Malformed>> {
        let query = Query::parse(query).ok()?;
        let _ = NamePolicy::new(Some("hearth.internal")).judge(&query, &denied());
        let answer = query.accept(0x1234, answer.to_vec())?;
        Some(leads_home(&answer, query.question_end(), &denied()))
    }

    /// Every file of the corpus, as it is, and cut and changed everywhere.
    #[test]
    fn packets_of_the_corpus_are_judged_as_they_are_called() {
        let plain = query("example.com", 1);
        let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/dns");
        let mut files = 0;
        for path in std::fs::read_dir(directory).unwrap() {
            let path = path.unwrap().path();
            let (name, bytes) = (path.file_stem().unwrap().to_str().unwrap().to_owned(), std::fs::read(&path).unwrap());
            match name.split_once('-').unwrap() {
                ("query", rest) => {
                    let passes = matches!(rest, "plain" | "edns" | "root");
                    assert_eq!(Query::parse(&bytes).is_ok(), passes, "{name}");
                }
                (_, rest) => {
                    let expected = match rest {
                        // Pointers are not followed, so where they lead does not matter.
                        "plain" | "no-question" | "svcb-target-pointer" | "pointer-forward" => Some(Ok(false)),
                        "private" | "mixed" | "glue-private" | "svcb-hint" | "mapped" => Some(Ok(true)),
                        "no-question-with-records" => None,
                        _ => Some(Err(Malformed)),
                    };
                    assert_eq!(relay(&plain, &bytes), expected, "{name}");
                }
            }
            for at in 0..bytes.len() {
                let _ = (relay(&bytes[..at], &bytes), relay(&plain, &bytes[..at]));
                for byte in [0, 1, 0x3f, 0x40, 0xc0, 0xff] {
                    let mut changed = bytes.clone();
                    changed[at] = byte;
                    let _ = (relay(&changed, &bytes), relay(&plain, &changed));
                }
            }
            files += 1;
        }
        assert!(files > 30);
    }

    #[test]
    fn a_name_that_leads_straight_to_this_home_has_the_addresses_of_the_zone_for_pods() {
        let denied = Denied::new(&["25.0.0.1/32", "10.0.0.0/8"].map(|one| one.parse().unwrap()).into());
        let straight = |records: &[(u16, Vec<u8>)]| {
            let (bytes, end) = answer(records);
            leads_straight_home(&bytes, end, &denied)
        };
        assert!(straight(&[(1, octets("25.0.0.1"))]) && straight(&[(5, vec![0]), (1, octets("25.0.0.1"))]));
        assert!(!straight(&[(1, octets("25.0.0.2"))]), "another home");
        assert!(!straight(&[(1, octets("10.0.0.1"))]), "where a region in the home has its gateway");
        assert!(!straight(&[(16, octets("25.0.0.1"))]));

        let asked = Query::parse(&query("photos.alice.zone", 1)).unwrap();
        let policy = NamePolicy::new(Some("Alice.Zone"));
        let zone = policy.zone_query(1).unwrap();
        assert_eq!((zone.labels(), zone.kind()), (vec![b"alice".to_vec(), b"zone".to_vec()], 1));
        assert_eq!(NamePolicy::new(None).zone_query(1), None);
        let (bytes, end) = answer(&[(1, octets("1.2.3.4")), (16, vec![1, b'x']), (1, octets("1.2.3.5"))]);
        let told = with_addresses_of(&asked, &bytes, end);
        assert_eq!(
            (told[7], told[3] & 0xf, &told[..asked.question_end()][12..]),
            (2, 0, &query("photos.alice.zone", 1)[12..])
        );
        let mut found = Vec::new();
        let read = any_record(&told, asked.question_end(), |record| {
            found.push((record.kind, record.data.to_vec()));
            Ok(false)
        });
        assert_eq!((read, found), (Ok(false), vec![(1, octets("1.2.3.4")), (1, octets("1.2.3.5"))]));
        let mut failed = bytes.clone();
        failed[3] |= 2;
        for bad in [&failed[..], &bytes[..bytes.len() - 1], &[]] {
            assert_eq!(with_addresses_of(&asked, bad, end)[3] & 0xf, SERVFAIL);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), counts in any::<[u8; 4]>(), end in 0usize..64) {
            let mut bytes = bytes;
            let _ = leads_home(&bytes, end, &denied());
            // With counts that are small, so that records are looked at.
            for (at, count) in [5, 7, 9, 11].into_iter().zip(counts) {
                if bytes.len() > at { (bytes[at - 1], bytes[at]) = (0, count % 5); }
            }
            let _ = leads_home(&bytes, end.max(12), &denied());
            let _ = leads_straight_home(&bytes, end, &denied());
            let asked = Query::parse(&query("a", 1)).unwrap();
            prop_assert!(with_addresses_of(&asked, &bytes, end).len() <= 2 * bytes.len() + asked.question_end());
        }

        #[test]
        fn a_truncated_answer_is_malformed_and_never_harmless(cut in 1usize..30) {
            let (bytes, end) = answer(&[(1, octets("1.2.3.4")), (1, octets("10.0.0.1"))]);
            prop_assert_eq!(leads_home(&bytes[..bytes.len() - cut], end, &denied()), Err(Malformed));
        }

        #[test]
        fn any_name_is_judged(labels in proptest::collection::vec("[a-z0-9]{1,3}|arpa|in-addr|ip6|local", 0..40), kind in any::<u16>()) {
            if let Ok(query) = Query::parse(&query(&labels.join("."), kind)) {
                let _ = NamePolicy::new(Some("hearth.internal")).judge(&query, &denied());
            }
        }
    }
}
