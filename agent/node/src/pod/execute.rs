//! How the commands of a pod's machine are carried out. Each function does one and answers with its result.

use std::{collections::HashMap, path::PathBuf, sync::Arc};

use hearth_image::Image;
use hearth_network::{PodAddresses, PodNetwork};
use hearth_pod::{Addresses, Failure, StartFailure};
use hearth_runtime::{ContainerStatus, PodLease, PodSandbox, RuntimeError, StartError};
use hearth_types::{
    GroupKind, ObjectKey,
    kinds::{PersistentVolumeClaim, Pod, Volume},
    lease::Tenure,
    quantity,
};
use hearth_volume::{ClaimId, ClaimSpec, VolumeError};
use serde_json::json;

use super::uses::claims_of;
use crate::{
    config::{Configs, Myself},
    container::{self, Ingredients, Places},
    desired::Objects,
    facts,
    files::chain,
    host_paths::HostPathError,
    leases, mounts,
    shared::{Shared, blocking},
};

/// Permission bits of a fresh claim: programs of an image run as any user, and nobody but the pod sees the directory.
const CLAIM_MODE: u32 = 0o777;

/// Where each volume of a pod lies.
pub(crate) type VolumePaths = HashMap<String, PathBuf>;

/// What the pod has that its containers are started with.
pub(crate) struct Given {
    pub(crate) volumes: VolumePaths,
    pub(crate) addresses: Option<Addresses>,
}

/// What the commands of one pod work on.
#[derive(Clone)]
pub(crate) struct Site {
    pub(crate) shared: Arc<Shared>,
    pub(crate) pod: Arc<Pod>,
    pub(crate) places: Places,
}

impl Site {
    pub(super) fn namespace(&self) -> &str {
        &self.places.namespace
    }

    pub(super) fn uid(&self) -> &str {
        &self.places.uid
    }

    pub(super) fn failed(&self, step: &'static str, reason: &str, error: &dyn std::error::Error) -> Failure {
        self.shared.metrics.failures.with_label_values(&[step]).inc();
        Failure::new(reason, chain(error))
    }

    /// Volumes for a pod that is to start; `runs` where it may run already, so that ownership changes under nobody.
    pub(crate) async fn volumes(&self, runs: bool) -> Result<VolumePaths, Failure> {
        self.take_claims()?;
        let paths = self.refresh().await?;
        if runs {
            return Ok(paths);
        }
        let site = self.clone();
        blocking(move || site.share(&paths).map(|()| paths)).await
    }

