//! What becomes of the headers of a request and a response on the way. Pure.

use std::net::IpAddr;

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{CONNECTION, HOST, TE, TRANSFER_ENCODING, UPGRADE},
};

/// Headers that speak of one connection only (RFC 9110 section 7.6.1), and older ones that are used so.
const HOP_BY_HOP: [&str; 7] =
    ["connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "upgrade"];

/// What a client could say of itself and must not be believed.
const FORGEABLE: [&str; 6] =
    ["forwarded", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-forwarded-port", "x-real-ip"];

/// The protocol that a request wants to switch to, where it asks for that (RFC 9110 section 7.8).
pub(super) fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let asked = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let asked = asked.flat_map(|value| value.split(',')).any(|word| word.trim().eq_ignore_ascii_case("upgrade"));
    headers.get(UPGRADE).filter(|_| asked).cloned()
}

/// Removes what is of one connection only, named or listed in `Connection`.
pub(super) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let listed: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|word| HeaderName::from_bytes(word.trim().as_bytes()).ok())
        .collect();
    let trailers = headers.get(TE).is_some_and(|te| te.as_bytes().eq_ignore_ascii_case(b"trailers"));
    for name in listed {
        headers.remove(name);
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
    headers.remove(TRANSFER_ENCODING);
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// Makes a user's request one for the app: says who called and how, in place of what the client may have said.
pub(super) fn forward(headers: &mut HeaderMap, host: &str, caller: IpAddr, upgrade: Option<HeaderValue>) {
    strip_hop_by_hop(headers);
    drop_forgeable(headers);
    let set = |headers: &mut HeaderMap, name: &'static str, text: &str| {
        if let Ok(value) = HeaderValue::from_str(text) {
            headers.insert(name, value);
        }
    };
    // An IPv4 caller of a dual-stack socket is an IPv4 caller.
    let caller = caller.to_canonical();
    set(headers, "forwarded", &forwarded(caller, host));
    set(headers, "x-forwarded-for", &caller.to_string());
    set(headers, "x-forwarded-proto", "https");
    set(headers, "x-forwarded-host", host);
    if let Ok(value) = HeaderValue::from_str(host) {
        headers.insert(HOST, value);
    }
    if let Some(protocol) = upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocol);
    }
    merge_cookies(headers);
}

/// The value of `Forwarded` (RFC 7239 section 4). What is no token is quoted: an IPv6 address in its brackets (section 6), a host with a port.
fn forwarded(caller: IpAddr, host: &str) -> String {
    let token = |text: &str| {
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
    };
    let host =
        if token(host) { host.to_owned() } else { format!("\"{}\"", host.replace('\\', "\\\\").replace('"', "\\\"")) };
    match caller {
        IpAddr::V4(ip) => format!("for={ip};host={host};proto=https"),
        IpAddr::V6(ip) => format!("for=\"[{ip}]\";host={host};proto=https"),
    }
}

/// Removes what could be taken for the proxy's word, also where an app's gateway interface makes one variable of `-` and `_`
/// (RFC 3875 section 4.1.18).
fn drop_forgeable(headers: &mut HeaderMap) {
    let forged = |name: &&HeaderName| FORGEABLE.contains(&name.as_str().replace('_', "-").as_str());
    for name in headers.keys().filter(forged).cloned().collect::<Vec<_>>() {
        headers.remove(name);
    }
}

/// HTTP/2 may split cookies over several fields; HTTP/1.1 wants one (RFC 9113 section 8.2.3).
fn merge_cookies(headers: &mut HeaderMap) {
    let cookies: Vec<&[u8]> = headers.get_all(http::header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if cookies.len() > 1
        && let Ok(merged) = HeaderValue::from_bytes(&cookies.join(&b"; "[..]))
    {
        headers.insert(http::header::COOKIE, merged);
    }
}

/// The name in an authority (`host`, `host:port`), in lower case and without a dot at the end.
pub(super) fn host_of(authority: &str) -> String {
    let authority: Result<http::uri::Authority, _> = authority.parse();
    authority.map(|one| one.host().trim_end_matches('.').to_ascii_lowercase()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(list: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in list {
            map.append(HeaderName::from_bytes(name.as_bytes()).expect("a name"), value.parse().expect("a value"));
        }
        map
    }

    #[test]
    fn a_client_cannot_say_who_it_is() {
        let mut headers = map(&[
            ("x-forwarded-for", "6.6.6.6"),
            ("x-forwarded-for", "7.7.7.7"),
            ("forwarded", "for=6.6.6.6"),
            ("x-real-ip", "6.6.6.6"),
            ("x-forwarded-proto", "http"),
            ("x_forwarded_for", "6.6.6.6"),
            ("x-forwarded_proto", "http"),
            ("accept", "*/*"),
        ]);
        forward(&mut headers, "a.test", "::ffff:192.0.2.7".parse().expect("an address"), None);
        let expected = map(&[
            ("accept", "*/*"),
            ("forwarded", "for=192.0.2.7;host=a.test;proto=https"),
            ("x-forwarded-for", "192.0.2.7"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "a.test"),
            ("host", "a.test"),
        ]);
        assert_eq!(headers, expected);
    }

    #[test]
    fn forwarded_is_written_as_its_grammar_wants() {
        let cases = [
            ("192.0.2.7", "a.test", "for=192.0.2.7;host=a.test;proto=https"),
            ("2001:db8::7", "a.test:8443", "for=\"[2001:db8::7]\";host=\"a.test:8443\";proto=https"),
            ("192.0.2.7", "a\";for=6.6.6.6;b=\"", r#"for=192.0.2.7;host="a\";for=6.6.6.6;b=\"";proto=https"#),
        ];
        for (caller, host, expected) in cases {
            assert_eq!(forwarded(caller.parse().expect("an address"), host), expected);
        }
    }

    #[test]
    fn what_is_of_one_connection_stays_there() {
        let mut headers = map(&[
            ("connection", "close, X-Private"),
            ("x-private", "1"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("te", "trailers"),
            ("upgrade", "h2c"),
            ("x-kept", "1"),
        ]);
        assert_eq!(upgrade(&headers), None, "not listed in Connection");
        strip_hop_by_hop(&mut headers);
        assert_eq!(headers, map(&[("x-kept", "1"), ("te", "trailers")]));
    }

    #[test]
    fn an_upgrade_goes_through() {
        let mut headers = map(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]);
        let wanted = upgrade(&headers);
        forward(&mut headers, "a.test", "192.0.2.1".parse().expect("an address"), wanted);
        assert_eq!(headers["upgrade"], "websocket");
        assert_eq!(headers["connection"], "upgrade");
    }

    #[test]
    fn cookies_become_one_and_hosts_are_normalised() {
        let mut headers = map(&[("cookie", "a=1"), ("cookie", "b=2")]);
        forward(&mut headers, "a.test", "192.0.2.1".parse().expect("an address"), None);
        assert_eq!(headers["cookie"], "a=1; b=2");
        for (authority, host) in [("A.Test:8443", "a.test"), ("a.test.", "a.test"), ("a b", ""), ("[::1]:1", "[::1]")] {
            assert_eq!(host_of(authority), host);
        }
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_values_never_panic(value in proptest::collection::vec(32_u8..127, 0..60)) {
            let mut headers = HeaderMap::new();
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                headers.insert(CONNECTION, value.clone());
                headers.insert(UPGRADE, value.clone());
                let wanted = upgrade(&headers);
                forward(&mut headers, &host_of(value.to_str().unwrap_or_default()), IpAddr::from([0, 0, 0, 0]), wanted);
            }
        }
    }
}
