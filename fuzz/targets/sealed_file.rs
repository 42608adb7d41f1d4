//! A small file of the store.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hearth_raft::decoders::sealed_file(bytes));
