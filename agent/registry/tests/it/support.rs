//! What the tests share: pulls with small limits, and what is left in a layout.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use hearth_image::{Digest, ImageRecord, ImageStore, ImportOptions, Platform};
use hearth_registry::{Config, Credentials, Progress, PullError, PullLimits, Pulled, Puller};

/// How long any pull of a test may take: it would otherwise wait for ever for what never comes.
const PULL: Duration = Duration::from_secs(60);

pub(crate) fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| {
        panic!("{program}: {error}: scripts/deps.sh test installs it");
    });
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {stderr}");
}

/// Limits that end a test soon.
pub(crate) fn limits() -> PullLimits {
    PullLimits {
        connect: Duration::from_secs(5),
        headers: Duration::from_secs(5),
        idle: Duration::from_secs(5),
        tries: 3,
        backoff: Duration::from_millis(1),
        max_backoff: Duration::from_millis(5),
        ..PullLimits::default()
    }
}

/// A configuration under which `hosts` may be spoken to in plain HTTP.
pub(crate) fn insecure(hosts: &[&str]) -> Config {
    Config { insecure: hosts.iter().map(|host| (*host).to_owned()).collect(), limits: limits(), ..Config::default() }
}

pub(crate) fn amd64() -> Platform {
    Platform::linux("amd64")
}

/// A pull secret for `host`.
pub(crate) fn login(host: &str, username: &str, password: &str) -> Credentials {
    let file = serde_json::json!({"auths": {host: {"username": username, "password": password}}});
    Credentials::from_docker_config_json(file.to_string().as_bytes()).unwrap()
}

/// Pulls for linux/amd64, with nothing on the device.
pub(crate) async fn pull(puller: &Puller, name: &str, layout: &Path) -> Result<Pulled, PullError> {
    pull_with(puller, name, layout, &Credentials::anonymous()).await
}

pub(crate) async fn pull_with(
    puller: &Puller,
    name: &str,
    layout: &Path,
    credentials: &Credentials,
) -> Result<Pulled, PullError> {
    let (reference, platform, progress) = (name.parse().unwrap(), amd64(), Progress::default());
    let none = |diff_ids: &[Digest]| vec![false; diff_ids.len()];
    let pull = puller.pull(&reference, &platform, credentials, layout, &none, &progress);
    tokio::time::timeout(PULL, pull).await.expect("the pull ends")
}

/// Imports a layout into a new store beside it.
pub(crate) fn import(layout: &Path, name: Option<&str>) -> ImageRecord {
    let store = ImageStore::open(&layout.with_extension("store")).unwrap();
    let options = ImportOptions { name: name.map(Into::into), platform: amd64(), ..ImportOptions::default() };
    let mut records = store.import(layout, &options).unwrap();
    assert_eq!(records.len(), 1);
    records.remove(0)
}

/// Whatever has the name of a blob is that blob.
pub(crate) fn assert_blobs_are_whole(layout: &Path) {
    let Ok(entries) = fs::read_dir(layout.join("blobs/sha256")) else { return };
    for entry in entries {
        let entry = entry.unwrap();
        let digest = Digest::of(&fs::read(entry.path()).unwrap());
        assert_eq!(digest.hex(), entry.file_name().to_str().unwrap());
    }
}
