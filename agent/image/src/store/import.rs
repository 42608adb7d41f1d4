//! Imports: verify, unpack, and only then show.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::disk::{self, Disk, ImageFile, LayerFile, Lock};
use super::{ImageRecord, ImportOptions};
use crate::blob::{StreamEnd, StreamLimits, Verifying, stream_layer};
use crate::error::is_disk_full;
use crate::inherit::Inherited;
use crate::select::{self, Chosen};
use crate::source::{self, BlobSource};
use crate::spec::Descriptor;
use crate::unpack::{UnpackError, Unpacked, unpack};
use crate::{Digest, ImageError, Limits, Reference};

/// One import: what it has made so far, all of it in its scratch directory.
struct Import<'a> {
    disk: &'a Disk,
    limits: &'a Limits,
    scratch: &'a Path,
    /// See [`ImportOptions::pulled`].
    pulled: bool,
    /// Layers unpacked by this import, by what they are kept under.
    unpacked: HashMap<Digest, LayerFile>,
}

pub(super) fn import(
    disk: &Disk,
    limits: &Limits,
    path: &Path,
    options: &ImportOptions,
) -> Result<Vec<ImageRecord>, ImageError> {
    let name = options.name.as_deref().map(|name| parse_name(name, options.pulled)).transpose()?;
    let lock = disk.lock()?;
    disk.clean(&lock)?;
    let scratch = disk.scratch(&lock)?;
    let opened = source::open(path, scratch.path())?;
    let blobs = opened.blobs.as_ref();
    let chosen = select::choose(&opened.offers, blobs, name.as_ref(), &options.platform)?;
    if let Some(Reference::Digest { digest, .. }) = &name {
        check_pin(digest, &chosen)?;
    }
    let pulled = options.pulled;
    let mut import = Import { disk, limits, scratch: scratch.path(), pulled, unpacked: HashMap::new() };
    let images =
        chosen.iter().map(|image| Ok((image, import.image(blobs, image)?))).collect::<Result<Vec<_>, ImageError>>()?;
    import.commit(&lock, &images)?;
    let mut records: Vec<_> = images
        .iter()
        .flat_map(|(chosen, file)| chosen.references.iter().map(|name| file.record(name, &chosen.digest, pulled)))
        .collect();
    records.sort_by(|a, b| a.reference.cmp(&b.reference));
    tracing::info!(source = %path.display(), images = records.len(), layers = import.unpacked.len(), "imported");
    Ok(records)
}

fn parse_name(name: &str, pulled: bool) -> Result<Reference, ImageError> {
    match name.parse().map_err(ImageError::Reference)? {
        reference @ Reference::Tag { .. } => Ok(reference),
        reference @ Reference::Digest { name: Some(_), .. } if pulled => Ok(reference),
        Reference::Digest { .. } => Err(ImageError::Document {
            document: format!("name {name:?}"),
            reason: "an image is named by name and tag, not by digest".into(),
        }),
    }
}

/// What is kept under a digest has that digest.
fn check_pin(digest: &Digest, chosen: &[Chosen]) -> Result<(), ImageError> {
    let has = |image: &Chosen| image.digest == *digest || image.indexes.contains(digest);
    if chosen.iter().all(has) {
        return Ok(());
    }
    let reason = format!("its image was asked for as {digest}, and is another");
    Err(ImageError::Document { document: "index.json".into(), reason })
}

