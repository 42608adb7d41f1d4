//! A message to the zone's name server, with its EDNS, cookies and client subnets: it is answered within its size, or not at all.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hearth_dns::decoders::query(bytes));
