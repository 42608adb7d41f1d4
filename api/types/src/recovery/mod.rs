//! How a region that lost everything comes back from the disks of its devices.
//!
//! # Who signs what
//! | key | who has it | what it signs |
//! |---|---|---|
//! | recovery key | the operator, offline; its public half is in the region and pinned by devices | [`Endorsement`] of a signing key, [`Rotation`] to its successor, [`Statement`] that a region was recovered |
//! | signing key | the region's servers: it is derived from the key of the region's CA, and lives and dies with it | [`Manifest`] of one owner's objects |
//! | device key | one device | nothing here: it proves which device hands copies in, by TLS |
//!
//! A region gives each device a [`Manifest`] of its owner's objects, and the objects. When the region and its CA are gone, the
//! operator makes a new one and signs a [`Statement`] with the recovery key: a higher generation, and the digest of the new CA. A
//! device that pinned the recovery key believes it, pins the new CA, and hands its copies in. The new region has never seen the key
//! that signed them, but it has the recovery key's public half from the operator, and the device hands in the old region's
//! endorsement by that key. What the copies of several devices come to together, [`Ledger`] says.
//!
//! # What is guaranteed, and against whom
//! - *A server that lies in the net* has neither the CA's key nor the recovery key: devices take no statement of it, and say nothing
//!   secret to it. It can replay an old statement; one of the same or a lower generation is refused.
//! - *Whoever stole the CA's key* is the region to every device that can reach it, as before. They cannot change the recovery key that
//!   a device has pinned, so the operator takes the devices back by recovering under a new CA. A device that never was told a
//!   recovery key takes the first one it is told, by whoever has the CA's key then: make the recovery key on the first day.
//! - *Whoever stole the recovery key* can take over every device that they can make dial them. Keep it offline; where it may have
//!   been seen, rotate it: a device accepts a successor that the key it pinned has signed. Endorsements by a key that was rotated away count no
//!   more, so a device that has been offline since before the rotation cannot hand in until it was connected once.
//! - *A device that lies* cannot make objects or change any: each is hashed in a signed manifest. It can hand in only its own owner's:
//!   its key has to be one of a Device in that very manifest. It can replay an older manifest that it kept: what others hand in of
//!   a later time, before or after, prevails.
//! - *What the owner had deleted* stays deleted as soon as one device hands in that had heard of it. A manifest says which objects
//!   there were, all of them, up to a revision for each kind: what is not in it and is not newer was gone. (Tombstones
//!   would say the same at a size that grows for ever, or they expire, and then resurrect.) The same goes for a device that was revoked.
//! - *What nobody hands in* is lost to the region; what runs of it runs on, until a person lets it go.
//! - *Old manifests and a later recovery*: all of a generation is newer than all of a lower one.
//!
//! Every device of an owner keeps the copies of all of the owner's objects, Secrets too: whoever has root on a home's device can read that home's
//! Secrets, and those of nobody else.

mod copies;
mod file;
mod keys;
mod ledger;
mod record;
mod statements;

pub use copies::{
    BadManifest, Entry, KINDS, MAX_COPIES, MAX_COPIES_BYTES, MAX_MANIFEST_BYTES, Manifest, essence, is_shared, rank,
};
pub use file::{BadKeyFile, MAX_KEY_FILE_BYTES};
pub use keys::{BadKey, Digest, PublicKey, Signature, SigningKey};
pub use ledger::{Held, Ledger, Merged, Version};
pub use record::{Record, is_regions_own, ledger_key, record_key};
pub use statements::{
    Distrust, Endorsement, MAX_ROTATIONS, MAX_STATEMENT_BYTES, MAX_TRUST_BYTES, RecoveryKey, Rotation, Statement, Trust,
};

/// The bytes that are signed: what it is, then each field behind its length, so that no two statements have the same.
fn message<'a>(what: &str, fields: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut out = format!("hearth {what} v1\0").into_bytes();
    for field in fields {
        // A field that long does not come from anywhere: everything is bounded before.
        out.extend_from_slice(&u32::try_from(field.len()).unwrap_or(u32::MAX).to_le_bytes());
        out.extend_from_slice(field);
    }
    out
}
