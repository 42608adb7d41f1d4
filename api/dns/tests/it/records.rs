//! Records that owners set, wildcards, and addresses inside homes.

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::RecordType as T,
};

use crate::support::{Running, addresses, ask_tcp, ask_udp, config, question};

async fn ask(server: &Running, name: &str, kind: T) -> Message {
    let bytes = question(name, kind).to_vec().unwrap();
    let udp = Message::from_vec(&ask_udp(server.address, &bytes).await).unwrap();
    let tcp = Message::from_vec(&ask_tcp(server.address, &bytes).await).unwrap();
    assert_eq!(udp.answers, tcp.answers, "{name} {kind}");
    udp
}

fn texts(message: &Message) -> Vec<String> {
    message.answers.iter().map(|record| format!("{} {} {}", record.name, record.record_type(), record.data)).collect()
}

/// Checks the answer records, the code, and that there is an SOA where something is missing.
async fn check(server: &Running, name: &str, kind: T, rcode: ResponseCode, expected: &[&str]) {
    let answer = ask(server, name, kind).await;
    assert_eq!(texts(&answer), expected, "{name} {kind}");
    assert_eq!(answer.metadata.response_code, rcode, "{name} {kind}");
    assert!(answer.metadata.authoritative, "{name} {kind}");
}

#[tokio::test]
async fn owners_records_of_every_type_are_answered() {
    let server = Running::start(config()).await;
    let set = |name: &str, kind: &str, text: &str| server.routes.record(name, kind, text);
    set("mail.alice.hearth.internal", "A", "198.51.100.9");
    set("mail.alice.hearth.internal", "AAAA", "2001:db8::9");
    set("mail.alice.hearth.internal", "TXT", "\"v=spf1 -all\"");
    set("mail.alice.hearth.internal", "CAA", "0 issue \"ca.example\"");
    set("mail.alice.hearth.internal", "HTTPS", "1 . alpn=h2,h3 port=8443");
    set("_xmpp._tcp.alice.hearth.internal", "SRV", "0 5 5222 mail.alice.hearth.internal.");
    set("alice.hearth.internal", "TXT", "owner");
    // Beside a route: its addresses are the gateways'.
    set("photos.alice.hearth.internal", "TXT", "beside");
    set("photos.alice.hearth.internal", "A", "198.51.100.66");
    set("photos.alice.hearth.internal", "CNAME", "elsewhere.example");
    let ok = ResponseCode::NoError;
    let mail = "mail.alice.hearth.internal.";
    check(&server, mail, T::A, ok, &["mail.alice.hearth.internal. A 198.51.100.9"]).await;
    check(&server, mail, T::AAAA, ok, &["mail.alice.hearth.internal. AAAA 2001:db8::9"]).await;
    check(&server, mail, T::TXT, ok, &["mail.alice.hearth.internal. TXT v=spf1 -all"]).await;
    check(&server, mail, T::CAA, ok, &["mail.alice.hearth.internal. CAA 0 issue \"ca.example\""]).await;
    check(&server, mail, T::HTTPS, ok, &["mail.alice.hearth.internal. HTTPS 1 . alpn=h2,h3, port=8443"]).await;
    check(&server, mail, T::SRV, ok, &[]).await;
    check(&server, mail, T::CNAME, ok, &[]).await;
    let srv = "_xmpp._tcp.alice.hearth.internal. SRV 0 5 5222 mail.alice.hearth.internal.";
    check(&server, "_xmpp._tcp.alice.hearth.internal.", T::SRV, ok, &[srv]).await;
    check(&server, "_tcp.alice.hearth.internal.", T::SRV, ok, &[]).await;
    check(&server, "alice.hearth.internal.", T::TXT, ok, &["alice.hearth.internal. TXT owner"]).await;
    let photos = "photos.alice.hearth.internal.";
    check(&server, photos, T::TXT, ok, &["photos.alice.hearth.internal. TXT beside"]).await;
    check(&server, photos, T::CNAME, ok, &[]).await;
    let gateways = ["photos.alice.hearth.internal. A 192.0.2.1", "photos.alice.hearth.internal. A 192.0.2.2"];
    check(&server, photos, T::A, ok, &gateways).await;
    assert_eq!(ask(&server, photos, T::ANY).await.answers.len(), 2, "one set of those that there are");
}

