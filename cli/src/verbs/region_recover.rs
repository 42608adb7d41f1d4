//! `region recovery-key` and `region recover`: what an operator does before, and on the day, on which a region has lost everything.

use std::{
    fs::{self, OpenOptions},
    io::{Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use hearth_api::CertificateAuthority;
use hearth_raft::{Backup, Keys, Owner};
use hearth_types::{
    Incarnation, Object, Timestamp,
    recovery::{Digest, MAX_KEY_FILE_BYTES, PublicKey, Record, RecoveryKey, Rotation, SigningKey, Statement, Trust},
};
use ring::rand::{SecureRandom as _, SystemRandom};
use serde_json::json;

use super::region::{exists, lock, prepare, rename};
use crate::{
    args::{RegionRecover, RegionRecoveryKey},
    context::{Context, now, refusal},
    data_dir::DataDir,
    output,
    roles::SystemClock,
};

/// The folder in a data directory in which a recovery is prepared.
const PREPARED: &str = "server.recovering";

/// Makes a recovery key, or the successor of one.
pub(crate) async fn key(context: &Context, args: &RegionRecoveryKey) -> Result<()> {
    let client = context.client()?;
    let region = client.describe_recovery().await.map_err(|status| refusal(&status))?;
    let signing_key =
        region.signing_key.as_ref().try_into().map(PublicKey).ok().context("the region's signing key is none")?;
    let present = match region.trust_json.as_ref() {
        [] => None,
        json => Some(Trust::from_json(json).context("the region's recovery key cannot be read")?),
    };
    let rotations = match (&args.rotate, &present) {
        (None, None) => None,
        (None, Some(present)) => anyhow::bail!(
            "the region has the recovery key {} already; to replace it by another, pass --rotate FILE with the file of that key",
            present.key
        ),
        (Some(_), None) => anyhow::bail!("the region has no recovery key that could be rotated; leave --rotate away"),
        (Some(file), Some(present)) => {
            let old = read_key(file)?;
            ensure!(
                old.key.public() == present.key,
                "{} holds the key {}, and the region's recovery key is {}",
                file.display(),
                old.key.public(),
                present.key
            );
            Some(old)
        }
    };
    let mut seed = [0; 32];
    SystemRandom::new().fill(&mut seed).map_err(|_| anyhow!("the system gives no random bytes"))?;
    let new = SigningKey::from_seed(&seed);
    let rotations: Vec<Rotation> = rotations.map_or_else(Vec::new, |old| {
        let last = Rotation::new(&old.key, new.public());
        old.rotations.into_iter().chain([last]).collect()
    });
    let text = RecoveryKey::to_text(&seed, &rotations, &region.region, &region.zone);
    // From the text: what was written is what can be read on the day.
    let key = RecoveryKey::from_text(&text)?;
    let trust = key.trust(&region.region, &region.zone, signing_key);
    // The file first: a region whose recovery key nobody has could never get another one.
    write_new(&args.out, text.as_bytes())?;
    if let Err(status) = client.set_recovery_key(trust.to_json()).await {
        output::note(&format!(
            "the region did not take the key; {} holds a key that may be of no use",
            args.out.display()
        ));
        return Err(refusal(&status));
    }
    output::line(&format!("{}: the recovery key {} of the region {}", args.out.display(), new.public(), region.region));
    output::note(
        "Whoever has this file can take over the region's devices, and without it a region that lost all its disks stays lost. Move it to two places \
         that are offline, and delete it here. Devices pin the key when they connect next.",
    );
    if args.rotate.is_some() {
        output::note(
            "The key before counts for devices only until they have connected once. Keep it until all have; copies of a device that has not \
             connected since cannot be used for a recovery.",
        );
    }
    Ok(())
}

fn read_key(path: &Path) -> Result<RecoveryKey> {
    let file = fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut text = String::new();
    let limit = MAX_KEY_FILE_BYTES as u64 + 1;
    file.take(limit).read_to_string(&mut text).with_context(|| format!("cannot read {}", path.display()))?;
    RecoveryKey::from_text(&text).map_err(|error| anyhow!("{}: {error}", path.display()))
}

/// Writes a file that must not be there; durable, and for its owner alone.
fn write_new(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        fs::File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
    };
    write().with_context(|| format!("cannot write {} (it must not be there yet)", path.display()))
}

/// Makes a region anew, or ends its recovery.
pub(crate) async fn recover(context: &Context, args: &RegionRecover) -> Result<()> {
    if args.finish {
        context.client()?.finish_recovery().await.map_err(|status| refusal(&status))?;
        output::line("the recovery is finished: devices hand in no more");
        return Ok(());
    }
    let missing = || anyhow!("--recovery-key, --region and --zone are needed");
    let (Some(file), Some(region), Some(zone)) = (&args.recovery_key, &args.region, &args.zone) else {
        return Err(missing());
    };
    hearth_types::names::dns_subdomain(zone).map_err(|why| anyhow!("--zone {zone:?}: {why}"))?;
    let key = read_key(file)?;
    let now = now();
    let generation = match args.generation {
        Some(generation) => generation,
        // Higher than that of any recovery before, which nobody here remembers, as long as clocks go forward.
        None => u64::try_from(now.0 / 1_000).ok().filter(|seconds| *seconds > 0).context(
            "this machine's clock is not set; set it, or pass --generation with a number that is higher than at any recovery before",
        )?,
    };
    ensure!(generation > 0, "--generation must be at least 1: a region that was never recovered has 0");
    let data = DataDir::create(&args.dir.data_dir)?;
    let _lock = lock(&data, "choose another --data-dir")?;
    ensure!(
        !hearth_raft::exists(&data.server()),
        "there is a region in {}: a recovery begins in a new --data-dir, and is for a region of which nothing is left; from a backup, use \
         `hearth region restore`",
        data.server().display()
    );
    let accept = Duration::from_secs(u64::from(args.accept_days) * 86_400);
    let made = Made { key, region: region.clone(), zone: zone.clone(), generation, accept_until: now.plus(accept) };
    let prepared = data.root().join(PREPARED);
    let signed = made.prepare(&prepared, now).await?;
    if exists(&data.server())? {
        fs::remove_dir(data.server())
            .with_context(|| format!("cannot remove the empty {}", data.server().display()))?;
    }
    rename(&prepared, &data.server())?;
    fs::File::open(data.root()).and_then(|root| root.sync_all()).context("cannot make the recovery durable")?;
    output::line(&format!(
        "made the region {region} (zone {zone}) anew, at generation {generation}, under the recovery key {signed}"
    ));
    output::note(&format!(
        "start it at an address of one of the servers before with: hearth server --data-dir {} --region {region} --zone {zone}",
        data.root().display()
    ));
    output::note(
        "stop what may be left of those servers: they cannot come back. For several servers have others join, with an empty data directory each \
         (hearth token create --server)",
    );
    output::note(&format!(
        "devices that come back hand in what they have, for {} days or until `hearth region recover --finish`; clients need the new client.yaml",
        args.accept_days
    ));
    Ok(())
}

/// A region that is made anew.
struct Made {
    key: RecoveryKey,
    region: String,
    zone: String,
    generation: u64,
    accept_until: Timestamp,
}

impl Made {
    /// Makes the server's folder under another name, durable on return; returns the recovery key.
    async fn prepare(self, folder: &PathBuf, now: Timestamp) -> Result<PublicKey> {
        if exists(folder)? {
            // Of a recovery that was interrupted: nothing else has this name.
            fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
        }
        // Beside the folder, which is made with the files of the CA as of a backup.
        let keys = folder.with_extension("ca");
        let ca = CertificateAuthority::load_or_create(&keys, &self.zone, Arc::new(SystemClock))?;
        let ca_key = fs::read_to_string(keys.join("ca.key")).context("cannot read the new CA's key")?;
        let incarnation = Incarnation::from(uuid::Uuid::new_v4().to_string());
        let (region, zone) = (self.region.as_str(), self.zone.as_str());
        let digest = Digest::of(ca.certificate());
        let statement =
            Statement::new(&self.key.key, (region, zone), self.generation, incarnation.clone(), digest, now);
        let record = Record {
            trust: self.key.trust(region, zone, ca.signing_key().public()),
            recovered: Some((statement, ca.pem().to_owned())),
            accept_until: self.accept_until,
        };
        let mut object = record.write(None);
        object["metadata"]["uid"] = json!(uuid::Uuid::new_v4().to_string());
        object["metadata"]["creationTimestamp"] = json!(now.seconds().to_string());
        let keys_of_region = Keys { ca_key, ca_certificate: ca.pem().to_owned(), tunnel_key: None };
        let owner = Owner { region: self.region, zone: self.zone, keys: keys_of_region };
        let empty = Backup::of_nothing(owner, incarnation, vec![Object::from_value(object)?], now)
            .map_err(|error| anyhow!("cannot make the region's first state: {error}"))?;
        prepare(folder, &empty).await?;
        fs::remove_dir_all(&keys).with_context(|| format!("cannot remove {}", keys.display()))?;
        Ok(self.key.key.public())
    }
}
