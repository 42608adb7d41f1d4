//! Pull secrets: the two formats of Kubernetes, and which entry is for which image.
//!
//! Read and matched as the kubelet does (kubernetes `pkg/credentialprovider`, `config.go` and `keyring.go`): keys may have a scheme and a
//! path, `*` and its like match within one label of the host, a path is a prefix, more specific keys come first, and
//! `https://index.docker.io/v1/` is for Docker Hub where nothing else is. Identity tokens of `docker login` are not read, as there.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;

/// Bytes of a pull secret: what a Kubernetes Secret may have.
const MAX_BYTES: usize = 1024 * 1024;
/// Entries that may match one image: each is tried.
const MAX_MATCHES: usize = 16;
/// The host that Docker Hub's credentials have been kept under since its first API.
const LEGACY_HUB: &str = "index.docker.io";

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The pull secrets of one image. Its `Debug` shows hosts and no secrets.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    entries: Vec<Entry>,
}

/// A user name and a password. Its `Debug` shows neither.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Login {
    pub(crate) username: String,
    pub(crate) password: String,
}

#[derive(Clone, PartialEq, Eq)]
struct Entry {
    /// Host, port and path prefix, without a scheme.
    key: String,
    login: Login,
}

/// Why bytes are not a pull secret. Nothing of what they hold is repeated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// Larger than a Secret can be.
    #[error("the pull secret has {0} bytes: the limit is {MAX_BYTES}")]
    TooLarge(usize),
    /// Not JSON of the right form.
    #[error("the pull secret is not a {kind} (line {line}, column {column})")]
    Malformed {
        /// The format that was expected.
        kind: &'static str,
        /// Where.
        line: usize,
        /// Where.
        column: usize,
    },
    /// The `auth` of an entry is not `user:password` in base64.
    #[error("the pull secret's entry number {0} has an \"auth\" that is not user:password in base64")]
    Auth(usize),
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    auths: Option<BTreeMap<String, RawEntry>>,
}

#[derive(Deserialize)]
struct RawEntry {
    #[serde(default)]
    username: Option<String>,
    #[serde(default)]
    password: Option<String>,
    #[serde(default)]
    auth: Option<String>,
}

impl Credentials {
    /// No credentials: what is public can be pulled.
    pub fn anonymous() -> Self {
        Self::default()
    }

    /// Reads the value of a Secret's `.dockerconfigjson`.
    pub fn from_docker_config_json(bytes: &[u8]) -> Result<Self, CredentialsError> {
        let file: File = from_json(bytes, ".dockerconfigjson")?;
        Self::from_entries(file.auths.unwrap_or_default())
    }

    /// Reads the value of a Secret's `.dockercfg`.
    pub fn from_docker_cfg(bytes: &[u8]) -> Result<Self, CredentialsError> {
        Self::from_entries(from_json(bytes, ".dockercfg")?)
    }

    /// One login, for a registry's host or a repository there.
    pub(crate) fn of(host: &str, username: String, password: String) -> Self {
        Self { entries: vec![Entry { key: normal_key(host), login: Login { username, password } }] }
    }

    /// These and, where none of them is for an image, the others.
    #[must_use]
    pub fn and(mut self, others: Self) -> Self {
        self.entries.extend(others.entries);
        self.sort();
        self
    }

    fn from_entries(raw: BTreeMap<String, RawEntry>) -> Result<Self, CredentialsError> {
        let entries = raw.into_iter().enumerate().map(|(at, (key, raw))| {
            let login = raw.login().ok_or(CredentialsError::Auth(at + 1))?;
            Ok(Entry { key: normal_key(&key), login })
        });
        let mut credentials = Self { entries: entries.collect::<Result<_, _>>()? };
        credentials.sort();
        Ok(credentials)
    }

    /// More specific keys first; among equal keys, the order given.
    fn sort(&mut self) {
        self.entries.sort_by(|a, b| b.key.cmp(&a.key));
    }

    /// The logins for `repository` on `host`, the most specific first.
    pub(crate) fn lookup(&self, host: &str, repository: &str) -> Vec<Login> {
        let path = format!("/{repository}");
        let matching = self.entries.iter().filter(|entry| matches(&entry.key, host, &path));
        let mut found: Vec<_> = matching.map(|entry| entry.login.clone()).take(MAX_MATCHES).collect();
        if found.is_empty() && [crate::name::DOCKER_HUB, LEGACY_HUB].contains(&host) {
            let legacy = self.entries.iter().filter(|entry| entry.key == LEGACY_HUB);
            found = legacy.map(|entry| entry.login.clone()).take(MAX_MATCHES).collect();
        }
        found
    }
}

