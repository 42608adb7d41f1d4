//! `region`: backups, and what is restored from them.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use futures_util::StreamExt as _;
use hearth_raft::{Backup, BackupHead, Owner};
use hearth_types::quantity::format_bytes;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde_json::{Value, json};

use crate::{
    args::{Output, RegionBackup, RegionInspect, RegionRestore},
    context::{Context, now, refusal},
    data_dir::{DataDir, Lock, Role},
    output::{self, table},
    region_files,
};

/// The folder in a data directory in which a restore is prepared.
const PREPARED: &str = "server.restoring";

/// Writes a backup.
pub(crate) async fn backup(context: &Context, args: &RegionBackup) -> Result<()> {
    // Before anything is asked: it may take a while.
    if !args.force {
        ensure!(!exists(&args.file)?, "{} exists already; choose another name, or pass --force", args.file.display());
    }
    let mut target = Target::create(&args.file)?;
    match &args.data_dir {
        None => {
            let mut chunks = context.client()?.backup().await.map_err(|status| refusal(&status))?;
            while let Some(chunk) = chunks.next().await {
                target.write(&chunk.map_err(|status| refusal(&status))?)?;
            }
        }
        Some(dir) => {
            let backup = of_stopped(&DataDir::existing(dir)?).await?;
            let path = target.temporary.clone();
            backup.write(&mut target.file).with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    // From the disk: what was written is what is checked.
    let backup = read(&target.temporary)?;
    let size = target.finish(args.force)?;
    output::line(&format!("{}: {}", args.file.display(), described(backup.head(), size)));
    output::note(
        "The file holds the key of the region's CA and all Secrets: whoever has it can be the region. Keep it as you keep a key.",
    );
    Ok(())
}

async fn of_stopped(data: &DataDir) -> Result<Backup> {
    ensure!(hearth_raft::exists(&data.raft()), "there is no region in {}", data.root().display());
    let _lock = lock(data, "back up the running region: leave --data-dir away")?;
    // The store says what the region is called, the files beside it everything else.
    let files = region_files::owner(data, "")?;
    Ok(hearth_raft::read_stopped(&data.raft(), |region| Owner { region, ..files }, now()).await?)
}

/// The locks of a server that does not run.
pub(super) fn lock(data: &DataDir, instead: &str) -> Result<Lock> {
    ensure!(
        !data.is_locked(Role::Up),
        "hearth up is running for the data directory {0}: stop it with `hearth down --data-dir {0}`, or {instead}",
        data.root().display()
    );
    data.lock(Role::Server).with_context(|| format!("the server must not run; stop it, or {instead}"))
}

pub(super) fn exists(path: &Path) -> Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot look at {}", path.display())),
    }
}

/// A file that gets its name once it is whole; what is not finished is removed.
struct Target {
    path: PathBuf,
    temporary: PathBuf,
    file: File,
}

impl Target {
    fn create(path: &Path) -> Result<Self> {
        let name = path.file_name().with_context(|| format!("{}: must name a file", path.display()))?;
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}.partial", std::process::id()));
        let temporary = path.with_file_name(hidden);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary);
        let file = file.with_context(|| format!("cannot make {}", temporary.display()))?;
        Ok(Self { path: path.to_owned(), temporary, file })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).with_context(|| format!("cannot write {}", self.temporary.display()))
    }

    /// Gives it its name; durable on return. Returns its size.
    fn finish(self, replace: bool) -> Result<u64> {
        let named = || {
            self.file.sync_all()?;
            // Somebody may have made one of the name meanwhile.
            let flags = if replace { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
            renameat_with(CWD, &self.temporary, CWD, &self.path, flags)?;
            let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
            File::open(parent.unwrap_or(Path::new(".")))?.sync_all()?;
            Ok::<_, io::Error>(self.file.metadata()?.len())
        };
        named().with_context(|| format!("cannot write {}", self.path.display()))
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // After a rename there is none.
        let _ = fs::remove_file(&self.temporary);
    }
}

/// Reads a backup and checks it, whole.
fn read(path: &Path) -> Result<Backup> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Backup::read(&bytes).map_err(|error| anyhow::anyhow!("the backup {} cannot be used: {error}", path.display()))
}

fn described(head: &BackupHead, size: u64) -> String {
    format!(
        "region {} (zone {}) at revision {}, {} objects, {}, taken at {}",
        head.region,
        head.zone,
        head.revision,
        head.objects,
        format_bytes(size.div_ceil(1 << 10) << 10),
        head.taken.seconds()
    )
}

