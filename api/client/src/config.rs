//! The client's configuration: a kubeconfig (`client.yaml`) with the region's address, its CA and the
//! user's certificate inside.
//!
//! Source: Kubernetes "Organizing Cluster Access Using kubeconfig Files"; `client-go/tools/clientcmd/api/v1`.

use std::{
    fs, io,
    io::{Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hearth_types::names;
use serde::{Deserialize, Serialize};

/// The environment variable that names the configuration.
pub const CONFIG_ENV: &str = "HEARTH_CONFIG";
/// The largest configuration in bytes that is read: people have many clusters in one.
const MAX_CONFIG_BYTES: u64 = 4 << 20;
/// The extension of a cluster that lists the region's servers. Kubernetes' own clients skip it and use `server`.
pub const SERVERS_EXTENSION: &str = "hearth.dev/servers";
/// The field of it with the list.
const SERVERS_FIELD: &str = "servers";

/// Why a configuration cannot be read, used or written.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// There is none.
    #[error(
        "there is no client configuration at {}: start a region with `hearth up`, or name the configuration by --config or {CONFIG_ENV}", path.display()
    )]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The file cannot be read.
    #[error("cannot read the client configuration {}", path.display())]
    Read {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is no kubeconfig.
    #[error("{}: not a kubeconfig: {why}", path.display())]
    Parse {
        /// Which one.
        path: PathBuf,
        /// What the parser said, with line and column.
        why: String,
    },
    /// A part of it is missing or malformed.
    #[error("client configuration: {field}: {why}")]
    Field {
        /// Which part.
        field: String,
        /// What is wrong with it.
        why: String,
    },
    /// The file cannot be written.
    #[error("cannot write the client configuration {}", path.display())]
    Write {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A kubeconfig. Fields that Hearth does not use are skipped.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Config {
    /// `v1`.
    #[serde(rename = "apiVersion", default)]
    pub api_version: String,
    /// `Config`.
    #[serde(default)]
    pub kind: String,
    /// Regions.
    #[serde(default)]
    pub clusters: Vec<NamedCluster>,
    /// Who asks.
    #[serde(default)]
    pub users: Vec<NamedUser>,
    /// Pairs of the two.
    #[serde(default)]
    pub contexts: Vec<NamedContext>,
    /// The context in use.
    #[serde(default)]
    pub current_context: String,
}

/// A cluster and its name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NamedCluster {
    /// The name.
    pub name: String,
    /// The cluster.
    pub cluster: Cluster,
}

/// Where a region is and how it proves itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Cluster {
    /// `https://host:port`.
    pub server: String,
    /// The CA's certificate: PEM in base64.
    #[serde(default)]
    pub certificate_authority_data: String,
    /// The name in the server's certificate, where it is not the host of `server`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_server_name: Option<String>,
    /// What other programs skip: the region's servers are in the one named [`SERVERS_EXTENSION`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extensions: Vec<NamedExtension>,
}

/// An extension and its name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NamedExtension {
    /// The name.
    pub name: String,
    /// Whatever it is.
    #[serde(default)]
    pub extension: serde_yaml_ng::Value,
}

impl Cluster {
    /// The servers that its extension lists, each once.
    fn servers(&self) -> Vec<String> {
        let ours = self.extensions.iter().find(|one| one.name == SERVERS_EXTENSION);
        let list = ours.and_then(|one| one.extension.get(SERVERS_FIELD)).and_then(serde_yaml_ng::Value::as_sequence);
        let texts: Vec<String> = list.into_iter().flatten().filter_map(|one| one.as_str().map(str::to_owned)).collect();
        names::addresses(&texts)
    }
}

/// The extension that lists servers, the one to try first first.
fn servers_extension(servers: &[String]) -> serde_yaml_ng::Value {
    let list = serde_yaml_ng::Value::Sequence(servers.iter().map(|one| one.as_str().into()).collect());
    let fields = [(SERVERS_FIELD.into(), list)];
    serde_yaml_ng::Value::Mapping(fields.into_iter().collect())
}

/// A user and its name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedUser {
    /// The name.
    pub name: String,
    /// The user.
    pub user: User,
}

/// How a user proves itself.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct User {
    /// The certificate: PEM in base64.
    #[serde(default)]
    pub client_certificate_data: String,
    /// Its key: PEM in base64.
    #[serde(default)]
    pub client_key_data: String,
}

impl std::fmt::Debug for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("User").finish_non_exhaustive()
    }
}

