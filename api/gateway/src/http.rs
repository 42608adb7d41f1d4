//! The head of a plain HTTP/1.x request, read as far as a redirect needs it, and the answers (RFC 9110, RFC 9112).

use crate::client_hello::dns_name;

/// What the first bytes of a plain connection say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Head {
    /// Well-formed so far: more bytes are needed.
    Partial,
    /// A whole head.
    Request(Request),
    /// No HTTP/1.x request, or one without a usable Host.
    Malformed,
}

/// What a redirect needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The name of the Host header, in lower case, without a port.
    pub host: String,
    /// The request target: a path that begins with a slash, with its query. Visible ASCII alone.
    pub target: String,
    /// Whether only the head of an answer is wanted (method HEAD).
    pub head_only: bool,
}

/// The longest method in bytes: the registered ones have up to 17.
const MAX_METHOD: usize = 20;

/// Whether a connection may be HTTP, by its first byte: a method is made of token characters.
pub fn may_begin(byte: u8) -> bool {
    byte.is_ascii_uppercase()
}

/// Reads the head of a request.
///
/// Guarantees: never panics. Line ends may be bare line feeds (RFC 9112 section 2.2). A `Request` holds nothing that
/// could end a header line in an answer.
pub fn read(bytes: &[u8]) -> Head {
    let method = bytes.iter().position(|byte| !byte.is_ascii_uppercase() && *byte != b'-').unwrap_or(bytes.len());
    if method > MAX_METHOD || bytes.get(method).is_some_and(|byte| *byte != b' ' || method == 0) {
        return Head::Malformed;
    }
    let Some(end) = head_end(bytes) else {
        return Head::Partial;
    };
    match std::str::from_utf8(&bytes[..end]).ok().and_then(request) {
        Some(request) => Head::Request(request),
        None => Head::Malformed,
    }
}

/// Where the empty line begins.
fn head_end(bytes: &[u8]) -> Option<usize> {
    let mut start = 0;
    while let Some(length) = bytes[start..].iter().position(|byte| *byte == b'\n') {
        let line = &bytes[start..start + length];
        if start > 0 && (line.is_empty() || line == b"\r") {
            return Some(start);
        }
        start += length + 1;
    }
    None
}

fn request(head: &str) -> Option<Request> {
    let mut lines = head.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line));
    let mut start = lines.next()?.split(' ');
    let (method, target, version) = (start.next()?, start.next()?, start.next()?);
    if start.next().is_some() || !matches!(version, "HTTP/1.1" | "HTTP/1.0") {
        return None;
    }
    let mut hosts = lines.filter_map(|line| line.split_once(':')).filter(|(name, _)| name.eq_ignore_ascii_case("host"));
    let host = hosts.next()?.1.trim_matches([' ', '\t']);
    if hosts.next().is_some() {
        return None; // RFC 9112 section 3.2: more than one is answered with 400
    }
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && port.len() <= 5 => name,
        Some(_) => return None,
        None => host,
    };
    let target = path(target)?;
    Some(Request { host: dns_name(name)?, target, head_only: method == "HEAD" })
}

/// The path and query of a target in origin or absolute form (RFC 9112 section 3.2).
fn path(target: &str) -> Option<String> {
    if !target.bytes().all(|byte| byte.is_ascii_graphic()) {
        return None;
    }
    let rest = match target.get(..7) {
        Some(scheme) if scheme.eq_ignore_ascii_case("http://") => {
            let rest = &target[7..];
            &rest[rest.find(['/', '?']).unwrap_or(rest.len())..]
        }
        _ if target.starts_with('/') => target,
        _ => return None,
    };
    Some(if rest.starts_with('/') { rest.to_owned() } else { format!("/{rest}") })
}

/// The answer that sends the caller to https: 308, which keeps method and body (RFC 9110 section 15.4.9).
pub fn redirect(request: &Request, https_port: u16) -> Vec<u8> {
    let Request { host, target, .. } = request;
    let port = if https_port == 443 { String::new() } else { format!(":{https_port}") };
    let location = format!("https://{host}{port}{target}");
    let headers = format!("Location: {location}\r\n");
    answer("308 Permanent Redirect", &headers, "This app is served over https.\n", request.head_only)
}

/// The answer for a name that nobody has.
pub fn not_found(request: &Request) -> Vec<u8> {
    answer("404 Not Found", "", "No app of this name is served here.\n", request.head_only)
}

/// The answer to what cannot be read.
pub fn bad_request() -> Vec<u8> {
    answer("400 Bad Request", "", "This is no HTTP request with a host that could be redirected to https.\n", false)
}

