//! Small files: magic (8 bytes), version (u32), the content, CRC-32C of all before it (u32); integers little-endian.

/// The version that this program writes, and the only one it reads.
pub(crate) const VERSION: u32 = 1;
const HEAD: usize = 12;
const TAIL: usize = 4;

/// Why a file cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SealError {
    /// Something else.
    #[error("not a file of this kind")]
    Magic,
    /// Of another program.
    #[error("format version {0}; this program reads {VERSION}")]
    Version(u32),
    /// Changed or cut off.
    #[error("it does not have its checksum")]
    Checksum,
}

/// The bytes of a file.
pub(crate) fn seal(magic: [u8; 8], content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD + content.len() + TAIL);
    bytes.extend_from_slice(&magic);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(content);
    let crc = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes
}

/// The content of a file.
pub(crate) fn open(magic: [u8; 8], bytes: &[u8]) -> Result<&[u8], SealError> {
    let number = |at: usize| bytes.get(at..at + 4).and_then(|four| four.try_into().ok()).map(u32::from_le_bytes);
    if bytes.get(..8) != Some(&magic) {
        return Err(SealError::Magic);
    }
    match number(8) {
        Some(VERSION) => {}
        Some(other) => return Err(SealError::Version(other)),
        None => return Err(SealError::Checksum),
    }
    if bytes.len() < HEAD + TAIL {
        return Err(SealError::Checksum);
    }
    let end = bytes.len() - TAIL;
    if number(end) != Some(crc32c::crc32c(&bytes[..end])) {
        return Err(SealError::Checksum);
    }
    Ok(&bytes[HEAD..end])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAGIC: [u8; 8] = *b"HEARTHXX";

    #[test]
    fn content_survives_and_damage_is_seen() {
        let bytes = seal(MAGIC, b"content");
        assert_eq!(open(MAGIC, &bytes), Ok(&b"content"[..]));
        assert_eq!(open(*b"HEARTHYY", &bytes), Err(SealError::Magic));
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 4;
            open(MAGIC, &damaged).expect_err("damaged");
            open(MAGIC, &bytes[..at]).expect_err("cut off");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(tail in proptest::collection::vec(any::<u8>(), 0..40), known in any::<bool>()) {
            let mut bytes = if known { MAGIC.to_vec() } else { Vec::new() };
            bytes.extend(tail);
            let _ = open(MAGIC, &bytes);
        }
    }
}
