//! Tiles of logs with the static API (<https://c2sp.org/static-ct-api>, <https://c2sp.org/tlog-tiles>): where they are, and what they hold. Pure.

use std::fmt::Write as _;

use super::merkle::{HASH, Hash, perfect};

/// Hashes or entries of a full tile.
pub(crate) const WIDTH: u64 = 256;
/// Levels of the tree that a tile spans.
const HEIGHT: u32 = 8;
/// The extension that has an entry's index, and its length in bytes.
const LEAF_INDEX: u8 = 0;
const INDEX: usize = 5;
/// Bytes of an `issuer_key_hash`, and of a certificate's fingerprint.
const DIGEST: usize = 32;

/// Why a tile cannot be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TileError {
    #[error("it ends in the midst of entry {0}")]
    Torn(u64),
    #[error("entry {0} is of type {1}, which nobody defined")]
    Type(u64, u16),
    #[error("the extensions of entry {0} cannot be read")]
    Extensions(u64),
    #[error("where entry {0} is to be, it says to be entry {1}")]
    Index(u64, u64),
    #[error("the chain of entry {0} is not made of fingerprints")]
    Chain(u64),
    #[error("it has {0} bytes behind its {1} entries")]
    Rest(usize, u64),
    #[error("it has {0} bytes, and {1} hashes have {2}")]
    Hashes(usize, u64, u64),
}

/// A tile of a tree of some size: how wide it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Tile {
    /// Of hashes, its level; `None`: of entries.
    pub(crate) level: Option<u32>,
    /// Its number on its level.
    pub(crate) number: u64,
    /// How many hashes or entries it has in the tree: 1 to 256.
    pub(crate) width: u64,
}

impl Tile {
    /// The tile of entries that has an entry, in a tree of `size` leaves that has that entry.
    pub(crate) fn of_entry(index: u64, size: u64) -> Self {
        Self { level: None, ..Self::on(0, index, size) }
    }

    /// The tile with the hashes below a perfect subtree in a tree of `size` leaves that has it whole, and where in the tile they are.
    pub(crate) fn of_subtree(level: u32, number: u64, size: u64) -> (Self, std::ops::Range<usize>) {
        let (tile_level, within) = (level / HEIGHT, level % HEIGHT);
        let first = number << within;
        let at = (first % WIDTH) as usize;
        (Self::on(tile_level, first, size), at..at + (1 << within))
    }

    /// The tile with a hash of a level.
    fn on(level: u32, index: u64, size: u64) -> Self {
        let number = index / WIDTH;
        let width = (size >> (HEIGHT * level)).saturating_sub(number * WIDTH).min(WIDTH);
        Self { level: Some(level), number, width }
    }

    /// The first entry of a tile of entries.
    pub(crate) fn first(&self) -> u64 {
        self.number * WIDTH
    }

    /// As it is once it is full, where it is not.
    pub(crate) fn full(&self) -> Option<Self> {
        (self.width < WIDTH).then_some(Self { width: WIDTH, ..*self })
    }

    /// Its path below the log's monitoring prefix.
    pub(crate) fn path(&self) -> String {
        let mut path = match self.level {
            Some(level) => format!("tile/{level}/"),
            None => "tile/data/".to_owned(),
        };
        let mut groups = vec![self.number % 1000];
        let mut rest = self.number / 1000;
        while rest > 0 {
            groups.push(rest % 1000);
            rest /= 1000;
        }
        for group in groups[1..].iter().rev() {
            let _ = write!(path, "x{group:03}/");
        }
        let _ = write!(path, "{:03}", groups[0]);
        if self.width < WIDTH {
            let _ = write!(path, ".p/{}", self.width);
        }
        path
    }

    /// Reads a tile of hashes.
    pub(crate) fn hashes(&self, bytes: &[u8]) -> Result<Vec<Hash>, TileError> {
        let (hashes, rest) = bytes.as_chunks::<HASH>();
        if !rest.is_empty() || hashes.len() as u64 != self.width {
            return Err(TileError::Hashes(bytes.len(), self.width, self.width * HASH as u64));
        }
        Ok(hashes.to_vec())
    }

