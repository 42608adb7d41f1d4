use std::sync::Arc;

use proptest::prelude::*;

use super::*;

/// A hello as rustls sends it.
fn real_hello(name: &str) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = name.to_owned().try_into().expect("a name");
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut hello = Vec::new();
    client.write_tls(&mut hello).expect("a hello");
    hello
}

fn vector16(bytes: &[u8]) -> Vec<u8> {
    [&u16::try_from(bytes.len()).expect("short").to_be_bytes()[..], bytes].concat()
}

fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &vector16(data)].concat()
}

fn name_entry(kind: u8, name: &[u8]) -> Vec<u8> {
    [&[kind], &vector16(name)[..]].concat()
}

fn sni(name: &str) -> Vec<u8> {
    extension(0, &vector16(&name_entry(0, name.as_bytes())))
}

/// A handshake message of a hello with these extensions; `None` leaves out the whole block.
fn message_with(extensions: Option<&[Vec<u8>]>) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.push(32);
    body.extend([8; 32]);
    body.extend(vector16(&[0x0a, 0x0a, 0x13, 0x01]));
    body.extend([1, 0]);
    if let Some(extensions) = extensions {
        body.extend(vector16(&extensions.concat()));
    }
    let length = u32::try_from(body.len()).expect("short").to_be_bytes();
    [&[1][..], &length[1..], &body].concat()
}

fn in_records(message: &[u8], size: usize) -> Vec<u8> {
    message.chunks(size).flat_map(|part| [&[22, 3, 1][..], &vector16(part)].concat()).collect()
}

fn hello(extensions: &[Vec<u8>]) -> Vec<u8> {
    in_records(&message_with(Some(extensions)), MAX_FRAGMENT)
}

fn found(name: &str) -> ServerName {
    ServerName::Found(name.to_owned())
}

#[test]
fn a_real_hello_is_partial_at_every_split_until_it_is_whole() {
    let bytes = real_hello("Notes.Alice.Example");
    for length in 0..bytes.len() {
        assert_eq!(server_name(&bytes[..length]), ServerName::Partial, "{length} bytes");
    }
    assert_eq!(server_name(&bytes), found("notes.alice.example"));
    let followed = [&bytes[..], b"early data of any kind"].concat();
    assert_eq!(server_name(&followed), found("notes.alice.example"));
}

#[test]
fn a_hello_may_span_records_of_any_size() {
    let bytes = real_hello("notes.alice.example");
    for size in 1..300 {
        let records = in_records(&bytes[RECORD_HEADER..], size);
        assert_eq!(server_name(&records), found("notes.alice.example"), "records of {size}");
        assert_eq!(server_name(&records[..records.len() - 1]), ServerName::Partial, "records of {size}");
    }
}

#[test]
fn a_hello_without_a_name_has_none() {
    assert_eq!(server_name(&real_hello("192.0.2.1")), ServerName::None);
    assert_eq!(server_name(&hello(&[])), ServerName::None);
    assert_eq!(server_name(&in_records(&message_with(None), MAX_FRAGMENT)), ServerName::None);
}

#[test]
fn grease_ech_and_unknown_extensions_are_passed_over() {
    let bytes = hello(&[
        extension(0x0a0a, &[]),
        extension(0xfe0d, &[9; 250]),
        extension(16, &vector16(b"\x02h2")),
        sni("A.Example."),
        extension(51, &vector16(&[4; 1216])),
        extension(0xfafa, &[0]),
        extension(21, &[0; 700]),
    ]);
    assert_eq!(server_name(&bytes), found("a.example"));
}

