//! The images of this device: what is here, and how it is fetched from registries.

mod access;
mod source;

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use hearth_image::{
    Digest, Garbage, Hold, Image, ImageError, ImageRecord, ImageStore, ImportOptions, Platform, Reference,
};
use hearth_registry::{Credentials, Progress, PullError, Pulled, Transferred};
use tokio::sync::{Mutex as TurnLock, Semaphore};

use crate::{Paths, files::FileError, shared::blocking};
use access::Access;
use source::Source;
pub use source::SourceError;

/// Images that are pulled at once: more share one line and one disk.
const PULLS: usize = 2;
/// Part of the disk, in percent, at which room is made, and down to which: the kubelet's defaults (`imageGCHighThresholdPercent`,
/// `imageGCLowThresholdPercent`).
const FULL_PERCENT: u64 = 85;
const ROOMY_PERCENT: u64 = 80;
/// How long what was begun of a download is kept for a pull that goes on with it.
const KEEP_BEGUN: Duration = Duration::from_hours(24 * 7);

/// When a registry is asked for an image (`imagePullPolicy`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullPolicy {
    /// Where the image is not on the device.
    IfNotPresent,
    /// Each time; what is on the device is taken where the registry still says the same, or cannot be reached.
    Always,
    /// Never.
    Never,
}

/// Which image somebody wants, and as whom.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The name.
    pub reference: Reference,
    /// When to ask for it.
    pub policy: PullPolicy,
    /// For a private registry.
    pub secrets: Credentials,
    /// The namespace of another owner than the device's. The logins of `registries.yaml` are not theirs, and neither is what is here already
    /// and was pulled for others with a login: their registry is asked first.
    pub guest: Option<String>,
}

