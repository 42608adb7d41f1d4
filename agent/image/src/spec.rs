//! The documents of an image as the OCI image spec 1.1 (and Docker's distribution v2.2) has them: pure functions from bytes.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::limits::{MAX_IMAGES, MAX_INDEX_ENTRIES, MAX_LAYERS};
use crate::{Digest, ImageError, Platform};

/// Media type (OCI image spec, media-types.md).
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Media type (OCI image spec, media-types.md).
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// Media type (Docker image manifest v2, schema 2).
pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Media type (Docker image manifest v2, schema 2).
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// Types of layers. How the blob is compressed is read from its first bytes, as Docker and containerd do: some tools name the wrong type.
const LAYER_TYPES: [&str; 10] = [
    OCI_LAYER,
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
];

/// The annotation for a name or a tag of an image in a layout (OCI image spec, annotations.md).
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// containerd's and Docker's annotation for the full name.
pub(crate) const IMAGE_NAME: &str = "io.containerd.image.name";

/// What an image says about how to run it (OCI image spec, config.md). Absent fields are empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// The program and its first arguments.
    pub entrypoint: Vec<String>,
    /// Arguments after the entrypoint, or the program where there is no entrypoint.
    pub cmd: Vec<String>,
    /// `NAME=value`, in the image's order.
    pub env: Vec<String>,
    /// `user`, `uid`, `user:group` or `uid:gid`; empty is root.
    pub user: String,
    /// Absolute path; empty is `/`.
    pub working_dir: String,
    /// `port/protocol`, sorted.
    pub exposed_ports: Vec<String>,
    /// Paths that the image expects to be volumes, sorted.
    pub volumes: Vec<String>,
    /// Signal that asks the program to stop (`SIGTERM`, `15`), where the image names one.
    pub stop_signal: Option<String>,
}

/// A pointer to a blob (OCI image spec, descriptor.md).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// What it says the blob is.
    pub media_type: String,
    /// Digest of the blob.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// In an index: what the image runs on, where it says.
    pub platform: Option<Platform>,
    /// Free text by key.
    pub annotations: BTreeMap<String, String>,
    /// Where else the blob could be had ("foreign layers"). Nothing here ever fetches from there.
    pub urls: Vec<String>,
}

/// What a descriptor of an index points to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// An image manifest.
    Manifest,
    /// An index of further manifests.
    Index,
    /// An artifact that is no image: signatures, software bills of materials.
    Other,
}

/// An image manifest (OCI image spec, manifest.md).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The image's configuration.
    pub config: Descriptor,
    /// Its layers, bottom first.
    pub layers: Vec<Descriptor>,
}

/// The parts of an image configuration that matter here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigDocument {
    /// What the image runs on.
    pub platform: Platform,
    /// When it was made (RFC 3339), if it says.
    pub created: Option<String>,
    /// Digests of the unpacked layers, bottom first.
    pub diff_ids: Vec<Digest>,
    /// How to run it.
    pub config: ImageConfig,
}

/// One image of a docker archive's `manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct DockerImage {
    pub(crate) config: String,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) repo_tags: Vec<String>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) layers: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    platform: Option<RawPlatform>,
    #[serde(default, deserialize_with = "null_is_empty")]
    annotations: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "null_is_empty")]
    urls: Vec<String>,
}

#[derive(Deserialize)]
struct RawPlatform {
    os: String,
    architecture: String,
    #[serde(default)]
    variant: Option<String>,
}

/// An index or a manifest: read as both, to refuse what could be taken for either (CVE-2021-41190).
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    #[serde(default)]
    schema_version: Option<u64>,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    config: Option<RawDescriptor>,
    #[serde(default)]
    layers: Option<Vec<RawDescriptor>>,
    #[serde(default)]
    manifests: Option<Vec<RawDescriptor>>,
}

