//! What a plain HTTP request asks for, and the answer: always to come back over HTTPS, or why not (RFC 9110, RFC 9112).

use jiff::Timestamp;

use crate::hostname;

/// The longest request head in bytes: what common servers take.
pub const MAX_HEAD: usize = 8 * 1024;

/// The longest method; the longest registered one has 17 (RFC 9110 section 16.1).
const MAX_METHOD: usize = 32;

/// The port that a URL of https does not name.
const HTTPS_PORT: u16 = 443;

/// What the first bytes of a connection say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Head {
    /// The head is not whole yet; so far nothing is wrong.
    Partial,
    /// A whole head.
    Whole(Request),
    /// No HTTP/1 request, or one that must be refused with 400 (RFC 9112 sections 2.2, 3.2 and 5).
    Malformed,
    /// A head longer than [`MAX_HEAD`].
    TooLong,
}

/// A request, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The host asked for, in lower case, without port and without a dot at the end; `None` for an IPv6 address,
    /// which nobody has as a name.
    pub host: Option<String>,
    /// Path and query, byte for byte as they came: visible ASCII that begins with `/`.
    pub target: String,
    /// Whether the answer must not have a body.
    pub head_only: bool,
}

/// Reads a request's head from the first bytes of a connection.
///
/// Guarantees: pure; never panics; costs time in proportion to the bytes. What was decided stays so however many
/// bytes follow, and [`Head::Partial`] ends before [`MAX_HEAD`]. Bytes after the head are ignored.
pub fn parse(bytes: &[u8]) -> Head {
    let bytes = &bytes[..bytes.len().min(MAX_HEAD)];
    let mut lines = Lines(bytes);
    let Some(first) = lines.next() else {
        return if !may_begin_request(bytes) {
            Head::Malformed
        } else if bytes.len() < MAX_HEAD {
            Head::Partial
        } else {
            Head::TooLong
        };
    };
    let Some(line) = RequestLine::parse(first) else {
        return Head::Malformed;
    };
    let mut host_field = None;
    loop {
        let Some(field) = lines.next() else {
            return if bytes.len() < MAX_HEAD { Head::Partial } else { Head::TooLong };
        };
        if field.is_empty() {
            break;
        }
        let Some((name, value)) = parse_field(field) else {
            return Head::Malformed;
        };
        // More than one is refused, since who obeys which would differ (RFC 9112 section 3.2).
        if name.eq_ignore_ascii_case(b"host") && host_field.replace(value).is_some() {
            return Head::Malformed;
        }
    }
    let Some(host_field) = host_field else {
        return Head::Malformed;
    };
    // An absolute target's host counts, and the field's is ignored (RFC 9112 section 3.2.2).
    match parse_authority(line.authority.unwrap_or(host_field)) {
        Ok(host) => Head::Whole(Request { host, target: line.target, head_only: line.method == b"HEAD" }),
        Err(BadAuthority) => Head::Malformed,
    }
}

/// Lines without their end. A single LF ends one as well (RFC 9112 section 2.2).
struct Lines<'a>(&'a [u8]);

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let end = self.0.iter().position(|byte| *byte == b'\n')?;
        let (line, rest) = self.0.split_at(end);
        self.0 = &rest[1..];
        Some(line.strip_suffix(b"\r").unwrap_or(line))
    }
}

/// Whether bytes without a line's end may become a request, so that garbage is told apart before its timeout.
fn may_begin_request(bytes: &[u8]) -> bool {
    let method = bytes.iter().take_while(|byte| is_token(**byte)).count();
    match bytes.get(method) {
        None => method <= MAX_METHOD,
        Some(b' ') => {
            let line = bytes.strip_suffix(b"\r").unwrap_or(bytes);
            (1..=MAX_METHOD).contains(&method) && line[method..].iter().all(|byte| matches!(byte, b' '..=b'~'))
        }
        Some(_) => false,
    }
}

struct RequestLine<'a> {
    method: &'a [u8],
    authority: Option<&'a [u8]>,
    target: String,
}

