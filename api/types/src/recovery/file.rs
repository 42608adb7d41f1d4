//! The file in which an operator keeps a recovery key.

use std::fmt::Write as _;

use super::{
    keys::{Digest, SigningKey, from_hex},
    statements::{MAX_ROTATIONS, RecoveryKey, Rotation},
};

/// What the line with the key begins with. The number is the format's version.
const KEY: &str = "hearth-recovery-key-v1";
const ROTATION: &str = "rotation";
/// Hex digits that tell a typing error.
const CHECK_DIGITS: usize = 8;
/// The largest file in bytes.
pub const MAX_KEY_FILE_BYTES: usize = 64 << 10;

/// Why a file is no recovery key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadKeyFile {
    /// Too large.
    #[error("it is no recovery key: it has {0} bytes")]
    TooLarge(usize),
    /// Without a key, or with several.
    #[error("it is no recovery key: no single line begins with {KEY}")]
    NoKey,
    /// A line that means nothing.
    #[error("line {0} is damaged: it was cut off or mistyped; use the other copy")]
    Line(usize),
    /// The rotations do not lead to the key.
    #[error("its rotations do not lead to its key; use the other copy")]
    Rotations,
}

impl RecoveryKey {
    /// The text of the file, for a key of this seed. Lines that begin with `#` are for people.
    pub fn to_text(seed: &[u8; 32], rotations: &[Rotation], region: &str, zone: &str) -> String {
        let seed_hex = Digest(*seed).to_string();
        let check = Digest::of(seed).to_string();
        let mut text = format!(
            "# The recovery key of the region {region} ({zone}).\n\
             # Whoever has this file can take over the region's devices. Without it, a region whose disks are all lost stays lost.\n\
             # Keep it offline, in two copies at two places, and on no server.\n\
             {KEY} {seed_hex} {}\n",
            &check[..CHECK_DIGITS]
        );
        for Rotation { from, to, signature } in rotations {
            let _ = writeln!(text, "{ROTATION} {from} {to} {signature}");
        }
        text
    }

    /// Reads the text of a file. Never panics, whatever it is.
    pub fn from_text(text: &str) -> Result<Self, BadKeyFile> {
        if text.len() > MAX_KEY_FILE_BYTES {
            return Err(BadKeyFile::TooLarge(text.len()));
        }
        let (mut key, mut rotations) = (None, Vec::new());
        for (index, line) in text.lines().enumerate() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let bad = BadKeyFile::Line(index + 1);
            match words.as_slice() {
                [] => {}
                [first, ..] if first.starts_with('#') => {}
                [KEY, seed, check] => {
                    let seed: [u8; 32] = from_hex(seed).map_err(|_| bad.clone())?;
                    if Digest::of(&seed).to_string()[..CHECK_DIGITS] != check.to_lowercase() {
                        return Err(bad);
                    }
                    if key.replace(SigningKey::from_seed(&seed)).is_some() {
                        return Err(BadKeyFile::NoKey);
                    }
                }
                [ROTATION, from, to, signature] => {
                    let read = |error| {
                        let _: super::BadKey = error;
                        bad.clone()
                    };
                    let (from, to) = (from.parse().map_err(read)?, to.parse().map_err(read)?);
                    rotations.push(Rotation { from, to, signature: signature.parse().map_err(read)? });
                }
                _ => return Err(bad),
            }
        }
        let read = Self { key: key.ok_or(BadKeyFile::NoKey)?, rotations };
        // Any endorsement does: it is the rotations that are looked at.
        let sound = read.rotations.len() <= MAX_ROTATIONS && read.trust("", "", read.key.public()).check().is_ok();
        if sound { Ok(read) } else { Err(BadKeyFile::Rotations) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text() -> String {
        let (old, new) = ([1; 32], [2; 32]);
        let rotation = Rotation::new(&SigningKey::from_seed(&old), SigningKey::from_seed(&new).public());
        RecoveryKey::to_text(&new, &[rotation], "home", "hearth.internal")
    }

    #[test]
    fn a_key_is_read_back_and_every_typing_error_in_it_is_found() {
        let text = text();
        let read = RecoveryKey::from_text(&text).expect("a key");
        assert_eq!(read.key.public(), SigningKey::from_seed(&[2; 32]).public());
        assert_eq!(read.rotations.len(), 1);
        assert!(text.contains("offline") && text.contains("two copies"));
        let lines: Vec<&str> = text.lines().collect();
        for digit in 0..64 {
            let mut key = lines[3].as_bytes().to_vec();
            let at = KEY.len() + 1 + digit;
            key[at] = if key[at] == b'7' { b'8' } else { b'7' };
            let changed = String::from_utf8(key).expect("text");
            assert_eq!(RecoveryKey::from_text(&changed).expect_err("mistyped"), BadKeyFile::Line(1), "{changed}");
        }
        assert_eq!(RecoveryKey::from_text("").expect_err("empty"), BadKeyFile::NoKey);
        assert_eq!(RecoveryKey::from_text("hello\n").expect_err("another file"), BadKeyFile::Line(1));
        let twice = format!("{}\n{}", lines[3], lines[3]);
        assert_eq!(RecoveryKey::from_text(&twice).expect_err("two"), BadKeyFile::NoKey);
        let long = "#".repeat(MAX_KEY_FILE_BYTES + 1);
        assert_eq!(RecoveryKey::from_text(&long).expect_err("long"), BadKeyFile::TooLarge(long.len()));
        let other = RecoveryKey::to_text(&[3; 32], &RecoveryKey::from_text(&text).expect("a key").rotations, "", "");
        assert_eq!(RecoveryKey::from_text(&other).expect_err("lead elsewhere"), BadKeyFile::Rotations);
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in ".{0,200}", at in any::<prop::sample::Index>(), with in any::<char>()) {
            let _ = RecoveryKey::from_text(&text);
            let mut sound: Vec<char> = self::text().chars().collect();
            let at = at.index(sound.len());
            sound[at] = with;
            let _ = RecoveryKey::from_text(&sound.into_iter().collect::<String>());
        }
    }
}
