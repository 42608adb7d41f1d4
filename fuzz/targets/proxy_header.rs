//! The header of a gateway: with the right sum put in where there is a place for it, so that what lies behind it is reached.
#![no_main]

use hearth_types::tunnel::{IngressHeader, proxy::ProxyHeader};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = IngressHeader::decode(bytes);
    let mut bytes = bytes.to_vec();
    if let Some(at) = bytes.windows(3).position(|some| some == [3, 0, 4]) && bytes.len() >= at + 7 {
        bytes[at + 3..at + 7].fill(0);
        let sum = crc32c::crc32c(&bytes);
        bytes[at + 3..at + 7].copy_from_slice(&sum.to_be_bytes());
    }
    if let Ok(header) = ProxyHeader::decode(&bytes) {
        assert_eq!(ProxyHeader::decode(&header.encode()), Ok(header));
    }
});
