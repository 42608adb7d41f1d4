//! Signed answers (DNSSEC, RFC 4033 to 4035), made as they are asked for. That a name or type does not exist is shown by one NSEC record at
//! the very name (compact denial of existence, RFC 9824).

mod bitmap;
mod keys;
mod sign;

pub(crate) use bitmap::nsec;
pub use keys::{KeyError, Keys};
pub(crate) use sign::Signatures;
