//! The first bytes of a plain HTTP connection: what was decided of them stays so however they were cut.
#![no_main]

use hearth_gateway::request::{Head, parse};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let whole = parse(bytes);
    for end in [bytes.len() / 2, bytes.len().saturating_sub(1)] {
        let part = parse(&bytes[..end]);
        assert!(part == Head::Partial || part == whole);
    }
});
