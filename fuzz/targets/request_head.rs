//! The first bytes of a plain HTTP connection: what was decided of them stays so however they were cut, and an answer is one.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hearth_gateway::decoders::opening(bytes));
