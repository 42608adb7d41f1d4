//! Writing layers and OCI archives, byte for byte the same for the same input.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{EntryType, Header};

use super::Compression;
use super::tree::{Kind, Node};
use crate::blob::Verifying;
use crate::source::BlobSource;
use crate::spec::{Descriptor, IMAGE_NAME, OCI_INDEX, OCI_MANIFEST, REF_NAME};
use crate::{Digest, ImageError, Reference};

/// gzip's own default: higher ones cost much time for little.
const GZIP_LEVEL: u32 = 6;
/// zstd's levels go to 22; up to 19 a device needs at most 8 MiB to unpack.
const ZSTD_LEVEL: i32 = 12;

/// A layer that was written to a file.
pub(super) struct LayerBlob {
    path: PathBuf,
    pub(super) digest: Digest,
    pub(super) diff_id: Digest,
    pub(super) size: u64,
}

/// Counts and hashes what is written.
struct Hashing<W> {
    inner: W,
    hasher: Sha256,
    count: u64,
}

impl<W> Hashing<W> {
    fn new(inner: W) -> Self {
        Self { inner, hasher: Sha256::new(), count: 0 }
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.count += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

type Sink = Hashing<BufWriter<File>>;

enum Encoder {
    Gzip(flate2::write::GzEncoder<Sink>),
    Zstd(zstd::Encoder<'static, Sink>),
}

impl Write for Encoder {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::Gzip(encoder) => encoder.write(buffer),
            Self::Zstd(encoder) => encoder.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Gzip(encoder) => encoder.flush(),
            Self::Zstd(encoder) => encoder.flush(),
        }
    }
}

/// Writes the tar of a layer.
pub(super) struct LayerWriter {
    path: PathBuf,
    builder: tar::Builder<Hashing<Encoder>>,
}

impl LayerWriter {
    pub(super) fn create(path: &Path, compression: Compression) -> Result<Self, ImageError> {
        let failed = |error| ImageError::io("write", path, error);
        let sink = Hashing::new(BufWriter::new(File::create_new(path).map_err(failed)?));
        let encoder = match compression {
            Compression::Gzip => {
                Encoder::Gzip(flate2::write::GzEncoder::new(sink, flate2::Compression::new(GZIP_LEVEL)))
            }
            Compression::Zstd => Encoder::Zstd(zstd::Encoder::new(sink, ZSTD_LEVEL).map_err(failed)?),
        };
        Ok(Self { path: path.to_owned(), builder: tar::Builder::new(Hashing::new(encoder)) })
    }

    pub(super) fn add(&mut self, path: &str, node: &Node) -> Result<(), ImageError> {
        let mut header = Header::new_gnu();
        header.set_mode(node.mode & 0o7777);
        header.set_uid(node.uid.into());
        header.set_gid(node.gid.into());
        header.set_mtime(0);
        header.set_size(0);
        let written = match &node.kind {
            Kind::Directory => {
                header.set_entry_type(EntryType::Directory);
                self.builder.append_data(&mut header, format!("{path}/"), io::empty())
            }
            Kind::Symlink(target) => {
                header.set_entry_type(EntryType::Symlink);
                self.builder.append_link(&mut header, path, target)
            }
            Kind::Host(host, size) => return self.add_file(header, path, host, *size),
            // What is in the base already is not written again.
            Kind::Base => Ok(()),
        };
        written.map_err(|error| ImageError::io("write", &self.path, error))
    }

    fn add_file(&mut self, mut header: Header, path: &str, host: &Path, size: u64) -> Result<(), ImageError> {
        let file = File::open(host).map_err(|error| ImageError::io("open", host, error))?;
        header.set_entry_type(EntryType::Regular);
        header.set_size(size);
        let mut content = Hashing { inner: io::sink(), hasher: Sha256::new(), count: 0 };
        let reader = Tee { from: file.take(size), to: &mut content };
        self.builder
            .append_data(&mut header, path, reader)
            .map_err(|error| ImageError::io("write", &self.path, error))?;
        if content.count == size {
            return Ok(());
        }
        let changed =
            io::Error::other(format!("it had {size} bytes and now has {}: it changed during the build", content.count));
        Err(ImageError::io("read", host, changed))
    }

    pub(super) fn finish(self) -> Result<LayerBlob, ImageError> {
        let failed = |error| ImageError::io("write", &self.path, error);
        let tar = self.builder.into_inner().map_err(failed)?;
        let diff_id = Digest::from_hasher(tar.hasher);
        let mut sink = match tar.inner {
            Encoder::Gzip(encoder) => encoder.finish(),
            Encoder::Zstd(encoder) => encoder.finish(),
        }
        .map_err(failed)?;
        sink.flush().map_err(failed)?;
        Ok(LayerBlob { digest: Digest::from_hasher(sink.hasher), diff_id, size: sink.count, path: self.path.clone() })
    }
}

/// Reads from one side and tells the other what passed.
struct Tee<'a, R, W> {
    from: R,
    to: &'a mut W,
}

