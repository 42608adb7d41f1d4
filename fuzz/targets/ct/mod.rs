//! The readers of the watch of Certificate Transparency by themselves: all else of their crate would have to be built with them.
#![allow(dead_code)] // the rest of those files is another target's, or the crate's

#[path = "../../../api/acme/src/ct/decoders.rs"]
pub(crate) mod decoders;
#[path = "../../../api/acme/src/ct/head.rs"]
pub(crate) mod head;
#[path = "../../../api/acme/src/ct/merkle.rs"]
pub(crate) mod merkle;
#[path = "../../../api/acme/src/ct/tile.rs"]
pub(crate) mod tile;
