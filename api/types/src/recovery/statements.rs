//! What the recovery key says.

use serde::{Deserialize, Serialize};

use super::{
    keys::{Digest, PublicKey, Signature, SigningKey},
    message,
};
use crate::{Incarnation, Timestamp};

/// Rotations of a recovery key that are remembered: one a year for a working life.
pub const MAX_ROTATIONS: usize = 32;
/// The largest [`Trust`] as JSON in bytes: [`MAX_ROTATIONS`] with the longest names fit.
pub const MAX_TRUST_BYTES: usize = 64 << 10;
/// The largest [`Statement`] as JSON in bytes.
pub const MAX_STATEMENT_BYTES: usize = 4 << 10;

/// Why something that a recovery key should have said is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Distrust {
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Unreadable(String),
    /// It is too large to be read.
    #[error("it has {0} bytes, which is more than it can have")]
    TooLarge(usize),
    /// The signature is not by the key that it names.
    #[error("its {0} is not signed by the key that it names")]
    Signature(&'static str),
    /// It is signed by another key than the one that was pinned.
    #[error(
        "it is signed by the recovery key {found}, and {pinned} is pinned; no rotation leads from one to the other"
    )]
    OtherKey {
        /// Who signed.
        found: PublicKey,
        /// Who should have.
        pinned: PublicKey,
    },
    /// The rotations do not follow on each other.
    #[error("its rotations do not lead to its key, or are more than {MAX_ROTATIONS}")]
    Rotations,
    /// It is of another region.
    #[error("it is of the region {found:?}, not of {wanted:?}")]
    OtherRegion {
        /// `region (zone)`.
        found: String,
        /// `region (zone)`.
        wanted: String,
    },
    /// It is a replay.
    #[error("it is of generation {found}, and generation {known} is known: only a higher one is believed")]
    Generation {
        /// Its generation.
        found: u64,
        /// What is known.
        known: u64,
    },
    /// Another CA is shown than the one it names.
    #[error("the CA that comes with it is not the one that it names")]
    OtherCa,
}

/// Reads JSON of a bounded size.
fn read<'a, T: Deserialize<'a>>(json: &'a [u8], max: usize) -> Result<T, Distrust> {
    if json.len() > max {
        return Err(Distrust::TooLarge(json.len()));
    }
    serde_json::from_slice(json).map_err(|error| Distrust::Unreadable(error.to_string()))
}

/// A recovery key as its operator has it: the secret, and how it came from the keys before.
#[derive(Debug)]
pub struct RecoveryKey {
    /// The secret.
    pub key: SigningKey,
    /// From the first key to this one.
    pub rotations: Vec<Rotation>,
}

impl RecoveryKey {
    /// Trust in this key, for a region with this signing key.
    pub fn trust(&self, region: &str, zone: &str, signing_key: PublicKey) -> Trust {
        Trust {
            key: self.key.public(),
            endorsement: Endorsement::new(&self.key, region, zone, signing_key),
            rotations: self.rotations.clone(),
        }
    }
}

/// The recovery key vouches for a key by which a region signs copies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endorsement {
    /// The region.
    pub region: String,
    /// Its zone.
    pub zone: String,
    /// The key that signs copies.
    pub signing_key: PublicKey,
    /// The recovery key.
    pub by: PublicKey,
    /// Its signature.
    pub signature: Signature,
}

impl Endorsement {
    /// Endorses a key.
    pub fn new(by: &SigningKey, region: &str, zone: &str, signing_key: PublicKey) -> Self {
        let signature = by.sign(&Self::message(region, zone, signing_key));
        Self { region: region.to_owned(), zone: zone.to_owned(), signing_key, by: by.public(), signature }
    }

    fn message(region: &str, zone: &str, key: PublicKey) -> Vec<u8> {
        message("endorsement", [region.as_bytes(), zone.as_bytes(), key.0.as_slice()])
    }

    /// Checks that the key that it names signed it.
    pub fn check(&self) -> Result<(), Distrust> {
        let message = Self::message(&self.region, &self.zone, self.signing_key);
        if self.by.verifies(&message, &self.signature) { Ok(()) } else { Err(Distrust::Signature("endorsement")) }
    }
}

/// A recovery key names its successor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rotation {
    /// The key that signed.
    pub from: PublicKey,
    /// The key that counts from then on.
    pub to: PublicKey,
    /// The signature.
    pub signature: Signature,
}

impl Rotation {
    /// A rotation to another key.
    pub fn new(from: &SigningKey, to: PublicKey) -> Self {
        let signature = from.sign(&message("rotation", [to.0.as_slice()]));
        Self { from: from.public(), to, signature }
    }

    fn is_signed(&self) -> bool {
        self.from.verifies(&message("rotation", [self.to.0.as_slice()]), &self.signature)
    }
}

/// What a region tells its devices of the recovery key. Nothing in it is secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Trust {
    /// The recovery key that counts.
    pub key: PublicKey,
    /// Its word for the region's signing key.
    pub endorsement: Endorsement,
    /// How it came from the keys before.
    pub rotations: Vec<Rotation>,
}

