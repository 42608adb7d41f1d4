//! The first bytes of a TLS connection: what was decided of them stays so however they were cut, and the device's TLS reads the same name
//! in them. Else a caller could be sent by one name and be answered by another.
#![no_main]

use hearth_gateway::{
    client_hello::{ServerName, server_name},
    decoders,
};
use rustls::server::Acceptor;

/// What the device's TLS makes of the bytes: `None` where it takes no hello from them.
fn device(mut bytes: &[u8]) -> Option<Option<String>> {
    let mut acceptor = Acceptor::default();
    while !bytes.is_empty() {
        if acceptor.read_tls(&mut bytes).is_err() {
            return None;
        }
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => return Some(accepted.client_hello().server_name().map(str::to_owned)),
            Err(_) => return None,
        }
    }
    None
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    decoders::opening(bytes);
    decoders::records(bytes);
    let whole = server_name(bytes);
    for end in [bytes.len() / 2, bytes.len().saturating_sub(1)] {
        let part = server_name(&bytes[..end]);
        assert!(part == ServerName::Partial || part == whole);
    }
    match (device(bytes), &whole) {
        // The gateway may be the stricter one.
        (None, _) | (_, ServerName::Malformed) => {}
        (Some(theirs), ServerName::Found(ours)) => {
            // A name that is no DNS name for the device is none for it, and no Route has it.
            assert!(theirs.is_none_or(|theirs| theirs.trim_end_matches('.').eq_ignore_ascii_case(ours)));
        }
        (Some(theirs), ServerName::None) => assert_eq!(theirs, None),
        (Some(theirs), ServerName::Partial) => panic!("the device reads {theirs:?} where the gateway waits"),
    }
});
