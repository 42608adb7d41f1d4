//! Manifests, indexes and configurations: fetched, verified, kept in the layout, and searched for the image of a platform.

use hearth_image::document::{
    Choice, ConfigDocument, DOCKER_INDEX, DOCKER_MANIFEST, Descriptor, Manifest, OCI_INDEX, OCI_MANIFEST, Target,
    check_layers, check_platform, parse_config, parse_index, parse_manifest,
};
use hearth_image::limits::{MAX_CONFIG_BYTES, MAX_INDEX_DEPTH, MAX_MANIFEST_BYTES};
use hearth_image::{Digest, ImageError, Platform};
use reqwest::header::{CONTENT_TYPE, HeaderMap};
use reqwest::{Method, StatusCode};
use serde::Deserialize;

use crate::PullError;
use crate::attempts::{Attempts, Failed};
use crate::config::PullLimits;
use crate::door::Door;
use crate::error::{chain, clip};
use crate::layout::Layout;
use crate::name::Version;

/// Documents that one pull may fetch: a hostile index could otherwise branch at every level.
const MAX_DOCUMENTS: u32 = 64;
/// Every kind of manifest that can be read. Without it registries convert to schema 1.
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";
/// The header in which registries say which digest a manifest has.
const CONTENT_DIGEST: &str = "docker-content-digest";

/// What a name leads to, verified and read.
#[derive(Debug, Clone)]
pub(crate) struct Chosen {
    /// The digest that the name stands for: of an index, or of the manifest.
    pub(crate) top: Descriptor,
    pub(crate) manifest_digest: Digest,
    pub(crate) manifest: Manifest,
    pub(crate) config: ConfigDocument,
}

/// The documents of one pull.
pub(crate) struct Documents<'a> {
    pub(crate) doors: &'a [Door<'a>],
    pub(crate) limits: &'a PullLimits,
    pub(crate) layout: &'a Layout,
    /// The image's name, for messages.
    pub(crate) image: &'a str,
    pub(crate) left: u32,
}