impl Trust {
    /// Reads and checks one. Never panics, whatever the bytes are.
    pub fn from_json(json: &[u8]) -> Result<Self, Distrust> {
        let trust: Self = read(json, MAX_TRUST_BYTES)?;
        trust.check().map(|()| trust)
    }

    /// As JSON.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("it has no maps with odd keys")
    }

    /// Checks every signature in it, and that its rotations lead to its key.
    pub fn check(&self) -> Result<(), Distrust> {
        check_rotations(&self.rotations, self.key)?;
        if self.endorsement.by != self.key {
            return Err(Distrust::Signature("endorsement"));
        }
        self.endorsement.check()
    }

    /// Whether who pinned this key may go over to the one that counts now: the same one, or a successor that it signed.
    pub fn follows(&self, pinned: PublicKey) -> Result<(), Distrust> {
        follows(&self.rotations, pinned, self.key)
    }

    /// The region, as messages name it.
    pub fn region(&self) -> String {
        named(&self.endorsement.region, &self.endorsement.zone)
    }
}

fn named(region: &str, zone: &str) -> String {
    format!("{region} ({zone})")
}

fn check_rotations(rotations: &[Rotation], key: PublicKey) -> Result<(), Distrust> {
    let linked = rotations.windows(2).all(|two| two[0].to == two[1].from);
    if rotations.len() > MAX_ROTATIONS || !linked || rotations.last().is_some_and(|last| last.to != key) {
        return Err(Distrust::Rotations);
    }
    if rotations.iter().all(Rotation::is_signed) { Ok(()) } else { Err(Distrust::Signature("rotation")) }
}

fn follows(rotations: &[Rotation], pinned: PublicKey, key: PublicKey) -> Result<(), Distrust> {
    if pinned == key || rotations.iter().any(|one| one.from == pinned) {
        return check_rotations(rotations, key);
    }
    Err(Distrust::OtherKey { found: key, pinned })
}

/// A region was made anew, by its operator: what it is from now on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Statement {
    /// The region.
    pub region: String,
    /// Its zone.
    pub zone: String,
    /// Higher than any before. A region that was never recovered has 0.
    pub generation: u64,
    /// The identity of its new data.
    pub incarnation: Incarnation,
    /// SHA-256 of its new CA's certificate, DER.
    pub ca: Digest,
    /// When it was made.
    pub time: Timestamp,
    /// The recovery key.
    pub by: PublicKey,
    /// Its signature.
    pub signature: Signature,
}

impl Statement {
    /// Makes a statement.
    pub fn new(
        by: &SigningKey,
        (region, zone): (&str, &str),
        generation: u64,
        incarnation: Incarnation,
        ca: Digest,
        time: Timestamp,
    ) -> Self {
        let mut statement = Self {
            region: region.to_owned(),
            zone: zone.to_owned(),
            generation,
            incarnation,
            ca,
            time,
            by: by.public(),
            signature: Signature([0; 64]),
        };
        statement.signature = by.sign(&statement.message());
        statement
    }

    fn message(&self) -> Vec<u8> {
        let fields = [
            self.region.as_bytes(),
            self.zone.as_bytes(),
            &self.generation.to_le_bytes(),
            self.incarnation.as_str().as_bytes(),
            &self.ca.0,
            &self.time.0.to_le_bytes(),
        ];
        message("recovery statement", fields)
    }

    /// Reads one. Never panics, whatever the bytes are. Nothing of it is to be believed before [`Statement::check`].
    pub fn from_json(json: &[u8]) -> Result<Self, Distrust> {
        read(json, MAX_STATEMENT_BYTES)
    }

