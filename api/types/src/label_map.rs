//! The labels of a stored object.

/// Labels, sorted by key: two words a label and its texts. A tree of maps has room for eleven in each node, and objects mostly have two.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelMap(Box<[(Box<str>, Box<str>)]>);

impl LabelMap {
    /// The value of a label.
    pub fn get(&self, key: &str) -> Option<&str> {
        let place = self.0.binary_search_by(|(had, _)| (**had).cmp(key)).ok()?;
        Some(&self.0[place].1)
    }
}

impl<K: Into<Box<str>>, V: Into<Box<str>>> FromIterator<(K, V)> for LabelMap {
    /// Of several labels of one key, the last one counts.
    fn from_iter<I: IntoIterator<Item = (K, V)>>(labels: I) -> Self {
        let mut labels: Vec<(Box<str>, Box<str>)> =
            labels.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
        labels.reverse();
        labels.sort_by(|(one, _), (other, _)| one.cmp(other));
        labels.dedup_by(|(one, _), (other, _)| one == other);
        Self(labels.into_boxed_slice())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_map(labels in proptest::collection::vec(("[a-d]{0,2}", "[a-z]{0,3}"), 0..12), key in "[a-d]{0,2}") {
            let map: BTreeMap<String, String> = labels.iter().cloned().collect();
            let found: LabelMap = labels.into_iter().collect();
            prop_assert_eq!(found.get(&key), map.get(&key).map(String::as_str));
            prop_assert_eq!(found.0.len(), map.len());
        }
    }
}