#[derive(Deserialize)]
struct RawConfig {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: Option<String>,
    #[serde(default)]
    created: Option<String>,
    #[serde(default)]
    config: Option<RawRun>,
    rootfs: RawRootfs,
}

#[derive(Deserialize)]
struct RawRootfs {
    #[serde(default, deserialize_with = "null_is_empty")]
    diff_ids: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RawRun {
    #[serde(deserialize_with = "null_is_empty")]
    entrypoint: Vec<String>,
    #[serde(deserialize_with = "null_is_empty")]
    cmd: Vec<String>,
    #[serde(deserialize_with = "null_is_empty")]
    env: Vec<String>,
    #[serde(deserialize_with = "null_is_empty")]
    user: String,
    #[serde(deserialize_with = "null_is_empty")]
    working_dir: String,
    #[serde(deserialize_with = "null_is_empty")]
    exposed_ports: BTreeMap<String, serde_json::Value>,
    #[serde(deserialize_with = "null_is_empty")]
    volumes: BTreeMap<String, serde_json::Value>,
    stop_signal: Option<String>,
}

/// Go writes absent lists and maps as `null`.
fn null_is_empty<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

impl Descriptor {
    /// What its media type says it points to.
    pub fn target(&self) -> Target {
        match self.media_type.as_str() {
            OCI_MANIFEST | DOCKER_MANIFEST => Target::Manifest,
            OCI_INDEX | DOCKER_INDEX => Target::Index,
            _ => Target::Other,
        }
    }
}

impl RawDescriptor {
    fn check(self, document: &str) -> Result<Descriptor, ImageError> {
        Ok(Descriptor {
            media_type: self.media_type,
            digest: parse_digest(document, &self.digest)?,
            size: self.size,
            platform: self.platform.map(RawPlatform::into_platform),
            annotations: self.annotations,
            urls: self.urls,
        })
    }
}

impl RawPlatform {
    fn into_platform(self) -> Platform {
        Platform { os: self.os, architecture: self.architecture, variant: self.variant.filter(|v| !v.is_empty()) }
    }
}

/// Reads an image index or a layout's `index.json`.
pub fn parse_index(document: &str, bytes: &[u8]) -> Result<Vec<Descriptor>, ImageError> {
    let raw = parse_document(document, bytes, &[OCI_INDEX, DOCKER_INDEX])?;
    let manifests = raw.manifests.ok_or_else(|| invalid(document, "it has no list of manifests"))?;
    if raw.config.is_some() || raw.layers.is_some() {
        return Err(invalid(document, "it is an index and a manifest at once"));
    }
    if manifests.len() > MAX_INDEX_ENTRIES {
        return Err(invalid(document, format!("it has {} entries: the limit is {MAX_INDEX_ENTRIES}", manifests.len())));
    }
    manifests.into_iter().map(|descriptor| descriptor.check(document)).collect()
}

/// Reads an image manifest.
pub fn parse_manifest(document: &str, bytes: &[u8]) -> Result<Manifest, ImageError> {
    let raw = parse_document(document, bytes, &[OCI_MANIFEST, DOCKER_MANIFEST])?;
    if raw.manifests.is_some() {
        return Err(invalid(document, "it is an index and a manifest at once"));
    }
    let config = raw.config.ok_or_else(|| invalid(document, "it has no configuration"))?.check(document)?;
    if ![OCI_CONFIG, DOCKER_CONFIG].contains(&config.media_type.as_str()) {
        return Err(ImageError::MediaType {
            document: format!("the configuration of {document}"),
            media_type: clip(&config.media_type),
        });
    }
    let layers = raw.layers.unwrap_or_default();
    check_layer_count(document, layers.len())?;
    let layers: Vec<_> = layers.into_iter().map(|layer| layer.check(document)).collect::<Result<_, _>>()?;
    if let Some(layer) = layers.iter().find(|layer| !LAYER_TYPES.contains(&layer.media_type.as_str())) {
        return Err(ImageError::MediaType {
            document: format!("layer {}", layer.digest),
            media_type: clip(&layer.media_type),
        });
    }
    Ok(Manifest { config, layers })
}

/// Reads an image configuration.
pub fn parse_config(document: &str, bytes: &[u8]) -> Result<ConfigDocument, ImageError> {
    let raw: RawConfig = from_json(document, bytes)?;
    if raw.os.is_empty() || raw.architecture.is_empty() {
        return Err(invalid(document, "it does not say its os and architecture"));
    }
    check_layer_count(document, raw.rootfs.diff_ids.len())?;
    let run = raw.config.unwrap_or_default();
    if !run.working_dir.is_empty() && !run.working_dir.starts_with('/') {
        return Err(invalid(document, format!("its working directory {:?} is not absolute", clip(&run.working_dir))));
    }
    Ok(ConfigDocument {
        platform: RawPlatform { os: raw.os, architecture: raw.architecture, variant: raw.variant }.into_platform(),
        created: raw.created.filter(|created| !created.is_empty()),
        diff_ids: raw.rootfs.diff_ids.iter().map(|digest| parse_digest(document, digest)).collect::<Result<_, _>>()?,
        config: ImageConfig {
            entrypoint: run.entrypoint,
            cmd: run.cmd,
            env: run.env,
            user: run.user,
            working_dir: run.working_dir,
            exposed_ports: run.exposed_ports.into_keys().collect(),
            volumes: run.volumes.into_keys().collect(),
            stop_signal: run.stop_signal.filter(|signal| !signal.is_empty()),
        },
    })
}

/// Reads the `manifest.json` of a docker archive (moby, image/tarexport).
pub(crate) fn parse_docker_archive(document: &str, bytes: &[u8]) -> Result<Vec<DockerImage>, ImageError> {
    let images: Vec<DockerImage> = from_json(document, bytes)?;
    if images.is_empty() || images.len() > MAX_IMAGES {
        return Err(invalid(document, format!("it has {} images: 1 to {MAX_IMAGES} are allowed", images.len())));
    }
    for image in &images {
        check_layer_count(document, image.layers.len())?;
    }
    Ok(images)
}

fn parse_document(document: &str, bytes: &[u8], types: &[&str]) -> Result<RawDocument, ImageError> {
    let raw: RawDocument = from_json(document, bytes)?;
    match raw.schema_version {
        Some(2) => {}
        Some(1) => {
            return Err(invalid(
                document,
                "Docker's schema 1 is not supported: save the image again with a current tool",
            ));
        }
        _ => return Err(invalid(document, "its schemaVersion is not 2")),
    }
    match &raw.media_type {
        Some(had) if !types.contains(&had.as_str()) => {
            Err(ImageError::MediaType { document: document.into(), media_type: clip(had) })
        }
        _ => Ok(raw),
    }
}

fn check_layer_count(document: &str, count: usize) -> Result<(), ImageError> {
    match count {
        0 => Err(invalid(document, "it has no layers")),
        1..=MAX_LAYERS => Ok(()),
        _ => Err(invalid(document, format!("it has {count} layers: the limit is {MAX_LAYERS}"))),
    }
}

fn parse_digest(document: &str, text: &str) -> Result<Digest, ImageError> {
    text.parse().map_err(|reason| ImageError::Digest { document: document.into(), reason })
}

fn from_json<T: DeserializeOwned>(document: &str, bytes: &[u8]) -> Result<T, ImageError> {
    serde_json::from_slice(bytes).map_err(|error| invalid(document, clip(&error.to_string())))
}

pub(crate) fn invalid(document: &str, reason: impl Into<String>) -> ImageError {
    ImageError::Document { document: document.into(), reason: reason.into() }
}

/// Text from outside for an error message: bounded.
pub(crate) fn clip(text: &str) -> String {
    const SHOWN_CHARS: usize = 200;
    text.chars().take(SHOWN_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn descriptor(media_type: &str) -> serde_json::Value {
        json!({"mediaType": media_type, "digest": DIGEST, "size": 0})
    }

    #[test]
    fn documents_that_could_be_two_things_are_refused() {
        let both = json!({"schemaVersion": 2, "config": descriptor(OCI_CONFIG), "layers": [descriptor(OCI_LAYER)], "manifests": []}).to_string();
        for result in [parse_index("x", both.as_bytes()).err(), parse_manifest("x", both.as_bytes()).err()] {
            assert!(result.expect("refused").to_string().contains("at once"));
        }
        let liar = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "config": descriptor(OCI_CONFIG), "layers": [descriptor(OCI_LAYER)]}).to_string();
        assert!(matches!(parse_manifest("x", liar.as_bytes()), Err(ImageError::MediaType { .. })));
    }

