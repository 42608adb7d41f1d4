//! A pull: documents, then layers, then the files that make a layout of them.

use std::collections::BTreeMap;
use std::path::Path;

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use hearth_image::document::{Descriptor, OCI_INDEX, REF_NAME};
use hearth_image::{Digest, Platform, Reference};
use serde_json::json;

use crate::config::{Config, ConfigError};
use crate::credentials::Credentials;
use crate::documents::{Chosen, Documents, digest_of};
use crate::door::Door;
use crate::http::Http;
use crate::layout::Layout;
use crate::name::{Location, Version};
use crate::progress::Progress;
use crate::token::Tokens;
use crate::{PullError, blob};

/// Which of an image's layers, given by their diff ids bottom first, the device has already: they are not downloaded. Asked once for a pull;
/// may read small files.
pub type Known<'a> = dyn Fn(&[Digest]) -> Vec<bool> + Send + Sync + 'a;

/// Pulls images. One for a device: pulls share connections and tokens. May be used from many tasks at once.
#[derive(Debug)]
pub struct Puller {
    http: Http,
    tokens: Tokens,
}

/// An image that was pulled into a layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// What the name stands for: the digest of an index, or of the manifest. `index.json` points to it.
    pub digest: Digest,
    /// The manifest that was chosen for the platform.
    pub manifest: Digest,
    /// The platform that the image says it is for.
    pub platform: Platform,
    /// Layers of the image.
    pub layers: usize,
    /// Layers that were left out since the device has them.
    pub known_layers: usize,
    /// Bytes of the layers that were downloaded by this pull or an earlier try of it.
    pub bytes: u64,
}

impl Puller {
    /// Reads the certificates of the machine (blocks on its disk for some milliseconds).
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        Ok(Self { http: Http::new(config)?, tokens: Tokens::default() })
    }

    /// Pulls the image of `reference` for `platform` into the OCI image layout at `layout`, which is made where there is none.
    ///
    /// # Guarantees
    /// - When it returns, the layout holds every document and every layer that `known` does not claim, each verified by digest and size and on
    ///   the disk, and `index.json` points to the image under its name.
    /// - It may be dropped at any moment, and killed. What was downloaded stays, and the next pull into the same directory goes on from it.
    /// - Two pulls into one directory, also of two processes, wait for each other.
    ///
    /// # Caveats
    /// A layer that `known` claims is missing from the layout, which is then no complete one.
    pub async fn pull(
        &self,
        reference: &Reference,
        platform: &Platform,
        credentials: &Credentials,
        layout: &Path,
        known: &Known<'_>,
        progress: &Progress,
    ) -> Result<Pulled, PullError> {
        let image = reference.to_string();
        let location = Location::of(reference)?;
        let doors = self.doors(&location, credentials)?;
        let layout = Layout::open(layout).await?;
        let limits = self.http.limits();
        let chosen = Documents::new(&doors, limits, &layout, &image).choose(&location.version, platform).await?;
        let plan = Plan::new(&chosen, &image, limits.image_bytes, known)?;
        let bytes = self.layers(&doors, &layout, &plan, progress).await?;
        layout.finish(index(&chosen.top, &image)).await?;
        Ok(Pulled {
            digest: chosen.top.digest,
            manifest: chosen.manifest_digest,
            platform: chosen.config.platform.clone(),
            layers: plan.total,
            known_layers: plan.known,
            bytes,
        })
    }

    /// The digest that a reference stands for now, of an index or a manifest: its pin, or what the first of mirrors and registry says.
    pub async fn resolve(&self, reference: &Reference, credentials: &Credentials) -> Result<Digest, PullError> {
        let location = Location::of(reference)?;
        if let Version::Digest(pin) = location.version {
            return Ok(pin);
        }
        let doors = self.doors(&location, credentials)?;
        digest_of(&doors, self.http.limits(), &location.version, &reference.to_string()).await
    }

    /// Whether there is a login among these with which one of mirrors and registry would be asked for an image.
    pub fn has_login(&self, reference: &Reference, credentials: &Credentials) -> Result<bool, PullError> {
        let endpoints = Location::of(reference)?.endpoints(self.http.config())?;
        Ok(endpoints.iter().any(|one| !credentials.lookup(&one.host, &one.repository).is_empty()))
    }

    fn doors(&self, location: &Location, credentials: &Credentials) -> Result<Vec<Door<'_>>, PullError> {
        let endpoints = location.endpoints(self.http.config())?;
        let door = |endpoint: crate::name::Endpoint| {
            let logins = credentials.lookup(&endpoint.host, &endpoint.repository);
            Door::new(endpoint, &self.http, &self.tokens, logins)
        };
        Ok(endpoints.into_iter().map(door).collect())
    }

    /// Downloads what is missing, and returns how many bytes were.
    async fn layers(
        &self,
        doors: &[Door<'_>],
        layout: &Layout,
        plan: &Plan<'_>,
        progress: &Progress,
    ) -> Result<u64, PullError> {
        let limits = self.http.limits();
        progress.begin(plan.total, plan.known, plan.wanted.iter().map(|layer| layer.descriptor.size).sum());
        let mut missing = Vec::new();
        for layer in &plan.wanted {
            if layout.has(&layer.descriptor.digest, layer.descriptor.size).await? {
                progress.bytes(0, layer.descriptor.size);
                progress.layers_are_done(layer.uses);
            } else {
                missing.push(layer);
            }
        }
        let bytes = missing.iter().map(|layer| layer.descriptor.size).sum();
        has_room(layout, &missing, limits.spare_bytes).await?;
        let downloads: Vec<_> = missing
            .into_iter()
            .map(|layer| async move {
                blob::fetch(doors, limits, layout, layer.descriptor, progress).await?;
                progress.layers_are_done(layer.uses);
                Ok::<_, PullError>(())
            })
            .collect();
        stream::iter(downloads).buffer_unordered(limits.parallel_layers.max(1)).try_collect::<Vec<()>>().await?;
        Ok(bytes)
    }
}

