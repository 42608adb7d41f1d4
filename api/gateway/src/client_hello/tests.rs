use std::sync::Arc;

use proptest::prelude::*;

use super::*;

/// The first flight of a real client.
fn real_hello(name: &str) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let name = rustls::pki_types::ServerName::try_from(name.to_owned()).expect("a name");
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).expect("a hello");
    bytes
}

/// The handshake message of a hello in one record.
fn message_of(hello: &[u8]) -> &[u8] {
    &hello[RECORD_HEADER..]
}

fn records(message: &[u8], size: usize) -> Vec<u8> {
    let record = |part: &[u8]| {
        let mut record = vec![HANDSHAKE_RECORD, 3, 1];
        record.extend((part.len() as u16).to_be_bytes());
        record.extend(part);
        record
    };
    message.chunks(size).flat_map(record).collect()
}

fn prefixed(width: usize, data: &[u8]) -> Vec<u8> {
    let mut out = data.len().to_be_bytes()[size_of::<usize>() - width..].to_vec();
    out.extend(data);
    out
}

fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
    [kind.to_be_bytes().to_vec(), prefixed(2, data)].concat()
}

fn sni(name: &[u8]) -> Vec<u8> {
    extension(0, &prefixed(2, &[vec![0], prefixed(2, name)].concat()))
}

/// A hello with these extensions, in one record.
fn hello_with(extensions: Option<&[u8]>) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([9; 32]);
    body.extend(prefixed(1, &[5; 32]));
    body.extend(prefixed(2, &[0x13, 0x01, 0x13, 0x02]));
    body.extend(prefixed(1, &[0]));
    if let Some(extensions) = extensions {
        body.extend(prefixed(2, extensions));
    }
    let message = [vec![CLIENT_HELLO], prefixed(3, &body)].concat();
    records(&message, MAX_RECORD)
}

#[test]
fn a_real_hello_is_read_when_and_only_when_it_is_whole() {
    let hello = real_hello("photos.alice.hearth.internal");
    let found = ServerName::Found("photos.alice.hearth.internal".to_owned());
    for end in 0..hello.len() {
        assert_eq!(server_name(&hello[..end]), ServerName::Partial, "cut at {end}");
    }
    assert_eq!(server_name(&hello), found);
    assert_eq!(server_name(&[&hello[..], b"more"].concat()), found);
}

#[test]
fn a_hello_may_span_records_of_any_size() {
    let hello = real_hello("a.b.c");
    for size in [1, 2, 3, 4, 5, 7, 50, 100, 511] {
        let split = records(message_of(&hello), size);
        assert_eq!(server_name(&split), ServerName::Found("a.b.c".to_owned()), "records of {size}");
        assert_eq!(server_name(&split[..split.len() - 1]), ServerName::Partial, "records of {size}");
    }
}