    /// Gives the data of claims to the pod's group, where it has one.
    fn share(&self, paths: &VolumePaths) -> Result<(), Failure> {
        let context = self.pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
        let Some(group) = container::volume_group(&self.pod) else { return Ok(()) };
        let lazy = context.and_then(|context| context.fs_group_change_policy.as_deref()) == Some("OnRootMismatch");
        for volume in self.pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
            let claim = volume.persistent_volume_claim.as_ref().filter(|claim| claim.read_only != Some(true));
            if let Some(path) = claim.and_then(|_| paths.get(&volume.name)) {
                let shared = self.shared.volumes.share(path, group, lazy);
                shared.map_err(|error| self.failed("volumes", "FailedMount", &error))?;
            }
        }
        Ok(())
    }

    /// Volumes of a pod that runs, as they should be now.
    pub(crate) async fn refresh(&self) -> Result<VolumePaths, Failure> {
        let site = self.clone();
        blocking(move || site.volumes_now()).await
    }

    fn volumes_now(&self) -> Result<VolumePaths, Failure> {
        let objects = self.shared.objects();
        let configs = self.configs(&objects, None);
        let mut paths = VolumePaths::new();
        for volume in self.pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
            let path = self.volume(volume, &configs)?;
            paths.insert(volume.name.clone(), path);
        }
        Ok(paths)
    }

    /// What the pod's containers get; `addresses` once it has some.
    pub(super) fn configs<'a>(&'a self, objects: &'a Objects, addresses: Option<&'a Addresses>) -> Configs<'a> {
        let myself = Myself { pod: &self.pod, addresses, machine: &*self.shared.machine };
        Configs { objects, namespace: self.namespace(), myself }
    }

    fn failed_mount(&self, volume: &Volume, error: &VolumeError) -> Failure {
        let mut failure = self.failed("volumes", "FailedMount", error);
        failure.message = format!("volume {}: {}", volume.name, failure.message);
        failure
    }

    fn volume(&self, volume: &Volume, configs: &Configs<'_>) -> Result<PathBuf, Failure> {
        let (store, group) = (&self.shared.volumes, container::volume_group(&self.pod));
        let mount = |error: VolumeError| self.failed_mount(volume, &error);
        if let Some((files, secret)) = configs.files(volume)? {
            return store.project(self.uid(), &volume.name, &files, secret, group).map_err(mount);
        }
        if let Some(claim) = &volume.persistent_volume_claim {
            return self.claim(&claim.claim_name, configs).and_then(|(id, spec, status)| {
                let path = match self.tenure(&claim.claim_name, configs) {
                    Some(tenure) => {
                        let handed = store.ensure_claim_for(&id, &spec, tenure).map_err(mount)?;
                        self.tell_empty(&id, &handed);
                        handed.path
                    }
                    None => store.ensure_claim(&id, &spec).map_err(mount)?,
                };
                store.check_claim(&id, claim.read_only != Some(true)).map_err(mount)?;
                let key = ObjectKey::new(GroupKind::PERSISTENT_VOLUME_CLAIM, &id.namespace, &id.name);
                self.shared.reporter.status(&key, &id.uid.as_str().into(), &status, false);
                Ok(path)
            });
        }
        if let Some(source) = &volume.host_path {
            let failed = |error: HostPathError| self.failed("volumes", "FailedMount", &error);
            if self.is_guest() {
                return Err(failed(HostPathError::Guest(source.path.clone())));
            }
            let part = self.shared.host_paths.part(&source.path).map_err(failed)?;
            self.shared.host_paths.check(&part, source.type_.as_deref().unwrap_or_default()).map_err(failed)?;
            return Ok(part.given);
        }
        if mounts::memory(volume).is_some() {
            // The sandbox has it.
            return Ok(PathBuf::from(&volume.name));
        }
        if volume.empty_dir.is_some() {
            return store.empty_dir(self.uid(), &volume.name, group).map_err(mount);
        }
        Err(Failure::new("FailedMount", format!("volume {}: its kind is not supported by this device", volume.name)))
    }

    /// Why a claim of the running pod is not there any more as it was. What is wrong with its object is not looked at.
    pub(super) fn lost_claim(&self) -> Option<Failure> {
        let objects = self.shared.objects();
        let configs = self.configs(&objects, None);
        let mut volumes = self.pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
        volumes.find_map(|volume| {
            let claim = volume.persistent_volume_claim.as_ref()?;
            let (id, ..) = self.claim(&claim.claim_name, &configs).ok()?;
            let checked = self.shared.volumes.check_claim(&id, claim.read_only != Some(true));
            checked.err().map(|error| self.failed_mount(volume, &error))
        })
    }

    /// Waits, by failing, until no other pod has a claim of this one's.
    fn take_claims(&self) -> Result<(), Failure> {
        let claims: Vec<&str> = claims_of(&self.pod).collect();
        let taken = self.shared.claims.take(self.namespace(), &claims, &self.uid().into(), &self.places.pod);
        taken.map_err(|error| Failure::new("VolumeInUse", error.to_string()))
    }

    /// Which writer of a claim that moves this device is.
    fn tenure(&self, name: &str, configs: &Configs<'_>) -> Option<hearth_volume::Tenure> {
        let key = ObjectKey::new(GroupKind::PERSISTENT_VOLUME_CLAIM, self.namespace(), name);
        let value = configs.objects.get(&key)?.value();
        let tenure = Tenure::of_claim(&value)?;
        Some(hearth_volume::Tenure { epoch: tenure.epoch.0, before: tenure.before.map(|before| before.0) })
    }

    /// Says that a volume which moved here has nothing in it, and where this device has what it had of it long ago.
    fn tell_empty(&self, id: &ClaimId, handed: &hearth_volume::Handed) {
        let Some(aside) = &handed.began_empty else { return };
        let aside =
            aside.as_ref().map(|path| format!("; what this device had of it before is kept in {}", path.display()));
        let text = format!(
            "the volume moved here from a silent device and BEGINS EMPTY: the data of before is on that device{}",
            aside.unwrap_or_default()
        );
        let key = ObjectKey::new(GroupKind::PERSISTENT_VOLUME_CLAIM, &id.namespace, &id.name);
        tracing::warn!(claim = %key, "{text}");
        self.shared.reporter.event(
            (&key, &id.uid.as_str().into()),
            "Warning",
            "VolumeBeganEmpty",
            &text,
            self.shared.now(),
        );
    }

    fn claim(&self, name: &str, configs: &Configs<'_>) -> Result<(ClaimId, ClaimSpec, serde_json::Value), Failure> {
        let key = ObjectKey::new(GroupKind::PERSISTENT_VOLUME_CLAIM, self.namespace(), name);
        let missing = || Failure::new("FailedMount", format!("persistentvolumeclaim \"{name}\" not found"));
        let object = configs.objects.get(&key).ok_or_else(missing)?;
        let claim: PersistentVolumeClaim = object.view().map_err(|error| {
            Failure::new("FailedMount", format!("persistentvolumeclaim \"{name}\" cannot be read: {error}"))
        })?;
        if object.is_deleting() {
            let text = format!("persistentvolumeclaim \"{name}\" is being deleted");
            return Err(Failure::new("FailedMount", text));
        }
        let spec = claim.spec.unwrap_or_default();
        let requests = spec.resources.and_then(|resources| resources.requests).unwrap_or_default();
        let size = requests.get("storage").and_then(|size| quantity::bytes(&size.0).ok());
        let id = ClaimId {
            namespace: self.namespace().to_owned(),
            name: name.to_owned(),
            uid: object.uid().as_str().to_owned(),
        };
        let mut status = json!({"phase": "Bound", "accessModes": spec.access_modes.unwrap_or_default()});
        if let Some(size) = requests.get("storage") {
            status["capacity"] = json!({"storage": size.0});
        }
        Ok((id, ClaimSpec { size_bytes: size, mode: CLAIM_MODE }, status))
    }

    pub(crate) async fn network(&self, sandbox: Option<&hearth_runtime::Pod>) -> Result<PodNetwork, Failure> {
        let policy = self.policy()?;
        let network = &self.shared.network;
        let made = match sandbox {
            None => network.attach(self.uid(), &policy).await,
            Some(sandbox) => {
                let netns =
                    sandbox.netns().map_err(|error| self.failed("network", "FailedCreatePodSandBox", &error))?;
                network.adopt(self.uid(), netns, &policy).await
            }
        };
        made.map_err(|error| self.failed("network", "FailedCreatePodSandBox", &error))
    }

    /// The lease that the pod's shim keeps it to, where it has volumes that move.
    fn lease(&self) -> Result<Option<PodLease>, Failure> {
        let leased = leases::leased(&self.shared.objects(), self.namespace(), &self.pod);
        if leased.is_empty() {
            return Ok(None);
        }
        let over = || Failure::new("VolumeLease", "the lease of its volumes is over");
        let deadline = self.shared.leases.deadline(&leased).ok_or_else(over)?;
        Ok(Some(PodLease { of: leases::named(&leased), deadline }))
    }

    pub(crate) async fn sandbox(&self, network: PodNetwork) -> Result<hearth_runtime::Pod, Failure> {
        let failed = |error: &dyn std::error::Error| self.failed("sandbox", "FailedCreatePodSandBox", error);
        let (shared, uid) = (Arc::clone(&self.shared), self.uid().to_owned());
        let ids = blocking(move || shared.ids.of(&uid)).await.map_err(|error| failed(&error))?;
        let hostname = self.pod.spec.as_ref().and_then(|spec| spec.hostname.clone()).filter(|name| !name.is_empty());
        let hostname = hostname.unwrap_or_else(|| self.places.pod.clone());
        // The kernel takes 64 bytes (`__NEW_UTS_LEN`), and a label has 63.
        let hostname = crate::reporter::clip(&hostname, 63).trim_end_matches(['-', '.']).to_owned();
        let lease = self.lease()?;
        let PodNetwork { addresses, netns } = network;
        let (limits, group) = (container::pod_limits(&self.pod), container::volume_group(&self.pod));
        let sandbox = PodSandbox {
            uid: self.uid().to_owned(),
            namespace: self.namespace().to_owned(),
            name: self.places.pod.clone(),
            netns,
            id_map: ids,
            resolv_conf: container::resolv_conf(&addresses, self.namespace(), &self.pod),
            hosts: container::hosts(&hostname, &addresses),
            hostname,
            limits,
            guest: self.is_guest(),
            memory: mounts::memory_volumes(&self.pod, limits.memory_bytes, group),
            lease,
            share_processes: self.pod.spec.as_ref().and_then(|spec| spec.share_process_namespace) == Some(true),
        };
        let _slot = self.shared.slots.acquire().await;
        self.shared.runtime.create_pod(sandbox).await.map_err(|error| failed(&error))
    }

    pub(crate) async fn start(
        &self,
        sandbox: Option<hearth_runtime::Pod>,
        name: &str,
        attempt: u32,
        image: Option<Image>,
        given: Given,
    ) -> Result<ContainerStatus, StartFailure> {
        let (Some(sandbox), Some(image)) = (sandbox, image) else { return Err(StartFailure::SandboxGone) };
        let spec = self.container_spec(name, attempt, &image, &given).map_err(StartFailure::Config)?;
        let (logs, name_of_logs) = (self.places.logs(), name.to_owned());
        let _slot = self.shared.slots.acquire().await;
        let begin = std::time::Instant::now();
        let started = sandbox.start_container(spec).await;
        let label = if started.is_ok() { "started" } else { "failed" };
        self.shared.metrics.container_starts.with_label_values(&[label]).inc();
        if started.is_ok() {
            self.shared.metrics.container_start_seconds.observe(begin.elapsed().as_secs_f64());
            if attempt > 0 {
                self.shared.metrics.container_restarts.inc();
            }
        }
        blocking(move || crate::logs::prune(&logs.join(name_of_logs), attempt)).await;
        started.map_err(start_failure)
    }

    fn container_spec(
        &self,
        name: &str,
        attempt: u32,
        image: &Image,
        given: &Given,
    ) -> Result<hearth_runtime::ContainerSpec, Failure> {
        let found = container::named(&self.pod, name);
        let container =
            found.ok_or_else(|| Failure::new("CreateContainerConfigError", format!("no container {name}")))?;
        let objects = self.shared.objects();
        container::spec(&Ingredients {
            pod: &self.pod,
            container: &container,
            attempt,
            image,
            volumes: &given.volumes,
            configs: self.configs(&objects, given.addresses.as_ref()),
            places: &self.places,
            host_paths: &self.shared.host_paths,
        })
    }

    pub(crate) async fn remove(&self, sandbox: Option<hearth_runtime::Pod>, name: &str) -> Result<(), Failure> {
        if let Some(sandbox) = sandbox {
            match sandbox.remove_container(name).await {
                // Its layers are set aside and deleted by a process that nobody waits for; the rest goes with the pod.
                Ok(()) => return Ok(()),
                Err(RuntimeError::NoSuchContainer { .. } | RuntimeError::ShimGone { .. }) => {}
                Err(error) => return Err(self.failed("sandbox", "FailedRemoveContainer", &error)),
            }
        }
        let scratch = self.places.scratch().join(name);
        let removed = blocking(move || crate::files::remove(&scratch)).await;
        removed.map_err(|error| self.failed("sandbox", "FailedRemoveContainer", &error))
    }

    /// Removes what is left of a sandbox.
    pub(crate) async fn destroy(&self, sandbox: Option<hearth_runtime::Pod>) -> Result<(), Failure> {
        let failed = |error: &dyn std::error::Error| self.failed("sandbox", "FailedKillPod", error);
        let _slot = self.shared.slots.acquire().await;
        if let Some(sandbox) = sandbox {
            sandbox.destroy().await.map_err(|error| failed(&error))?;
        }
        self.shared.runtime.forget(self.uid()).await.map_err(|error| failed(&error))
    }

    /// Removes everything of the pod but its claims and logs.
    pub(crate) async fn tear_down(&self, sandbox: Option<hearth_runtime::Pod>) -> Result<(), Failure> {
        self.destroy(sandbox).await?;
        let failed = |error: &dyn std::error::Error| self.failed("sandbox", "FailedKillPod", error);
        self.shared.network.detach(self.uid()).await.map_err(|error| failed(&error))?;
        let site = self.clone();
        blocking(move || {
            let failed = |error: &dyn std::error::Error| site.failed("volumes", "FailedKillPod", error);
            site.shared.volumes.remove_pod(site.uid()).map_err(|error| failed(&error))?;
            site.shared.trash.notify_one();
            crate::files::remove(&site.places.scratch()).map_err(|error| failed(&error))?;
            // Last: as long as something of the pod is there, nobody else gets its ids.
            site.shared.ids.free(site.uid()).map_err(|error| failed(&error))
        })
        .await
    }
}

