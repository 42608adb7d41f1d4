//! An image for two platforms, made here: an index, and layers in every compression.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::Path;

use hearth_image::Digest;
use serde_json::{Value, json};

pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Blobs by digest, as a registry has them.
#[derive(Clone, Default)]
pub(crate) struct Blobs(pub(crate) BTreeMap<String, Vec<u8>>);

/// An image, its documents and layers.
#[derive(Clone)]
pub(crate) struct TestImage {
    pub(crate) blobs: Blobs,
    /// Descriptor of the index.
    pub(crate) index: Value,
    /// Descriptor of the manifest for linux/amd64.
    pub(crate) manifest: Value,
    /// Descriptors of the layers of that manifest.
    pub(crate) layers: Vec<Value>,
    pub(crate) diff_ids: Vec<Digest>,
}

impl Blobs {
    pub(crate) fn put(&mut self, media_type: &str, bytes: Vec<u8>) -> Value {
        let digest = Digest::of(&bytes).to_string();
        let descriptor = json!({"mediaType": media_type, "digest": digest, "size": bytes.len()});
        self.0.insert(digest, bytes);
        descriptor
    }

    fn layer(&mut self, tar: &[u8], compression: &str) -> Value {
        let bytes = match compression {
            "+gzip" => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(tar).unwrap();
                encoder.finish().unwrap()
            }
            "+zstd" => zstd::encode_all(tar, 3).unwrap(),
            _ => tar.to_vec(),
        };
        self.put(&format!("{LAYER}{compression}"), bytes)
    }

    /// A manifest with its configuration.
    pub(crate) fn manifest(&mut self, architecture: &str, diff_ids: &[Digest], layers: &[Value]) -> Value {
        let config = json!({"os": "linux", "architecture": architecture, "config": {"Cmd": ["/app"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let config = self.put(CONFIG, config.to_string().into_bytes());
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
        self.put(MANIFEST, manifest.to_string().into_bytes())
    }

    pub(crate) fn index(&mut self, manifests: &[Value]) -> Value {
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
        self.put(INDEX, index.to_string().into_bytes())
    }
}

/// Bytes that do not compress, the same for the same seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    })
    .take(length)
    .collect()
}

/// A layer with one file.
pub(crate) fn tar_of(path: &str, content: &[u8]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(content.len() as u64);
    header.set_mode(0o755);
    builder.append_data(&mut header, path, content).unwrap();
    builder.into_inner().unwrap()
}

impl TestImage {
    /// linux/amd64 with four layers of about `layer_bytes`, and linux/arm64 with one.
    pub(crate) fn new(layer_bytes: usize) -> Self {
        Self::compressed(layer_bytes, ["+gzip", "+zstd", "", "+gzip"])
    }

    /// The same with layers compressed as these suffixes of media types say.
    pub(crate) fn compressed(layer_bytes: usize, compressions: [&str; 4]) -> Self {
        let mut blobs = Blobs::default();
        let (mut diff_ids, mut layers) = (Vec::new(), Vec::new());
        for (at, compression) in compressions.into_iter().enumerate() {
            let tar = tar_of(&format!("file-{at}"), &noise(at as u64 + 1, layer_bytes));
            diff_ids.push(Digest::of(&tar));
            layers.push(blobs.layer(&tar, compression));
        }
        let mut manifest = blobs.manifest("amd64", &diff_ids, &layers);
        let tar = tar_of("arm", b"arm");
        let layer = blobs.layer(&tar, "+gzip");
        let mut arm = blobs.manifest("arm64", &[Digest::of(&tar)], &[layer]);
        arm["platform"] = json!({"os": "linux", "architecture": "arm64", "variant": "v8"});
        let bare = manifest.clone();
        manifest["platform"] = json!({"os": "linux", "architecture": "amd64"});
        let index = blobs.index(&[arm, manifest]);
        Self { blobs, index, manifest: bare, layers, diff_ids }
    }

    /// Writes a layout that skopeo reads.
    pub(crate) fn write_layout(&self, directory: &Path) {
        let blobs = directory.join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        for (digest, bytes) in &self.blobs.0 {
            fs::write(blobs.join(digest.strip_prefix("sha256:").unwrap()), bytes).unwrap();
        }
        let mut index = self.index.clone();
        index["annotations"] = json!({"org.opencontainers.image.ref.name": "1"});
        let index = json!({"schemaVersion": 2, "manifests": [index]});
        fs::write(directory.join("index.json"), index.to_string()).unwrap();
        fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    }
}
