//! Names of images.
//!
//! The grammar is that of the distribution project (`[domain[:port]/]path[:tag][@digest]`, lower-case path). Names are kept in their short
//! form: `docker.io/library/x` is `x` and `docker.io/a/b` is `a/b`, as every tool shows them; no other domain is assumed or removed. A name
//! without a tag and without a digest means the tag `latest`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Digest;

/// Bytes of a name without tag and digest (distribution's `NameTotalLengthMax`).
const MAX_NAME_BYTES: usize = 255;
/// Bytes of a tag (distribution's grammar).
const MAX_TAG_BYTES: usize = 128;
/// The longest piece of a malformed reference that an error message repeats, in characters.
const SHOWN_CHARS: usize = 120;

/// A parsed and normalised image reference.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Reference {
    /// `name:tag`.
    Tag {
        /// The name in its short form.
        name: String,
        /// The tag; `latest` where none was given.
        tag: String,
    },
    /// `name@sha256:…` or a bare `sha256:…`. A tag beside a digest is dropped: the digest says more.
    Digest {
        /// The name in its short form, where there was one.
        name: Option<String>,
        /// The digest.
        digest: Digest,
    },
}

/// Why a text is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Nothing there.
    #[error("an image reference is empty: give a name such as example.com/app:1.0")]
    Empty,
    /// The name is longer than 255 bytes.
    #[error("image name {0:?}... is longer than 255 bytes")]
    TooLong(String),
    /// The name does not follow the grammar.
    #[error(
        "image name {0:?} is not valid: lower-case letters, digits and single separators (. _ __ -), in components split by /"
    )]
    Name(String),
    /// The tag does not follow the grammar.
    #[error("image tag {0:?} is not valid: up to 128 letters, digits, _ . and -, not beginning with . or -")]
    Tag(String),
    /// What follows `@` is not a digest.
    #[error("image reference has a bad digest: {0}")]
    Digest(crate::DigestError),
}

impl Reference {
    /// The name without tag and digest; `None` for a bare digest.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Tag { name, .. } => Some(name),
            Self::Digest { name, .. } => name.as_deref(),
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if text.starts_with("sha256:") {
            // `sha256:<tag>` would be a valid name and tag: a whole digest it is not, so say that.
            let digest = text.parse().map_err(ReferenceError::Digest)?;
            return Ok(Self::Digest { name: None, digest });
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse().map_err(ReferenceError::Digest)?)),
            None => (text, None),
        };
        // A colon before the last slash belongs to a port.
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if let Some(tag) = tag.filter(|tag| !is_tag(tag)) {
            return Err(ReferenceError::Tag(shown(tag)));
        }
        let name = normalise(name)?;
        Ok(match digest {
            Some(digest) => Self::Digest { name: Some(name), digest },
            None => Self::Tag { name, tag: tag.unwrap_or("latest").into() },
        })
    }
}

impl TryFrom<String> for Reference {
    type Error = ReferenceError;

    fn try_from(text: String) -> Result<Self, ReferenceError> {
        text.parse()
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> Self {
        reference.to_string()
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag { name, tag } => write!(f, "{name}:{tag}"),
            Self::Digest { name: Some(name), digest } => write!(f, "{name}@{digest}"),
            Self::Digest { name: None, digest } => write!(f, "{digest}"),
        }
    }
}

fn shown(text: &str) -> String {
    text.chars().take(SHOWN_CHARS).collect()
}

/// Whether `text` follows the grammar of tags.
pub(crate) fn is_tag(text: &str) -> bool {
    let first = text.bytes().next();
    first.is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_')
        && text.len() <= MAX_TAG_BYTES
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

fn normalise(name: &str) -> Result<String, ReferenceError> {
    if name.len() > MAX_NAME_BYTES {
        return Err(ReferenceError::TooLong(name.chars().take(40).collect()));
    }
    let bad = || ReferenceError::Name(shown(name));
    let (domain, path) = split_domain(name);
    if domain.is_some_and(|domain| !is_domain(domain)) || !path.split('/').all(is_component) {
        return Err(bad());
    }
    Ok(match domain {
        Some("docker.io" | "index.docker.io") => path.strip_prefix("library/").unwrap_or(path).to_owned(),
        Some(domain) => format!("{domain}/{path}"),
        None => path.strip_prefix("library/").filter(|rest| !rest.contains('/')).unwrap_or(path).to_owned(),
    })
}

/// The first component is a domain if it looks like one: it has a dot or a port, or is `localhost`.
fn split_domain(name: &str) -> (Option<&str>, &str) {
    match name.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (Some(first), rest),
        _ => (None, name),
    }
}