    /// Reads a tile of entries: each as the `MerkleTreeLeaf` (RFC 6962 section 3.4) that is the tree's leaf. A tile has all of its entries,
    /// at their places, and nothing else.
    pub(crate) fn leaves(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, TileError> {
        let mut reader = Reader { rest: bytes };
        let mut leaves = Vec::new();
        for index in (self.first()..).take(self.width as usize) {
            leaves.push(leaf(&mut reader, index)?);
        }
        match reader.rest.len() {
            0 => Ok(leaves),
            more => Err(TileError::Rest(more, self.width)),
        }
    }
}

/// The root over some hashes of a tile.
pub(crate) fn subtree(hashes: &[Hash], at: std::ops::Range<usize>) -> Option<Hash> {
    hashes.get(at).and_then(perfect)
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, many: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(many)?;
        self.rest = rest;
        Some(taken)
    }

    /// A number of so many bytes, 8 at most.
    fn number(&mut self, bytes: usize) -> Option<u64> {
        Some(self.take(bytes)?.iter().fold(0, |number, byte| (number << 8) | u64::from(*byte)))
    }

    /// Bytes behind their length.
    fn sized(&mut self, length: usize) -> Option<&'a [u8]> {
        let many = self.number(length)?;
        self.take(usize::try_from(many).ok()?)
    }
}

/// Reads one `TileLeaf`.
fn leaf(reader: &mut Reader<'_>, index: u64) -> Result<Vec<u8>, TileError> {
    let torn = || TileError::Torn(index);
    let begin = reader.rest;
    reader.take(8).ok_or_else(torn)?; // when it was logged
    let kind = reader.number(2).ok_or_else(torn)?;
    let precertificate = match kind {
        0 => false,
        1 => true,
        other => return Err(TileError::Type(index, other as u16)),
    };
    if precertificate {
        reader.take(DIGEST).ok_or_else(torn)?;
    }
    reader.sized(3).ok_or_else(torn)?;
    let extensions = reader.sized(2).ok_or_else(torn)?;
    let entry = &begin[..begin.len() - reader.rest.len()];
    if precertificate {
        reader.sized(3).ok_or_else(torn)?; // as it was submitted
    }
    let chain = reader.sized(2).ok_or_else(torn)?;
    if !chain.len().is_multiple_of(DIGEST) {
        return Err(TileError::Chain(index));
    }
    match leaf_index(extensions) {
        Err(()) => return Err(TileError::Extensions(index)),
        Ok(Some(other)) if other != index => return Err(TileError::Index(index, other)),
        // Logs that were of RFC 6962 and are kept in this form say no index.
        Ok(_) => {}
    }
    // `MerkleTreeLeaf`: version 1 and a timestamped entry, which are both 0.
    Ok([&[0, 0], entry].concat())
}

