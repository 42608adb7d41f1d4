//! Records that owners set at their names, from their text (RFC 1035 section 5.1, RFC 9460 section 2.1) to the bytes that DNS has. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::keys::wire_name;
use crate::names::{MAX_LABEL, MAX_SUBDOMAIN};

/// Bytes of a TXT record's text at most: what fits one answer over UDP.
pub const MAX_TXT_BYTES: usize = 1_000;
/// Bytes of one string of a TXT record (RFC 1035 section 3.3).
const MAX_STRING: usize = 255;

/// The types of records that owners can set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RecordKind {
    /// An IPv4 address (RFC 1035).
    A,
    /// An IPv6 address (RFC 3596).
    Aaaa,
    /// Another name for it (RFC 1035).
    Cname,
    /// Text (RFC 1035).
    Txt,
    /// Where a service is (RFC 2782).
    Srv,
    /// Who may issue certificates (RFC 8659).
    Caa,
    /// How HTTPS is spoken (RFC 9460).
    Https,
}

impl RecordKind {
    /// All of them.
    pub const ALL: [Self; 7] = [Self::A, Self::Aaaa, Self::Cname, Self::Txt, Self::Srv, Self::Caa, Self::Https];

    /// Its mnemonic.
    pub fn label(self) -> &'static str {
        match self {
            Self::A => "A",
            Self::Aaaa => "AAAA",
            Self::Cname => "CNAME",
            Self::Txt => "TXT",
            Self::Srv => "SRV",
            Self::Caa => "CAA",
            Self::Https => "HTTPS",
        }
    }

    /// The type of a mnemonic in capitals.
    pub fn of_label(label: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.label() == label)
    }

    /// Its number (IANA, "Resource Record (RR) TYPEs").
    pub fn code(self) -> u16 {
        match self {
            Self::A => 1,
            Self::Aaaa => 28,
            Self::Cname => 5,
            Self::Txt => 16,
            Self::Srv => 33,
            Self::Caa => 257,
            Self::Https => 65,
        }
    }

    /// A record's data in DNS from its text, names in lower case and uncompressed. The error says what is wrong.
    pub fn parse(self, text: &str) -> Result<Vec<u8>, String> {
        match self {
            Self::A => match text.parse::<Ipv4Addr>() {
                Ok(ip) => public(ip.into()).map(|()| ip.octets().to_vec()),
                Err(_) => Err("must be an IPv4 address".to_owned()),
            },
            Self::Aaaa => match text.parse::<Ipv6Addr>() {
                Ok(ip) => public(ip.into()).map(|()| ip.octets().to_vec()),
                Err(_) => Err("must be an IPv6 address".to_owned()),
            },
            Self::Cname => target(text),
            Self::Txt => txt(text),
            Self::Srv => srv(text),
            Self::Caa => caa(text),
            Self::Https => https(text),
        }
    }
}

/// One record at a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneRecord {
    /// Its type.
    pub kind: RecordKind,
    /// How long it may be cached, in seconds; `None`: as the zone has it.
    pub ttl: Option<u32>,
    /// Its data as on the wire, names uncompressed and in lower case.
    pub data: Box<[u8]>,
}

/// Whether an address can be reached from the internet: others are told under `*.lan.<owner>.<zone>` alone, since a name that leads a stranger's
/// browser into the home's network is how routers and printers are attacked (DNS rebinding).
fn public(ip: IpAddr) -> Result<(), String> {
    let inside = match ip {
        IpAddr::V4(ip) => {
            let [first, second, ..] = ip.octets();
            ip.is_private()
                || ip.is_loopback()
                || ip.is_link_local()
                || ip.is_multicast()
                || ip.is_broadcast()
                || first == 0
                || (first == 100 && (64..128).contains(&second))
        }
        IpAddr::V6(ip) => {
            ip.is_unspecified()
                || ip.is_loopback()
                || ip.is_multicast()
                || ip.is_unique_local()
                || ip.is_unicast_link_local()
                || ip.to_ipv4_mapped().is_some()
        }
    };
    if inside {
        return Err(format!(
            "{ip} is no address of the internet, and a public name must not lead into a home's network"
        ));
    }
    Ok(())
}