fn is_domain(domain: &str) -> bool {
    let (host, port) = match domain.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) if address.parse::<std::net::Ipv6Addr>().is_ok() => {
            ("v6", port.strip_prefix(':').or(port.is_empty().then_some("0")))
        }
        Some(_) => return false,
        None => match domain.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (domain, Some("0")),
        },
    };
    let label = |l: &str| {
        !l.is_empty()
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    let port_is_number =
        port.is_some_and(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()) && p.parse::<u16>().is_ok());
    host.split('.').all(label) && port_is_number
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(component: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    if !bytes.first().copied().is_some_and(plain) || !bytes.last().copied().is_some_and(plain) {
        return false;
    }
    bytes.split(|b| plain(*b)).all(|separator| match separator {
        b"" | b"." | b"_" | b"__" => true,
        other => other.iter().all(|b| *b == b'-'),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn references_are_normalised() {
        let digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        for (text, normal) in [
            ("notes", "notes:latest"),
            ("notes:1.0", "notes:1.0"),
            ("docker.io/library/nginx", "nginx:latest"),
            ("index.docker.io/library/nginx:1", "nginx:1"),
            ("library/nginx:1", "nginx:1"),
            ("docker.io/grafana/grafana:11", "grafana/grafana:11"),
            ("hearth.dev/notes:1.0.0", "hearth.dev/notes:1.0.0"),
            ("localhost:5000/a/b", "localhost:5000/a/b:latest"),
            ("localhost/a", "localhost/a:latest"),
            ("[::1]:5000/a", "[::1]:5000/a:latest"),
            ("a__b/c-----d.e", "a__b/c-----d.e:latest"),
            (&format!("a@{digest}"), &format!("a@{digest}")),
            (&format!("a:1@{digest}"), &format!("a@{digest}")),
            (digest, digest),
        ] {
            assert_eq!(text.parse::<Reference>().map(|r| r.to_string()).as_deref(), Ok(normal), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_reference_is_refused() {
        for text in [
            "",
            "/",
            "a/",
            "/a",
            "A",
            "a//b",
            "a/../b",
            "..",
            ".",
            "-a",
            "a-",
            "a___b",
            "a..b",
            "a b",
            "a:",
            ":a",
            "a:-x",
            "a:.x",
            "a:b:c",
            "a@",
            "a@sha256:../../x",
            "sha256:../../x",
            "sha256:abc",
            "a@sha512:00",
            "ex ample.com/a",
            "example.com:port/a",
            "example.com:99999/a",
            "[::1/a",
            "é",
            "a\0b",
            "host.name/A",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
        assert!(matches!("a".repeat(256).parse::<Reference>(), Err(ReferenceError::TooLong(_))));
        assert!(format!("a:{}", "t".repeat(129)).parse::<Reference>().is_err());
    }

    proptest! {
        #[test]
        fn any_text_parses_or_is_refused_and_normalising_is_stable(text in "\\PC{0,300}") {
            if let Ok(reference) = text.parse::<Reference>() {
                let again = reference.to_string().parse::<Reference>();
                prop_assert_eq!(again, Ok(reference));
            }
        }

        #[test]
        fn names_that_follow_the_grammar_parse(
            domain in "([a-z]{1,5}\\.[a-z]{2,3}(:[1-9][0-9]{1,3})?/)?",
            path in "[a-z0-9]{1,8}(-{1,3}[a-z0-9]{1,5}){0,2}(/[a-z0-9]{1,8}((\\.|_|__|-{1,3})[a-z0-9]{1,5}){0,2}){0,2}",
            tag in "(:[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,20})?",
        ) {
            let text = format!("{domain}{path}{tag}");
            prop_assume!(!text.starts_with("sha256:"));
            let reference = text.parse::<Reference>();
            prop_assert!(reference.is_ok(), "{}: {:?}", text, reference);
            let again = reference.as_ref().map(ToString::to_string).expect("checked above").parse::<Reference>();
            prop_assert_eq!(again, reference);
        }
    }
}