/// What `CtExtensions` say to be the entry's index.
fn leaf_index(extensions: &[u8]) -> Result<Option<u64>, ()> {
    let mut reader = Reader { rest: extensions };
    let mut index = None;
    while !reader.rest.is_empty() {
        let kind = reader.take(1).ok_or(())?;
        let data = reader.sized(2).ok_or(())?;
        if kind == [LEAF_INDEX] {
            if data.len() != INDEX || index.is_some() {
                return Err(());
            }
            index = Reader { rest: data }.number(INDEX);
        }
    }
    Ok(index)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ct::merkle;

    fn data(number: u64, width: u64) -> Tile {
        Tile { level: None, number, width }
    }

    /// A `TileLeaf` from the `MerkleTreeLeaf` of a certificate or, behind it, of a precertificate with what was submitted.
    pub(crate) fn tile_leaf(leaf: &[u8], submitted: Option<&[u8]>, index: Option<u64>, chain: &[[u8; 32]]) -> Vec<u8> {
        let mut bytes = leaf[2..leaf.len() - 2].to_vec();
        match index {
            Some(index) => bytes.extend([&[0, 8, 0, 0, 5][..], &index.to_be_bytes()[3..]].concat()),
            None => bytes.extend([0, 0]),
        }
        if let Some(submitted) = submitted {
            bytes.extend(&(submitted.len() as u32).to_be_bytes()[1..]);
            bytes.extend(submitted);
        }
        bytes.extend((chain.len() as u16 * 32).to_be_bytes());
        bytes.extend(chain.as_flattened());
        bytes
    }

    /// A `MerkleTreeLeaf` with some bytes for a certificate.
    fn plain(precertificate: bool, certificate: &[u8]) -> Vec<u8> {
        let mut leaf = vec![0; 10];
        leaf.extend([0, u8::from(precertificate)]);
        if precertificate {
            leaf.extend([7; 32]);
        }
        leaf.extend(&(certificate.len() as u32).to_be_bytes()[1..]);
        leaf.extend(certificate);
        leaf.extend([0, 0]);
        leaf
    }

    #[test]
    fn paths_are_those_of_the_specification() {
        let hashes = |level, number, width| Tile { level: Some(level), number, width };
        for (tile, path) in [
            (data(1_234_067, 256), "tile/data/x001/x234/067"),
            (hashes(0, 1_234_067, 256), "tile/0/x001/x234/067"),
            (hashes(0, 0, 256), "tile/0/000"),
            (hashes(1, 0, 1), "tile/1/000.p/1"),
            (hashes(5, 7, 255), "tile/5/007.p/255"),
            (data(273, 112), "tile/data/273.p/112"),
            (data(999, 256), "tile/data/999"),
            (data(1000, 256), "tile/data/x001/000"),
            (data(1_000_000, 3), "tile/data/x001/x000/000.p/3"),
            (data((1 << 32) - 1, 256), "tile/data/x004/x294/x967/295"),
        ] {
            assert_eq!(tile.path(), path);
        }
    }

    #[test]
    fn tiles_of_a_tree_are_as_wide_as_the_specification_says() {
        // "A tree of size 70,000 will be represented by 273 full level 0 tiles, one partial level 0 tile of width 112, one full level 1 tile,
        // one partial level 1 tile of width 17, and one partial level 2 tile of width 1."
        let on = |level, index| Tile::on(level, index, 70_000);
        for (tile, number, width) in [
            (on(0, 0), 0, 256),
            (on(0, 272 * 256), 272, 256),
            (on(0, 69_999), 273, 112),
            (on(1, 0), 0, 256),
            (on(1, 256), 1, 17),
            (on(2, 0), 0, 1),
            (Tile::of_entry(69_999, 70_000), 273, 112),
        ] {
            assert_eq!((tile.number, tile.width), (number, width), "{tile:?}");
        }
        // "A tree of size 256 will be represented by a full level 0 tile and a partial level 1 tile of width 1."
        assert_eq!(Tile::on(0, 255, 256).full(), None);
        assert_eq!(Tile::on(1, 0, 256).full(), Some(Tile { level: Some(1), number: 0, width: 256 }));
        assert_eq!(Tile::of_subtree(8, 272, 70_000), (Tile::on(1, 272, 70_000), 16..17));
        assert_eq!(Tile::of_subtree(3, 1, 70_000), (Tile::on(0, 0, 70_000), 8..16));
        assert_eq!(Tile::of_subtree(16, 0, 70_000), (Tile::on(2, 0, 70_000), 0..1));
    }

    #[test]
    fn a_tiles_entries_are_the_trees_leaves() {
        let (first, second) = (plain(false, b"certificate"), plain(true, b"tbs"));
        let chain = [[1; 32], [2; 32]];
        let bytes = [
            tile_leaf(&first, None, Some(256), &chain),
            tile_leaf(&second, Some(b"precertificate"), Some(257), &[]),
            tile_leaf(&first, None, None, &chain),
        ]
        .concat();
        let tile = data(1, 3);
        let leaves = tile.leaves(&bytes).expect("a tile");
        let indexed = |leaf: &[u8], index: u8| [&leaf[..leaf.len() - 2], &[0, 8, 0, 0, 5, 0, 0, 0, 1, index]].concat();
        assert_eq!(leaves, [indexed(&first, 0), indexed(&second, 1), first.clone()]);
        // Torn at any place, it is said where.
        for end in 0..bytes.len() {
            assert!(matches!(tile.leaves(&bytes[..end]), Err(TileError::Torn(256..=258))), "{end}");
        }
        assert_eq!(tile.leaves(&[&bytes[..], &[0]].concat()), Err(TileError::Rest(1, 3)));
        assert_eq!(data(2, 3).leaves(&bytes), Err(TileError::Index(512, 256)), "it is another tile");
        let one = data(0, 1);
        let of = |bytes: &[u8]| one.leaves(bytes).expect_err("a bad entry");
        let mut typed = tile_leaf(&first, None, Some(0), &[]);
        typed[9] = 2;
        assert_eq!(of(&typed), TileError::Type(0, 2));
        let good = tile_leaf(&first, None, Some(0), &[]);
        let split = |chain: &[u8]| [&good[..good.len() - 2], &[0, chain.len() as u8], chain].concat();
        assert_eq!(of(&split(&[0; 33])), TileError::Chain(0));
        let extended = |extensions: &[u8]| {
            let head = &first[2..first.len() - 2];
            [head, &[0, extensions.len() as u8], extensions, &[0, 0]].concat()
        };
        for bad in [&[0, 0, 4, 0, 0, 0, 0][..], &[0, 0, 5, 0], &[7], &[0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0]]
        {
            assert_eq!(of(&extended(bad)), TileError::Extensions(0), "{bad:?}");
        }
        assert!(
            one.leaves(&extended(&[9, 0, 1, 1, 0, 0, 5, 0, 0, 0, 0, 0])).is_ok(),
            "an extension that nobody knows yet"
        );
    }

    #[test]
    fn a_tile_of_hashes_has_as_many_as_it_is_wide() {
        let tile = Tile { level: Some(0), number: 0, width: 3 };
        let hashes = merkle::tests::leaves(4);
        assert_eq!(tile.hashes(hashes[..3].as_flattened()), Ok(hashes[..3].to_vec()));
        assert_eq!(tile.hashes(hashes.as_flattened()), Err(TileError::Hashes(128, 3, 96)));
        assert_eq!(tile.hashes(&hashes.as_flattened()[..95]), Err(TileError::Hashes(95, 3, 96)));
        assert_eq!(subtree(&hashes, 0..4), Some(merkle::tests::root(&hashes)));
        assert_eq!(subtree(&hashes, 4..8), None);
    }

    proptest! {
        #[test]
        fn every_subtree_is_in_a_tile_of_its_tree(size in 1_u64..3_000_000, from: u64) {
            for (level, number) in merkle::subtrees(from % size, size) {
                let (tile, at) = Tile::of_subtree(level, number, size);
                prop_assert!((1..=WIDTH).contains(&tile.width) && at.end as u64 <= tile.width, "{:?} {:?}", tile, at);
            }
        }

        #[test]
        fn arbitrary_tiles_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600), width in 1_u64..=256) {
            let _ = data(0, width).leaves(&bytes);
            let _ = Tile { level: Some(0), number: 0, width }.hashes(&bytes);
            let _ = leaf_index(&bytes);
        }

        #[test]
        fn what_was_written_is_read(certificates in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 0..300)), 1..20)) {
            let leaves: Vec<_> = certificates.iter().map(|(early, bytes)| plain(*early, bytes)).collect();
            let bytes: Vec<_> = leaves
                .iter()
                .zip(&certificates)
                .flat_map(|(leaf, (early, bytes))| tile_leaf(leaf, early.then_some(bytes), None, &[[3; 32]]))
                .collect();
            prop_assert_eq!(data(0, leaves.len() as u64).leaves(&bytes), Ok(leaves));
        }
    }
}