impl<'a> Documents<'a> {
    pub(crate) fn new(doors: &'a [Door<'a>], limits: &'a PullLimits, layout: &'a Layout, image: &'a str) -> Self {
        Self { doors, limits, layout, image, left: MAX_DOCUMENTS }
    }

    /// Chooses as `hearth_image` does when it imports, so that the import finds in the layout what it looks for.
    pub(crate) async fn choose(&mut self, version: &Version, platform: &Platform) -> Result<Chosen, PullError> {
        let top = self.top(version).await?;
        let mut choice = Choice::new(platform);
        self.visit(std::slice::from_ref(&top), 0, &mut choice).await?;
        let (descriptor, ()) = choice.best().map_err(|had| self.no_platform(platform, &had))?;
        let (manifest, config) = self.image_of(&descriptor).await?;
        check_platform(platform, &descriptor, &config).map_err(|had| self.no_platform(platform, &had))?;
        check_layers(manifest.layers.len(), &config.diff_ids)
            .map_err(|reason| self.invalid(&format!("manifest {}", descriptor.digest), reason))?;
        Ok(Chosen { top, manifest_digest: descriptor.digest, manifest, config })
    }

    async fn visit(
        &mut self,
        descriptors: &[Descriptor],
        depth: usize,
        choice: &mut Choice<'_, ()>,
    ) -> Result<(), PullError> {
        for descriptor in descriptors {
            match descriptor.target() {
                Target::Manifest => {
                    let platform = match &descriptor.platform {
                        Some(platform) => platform.clone(),
                        None => self.image_of(descriptor).await?.1.platform,
                    };
                    choice.offer(descriptor, &platform, ());
                }
                Target::Index => {
                    let name = format!("index {}", descriptor.digest);
                    if depth + 1 >= MAX_INDEX_DEPTH {
                        let reason = format!("indexes are nested deeper than {MAX_INDEX_DEPTH}");
                        return Err(self.invalid(&name, reason));
                    }
                    let bytes = self.document(descriptor, &name, MAX_MANIFEST_BYTES).await?;
                    let inner = parse_index(&name, &bytes).map_err(|error| self.unreadable(&name, &error))?;
                    Box::pin(self.visit(&inner, depth + 1, choice)).await?;
                }
                Target::Other => {}
            }
        }
        Ok(())
    }

    async fn image_of(&mut self, descriptor: &Descriptor) -> Result<(Manifest, ConfigDocument), PullError> {
        let name = format!("manifest {}", descriptor.digest);
        let bytes = self.document(descriptor, &name, MAX_MANIFEST_BYTES).await?;
        let manifest = parse_manifest(&name, &bytes).map_err(|error| self.unreadable(&name, &error))?;
        let name = format!("configuration {}", manifest.config.digest);
        let bytes = self.document(&manifest.config, &name, MAX_CONFIG_BYTES).await?;
        let config = parse_config(&name, &bytes).map_err(|error| self.unreadable(&name, &error))?;
        Ok((manifest, config))
    }

    /// What the name itself leads to. A pinned document that is in the layout is not asked for again.
    async fn top(&mut self, version: &Version) -> Result<Descriptor, PullError> {
        if let Version::Digest(digest) = version
            && let Some(bytes) = self.layout.document(digest, MAX_MANIFEST_BYTES).await?
        {
            return self.describe(*digest, &bytes, None);
        }
        let mut attempts = Attempts::new(self.doors, self.limits);
        loop {
            match self.fetch_top(attempts.door(), version).await {
                Ok((descriptor, bytes)) => {
                    self.layout.keep(&descriptor.digest, bytes).await?;
                    return Ok(descriptor);
                }
                Err(error) => attempts.after(error, Failed::OfTheImage).await?,
            }
        }
    }

    async fn fetch_top(&self, door: &Door<'_>, version: &Version) -> Result<(Descriptor, Vec<u8>), PullError> {
        let (digest, headers, bytes) = fetch_manifest(door, version, self.image).await?;
        let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        Ok((self.describe(digest, &bytes, content_type)?, bytes))
    }

    /// What a manifest says that it is. The answer's type counts only where the document has none, as OCI allows.
    fn describe(&self, digest: Digest, bytes: &[u8], content_type: Option<&str>) -> Result<Descriptor, PullError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Head {
            #[serde(default)]
            schema_version: Option<u64>,
            #[serde(default)]
            media_type: Option<String>,
            #[serde(default)]
            manifests: Option<serde::de::IgnoredAny>,
        }
        let name = format!("manifest {digest}");
        let head: Head =
            serde_json::from_slice(bytes).map_err(|error| self.invalid(&name, clip(&error.to_string())))?;
        if head.schema_version == Some(1) {
            return Err(self.unsupported("it is of Docker's schema 1: push it again with a current tool"));
        }
        let known = [OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST];
        let said = head.media_type.as_deref().or(content_type.filter(|it| known.contains(it)));
        let media_type = match said {
            Some(said) if known.contains(&said) => said,
            Some(other) => return Err(self.unsupported(&format!("its media type is {:?}", clip(other)))),
            None if head.manifests.is_some() => OCI_INDEX,
            None => OCI_MANIFEST,
        };
        Ok(Descriptor {
            media_type: media_type.into(),
            digest,
            size: bytes.len() as u64,
            platform: None,
            annotations: std::collections::BTreeMap::new(),
            urls: Vec::new(),
        })
    }

    /// A document by its descriptor: from the layout, or from a registry and then kept there.
    async fn document(&mut self, descriptor: &Descriptor, name: &str, limit: u64) -> Result<Vec<u8>, PullError> {
        if let Some(bytes) = self.layout.document(&descriptor.digest, limit).await? {
            return self.of_size(descriptor, name, bytes);
        }
        let too_many = || self.invalid(name, format!("it is one of more than {MAX_DOCUMENTS} documents of one image"));
        self.left = self.left.checked_sub(1).ok_or_else(too_many)?;
        if descriptor.size > limit {
            return Err(self.invalid(name, format!("it has {} bytes: the limit is {limit}", descriptor.size)));
        }
        let mut attempts = Attempts::new(self.doors, self.limits);
        loop {
            match fetch_document(attempts.door(), descriptor, name).await {
                Ok(bytes) => {
                    self.layout.keep(&descriptor.digest, bytes.clone()).await?;
                    return Ok(bytes);
                }
                Err(error) => attempts.after(error, Failed::Plainly).await?,
            }
        }
    }

    fn of_size(&self, descriptor: &Descriptor, name: &str, bytes: Vec<u8>) -> Result<Vec<u8>, PullError> {
        if bytes.len() as u64 == descriptor.size {
            return Ok(bytes);
        }
        Err(self.invalid(name, format!("it has {} bytes, and its descriptor says {}", bytes.len(), descriptor.size)))
    }

    fn origin(&self) -> &str {
        self.doors.last().map_or("the registry", |door| door.host())
    }

    fn invalid(&self, what: &str, reason: impl Into<String>) -> PullError {
        PullError::invalid(self.origin(), what, reason)
    }

    fn unreadable(&self, what: &str, error: &ImageError) -> PullError {
        match error {
            ImageError::MediaType { .. } => self.unsupported(&chain(error)),
            _ => self.invalid(what, chain(error)),
        }
    }

    fn unsupported(&self, reason: &str) -> PullError {
        PullError::Unsupported { image: self.image.into(), reason: reason.into() }
    }

    fn no_platform(&self, wanted: &Platform, had: &str) -> PullError {
        PullError::NoPlatform { image: self.image.into(), wanted: wanted.clone(), had: clip(had) }
    }
}