#[tokio::test]
async fn cnames_are_followed_inside_the_zone_and_circles_end() {
    let server = Running::start(config()).await;
    let set = |name: &str, to: &str| server.routes.record(name, "CNAME", to);
    set("www.alice.hearth.internal", "photos.alice.hearth.internal");
    set("old.alice.hearth.internal", "www.alice.hearth.internal");
    set("out.alice.hearth.internal", "host.example");
    set("dead.alice.hearth.internal", "nobody.alice.hearth.internal");
    set("one.bob.hearth.internal", "two.bob.hearth.internal");
    set("two.bob.hearth.internal", "one.bob.hearth.internal");
    let (ok, www) = (ResponseCode::NoError, "www.alice.hearth.internal. CNAME photos.alice.hearth.internal.");
    let old = "old.alice.hearth.internal. CNAME www.alice.hearth.internal.";
    let photos = "photos.alice.hearth.internal. AAAA 2001:db8::1";
    check(&server, "old.alice.hearth.internal.", T::AAAA, ok, &[old, www, photos]).await;
    check(&server, "old.alice.hearth.internal.", T::CNAME, ok, &[old]).await;
    check(&server, "old.alice.hearth.internal.", T::ANY, ok, &[old]).await;
    check(&server, "old.alice.hearth.internal.", T::TXT, ok, &[old, www]).await;
    check(&server, "out.alice.hearth.internal.", T::A, ok, &["out.alice.hearth.internal. CNAME host.example."]).await;
    // RFC 6604: the code is that of the last name.
    let dead = "dead.alice.hearth.internal. CNAME nobody.alice.hearth.internal.";
    check(&server, "dead.alice.hearth.internal.", T::A, ResponseCode::NXDomain, &[dead]).await;
    let circle = ask(&server, "one.bob.hearth.internal.", T::A).await;
    assert!((2..=3).contains(&circle.answers.len()), "{:?}", circle.answers);
}

#[tokio::test]
async fn an_owners_wildcard_stands_for_names_that_do_not_exist() {
    let server = Running::start(config()).await;
    server.routes.record("*.alice.hearth.internal", "CNAME", "photos.alice.hearth.internal");
    server.routes.record("*.deep.bob.hearth.internal", "TXT", "wild");
    let (ok, no) = (ResponseCode::NoError, ResponseCode::NXDomain);
    for name in ["blog.alice.hearth.internal.", "a.b.alice.hearth.internal.", "BLOG.alice.hearth.internal."] {
        let answer = ask(&server, name, T::AAAA).await;
        assert_eq!(answer.answers.len(), 2, "{name}");
        assert_eq!(answer.answers[0].name.to_string(), name);
    }
    let gateways = ["photos.alice.hearth.internal. AAAA 2001:db8::1"];
    check(&server, "photos.alice.hearth.internal.", T::AAAA, ok, &gateways).await;
    // RFC 4592 section 2.2.1: the closest encloser alone counts, and what exists needs no wildcard.
    check(&server, "x.photos.alice.hearth.internal.", T::A, no, &[]).await;
    check(&server, "photos.alice.hearth.internal.", T::TXT, ok, &[]).await;
    check(&server, "x.deep.bob.hearth.internal.", T::TXT, ok, &["x.deep.bob.hearth.internal. TXT wild"]).await;
    check(&server, "x.deep.bob.hearth.internal.", T::A, ok, &[]).await;
    check(&server, "deep.bob.hearth.internal.", T::TXT, ok, &[]).await;
    check(&server, "x.bob.hearth.internal.", T::TXT, no, &[]).await;
    check(&server, "*.deep.bob.hearth.internal.", T::TXT, ok, &["*.deep.bob.hearth.internal. TXT wild"]).await;
    check(&server, "x.*.deep.bob.hearth.internal.", T::TXT, no, &[]).await;
    check(&server, "x.lan.alice.hearth.internal.", T::A, no, &[]).await;
}

#[tokio::test]
async fn addresses_inside_a_home_are_told_under_lan_alone_and_only_where_there_are_any() {
    let server = Running::start(config()).await;
    let photos = "photos.alice.hearth.internal".to_owned();
    server.routes.lan.lock().unwrap().insert(
        photos,
        addresses(&["192.168.1.20", "fd00::20", "127.0.0.1", "0.0.0.0", "203.0.113.9", "2001:db8::9", "169.254.1.1"]),
    );
    let (ok, no) = (ResponseCode::NoError, ResponseCode::NXDomain);
    let name = "photos.lan.alice.hearth.internal.";
    check(&server, name, T::A, ok, &["photos.lan.alice.hearth.internal. A 192.168.1.20"]).await;
    check(&server, name, T::AAAA, ok, &["photos.lan.alice.hearth.internal. AAAA fd00::20"]).await;
    check(&server, "notes.lan.alice.hearth.internal.", T::A, no, &[]).await;
    check(&server, "lan.alice.hearth.internal.", T::A, ok, &[]).await;
    check(&server, "photos.lan.bob.hearth.internal.", T::A, no, &[]).await;
    check(&server, "lan.carol.hearth.internal.", T::A, no, &[]).await;
    check(&server, "x.photos.lan.alice.hearth.internal.", T::A, no, &[]).await;
    let outside = ask(&server, "photos.alice.hearth.internal.", T::A).await;
    assert_eq!(
        texts(&outside),
        ["photos.alice.hearth.internal. A 192.0.2.1", "photos.alice.hearth.internal. A 192.0.2.2"]
    );
}
