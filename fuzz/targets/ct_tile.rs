//! A tile of a static log of Certificate Transparency: it is read whole, each entry at its place, or not at all.
#![no_main]

mod ct;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ct::decoders::tile(bytes));