/// What somebody who waits for an image is told.
#[derive(Clone, Debug)]
pub enum News {
    /// A registry is asked for it.
    Pulling,
    /// So far.
    Progress(Transferred),
    /// It is here. The first time includes waiting for other pulls.
    Pulled(Pulled, Duration, Duration),
    /// The registry could not be reached, and the image that is here is taken.
    Unreachable(String),
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum ImagesError {
    /// It is not here, and must not be pulled.
    #[error(
        "image \"{0}\" is not on this device, and its pull policy is Never: import it there with `hearth image import`"
    )]
    NeverPull(String),
    /// It is here for others, and its registry must not be asked.
    #[error(
        "image \"{0}\" was pulled for other owners, and with the pull policy Never its registry cannot be asked whether you may have it"
    )]
    NotGiven(String),
    /// The store of images failed.
    #[error(transparent)]
    Store(#[from] ImageError),
    /// What was pulled cannot be used.
    #[error("cannot unpack it")]
    Import(#[source] ImageError),
    /// What the owner said of registries cannot be used.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The registry does not give it.
    #[error(transparent)]
    Pull(#[from] PullError),
    /// The directory for downloads cannot be made.
    #[error(transparent)]
    File(#[from] FileError),
}

/// The images of a device.
#[derive(Debug)]
pub struct Images {
    store: ImageStore,
    source: Source,
    access: Access,
    pulls: PathBuf,
    /// Who pulls what: by reference.
    turns: Mutex<HashMap<String, Arc<TurnLock<()>>>>,
    slots: Semaphore,
}

impl Images {
    /// The images of a data directory. Without `is_public`, registries may be at any address.
    pub fn open(
        paths: &Paths,
        is_public: Option<Arc<dyn Fn(IpAddr) -> bool + Send + Sync>>,
    ) -> Result<Self, ImageError> {
        Ok(Self {
            store: ImageStore::open(&paths.images())?,
            source: Source::new(paths.registries(), is_public),
            access: Access::open(paths.image_access()),
            pulls: paths.pulls(),
            turns: Mutex::default(),
            slots: Semaphore::new(PULLS),
        })
    }

    /// What is here.
    pub fn store(&self) -> &ImageStore {
        &self.store
    }

    /// The image, held so that it is not collected before somebody is seen to use it.
    ///
    /// # Guarantees
    /// - Of all who want the same image at a time, one pulls it. What a dropped or failed pull has downloaded is gone on from by the next.
    /// - A pod of another owner gets what the device's owner brought by hand, what its registry gives to anyone, and what it gave to the pod's
    ///   own namespace; anything else only once the registry gives it, although it is here.
    pub async fn get(
        self: &Arc<Self>,
        wanted: &Wanted,
        tell: &(dyn Fn(News) + Sync),
    ) -> Result<(Image, Hold), ImagesError> {
        let here = self.here(&wanted.reference).await?;
        match (here, wanted.policy) {
            (Some(here), PullPolicy::IfNotPresent | PullPolicy::Never) if self.may_have(wanted, &here.0) => Ok(here),
            (Some(_), PullPolicy::Never) => Err(ImagesError::NotGiven(wanted.reference.to_string())),
            (None, PullPolicy::Never) => Err(ImagesError::NeverPull(wanted.reference.to_string())),
            (_, PullPolicy::IfNotPresent) => self.in_turn(wanted, None, tell).await,
            (here, PullPolicy::Always) => {
                let here = here.filter(|here| self.may_have(wanted, &here.0));
                let (is_here, asked) = (here.is_some(), self.in_turn(wanted, here, tell).await);
                match asked {
                    // An app that ran yesterday runs today, whether the line is up or not.
                    Err(ImagesError::Pull(
                        error @ (PullError::Unreachable { .. } | PullError::TooManyRequests { .. }),
                    )) if is_here => {
                        tell(News::Unreachable(error.to_string()));
                        match self.here(&wanted.reference).await? {
                            Some(here) => Ok(here),
                            None => Err(error.into()),
                        }
                    }
                    other => other,
                }
            }
        }
    }

    /// Whether somebody may run what is here without its registry being asked.
    fn may_have(&self, wanted: &Wanted, here: &Image) -> bool {
        let Some(guest) = &wanted.guest else { return true };
        here.imported || self.access.has((&wanted.reference.to_string(), &here.manifest_digest), guest)
    }

    /// A registry gave an image.
    async fn given(self: &Arc<Self>, wanted: &Wanted, manifest: Digest, private: bool) -> Result<(), ImagesError> {
        let namespace = match (private, &wanted.guest) {
            (false, _) => None,
            (true, Some(guest)) => Some(guest.clone()),
            // The owner may have everything.
            (true, None) => return Ok(()),
        };
        let (images, name) = (Arc::clone(self), wanted.reference.to_string());
        let noted =
            blocking(move || images.access.note((&name, &manifest), namespace.as_deref(), |name| images.has(name)));
        Ok(noted.await?)
    }

    /// Whether the image of a name is here. Blocks.
    pub(crate) fn has(&self, reference: &str) -> bool {
        self.store.resolve(reference).is_ok()
    }

    async fn here(&self, reference: &Reference) -> Result<Option<(Image, Hold)>, ImageError> {
        let (store, name) = (self.store.clone(), reference.to_string());
        match blocking(move || store.resolve_and_hold(&name)).await {
            Ok(found) => Ok(Some(found)),
            Err(ImageError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Asks the registry, after everybody who asks for the same image.
    async fn in_turn(
        self: &Arc<Self>,
        wanted: &Wanted,
        here: Option<(Image, Hold)>,
        tell: &(dyn Fn(News) + Sync),
    ) -> Result<(Image, Hold), ImagesError> {
        let name = wanted.reference.to_string();
        let waiting = Instant::now();
        let turn = Arc::clone(self.turns().entry(name.clone()).or_default());
        let result = async {
            let _turn = turn.lock().await;
            if wanted.policy == PullPolicy::IfNotPresent
                && let Some(found) = self.here(&wanted.reference).await?
                && self.may_have(wanted, &found.0)
            {
                return Ok(found);
            }
            // Never closed.
            let _slot = self.slots.acquire().await;
            self.ask(wanted, here, waiting, tell).await
        };
        let result = result.await;
        drop(turn);
        self.turns().retain(|_, turn| Arc::strong_count(turn) > 1);
        result
    }

    async fn ask(
        self: &Arc<Self>,
        wanted: &Wanted,
        here: Option<(Image, Hold)>,
        waiting: Instant,
        tell: &(dyn Fn(News) + Sync),
    ) -> Result<(Image, Hold), ImagesError> {
        let reference = &wanted.reference;
        let origin = self.source.get().await?;
        let own = if wanted.guest.is_none() { origin.credentials.clone() } else { Credentials::anonymous() };
        let secrets = wanted.secrets.clone().and(own);
        let private = origin.puller.has_login(reference, &secrets)?;
        if let Some(here) = here {
            let now = origin.puller.resolve(reference, &secrets).await?;
            let (store, same) = (self.store.clone(), here.0.manifest_digest);
            // The digest may be that of an index that led to the image.
            let found = blocking(move || store.resolve(&now.to_string())).await;
            if found.is_ok_and(|image| image.manifest_digest == same) {
                return Ok(here);
            }
        }
        tell(News::Pulling);
        let begin = Instant::now();
        let progress = Progress::default();
        let pulled = {
            let pull = self.pull(&origin.puller, reference, &secrets, &progress);
            tokio::pin!(pull);
            let mut watch = progress.watch();
            loop {
                tokio::select! {
                    pulled = &mut pull => break pulled?,
                    Ok(()) = watch.changed() => tell(News::Progress(*watch.borrow_and_update())),
                }
            }
        };
        self.given(wanted, pulled.manifest, private).await?;
        let found = self.here(reference).await?;
        tell(News::Pulled(pulled, begin.elapsed(), waiting.elapsed()));
        found.ok_or_else(|| ImageError::NotFound { reference: reference.to_string() }.into())
    }

    /// Pulls and imports. A layer that was here when the pull was planned may have been collected since: then all is asked for once more.
    async fn pull(
        &self,
        puller: &hearth_registry::Puller,
        reference: &Reference,
        secrets: &Credentials,
        progress: &Progress,
    ) -> Result<Pulled, ImagesError> {
        let layout = self.layout(reference);
        let pulls = self.pulls.clone();
        blocking(move || crate::files::private_dir(&pulls)).await?;
        let platform = Platform::host();
        let mut again = true;
        loop {
            let store = self.store.clone();
            let known = move |diff_ids: &[Digest]| store.known_layers(diff_ids).unwrap_or_default();
            let pulled = puller.pull(reference, &platform, secrets, &layout, &known, progress).await?;
            match self.import(reference, &layout).await {
                Ok(_) => return Ok(pulled),
                Err(ImageError::MissingBlob { .. }) if again => again = false,
                Err(error) => return Err(ImagesError::Import(error)),
            }
        }
    }

    async fn import(&self, reference: &Reference, layout: &Path) -> Result<Vec<ImageRecord>, ImageError> {
        let (store, layout) = (self.store.clone(), layout.to_owned());
        let options = ImportOptions { name: Some(reference.to_string()), pulled: true, ..ImportOptions::default() };
        blocking(move || {
            let imported = store.import(&layout, &options);
            // What does not unpack never will; what found no room or no time is gone on from.
            let keep = matches!(
                imported,
                Err(ImageError::DiskFull { .. } | ImageError::Io { .. } | ImageError::MissingBlob { .. })
            );
            if !keep && let Err(error) = hearth_registry::remove_unused(&layout) {
                tracing::warn!(path = %layout.display(), %error, "a download that is no longer needed cannot be removed");
            }
            imported
        })
        .await
    }

    /// Where an image is downloaded to: the same for every try.
    fn layout(&self, reference: &Reference) -> PathBuf {
        self.pulls.join(Digest::of(reference.to_string().as_bytes()).hex())
    }

    fn turns(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<TurnLock<()>>>> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes images without a name that nobody uses, and, where the disk fills up, those that can be pulled again, and downloads that
    /// nobody went on with. Blocks.
    pub(crate) fn collect(&self, in_use: &HashSet<Digest>) -> Result<Option<Garbage>, ImageError> {
        self.store.note_in_use(in_use)?;
        let shortage = shortage(self.pulls.parent().unwrap_or(&self.pulls))?;
        self.remove_begun(if shortage > 0 { Duration::ZERO } else { KEEP_BEGUN });
        match shortage {
            0 => self.store.try_collect_garbage(in_use),
            bytes => self.store.make_room(bytes, in_use),
        }
    }

    /// Downloads that ended so long ago.
    fn remove_begun(&self, age: Duration) {
        let old = |path: &Path| {
            let changed = std::fs::metadata(path.join("partial")).or_else(|_| std::fs::metadata(path));
            let changed = changed.and_then(|found| found.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
            // A clock that was set back makes nothing old.
            SystemTime::now().duration_since(changed).is_ok_and(|since| since >= age)
        };
        let entries = std::fs::read_dir(&self.pulls).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()).filter(|path| old(path)) {
            match hearth_registry::remove_unused(&path) {
                Ok(true) => tracing::info!(path = %path.display(), "removed a download that nobody went on with"),
                Ok(false) => {}
                Err(error) => tracing::warn!(path = %path.display(), %error, "a download cannot be removed"),
            }
        }
    }
}

/// Bytes that have to go for the disk to be roomy again; 0 where it is not full.
fn shortage(path: &Path) -> Result<u64, ImageError> {
    let stat = rustix::fs::statvfs(path).map_err(|error| ImageError::Io {
        action: "look at the disk of",
        path: path.to_owned(),
        source: error.into(),
    })?;
    Ok(shortage_of(stat.f_blocks - stat.f_bfree, stat.f_bavail).saturating_mul(stat.f_frsize))
}

/// In blocks. What is reserved for root counts neither as used nor as free, as `df` has it.
fn shortage_of(used: u64, available: u64) -> u64 {
    let total = used.saturating_add(available);
    if used.saturating_mul(100) < total.saturating_mul(FULL_PERCENT) {
        return 0;
    }
    used.saturating_sub(total / 100 * ROOMY_PERCENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_made_from_the_kubelets_thresholds_on() {
        for (used, available, expected) in [(0, 1000, 0), (849, 151, 0), (850, 150, 50), (1000, 0, 200), (0, 0, 0)] {
            assert_eq!(shortage_of(used, available), expected, "{used} of {}", used + available);
        }
    }
}
