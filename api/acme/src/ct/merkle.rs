//! Merkle trees of logs (RFC 6962 section 2.1). Pure.
//!
//! Of what was read of a log, so much is kept that what is read later can be added to it: the roots of the perfect subtrees that the first
//! leaves make, one for each bit of their number. So no leaf is read twice, and a log that shows another past than before cannot come to
//! the root that it signs.

use ring::digest::{Context, SHA256};

/// A hash: SHA-256.
pub(crate) type Hash = [u8; HASH];
/// Bytes of a hash.
pub(crate) const HASH: usize = 32;
/// Leaves of a tree at most: a leaf's index has 40 bits in the static API, and no log comes near.
pub(crate) const MAX_SIZE: u64 = 1 << 40;
/// Hashes of a consistency proof at most: two a level.
pub(crate) const MAX_PROOF: usize = 80;

/// A tree's first leaves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Prefix {
    size: u64,
    /// Of its perfect subtrees, the largest first.
    roots: Vec<Hash>,
}

impl Prefix {
    /// One with these roots; `None` where their number is not that size's.
    pub(crate) fn new(size: u64, roots: Vec<Hash>) -> Option<Self> {
        (size <= MAX_SIZE && roots.len() == size.count_ones() as usize).then_some(Self { size, roots })
    }

    /// Its leaves.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Roots of its perfect subtrees, the largest first.
    pub(crate) fn roots(&self) -> &[Hash] {
        &self.roots
    }

    /// Adds a perfect subtree of `2^level` leaves; `false`, and nothing done, where a tree of this size cannot go on by it.
    pub(crate) fn push(&mut self, mut level: u32, mut hash: Hash) -> bool {
        let Some(width) = 1_u64.checked_shl(level).filter(|width| *width <= MAX_SIZE - self.size) else { return false };
        if !self.size.is_multiple_of(width) {
            return false;
        }
        // As in adding to a binary number: what is there of this width is carried.
        while (self.size >> level) & 1 == 1
            && let Some(left) = self.roots.pop()
        {
            hash = node(&left, &hash);
            level += 1;
        }
        self.roots.push(hash);
        self.size += width;
        true
    }

    /// The tree's root (`MTH`).
    pub(crate) fn root(&self) -> Hash {
        let join = |right: Option<Hash>, left: &Hash| Some(right.map_or(*left, |right| node(left, &right)));
        self.roots.iter().rev().fold(None, join).unwrap_or_else(|| sha256(&[]))
    }
}

/// SHA-256 of parts that follow each other.
pub(crate) fn sha256(parts: &[&[u8]]) -> Hash {
    let mut context = Context::new(&SHA256);
    for part in parts {
        context.update(part);
    }
    let mut hash = [0; HASH];
    hash.copy_from_slice(context.finish().as_ref());
    hash
}

/// The hash of a leaf.
pub(crate) fn leaf(entry: &[u8]) -> Hash {
    sha256(&[&[0], entry])
}

/// The hash of two subtrees.
fn node(left: &Hash, right: &Hash) -> Hash {
    sha256(&[&[1], left, right])
}

/// The perfect subtrees between two leaves, from left to right: each by its level and its number among those of that level.
pub(crate) fn subtrees(mut from: u64, to: u64) -> impl Iterator<Item = (u32, u64)> {
    std::iter::from_fn(move || {
        let left = to.checked_sub(from).filter(|left| *left > 0)?;
        let level = from.trailing_zeros().min(left.ilog2());
        let number = from >> level;
        from += 1 << level;
        Some((level, number))
    })
}

/// The root over hashes of one level, whose number is a power of two.
pub(crate) fn perfect(hashes: &[Hash]) -> Option<Hash> {
    let mut tree = Prefix::default();
    let fits = hashes.len().is_power_of_two() && hashes.iter().all(|hash| tree.push(0, *hash));
    fits.then(|| tree.root())
}

