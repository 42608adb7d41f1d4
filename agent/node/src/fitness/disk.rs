//! The file system that holds, or is to hold, a device's data.

use std::{
    fs, io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use hearth_pod::pressure::ENOUGH;
use rustix::fs::{StatVfsMountFlags, statfs, statvfs};

use super::{Area, Finding};

/// What the agent keeps free for its own records, and some room for an image.
const LITTLE: u64 = 2 << 30;
/// Less than this, and not even the records of a device are safe.
const TOO_LITTLE: u64 = 64 << 20;
/// The part of a disk, as one in so many, below which the device counts as short of it, unless [`ENOUGH`] is free: the default of `nodefs.available`.
const PRESSED: u64 = 10;
/// Inodes that an image of a Linux distribution takes, twice.
const FEW_INODES: u64 = 100_000;
/// A sync that takes longer is that of a worn or very slow card.
const SLOW_SYNC: Duration = Duration::from_millis(100);
/// Syncs that are tried; the median counts.
const SYNCS: usize = 5;

/// What was seen of a file system.
#[derive(Clone, Debug)]
pub(super) struct Disk {
    /// The directory that was looked at: the data's, or the nearest above it that is there.
    at: PathBuf,
    kind: u64,
    read_only: bool,
    free: u64,
    total: u64,
    /// Free inodes; `None` where the file system has no bound of its own.
    inodes: Option<u64>,
    /// How long a sync took, or why it could not be tried.
    sync: Result<Duration, String>,
}

/// Looks at the file system below a directory, which need not be there.
pub(super) fn look(data: &Path) -> Result<Disk, String> {
    let at = data.ancestors().find(|path| path.is_dir()).ok_or("no directory above it is there")?.to_owned();
    let failed = |error: rustix::io::Errno| format!("{}: {error}", at.display());
    let (kind, stat) = (statfs(&at).map_err(failed)?, statvfs(&at).map_err(failed)?);
    Ok(Disk {
        kind: u64::from((kind.f_type as u64) as u32),
        read_only: stat.f_flag.contains(StatVfsMountFlags::RDONLY),
        free: stat.f_bavail * stat.f_frsize,
        total: stat.f_blocks * stat.f_frsize,
        inodes: (stat.f_files > 0).then_some(stat.f_favail),
        sync: try_sync(&at).map_err(|error| error.to_string()),
        at,
    })
}

/// Writes and syncs a small file, which is gone afterwards.
fn try_sync(at: &Path) -> io::Result<Duration> {
    let path = at.join(format!(".hearth-check-{}", std::process::id()));
    let file = fs::File::options().write(true).create_new(true).mode(0o600).open(&path)?;
    // It has no name from here on, whatever happens.
    fs::remove_file(&path)?;
    let mut took = Vec::with_capacity(SYNCS);
    for number in 0..SYNCS {
        let begin = Instant::now();
        std::os::unix::fs::FileExt::write_all_at(&file, &[1; 4_096], number as u64 * 4_096)?;
        file.sync_data()?;
        took.push(begin.elapsed());
    }
    took.sort_unstable();
    Ok(took[SYNCS / 2])
}

/// What a kind of file system is called, and why it is unfit, if it is (magic numbers of statfs(2)).
fn kind(magic: u64) -> (&'static str, Option<Unfit>) {
    match magic {
        0xEF53 => ("ext4", None),
        0x5846_5342 => ("xfs", None),
        0x9123_683E => ("btrfs", None),
        0xF2F5_2010 => ("f2fs", None),
        0x2FC1_2FC1 => ("zfs", None),
        0xCA45_1A4E => ("bcachefs", None),
        0x794C_7630 => ("overlayfs", Some(Unfit::Stacked)),
        0x0102_1994 | 0x8584_58F6 => ("memory", Some(Unfit::Lost)),
        0x6969 => ("NFS", Some(Unfit::Foreign)),
        0xFF53_4D42 | 0xFE53_4D42 | 0x517B => ("SMB", Some(Unfit::Foreign)),
        0x6573_5546 => ("FUSE", Some(Unfit::Foreign)),
        0x4D44 | 0x2011_BAB0 | 0x5346_544E | 0x7366_746E => ("one of Windows'", Some(Unfit::Foreign)),
        _ => ("one that Hearth does not know", None),
    }
}

/// Why a file system is no place for a device's data.
enum Unfit {
    /// It is gone after a power cut.
    Lost,
    /// It keeps no owners of files, or does not say when something is durable.
    Foreign,
    /// It cannot hold the layers of images.
    Stacked,
}

fn size(bytes: u64) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    if mib >= 1_024.0 { format!("{:.1} GiB", mib / 1_024.0) } else { format!("{mib:.1} MiB") }
}

