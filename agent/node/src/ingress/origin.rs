//! Apps of one zone are one *site* to browsers, so that what keeps strangers' pages off an app (`SameSite` cookies, cookies without
//! a domain) does not keep its neighbours off. Here it does: to an app, every other app is another site. Pure.
//!
//! # Guarantees
//! - A request that another app's page makes in the user's browser carries no cookies and no login of the user, but for a link that is
//!   followed: what `SameSite=Lax` does for other sites (RFC 6265bis section 5.6.7.1).
//! - A cookie that an app sets in its answer goes to that app alone.
//! - `document.domain` opens no page to another app's, unless it asks for that itself.
//!
//! # Caveats
//! A script can still set a cookie for all names above its own (`document.cookie` with a domain), which then goes to its neighbours too: it
//! reads nothing by that, but may take the place of a cookie of theirs. Only the Public Suffix List ends that, so a zone belongs there.

use http::{
    HeaderMap, HeaderName, HeaderValue, Method,
    header::{AUTHORIZATION, COOKIE, ORIGIN, REFERER, SET_COOKIE},
};

use super::headers::host_of;

const SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
const DESTINATION: HeaderName = HeaderName::from_static("sec-fetch-dest");
const AGENT_CLUSTER: HeaderName = HeaderName::from_static("origin-agent-cluster");

/// Takes the user's cookies and login off a request that a page of a neighbour makes. `same_app` says whether a name leads to the app that is asked.
pub(super) fn guard_request(headers: &mut HeaderMap, method: &Method, host: &str, same_app: impl Fn(&str) -> bool) {
    if from_neighbour(headers, host, same_app) && !follows_a_link(headers, method) {
        headers.remove(COOKIE);
        headers.remove(AUTHORIZATION);
    }
}

/// Whether a page of the same site, and of another app, makes the request. Programs that are no browsers say nothing of it.
fn from_neighbour(headers: &HeaderMap, host: &str, same_app: impl Fn(&str) -> bool) -> bool {
    let origin = text(headers, &ORIGIN).map(origin_host);
    // A page can keep the name of its own to itself, and cannot give another one.
    let page = origin.clone().or_else(|| text(headers, &REFERER).map(origin_host));
    if page.is_some_and(|page| page == host || same_app(&page)) {
        return false;
    }
    match text(headers, &SITE) {
        Some(site) => site == "same-site",
        // Browsers of before 2023: a request that changes something says where it comes from.
        None => origin.is_some_and(|origin| same_site(&origin, host)),
    }
}