fn answer(status: &str, headers: &str, text: &str, head_only: bool) -> Vec<u8> {
    let length = text.len();
    let body = if head_only { "" } else { text };
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {length}\r\n{headers}\
         Cache-Control: no-store\r\nConnection: close\r\n\r\n{body}"
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn found(host: &str, target: &str) -> Head {
        Head::Request(Request { host: host.to_owned(), target: target.to_owned(), head_only: false })
    }

    #[test]
    fn heads_and_what_they_say() {
        let cases = [
            ("GET / HTTP/1.1\r\nHost: a.b\r\n\r\n", found("a.b", "/")),
            ("GET /x?y=1 HTTP/1.1\nhost:\tA.B.:8080 \n\n", found("a.b", "/x?y=1")),
            ("POST /x HTTP/1.0\r\nX: y\r\nHOST: a.b:\r\n\r\nbody", found("a.b", "/x")),
            ("GET http://other/x HTTP/1.1\r\nHost: a.b\r\n\r\n", found("a.b", "/x")),
            ("GET http://other?x HTTP/1.1\r\nHost: a.b\r\n\r\n", found("a.b", "/?x")),
            ("GET //evil.example/ HTTP/1.1\r\nHost: a.b\r\n\r\n", found("a.b", "//evil.example/")),
            ("", Head::Partial),
            ("GE", Head::Partial),
            ("GET / HTTP/1.1\r\nHost: a.b\r\n", Head::Partial),
            ("get / HTTP/1.1\r\nHost: a.b\r\n\r\n", Head::Malformed),
            ("GET\t/ HTTP/1.1\r\nHost: a.b\r\n\r\n", Head::Malformed),
            (" GET", Head::Malformed),
            ("AAAAAAAAAAAAAAAAAAAAAAAA", Head::Malformed),
            ("GET / HTTP/1.1\r\n\r\n", Head::Malformed),
            ("GET / HTTP/1.1\r\nHost: a.b\r\nHost: c.d\r\n\r\n", Head::Malformed),
            ("GET / HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n", Head::Malformed),
            ("GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", Head::Malformed),
            ("GET / HTTP/1.1\r\nHost: a.b/c\r\n\r\n", Head::Malformed),
            ("GET / HTTP/1.1\r\nHost: a.b@c\r\n\r\n", Head::Malformed),
            ("GET / HTTP/1.1\r\nHost: a.b:x\r\n\r\n", Head::Malformed),
            ("GET / HTTP/1.1\r\nHost: a.b\rX: y\r\n\r\n", Head::Malformed),
            ("GET x HTTP/1.1\r\nHost: a.b\r\n\r\n", Head::Malformed),
            ("GET /\u{e4} HTTP/1.1\r\nHost: a.b\r\n\r\n", Head::Malformed),
            ("OPTIONS * HTTP/1.1\r\nHost: a.b\r\n\r\n", Head::Malformed),
            ("CONNECT a.b:443 HTTP/1.1\r\nHost: a.b\r\n\r\n", Head::Malformed),
            ("GET / HTTP/2.0\r\nHost: a.b\r\n\r\n", Head::Malformed),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Head::Malformed),
            ("GET / HTTP/1.1 x\r\nHost: a.b\r\n\r\n", Head::Malformed),
        ];
        for (text, expected) in cases {
            assert_eq!(read(text.as_bytes()), expected, "{text:?}");
        }
    }

    #[test]
    fn a_redirect_names_the_port_unless_it_is_the_usual_one() {
        let Head::Request(request) = read(b"HEAD /x?y HTTP/1.1\r\nHost: a.b:80\r\n\r\n") else { panic!("a request") };
        let text = |port| String::from_utf8(redirect(&request, port)).expect("text");
        assert!(text(443).contains("\r\nLocation: https://a.b/x?y\r\n"), "{}", text(443));
        assert!(text(8443).contains("\r\nLocation: https://a.b:8443/x?y\r\n"), "{}", text(8443));
        assert!(text(443).ends_with("\r\n\r\n"), "an answer to HEAD has no body");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&bytes);
            let _ = read(&[b"GET / HTTP/1.1\r\nHost: ", &bytes[..], b"\r\n\r\n"].concat());
        }

        #[test]
        fn a_redirect_has_no_line_of_the_callers(target in "[ -~\r\n]{0,40}", host in "[ -~\r\n]{0,40}") {
            let head = format!("GET /{target} HTTP/1.1\r\nHost: a{host}\r\n\r\n");
            if let Head::Request(request) = read(head.as_bytes()) {
                let answer = String::from_utf8(redirect(&request, 8443)).expect("text");
                let names: Vec<_> = answer.lines().skip(1).take_while(|line| !line.is_empty())
                    .filter_map(|line| line.split_once(':')).map(|(name, _)| name.to_owned()).collect();
                prop_assert_eq!(
                    names, ["Content-Type", "Content-Length", "Location", "Cache-Control", "Connection"]
                );
            }
        }
    }
}