/// Follows a consistency proof (RFC 6962 section 2.1.2) from a tree of `from` leaves to one of `to`. Returns the smaller tree, and the
/// root of the larger one; `None` where it is no such proof. `known` is the smaller tree: where it is not known, `from` must not be a
/// power of two, since the proof then lacks it.
pub(crate) fn consistency(from: u64, to: u64, known: Option<&Prefix>, proof: &[Hash]) -> Option<(Prefix, Hash)> {
    if from == 0 || from >= to || to > MAX_SIZE || proof.len() > MAX_PROOF {
        return None;
    }
    let whole = known.filter(|known| known.size == from).map(Prefix::root);
    let mut walk = Walk { proof: proof.iter(), roots: Vec::new() };
    let root = walk.down(from, to, true, whole)?;
    let prefix = Prefix::new(from, walk.roots)?;
    (walk.proof.next().is_none() && known.is_none_or(|known| *known == prefix)).then_some((prefix, root))
}

/// On its way down `SUBPROOF`; a proof has what is next at its end.
struct Walk<'a> {
    proof: std::slice::Iter<'a, Hash>,
    roots: Vec<Hash>,
}

impl Walk<'_> {
    /// The root over `to` leaves, of which the smaller tree has `from`; all of it is the smaller tree where `whole` is asked for.
    fn down(&mut self, from: u64, to: u64, outermost: bool, whole: Option<Hash>) -> Option<Hash> {
        if from == to {
            let root = if outermost { whole? } else { *self.proof.next_back()? };
            self.roots.push(root);
            return Some(root);
        }
        let half = 1 << (to - 1).ilog2();
        let other = *self.proof.next_back()?;
        if from <= half {
            let left = self.down(from, half, outermost, whole)?;
            Some(node(&left, &other))
        } else {
            self.roots.push(other);
            let right = self.down(from - half, to - half, false, whole)?;
            Some(node(&other, &right))
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `MTH` as RFC 6962 section 2.1 has it.
    pub(crate) fn root(leaves: &[Hash]) -> Hash {
        match leaves.len() {
            0 => sha256(&[]),
            1 => leaves[0],
            many => {
                let half = 1 << (many - 1).ilog2();
                node(&root(&leaves[..half]), &root(&leaves[half..]))
            }
        }
    }

    /// `PROOF` as RFC 6962 section 2.1.2 has it.
    pub(crate) fn proof(from: usize, leaves: &[Hash], outermost: bool) -> Vec<Hash> {
        let many = leaves.len();
        if from == many {
            return if outermost { Vec::new() } else { vec![root(leaves)] };
        }
        let half = 1 << (many - 1).ilog2();
        let (mut path, other) = if from <= half {
            (proof(from, &leaves[..half], outermost), root(&leaves[half..]))
        } else {
            (proof(from - half, &leaves[half..], false), root(&leaves[..half]))
        };
        path.push(other);
        path
    }

    pub(crate) fn leaves(many: u64) -> Vec<Hash> {
        (0..many).map(|number| leaf(&number.to_be_bytes())).collect()
    }

    fn prefix(leaves: &[Hash]) -> Prefix {
        let mut tree = Prefix::default();
        assert!(leaves.iter().all(|hash| tree.push(0, *hash)));
        tree
    }

    #[test]
    fn hashes_are_those_of_the_test_vectors_of_certificate_transparency() {
        // The leaves and roots that implementations of RFC 6962 are tested by.
        let inputs: [&[u8]; 8] = [
            &[],
            &[0],
            &[0x10],
            &[0x20, 0x21],
            &[0x30, 0x31],
            &[0x40, 0x41, 0x42, 0x43],
            &[0x50, 0x51, 0x52, 0x53, 0x54, 0x55, 0x56, 0x57],
            &[0x60, 0x61, 0x62, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6a, 0x6b, 0x6c, 0x6d, 0x6e, 0x6f],
        ];
        let mut tree = Prefix::default();
        assert_eq!(hex::encode(tree.root()), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        for input in inputs {
            assert!(tree.push(0, leaf(input)));
            if tree.size() == 1 {
                assert_eq!(
                    hex::encode(tree.root()),
                    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
                );
            }
        }
        assert_eq!(hex::encode(tree.root()), "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328");
    }

    #[test]
    fn trees_that_are_none_are_refused() {
        assert!(Prefix::new(3, leaves(1)).is_none() && Prefix::new(MAX_SIZE + 1, leaves(2)).is_none());
        let mut tree = prefix(&leaves(3));
        assert!(!tree.push(1, [0; 32]) && !tree.push(64, [0; 32]) && tree.push(0, [0; 32]) && tree.push(2, [0; 32]));
        let mut full = Prefix::new(MAX_SIZE, leaves(1)).expect("a tree");
        assert!(!full.push(0, [0; 32]));
        assert_eq!(perfect(&leaves(3)), None);
        assert_eq!(perfect(&[]), None);
        assert_eq!(perfect(&leaves(8)), Some(root(&leaves(8))));
    }

    #[test]
    fn a_proof_that_was_changed_proves_nothing() {
        let all = leaves(13);
        let good = proof(7, &all, true);
        assert_eq!(consistency(7, 13, None, &good), Some((prefix(&all[..7]), root(&all))));
        let mut longer = good.clone();
        longer.push([0; 32]);
        for (from, to, proof) in [(7, 13, &good[1..]), (7, 13, &longer), (0, 13, &good), (13, 13, &[]), (14, 13, &good)]
        {
            assert_eq!(consistency(from, to, None, proof), None, "{from} {to}");
        }
        let other = prefix(&leaves(9)[2..]);
        assert_eq!(consistency(7, 13, Some(&other), &good), None, "it is of another past");
        // The smaller tree's root is in no proof where it is perfect.
        let good = proof(8, &all, true);
        assert_eq!(consistency(8, 13, None, &good), None);
        assert_eq!(consistency(8, 13, Some(&prefix(&all[..8])), &good), Some((prefix(&all[..8]), root(&all))));
        let (_, wrong) = consistency(8, 13, Some(&prefix(&leaves(9)[1..])), &good).expect("a form");
        assert_ne!(wrong, root(&all));
    }

    proptest! {
        #[test]
        fn a_tree_that_grows_by_leaves_or_subtrees_has_the_root_of_all(from in 0_u64..600, more in 0_u64..600) {
            let all = leaves(from + more);
            let mut tree = prefix(&all[..from as usize]);
            prop_assert_eq!(tree.root(), root(&all[..from as usize]));
            for (level, number) in subtrees(from, from + more) {
                let at = (number << level) as usize;
                prop_assert!(tree.push(level, root(&all[at..at + (1 << level)])));
            }
            prop_assert_eq!(&tree, &prefix(&all));
            prop_assert_eq!(Prefix::new(tree.size(), tree.roots().to_vec()), Some(tree));
        }

        #[test]
        fn proofs_of_every_two_trees_are_followed(from in 1_u64..300, more in 1_u64..300) {
            let all = leaves(from + more);
            let (small, good) = (prefix(&all[..from as usize]), proof(from as usize, &all, true));
            let expected = Some((small.clone(), root(&all)));
            prop_assert_eq!(consistency(from, from + more, Some(&small), &good), expected.clone());
            if !from.is_power_of_two() {
                prop_assert_eq!(consistency(from, from + more, None, &good), expected);
            }
        }

        #[test]
        fn arbitrary_proofs_never_panic(from: u64, to: u64, near in 0_u64..100, hashes in prop::collection::vec(any::<Hash>(), 0..90)) {
            let _ = consistency(from, to, None, &hashes);
            let _ = consistency(near + 1, near * 2, None, &hashes);
            let _ = consistency(MAX_SIZE - near, MAX_SIZE, None, &hashes);
        }
    }
}
