//! The answer of another server.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hearth_raft::decoders::peer_response(bytes));
