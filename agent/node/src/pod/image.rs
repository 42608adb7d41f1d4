//! The image of a container: who wants it, and what people are told on the way.

use std::{sync::Mutex, time::Duration};

use hearth_image::{Hold, Image, ImageError, Reference};
use hearth_pod::Failure;
use hearth_registry::{Credentials, PullError, Transferred};
use hearth_types::{GroupKind, ObjectKey, quantity::format_bytes};
use tokio::time::Instant;

use super::execute::Site;
use crate::{Images, ImagesError, News, PullPolicy, Wanted, container, files::chain, shared::blocking};

/// How often the status says how far a pull has come: each time is a write of the region's.
const TELL_PROGRESS: Duration = Duration::from_secs(5);

impl Site {
    /// The image of a container, held so that it is not collected before the pod is seen to use it. `progress` is told now and then how far
    /// a pull has come.
    pub(crate) async fn image(
        &self,
        container: &str,
        progress: impl Fn(String) + Sync,
    ) -> Result<(Image, Hold), Failure> {
        let wanted = self.wanted(container)?;
        let name = wanted.reference.to_string();
        let told = Mutex::new(Instant::now());
        let tell = |news: News| match news {
            News::Progress(so_far) => {
                let mut told = told.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                if told.elapsed() >= TELL_PROGRESS {
                    *told = Instant::now();
                    progress(in_words(&name, &so_far));
                }
            }
            News::Pulling => self.event("Normal", "Pulling", &format!("Pulling image \"{name}\"")),
            News::Pulled(pulled, took, waited) => {
                let (took, waited) = (took.as_secs_f32(), waited.as_secs_f32());
                let text = format!(
                    "Successfully pulled image \"{name}\" in {took:.3}s ({waited:.3}s including waiting). Downloaded: {} bytes in {} of {} \
                     layers.",
                    pulled.bytes,
                    pulled.layers - pulled.known_layers,
                    pulled.layers
                );
                self.event("Normal", "Pulled", &text);
            }
            News::Unreachable(error) => {
                let text =
                    format!("image \"{name}\" on this device is used, since its registry did not answer: {error}");
                self.event("Warning", "RegistryUnavailable", &text);
            }
        };
        self.shared.images.get(&wanted, &tell).await.map_err(|error| self.image_failure(&name, &error))
    }

    /// The image that an adopted container runs from.
    pub(crate) async fn image_by_id(&self, id: String) -> Option<Image> {
        let store = self.shared.images.store().clone();
        blocking(move || store.resolve(&id)).await.ok()
    }

    fn wanted(&self, name: &str) -> Result<Wanted, Failure> {
        let container = container::named(&self.pod, name)
            .ok_or_else(|| Failure::new("CreateContainerConfigError", format!("no container {name}")))?;
        let image = container.image.as_deref().unwrap_or_default();
        let reference: Reference =
            image.parse().map_err(|error| self.failed("image", "InvalidImageName", &ImageError::Reference(error)))?;
        let policy = match container.image_pull_policy.as_deref() {
            Some("Always") => PullPolicy::Always,
            Some("Never") => PullPolicy::Never,
            _ => PullPolicy::IfNotPresent,
        };
        let guest = self.is_guest().then(|| self.namespace().to_owned());
        Ok(Wanted { reference, policy, secrets: self.pull_secrets(), guest })
    }

    /// Those of the pod's pull secrets that are here and can be read: the image may be public, so that the registry has the last word. What
    /// is wrong with the others is told.
    fn pull_secrets(&self) -> Credentials {
        let objects = self.shared.objects();
        let configs = self.configs(&objects, None);
        let names = self.pod.spec.iter().flat_map(|spec| spec.image_pull_secrets.iter().flatten());
        names.fold(Credentials::anonymous(), |all, secret| match configs.pull_secret(&secret.name) {
            Ok(credentials) => all.and(credentials),
            Err(reason) => {
                let text = format!("pull secret \"{}\" is not used: {reason}", secret.name);
                self.event("Warning", "FailedToRetrieveImagePullSecret", &text);
                all
            }
        })
    }

    fn image_failure(&self, name: &str, error: &ImagesError) -> Failure {
        let reason = match error {
            ImagesError::NeverPull(_) | ImagesError::NotGiven(_) => "ErrImageNeverPull",
            ImagesError::Store(ImageError::Reference(_)) => "InvalidImageName",
            ImagesError::Store(_) => "ImageInspectError",
            ImagesError::Pull(PullError::NotAllowed { .. } | PullError::Unreachable { .. }) => {
                return self.pull_failed(name, error, "; or import it there with `hearth image import`");
            }
            _ => return self.pull_failed(name, error, ""),
        };
        self.failed("image", reason, error)
    }

    fn pull_failed(&self, name: &str, error: &ImagesError, hint: &str) -> Failure {
        self.shared.metrics.failures.with_label_values(&["image"]).inc();
        Failure::of_pull(format!("Failed to pull image \"{name}\": {}{hint}", chain(error)))
    }

    fn event(&self, kind: &str, reason: &str, text: &str) {
        let key = ObjectKey::new(GroupKind::POD, self.namespace(), &self.places.pod);
        let now = self.shared.now();
        self.shared.reporter.event((&key, &self.uid().into()), kind, reason, text, now);
    }
}

/// Whether one of these images is here now. Blocks.
pub(crate) fn any_here(images: &Images, names: &[String]) -> bool {
    names.iter().any(|name| images.has(name))
}

fn in_words(image: &str, so_far: &Transferred) -> String {
    // Whole MiB, rounded up, to be read by people.
    let size = |bytes: u64| format_bytes(bytes.div_ceil(1 << 20) << 20);
    let Transferred { layers_done, layers_total, bytes_done, bytes_total } = *so_far;
    if bytes_done >= bytes_total {
        return format!("Pulling image \"{image}\": unpacking");
    }
    let (done, total) = (size(bytes_done), size(bytes_total));
    format!("Pulling image \"{image}\": {done} of {total}, {layers_done} of {layers_total} layers")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_said_in_words() {
        let so_far = Transferred { layers_done: 1, layers_total: 3, bytes_done: 1 << 20, bytes_total: 40 << 20 };
        assert_eq!(in_words("app:1", &so_far), "Pulling image \"app:1\": 1Mi of 40Mi, 1 of 3 layers");
        let all = Transferred { bytes_done: 40 << 20, ..so_far };
        assert_eq!(in_words("app:1", &all), "Pulling image \"app:1\": unpacking");
    }
}