impl<'a> RequestLine<'a> {
    /// RFC 9112 section 3. The asterisk and authority forms are for OPTIONS and CONNECT alone, which nothing here
    /// answers: they are refused.
    fn parse(line: &'a [u8]) -> Option<Self> {
        let mut parts = line.split(|byte| *byte == b' ');
        let (method, target, version) = (parts.next()?, parts.next()?, parts.next()?);
        let is_version = matches!(version, [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'0'..=b'9']);
        if parts.next().is_some() || !is_version {
            return None;
        }
        if method.is_empty() || method.len() > MAX_METHOD || !method.iter().all(|byte| is_token(*byte)) {
            return None;
        }
        // Neither spaces nor line ends nor anything else that could end the answer's Location; no fragment either.
        if !target.iter().all(|byte| matches!(byte, b'!'..=b'~') && *byte != b'#') {
            return None;
        }
        let target = std::str::from_utf8(target).ok()?;
        if target.starts_with('/') {
            return Some(Self { method, authority: None, target: target.to_owned() });
        }
        let (scheme, rest) = target.split_once("://")?;
        if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
            return None;
        }
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let slash = if path.starts_with('/') { "" } else { "/" };
        Some(Self { method, authority: Some(authority.as_bytes()), target: format!("{slash}{path}") })
    }
}

/// A header field's name and value (RFC 9112 section 5). Continued lines and space before the colon are refused.
fn parse_field(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    let is_name = !name.is_empty() && name.iter().all(|byte| is_token(*byte));
    let is_value = value.iter().all(|byte| matches!(byte, b'\t' | b' '..=b'~' | 0x80..));
    (is_name && is_value).then(|| (name, value.trim_ascii()))
}

struct BadAuthority;

/// The host of `host[:port]`, `None` for an IPv6 address; the port is checked and dropped.
fn parse_authority(text: &[u8]) -> Result<Option<String>, BadAuthority> {
    let (host, port) = match text.iter().rposition(|byte| *byte == b':') {
        Some(colon) if !text.ends_with(b"]") => (&text[..colon], &text[colon + 1..]),
        _ => (text, &b""[..]),
    };
    let port = std::str::from_utf8(port).map_err(|_| BadAuthority)?;
    let is_port = port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok();
    if !port.is_empty() && !is_port {
        return Err(BadAuthority);
    }
    let Some(literal) = host.strip_prefix(b"[") else {
        return hostname::canonical(host).map(Some).ok_or(BadAuthority);
    };
    let literal = literal.strip_suffix(b"]").and_then(|it| std::str::from_utf8(it).ok()).ok_or(BadAuthority)?;
    literal.parse::<std::net::Ipv6Addr>().map(|_| None).map_err(|_| BadAuthority)
}

/// RFC 9110 section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// The answer to a request. None of them repeats anything of the request but the redirect its target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// 308 to the same name, path and query over HTTPS.
    Redirect {
        /// The name, canonical.
        host: String,
        /// The port of HTTPS.
        port: u16,
        /// Path and query.
        target: String,
    },
    /// 404: nobody serves the name now, since nobody has it or since its device is away: one page for both, without times, so
    /// that a stranger does not learn from it which names there are and when whose device is on.
    NotServed,
    /// 503: nobody is known to have the name, and the routes are not known yet.
    Starting,
    /// 400: no request.
    BadRequest,
    /// 431: a head that is too long.
    TooLong,
    /// 408: a head that did not arrive in time.
    Timeout,
}

impl Answer {
    /// The bytes to send; afterwards the connection ends.
    pub fn render(&self, head_only: bool, now: Timestamp) -> Vec<u8> {
        let (status, text) = match self {
            Self::Redirect { .. } => ("308 Permanent Redirect", "This site is served over HTTPS only.\n"),
            Self::NotServed => (
                "404 Not Found",
                "Nothing answers by this name here now: there may be no such site, or its device is away.\n",
            ),
            Self::Starting => ("503 Service Unavailable", "This gateway is starting; try again in a moment.\n"),
            Self::BadRequest => ("400 Bad Request", "This is not a request that can be answered.\n"),
            Self::TooLong => ("431 Request Header Fields Too Large", "The head of the request is too long.\n"),
            Self::Timeout => ("408 Request Timeout", "The request did not arrive in time.\n"),
        };
        let location = match self {
            Self::Redirect { host, port: HTTPS_PORT, target } => format!("Location: https://{host}{target}\r\n"),
            Self::Redirect { host, port, target } => format!("Location: https://{host}:{port}{target}\r\n"),
            _ => String::new(),
        };
        let date = now.strftime("%a, %d %b %Y %H:%M:%S GMT");
        let length = text.len();
        let body = if head_only { "" } else { text };
        format!(
            "HTTP/1.1 {status}\r\nDate: {date}\r\n{location}Content-Type: text/plain; charset=utf-8\r\n\
             X-Content-Type-Options: nosniff\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        )
        .into_bytes()
    }
}

#[cfg(test)]
mod tests;