/// A context and its name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedContext {
    /// The name.
    pub name: String,
    /// The context.
    pub context: Context,
}

/// A cluster with a user.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Context {
    /// The cluster's name.
    pub cluster: String,
    /// The user's name.
    pub user: String,
    /// The namespace that is meant where none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

/// The parts of the context in use, decoded.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The region's servers, `host:port` each, the one to try first first.
    pub addresses: Vec<String>,
    /// The name that the server's certificate must have.
    pub server_name: String,
    /// The CA, PEM.
    pub ca_pem: Vec<u8>,
    /// The user's certificate chain, PEM.
    pub certificate_pem: Vec<u8>,
    /// Its key, PEM.
    pub key_pem: Vec<u8>,
    /// The namespace that is meant where none is named.
    pub namespace: Option<String>,
}

impl Config {
    /// A configuration of one region and one user.
    pub fn single(
        name: &str,
        user: &str,
        address: &str,
        server_name: &str,
        ca_pem: &[u8],
        certificate_pem: &[u8],
        key_pem: &[u8],
    ) -> Self {
        Self {
            api_version: "v1".into(),
            kind: "Config".into(),
            clusters: vec![NamedCluster {
                name: name.into(),
                cluster: Cluster {
                    server: format!("https://{address}"),
                    certificate_authority_data: STANDARD.encode(ca_pem),
                    tls_server_name: Some(server_name.into()),
                    extensions: Vec::new(),
                },
            }],
            users: vec![NamedUser {
                name: user.into(),
                user: User {
                    client_certificate_data: STANDARD.encode(certificate_pem),
                    client_key_data: STANDARD.encode(key_pem),
                },
            }],
            contexts: vec![NamedContext {
                name: name.into(),
                context: Context { cluster: name.into(), user: user.into(), namespace: None },
            }],
            current_context: name.into(),
        }
    }

    /// The servers that its clusters list.
    pub fn servers(&self) -> Vec<String> {
        names::addresses(&self.clusters.iter().flat_map(|one| one.cluster.servers()).collect::<Vec<_>>())
    }

    /// Lists these servers in every cluster; of none, none.
    #[must_use]
    pub fn with_servers(mut self, servers: &[String]) -> Self {
        if !servers.is_empty() {
            for one in &mut self.clusters {
                one.cluster.extensions.retain(|one| one.name != SERVERS_EXTENSION);
                let extension = servers_extension(servers);
                one.cluster.extensions.push(NamedExtension { name: SERVERS_EXTENSION.into(), extension });
            }
        }
        self
    }

    /// Lists these servers in the cluster in use of a configuration file, and leaves everything else in it as it is, also what Hearth does
    /// not know. Replaces the file in one step, where it says something else; one server needs no list.
    pub fn save_servers(path: &Path, servers: &[String]) -> Result<(), ConfigError> {
        use serde_yaml_ng::Value;
        let config = Self::load(path)?;
        let context = config.contexts.iter().find(|one| one.name == config.current_context);
        let Some(name) = context.map(|one| one.context.cluster.as_str()) else { return Ok(()) };
        let cluster = config.clusters.iter().find(|one| one.name == name);
        let Some(known) = cluster.map(|one| one.cluster.servers()) else { return Ok(()) };
        if known == servers || (known.is_empty() && servers.len() < 2) {
            return Ok(());
        }
        let parse = |why: serde_yaml_ng::Error| ConfigError::Parse { path: path.into(), why: why.to_string() };
        let mut value: Value = serde_yaml_ng::from_str(&read(path)?).map_err(parse)?;
        let clusters = value.get_mut("clusters").and_then(Value::as_sequence_mut).into_iter().flatten();
        for one in clusters.filter(|one| one.get("name").and_then(Value::as_str) == Some(name)) {
            let Some(cluster) = one.get_mut("cluster").and_then(Value::as_mapping_mut) else { continue };
            let extensions = cluster.entry("extensions".into()).or_insert_with(|| Value::Sequence(Vec::new()));
            let Some(extensions) = extensions.as_sequence_mut() else { continue };
            extensions.retain(|one| one.get("name").and_then(Value::as_str) != Some(SERVERS_EXTENSION));
            let fields =
                [("name".into(), Value::from(SERVERS_EXTENSION)), ("extension".into(), servers_extension(servers))];
            extensions.push(Value::Mapping(fields.into_iter().collect()));
        }
        write(path, &value)
    }