/// Checks a name at which records are set: lower case, without a dot at the end; its first label may be `*`.
pub fn record_name(name: &str) -> Result<(), &'static str> {
    let rest = name.strip_prefix("*.").unwrap_or(name);
    if name.len() > MAX_SUBDOMAIN {
        return Err("must have at most 253 characters");
    }
    let label = |label: &str| {
        (1..=MAX_LABEL).contains(&label.len())
            && label.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
    };
    if rest.split('.').all(label) {
        Ok(())
    } else {
        Err("must be labels of a-z, 0-9, '-' and '_' with dots between them, the first of which may be '*'")
    }
}

/// A name in a record's data.
fn target(text: &str) -> Result<Vec<u8>, String> {
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    if name.starts_with('*') {
        return Err(format!("{text:?} is no name that something leads to"));
    }
    record_name(&name).map_err(|why| format!("{text:?}: {why}"))?;
    Ok(wire_name(&name))
}

/// A name, or `.`, which stands for none, or for the record's own.
fn target_or_none(text: &str) -> Result<Vec<u8>, String> {
    if text == "." { Ok(vec![0]) } else { target(text) }
}

fn number<N: std::str::FromStr>(what: &str, text: Option<&str>) -> Result<N, String> {
    text.and_then(|text| text.parse().ok()).ok_or_else(|| format!("its {what} must be a number that fits"))
}

/// The strings of a text: words, or anything in double quotes, where a backslash takes the next character as it is, or a byte by three digits.
fn strings(text: &str) -> Result<Vec<Vec<u8>>, String> {
    let mut all = Vec::new();
    let mut bytes = text.bytes().peekable();
    loop {
        while bytes.next_if(u8::is_ascii_whitespace).is_some() {}
        let Some(first) = bytes.peek().copied() else { return Ok(all) };
        let quoted = first == b'"';
        if quoted {
            bytes.next();
        }
        let mut one = Vec::new();
        loop {
            match bytes.next() {
                None if quoted => return Err("a double quote is not closed".to_owned()),
                None => break,
                Some(b'"') if quoted => break,
                Some(byte) if !quoted && byte.is_ascii_whitespace() => break,
                Some(b'\\') => one.push(escaped(&mut bytes)?),
                Some(byte) => one.push(byte),
            }
        }
        all.push(one);
    }
}

fn escaped(bytes: &mut impl Iterator<Item = u8>) -> Result<u8, String> {
    let wrong = || "a backslash must stand before a character or three digits up to 255".to_owned();
    let first = bytes.next().ok_or_else(wrong)?;
    if !first.is_ascii_digit() {
        return Ok(first);
    }
    let mut value = u16::from(first - b'0');
    for _ in 0..2 {
        let digit = bytes.next().filter(u8::is_ascii_digit).ok_or_else(wrong)?;
        value = value * 10 + u16::from(digit - b'0');
    }
    u8::try_from(value).map_err(|_| wrong())
}

/// As external-dns takes it: in quotes, or the whole text as it is.
fn txt(text: &str) -> Result<Vec<u8>, String> {
    let all = if text.trim_start().starts_with('"') { strings(text)? } else { vec![text.as_bytes().to_vec()] };
    if all.iter().map(Vec::len).sum::<usize>() > MAX_TXT_BYTES {
        return Err(format!("longer than {MAX_TXT_BYTES} bytes"));
    }
    let mut data = Vec::new();
    for one in all {
        // An empty string is one of length 0.
        for part in one.chunks(MAX_STRING).chain(one.is_empty().then_some(&[][..])) {
            data.push(part.len() as u8);
            data.extend(part);
        }
    }
    Ok(data)
}

fn srv(text: &str) -> Result<Vec<u8>, String> {
    let mut words = text.split_ascii_whitespace();
    let mut data = Vec::new();
    for what in ["priority", "weight", "port"] {
        data.extend(number::<u16>(what, words.next())?.to_be_bytes());
    }
    data.extend(target_or_none(words.next().ok_or("its target is missing")?)?);
    end(words.next()).map(|()| data)
}

fn end(word: Option<&str>) -> Result<(), String> {
    word.map_or(Ok(()), |word| Err(format!("{word:?} is one word too many")))
}