impl RawEntry {
    /// `auth` wins over the separate fields. `None` where it cannot be read.
    fn login(self) -> Option<Login> {
        match self.auth.filter(|auth| !auth.is_empty()) {
            None => {
                Some(Login { username: self.username.unwrap_or_default(), password: self.password.unwrap_or_default() })
            }
            Some(auth) => {
                let auth: String = auth.split_ascii_whitespace().collect();
                let text = String::from_utf8(BASE64.decode(auth).ok()?).ok()?;
                let (username, password) = text.split_once(':')?;
                Some(Login { username: username.into(), password: password.into() })
            }
        }
    }
}

impl Login {
    /// The value of an `Authorization` header (RFC 7617).
    pub(crate) fn basic(&self) -> String {
        format!("Basic {}", BASE64.encode(format!("{}:{}", self.username, self.password)))
    }
}

fn from_json<T: serde::de::DeserializeOwned>(bytes: &[u8], kind: &'static str) -> Result<T, CredentialsError> {
    if bytes.len() > MAX_BYTES {
        return Err(CredentialsError::TooLarge(bytes.len()));
    }
    // serde's own words may quote the value that did not fit.
    serde_json::from_slice(bytes).map_err(|error| CredentialsError::Malformed {
        kind,
        line: error.line(),
        column: error.column(),
    })
}

/// A key without its scheme and without the `/v1/` or `/v2/` of an API's address.
fn normal_key(key: &str) -> String {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let (host, path) = key.find('/').map_or((key, ""), |at| key.split_at(at));
    let path = if path.starts_with("/v1/") || path.starts_with("/v2/") { &path[3..] } else { path };
    if path == "/" { host.into() } else { format!("{host}{path}") }
}

fn matches(key: &str, host: &str, path: &str) -> bool {
    let (key_host, key_path) = key.find('/').map_or((key, ""), |at| key.split_at(at));
    let ((key_host, key_port), (host, port)) = (split_port(key_host), split_port(host));
    let (key_labels, labels): (Vec<_>, Vec<_>) = (key_host.split('.').collect(), host.split('.').collect());
    key_port == port
        && path.starts_with(key_path)
        && key_labels.len() == labels.len()
        && key_labels.iter().zip(labels).all(|(pattern, label)| glob(pattern.as_bytes(), label.as_bytes()))
}

/// A host and its port. An IPv6 address loses its brackets, which would be a class of a pattern.
fn split_port(host: &str) -> (&str, &str) {
    let (name, port) = crate::name::host_and_port(host);
    let address = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).filter(|rest| rest.contains(':'));
    (address.unwrap_or(name), port)
}

/// Go's `path.Match` within one label: `*`, `?`, `[a-z]`, `[^a-z]`. A malformed pattern matches nothing. Time grows with the product of
/// both lengths at most.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Where to go on when what follows the last star does not fit.
    let mut star: Option<(usize, usize)> = None;
    loop {
        if pattern.get(p) == Some(&b'*') {
            p += 1;
            star = Some((p, t));
            continue;
        }
        if p == pattern.len() && t == text.len() {
            return true;
        }
        if let (Some(length), true) = (one(&pattern[p..], text.get(t).copied()), t < text.len()) {
            p += length;
            t += 1;
            continue;
        }
        match star {
            Some((after, from)) if from < text.len() => {
                star = Some((after, from + 1));
                (p, t) = (after, from + 1);
            }
            _ => return false,
        }
    }
}

/// How long the pattern's first term is, if it fits `byte`.
fn one(pattern: &[u8], byte: Option<u8>) -> Option<usize> {
    let byte = byte?;
    match pattern {
        [b'?', ..] => Some(1),
        [b'[', rest @ ..] => {
            let close = rest.iter().position(|b| *b == b']')?;
            let (negated, class) = match &rest[..close] {
                [b'^', class @ ..] => (true, class),
                class => (false, class),
            };
            (class_has(class, byte) != negated).then_some(close + 2)
        }
        [first, ..] => (*first == byte).then_some(1),
        [] => None,
    }
}

