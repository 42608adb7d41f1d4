//! Docker archives (`docker save`, moby image/tarexport): a `manifest.json` that names a configuration and layers by path.
//!
//! Such an archive has no OCI manifest, so one is made for each image: from its configuration and its layers in their order, so that the
//! same image always gets the same digest. Layers are held to the diff ids of the configuration, and a configuration to the digest in its
//! name; where its name carries none, it is the root of trust, as `index.json` is of a layout.

use std::collections::HashMap;
use std::io::Read;
use std::path::Path;

use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::archive::Archive;
use super::{Blob, BlobSource, Offer, Opened, not_an_image};
use crate::blob::Encoding;
use crate::spec::{self, Descriptor, DockerImage};
use crate::{Digest, ImageError};

struct DockerArchive {
    archive: Archive,
    /// Documents: configurations, and the manifests made from them.
    documents: HashMap<Digest, Vec<u8>>,
    /// Layers by what their descriptors say: offset and length.
    layers: HashMap<Digest, (u64, u64)>,
}

pub(super) fn open(archive: Archive) -> Result<Opened, ImageError> {
    let images = spec::parse_docker_archive("manifest.json", &archive.document("manifest.json")?)?;
    let mut source = DockerArchive { archive, documents: HashMap::new(), layers: HashMap::new() };
    let offers = images.iter().map(|image| source.add(image)).collect::<Result<_, _>>()?;
    Ok(Opened { blobs: Box::new(source), offers })
}

impl DockerArchive {
    fn add(&mut self, image: &DockerImage) -> Result<Offer, ImageError> {
        let bytes = self.archive.document(&image.config)?;
        let config = Digest::of(&bytes);
        if let Some(wanted) = digest_in_name(&image.config).filter(|wanted| *wanted != config) {
            return Err(ImageError::WrongDigest { wanted, had: config });
        }
        let diff_ids = spec::parse_config(&format!("configuration {config}"), &bytes)?.diff_ids;
        if diff_ids.len() != image.layers.len() {
            let reason = format!(
                "it names {} layers, and the configuration of the image has {}",
                image.layers.len(),
                diff_ids.len()
            );
            return Err(spec::invalid("manifest.json", reason));
        }
        let layers = image
            .layers
            .iter()
            .zip(&diff_ids)
            .map(|(name, diff_id)| self.add_layer(name, diff_id))
            .collect::<Result<Vec<_>, _>>()?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": spec::OCI_MANIFEST,
            "config": {"mediaType": spec::OCI_CONFIG, "digest": config, "size": bytes.len()},
            "layers": layers,
        })
        .to_string()
        .into_bytes();
        let descriptor = Descriptor {
            media_type: spec::OCI_MANIFEST.into(),
            digest: Digest::of(&manifest),
            size: manifest.len() as u64,
            platform: None,
            annotations: std::collections::BTreeMap::new(),
            urls: Vec::new(),
        };
        self.documents.insert(config, bytes);
        self.documents.insert(descriptor.digest, manifest);
        Ok(Offer { names: image.repo_tags.clone(), descriptor })
    }

    fn add_layer(&mut self, name: &str, diff_id: &Digest) -> Result<serde_json::Value, ImageError> {
        let missing = || {
            not_an_image(
                &self.archive.path,
                &format!("the archive has no layer {:?}, which its manifest.json names", spec::clip(name)),
            )
        };
        let (offset, length) = self.archive.find(name).ok_or_else(missing)?;
        let read = |error| ImageError::io("read image", &self.archive.path, error);
        let mut magic = Vec::new();
        self.archive.reader(offset, length).take(4).read_to_end(&mut magic).map_err(read)?;
        // A plain tar's digest is its diff id: unpacking verifies it. A compressed one has to be read to know its digest.
        let digest = if Encoding::of(&magic) == Encoding::Plain {
            *diff_id
        } else {
            let mut hasher = Sha256::new();
            std::io::copy(&mut self.archive.reader(offset, length), &mut hasher).map_err(read)?;
            Digest::from_hasher(hasher)
        };
        self.layers.insert(digest, (offset, length));
        Ok(json!({"mediaType": spec::OCI_LAYER, "digest": digest, "size": length}))
    }
}

/// The digest that a configuration's name carries: `<hex>.json`, `sha256:<hex>` or `blobs/sha256/<hex>`.
fn digest_in_name(name: &str) -> Option<Digest> {
    let base = name.rsplit('/').next().unwrap_or(name);
    let base = base.strip_suffix(".json").unwrap_or(base);
    Digest::from_hex(base.strip_prefix("sha256:").unwrap_or(base))
}

impl BlobSource for DockerArchive {
    fn open(&self, digest: &Digest) -> Result<Blob<'_>, ImageError> {
        if let Some(bytes) = self.documents.get(digest) {
            return Ok(Blob { reader: Box::new(bytes.as_slice()), length: Some(bytes.len() as u64) });
        }
        match self.layers.get(digest) {
            Some((offset, length)) => {
                Ok(Blob { reader: Box::new(self.archive.reader(*offset, *length)), length: Some(*length) })
            }
            None => Err(ImageError::MissingBlob { digest: *digest, path: self.archive.path.clone() }),
        }
    }

    fn path(&self) -> &Path {
        &self.archive.path
    }
}
