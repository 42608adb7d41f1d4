//! A snapshot, as another server sends it.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hearth_raft::decoders::snapshot(bytes));