    #[test]
    fn a_configuration_of_nulls_reads_as_empty() {
        let bytes = json!({"os": "linux", "architecture": "amd64", "config": {"Cmd": null, "Env": null, "ExposedPorts": null, "User": null},
            "rootfs": {"type": "layers", "diff_ids": [DIGEST]}})
        .to_string();
        let config = parse_config("x", bytes.as_bytes()).expect("valid");
        assert_eq!(config.config, ImageConfig::default());
    }

    #[test]
    fn malformed_documents_are_refused_with_the_reason() {
        let config_with =
            |rootfs: serde_json::Value| json!({"os": "linux", "architecture": "amd64", "rootfs": rootfs}).to_string();
        for (bytes, reason) in [
            (config_with(json!({"diff_ids": []})), "no layers"),
            (config_with(json!({"diff_ids": ["sha256:../../x"]})), "not of the form"),
            (config_with(json!({"diff_ids": vec![DIGEST; 129]})), "limit is 128"),
            (json!({"rootfs": {"diff_ids": [DIGEST]}}).to_string(), "os and architecture"),
            ("{".into(), "EOF"),
            (format!("{{\"x\":{}", "[".repeat(100_000)), "EOF"),
        ] {
            let error = parse_config("x", bytes.as_bytes()).expect_err("refused").to_string();
            assert!(error.contains(reason), "{error} should say {reason}");
        }
    }