impl Import<'_> {
    fn image(&mut self, blobs: &dyn BlobSource, chosen: &Chosen) -> Result<ImageFile, ImageError> {
        let mut size: u64 = 0;
        let mut layers: Vec<Digest> = Vec::with_capacity(chosen.config.diff_ids.len());
        for (descriptor, diff_id) in chosen.manifest.layers.iter().zip(&chosen.config.diff_ids) {
            let below: Vec<PathBuf> = layers.iter().map(|key| self.layer_root(key)).collect();
            let (key, bytes) = self.layer(blobs, descriptor, diff_id, &below, size)?;
            size = size.saturating_add(bytes);
            layers.push(key);
        }
        Ok(ImageFile {
            platform: chosen.config.platform.clone(),
            created: chosen.config.created.clone(),
            size,
            layers,
            indexes: chosen.indexes.clone(),
            config: chosen.config.config.clone(),
        })
    }

    /// What the layer is kept under, and the bytes of its files.
    fn layer(
        &mut self,
        blobs: &dyn BlobSource,
        descriptor: &Descriptor,
        diff_id: &Digest,
        below: &[PathBuf],
        used: u64,
    ) -> Result<(Digest, u64), ImageError> {
        if let Some(found) = self.find_layer(diff_id, below)? {
            // Not needed, and still part of what was brought: a damaged source is not reported as good.
            if !self.pulled {
                Verifying::open(blobs, descriptor)?.finish(descriptor, blobs)?;
            }
            return Ok(found);
        }
        let directory = self.scratch.join("unpacking");
        let root = directory.join("fs");
        std::fs::create_dir_all(&root).map_err(|error| ImageError::io("create", &root, error))?;
        let limits = StreamLimits {
            bytes: self.limits.layer_bytes.min(self.limits.image_bytes.saturating_sub(used)),
            ratio: self.limits.ratio,
            ratio_free_bytes: self.limits.ratio_free_bytes,
        };
        let (end, result) =
            stream_layer(blobs, descriptor, limits, |pieces| unpack(pieces, &root, self.limits.entries))?;
        let unpacked = judge(descriptor.digest, diff_id, &root, end, result)?;
        let inherited = Inherited::find(&unpacked.implicit, below)?;
        inherited.apply(&root)?;
        let key = inherited.key(diff_id);
        if self.knows(&key) {
            std::fs::remove_dir_all(&directory).map_err(|error| ImageError::io("remove", &directory, error))?;
            return Ok((key, unpacked.bytes));
        }
        let layer = LayerFile::new(&unpacked);
        disk::write_file(&directory.join("layer.json"), layer.clone())?;
        disk::rename(&directory, &self.scratch_layer(&key))?;
        self.unpacked.insert(key, layer);
        Ok((key, unpacked.bytes))
    }

    /// The layer, where it is here already and what it would take over from the layers below can be told without unpacking it.
    fn find_layer(&self, diff_id: &Digest, below: &[PathBuf]) -> Result<Option<(Digest, u64)>, ImageError> {
        let layer = match self.unpacked.get(diff_id) {
            Some(layer) => layer.clone(),
            None if self.knows(diff_id) => self.disk.layer(diff_id)?,
            None => return Ok(None),
        };
        let key = layer.key(diff_id, Some(below))?.filter(|key| self.knows(key));
        Ok(key.map(|key| (key, layer.bytes)))
    }

    fn knows(&self, key: &Digest) -> bool {
        self.unpacked.contains_key(key) || self.disk.layer_path(key).exists()
    }

    /// Where the files of a layer are that this import has unpacked or found.
    fn layer_root(&self, key: &Digest) -> PathBuf {
        let directory =
            if self.unpacked.contains_key(key) { self.scratch_layer(key) } else { self.disk.layer_path(key) };
        directory.join("fs")
    }

    fn scratch_layer(&self, key: &Digest) -> PathBuf {
        self.scratch.join(format!("layer-{}", key.hex()))
    }

    /// Shows what was made: layers, then records, then names. Until the names are there, a failure takes all of it back.
    fn commit(&self, lock: &Lock, images: &[(&Chosen, ImageFile)]) -> Result<(), ImageError> {
        let mut index = self.disk.index()?;
        for (chosen, file) in images {
            disk::write_file(&self.scratch_image(&chosen.digest), file.clone())?;
            index.names.extend(chosen.references.iter().map(|reference| (reference.clone(), chosen.digest)));
            for reference in &chosen.references {
                if self.pulled {
                    index.pulled.insert(reference.clone());
                } else {
                    index.pulled.remove(reference);
                }
            }
        }
        // One call for all files of all layers; it reports what could not be written.
        let directory = disk::open_directory(self.scratch)?;
        rustix::fs::syncfs(&directory).map_err(|error| ImageError::io("write to disk", self.scratch, error))?;
        let mut shown = Shown { disk: self.disk, lock, paths: Vec::new() };
        for key in self.unpacked.keys() {
            shown.rename(&self.scratch_layer(key), self.disk.layer_path(key))?;
        }
        for (chosen, _) in images {
            let path = self.disk.image_path(&chosen.digest);
            if path.exists() {
                // The same image: only the indexes that led to it may differ. Replaced, and so not to be taken back.
                disk::rename(&self.scratch_image(&chosen.digest), &path)?;
            } else {
                shown.rename(&self.scratch_image(&chosen.digest), path)?;
            }
        }
        self.disk.sync_names()?;
        self.disk.replace_index(lock, index)?;
        shown.paths.clear();
        Ok(())
    }

    fn scratch_image(&self, digest: &Digest) -> PathBuf {
        self.scratch.join(format!("{}.json", digest.hex()))
    }
}