fn caa(text: &str) -> Result<Vec<u8>, String> {
    let words = strings(text)?;
    let [flags, tag, value] = &*words else {
        return Err("must be flags, a tag and a value, such as `0 issue \"ca.example\"`".to_owned());
    };
    let flags = std::str::from_utf8(flags).ok();
    let tagged = (1..=15).contains(&tag.len()) && tag.iter().all(u8::is_ascii_alphanumeric);
    if !tagged {
        return Err("its tag must have 1 to 15 letters and digits".to_owned());
    }
    if value.len() > MAX_STRING {
        return Err(format!("its value is longer than {MAX_STRING} bytes"));
    }
    let mut data = vec![number::<u8>("flags", flags)?, tag.len() as u8];
    data.extend(tag.to_ascii_lowercase());
    data.extend(value);
    Ok(data)
}

fn https(text: &str) -> Result<Vec<u8>, String> {
    let mut words = text.split_ascii_whitespace();
    let priority = number::<u16>("priority", words.next())?;
    let mut data = priority.to_be_bytes().to_vec();
    data.extend(target_or_none(words.next().ok_or("its target is missing")?)?);
    let mut parameters: Vec<(u16, Vec<u8>)> = words.map(parameter).collect::<Result<_, _>>()?;
    if priority == 0 && !parameters.is_empty() {
        return Err("priority 0 makes it an alias, which has no parameters (RFC 9460 section 2.4.2)".to_owned());
    }
    parameters.sort();
    if parameters.windows(2).any(|pair| pair[0].0 == pair[1].0) {
        return Err("a parameter is given twice".to_owned());
    }
    let has = |key| parameters.iter().any(|(other, _)| *other == key);
    if has(2) && !has(1) {
        return Err("no-default-alpn needs alpn (RFC 9460 section 7.1)".to_owned());
    }
    let named = parameters.iter().find(|(key, _)| *key == 0).map(|(_, value)| value.clone()).unwrap_or_default();
    if named.chunks(2).any(|key| !has(u16::from_be_bytes([key[0], key[1]]))) {
        return Err("a parameter is mandatory and missing (RFC 9460 section 8)".to_owned());
    }
    for (key, value) in parameters {
        data.extend(key.to_be_bytes());
        data.extend((value.len() as u16).to_be_bytes());
        data.extend(value);
    }
    Ok(data)
}

/// The parameters that a word can name, at their numbers.
const PARAMETERS: [&str; 7] = ["mandatory", "alpn", "no-default-alpn", "port", "ipv4hint", "ech", "ipv6hint"];

fn parameter(word: &str) -> Result<(u16, Vec<u8>), String> {
    let (name, value) = word.split_once('=').unwrap_or((word, ""));
    let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value);
    let wrong = |what: &str| format!("{name}: must be {what}");
    let key_of = |name: &str| PARAMETERS.iter().position(|known| *known == name).map(|key| key as u16);
    let key = key_of(name).ok_or_else(|| format!("{name:?} is none of its parameters: {}", PARAMETERS.join(", ")))?;
    let items = || value.split(',').filter(|item| !item.is_empty());
    let data = match name {
        "mandatory" => {
            let mut keys: Vec<_> = items().map(key_of).collect::<Option<_>>().ok_or_else(|| wrong("its parameters"))?;
            keys.sort_unstable();
            keys.dedup();
            if keys.contains(&0) {
                return Err(wrong("others than itself"));
            }
            keys.into_iter().flat_map(u16::to_be_bytes).collect()
        }
        "alpn" => items()
            .map(|id| {
                Ok([&[u8::try_from(id.len()).map_err(|_| wrong("at most 255 bytes each"))?], id.as_bytes()].concat())
            })
            .collect::<Result<Vec<_>, String>>()?
            .concat(),
        "no-default-alpn" if value.is_empty() => return Ok((key, Vec::new())),
        "no-default-alpn" => return Err(wrong("without a value")),
        "port" => number::<u16>("port", Some(value))?.to_be_bytes().to_vec(),
        "ech" => STANDARD.decode(value).map_err(|_| wrong("Base64"))?,
        "ipv4hint" => hints(items(), RecordKind::A)?,
        _ => hints(items(), RecordKind::Aaaa)?,
    };
    if data.is_empty() {
        return Err(format!("{name}: has no value"));
    }
    if data.len() > MAX_TXT_BYTES {
        return Err(wrong("shorter"));
    }
    Ok((key, data))
}

