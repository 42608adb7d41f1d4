//! Building an image without Docker: one layer of files, over nothing or over a base.
//!
//! The result is an OCI archive. The same input gives the same bytes: entries are sorted, belong to 0:0 and are dated 1970.

mod archive;
mod check;
mod elf;
mod tree;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::source::{self, BlobSource};
use crate::spec::{Descriptor, OCI_CONFIG, OCI_LAYER};
use crate::{Digest, ImageError, Platform, Reference};
use archive::{LayerBlob, LayerWriter};
use tree::Tree;

/// The date of everything that is built: a build is the same at any time.
const CREATED: &str = "1970-01-01T00:00:00Z";

/// What to build.
#[derive(Debug, Clone)]
pub struct BuildSpec {
    /// Name of the image, such as `example.com/app:1.0`.
    pub reference: String,
    /// The platform the image is for.
    pub platform: Platform,
    /// Files and directories to add; of two for the same path, the later counts.
    pub files: Vec<BuildFile>,
    /// The program and its first arguments. Empty keeps the base's.
    pub entrypoint: Vec<String>,
    /// Arguments after the entrypoint. Empty keeps the base's, unless an entrypoint is given.
    pub cmd: Vec<String>,
    /// `NAME=value`; replaces the base's value of that name.
    pub env: Vec<String>,
    /// `uid`, `uid:gid` or names; empty keeps the base's, or root.
    pub user: String,
    /// Absolute path; empty keeps the base's, or `/`.
    pub working_dir: String,
    /// `port/protocol`, or a bare port for TCP; added to the base's.
    pub exposed_ports: Vec<String>,
    /// Labels of the configuration; added to the base's.
    pub labels: BTreeMap<String, String>,
    /// An image to build upon: a layout directory, an OCI archive or a docker archive.
    pub base: Option<PathBuf>,
    /// How the layer is compressed.
    pub compression: Compression,
}

/// One file or directory tree to add.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildFile {
    /// Where it is on this machine. A directory is added with all it holds; links in it are kept, the one named here is followed.
    pub host: PathBuf,
    /// Absolute path in the image.
    pub in_image: PathBuf,
    /// Permission bits of a file; `None` takes those of the host's file, without set-user-id. Ignored for a directory's content.
    pub mode: Option<u32>,
}

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// `tar+gzip`: every tool reads it.
    #[default]
    Gzip,
    /// `tar+zstd`: smaller and faster to unpack.
    Zstd,
}

impl BuildSpec {
    /// A specification with nothing in it but a name and a platform.
    pub fn new(reference: &str, platform: Platform) -> Self {
        Self {
            reference: reference.into(),
            platform,
            files: Vec::new(),
            entrypoint: Vec::new(),
            cmd: Vec::new(),
            env: Vec::new(),
            user: String::new(),
            working_dir: String::new(),
            exposed_ports: Vec::new(),
            labels: BTreeMap::new(),
            base: None,
            compression: Compression::default(),
        }
    }

    fn error(&self, reason: impl Into<String>) -> ImageError {
        ImageError::Build { reference: self.reference.clone(), reason: reason.into() }
    }
}

/// What is built upon.
struct Base {
    blobs: Box<dyn BlobSource>,
    layers: Vec<Descriptor>,
    diff_ids: Vec<Digest>,
    config: Value,
    tree: Tree,
}

/// Builds an OCI archive (tar) at `out`, replacing what was there only once it is complete, and returns the digest of its manifest.
///
/// Refused are, with the reason: a program that is not in the image or not executable, executables for another architecture, and programs
/// whose dynamic loader or script interpreter is not in the image.
pub fn build(spec: &BuildSpec, out: &Path) -> Result<Digest, ImageError> {
    let reference: Reference = spec.reference.parse().map_err(ImageError::Reference)?;
    if reference.name().is_none() || matches!(reference, Reference::Digest { .. }) {
        return Err(spec.error("an image is named by name and tag, not by digest"));
    }
    let directory = out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let scratch = tempfile::Builder::new()
        .prefix(".hearth-build-")
        .tempdir_in(directory)
        .map_err(|error| ImageError::io("create a directory in", directory, error))?;
    let base = spec.base.as_deref().map(|path| read_base(spec, &reference, path, scratch.path())).transpose()?;
    let empty = Tree::default();
    let base_tree = base.as_ref().map_or(&empty, |base| &base.tree);
    let added = tree::collect(spec, base_tree)?;
    let config = configuration(spec, base.as_ref().map(|base| &base.config))?;
    check::runnable(spec, &config, base_tree, &added)?;
    let layer =
        if added.is_empty() && base.is_some() { None } else { Some(write_layer(spec, &added, scratch.path())?) };
    assemble(spec, &reference, base.as_ref(), layer, config, scratch.path(), out)
}

fn read_base(spec: &BuildSpec, reference: &Reference, path: &Path, scratch: &Path) -> Result<Base, ImageError> {
    let opened = source::open(path, scratch)?;
    let blobs = opened.blobs;
    let mut chosen = crate::select::choose(&opened.offers, blobs.as_ref(), Some(reference), &spec.platform)?;
    let chosen = chosen.pop().ok_or_else(|| spec.error(format!("base {} holds no image", path.display())))?;
    let name = format!("configuration {}", chosen.manifest.config.digest);
    let bytes =
        crate::blob::read_document(blobs.as_ref(), &chosen.manifest.config, crate::limits::MAX_CONFIG_BYTES, &name)?;
    let config = serde_json::from_slice(&bytes).map_err(|error| crate::spec::invalid(&name, error.to_string()))?;
    let mut tree = Tree::default();
    for (layer, diff_id) in chosen.manifest.layers.iter().zip(&chosen.config.diff_ids) {
        tree::apply_layer(&mut tree, blobs.as_ref(), layer, diff_id)?;
    }
    Ok(Base { blobs, layers: chosen.manifest.layers, diff_ids: chosen.config.diff_ids, config, tree })
}

