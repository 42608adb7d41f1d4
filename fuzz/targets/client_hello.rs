//! The first bytes of a TLS connection: what was decided of them stays so however they were cut.
#![no_main]

use hearth_gateway::client_hello::{ServerName, server_name};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let whole = server_name(bytes);
    for end in [bytes.len() / 2, bytes.len().saturating_sub(1)] {
        let part = server_name(&bytes[..end]);
        assert!(part == ServerName::Partial || part == whole);
    }
});