    /// Reads a configuration from YAML.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        serde_yaml_ng::from_str(&read(path)?)
            .map_err(|error| ConfigError::Parse { path: path.into(), why: error.to_string() })
    }

    /// Writes it as YAML, readable by its owner alone (it holds a key), and replaces what was there in one
    /// step: a reader sees the old file or the new one.
    pub fn save(&self, path: &Path) -> Result<(), ConfigError> {
        write(path, self)
    }

    /// The context in use with everything that it names.
    pub fn resolve(&self) -> Result<Resolved, ConfigError> {
        let missing = |field: &str, name: &str| ConfigError::Field {
            field: field.into(),
            why: format!("there is none named {name:?}"),
        };
        let context = &self
            .contexts
            .iter()
            .find(|one| one.name == self.current_context)
            .ok_or_else(|| missing("contexts", &self.current_context))?
            .context;
        let cluster = &self
            .clusters
            .iter()
            .find(|one| one.name == context.cluster)
            .ok_or_else(|| missing("clusters", &context.cluster))?
            .cluster;
        let user = &self
            .users
            .iter()
            .find(|one| one.name == context.user)
            .ok_or_else(|| missing("users", &context.user))?
            .user;
        let (address, host) = address_of(&cluster.server)?;
        let mut addresses = cluster.servers();
        // Also where the list is old: whoever wrote the file meant this one.
        if !addresses.contains(&address) {
            addresses.push(address);
        }
        Ok(Resolved {
            addresses,
            server_name: cluster.tls_server_name.clone().unwrap_or(host),
            ca_pem: decode("clusters[].cluster.certificate-authority-data", &cluster.certificate_authority_data)?,
            certificate_pem: decode("users[].user.client-certificate-data", &user.client_certificate_data)?,
            key_pem: decode("users[].user.client-key-data", &user.client_key_data)?,
            namespace: context.namespace.clone().filter(|namespace| !namespace.is_empty()),
        })
    }
}

fn read(path: &Path) -> Result<String, ConfigError> {
    let fail = |source: io::Error| {
        if source.kind() == io::ErrorKind::NotFound {
            ConfigError::Missing { path: path.into() }
        } else {
            ConfigError::Read { path: path.into(), source }
        }
    };
    let mut text = String::new();
    fs::File::open(path).map_err(fail)?.take(MAX_CONFIG_BYTES).read_to_string(&mut text).map_err(fail)?;
    Ok(text)
}

/// Replaces a file in one step; for its owner alone.
fn write(path: &Path, value: &impl Serialize) -> Result<(), ConfigError> {
    let fail = |source: io::Error| ConfigError::Write { path: path.into(), source };
    let text = serde_yaml_ng::to_string(value).map_err(|error| fail(io::Error::other(error)))?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().ok_or_else(|| fail(io::ErrorKind::InvalidInput.into()))?;
    let temporary = directory.join(format!(".{}.{}", name.to_string_lossy(), uuid::Uuid::new_v4()));
    let write = || {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        fs::File::open(directory)?.sync_all()
    };
    write().map_err(|source| {
        let _ = fs::remove_file(&temporary);
        fail(source)
    })
}

/// The `host:port` of `https://host:port`, and the host alone.
fn address_of(server: &str) -> Result<(String, String), ConfigError> {
    let wrong = || ConfigError::Field {
        field: "clusters[].cluster.server".into(),
        why: format!("{server:?}: must be https://host:port"),
    };
    let uri: http::Uri = server.parse().map_err(|_| wrong())?;
    let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(wrong)?;
    if uri.scheme_str() != Some("https") {
        return Err(wrong());
    }
    let port = uri.port_u16().unwrap_or(443);
    Ok((format!("{host}:{port}"), host.trim_matches(['[', ']']).to_owned()))
}

