//! Names from outside that become components of paths.

use crate::VolumeError;

/// Bytes of a name: a Kubernetes name has at most 253, and a component of a path 255 on Linux.
const MAX_NAME_BYTES: usize = 253;
/// Bytes of a claim's or pod's uid: a UUID has 36; mirror pods' uids and those of tests are shorter.
const MAX_UID_BYTES: usize = 64;
/// Bytes of a claim's name where it is one component together with its uid.
const MAX_CLAIM_NAME_BYTES: usize = 255 - MAX_UID_BYTES - 1;
/// Components of the path of a projected file: deeper than any real one.
const MAX_PATH_DEPTH: usize = 16;
/// The longest piece of a name that an error message repeats, in characters.
const SHOWN_CHARS: usize = 80;

/// Why a name cannot be a component of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing there.
    #[error("it is empty")]
    Empty,
    /// Longer than allowed.
    #[error("it has {had} bytes, and the limit is {limit}")]
    TooLong {
        /// Bytes found.
        had: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// A character that is not allowed.
    #[error("it has characters other than letters, digits, '-', '_' and '.'")]
    Character,
    /// It would hide, climb, or collide with the store's own names.
    #[error("it begins with a dot in a way that is not allowed here")]
    Dot,
    /// More components than allowed.
    #[error("it has more than {limit} components")]
    TooDeep {
        /// Components allowed.
        limit: usize,
    },
}

/// A namespace, pod uid, claim uid or volume name: letters, digits, `-`, `_` and `.`, not beginning with a dot.
pub(crate) fn check(what: &'static str, name: &str, limit: usize) -> Result<(), VolumeError> {
    let problem = match problem(name, limit) {
        None if name.starts_with('.') => Some(NameError::Dot),
        other => other,
    };
    refuse(what, name, problem)
}

pub(crate) fn check_uid(what: &'static str, uid: &str) -> Result<(), VolumeError> {
    check(what, uid, MAX_UID_BYTES)
}

pub(crate) fn check_name(what: &'static str, name: &str) -> Result<(), VolumeError> {
    check(what, name, MAX_NAME_BYTES)
}

/// Claims of long names are cut to what fits beside their uid: the uid tells them apart.
pub(crate) fn claim_directory(name: &str, uid: &str) -> String {
    let end = name.len().min(MAX_CLAIM_NAME_BYTES);
    // Names are ASCII: checked before.
    format!("{}.{uid}", &name[..end])
}

/// The path of a projected file: a key of a ConfigMap or Secret, or a relative path that items give it. The first component may begin with one
/// dot (`.bashrc`), never with two: those names are the volume's own.
pub(crate) fn check_projected(path: &str) -> Result<(), VolumeError> {
    let what = "file";
    if path.split('/').count() > MAX_PATH_DEPTH {
        return refuse(what, path, Some(NameError::TooDeep { limit: MAX_PATH_DEPTH }));
    }
    for part in path.split('/') {
        let problem = match problem(part, MAX_NAME_BYTES) {
            None if part == "." || part.starts_with("..") => Some(NameError::Dot),
            other => other,
        };
        refuse(what, path, problem)?;
    }
    Ok(())
}

fn problem(name: &str, limit: usize) -> Option<NameError> {
    if name.is_empty() {
        return Some(NameError::Empty);
    }
    if name.len() > limit {
        return Some(NameError::TooLong { had: name.len(), limit });
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (!name.bytes().all(allowed)).then_some(NameError::Character)
}

fn refuse(what: &'static str, name: &str, problem: Option<NameError>) -> Result<(), VolumeError> {
    match problem {
        None => Ok(()),
        Some(problem) => Err(VolumeError::Name { what, name: name.chars().take(SHOWN_CHARS).collect(), problem }),
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Component, Path};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_that_climb_hide_or_are_too_long_are_refused() {
        for name in ["", ".", "..", "../x", "a/b", "/a", ".trash", "a\0b", "a b", "é", "a\n"] {
            assert!(check_name("volume", name).is_err(), "{name:?}");
            assert!(check_uid("uid", name).is_err(), "{name:?}");
        }
        assert!(check_name("volume", &"a".repeat(253)).is_ok());
        assert!(check_name("volume", &"a".repeat(254)).is_err());
        assert!(check_uid("uid", "f81d4fae-7dec-11d0-a765-00a0c91e6bf6").is_ok());
    }

    #[test]
    fn projected_paths_are_keys_or_relative_paths_below() {
        for path in ["a", "config.yaml", ".dot", "a/b/c.txt", "A_b-c.d"] {
            assert!(check_projected(path).is_ok(), "{path}");
        }
        for path in ["", "/a", "a/", "a//b", "..", "..data", "..2024", "a/../b", "a/..b", "./a", "a/.", "a\0", "a/b c"]
        {
            assert!(check_projected(path).is_err(), "{path}");
        }
        assert!(check_projected(&vec!["a"; 17].join("/")).is_err());
    }

    proptest! {
        #[test]
        fn a_name_that_passes_is_one_plain_component(name in "\\PC{0,300}") {
            if check_name("volume", &name).is_ok() {
                prop_assert_eq!(Path::new(&name).components().collect::<Vec<_>>(), vec![Component::Normal(name.as_ref())]);
            }
        }

        #[test]
        fn a_projected_path_that_passes_stays_below(path in "[a-c./]{0,20}|\\PC{0,60}") {
            if check_projected(&path).is_ok() {
                prop_assert!(Path::new(&path).components().all(|part| matches!(part, Component::Normal(_))));
                prop_assert!(!path.starts_with(".."));
            }
        }

        #[test]
        fn a_claims_directory_fits_a_component(name in "[a-z0-9.-]{1,253}", uid in "[a-f0-9-]{1,64}") {
            let directory = claim_directory(&name, &uid);
            prop_assert!(directory.len() <= 255);
            let end = format!(".{uid}");
            prop_assert!(directory.ends_with(&end));
        }
    }
}
