//! Volumes on a real disk: claims and their books, projected files, removal, interruptions.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

mod claims;
mod interrupted;
mod pods;