/// Makes a region of a backup.
pub(crate) async fn restore(args: &RegionRestore) -> Result<()> {
    let backup = read(&args.file)?;
    let head = backup.head();
    fits(head, args)?;
    let data = DataDir::create(&args.dir.data_dir)?;
    let _lock = lock(&data, "choose another --data-dir")?;
    let server = data.server();
    let occupied = hearth_raft::exists(&server);
    if occupied {
        ensure!(
            args.force,
            "there is a region in {} already; pass --force to move it aside, or choose another --data-dir",
            server.display()
        );
        same_zone(&server, head)?;
    }
    let prepared = data.root().join(PREPARED);
    prepare(&prepared, &backup).await?;
    if occupied {
        let aside = data.root().join(format!("server.replaced-{}", now().0 / 1_000));
        ensure!(!exists(&aside)?, "{} exists already; try again in a second", aside.display());
        rename(&server, &aside)?;
        output::note(&format!("moved the region that was there to {}; remove it when you are sure", aside.display()));
    } else if exists(&server)? {
        fs::remove_dir(&server).with_context(|| format!("cannot remove the empty {}", server.display()))?;
    }
    rename(&prepared, &server)?;
    File::open(data.root()).and_then(|root| root.sync_all()).context("cannot make the restore durable")?;
    let size = fs::metadata(&args.file).map_or(0, |found| found.len());
    output::line(&format!("restored {}", described(head, size)));
    output::note(&format!(
        "start it with: hearth server --data-dir {} --region {} --zone {}",
        data.root().display(),
        head.region,
        head.zone
    ));
    Ok(())
}

fn fits(head: &BackupHead, args: &RegionRestore) -> Result<()> {
    for (what, found, wanted) in [("region", &head.region, &args.region), ("zone", &head.zone, &args.zone)] {
        if let Some(wanted) = wanted.as_ref().filter(|wanted| *wanted != found) {
            bail!("the backup {} is of the {what} {found:?}, not of {wanted:?}", args.file.display());
        }
    }
    Ok(())
}

