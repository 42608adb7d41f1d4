//! A record that an owner sets by a DNSEndpoint: what is taken is served as what it is.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hearth_dns::decoders::record(bytes));