pub(super) fn judge(disk: &Result<Disk, String>) -> Vec<Finding> {
    let disk = match disk {
        Ok(disk) => disk,
        Err(why) => {
            let what = format!("the place for the data cannot be looked at: {why}");
            return vec![Finding::lacks(
                Area::Disk,
                what,
                "give a directory on a disk of this machine with --data-dir",
            )];
        }
    };
    let at = disk.at.display();
    let (name, unfit) = kind(disk.kind);
    let move_on = "give a directory on ext4, xfs or btrfs with --data-dir";
    let mut findings = vec![match unfit {
        None => Finding::fine(Area::Disk, format!("{at} is on a file system of the kind {name}")),
        Some(Unfit::Lost) => {
            Finding::lacks(Area::Disk, format!("{at} is in memory: all data would be gone after a restart"), move_on)
        }
        Some(Unfit::Stacked) => Finding::poor(
            Area::Disk,
            format!("{at} is on overlayfs, as in a container: images cannot be mounted from it on most kernels"),
            move_on,
        ),
        Some(Unfit::Foreign) => Finding::lacks(
            Area::Disk,
            format!(
                "{at} is on a file system of the kind {name}: it keeps no owners of files, or does not say when data is safe"
            ),
            move_on,
        ),
    }];
    if disk.read_only {
        let advice = "mount it for writing; a disk that became read-only by itself is failing: look at dmesg, and copy what is on it";
        findings.push(Finding::lacks(Area::Disk, format!("{at} is mounted read-only"), advice));
        return findings;
    }
    let room = "make room, or give a directory on a larger disk with --data-dir";
    findings.push(match disk.free {
        free if free < TOO_LITTLE => {
            Finding::lacks(Area::Disk, format!("{} are free: too little to run at all", size(free)), room)
        }
        free if free < LITTLE => {
            Finding::poor(Area::Disk, format!("{} are free: images may not fit", size(free)), room)
        }
        free if free < (disk.total / PRESSED).min(ENOUGH) => Finding::poor(
            Area::Disk,
            format!("{} of {} are free: so short of room, no pods are placed here (DiskPressure)", size(free), size(disk.total)),
            "make room, or say in eviction.yaml in the data directory how much is to be free (evictionHard: {nodefs.available: 2Gi})",
        ),
        free => Finding::fine(Area::Disk, format!("{} are free", size(free))),
    });
    if let Some(inodes) = disk.inodes.filter(|inodes| *inodes < FEW_INODES) {
        let what = format!("{inodes} more files can be made: an image has tens of thousands");
        findings.push(Finding::poor(Area::Disk, what, room));
    }
    findings.push(match &disk.sync {
        Ok(took) if *took > SLOW_SYNC => Finding::poor(
            Area::Disk,
            format!("making data safe takes {} ms: this disk is slow or worn out", took.as_millis()),
            "use an SSD, or a new card of class A2; and keep backups of this one",
        ),
        Ok(took) => Finding::fine(Area::Disk, format!("making data safe takes {:.1} ms", took.as_secs_f64() * 1e3)),
        Err(why) => Finding::lacks(
            Area::Disk,
            format!("nothing can be written in {at}: {why}"),
            "run this as root, and look at dmesg",
        ),
    });
    findings
}

#[cfg(test)]
mod tests {
    use super::{super::Verdict, *};

    /// What is said, of what, and how bad it is.
    type Case = (&'static str, fn(&mut Disk), Verdict);

    fn good() -> Disk {
        Disk {
            at: "/var/lib/hearth".into(),
            kind: 0xEF53,
            read_only: false,
            free: 20 << 30,
            total: 100 << 30,
            inodes: Some(1_000_000),
            sync: Ok(Duration::from_millis(4)),
        }
    }

    #[test]
    fn a_disk_is_judged_by_its_worst_side() {
        let cases: [Case; 12] = [
            ("kind ext4", |_| {}, Verdict::Fine),
            ("kind xfs", |disk| disk.kind = 0x5846_5342, Verdict::Fine),
            ("in memory", |disk| disk.kind = 0x0102_1994, Verdict::Lacks),
            ("kind NFS", |disk| disk.kind = 0x6969, Verdict::Lacks),
            ("on overlayfs", |disk| disk.kind = 0x794C_7630, Verdict::Poor),
            ("read-only", |disk| disk.read_only = true, Verdict::Lacks),
            ("10.0 MiB are free", |disk| disk.free = 10 << 20, Verdict::Lacks),
            ("1.0 GiB are free", |disk| disk.free = 1 << 30, Verdict::Poor),
            ("4.0 GiB of 100.0 GiB are free", |disk| disk.free = 4 << 30, Verdict::Poor),
            ("20.0 GiB are free", |disk| disk.total = 1 << 40, Verdict::Fine),
            ("5000 more files", |disk| disk.inodes = Some(5_000), Verdict::Poor),
            ("takes 900 ms", |disk| disk.sync = Ok(Duration::from_millis(900)), Verdict::Poor),
        ];
        for (expected, spoil, verdict) in cases {
            let mut disk = good();
            spoil(&mut disk);
            let findings = judge(&Ok(disk));
            let found = findings.iter().find(|finding| finding.what.contains(expected));
            assert_eq!(found.map(|finding| finding.verdict), Some(verdict), "{expected}: {findings:?}");
            assert_eq!(findings.iter().map(|finding| finding.verdict).max(), Some(verdict), "{findings:?}");
            assert!(findings.iter().all(|finding| (finding.verdict == Verdict::Fine) == finding.advice.is_empty()));
        }
        assert_eq!(judge(&Err("no".into()))[0].verdict, Verdict::Lacks);
    }

    #[test]
    fn a_directory_that_is_not_there_yet_is_judged_by_what_is_above_it_and_nothing_stays() {
        let dir = tempfile::tempdir().expect("a directory");
        let disk = look(&dir.path().join("to/be/made")).expect("seen");
        assert_eq!(disk.at, dir.path());
        assert!(disk.sync.is_ok() && disk.free > 0, "{disk:?}");
        assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 0);
    }
}
