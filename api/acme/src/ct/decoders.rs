//! What the watch of Certificate Transparency reads of strangers' bytes, for fuzzing and for its seeds: none of it may panic, whatever the
//! bytes are, and what is said here must hold. `fuzz/targets/ct` takes this file and those it names by their paths.

use hearth_types::transparency::LogKey;

use super::{
    head::{Head, checkpoint, signed_tree_head},
    tile::{Tile, TileError, WIDTH},
};

/// A log's key and a checkpoint of that log, made with openssl.
const KEY: &str = "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEVLpBXHMi1CDJfAx1qjxWJrprwxvxqvEG/p94sNK0YWQd+7m8DXPWTpDlTdNZkO3Opf+q5ua9J4mz8yIFCHwyOQ==";
const GOOD: &str = "ct.example/2026h1\n300\nCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQk=\n\n\u{2014} ct.example/2026h1 NfQ8WwAAAZtxtEwABAMARzBFAiAtt7GEeFEZ2eIyd4ax+LvUUd4SKv1vVF95EDkwK6Sj+AIhANImSXy1YFtrjz71tUkjnP7bmbnAj3NuaBsO6CJHdArw\n";

/// A tile: the first byte says how wide it is to be, the second which one, the rest is what it has. Whatever is read is all of that, at its
/// place, and nothing is read of a part.
pub(crate) fn tile(bytes: &[u8]) {
    let Some(([width, number], rest)) = bytes.split_first_chunk::<2>() else { return };
    let data = Tile { level: None, number: u64::from(*number), width: u64::from(*width) + 1 };
    if let Ok(leaves) = data.leaves(rest) {
        assert_eq!(leaves.len() as u64, data.width);
        for leaf in &leaves {
            assert!(leaf.starts_with(&[0, 0]) && leaf.len() <= rest.len() + 2, "{leaf:?}");
        }
        let last = data.first() + data.width - 1;
        assert_eq!(data.leaves(&rest[..rest.len() - 1]), Err(TileError::Torn(last)));
        assert_eq!(data.leaves(&[rest, &[0]].concat()), Err(TileError::Rest(1, data.width)));
        // As the begin of a wider one it ends where that has more.
        let wider = Tile { width: WIDTH, ..data };
        assert!(data.width == WIDTH || wider.leaves(rest) == Err(TileError::Torn(last + 1)));
    }
    let hashes = Tile { level: Some(0), ..data };
    match hashes.hashes(rest) {
        Ok(read) => assert_eq!(read.as_flattened(), rest),
        Err(_) => assert_ne!(rest.len() as u64, 32 * hashes.width),
    }
}

/// A tree head: as it is, and (by the first two bytes) put into a good one in the place of a part. What the log's key did not sign is not
/// taken.
pub(crate) fn head(bytes: &[u8]) {
    let Some(([at, without], rest)) = bytes.split_first_chunk::<2>() else { return };
    let key = LogKey::parse(KEY).expect("a key");
    let _ = checkpoint(rest, None);
    let _ = signed_tree_head(rest, None);
    let at = usize::from(*at) % (GOOD.len() + 1);
    let end = GOOD.len().min(at + usize::from(*without));
    let other = [&GOOD.as_bytes()[..at], rest, &GOOD.as_bytes()[end..]].concat();
    let signed = Head { size: 300, root: [9; 32], signed: Some(1_767_139_200_000) };
    for read in [checkpoint(rest, Some(&key)), signed_tree_head(rest, Some(&key)), checkpoint(&other, Some(&key))] {
        assert!(read.is_err() || read == Ok(signed), "{read:?}");
    }
}

#[cfg(test)]
mod tests {
    /// What fuzzing begins with, and what it once found.
    #[test]
    fn seeds_of_fuzzing_are_read_as_they_must_be() {
        let mut read = 0;
        for (target, run) in [("ct_tile", super::tile as fn(&[u8])), ("ct_head", super::head)] {
            let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds").join(target);
            for file in std::fs::read_dir(folder).expect("seeds") {
                run(&std::fs::read(file.expect("a seed").path()).expect("a seed"));
                read += 1;
            }
        }
        assert!(read >= 8, "{read} seeds");
    }

    #[test]
    fn what_fuzzing_puts_bytes_into_is_good() {
        let key = super::LogKey::parse(super::KEY).expect("a key");
        assert!(super::checkpoint(super::GOOD.as_bytes(), Some(&key)).is_ok());
    }
}
