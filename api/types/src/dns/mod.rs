//! What the zone's DNS needs to know beyond hostnames: records that owners set, and the keys by which the zone is signed. Pure.

pub mod keys;
pub mod record;
