//! The server name in a TLS connection's first bytes: a pure parser (RFC 8446 sections 4 and 5, RFC 6066 section 3).
//!
//! It follows the structure down to the one extension it needs and ignores the others, known or not (GREASE,
//! RFC 8701; an outer ClientHello of ECH has a public name like any other).

/// What the first bytes of a connection say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerName {
    /// Well-formed so far: more bytes are needed.
    Partial,
    /// A complete ClientHello with this name, in lower case and without a dot at the end. It is a syntactically valid
    /// DNS name (RFC 1123 section 2.1, underscores allowed).
    Found(String),
    /// A complete ClientHello without a name.
    None,
    /// No ClientHello.
    Malformed,
}

/// The content type of a handshake record (RFC 8446 section 5.1), a TLS connection's first byte.
pub const HANDSHAKE_RECORD: u8 = 22;

const RECORD_HEADER: usize = 5;
/// The most that a plaintext record may carry (RFC 8446 section 5.1).
const MAX_RECORD: usize = 1 << 14;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME_EXTENSION: u16 = 0;
const HOST_NAME: u8 = 0;

/// Reads the server name of a ClientHello, which may span several records.
///
/// Guarantees: never panics; more bytes never turn `Found`, `None` or `Malformed` into something else; takes
/// time linear in the length.
pub fn server_name(bytes: &[u8]) -> ServerName {
    match handshake(bytes) {
        Err(Stop::Partial) => ServerName::Partial,
        Err(Stop::Malformed) => ServerName::Malformed,
        Ok(body) => match name_in_hello(&body) {
            Ok(Some(name)) => ServerName::Found(name),
            Ok(None) => ServerName::None,
            // The message is complete, so a length that points behind its end is wrong.
            Err(Stop::Partial | Stop::Malformed) => ServerName::Malformed,
        },
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    Partial,
    Malformed,
}

/// Takes parts off the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Stop> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Stop::Partial)?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, Stop> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn number(&mut self, width: usize) -> Result<usize, Stop> {
        Ok(self.take(width)?.iter().fold(0, |number, byte| number << 8 | usize::from(*byte)))
    }

    /// A vector with a length of so many bytes before it.
    fn vector(&mut self, width: usize) -> Result<&'a [u8], Stop> {
        let length = self.number(width)?;
        self.take(length)
    }
}

/// Puts the first handshake message together from its records, and returns its body.
fn handshake(bytes: &[u8]) -> Result<Vec<u8>, Stop> {
    let mut records = Reader(bytes);
    let mut message = Vec::new();
    loop {
        if let Some((head, body)) = message.split_first_chunk::<4>() {
            let [_, length @ ..] = head;
            let length = length.iter().fold(0, |number, byte| number << 8 | usize::from(*byte));
            if length > crate::MAX_CLIENT_HELLO {
                return Err(Stop::Malformed);
            }
            if let Some(body) = body.get(..length) {
                return Ok(body.to_vec());
            }
        }
        append_record(&mut records, &mut message)?;
    }
}

/// Appends what there is of the next record, so that a wrong beginning is seen before its record is whole.
fn append_record(records: &mut Reader<'_>, message: &mut Vec<u8>) -> Result<(), Stop> {
    if records.0.first().is_some_and(|kind| *kind != HANDSHAKE_RECORD) {
        return Err(Stop::Malformed);
    }
    // The legacy version: 3.1 in a first hello, 3.3 else; minor versions are to be ignored.
    if records.0.get(1).is_some_and(|major| *major != 3) {
        return Err(Stop::Malformed);
    }
    let mut header = Reader(records.take(RECORD_HEADER)?);
    header.take(3)?;
    let length = header.number(2)?;
    if length == 0 || length > MAX_RECORD {
        return Err(Stop::Malformed);
    }
    let there = records.0.len().min(length);
    message.extend_from_slice(records.take(there)?);
    if message.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
        return Err(Stop::Malformed);
    }
    Ok(())
}

/// The name in a whole ClientHello (RFC 8446 section 4.1.2).
fn name_in_hello(body: &[u8]) -> Result<Option<String>, Stop> {
    let mut hello = Reader(body);
    hello.take(2 + 32)?; // legacy_version, random
    if hello.vector(1)?.len() > 32 {
        return Err(Stop::Malformed); // legacy_session_id
    }
    let suites = hello.vector(2)?;
    if suites.is_empty() || suites.len() % 2 != 0 {
        return Err(Stop::Malformed);
    }
    if hello.vector(1)?.is_empty() {
        return Err(Stop::Malformed); // legacy_compression_methods
    }
    if hello.0.is_empty() {
        return Ok(None); // TLS 1.2 may have no extensions (RFC 5246 section 7.4.1.2)
    }
    let mut extensions = Reader(hello.vector(2)?);
    if !hello.0.is_empty() {
        return Err(Stop::Malformed);
    }
    let mut found = None;
    while !extensions.0.is_empty() {
        let kind = extensions.number(2)?;
        let data = extensions.vector(2)?;
        if kind == usize::from(SERVER_NAME_EXTENSION) {
            if found.is_some() {
                return Err(Stop::Malformed); // no extension twice (RFC 8446 section 4.2)
            }
            found = Some(name_in_extension(data)?);
        }
    }
    Ok(found)
}

/// The host name of a server_name extension. There must be exactly one: no other type of name was ever defined.
fn name_in_extension(data: &[u8]) -> Result<String, Stop> {
    let mut data = Reader(data);
    let mut list = Reader(data.vector(2)?);
    if list.byte()? != HOST_NAME {
        return Err(Stop::Malformed);
    }
    let name = list.vector(2)?;
    if !list.0.is_empty() || !data.0.is_empty() {
        return Err(Stop::Malformed);
    }
    std::str::from_utf8(name).ok().and_then(dns_name).ok_or(Stop::Malformed)
}

/// A DNS name in lower case without a dot at the end, if the text is one (RFC 1123 section 2.1, underscores allowed;
/// RFC 1035 section 2.3.4 for the lengths). An address in digits is none (RFC 6066 section 3).
pub fn dns_name(text: &str) -> Option<String> {
    let text = text.strip_suffix('.').unwrap_or(text);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let is_name = text.len() <= 253 && text.split('.').all(label);
    let is_address = text.parse::<std::net::Ipv4Addr>().is_ok();
    (is_name && !is_address).then(|| text.to_ascii_lowercase())
}

#[cfg(test)]
mod tests;