fn hints<'a>(items: impl Iterator<Item = &'a str>, kind: RecordKind) -> Result<Vec<u8>, String> {
    items.map(|item| kind.parse(item)).collect::<Result<Vec<_>, _>>().map(|all| all.concat())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hex(bytes: &[u8]) -> String {
        use std::fmt::Write as _;
        bytes.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }

    #[test]
    fn texts_become_the_bytes_that_dns_has() {
        let cases = [
            ("A", "192.0.2.1", "c0000201"),
            ("AAAA", "2001:db8::1", "20010db8000000000000000000000001"),
            ("CNAME", "Host.Example.", "04686f7374076578616d706c6500"),
            ("TXT", "v=spf1 -all", "0b763d73706631202d616c6c"),
            ("TXT", r#""a\"b" "\065" """#, "03612262014100"),
            ("SRV", "0 5 443 a.b", "0000000501bb0161016200"),
            ("SRV", "0 0 0 .", "00000000000000"),
            ("CAA", r#"128 Issue "ca.example""#, "8005697373756563612e6578616d706c65"),
            ("HTTPS", "0 a.b", "00000161016200"),
            ("HTTPS", "1 . port=8443 alpn=h2,h3", "00010000010006026832026833000300022 0fb".trim()),
            (
                "HTTPS",
                "1 . mandatory=port port=1 no-default-alpn alpn=h2",
                "00010000000002000300010003026832000200000003000 20001",
            ),
            ("HTTPS", "1 . ipv4hint=192.0.2.1,192.0.2.2", "000100000400 08c0000201c0000202"),
        ];
        for (kind, text, expected) in cases {
            let data = RecordKind::of_label(kind).expect("a type").parse(text);
            assert_eq!(data.map(|data| hex(&data)), Ok(expected.replace(' ', "")), "{kind} {text}");
        }
    }

    #[test]
    fn texts_that_are_no_records_are_refused_with_a_reason() {
        let long = "x".repeat(MAX_TXT_BYTES + 1);
        let cases = [
            ("A", "2001:db8::1", "IPv4"),
            ("A", "192.168.1.1", "home's network"),
            ("A", "10.0.0.1", "home's network"),
            ("A", "100.64.0.1", "home's network"),
            ("A", "127.0.0.1", "home's network"),
            ("A", "0.0.0.0", "home's network"),
            ("AAAA", "fe80::1", "home's network"),
            ("AAAA", "fd00::1", "home's network"),
            ("AAAA", "::ffff:192.168.1.1", "home's network"),
            ("CNAME", "*.a.b", "no name"),
            ("CNAME", "a..b", "labels"),
            ("CNAME", ".", "labels"),
            ("TXT", "\"open", "not closed"),
            ("TXT", r#""\999""#, "three digits"),
            ("TXT", long.as_str(), "longer"),
            ("SRV", "0 0 65536 a.b", "port"),
            ("SRV", "0 0 1", "target"),
            ("SRV", "0 0 1 a.b c", "too many"),
            ("CAA", "0 issue", "flags, a tag and a value"),
            ("CAA", "256 issue x", "flags"),
            ("CAA", "0 is-sue x", "tag"),
            ("HTTPS", "0 . alpn=h2", "alias"),
            ("HTTPS", "1 . alpn=h2 alpn=h3", "twice"),
            ("HTTPS", "1 . no-default-alpn", "needs alpn"),
            ("HTTPS", "1 . mandatory=port", "mandatory and missing"),
            ("HTTPS", "1 . alpn=", "no value"),
            ("HTTPS", "1 . colour=red", "none of its parameters"),
            ("HTTPS", "1 . ipv4hint=10.0.0.1", "home's network"),
        ];
        for (kind, text, part) in cases {
            let error = RecordKind::of_label(kind).expect("a type").parse(text).expect_err(text);
            assert!(error.contains(part), "{kind} {text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_becomes_a_record_that_fits_or_is_refused(text in "\\PC{0,80}", kind in 0..RecordKind::ALL.len()) {
            if let Ok(data) = RecordKind::ALL[kind].parse(&text) {
                prop_assert!(!data.is_empty() && data.len() < 2 * MAX_TXT_BYTES);
            }
        }
    }
}