/// The pod's and the device's addresses, as a status has them.
pub(crate) fn addresses(addresses: &PodAddresses) -> Addresses {
    let text = |ips: Vec<std::net::IpAddr>| ips.iter().map(ToString::to_string).collect();
    Addresses { pod: text(container::pod_ips(addresses)), host: text(facts::host_ips()) }
}

fn start_failure(error: RuntimeError) -> StartFailure {
    let reason = match &error {
        RuntimeError::ShimGone { .. } | RuntimeError::Protocol { .. } => return StartFailure::SandboxGone,
        // Its other containers may run: it is not taken down for that.
        RuntimeError::Version { .. } => return StartFailure::Config(Failure::new("ShimVersion", chain(&error))),
        RuntimeError::Start(StartError::NoSuchFile { .. } | StartError::NotExecutable { .. }) => "ContainerCannotRun",
        RuntimeError::Start(StartError::OutOfMemory) => "OOMKilled",
        // As the kubelet has it: nothing was started, what is in the volume may change, and the container whose processes this one is to see
        // has just ended and may run again.
        RuntimeError::Start(StartError::SubPath { .. } | StartError::NotRunning { .. }) => {
            return StartFailure::Config(Failure::new("CreateContainerConfigError", chain(&error)));
        }
        RuntimeError::Start(_) => "StartError",
        _ => "RunContainerError",
    };
    StartFailure::Run(Failure::new(reason, chain(&error)))
}