fn decode(field: &str, text: &str) -> Result<Vec<u8>, ConfigError> {
    let fail = |why: String| ConfigError::Field { field: field.into(), why };
    if text.is_empty() {
        return Err(fail("required: Hearth reads certificates and keys from the file itself".into()));
    }
    STANDARD.decode(text.trim()).map_err(|error| fail(format!("not base64: {error}")))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use proptest::prelude::*;

    use super::*;

    fn config() -> Config {
        Config::single("home", "admin", "127.0.0.1:7443", "api.hearth.internal", b"ca", b"cert", b"key")
    }

    #[test]
    fn a_configuration_survives_its_file_and_is_private() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("client.yaml");
        fs::write(&path, "old").expect("written");
        config().save(&path).expect("saved");
        assert_eq!(Config::load(&path).expect("loaded"), config());
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).expect("a directory").count(), 1, "no temporary file is left");
        let text = fs::read_to_string(&path).expect("text");
        for field in [
            "certificate-authority-data:",
            "tls-server-name:",
            "client-key-data:",
            "current-context:",
            "apiVersion: v1",
        ] {
            assert!(text.contains(field), "{field} in {text}");
        }
        let resolved = config().resolve().expect("resolved");
        assert_eq!(
            (resolved.addresses.as_slice(), resolved.server_name.as_str()),
            (["127.0.0.1:7443".to_owned()].as_slice(), "api.hearth.internal")
        );
        assert_eq!(resolved.key_pem, b"key");
    }

    #[test]
    fn servers_are_listed_where_other_programs_skip_them_and_nothing_else_changes() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("client.yaml");
        config().save(&path).expect("saved");
        // What somebody else keeps in the file, and what a newer version may.
        let mut text = fs::read_to_string(&path).expect("text").replace(
            "clusters:\n",
            "clusters:\n- name: other\n  cluster: {server: 'https://elsewhere:1', insecure-skip-tls-verify: true}\n",
        );
        text.push_str("preferences: {colors: true}\n");
        fs::write(&path, text).expect("written");
        let servers = ["10.0.0.2:7443".to_owned(), "10.0.0.3:7443".to_owned()];
        for _ in 0..2 {
            Config::save_servers(&path, &servers).expect("saved");
        }
        let text = fs::read_to_string(&path).expect("text");
        assert!(text.contains("insecure-skip-tls-verify: true") && text.contains("colors: true"), "{text}");
        assert_eq!(text.matches(SERVERS_EXTENSION).count(), 1, "{text}");
        let loaded = Config::load(&path).expect("loaded");
        assert_eq!(loaded.resolve().expect("resolved").addresses, ["10.0.0.2:7443", "10.0.0.3:7443", "127.0.0.1:7443"]);
        assert_eq!(loaded.clusters[1].cluster.server, "https://127.0.0.1:7443");
        assert!(loaded.clusters[0].cluster.extensions.is_empty(), "the cluster in use alone");
        let made = config().with_servers(&servers).resolve().expect("resolved");
        assert_eq!(made.addresses, ["10.0.0.2:7443", "10.0.0.3:7443", "127.0.0.1:7443"]);
    }

    #[test]
    fn a_list_that_makes_no_sense_is_bounded_and_skipped() {
        let many: Vec<String> = (0..100).map(|port| format!("10.0.0.1:{port}")).collect();
        let mut odd = vec!["nonsense".to_owned(), "a b:1".to_owned(), "10.0.0.1:0".to_owned()];
        odd.extend(many);
        let resolved = config().with_servers(&odd).resolve().expect("resolved");
        assert_eq!(resolved.addresses.len(), hearth_types::group::MAX_SERVERS + 1);
        let mut scalar = config();
        let extension = NamedExtension { name: SERVERS_EXTENSION.into(), extension: "text".into() };
        scalar.clusters[0].cluster.extensions = vec![extension];
        assert_eq!(scalar.resolve().expect("resolved").addresses, ["127.0.0.1:7443"]);
    }

    #[test]
    fn a_missing_file_says_how_to_get_one() {
        let error = Config::load(Path::new("/nonexistent/client.yaml")).expect_err("missing").to_string();
        assert!(
            error.contains("hearth up") && error.contains("--config") && error.contains("HEARTH_CONFIG"),
            "{error}"
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        let change = |change: fn(&mut Config)| {
            let mut config = config();
            change(&mut config);
            config.resolve().expect_err("refused").to_string()
        };
        for (error, expected) in [
            (change(|config| config.current_context = "other".into()), "contexts: there is none named \"other\""),
            (change(|config| config.contexts[0].context.user = "x".into()), "users: there is none named \"x\""),
            (change(|config| config.clusters[0].cluster.server = "http://a:1".into()), "must be https://host:port"),
            (change(|config| config.users[0].user.client_key_data.clear()), "client-key-data: required"),
            (change(|config| config.users[0].user.client_key_data = "%".into()), "client-key-data: not base64"),
        ] {
            assert!(error.contains(expected), "{error}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in ".{0,120}") {
            if let Ok(config) = serde_yaml_ng::from_str::<Config>(&text) {
                let _ = config.resolve();
            }
            let _ = address_of(&text);
        }
    }
}
