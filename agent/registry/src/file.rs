//! The file in which a device's owner says what is to be known of registries.
//!
//! Its form is that of K3s' `registries.yaml` (<https://docs.k3s.io/installation/private-registry>), with `allow` added:
//!
//! ```yaml
//! mirrors:
//!   docker.io:                        # or "*"
//!     endpoint: ["https://mirror.example/hub", "http://nas.home:5000"]
//! configs:
//!   registry.example:
//!     auth: {username: me, password: secret}
//!     tls: {ca_file: /etc/ssl/home-ca.pem}
//! allow: [docker.io, registry.example]  # the only ones that images may be named from; left out: all
//! ```
//!
//! Hosts that it names may be in the device's own network. What of K3s' form is not supported is refused, never ignored.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::config::Config;
use crate::credentials::Credentials;
use crate::error::clip;
use crate::name::host_and_port;

/// Bytes of the file.
const MAX_BYTES: u64 = 1024 * 1024;

/// What the file says.
#[derive(Debug, Clone, Default)]
pub struct Registries {
    /// Hosts, mirrors and roots; with the default bounds.
    pub config: Config,
    /// The owner's own logins.
    pub credentials: Credentials,
}

/// Why the file cannot be used. No variant repeats a secret.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("cannot read {path:?}")]
    Io {
        /// The file, or one that it names.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// It is no YAML of the right form.
    #[error("{path:?} is not valid: {reason}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where and what.
        reason: String,
    },
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default)]
    mirrors: BTreeMap<String, Mirror>,
    #[serde(default)]
    configs: BTreeMap<String, HostConfig>,
    #[serde(default)]
    allow: Option<BTreeSet<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Mirror {
    #[serde(default)]
    endpoint: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HostConfig {
    #[serde(default)]
    auth: Option<Auth>,
    #[serde(default)]
    tls: Option<Tls>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Auth {
    username: String,
    password: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tls {
    ca_file: PathBuf,
}

impl Registries {
    /// Reads the file; where there is none, nothing is said. Blocks.
    pub fn read(path: &Path) -> Result<Self, FileError> {
        match read_bounded(path) {
            Ok(bytes) => Self::parse(path, &bytes),
            Err(FileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }

    fn parse(path: &Path, bytes: &[u8]) -> Result<Self, FileError> {
        let malformed = |reason: String| FileError::Malformed { path: path.to_owned(), reason };
        let document: Option<Document> = serde_yaml_ng::from_slice(bytes).map_err(|error| malformed(place(&error)))?;
        let document = document.unwrap_or_default();
        let mut config = Config { allow: document.allow, ..Config::default() };
        for (host, mirror) in document.mirrors {
            let mut mirrors = Vec::new();
            for endpoint in &mirror.endpoint {
                mirrors.push(self::endpoint(endpoint, &mut config).map_err(|why| {
                    malformed(format!("mirrors.{}: endpoint {:?} {why}", clip(&host), clip(endpoint)))
                })?);
            }
            config.mirrors.insert(host, mirrors);
        }
        let mut credentials = Credentials::anonymous();
        for (host, said) in document.configs {
            config.reach.local.insert(host_and_port(&host).0.to_owned());
            if let Some(Tls { ca_file }) = said.tls {
                config.extra_roots.push(read_bounded(&ca_file)?);
            }
            if let Some(Auth { username, password }) = said.auth {
                credentials = credentials.and(Credentials::of(&host, username, password));
            }
        }
        config.check().map_err(|error| malformed(error.to_string()))?;
        Ok(Self { config, credentials })
    }
}

/// A mirror's address as [`Config::mirrors`] has it.
fn endpoint(text: &str, config: &mut Config) -> Result<String, &'static str> {
    let (scheme, rest) = text.split_once("://").unwrap_or(("https", text));
    let place = rest.trim_end_matches('/');
    // Other tools want the API's path there.
    let place = place.strip_suffix("/v2").unwrap_or(place);
    let host = place.split('/').next().unwrap_or_default();
    if host.is_empty() || host.contains('@') {
        return Err("names no host: write https://host[:port][/path]");
    }
    match scheme {
        "https" => {}
        "http" => drop(config.insecure.insert(host.to_owned())),
        _ => return Err("is neither https:// nor http://"),
    }
    config.reach.local.insert(host_and_port(host).0.to_owned());
    Ok(place.to_owned())
}

/// Where the YAML is wrong and what was expected; serde's own words for a wrong type may repeat the value, which may be a password.
fn place(error: &serde_yaml_ng::Error) -> String {
    let text = error.to_string();
    let what = match text.split_once("invalid type: ") {
        Some((field, rest)) => {
            let expected = rest.rsplit_once(", expected ").map_or("something else", |(_, expected)| expected);
            format!("{field}expected {expected}")
        }
        None => text,
    };
    clip(&what)
}

fn read_bounded(path: &Path) -> Result<Vec<u8>, FileError> {
    use std::io::Read as _;
    let failed = |source| FileError::Io { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    std::fs::File::open(path).map_err(failed)?.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(failed(io::Error::new(io::ErrorKind::FileTooLarge, format!("larger than {MAX_BYTES} bytes"))));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Registries, FileError> {
        Registries::parse(Path::new("/d/registries.yaml"), text.as_bytes())
    }

    #[test]
    fn what_k3s_writes_is_read() {
        let read = parse(
            "mirrors:\n  docker.io:\n    endpoint: [\"https://mirror.example/hub/\", \"http://nas.home:5000/v2\", bare.example]\n  \
             \"*\":\n    endpoint: [\"http://[fd00::1]:5000\"]\nconfigs:\n  \"registry.example:8443\":\n    auth: {username: me, \
             password: secret}\nallow: [docker.io]\n",
        )
        .expect("valid");
        assert_eq!(read.config.mirrors["docker.io"], ["mirror.example/hub", "nas.home:5000", "bare.example"]);
        assert_eq!(read.config.mirrors["*"], ["[fd00::1]:5000"]);
        assert_eq!(read.config.insecure, ["[fd00::1]:5000".to_owned(), "nas.home:5000".to_owned()].into());
        let local = ["[fd00::1]", "bare.example", "mirror.example", "nas.home", "registry.example"];
        assert_eq!(read.config.reach.local, local.map(str::to_owned).into());
        assert_eq!(read.config.allow, Some(["docker.io".to_owned()].into()));
        assert_eq!(read.credentials.lookup("registry.example:8443", "a").len(), 1);
        let nothing = parse("").expect("nothing is said");
        assert!(nothing.config.allow.is_none() && nothing.config.mirrors.is_empty());
        assert_eq!(parse("allow: []").expect("valid").config.allow, Some(BTreeSet::new()));
    }

    #[test]
    fn what_would_be_ignored_is_refused_and_no_secret_repeated() {
        for (text, expected) in [
            ("mirrors:\n  docker.io:\n    rewrite: {}\n", "unknown field `rewrite`"),
            ("configs:\n  a.example:\n    tls: {insecure_skip_verify: true}\n", "insecure_skip_verify"),
            ("mirrors:\n  docker.io:\n    endpoint: [\"ftp://a.example\"]\n", "neither https"),
            ("mirrors:\n  docker.io:\n    endpoint: [\"https:///x\"]\n", "names no host"),
            ("mirrors:\n  \"https://docker.io\": {}\n", "is not a host"),
            ("configs:\n  a.example:\n    auth: {username: me, password: [topsecret]}\n", "expected a string"),
            ("configs:\n  a.example:\n    auth: topsecret\n", "expected struct Auth"),
            ("- topsecret", "expected struct Document"),
        ] {
            let error = parse(text).expect_err(text).to_string();
            assert!(error.contains(expected) && !error.contains("topsecret"), "{text}: {error}");
        }
        let error = parse("configs:\n  a.example:\n    tls: {ca_file: /nowhere/ca.pem}\n").expect_err("missing");
        assert!(error.to_string().contains("/nowhere/ca.pem"), "{error}");
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,80}", host in "\\PC{0,20}", endpoint in "\\PC{0,30}") {
            let _ = parse(&text);
            let _ = parse(&format!("mirrors:\n  {host:?}:\n    endpoint: [{endpoint:?}]\n"));
        }
    }
}