#[test]
fn hellos_by_hand() {
    let grease = extension(0x0a0a, &[]);
    let ech = extension(0xfe0d, &[0; 300]);
    let found = |name: &str| ServerName::Found(name.to_owned());
    let long = ["a"; 127].join(".");
    let cases: Vec<(&str, Vec<u8>, ServerName)> = vec![
        ("plain", sni(b"a.b"), found("a.b")),
        ("upper case and a dot", sni(b"Photos.ALICE.Hearth."), found("photos.alice.hearth")),
        ("among unknown extensions", [grease.clone(), sni(b"x.y"), ech, grease.clone()].concat(), found("x.y")),
        ("the longest name", sni(long.as_bytes()), found(&long)),
        ("none", grease.clone(), ServerName::None),
        ("empty extensions", vec![], ServerName::None),
        ("twice", [sni(b"a.b"), sni(b"a.b")].concat(), ServerName::Malformed),
        ("two names in one", extension(0, &prefixed(2, &[0, 0, 1, b'a', 0, 0, 1, b'b'])), ServerName::Malformed),
        ("another type of name", extension(0, &prefixed(2, &[1, 0, 1, b'a'])), ServerName::Malformed),
        ("no name in the list", extension(0, &[0, 0]), ServerName::Malformed),
        ("an empty extension", extension(0, &[]), ServerName::Malformed),
        ("bytes after the list", extension(0, &[0, 4, 0, 0, 1, b'a', 9]), ServerName::Malformed),
        ("an empty name", sni(b""), ServerName::Malformed),
        ("a name that is too long", sni([long.as_bytes(), b".ab"].concat().as_slice()), ServerName::Malformed),
        ("a label that is too long", sni(&[b'a'; 64]), ServerName::Malformed),
        ("an address", sni(b"192.0.2.1"), ServerName::Malformed),
        ("a space", sni(b"a b"), ServerName::Malformed),
        ("a slash", sni(b"a/b"), ServerName::Malformed),
        ("a zero byte", sni(b"a\0b"), ServerName::Malformed),
        ("no UTF-8", sni(b"\xff\xfe"), ServerName::Malformed),
        ("an empty label", sni(b"a..b"), ServerName::Malformed),
        ("an extension beyond the end", vec![0, 0, 0, 9, 0], ServerName::Malformed),
    ];
    for (what, extensions, expected) in cases {
        assert_eq!(server_name(&hello_with(Some(&extensions))), expected, "{what}");
    }
    assert_eq!(server_name(&hello_with(None)), ServerName::None, "no extensions at all");
}

#[test]
fn what_is_no_hello_is_refused_at_its_first_wrong_byte() {
    let cases: [(&str, &[u8], ServerName); 9] = [
        ("nothing", b"", ServerName::Partial),
        ("HTTP", b"G", ServerName::Malformed),
        ("an alert", &[21], ServerName::Malformed),
        ("SSL 2", &[22, 2], ServerName::Malformed),
        ("a ServerHello", &[22, 3, 1, 0, 100, 2], ServerName::Malformed),
        ("an empty record", &[22, 3, 1, 0, 0], ServerName::Malformed),
        ("a record that is too long", &[22, 3, 1, 0x40, 1], ServerName::Malformed),
        ("a hello that is too long", &[22, 3, 1, 0x40, 0, 1, 0, 0x40, 1], ServerName::Malformed),
        ("another record within", &[22, 3, 1, 0, 1, 1, 23], ServerName::Malformed),
    ];
    for (what, bytes, expected) in cases {
        assert_eq!(server_name(bytes), expected, "{what}");
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = server_name(&bytes);
    }

    #[test]
    fn a_hello_with_a_changed_byte_never_panics(at in 0usize..200, byte: u8) {
        let mut hello = hello_with(Some(&sni(b"photos.alice.hearth.internal")));
        let at = at % hello.len();
        hello[at] = byte;
        let _ = server_name(&hello);
    }

    #[test]
    fn arbitrary_extensions_never_panic(data in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = server_name(&hello_with(Some(&data)));
        let _ = server_name(&hello_with(Some(&extension(0, &data))));
    }

    #[test]
    fn more_bytes_never_change_an_answer(
        bytes in proptest::collection::vec(any::<u8>(), 0..100), cut in 0usize..400, size in 1usize..300,
    ) {
        let message = message_of(&hello_with(Some(&sni(b"a.b.c")))).to_vec();
        let whole = [records(&message, size), bytes].concat();
        let early = server_name(&whole[..cut.min(whole.len())]);
        if early != ServerName::Partial {
            prop_assert_eq!(early, server_name(&whole));
        }
    }

    #[test]
    fn every_name_comes_back(labels in proptest::collection::vec("[a-z0-9_]([a-z0-9-]{0,20}[a-z0-9])?", 1..6)) {
        let name = labels.join(".");
        prop_assume!(name.parse::<std::net::Ipv4Addr>().is_err());
        prop_assert_eq!(server_name(&hello_with(Some(&sni(name.as_bytes())))), ServerName::Found(name));
    }
}
