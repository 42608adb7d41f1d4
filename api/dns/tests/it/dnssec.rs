//! Signed answers, before real validators.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use hearth_dns::Keys;
use hearth_types::{
    Clock as _, Timestamp,
    dns::keys::{KeySet, MARGIN, PARENT_DS_TTL, PREPUBLISH, RETIRE, Role},
};
use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{Record, RecordType as T},
};
use tokio::{process::Command, sync::watch};

use crate::support::{
    Now, PATIENCE, Running, ZONE, ask_tcp, ask_udp, config, first_keys, keys, new_key, question, ready, with_edns,
};

/// A signed zone with records of all kinds.
async fn start(set: &KeySet) -> (Running, watch::Sender<Arc<Keys>>) {
    let (told, fed) = keys(set);
    let server = Running::start_with(config(), |answerer| answerer.with_keys(fed)).await;
    for (name, kind, text) in [
        ("mail.alice.hearth.internal", "TXT", "hello"),
        ("mail.alice.hearth.internal", "CAA", "0 issue \"ca.example\""),
        ("mail.alice.hearth.internal", "HTTPS", "1 . alpn=h2"),
        ("_xmpp._tcp.alice.hearth.internal", "SRV", "0 5 5222 mail.alice.hearth.internal."),
        ("www.alice.hearth.internal", "CNAME", "photos.alice.hearth.internal"),
        ("*.wild.alice.hearth.internal", "TXT", "wild"),
    ] {
        server.routes.record(name, kind, text);
    }
    (server, told)
}

/// A file that goes with its owner.
struct Anchor(PathBuf);

