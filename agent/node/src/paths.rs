//! What lies where below the data directory.

use std::path::{Path, PathBuf};

/// The agent's part of a data directory.
#[derive(Clone, Debug)]
pub struct Paths {
    root: PathBuf,
}

macro_rules! paths {
    ($($(#[$doc:meta])* $name:ident = $path:literal),* $(,)?) => {
        impl Paths {
            $($(#[$doc])* pub fn $name(&self) -> PathBuf { self.root.join($path) })*
        }
    };
}

paths! {
    /// Who this device is: see [`crate::Identity`].
    identity = "identity.json",
    /// The seed of its Ed25519 key, mode 0600.
    seed = "device.key",
    /// The region's servers, as it last told.
    servers = "servers.json",
    /// What the region last said should run.
    desired = "desired.json",
    /// In which start of the machine its clock was seen to be right.
    clock = "clock.json",
    /// The region's recovery key, and the region's CA since it was recovered.
    recovery = "recovery.json",
    /// Signed copies of the owner's objects.
    copies = "copies.json",
    /// Copies that a recovered region refused.
    copies_refused = "copies.refused.json",
    /// What the agent knows of its pods beyond what runs.
    pods = "pods",
    /// Which user ids each pod has on the host.
    ids = "ids.json",
    /// Sockets, exit files and records of the runtime.
    run = "run",
    /// Which directories that are given to apps are on disks of their own.
    host_paths = "host-paths.json",
    /// Unpacked images.
    images = "images",
    /// Which owners were given which images by registries.
    image_access = "image-access.json",
    /// Downloads of images that are under way or were broken off.
    pulls = "pulls",
    /// Claims and other volumes.
    volumes = "volumes",
    /// Prefixes and addresses of the pod network.
    network = "network",
    /// Writable layers of containers.
    scratch = "scratch",
    /// Logs of containers.
    logs = "logs",
    /// Keys and certificates of the ingress, mode 0700.
    ingress = "ingress",
}

impl Paths {
    /// The agent's part of `data_dir`.
    pub fn new(data_dir: &Path) -> Self {
        Self { root: data_dir.join("agent") }
    }

    /// What the owner says of registries: `<data-dir>/registries.yaml`.
    pub fn registries(&self) -> PathBuf {
        self.root.with_file_name("registries.yaml")
    }

    /// What the owner says of when their device counts as short of something: `<data-dir>/eviction.yaml`.
    pub fn eviction(&self) -> PathBuf {
        self.root.with_file_name("eviction.yaml")
    }

    /// `<data-dir>/agent` itself.
    pub fn root(&self) -> &Path {
        &self.root
    }
}
