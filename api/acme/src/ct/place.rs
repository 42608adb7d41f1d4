//! How far a log was read, as it is kept for the next server that leads. Pure.

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::merkle::{HASH, Prefix};

/// What stands before the hashes of a tree: of which kind they are.
const HASHES: &str = "sha256:";

/// How far a log was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Not at all.
    New,
    /// Up to an entry, by a release that kept no tree.
    Entry(u64),
    /// These entries, which the log committed to.
    Tree(Prefix),
}

impl Place {
    /// Reads what was kept: `NEXT URL [sha256:HASHES]`. The release before reads the first two.
    pub(crate) fn read(text: &str) -> Self {
        let mut words = text.split(' ');
        let Some(next) = words.next().and_then(|next| next.parse().ok()) else { return Self::New };
        let tree = words.nth(1).and_then(|hashes| STANDARD.decode(hashes.strip_prefix(HASHES)?).ok());
        let prefix = tree.and_then(|bytes| {
            let (hashes, rest) = bytes.as_chunks::<HASH>();
            Prefix::new(next, hashes.to_vec()).filter(|_| rest.is_empty())
        });
        prefix.map_or(Self::Entry(next), Self::Tree)
    }

    /// What is kept of a tree.
    pub(crate) fn write(prefix: &Prefix, url: &str) -> String {
        format!("{} {url} {HASHES}{}", prefix.size(), STANDARD.encode(prefix.roots().as_flattened()))
    }

    /// The entry to go on with.
    pub(crate) fn next(&self) -> u64 {
        match self {
            Self::New => 0,
            Self::Entry(next) => *next,
            Self::Tree(prefix) => prefix.size(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ct::merkle::tests::leaves;

    #[test]
    fn a_place_is_kept_and_one_of_the_release_before_is_read() {
        let mut prefix = Prefix::default();
        assert!(leaves(70_001 % 300).iter().all(|hash| prefix.push(0, *hash)));
        let text = Place::write(&prefix, "https://ct.example/x");
        assert!(text.starts_with("101 https://ct.example/x sha256:"), "{text}");
        assert_eq!(Place::read(&text), Place::Tree(prefix.clone()));
        assert_eq!(Place::read(&text).next(), 101);
        let empty = Place::write(&Prefix::default(), "https://ct.example/x");
        assert_eq!(Place::read(&empty), Place::Tree(Prefix::default()));
        assert_eq!(Place::read("101 https://ct.example/x"), Place::Entry(101));
        // A tree that is none does not move the place.
        for cut in [1, 4, 44] {
            assert_eq!(Place::read(&text[..text.len() - cut]), Place::Entry(101), "{cut}");
        }
        assert_eq!(
            Place::read(&text.replace("101 ", "102 ")),
            Place::Tree(Prefix::new(102, prefix.roots().to_vec()).expect("a tree"))
        );
        for none in ["", "x", "-1 https://ct.example"] {
            assert_eq!(Place::read(none), Place::New);
        }
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_places_never_panic(text in "[0-9]{0,20} .{0,80}") {
            let _ = Place::read(&text);
        }
    }
}