/// A link that is followed to a page of its own, which changes nothing.
fn follows_a_link(headers: &HeaderMap, method: &Method) -> bool {
    let top = text(headers, &MODE) == Some("navigate") && text(headers, &DESTINATION) == Some("document");
    top && matches!(*method, Method::GET | Method::HEAD)
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// The name in an origin (RFC 6454 section 6.2) or in a URL; empty for `null`.
fn origin_host(origin: &str) -> String {
    let authority = origin.split_once("://").and_then(|(_, rest)| rest.split(['/', '?', '#']).next());
    authority.map(host_of).unwrap_or_default()
}

/// Whether two names may be one site: the shortest that one can be has two labels.
fn same_site(one: &str, other: &str) -> bool {
    let site = |name: &str| name.rsplit('.').take(2).map(str::to_owned).collect::<Vec<_>>();
    site(one).len() == 2 && site(one) == site(other)
}

/// Keeps an app's cookies with it, and its pages apart from others'.
pub(super) fn guard_answer(headers: &mut HeaderMap, host: &str) {
    let wide = |cookie: &HeaderValue| domains(cookie.as_bytes()).any(|domain| !narrow(domain, host));
    if headers.get_all(SET_COOKIE).iter().any(wide) {
        let cookies: Vec<HeaderValue> = headers.get_all(SET_COOKIE).iter().map(|one| host_only(one, host)).collect();
        headers.remove(SET_COOKIE);
        for cookie in cookies {
            headers.append(SET_COOKIE, cookie);
        }
    }
    headers.entry(AGENT_CLUSTER).or_insert(HeaderValue::from_static("?1"));
}

/// Attributes follow the first `;`, whatever is in the value (RFC 6265bis section 5.5).
fn attributes(cookie: &[u8]) -> impl Iterator<Item = &[u8]> {
    cookie.split(|byte| *byte == b';').skip(1)
}

fn domain(attribute: &[u8]) -> Option<&[u8]> {
    let at = attribute.iter().position(|byte| *byte == b'=')?;
    let (name, value) = (attribute[..at].trim_ascii(), attribute[at + 1..].trim_ascii());
    name.eq_ignore_ascii_case(b"domain").then_some(value)
}

fn domains(cookie: &[u8]) -> impl Iterator<Item = &[u8]> {
    attributes(cookie).filter_map(domain)
}

/// Whether a domain is the app's own name, and nothing above it.
fn narrow(domain: &[u8], host: &str) -> bool {
    domain.strip_prefix(b".").unwrap_or(domain).eq_ignore_ascii_case(host.as_bytes())
}

/// The cookie without domains above the app's name.
fn host_only(cookie: &HeaderValue, host: &str) -> HeaderValue {
    let bytes = cookie.as_bytes();
    let first = bytes.split(|byte| *byte == b';').take(1);
    let kept = attributes(bytes).filter(|one| domain(one).is_none_or(|domain| narrow(domain, host)));
    let joined = first.chain(kept).collect::<Vec<_>>().join(&b';');
    // A part of a header's value is one.
    HeaderValue::from_bytes(&joined).unwrap_or_else(|_| cookie.clone())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOST: &str = "photos.alice.test";

    type Sent = Vec<(&'static str, &'static str)>;

    fn headers(list: &[(&str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&str, &str)| {
            (HeaderName::from_bytes(name.as_bytes()).expect("a name"), value.parse().expect("a value"))
        };
        list.iter().map(pair).collect()
    }

    #[test]
    fn a_neighbours_page_does_not_act_as_the_user() {
        let fetch = |site, mode, dest| [("sec-fetch-site", site), ("sec-fetch-mode", mode), ("sec-fetch-dest", dest)];
        let by = |origin| ("origin", origin);
        let cases: Vec<(&str, Method, Sent, bool)> = vec![
            ("its own page", Method::POST, fetch("same-origin", "cors", "empty").to_vec(), true),
            ("typed by the user", Method::GET, fetch("none", "navigate", "document").to_vec(), true),
            ("no browser", Method::POST, vec![], true),
            (
                "another site: the cookie's own policy",
                Method::POST,
                fetch("cross-site", "cors", "empty").to_vec(),
                true,
            ),
            ("a neighbour's link", Method::GET, fetch("same-site", "navigate", "document").to_vec(), true),
            ("a neighbour's form", Method::POST, fetch("same-site", "navigate", "document").to_vec(), false),
            ("a neighbour's frame", Method::GET, fetch("same-site", "navigate", "iframe").to_vec(), false),
            ("a neighbour's image", Method::GET, fetch("same-site", "no-cors", "image").to_vec(), false),
            ("a neighbour's script", Method::PUT, fetch("same-site", "cors", "empty").to_vec(), false),
            ("a neighbour's WebSocket", Method::GET, fetch("same-site", "websocket", "empty").to_vec(), false),
            (
                "another name of the same app",
                Method::POST,
                [fetch("same-site", "cors", "empty").to_vec(), vec![by("https://pics.alice.test:8443")]].concat(),
                true,
            ),
            (
                "an image on another page of the same app",
                Method::GET,
                [fetch("same-site", "no-cors", "image").to_vec(), vec![("referer", "https://pics.alice.test/?a=1")]]
                    .concat(),
                true,
            ),
            (
                "a neighbour's image, that says where it is",
                Method::GET,
                [fetch("same-site", "no-cors", "image").to_vec(), vec![("referer", "https://evil.mallory.test/")]]
                    .concat(),
                false,
            ),
            ("an old browser, its own page", Method::POST, vec![by("https://photos.alice.test:8443")], true),
            ("an old browser, a neighbour", Method::POST, vec![by("https://notes.alice.test")], false),
            ("an old browser, a page of nowhere", Method::POST, vec![by("null")], true),
            ("an old browser, another site", Method::POST, vec![by("https://evil.example")], true),
        ];
        for (what, method, sent, kept) in cases {
            let mut map = headers(&sent);
            map.insert(COOKIE, HeaderValue::from_static("session=1"));
            map.insert(AUTHORIZATION, HeaderValue::from_static("Basic YTpi"));
            guard_request(&mut map, &method, HOST, |name| name == "pics.alice.test");
            assert_eq!((map.contains_key(COOKIE), map.contains_key(AUTHORIZATION)), (kept, kept), "{what}");
        }
    }

    #[test]
    fn cookies_stay_with_the_app_that_sets_them() {
        for (set, stored) in [
            ("a=1", "a=1"),
            ("a=1; Path=/; HttpOnly", "a=1; Path=/; HttpOnly"),
            ("a=1; Domain=alice.test; Path=/", "a=1; Path=/"),
            ("a=1; domain = .test", "a=1"),
            ("a=1; Domain=photos.alice.test; Secure", "a=1; Domain=photos.alice.test; Secure"),
            ("a=1;DOMAIN=.Photos.Alice.Test", "a=1;DOMAIN=.Photos.Alice.Test"),
            ("a=1; Domain=photos.alice.test; Domain=alice.test", "a=1; Domain=photos.alice.test"),
            // Not an attribute.
            ("domain=alice.test; Path=/", "domain=alice.test; Path=/"),
            ("a=1; Domain", "a=1; Domain"),
        ] {
            let mut map = headers(&[("set-cookie", set), ("set-cookie", "b=2; Domain=alice.test")]);
            guard_answer(&mut map, HOST);
            let all: Vec<&str> = map.get_all(SET_COOKIE).iter().map(|one| one.to_str().expect("text")).collect();
            assert_eq!(all, [stored, "b=2"], "{set}");
        }
    }

    #[test]
    fn pages_are_apart_unless_the_app_says_otherwise() {
        for (sent, expected) in [(vec![], "?1"), (vec![("origin-agent-cluster", "?0")], "?0")] {
            let mut map = headers(&sent);
            guard_answer(&mut map, HOST);
            assert_eq!(map[AGENT_CLUSTER], expected);
        }
    }

    proptest! {
        #[test]
        fn no_cookie_keeps_a_wide_domain(parts in proptest::collection::vec("[ -~\u{80}-\u{ff}]{0,20}|[ ]?[dD]omain[ ]?=[ ]?[a-z.]{0,12}", 1..6)) {
            let value: Vec<u8> = parts.join(";").chars().map(|one| one as u32 as u8).collect();
            let mut map = HeaderMap::new();
            map.insert(SET_COOKIE, HeaderValue::from_bytes(&value).expect("a value"));
            guard_answer(&mut map, HOST);
            let kept = map[SET_COOKIE].as_bytes();
            prop_assert!(domains(kept).all(|domain| narrow(domain, HOST)));
            prop_assert_eq!(kept.split(|byte| *byte == b';').next(), value.split(|byte| *byte == b';').next());
        }
    }
}
