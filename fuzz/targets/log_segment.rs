//! A segment of the log, as a crash or a bad disk leaves it.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hearth_raft::decoders::log_segment(bytes));
