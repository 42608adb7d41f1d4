//! A tree head of a log of Certificate Transparency: none is taken that the log did not sign, whatever is put into a good one.
#![no_main]

mod ct;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ct::decoders::head(bytes));
