//! Which server name a TLS ClientHello asks for (RFC 8446 section 4.1.2, RFC 6066 section 3).

use std::borrow::Cow;

use crate::hostname;

/// The longest hello in bytes, with the headers of its records. Real ones have 200 to 2,500 bytes, those with
/// post-quantum key shares included; a record may have 16 KiB.
pub const MAX_BYTES: usize = 16 * 1024;

/// The first byte of a TLS connection: the record type handshake (RFC 8446 section 5.1).
pub const FIRST_BYTE: u8 = 22;

const RECORD_HEADER: usize = 5;
const HANDSHAKE_HEADER: usize = 4;
const MAX_FRAGMENT: usize = 1 << 14;
const VERSION_MAJOR: u8 = 3;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;

/// What the first bytes of a connection say of the server name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerName {
    /// The hello is not whole yet; so far nothing is wrong.
    Partial,
    /// The name, in lower case and without a dot at the end.
    Found(String),
    /// A whole hello without a server name.
    None,
    /// No ClientHello, a broken one, one with more than one name, or one longer than [`MAX_BYTES`].
    Malformed,
}

/// Reads the server name from the first bytes of a connection.
///
/// Guarantees: pure; never panics; costs time in proportion to the bytes. What was decided (anything but
/// [`ServerName::Partial`]) stays so however many bytes follow, and `Partial` ends before [`MAX_BYTES`].
///
/// A hello may span several records. Bytes after it are ignored, as are all extensions but the one: whether versions,
/// ciphers and the rest make sense is the device's to judge. With Encrypted ClientHello the outer, readable name is
/// the one that counts.
pub fn server_name(bytes: &[u8]) -> ServerName {
    let bytes = &bytes[..bytes.len().min(MAX_BYTES)];
    match message(bytes) {
        Ok(Some(body)) => match name_in_hello(&body) {
            Ok(Some(name)) => hostname::canonical(name).map_or(ServerName::Malformed, ServerName::Found),
            Ok(None) => ServerName::None,
            Err(BadHello) => ServerName::Malformed,
        },
        Ok(None) if bytes.len() < MAX_BYTES => ServerName::Partial,
        Ok(None) | Err(BadHello) => ServerName::Malformed,
    }
}

/// Bytes that are no ClientHello, or a broken one.
struct BadHello;

/// The body of the first handshake message, once it is whole. Looks at the headers first and copies only a message
/// that is whole and in several records, so that a caller who sends single bytes does not cause a copy for each.
fn message(bytes: &[u8]) -> Result<Option<Cow<'_, [u8]>>, BadHello> {
    let mut header = [0; HANDSHAKE_HEADER];
    let mut seen = 0;
    let mut end = None;
    for (at, fragment) in (Fragments { bytes }).enumerate() {
        let (fragment, whole) = fragment?;
        if seen < HANDSHAKE_HEADER {
            let part = fragment.len().min(HANDSHAKE_HEADER - seen);
            header[seen..seen + part].copy_from_slice(&fragment[..part]);
            if seen + part > 0 && header[0] != CLIENT_HELLO {
                return Err(BadHello);
            }
            if seen + part == HANDSHAKE_HEADER {
                let length = u32::from_be_bytes([0, header[1], header[2], header[3]]) as usize;
                if length + HANDSHAKE_HEADER + RECORD_HEADER > MAX_BYTES {
                    return Err(BadHello);
                }
                end = Some(HANDSHAKE_HEADER + length);
            }
        }
        seen += fragment.len();
        match end {
            Some(end) if seen >= end => {
                let body = if at == 0 {
                    Cow::Borrowed(&fragment[HANDSHAKE_HEADER..end])
                } else {
                    Cow::Owned(join(bytes, end))
                };
                return Ok(Some(body));
            }
            _ if !whole => return Ok(None),
            _ => {}
        }
    }
    Ok(None)
}

/// The first `end` bytes of handshake, without the message's header.
fn join(bytes: &[u8], end: usize) -> Vec<u8> {
    let mut all: Vec<u8> = Vec::with_capacity(end);
    for (fragment, _) in (Fragments { bytes }).map_while(Result::ok) {
        let room = end - all.len();
        all.extend_from_slice(&fragment[..fragment.len().min(room)]);
        if all.len() == end {
            break;
        }
    }
    all.drain(..HANDSHAKE_HEADER);
    all
}

/// The fragments of consecutive handshake records, each with whether it is whole; the last may not be.
struct Fragments<'a> {
    bytes: &'a [u8],
}

impl<'a> Iterator for Fragments<'a> {
    type Item = Result<(&'a [u8], bool), BadHello>;

    fn next(&mut self) -> Option<Self::Item> {
        let bytes = self.bytes;
        // RFC 8446 section 5.1: the minor version is to be ignored; fragments of handshake are never empty.
        if bytes.first().is_some_and(|kind| *kind != FIRST_BYTE) || bytes.get(1).is_some_and(|it| *it != VERSION_MAJOR)
        {
            return Some(Err(BadHello));
        }
        let (header, rest) = bytes.split_at_checked(RECORD_HEADER)?;
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        if length == 0 || length > MAX_FRAGMENT {
            return Some(Err(BadHello));
        }
        let (fragment, rest) = rest.split_at(length.min(rest.len()));
        self.bytes = rest;
        Some(Ok((fragment, fragment.len() == length)))
    }
}

/// The name in a ClientHello's body.
fn name_in_hello(body: &[u8]) -> Result<Option<&[u8]>, BadHello> {
    let mut hello = Reader(body);
    let _version_and_random = hello.take(2 + 32)?;
    let _session_id = hello.vector8()?;
    let _cipher_suites = hello.vector16()?;
    let _compression_methods = hello.vector8()?;
    if hello.0.is_empty() {
        // Before TLS 1.3 the extensions may be missing as a whole.
        return Ok(None);
    }
    let mut extensions = Reader(hello.vector16()?);
    if !hello.0.is_empty() {
        return Err(BadHello);
    }
    let mut found = None;
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let data = extensions.vector16()?;
        if kind == SERVER_NAME {
            // Two of a kind are forbidden (RFC 8446 section 4.2), and who obeys which would differ.
            if found.is_some() {
                return Err(BadHello);
            }
            found = Some(name_in_extension(data)?);
        }
    }
    Ok(found)
}

/// The name in a server_name extension: a list of one, since no other kind of name was ever defined and two of one
/// kind are forbidden (RFC 6066 section 3).
fn name_in_extension(data: &[u8]) -> Result<&[u8], BadHello> {
    let mut data = Reader(data);
    let mut list = Reader(data.vector16()?);
    let kind = list.u8()?;
    let name = list.vector16()?;
    if kind == HOST_NAME && !name.is_empty() && list.0.is_empty() && data.0.is_empty() {
        Ok(name)
    } else {
        Err(BadHello)
    }
}

/// What is left to read.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], BadHello> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(BadHello)?;
        self.0 = rest;
        Ok(taken)
    }

    fn u8(&mut self) -> Result<u8, BadHello> {
        self.take(1).map(|it| it[0])
    }

    fn u16(&mut self) -> Result<u16, BadHello> {
        self.take(2).map(|it| u16::from_be_bytes([it[0], it[1]]))
    }

    fn vector8(&mut self) -> Result<&'a [u8], BadHello> {
        let length = self.u8()?;
        self.take(usize::from(length))
    }

    fn vector16(&mut self) -> Result<&'a [u8], BadHello> {
        let length = self.u16()?;
        self.take(usize::from(length))
    }
}

#[cfg(test)]
mod tests;
