//! Which images of a source to import, for which platform and under which names.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;

use crate::blob::read_document;
use crate::choice::{Choice, check_layers, check_platform};
use crate::limits::{MAX_CONFIG_BYTES, MAX_IMAGES, MAX_INDEX_DEPTH, MAX_MANIFEST_BYTES};
use crate::reference::is_tag;
use crate::source::{BlobSource, Offer};
use crate::spec::{self, ConfigDocument, Descriptor, Manifest, Target};
use crate::{Digest, ImageError, Platform, Reference};

/// Documents that choosing one image may read: a hostile index could otherwise branch at every level.
const MAX_DOCUMENTS: u32 = 1024;

/// An image that was chosen, its documents verified and read.
#[derive(Debug, Clone)]
pub(crate) struct Chosen {
    /// Names for it, normalised.
    pub(crate) references: Vec<Reference>,
    pub(crate) digest: Digest,
    /// Digests of the indexes that led to it: it may be asked for by them.
    pub(crate) indexes: Vec<Digest>,
    pub(crate) manifest: Manifest,
    pub(crate) config: ConfigDocument,
}

/// Chooses from `offers` what `name` (or, without one, the source's own names) and `platform` ask for.
pub(crate) fn choose(
    offers: &[Offer],
    blobs: &dyn BlobSource,
    name: Option<&Reference>,
    platform: &Platform,
) -> Result<Vec<Chosen>, ImageError> {
    group(offers, blobs.path(), name)?
        .into_iter()
        .map(|(references, descriptors)| {
            let label = references.first().map_or_else(|| blobs.path().display().to_string(), ToString::to_string);
            let search = Search { blobs, wanted: platform, label: &label, documents: Cell::new(MAX_DOCUMENTS) };
            search.best(references, &descriptors)
        })
        .collect()
}

type Group = (Vec<Reference>, Vec<Descriptor>);

/// Images by name. Entries with the same name, and entries without any, are one image for several platforms.
fn group(offers: &[Offer], path: &Path, name: Option<&Reference>) -> Result<Vec<Group>, ImageError> {
    let mut groups: BTreeMap<&[String], Vec<Descriptor>> = BTreeMap::new();
    for offer in offers {
        groups.entry(offer.names.as_slice()).or_default().push(offer.descriptor.clone());
    }
    if groups.is_empty() || groups.len() > MAX_IMAGES {
        let reason = format!("it holds {} images: 1 to {MAX_IMAGES} are allowed", groups.len());
        return Err(ImageError::NotAnImage { path: path.to_owned(), reason });
    }
    let Some(name) = name else {
        return groups.into_iter().map(|(names, descriptors)| Ok((own_names(names, path)?, descriptors))).collect();
    };
    let found = groups.keys().map(|names| spec::clip(&names.join(" "))).collect::<Vec<_>>().join(", ");
    let only = groups.len() == 1;
    let mut matching = groups.into_iter().filter(|(names, _)| only || names.iter().any(|had| matches(had, name)));
    match (matching.next(), matching.next()) {
        (Some((_, descriptors)), None) => Ok(vec![(vec![name.clone()], descriptors)]),
        _ => Err(ImageError::Ambiguous { path: path.to_owned(), found }),
    }
}

/// Whether a source's own name for an image, a reference or a bare tag, is the one asked for.
fn matches(had: &str, name: &Reference) -> bool {
    had.parse::<Reference>().is_ok_and(|had| had == *name) || matches!(name, Reference::Tag { tag, .. } if tag == had)
}

fn own_names(names: &[String], path: &Path) -> Result<Vec<Reference>, ImageError> {
    let no_name = |hint: String| ImageError::NoName { path: path.to_owned(), hint };
    if names.is_empty() {
        return Err(no_name(String::new()));
    }
    names
        .iter()
        .map(|name| {
            // `1.0` is what umoci and skopeo write for the tag of an image that has no name.
            if is_tag(name) {
                return Err(no_name(format!(" (it only has the tag {name:?})")));
            }
            match name.parse().map_err(ImageError::Reference)? {
                reference @ Reference::Tag { .. } => Ok(reference),
                Reference::Digest { .. } => Err(no_name(format!(" (it only has the digest {:?})", spec::clip(name)))),
            }
        })
        .collect()
}

struct Search<'a> {
    blobs: &'a dyn BlobSource,
    wanted: &'a Platform,
    /// The image's name, for messages.
    label: &'a str,
    documents: Cell<u32>,
}

impl Search<'_> {
    fn best(&self, references: Vec<Reference>, descriptors: &[Descriptor]) -> Result<Chosen, ImageError> {
        let mut choice = Choice::new(self.wanted);
        self.visit(descriptors, &[], &mut choice)?;
        let (descriptor, indexes) = choice.best().map_err(|had| self.wrong_platform(&had))?;
        let (manifest, config) = self.image(&descriptor)?;
        check_layers(manifest.layers.len(), &config.diff_ids)
            .map_err(|reason| spec::invalid(&format!("manifest {}", descriptor.digest), reason))?;
        check_platform(self.wanted, &descriptor, &config).map_err(|had| self.wrong_platform(&had))?;
        Ok(Chosen { references, digest: descriptor.digest, indexes, manifest, config })
    }

    fn visit(
        &self,
        descriptors: &[Descriptor],
        path: &[Digest],
        choice: &mut Choice<'_, Vec<Digest>>,
    ) -> Result<(), ImageError> {
        for descriptor in descriptors {
            match descriptor.target() {
                Target::Manifest => {
                    let platform = match &descriptor.platform {
                        Some(platform) => platform.clone(),
                        None => self.image(descriptor)?.1.platform,
                    };
                    choice.offer(descriptor, &platform, path.to_vec());
                }
                Target::Index => {
                    let name = format!("index {}", descriptor.digest);
                    if path.len() + 1 >= MAX_INDEX_DEPTH {
                        return Err(spec::invalid(&name, format!("indexes are nested deeper than {MAX_INDEX_DEPTH}")));
                    }
                    let inner = spec::parse_index(&name, &self.document(descriptor, MAX_MANIFEST_BYTES, &name)?)?;
                    let mut path = path.to_vec();
                    path.push(descriptor.digest);
                    self.visit(&inner, &path, choice)?;
                }
                Target::Other => {}
            }
        }
        Ok(())
    }

    fn image(&self, descriptor: &Descriptor) -> Result<(Manifest, ConfigDocument), ImageError> {
        let name = format!("manifest {}", descriptor.digest);
        let manifest = spec::parse_manifest(&name, &self.document(descriptor, MAX_MANIFEST_BYTES, &name)?)?;
        let name = format!("configuration {}", manifest.config.digest);
        let config = spec::parse_config(&name, &self.document(&manifest.config, MAX_CONFIG_BYTES, &name)?)?;
        Ok((manifest, config))
    }

    fn document(&self, descriptor: &Descriptor, limit: u64, name: &str) -> Result<Vec<u8>, ImageError> {
        let left = self.documents.get().checked_sub(1);
        let left = left.ok_or_else(|| {
            spec::invalid(name, format!("it is one of more than {MAX_DOCUMENTS} documents of one image"))
        })?;
        self.documents.set(left);
        read_document(self.blobs, descriptor, limit, name)
    }

    fn wrong_platform(&self, had: &str) -> ImageError {
        ImageError::Platform { image: self.label.into(), wanted: self.wanted.clone(), had: spec::clip(had) }
    }
}