/// Which layers are to be in the layout.
struct Plan<'a> {
    total: usize,
    known: usize,
    wanted: Vec<Wanted<'a>>,
}

struct Wanted<'a> {
    descriptor: &'a Descriptor,
    /// How often the image has it: empty layers repeat.
    uses: usize,
}

impl<'a> Plan<'a> {
    fn new(chosen: &'a Chosen, image: &str, limit: u64, known: &Known<'_>) -> Result<Self, PullError> {
        let mut wanted: BTreeMap<Digest, Wanted<'a>> = BTreeMap::new();
        let mut known_layers = 0;
        let had = known(&chosen.config.diff_ids);
        for (at, descriptor) in chosen.manifest.layers.iter().enumerate() {
            if had.get(at) == Some(&true) {
                known_layers += 1;
                continue;
            }
            let unsupported = |reason: &str| PullError::Unsupported {
                image: image.into(),
                reason: format!("layer {} {reason}", descriptor.digest),
            };
            if !descriptor.urls.is_empty() {
                return Err(unsupported("is kept outside of the registry, and is not fetched from elsewhere"));
            }
            let layer = wanted.entry(descriptor.digest).or_insert(Wanted { descriptor, uses: 0 });
            if layer.descriptor.size != descriptor.size {
                return Err(unsupported("is listed with two sizes"));
            }
            layer.uses += 1;
        }
        let had = wanted.values().fold(0_u64, |sum, layer| sum.saturating_add(layer.descriptor.size));
        if had > limit {
            return Err(PullError::TooLarge { image: image.into(), had, limit });
        }
        Ok(Self { total: chosen.manifest.layers.len(), known: known_layers, wanted: wanted.into_values().collect() })
    }
}

async fn has_room(layout: &Layout, missing: &[&Wanted<'_>], spare: u64) -> Result<(), PullError> {
    let mut needed: u64 = 0;
    for layer in missing {
        needed = needed.saturating_add(layer.descriptor.size - layout.begun(layer.descriptor).await?);
    }
    let free = layout.free_bytes().await?;
    if needed > 0 && needed.saturating_add(spare) > free {
        return Err(PullError::DiskFull { path: layout.root().to_owned(), needed: needed.saturating_add(spare), free });
    }
    Ok(())
}

fn index(top: &Descriptor, image: &str) -> Vec<u8> {
    json!({
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [{
            "mediaType": top.media_type,
            "digest": top.digest,
            "size": top.size,
            "annotations": { REF_NAME: image },
        }],
    })
    .to_string()
    .into_bytes()
}
