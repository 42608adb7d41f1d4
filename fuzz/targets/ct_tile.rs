//! A tile of a static log of Certificate Transparency: it is read whole, each entry at its place, or not at all.
#![no_main]
#![allow(dead_code)] // the rest of those files is the other target's, or the crate's

/// The watch's own readers; all else of that crate would have to be built with them.
#[path = "."]
mod ct {
    #[path = "../../api/acme/src/ct/decoders.rs"]
    pub(crate) mod decoders;
    #[path = "../../api/acme/src/ct/head.rs"]
    pub(crate) mod head;
    #[path = "../../api/acme/src/ct/merkle.rs"]
    pub(crate) mod merkle;
    #[path = "../../api/acme/src/ct/tile.rs"]
    pub(crate) mod tile;
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ct::decoders::tile(bytes));