/// Layers and records that are in place without a name yet: dropping it takes them out again.
struct Shown<'a> {
    disk: &'a Disk,
    lock: &'a Lock,
    paths: Vec<PathBuf>,
}

impl Shown<'_> {
    fn rename(&mut self, from: &Path, to: PathBuf) -> Result<(), ImageError> {
        disk::rename(from, &to)?;
        self.paths.push(to);
        Ok(())
    }
}

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        for path in self.paths.drain(..).rev() {
            // Whatever stays is complete and has no name: the next collection takes it.
            if let Err(error) = self.disk.discard(self.lock, &path) {
                tracing::warn!(path = %path.display(), %error, "cannot take back a part of a failed import");
            }
        }
    }
}

/// Puts together how the stream ended and what unpacking made of it. A broken stream goes first: what was found in it followed from that.
fn judge(
    layer: Digest,
    diff_id: &Digest,
    root: &Path,
    end: StreamEnd,
    result: Result<Unpacked, (String, UnpackError)>,
) -> Result<Unpacked, ImageError> {
    let had = match (end, &result) {
        (StreamEnd::Complete(had), _) => Some(had),
        (StreamEnd::Stopped, _) => None,
        (StreamEnd::TooLarge(reason), Ok(_)) => {
            return Err(ImageError::Bomb { layer, entry: "(end of the archive)".into(), reason });
        }
        (StreamEnd::TooLarge(reason), Err((entry, _))) => {
            return Err(ImageError::Bomb { layer, entry: entry.clone(), reason });
        }
        (StreamEnd::Broken(reason), _) => {
            return Err(ImageError::LayerData {
                layer,
                reason: format!("it cannot be decompressed: {}", crate::spec::clip(&reason)),
            });
        }
    };
    let unpacked = result.map_err(|(entry, error)| match error {
        UnpackError::Entry(problem) => ImageError::Entry { layer, entry, problem },
        UnpackError::Stream(reason) => ImageError::LayerData { layer, reason },
        UnpackError::TooMany(reason) => ImageError::Bomb { layer, entry, reason },
        UnpackError::Io(source) if is_disk_full(&source) => {
            ImageError::DiskFull { action: "unpack into", path: root.to_owned() }
        }
        UnpackError::Io(source) => ImageError::EntryIo { layer, entry, source },
    })?;
    match had {
        Some(had) if had == *diff_id => Ok(unpacked),
        Some(had) => Err(ImageError::WrongDiffId { layer, wanted: *diff_id, had }),
        None => Err(ImageError::LayerData { layer, reason: "it was not read to its end".into() }),
    }
}
