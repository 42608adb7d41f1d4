//! The headers of a user's request and of an app's answer, a line each: whatever they are, the app learns who called from the gateway alone,
//! a neighbour's page gets no cookies of the user along, and no cookie of an app is given to its neighbours.
#![no_main]

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue, Method};

/// The agent's own; all else of that crate would have to be built with it.
#[path = "."]
mod ingress {
    #[path = "../../agent/node/src/ingress/headers.rs"]
    pub(crate) mod headers;
    #[path = "../../agent/node/src/ingress/origin.rs"]
    pub(crate) mod origin;

    pub(crate) mod door {
        use super::{headers, origin};
        use http::{HeaderMap, Method};
        use std::net::IpAddr;

        pub(crate) fn forward(map: &mut HeaderMap, host: &str, caller: IpAddr) -> bool {
            let upgrade = headers::upgrade(map);
            let asked = upgrade.is_some();
            headers::forward(map, host, caller, upgrade);
            asked
        }

        pub(crate) fn strip(map: &mut HeaderMap) {
            headers::strip_hop_by_hop(map);
        }

        pub(crate) fn host_of(text: &str) -> String {
            headers::host_of(text)
        }

        pub(crate) fn guard_request(map: &mut HeaderMap, method: &Method, host: &str) {
            origin::guard_request(map, method, host, |_| false);
        }

        pub(crate) fn guard_answer(map: &mut HeaderMap, host: &str) {
            origin::guard_answer(map, host);
        }
    }
}
use ingress::door;

const HOST: &str = "photos.alice.test";

fn lines(bytes: &[u8]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for line in bytes.split(|byte| *byte == b'\n').take(64) {
        let mut parts = line.splitn(2, |byte| *byte == b':');
        let (Some(name), Some(value)) = (parts.next(), parts.next()) else { continue };
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value.trim_ascii())) {
            map.append(name, value);
        }
    }
    map
}

fn of<'a>(map: &'a HeaderMap, name: &str) -> Vec<&'a [u8]> {
    map.get_all(name).iter().map(HeaderValue::as_bytes).collect()
}

fn request(map: &HeaderMap, host: &str, caller: IpAddr) {
    let mut sent = map.clone();
    let upgrade = door::forward(&mut sent, host, caller);
    // As it is for CGI, WSGI and the like, where `-` and `_` are one.
    let same = |name: &HeaderName, other: &str| name.as_str().replace('_', "-") == other;
    let count = |other: &str| sent.iter().filter(|(name, _)| same(name, other)).count();
    assert_eq!(of(&sent, "x-forwarded-for"), [caller.to_canonical().to_string().as_bytes()]);
    assert_eq!(of(&sent, "x-forwarded-proto"), [b"https"]);
    for name in ["forwarded", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"] {
        assert_eq!(count(name), 1, "{name}: {sent:?}");
    }
    for name in ["x-real-ip", "x-forwarded-port", "transfer-encoding", "keep-alive", "proxy-connection"] {
        assert_eq!(count(name), 0, "{name}: {sent:?}");
    }
    assert_eq!(of(&sent, "connection").len(), usize::from(upgrade));
    assert_eq!(count("host"), 1, "{sent:?}");
    assert!(of(&sent, "cookie").len() <= 1);
    let forwarded = sent["forwarded"].as_bytes();
    assert!(forwarded.starts_with(b"for=") && forwarded.ends_with(b";proto=https"), "{sent:?}");
    let quotes = forwarded.iter().enumerate().filter(|(at, byte)| **byte == b'"' && forwarded[at - 1] != b'\\');
    assert_eq!(quotes.count() % 2, 0, "{sent:?}");
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((how, rest)) = bytes.split_first() else { return };
    let map = lines(rest);
    let caller: IpAddr = match how & 3 {
        0 => [192, 0, 2, 1].into(),
        1 => "2001:db8::1".parse().expect("an address"),
        _ => "::ffff:192.0.2.1".parse().expect("an address"),
    };
    request(&map, HOST, caller);
    request(&map, "photos.alice.test:8443", caller);
    // What a client gives for an authority; what is none is refused before.
    if let Some(host) = map.get("host").and_then(|host| host.to_str().ok()) {
        let name = door::host_of(host);
        assert!(!name.contains(['/', ':', '@', '"', ' ']) || name.starts_with('['), "{name:?}");
        if !name.is_empty() && !host.contains('@') {
            request(&map, host, caller);
        }
    }
    // A browser on a neighbour's page says so, and a page cannot keep that from it.
    let mut from_neighbour = map.clone();
    from_neighbour.insert("sec-fetch-site", HeaderValue::from_static("same-site"));
    from_neighbour.insert("origin", HeaderValue::from_static("https://evil.mallory.test"));
    door::guard_request(&mut from_neighbour, &Method::POST, HOST);
    assert!(!from_neighbour.contains_key("cookie") && !from_neighbour.contains_key("authorization"));
    let mut answer = map.clone();
    door::guard_answer(&mut answer, HOST);
    assert_eq!(of(&answer, "set-cookie").len(), of(&map, "set-cookie").len(), "no cookie is lost");
    for cookie in of(&answer, "set-cookie") {
        for attribute in cookie.split(|byte| *byte == b';').skip(1) {
            let text = String::from_utf8_lossy(attribute).to_ascii_lowercase();
            let Some((name, domain)) = text.split_once('=') else { continue };
            if name.trim() == "domain" {
                assert_eq!(domain.trim().trim_start_matches('.'), HOST, "{answer:?}");
            }
        }
    }
    let mut stripped = map.clone();
    door::strip(&mut stripped);
    assert!(!stripped.contains_key("connection") && !stripped.contains_key("upgrade"));
});