fn write_layer(spec: &BuildSpec, added: &Tree, scratch: &Path) -> Result<LayerBlob, ImageError> {
    let mut writer = LayerWriter::create(&scratch.join("layer"), spec.compression)?;
    for (path, node) in added.iter() {
        writer.add(path, node)?;
    }
    writer.finish()
}

/// The configuration: the base's with the specification's words put over it. Layers are not in it yet.
fn configuration(spec: &BuildSpec, base: Option<&Value>) -> Result<Value, ImageError> {
    let mut config = base.cloned().unwrap_or_else(|| json!({}));
    let mut run = config.get("config").filter(|run| run.is_object()).cloned().unwrap_or_else(|| json!({}));
    if !spec.entrypoint.is_empty() {
        run["Entrypoint"] = json!(spec.entrypoint);
        // The base's arguments were for the base's program.
        run["Cmd"] = Value::Null;
    }
    if !spec.cmd.is_empty() {
        run["Cmd"] = json!(spec.cmd);
    }
    run["Env"] = json!(merge_env(spec, run.get("Env"))?);
    if !spec.user.is_empty() {
        run["User"] = json!(spec.user);
    }
    if !spec.working_dir.is_empty() {
        if !spec.working_dir.starts_with('/') {
            return Err(spec.error(format!("working directory {:?} is not absolute", spec.working_dir)));
        }
        run["WorkingDir"] = json!(spec.working_dir);
    }
    for port in &spec.exposed_ports {
        let port = check_port(spec, port)?;
        object(&mut run, "ExposedPorts")[&port] = json!({});
    }
    for (name, value) in &spec.labels {
        object(&mut run, "Labels")[name] = json!(value);
    }
    if let Some(fields) = run.as_object_mut() {
        fields.retain(|_, value| !value.is_null() && value.as_array().is_none_or(|list| !list.is_empty()));
    }
    config["created"] = json!(CREATED);
    config["os"] = json!(spec.platform.os);
    config["architecture"] = json!(spec.platform.architecture);
    if let Some(variant) = &spec.platform.variant {
        config["variant"] = json!(variant);
    }
    config["config"] = run;
    Ok(config)
}

/// The object under `key`, made where there is none (Go writes absent ones as null).
fn object<'a>(parent: &'a mut Value, key: &str) -> &'a mut Value {
    let value = &mut parent[key];
    if !value.is_object() {
        *value = json!({});
    }
    value
}

fn merge_env(spec: &BuildSpec, base: Option<&Value>) -> Result<Vec<String>, ImageError> {
    let mut merged: Vec<String> = base
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.as_str().map(str::to_owned))
        .collect();
    for entry in &spec.env {
        let (name, _) = entry
            .split_once('=')
            .filter(|(name, _)| !name.is_empty() && !entry.contains('\0'))
            .ok_or_else(|| spec.error(format!("environment entry {entry:?} is not of the form NAME=value")))?;
        match merged.iter_mut().find(|had| had.split('=').next() == Some(name)) {
            Some(had) => had.clone_from(entry),
            None => merged.push(entry.clone()),
        }
    }
    Ok(merged)
}

fn check_port(spec: &BuildSpec, port: &str) -> Result<String, ImageError> {
    let (number, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
    match number.parse::<u16>() {
        Ok(number @ 1..) if matches!(protocol, "tcp" | "udp" | "sctp") => Ok(format!("{number}/{protocol}")),
        _ => Err(spec.error(format!("exposed port {port:?} is not of the form port or port/tcp, /udp or /sctp"))),
    }
}

fn assemble(
    spec: &BuildSpec,
    reference: &Reference,
    base: Option<&Base>,
    layer: Option<LayerBlob>,
    mut config: Value,
    scratch: &Path,
    out: &Path,
) -> Result<Digest, ImageError> {
    let mut diff_ids = base.map(|base| base.diff_ids.clone()).unwrap_or_default();
    let base_layers = base.map_or(&[][..], |base| &base.layers);
    let mut layers: Vec<Value> = base_layers
        .iter()
        .map(|layer| json!({"mediaType": layer.media_type, "digest": layer.digest, "size": layer.size}))
        .collect();
    if let Some(layer) = &layer {
        diff_ids.push(layer.diff_id);
        let suffix = match spec.compression {
            Compression::Gzip => "+gzip",
            Compression::Zstd => "+zstd",
        };
        layers.push(json!({"mediaType": format!("{OCI_LAYER}{suffix}"), "digest": layer.digest, "size": layer.size}));
        if let Some(history) = config.get_mut("history").and_then(Value::as_array_mut) {
            history.push(json!({"created": CREATED, "created_by": "hearth image build"}));
        }
    }
    config["rootfs"] = json!({"type": "layers", "diff_ids": diff_ids});
    archive::Assembly {
        reference,
        layers,
        base: base.map(|base| (base.blobs.as_ref(), base_layers)),
        layer,
        config_type: OCI_CONFIG,
        config,
    }
    .write(scratch, out)
}