/// The manifest or index of a name, with its digest: that of its bytes, which the pin or the registry's own word must agree with.
async fn fetch_manifest(
    door: &Door<'_>,
    version: &Version,
    image: &str,
) -> Result<(Digest, HeaderMap, Vec<u8>), PullError> {
    let what = format!("manifest of {image}");
    let url = door.endpoint.manifest(version);
    let mut answer = door.ask(Method::GET, url, &what, ACCEPT, None).await?;
    if answer.status != StatusCode::OK {
        return Err(PullError::invalid(door.host(), &what, format!("the answer is {}", answer.status)));
    }
    let bytes = answer.body.read(MAX_MANIFEST_BYTES).await?;
    let too_long = || PullError::invalid(door.host(), &what, format!("it has more than {MAX_MANIFEST_BYTES} bytes"));
    let bytes = bytes.ok_or_else(too_long)?;
    let digest = Digest::of(&bytes);
    let expected = match version {
        Version::Digest(pin) => Some(*pin),
        Version::Tag(_) => said_digest(&answer.headers),
    };
    match expected {
        Some(expected) if expected != digest => {
            Err(PullError::corrupt(door.host(), &what, format!("its digest is {digest} and should be {expected}")))
        }
        _ => Ok((digest, answer.headers, bytes)),
    }
}

async fn fetch_document(door: &Door<'_>, descriptor: &Descriptor, name: &str) -> Result<Vec<u8>, PullError> {
    let is_manifest = descriptor.target() != Target::Other;
    let (url, accept) = if is_manifest {
        (door.endpoint.manifest(&Version::Digest(descriptor.digest)), ACCEPT)
    } else {
        (door.endpoint.blob(&descriptor.digest), "*/*")
    };
    let mut answer = door.ask(Method::GET, url, name, accept, None).await?;
    if answer.status != StatusCode::OK {
        return Err(PullError::invalid(door.host(), name, format!("the answer is {}", answer.status)));
    }
    let bytes = answer.body.read(descriptor.size).await?;
    let bytes = bytes.filter(|bytes| bytes.len() as u64 == descriptor.size).ok_or_else(|| {
        PullError::corrupt(door.host(), name, format!("it should have {} bytes, and has not", descriptor.size))
    })?;
    if Digest::of(&bytes) != descriptor.digest {
        return Err(PullError::corrupt(door.host(), name, "its bytes have another digest"));
    }
    Ok(bytes)
}

/// The digest that a tag stands for now, without the manifest where the registry tells it in a header.
///
/// The header is the registry's word alone. Whoever pulls by that digest verifies it.
pub(crate) async fn digest_of(
    doors: &[Door<'_>],
    limits: &PullLimits,
    version: &Version,
    image: &str,
) -> Result<Digest, PullError> {
    let mut attempts = Attempts::new(doors, limits);
    loop {
        match ask_digest(attempts.door(), version, image).await {
            Ok(digest) => return Ok(digest),
            Err(error) => attempts.after(error, Failed::OfTheImage).await?,
        }
    }
}

async fn ask_digest(door: &Door<'_>, version: &Version, image: &str) -> Result<Digest, PullError> {
    let what = format!("manifest of {image}");
    match door.ask(Method::HEAD, door.endpoint.manifest(version), &what, ACCEPT, None).await {
        Ok(answer) => {
            if let Some(digest) = said_digest(&answer.headers).filter(|_| answer.status == StatusCode::OK) {
                return Ok(digest);
            }
        }
        // Some registries answer HEAD with 400 or 405.
        Err(PullError::Refused { .. }) => {}
        Err(error) => return Err(error),
    }
    Ok(fetch_manifest(door, version, image).await?.0)
}

fn said_digest(headers: &HeaderMap) -> Option<Digest> {
    headers.get(CONTENT_DIGEST)?.to_str().ok()?.parse().ok()
}