impl<R: Read, W: Write> Read for Tee<'_, R, W> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(buffer)?;
        self.to.write_all(&buffer[..count])?;
        Ok(count)
    }
}

/// Where a blob of the archive comes from.
enum Content<'a> {
    Bytes(Vec<u8>),
    File(PathBuf, u64),
    Base(&'a dyn BlobSource, &'a Descriptor),
}

/// All that an archive is made of.
pub(super) struct Assembly<'a> {
    pub(super) reference: &'a Reference,
    /// Descriptors of all layers, bottom first.
    pub(super) layers: Vec<Value>,
    pub(super) base: Option<(&'a dyn BlobSource, &'a [Descriptor])>,
    pub(super) layer: Option<LayerBlob>,
    pub(super) config_type: &'a str,
    pub(super) config: Value,
}

impl Assembly<'_> {
    /// Writes the archive beside `out` and renames it.
    pub(super) fn write(self, scratch: &Path, out: &Path) -> Result<Digest, ImageError> {
        let config = self.config.to_string().into_bytes();
        let config_digest = Digest::of(&config);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": self.config_type, "digest": config_digest, "size": config.len()},
            "layers": self.layers,
        })
        .to_string()
        .into_bytes();
        let digest = Digest::of(&manifest);
        let name = self.reference.to_string();
        let index = json!({
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": [{
                "mediaType": OCI_MANIFEST, "digest": digest, "size": manifest.len(),
                "platform": platform(&self.config),
                "annotations": {REF_NAME: name, IMAGE_NAME: name},
            }],
        });
        let mut blobs = BTreeMap::from([(config_digest, Content::Bytes(config)), (digest, Content::Bytes(manifest))]);
        if let Some(layer) = self.layer {
            blobs.insert(layer.digest, Content::File(layer.path, layer.size));
        }
        if let Some((source, layers)) = self.base {
            blobs.extend(layers.iter().map(|layer| (layer.digest, Content::Base(source, layer))));
        }
        let path = scratch.join("image.tar");
        write_archive(&path, &index, blobs)?;
        std::fs::rename(&path, out).map_err(|error| ImageError::io("rename to", out, error))?;
        Ok(digest)
    }
}

fn platform(config: &Value) -> Value {
    let mut platform = json!({"os": config["os"], "architecture": config["architecture"]});
    if let Some(variant) = config.get("variant") {
        platform["variant"] = variant.clone();
    }
    platform
}

fn write_archive(path: &Path, index: &Value, blobs: BTreeMap<Digest, Content<'_>>) -> Result<(), ImageError> {
    let failed = |error| ImageError::io("write", path, error);
    let file = File::create_new(path).map_err(failed)?;
    let mut builder = tar::Builder::new(BufWriter::new(file));
    let layout = json!({"imageLayoutVersion": "1.0.0"}).to_string();
    append(&mut builder, "oci-layout", layout.len() as u64, layout.as_bytes()).map_err(failed)?;
    let index = index.to_string();
    append(&mut builder, "index.json", index.len() as u64, index.as_bytes()).map_err(failed)?;
    for directory in ["blobs/", "blobs/sha256/"] {
        let mut header = header(0, 0o755);
        header.set_entry_type(EntryType::Directory);
        builder.append_data(&mut header, directory, io::empty()).map_err(failed)?;
    }
    for (digest, content) in blobs {
        let name = format!("blobs/sha256/{}", digest.hex());
        match content {
            Content::Bytes(bytes) => {
                append(&mut builder, &name, bytes.len() as u64, bytes.as_slice()).map_err(failed)?
            }
            Content::File(blob, size) => {
                let blob = File::open(&blob).map_err(failed)?;
                append(&mut builder, &name, size, blob.take(size)).map_err(failed)?;
            }
            Content::Base(source, descriptor) => {
                let mut stream = Verifying::open(source, descriptor)?;
                append(&mut builder, &name, descriptor.size, (&mut stream).take(descriptor.size)).map_err(failed)?;
                stream.finish(descriptor, source)?;
            }
        }
    }
    let mut writer = builder.into_inner().map_err(failed)?;
    writer.flush().map_err(failed)?;
    writer.get_ref().sync_all().map_err(failed)
}

fn header(size: u64, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_size(size);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn append<W: Write, R: Read>(builder: &mut tar::Builder<W>, name: &str, size: u64, content: R) -> io::Result<()> {
    builder.append_data(&mut header(size, 0o644), name, content)
}
