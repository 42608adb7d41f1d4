//! Images made by hand: any byte of them may be wrong.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use hearth_image::{Digest, ImageError, ImageStore, ImportOptions, Platform};
use serde_json::{Value, json};

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const NAME: &str = "example.com/app:1";

/// One entry of a layer, as raw as a header gets.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) kind: u8,
    pub(crate) link: Vec<u8>,
    pub(crate) content: Vec<u8>,
    pub(crate) mode: u32,
    pub(crate) ids: (u64, u64),
    pub(crate) mtime: u64,
    pub(crate) pax: Vec<(Vec<u8>, Vec<u8>)>,
}

pub(crate) fn entry(kind: u8, path: impl AsRef<[u8]>) -> Entry {
    Entry {
        path: path.as_ref().to_vec(),
        kind,
        link: Vec::new(),
        content: Vec::new(),
        mode: 0o644,
        ids: (0, 0),
        mtime: 0,
        pax: Vec::new(),
    }
}

pub(crate) fn file(path: &str, content: &str) -> Entry {
    Entry { content: content.into(), ..entry(b'0', path) }
}

pub(crate) fn dir(path: &str) -> Entry {
    Entry { mode: 0o755, ..entry(b'5', path) }
}

pub(crate) fn symlink(path: &str, target: &str) -> Entry {
    Entry { link: target.into(), ..entry(b'2', path) }
}

pub(crate) fn hardlink(path: &str, target: &str) -> Entry {
    Entry { link: target.into(), ..entry(b'1', path) }
}

impl Entry {
    pub(crate) fn pax(mut self, key: &str, value: impl AsRef<[u8]>) -> Self {
        self.pax.push((key.into(), value.as_ref().to_vec()));
        self
    }

    fn write(&self, out: &mut Vec<u8>) {
        if !self.pax.is_empty() {
            let mut records = Vec::new();
            for (key, value) in &self.pax {
                let rest = key.len() + value.len() + 3;
                let mut length = rest + rest.to_string().len();
                length = rest + length.to_string().len();
                records.extend(format!("{length} ").into_bytes());
                records.extend(key);
                records.push(b'=');
                records.extend(value);
                records.push(b'\n');
            }
            block(out, &Entry { content: records, ..entry(b'x', "pax") });
        }
        if self.path.len() > 100 {
            block(out, &Entry { content: self.path.clone(), ..entry(b'L', "././@LongLink") });
        }
        if self.link.len() > 100 {
            block(out, &Entry { content: self.link.clone(), ..entry(b'K', "././@LongLink") });
        }
        block(out, self);
    }
}

fn block(out: &mut Vec<u8>, entry: &Entry) {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::new(entry.kind));
    header.set_mode(entry.mode);
    header.set_uid(entry.ids.0);
    header.set_gid(entry.ids.1);
    header.set_mtime(entry.mtime);
    header.set_size(entry.content.len() as u64);
    let bytes = header.as_mut_bytes();
    let put = |bytes: &mut [u8], from: &[u8]| {
        let count = from.len().min(bytes.len());
        bytes[..count].copy_from_slice(&from[..count]);
    };
    put(&mut bytes[..100], &entry.path);
    put(&mut bytes[157..257], &entry.link);
    header.set_cksum();
    out.extend(header.as_bytes());
    out.extend(&entry.content);
    out.resize(out.len().next_multiple_of(512), 0);
}

/// The tar of a layer.
pub(crate) fn tarball(entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::new();
    for entry in entries {
        entry.write(&mut out);
    }
    out.resize(out.len() + 1024, 0);
    out
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).unwrap()
}

/// The files of an OCI image layout, in memory.
#[derive(Clone, Default)]
pub(crate) struct Layout {
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    pub(crate) links: BTreeMap<String, String>,
}

impl Layout {
    /// A layout with one image of these layers, blob and diff id each.
    pub(crate) fn of(layers: &[(Vec<u8>, Digest)]) -> Self {
        let mut layout = Self::default();
        let manifest = layout.add_image(layers, "amd64", &json!({"Entrypoint": ["/app"]}));
        layout.set_index(&[with_name(manifest, NAME)]);
        layout
    }

    /// One image with one uncompressed layer.
    pub(crate) fn plain(entries: &[Entry]) -> Self {
        let tar = tarball(entries);
        let diff_id = Digest::of(&tar);
        Self::of(&[(tar, diff_id)])
    }

    /// Adds a blob and returns its descriptor.
    pub(crate) fn add(&mut self, media_type: &str, bytes: Vec<u8>) -> Value {
        let digest = Digest::of(&bytes);
        let descriptor = json!({"mediaType": media_type, "digest": digest, "size": bytes.len()});
        self.files.insert(format!("blobs/sha256/{}", digest.hex()), bytes);
        descriptor
    }

