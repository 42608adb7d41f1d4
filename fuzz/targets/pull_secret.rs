//! A pull secret, in either of its formats.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hearth_registry::decoders::pull_secret(bytes));