fn class_has(mut class: &[u8], byte: u8) -> bool {
    loop {
        class = match class {
            [low, b'-', high, rest @ ..] => {
                if (*low..=*high).contains(&byte) {
                    return true;
                }
                rest
            }
            [first, rest @ ..] => {
                if *first == byte {
                    return true;
                }
                rest
            }
            [] => return false,
        };
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.entries.iter().map(|entry| &entry.key)).finish()
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Login(..)")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn config(keys: &[&str]) -> Credentials {
        let auths: BTreeMap<_, _> = keys.iter().map(|key| (*key, json!({"username": key, "password": "p"}))).collect();
        Credentials::from_docker_config_json(json!({"auths": auths}).to_string().as_bytes()).expect("valid")
    }

    fn users(credentials: &Credentials, host: &str, repository: &str) -> Vec<String> {
        credentials.lookup(host, repository).into_iter().map(|login| login.username).collect()
    }

    #[test]
    fn keys_match_as_the_kubelet_matches_them() {
        for (key, host, repository, matches) in [
            ("example.com", "example.com", "a/b", true),
            ("https://example.com", "example.com", "a", true),
            ("http://example.com/v2/", "example.com", "a", true),
            ("https://example.com/v1/", "example.com", "a", true),
            ("example.com/a", "example.com", "a/b", true),
            ("example.com/a", "example.com", "ab", true),
            ("example.com/a", "example.com", "b", false),
            ("example.com", "example.com:5000", "a", false),
            ("example.com:5000", "example.com:5000", "a", true),
            ("*.example.com", "a.example.com", "a", true),
            ("*.example.com", "a.b.example.com", "a", false),
            ("*.example.com", "example.com", "a", false),
            ("r?g*.example.com:*", "reg-1.example.com:5000", "a", false),
            ("r?g*.example.com", "reg-1.example.com", "a", true),
            ("r[a-f]g.example.com", "reg.example.com", "a", true),
            ("r[^a-f]g.example.com", "reg.example.com", "a", false),
            ("*", "localhost", "a", true),
            ("[::1]:5000", "[::1]:5000", "a", true),
            ("[::1]", "[::1]", "a", true),
            ("[::1]", "[::2]", "a", false),
            ("docker.io", "docker.io", "library/x", true),
            ("https://index.docker.io/v1/", "docker.io", "library/x", true),
            ("https://index.docker.io/v1/", "example.com", "x", false),
            ("evil.example", "example.com", "x", false),
        ] {
            let found = users(&config(&[key]), host, repository);
            assert_eq!(found.len(), usize::from(matches), "{key} for {host}/{repository}");
        }
    }

    #[test]
    fn the_most_specific_comes_first_and_docker_hubs_old_key_last() {
        let all =
            config(&["example.com", "example.com/a/b", "example.com/a", "https://index.docker.io/v1/", "docker.io"]);
        assert_eq!(users(&all, "example.com", "a/b"), ["example.com/a/b", "example.com/a", "example.com"]);
        assert_eq!(users(&all, "docker.io", "a/b"), ["docker.io"]);
    }

    #[test]
    fn both_formats_and_every_way_to_write_a_login_are_read() {
        for entry in [
            json!({"username": "me", "password": "s:cret"}),
            json!({"auth": "bWU6czpjcmV0"}),
            json!({"auth": " bWU6czpjcmV0\n", "username": "other", "password": "other", "email": "x@example.com"}),
        ] {
            let expected = Login { username: "me".into(), password: "s:cret".into() };
            let file = json!({"auths": {"r.example": entry}, "credHelpers": {}}).to_string();
            let modern = Credentials::from_docker_config_json(file.as_bytes()).expect("valid");
            let old = Credentials::from_docker_cfg(json!({"r.example": entry}).to_string().as_bytes()).expect("valid");
            assert_eq!(modern, old);
            assert_eq!(modern.lookup("r.example", "a"), [expected]);
        }
    }

    #[test]
    fn errors_and_debug_tell_no_secret() {
        let bad = json!({"auths": {"r.example": {"auth": "c2VjcmV0"}}}).to_string();
        let wrong_type = r#"{"auths": {"r.example": {"password": ["topsecret"]}, "s": "topsecret"}}"#;
        for text in [bad.as_str(), wrong_type, "topsecret", "{\"topsecret"] {
            let error = Credentials::from_docker_config_json(text.as_bytes()).expect_err("refused");
            let shown = format!("{error} {error:?}");
            assert!(!shown.contains("secret:") && !shown.contains("topsecret") && !shown.contains("c2Vj"), "{shown}");
        }
        let shown = format!("{:?}", config(&["r.example"]).and(Credentials::anonymous()));
        assert_eq!(shown, "[\"r.example\"]");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = Credentials::from_docker_config_json(&bytes);
            let _ = Credentials::from_docker_cfg(&bytes);
        }

        #[test]
        fn any_key_and_auth_are_read_or_refused(key in "\\PC{0,40}", auth in "\\PC{0,20}", host in "\\PC{0,40}") {
            let text = json!({"auths": {key: {"auth": auth}}}).to_string();
            if let Ok(credentials) = Credentials::from_docker_config_json(text.as_bytes()) {
                let _ = credentials.lookup(&host, "a");
            }
        }

        #[test]
        fn logins_read_back_as_they_were_written(username in "[^:\\p{Cc}]{0,20}", password in "\\PC{0,20}") {
            let login = Login { username, password };
            let auth = login.basic().replace("Basic ", "");
            let text = json!({"r.example": {"auth": auth}}).to_string();
            let read = Credentials::from_docker_cfg(text.as_bytes()).expect("valid");
            prop_assert_eq!(read.lookup("r.example", "a"), vec![login]);
        }

        #[test]
        fn a_star_matches_every_label(label in "[a-z0-9-]{1,20}", at in 0usize..20) {
            let at = at.min(label.len());
            prop_assert!(glob(b"*", label.as_bytes()));
            let pattern = format!("{}*{}", &label[..at], &label[at..]);
            prop_assert!(glob(pattern.as_bytes(), label.as_bytes()));
        }
    }
}