    pub(crate) fn add_image(&mut self, layers: &[(Vec<u8>, Digest)], architecture: &str, run: &Value) -> Value {
        let diff_ids: Vec<_> = layers.iter().map(|(_, diff_id)| diff_id).collect();
        let config = json!({"os": "linux", "architecture": architecture, "config": run, "created": "2024-05-06T07:08:09Z",
            "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let config = self.add(CONFIG, config.to_string().into_bytes());
        let layers: Vec<_> = layers.iter().map(|(blob, _)| self.add(&format!("{LAYER}+gzip"), blob.clone())).collect();
        self.add_manifest(&config, &layers)
    }

    pub(crate) fn add_manifest(&mut self, config: &Value, layers: &[Value]) -> Value {
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
        self.add(MANIFEST, manifest.to_string().into_bytes())
    }

    pub(crate) fn add_index(&mut self, manifests: &[Value]) -> Value {
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
        self.add(INDEX, index.to_string().into_bytes())
    }

    pub(crate) fn set_index(&mut self, manifests: &[Value]) {
        self.files.insert("oci-layout".into(), json!({"imageLayoutVersion": "1.0.0"}).to_string().into_bytes());
        self.files
            .insert("index.json".into(), json!({"schemaVersion": 2, "manifests": manifests}).to_string().into_bytes());
    }

    /// The only manifest's descriptor in `index.json`.
    pub(crate) fn descriptor(&self) -> Value {
        self.json("index.json")["manifests"][0].clone()
    }

    pub(crate) fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&self.files[name]).unwrap()
    }

    pub(crate) fn manifest(&self) -> Value {
        self.json(&blob(&self.descriptor()))
    }

    /// Replaces the only image's manifest, with all that leads to it made right.
    pub(crate) fn replace_manifest(&mut self, manifest: &Value) {
        let descriptor = self.add(MANIFEST, manifest.to_string().into_bytes());
        self.set_index(&[with_name(descriptor, NAME)]);
    }

    /// Replaces the only image's configuration, with all that leads to it made right.
    pub(crate) fn replace_config(&mut self, config: Vec<u8>) {
        let mut manifest = self.manifest();
        manifest["config"] = self.add(CONFIG, config);
        self.replace_manifest(&manifest);
    }

    pub(crate) fn config(&self) -> Value {
        self.json(&blob(&self.manifest()["config"]))
    }

    pub(crate) fn layer(&self) -> String {
        blob(&self.manifest()["layers"][0])
    }

    pub(crate) fn write_directory(&self, path: &Path) {
        for (name, bytes) in &self.files {
            let path = path.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        for (name, target) in &self.links {
            let _ = fs::remove_file(path.join(name));
            std::os::unix::fs::symlink(target, path.join(name)).unwrap();
        }
    }

    pub(crate) fn archive(&self) -> Vec<u8> {
        let files = self.files.iter().map(|(name, bytes)| Entry { content: bytes.clone(), ..entry(b'0', name) });
        let links = self.links.iter().map(|(name, target)| symlink(name, target));
        tarball(
            &files
                .filter(|file| !self.links.contains_key(str::from_utf8(&file.path).unwrap()))
                .chain(links)
                .collect::<Vec<_>>(),
        )
    }
}

/// The file of a descriptor's blob.
pub(crate) fn blob(descriptor: &Value) -> String {
    format!("blobs/sha256/{}", descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap())
}

pub(crate) fn with_name(mut descriptor: Value, name: &str) -> Value {
    descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": name});
    descriptor
}

pub(crate) fn for_platform(mut descriptor: Value, architecture: &str) -> Value {
    descriptor["platform"] = json!({"os": "linux", "architecture": architecture});
    descriptor
}

/// A store in a directory of its own, with something precious beside it.
pub(crate) struct Place {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) store: ImageStore,
}

impl Place {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("canary")).unwrap();
        fs::write(directory.path().join("canary/file"), "precious").unwrap();
        let store = ImageStore::open(&directory.path().join("images")).unwrap();
        Self { directory, store }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn import(&self, layout: &Layout) -> Result<(), ImageError> {
        let path = self.path("source");
        let _ = fs::remove_dir_all(&path);
        layout.write_directory(&path);
        self.store.import(&path, &amd64()).map(drop)
    }

    /// Nothing of an image is in the store, and nothing outside of it was touched.
    pub(crate) fn assert_untouched(&self, what: &str) {
        assert_eq!(self.store.list().unwrap(), [], "{what}");
        for directory in ["images/layers", "images/images", "images/tmp"] {
            let left: Vec<_> = fs::read_dir(self.path(directory)).unwrap().map(|entry| entry.unwrap().path()).collect();
            assert!(left.is_empty(), "{what}: {left:?} is left");
        }
        assert_eq!(fs::read_to_string(self.path("canary/file")).unwrap(), "precious", "{what}");
        assert_eq!(fs::read_dir(self.path("canary")).unwrap().count(), 1, "{what}");
        let mut beside: Vec<_> =
            fs::read_dir(self.directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        beside.retain(|name| name != "source");
        beside.sort();
        assert_eq!(beside, ["canary", "images"], "{what}");
    }
}

pub(crate) fn amd64() -> ImportOptions {
    ImportOptions { platform: Platform::linux("amd64"), ..ImportOptions::default() }
}

/// An error with all that caused it.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// A tool that a test cannot do without.
pub(crate) fn run(tool: &str, args: &[&str]) -> String {
    let output = std::process::Command::new(tool).args(args).output();
    let output = output.unwrap_or_else(|error| panic!("cannot run {tool}: {error}; install Debian's package {tool}"));
    assert!(output.status.success(), "{tool} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