/// Names and certificates hang on the zone: another region is not put in the place of one.
fn same_zone(server: &Path, head: &BackupHead) -> Result<()> {
    let path = server.join("zone");
    match fs::read_to_string(&path) {
        Ok(zone) if zone.trim() != head.zone => bail!(
            "the region in {} has the zone {:?}, and the backup is of the zone {:?}: it is another region; choose another --data-dir",
            server.display(),
            zone.trim(),
            head.zone
        ),
        // A region that lost even that.
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot read {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Makes the server's folder under another name, durable on return.
pub(super) async fn prepare(folder: &Path, backup: &Backup) -> Result<()> {
    if exists(folder)? {
        // Of a restore that was interrupted: nothing else has this name.
        fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    fs::create_dir(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    region_files::write(folder, &backup.head().zone, backup.keys())?;
    hearth_raft::restore(&folder.join("raft"), backup, now()).await.context("cannot restore the region")?;
    Ok(())
}

pub(super) fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).with_context(|| format!("cannot rename {} to {}", from.display(), to.display()))
}

/// Shows what a backup holds.
pub(crate) fn inspect(args: &RegionInspect) -> Result<()> {
    let backup = read(&args.file)?;
    let kinds: Vec<_> = backup.kinds().into_iter().map(|(kind, count)| (kind.to_string(), count)).collect();
    if let Some(output @ (Output::Json | Output::Yaml)) = args.output {
        return output::documents(&[as_json(backup.head(), &kinds)?], false, output);
    }
    let head = backup.head();
    let rows = [
        ("Region", head.region.clone()),
        ("Zone", head.zone.clone()),
        ("Incarnation", head.incarnation.to_string()),
        ("Revision", head.revision.to_string()),
        ("Feature level", head.feature_level.to_string()),
        ("Taken", head.taken.seconds().to_string()),
        ("CA (SHA-256)", head.ca_sha256.clone()),
        ("Objects", head.objects.to_string()),
    ];
    let mut rows: Vec<_> =
        rows.into_iter().map(|(name, value)| vec![format!("{name}:"), table::one_line(&value)]).collect();
    rows.extend(kinds.into_iter().map(|(kind, count)| vec![format!("  {kind}"), count.to_string()]));
    output::lines(&table::layout(&rows));
    Ok(())
}

fn as_json(head: &BackupHead, kinds: &[(String, usize)]) -> Result<Value> {
    let mut value = serde_json::to_value(head)?;
    value["taken"] = json!(head.taken.seconds().to_string());
    value["kinds"] =
        kinds.iter().map(|(kind, count)| (kind.clone(), json!(count))).collect::<serde_json::Map<_, _>>().into();
    Ok(value)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use hearth_raft::{Keys, RaftConfig, RaftStore};
    use hearth_types::store::Store as _;

    use super::*;
    use crate::{args::InDataDir, roles::SystemClock};

    const ZONE: &str = "hearth.internal";

    /// A data directory with a stopped region in it, as a server leaves it.
    async fn stopped(root: &Path) -> DataDir {
        let data = DataDir::create(root).expect("a data directory");
        fs::create_dir_all(data.server()).expect("made");
        let keys = Keys { ca_key: "KEY".into(), ca_certificate: "CERT".into(), tunnel_key: Some(vec![1; 32]) };
        region_files::write(&data.server(), ZONE, &keys).expect("written");
        let clock = Arc::new(SystemClock);
        let store = RaftStore::open(RaftConfig::new(data.raft(), 1, "home"), &prometheus::Registry::new(), clock).await;
        store.expect("opens").shutdown().await.expect("closes");
        data
    }

    async fn back_up(data: &DataDir, file: &Path, force: bool) -> Result<()> {
        let args = RegionBackup { file: file.to_owned(), data_dir: Some(data.root().to_owned()), force };
        backup(&Context::new(Some("/nonexistent".into()), None), &args).await
    }

    fn restoring(file: &Path, to: &Path) -> RegionRestore {
        let dir = InDataDir { data_dir: to.to_owned() };
        RegionRestore { file: file.to_owned(), dir, region: None, zone: None, force: false }
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).expect("listed");
        let mut names: Vec<_> =
            entries.map(|one| one.expect("an entry").file_name().into_string().expect("text")).collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn a_backup_is_for_its_owner_alone_and_replaces_nothing_by_itself() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().expect("a directory");
        let data = stopped(&dir.path().join("data")).await;
        let out = dir.path().join("out");
        fs::create_dir(&out).expect("made");
        let file = out.join("region.backup");
        back_up(&data, &file, false).await.expect("written");
        assert_eq!(fs::metadata(&file).expect("there").permissions().mode() & 0o777, 0o600);
        fs::write(&file, "mine").expect("written");
        let error = back_up(&data, &file, false).await.expect_err("it is there").to_string();
        assert!(error.contains("--force"), "{error}");
        assert_eq!(fs::read_to_string(&file).expect("read"), "mine");
        // Somebody made one of the name while this one was written.
        let late = Target::create(&file).expect("made").finish(false).expect_err("it is there");
        assert!(late.to_string().contains("region.backup"), "{late}");
        assert_eq!(fs::read_to_string(&file).expect("read"), "mine");
        let lock = data.lock(Role::Server).expect("free");
        let error = format!("{:#}", back_up(&data, &file, true).await.expect_err("it runs"));
        assert!(error.contains("leave --data-dir away"), "{error}");
        drop(lock);
        back_up(&data, &file, true).await.expect("replaced");
        assert_eq!(read(&file).expect("intact").head().zone, ZONE);
        assert_eq!(names(&out), ["region.backup"], "nothing unfinished is left");
    }

    #[tokio::test]
    async fn a_restore_takes_no_place_that_is_taken_or_another_regions() {
        let dir = tempfile::tempdir().expect("a directory");
        let data = stopped(&dir.path().join("data")).await;
        let file = dir.path().join("region.backup");
        back_up(&data, &file, false).await.expect("written");
        let target = dir.path().join("target");
        let mut args = restoring(&file, &target);
        for (region, zone) in [(Some("office"), None), (None, Some("other.internal"))] {
            (args.region, args.zone) = (region.map(Into::into), zone.map(Into::into));
            let error = restore(&args).await.expect_err("another").to_string();
            assert!(error.contains("not of"), "{error}");
        }
        assert!(!target.exists(), "nothing is made before that");
        (args.region, args.zone) = (Some("home".into()), Some(ZONE.into()));
        // What a restore that was interrupted left is made anew.
        fs::create_dir_all(target.join(PREPARED).join("raft")).expect("made");
        fs::write(target.join(PREPARED).join("raft/identity"), "half").expect("written");
        restore(&args).await.expect("restored");
        let server = target.join("server");
        let (was, is) = (data.server(), &server);
        for name in ["zone", "ca/ca.key", "ca/ca.pem", "tunnel.key"] {
            assert_eq!(fs::read(was.join(name)).expect("read"), fs::read(is.join(name)).expect("read"), "{name}");
        }
        let identity = fs::read(server.join("raft/identity")).expect("read");

        let error = restore(&args).await.expect_err("taken").to_string();
        assert!(error.contains("--force"), "{error}");
        args.force = true;
        fs::write(server.join("zone"), "other.internal").expect("written");
        let error = restore(&args).await.expect_err("another region").to_string();
        assert!(error.contains("another region"), "{error}");
        fs::write(server.join("zone"), ZONE).expect("written");
        let lock = DataDir::existing(&target).expect("there").lock(Role::Server).expect("free");
        restore(&args).await.expect_err("it runs");
        drop(lock);
        restore(&args).await.expect("restored");
        let aside = names(&target).into_iter().find(|name| name.starts_with("server.replaced-")).expect("moved aside");
        assert_eq!(fs::read(target.join(aside).join("raft/identity")).expect("read"), identity);
        assert!(!target.join(PREPARED).exists());
        let clock = Arc::new(SystemClock);
        let (config, registry) = (RaftConfig::new(server.join("raft"), 1, "home"), prometheus::Registry::new());
        let store = RaftStore::open(config, &registry, clock).await.expect("opens");
        assert_eq!(store.incarnation(), read(&file).expect("intact").head().incarnation);
        store.shutdown().await.expect("closes");
    }
}