    fn read_as_everything(bytes: &[u8]) {
        let _ = parse_index("x", bytes);
        let _ = parse_manifest("x", bytes);
        let _ = parse_config("x", bytes);
        let _ = parse_docker_archive("x", bytes);
    }

    /// Every file of the corpus, cut and changed everywhere, as every kind of document.
    #[test]
    fn the_corpus_cut_and_changed_is_read_or_refused() {
        let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/oci");
        for path in std::fs::read_dir(directory).expect("the corpus") {
            let bytes = std::fs::read(path.expect("the corpus").path()).expect("the corpus");
            // Long ones repeat themselves.
            for at in (0..bytes.len()).step_by(1 + bytes.len() / 150) {
                read_as_everything(&bytes[..at]);
                for byte in *b"\"0-{]" {
                    let mut changed = bytes.clone();
                    changed[at] = byte;
                    read_as_everything(&changed);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            read_as_everything(&bytes);
        }

        #[test]
        fn any_digest_and_size_in_a_manifest_are_read_or_refused(digest in "\\PC{0,80}", size in any::<i64>(), media in "\\PC{0,40}") {
            let bytes = json!({"schemaVersion": 2, "config": {"mediaType": OCI_CONFIG, "digest": DIGEST, "size": 1},
                "layers": [{"mediaType": media, "digest": digest, "size": size}]}).to_string();
            if let Ok(manifest) = parse_manifest("x", bytes.as_bytes()) {
                prop_assert_eq!(manifest.layers[0].digest.to_string(), digest);
                prop_assert!(size >= 0);
            }
        }
    }
}
