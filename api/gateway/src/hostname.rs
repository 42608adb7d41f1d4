//! How a name that a caller sent becomes one that can be looked up.

use hearth_types::names::{MAX_LABEL, MAX_SUBDOMAIN};

/// The name in lower case and without a dot at the end, if it can be a name at all: labels of 1 to 63 letters,
/// digits, `-` and `_`, 253 characters in all (RFC 1035 section 2.3.4). Addresses in the form of IPv4 pass: nobody
/// has them as names.
pub fn canonical(name: &[u8]) -> Option<String> {
    let name = name.strip_suffix(b".").unwrap_or(name);
    if name.len() > MAX_SUBDOMAIN {
        return None;
    }
    let character = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let label = |label: &[u8]| (1..=MAX_LABEL).contains(&label.len()) && label.iter().all(character);
    let name = std::str::from_utf8(name).ok()?;
    name.as_bytes().split(|byte| *byte == b'.').all(label).then(|| name.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_made_canonical_or_refused() {
        let long_label = "a".repeat(64);
        let long_name = vec!["a".repeat(63); 4].join(".");
        let cases: [(&str, Option<&str>); 12] = [
            ("Notes.Alice.Example", Some("notes.alice.example")),
            ("notes.alice.example.", Some("notes.alice.example")),
            ("_dmarc.a-b.c1", Some("_dmarc.a-b.c1")),
            ("192.0.2.1", Some("192.0.2.1")),
            ("", None),
            (".", None),
            ("a..b", None),
            ("a.b..", None),
            ("a b", None),
            ("b\u{fc}cher.example", None),
            (&long_label, None),
            (&long_name, None),
        ];
        for (given, expected) in cases {
            assert_eq!(canonical(given.as_bytes()).as_deref(), expected, "{given:?}");
        }
    }

    proptest! {
        #[test]
        fn a_canonical_name_stays_as_it_is(bytes in proptest::collection::vec(any::<u8>(), 0..300), name in "[A-Za-z0-9_.-]{0,80}") {
            for given in [&bytes[..], name.as_bytes()] {
                if let Some(name) = canonical(given) {
                    prop_assert_eq!(canonical(name.as_bytes()), Some(name));
                }
            }
        }
    }
}