    /// As JSON.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("it has no maps with odd keys")
    }

    /// Whether a device that pinned `pinned` for this region, and knows this generation, is to believe it. `ca` is the CA's certificate (DER)
    /// that came with it, `rotations` lead from the pinned key to the one that signed.
    pub fn check(
        &self,
        pinned: PublicKey,
        rotations: &[Rotation],
        (region, zone): (&str, &str),
        known: u64,
        ca: &[u8],
    ) -> Result<(), Distrust> {
        follows(rotations, pinned, self.by)?;
        if !self.by.verifies(&self.message(), &self.signature) {
            return Err(Distrust::Signature("statement"));
        }
        if (self.region.as_str(), self.zone.as_str()) != (region, zone) {
            let (found, wanted) = (named(&self.region, &self.zone), named(region, zone));
            return Err(Distrust::OtherRegion { found, wanted });
        }
        if self.generation <= known {
            return Err(Distrust::Generation { found: self.generation, known });
        }
        if Digest::of(ca) == self.ca { Ok(()) } else { Err(Distrust::OtherCa) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(number: u8) -> SigningKey {
        SigningKey::from_seed(&[number; 32])
    }

    const CA: &[u8] = b"certificate";

    fn statement(by: &SigningKey, generation: u64) -> Statement {
        let ca = Digest::of(CA);
        Statement::new(by, ("home", "hearth.internal"), generation, "new".into(), ca, Timestamp(5))
    }

    fn rotated(keys: &[SigningKey]) -> RecoveryKey {
        let rotations = keys.windows(2).map(|two| Rotation::new(&two[0], two[1].public())).collect();
        let last = keys.len();
        RecoveryKey { key: key(u8::try_from(last).expect("few")), rotations }
    }

    #[test]
    fn a_pinned_key_is_followed_to_the_successors_that_it_signed_and_nowhere_else() {
        let keys = [key(1), key(2), key(3)];
        let trust = rotated(&keys).trust("home", "z", key(9).public());
        let trust = Trust::from_json(&trust.to_json()).expect("sound");
        for pinned in &keys {
            trust.follows(pinned.public()).expect("a predecessor, or itself");
        }
        let other = Distrust::OtherKey { found: key(3).public(), pinned: key(4).public() };
        assert_eq!(trust.follows(key(4).public()), Err(other));
        // The old key once more, to one that pinned the new one.
        let old = rotated(&keys[..1]).trust("home", "z", key(9).public());
        assert!(matches!(old.follows(key(3).public()), Err(Distrust::OtherKey { .. })));
        // A rotation that somebody else signed, one that leads elsewhere, and a gap.
        let mut forged = trust.clone();
        forged.rotations[1] = Rotation { from: key(2).public(), ..Rotation::new(&key(7), key(3).public()) };
        assert_eq!(forged.check(), Err(Distrust::Signature("rotation")));
        let mut elsewhere = trust.clone();
        elsewhere.rotations.pop();
        assert_eq!(elsewhere.check(), Err(Distrust::Rotations));
        let mut gap = trust.clone();
        gap.rotations.remove(0);
        gap.rotations.insert(0, Rotation::new(&key(1), key(5).public()));
        assert_eq!(gap.check(), Err(Distrust::Rotations));
        let mut long = trust.clone();
        long.rotations = vec![Rotation::new(&key(3), key(3).public()); MAX_ROTATIONS + 1];
        assert_eq!(long.check(), Err(Distrust::Rotations));
        // An endorsement of another key, or by another key.
        let mut forged = trust.clone();
        forged.endorsement.signing_key = key(8).public();
        assert_eq!(forged.check(), Err(Distrust::Signature("endorsement")));
        let mut foreign = trust;
        foreign.endorsement = Endorsement::new(&key(8), "home", "z", key(9).public());
        assert_eq!(foreign.check(), Err(Distrust::Signature("endorsement")));
    }

    #[test]
    fn a_statement_is_believed_once_by_whoever_pinned_its_key() {
        let by = key(1);
        let read = Statement::from_json(&statement(&by, 7).to_json()).expect("readable");
        let home = ("home", "hearth.internal");
        let check = |one: &Statement, known| one.check(by.public(), &[], home, known, CA);
        assert_eq!(check(&read, 6), Ok(()));
        for known in [7, 8] {
            assert_eq!(check(&read, known), Err(Distrust::Generation { found: 7, known }));
        }
        assert_eq!(read.check(by.public(), &[], home, 0, b"other"), Err(Distrust::OtherCa));
        assert!(matches!(read.check(by.public(), &[], ("home", "z"), 0, CA), Err(Distrust::OtherRegion { .. })));
        assert!(matches!(read.check(by.public(), &[], ("x", home.1), 0, CA), Err(Distrust::OtherRegion { .. })));
        assert!(matches!(read.check(key(2).public(), &[], home, 0, CA), Err(Distrust::OtherKey { .. })));
        let rotation = [Rotation::new(&key(2), by.public())];
        assert_eq!(read.check(key(2).public(), &rotation, home, 0, CA), Ok(()));
        let raised = Statement { generation: 9, ..read.clone() };
        assert_eq!(check(&raised, 0), Err(Distrust::Signature("statement")));
        let renamed = Statement { by: by.public(), ..statement(&key(3), 9) };
        assert_eq!(check(&renamed, 0), Err(Distrust::Signature("statement")));
    }

    #[test]
    fn what_is_too_large_is_not_read() {
        let json = vec![b' '; MAX_TRUST_BYTES + 1];
        assert_eq!(Trust::from_json(&json), Err(Distrust::TooLarge(json.len())));
        assert_eq!(Statement::from_json(&json), Err(Distrust::TooLarge(json.len())));
    }

    proptest! {
        #[test]
        fn arbitrary_and_damaged_bytes_never_panic_and_are_never_believed(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
        ) {
            let _ = Trust::from_json(&bytes);
            let _ = Statement::from_json(&bytes);
            let keys = [key(1), key(2)];
            let trust = rotated(&keys).trust("home", "z", key(9).public());
            let mut json = trust.to_json();
            let at = at.index(json.len());
            json[at] = byte;
            // What reads back is what was signed, however it is spelled.
            if let Ok(read) = Trust::from_json(&json) {
                prop_assert_eq!(read, trust);
            }
            let mut json = statement(&key(1), 7).to_json();
            let at = at % json.len();
            json[at] = byte;
            if let Ok(read) = Statement::from_json(&json)
                && read.check(key(1).public(), &[], ("home", "hearth.internal"), 0, CA).is_ok()
            {
                prop_assert_eq!(read, statement(&key(1), 7));
            }
        }
    }
}