#[test]
fn a_doubled_or_broken_name_is_malformed() {
    let two = [name_entry(0, b"a.example"), name_entry(0, b"b.example")].concat();
    let other_kind = [name_entry(0, b"a.example"), name_entry(1, b"x")].concat();
    let cases = [
        ("two extensions", vec![sni("a.example"), sni("a.example")]),
        ("two names", vec![extension(0, &vector16(&two))]),
        ("another kind behind", vec![extension(0, &vector16(&other_kind))]),
        ("another kind alone", vec![extension(0, &vector16(&name_entry(1, b"x")))]),
        ("an empty extension", vec![extension(0, &[])]),
        ("an empty list", vec![extension(0, &[0, 0])]),
        ("an empty name", vec![sni("")]),
        ("a dot", vec![sni(".")]),
        ("a space", vec![sni("a b")]),
        ("a zero byte", vec![sni("a.example\0.b")]),
        ("an IPv6 address", vec![sni("2001:db8::1")]),
        ("a long label", vec![sni(&"a".repeat(64))]),
        ("a list that is too long", vec![extension(0, &[0, 9, 0, 0, 1, b'a'])]),
        ("a byte behind the list", vec![extension(0, &[0, 4, 0, 0, 1, b'a', 0])]),
        ("an extension cut off", vec![vec![0, 16, 0, 9, 1]]),
        ("half an extension", vec![vec![0]]),
    ];
    for (what, extensions) in cases {
        assert_eq!(server_name(&hello(&extensions)), ServerName::Malformed, "{what}");
    }
}

#[test]
fn a_broken_frame_is_malformed_as_soon_as_it_shows() {
    let cases: [(&str, &[u8]); 9] = [
        ("another record", &[23]),
        ("another protocol", &[22, 2]),
        ("an empty record", &[22, 3, 1, 0, 0]),
        ("a record over the limit", &[22, 3, 1, 0x40, 1]),
        ("another message", &[22, 3, 1, 0, 9, 2]),
        ("a message over the limit", &[22, 3, 1, 0, 9, 1, 0, 0x40, 0]),
        ("a huge message", &[22, 3, 1, 0, 9, 1, 0xff, 0xff, 0xff]),
        ("an alert in between", &[22, 3, 1, 0, 1, 1, 21]),
        ("an empty hello", &[22, 3, 1, 0, 4, 1, 0, 0, 0]),
    ];
    for (what, bytes) in cases {
        assert_eq!(server_name(bytes), ServerName::Malformed, "{what}");
        if bytes.len() > 1 && what != "an empty hello" {
            assert_eq!(server_name(&bytes[..bytes.len() - 1]), ServerName::Partial, "{what}");
        }
    }
    let mut behind = message_with(Some(&[sni("a.example")]));
    behind.push(0);
    behind[3] += 1;
    assert_eq!(server_name(&in_records(&behind, MAX_FRAGMENT)), ServerName::Malformed, "a byte behind the extensions");
}

#[test]
fn a_hello_at_the_limit_passes_and_one_beyond_does_not() {
    let with_total = |total: usize| {
        let bare = hello(&[sni("a.example"), extension(21, &[])]).len();
        hello(&[sni("a.example"), extension(21, &vec![0; total - bare])])
    };
    assert_eq!(server_name(&with_total(MAX_BYTES)), found("a.example"));
    assert_eq!(server_name(&with_total(MAX_BYTES + 1)), ServerName::Malformed);
    // Headers count: in records of one byte the same hello is over the limit, and ends there.
    let spread = in_records(&with_total(4000)[RECORD_HEADER..], 1);
    assert_eq!(server_name(&spread[..MAX_BYTES - 1]), ServerName::Partial);
    assert_eq!(server_name(&spread[..MAX_BYTES]), ServerName::Malformed);
    assert_eq!(server_name(&spread), ServerName::Malformed);
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = server_name(&bytes);
        let _ = server_name(&in_records(&bytes, 7));
        let _ = name_in_hello(&bytes);
        let _ = name_in_extension(&bytes);
    }

    #[test]
    fn a_changed_byte_never_panics_and_what_was_decided_stays_so(
        at in any::<prop::sample::Index>(), to in any::<u8>(), size in 1_usize..600, split in any::<prop::sample::Index>(),
    ) {
        let mut message = message_with(Some(&[sni("a.example"), extension(16, &vector16(b"\x02h2"))]));
        let position = at.index(message.len());
        message[position] = to;
        let mut bytes = in_records(&message, size);
        bytes.extend([21, 3, 3, 0, 2, 1, 0]);
        let early = server_name(&bytes[..split.index(bytes.len() + 1)]);
        if early != ServerName::Partial {
            prop_assert_eq!(early, server_name(&bytes));
        }
    }
}
