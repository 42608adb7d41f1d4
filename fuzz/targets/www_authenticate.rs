//! What a registry wants to see before it answers.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hearth_registry::decoders::www_authenticate(bytes));