impl Drop for Anchor {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn file(name: &str, text: &str) -> Anchor {
    let path = std::env::temp_dir().join(format!("hearth-dns-{}-{}-{name}", std::process::id(), new_name()));
    std::fs::write(&path, text).unwrap();
    Anchor(path)
}

fn new_name() -> u64 {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

/// The parent's DS records of these keys, as delv reads them.
fn anchors(lines: &[String]) -> Anchor {
    let one = |line: &String| {
        let words: Vec<&str> = line.split(' ').collect();
        format!("{} static-ds {} {} {} \"{}\";\n", words[0], words[3], words[4], words[5], words[6])
    };
    file("anchors", &format!("trust-anchors {{\n{}}};\n", lines.iter().map(one).collect::<String>()))
}

/// The DS lines of the KSKs that a parent has.
fn ds(set: &KeySet, which: impl Fn(usize) -> bool) -> Vec<String> {
    let ksks = set.keys.iter().filter(|key| key.role == Role::Ksk).enumerate();
    ksks.filter(|(at, _)| which(*at)).map(|(_, key)| key.ds_line(ZONE).unwrap()).collect()
}

async fn output(mut command: Command) -> String {
    let output = tokio::time::timeout(PATIENCE, command.kill_on_drop(true).output()).await.expect("it ends").unwrap();
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

async fn delv(server: SocketAddr, anchor: &Anchor, words: &[&str]) -> String {
    let mut command = Command::new("delv");
    command.arg(format!("@{}", server.ip())).arg("-p").arg(server.port().to_string());
    command.arg("-a").arg(&anchor.0).arg(format!("+root={ZONE}")).args(words);
    output(command).await
}

/// Every kind of answer, and what a validator says of it.
const ANSWERS: [(&str, &str, &str); 21] = [
    ("photos.alice.hearth.internal", "A", "192.0.2.2"),
    ("photos.alice.hearth.internal", "AAAA", "2001:db8::1"),
    ("hearth.internal", "SOA", "hostmaster.hearth.internal."),
    ("hearth.internal", "NS", "ns1.hearth.internal."),
    ("hearth.internal", "DNSKEY", "257 3 13"),
    ("hearth.internal", "CDS", " 13 2 "),
    ("hearth.internal", "CDNSKEY", "257 3 13"),
    ("ns1.hearth.internal", "A", "192.0.2.1"),
    ("mail.alice.hearth.internal", "TXT", "\"hello\""),
    ("mail.alice.hearth.internal", "CAA", "0 issue \"ca.example\""),
    ("mail.alice.hearth.internal", "HTTPS", "alpn=\"h2\""),
    ("_xmpp._tcp.alice.hearth.internal", "SRV", "0 5 5222 mail.alice.hearth.internal."),
    ("www.alice.hearth.internal", "CNAME", "photos.alice.hearth.internal."),
    ("www.alice.hearth.internal", "AAAA", "2001:db8::1"),
    ("a.b.wild.alice.hearth.internal", "TXT", "\"wild\""),
    // No such type.
    ("photos.alice.hearth.internal", "TXT", "; negative response, fully validated"),
    ("x.wild.alice.hearth.internal", "A", "; negative response, fully validated"),
    ("alice.hearth.internal", "A", "; negative response, fully validated"),
    ("hearth.internal", "MX", "; negative response, fully validated"),
    // No such name.
    ("nobody.hearth.internal", "A", "; negative response, fully validated"),
    ("x.photos.alice.hearth.internal", "AAAA", "; negative response, fully validated"),
];

/// delv believes every answer by these anchors.
async fn believed(server: SocketAddr, anchor: &Anchor) {
    for (name, kind, part) in ANSWERS {
        let text = delv(server, anchor, &[name, kind]).await;
        assert!(text.contains("fully validated") && text.contains(part), "{name} {kind} lacks {part:?}:\n{text}");
    }
}

#[tokio::test]
async fn delv_believes_every_kind_of_answer() {
    let set = first_keys(Now.now());
    let (server, _told) = start(&set).await;
    believed(server.address, &anchors(&ds(&set, |_| true))).await;
    // It does not believe just anything.
    let stranger = anchors(&ds(&first_keys(Now.now()), |_| true));
    let text = delv(server.address, &stranger, &["photos.alice.hearth.internal", "A"]).await;
    assert!(text.contains("resolution failed") && !text.contains("fully validated"), "{text}");
}

#[tokio::test]
async fn unbound_believes_every_kind_of_answer() {
    let set = first_keys(Now.now());
    let (server, _told) = start(&set).await;
    let anchor: String = ds(&set, |_| true).iter().map(|line| ["trust-anchor: \"", line, "\"\n"].concat()).collect();
    let text = format!(
        "server:\nqname-minimisation: no\ndo-not-query-localhost: no\nmodule-config: \"validator iterator\"\n{anchor}stub-zone:\nname: \"{ZONE}\"\nstub-addr: {}@{}\n",
        server.address.ip(),
        server.address.port()
    );
    let conf = file("unbound", &text);
    for (name, kind, _) in ANSWERS {
        let mut command = Command::new("unbound-host");
        command.arg("-C").arg(&conf.0).args(["-v", "-t", kind, name]);
        let text = output(command).await;
        assert!(text.contains("(secure)") && !text.contains("BOGUS"), "{name} {kind}:\n{text}");
    }
}

#[tokio::test]
async fn kdig_shows_signatures_to_those_who_ask_for_them_alone() {
    let set = first_keys(Now.now());
    let (server, _told) = start(&set).await;
    let kdig = async |words: &[&str]| {
        let mut command = Command::new("kdig");
        command.arg(format!("@{}", server.address.ip())).arg("-p").arg(server.address.port().to_string()).args(words);
        output(command).await
    };
    let signed = kdig(&["+dnssec", "photos.alice.hearth.internal", "A"]).await;
    assert!(signed.contains("RRSIG\tA 13 4 60 "), "{signed}");
    let plain = kdig(&["photos.alice.hearth.internal", "A"]).await;
    assert!(!plain.contains("RRSIG") && plain.contains("192.0.2.1"), "{plain}");
    // RFC 9824: the name is there as far as a validator sees, and has no type but "no such name".
    let missing = kdig(&["+dnssec", "nobody.hearth.internal", "A"]).await;
    assert!(missing.contains("status: NOERROR") && missing.contains("\\000.nobody.hearth.internal."), "{missing}");
    assert!(missing.contains("RRSIG NSEC TYPE128") || missing.contains("RRSIG NSEC NXNAME"), "{missing}");
    let plain = kdig(&["nobody.hearth.internal", "A"]).await;
    assert!(plain.contains("status: NXDOMAIN") && !plain.contains("NSEC"), "{plain}");
    let wild = kdig(&["+dnssec", "x.wild.alice.hearth.internal", "TXT"]).await;
    assert!(wild.contains("RRSIG\tTXT 13 5 "), "as if the name were there itself: {wild}");
}

fn dnssec(name: &str, kind: T, flags: u16) -> Vec<u8> {
    let mut message = with_edns(question(name, kind), 4096);
    let edns = message.edns.as_mut().unwrap();
    edns.set_dnssec_ok(true);
    edns.flags_mut().z = flags;
    message.to_vec().unwrap()
}

fn kinds(records: &[Record]) -> Vec<u16> {
    records.iter().map(|record| record.record_type().into()).collect()
}

#[tokio::test]
async fn who_wants_the_code_of_a_missing_name_beside_its_proof_gets_it() {
    let (server, _told) = start(&first_keys(Now.now())).await;
    for (flags, rcode) in [(0, ResponseCode::NoError), (0x4000, ResponseCode::NXDomain)] {
        let bytes = ask_udp(server.address, &dnssec("nobody.hearth.internal.", T::A, flags)).await;
        let answer = Message::from_vec(&bytes).unwrap();
        assert_eq!(answer.metadata.response_code, rcode);
        assert_eq!(kinds(&answer.authorities), [6, 46, 47, 46], "SOA and NSEC, each with its signature");
    }
    let bytes = ask_udp(server.address, &dnssec("hearth.internal.", T::Unknown(128), 0)).await;
    assert_eq!(
        Message::from_vec(&bytes).unwrap().metadata.response_code,
        ResponseCode::FormErr,
        "RFC 9824 section 3.5"
    );
}

#[tokio::test]
async fn signed_answers_fit_where_they_can_and_any_is_small() {
    let (server, _told) = start(&first_keys(Now.now())).await;
    for (name, kind, _) in ANSWERS {
        let asked = dnssec(&format!("{name}."), kind.parse().unwrap(), 0);
        let bytes = ask_udp(server.address, &asked).await;
        let answer = Message::from_vec(&bytes).unwrap();
        assert!(bytes.len() <= 1232 && !answer.metadata.truncation, "{name} {kind}: {} bytes", bytes.len());
    }
    let any = ask_udp(server.address, &dnssec("hearth.internal.", T::ANY, 0)).await;
    let answer = Message::from_vec(&any).unwrap();
    assert_eq!(kinds(&answer.answers), [1, 1, 46], "one set");
    assert!(any.len() < 300, "{} bytes", any.len());
}

#[tokio::test]
async fn signatures_are_kept_and_made_anew_for_a_change() {
    let (server, _told) = start(&first_keys(Now.now())).await;
    let signature = async |name: &str, kind| {
        let answer = Message::from_vec(&ask_tcp(server.address, &dnssec(name, kind, 0)).await).unwrap();
        answer.answers.last().map(|record| record.data.to_string()).unwrap()
    };
    let name = "mail.alice.hearth.internal.";
    let first = signature(name, T::TXT).await;
    // A signature of this algorithm differs each time that it is made.
    assert_eq!(signature(name, T::TXT).await, first);
    server.routes.record("mail.alice.hearth.internal", "TXT", "more");
    assert_ne!(signature(name, T::TXT).await, first);
}

fn earlier(by: Duration) -> Timestamp {
    Timestamp(Now.now().0 - i64::try_from(by.as_millis()).unwrap())
}

#[tokio::test]
async fn delv_believes_every_answer_at_each_step_of_a_rollover_of_the_zone_signing_key() {
    let minute = Duration::from_mins(1);
    let mut seen = Vec::new();
    for (begun, signer, shown) in [(minute, 1, 3), (PREPUBLISH + minute, 2, 3), (PREPUBLISH + RETIRE + minute, 2, 2)] {
        let begun = earlier(begun);
        let mut set = first_keys(earlier(Duration::from_hours(100)));
        set.roll(Role::Zsk, &new_key(), begun).unwrap();
        let (server, _told) = start(&set).await;
        believed(server.address, &anchors(&ds(&set, |_| true))).await;
        let answer = ask_udp(server.address, &dnssec("hearth.internal.", T::DNSKEY, 0)).await;
        let records = Message::from_vec(&answer).unwrap().answers;
        assert_eq!(records.iter().filter(|record| record.record_type() == T::DNSKEY).count(), shown);
        let soa = delv(server.address, &anchors(&ds(&set, |_| true)), &["hearth.internal", "SOA", "+rrcomments"]).await;
        let tag = format!(" {} hearth.internal. ", set.keys[signer].tag().unwrap());
        assert!(soa.contains(&tag), "signed by {tag}:\n{soa}");
        seen.push(tag);
    }
    assert_eq!(seen.len(), 3);
}

/// Whether the parent has the DS of the first KSK, of the second, and so on.
type HasDs = fn(usize) -> bool;

#[tokio::test]
async fn delv_believes_every_answer_at_each_step_of_a_rollover_of_the_key_signing_key() {
    let minute = Duration::from_mins(1);
    let mut set = first_keys(earlier(Duration::from_hours(200)));
    set.roll(Role::Ksk, &new_key(), earlier(Duration::from_hours(150))).unwrap();
    let swap = PARENT_DS_TTL + MARGIN;
    let step = |seen: Duration| {
        let mut set = set.clone();
        set.ds_seen(PARENT_DS_TTL, earlier(seen)).unwrap();
        set
    };
    // Which DS the parent has, and how many are asked for: before the new one is there, then with both, after the change, and at the end.
    let steps: [(KeySet, HasDs, usize); 5] = [
        (set.clone(), |at| at == 0, 2),
        (step(minute), |_| true, 2),
        (step(swap + minute), |_| true, 2),
        (step(swap + RETIRE + minute), |_| true, 1),
        (step(swap + RETIRE + minute), |at| at == 1, 1),
    ];
    for (at, (set, parent, asked)) in steps.into_iter().enumerate() {
        let (server, _told) = start(&set).await;
        let anchor = anchors(&ds(&set, parent));
        believed(server.address, &anchor).await;
        let bytes = ask_udp(server.address, &dnssec("hearth.internal.", T::CDS, 0)).await;
        let records = Message::from_vec(&bytes).unwrap().answers;
        assert_eq!(records.iter().filter(|record| record.record_type() == T::CDS).count(), asked, "step {at}");
    }
    // Too early: the new key's DS alone does not lead to the old DNSKEY set.
    let (server, _told) = start(&set).await;
    let text = delv(server.address, &anchors(&ds(&set, |at| at == 1)), &["hearth.internal", "SOA"]).await;
    assert!(text.contains("resolution failed") && !text.contains("fully validated"), "{text}");
}

#[tokio::test]
async fn a_change_of_the_keys_is_in_the_next_answer() {
    let set = first_keys(Now.now());
    let (told, fed) = watch::channel(Arc::new(Keys::none()));
    let server = Running::start_with(config(), |answerer| answerer.with_keys(fed)).await;
    let asked = dnssec("hearth.internal.", T::SOA, 0);
    let before = Message::from_vec(&ask_udp(server.address, &asked).await).unwrap();
    assert_eq!(kinds(&before.answers), [6], "not signed while there are no keys");
    told.send_replace(ready(&set));
    let after = Message::from_vec(&ask_udp(server.address, &asked).await).unwrap();
    assert_eq!(kinds(&after.answers), [6, 46]);
}
