//! The command lines of `region`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::{InDataDir, Output};

#[derive(Debug, Subcommand)]
pub(crate) enum Region {
    /// Write everything that the region is into one file: its objects, and the key of its CA.
    ///
    /// Whoever has the file can be the region: keep it as you keep a key. Without --data-dir the running region is asked, and
    /// goes on meanwhile; with it, the files of a server that does not run are read, and left as they are.
    Backup(RegionBackup),
    /// Make a region of a backup, in a data directory whose server does not run.
    ///
    /// Devices follow the restored region again. What was made after the backup runs on where it ran, until a person decides: see the
    /// condition RegionRestored of each Device. Never run two servers of one region side by side.
    Restore(RegionRestore),
    /// Show what a backup holds, and check it.
    Inspect(RegionInspect),
    /// Show the servers of the region.
    Members(RegionMembers),
    /// Show the keys by which the zone is signed (DNSSEC) and the DS records for the parent zone, or replace a key.
    ///
    /// Answers are signed from the first day; others check the signatures once the parent zone has a DS record.
    Dnssec(RegionDnssec),
    /// Have devices' certificates ordered from a public authority (ACME, RFC 8555), or show how that is done.
    ///
    /// Keys are made on devices and stay there; the region has the account, and proves names by its own DNS. Without an authority, and
    /// until its certificate is there, the region's own authority signs.
    Acme(RegionAcme),
    /// Remove a server from the region, for good; its number is never given again.
    ///
    /// Refused where the servers that would be left, and that answer, are no majority: the region could not be written to. A server that is
    /// gone is removed before another one takes its place.
    Remove(RegionRemove),
    /// Have another server lead, as before the one that leads is stopped.
    TransferLeader(RegionTransfer),
    /// Make the key by which a region that lost everything is believed again; to be kept offline.
    ///
    /// From then on devices keep signed copies of their owner's objects. Do it on the first day: a device pins the first key that it is
    /// told.
    RecoveryKey(RegionRecoveryKey),
    /// Make a region anew of which nothing is left but its devices and the recovery key.
    ///
    /// Devices go over to the new region by themselves, and hand in the copies that they keep: owners' Installs, claims and routes are
    /// there again, and apps run on meanwhile.
    Recover(RegionRecover),
}

#[derive(Args, Debug)]
pub(crate) struct RegionMembers {
    /// The form of the answer: json or yaml.
    #[arg(short, long)]
    pub(crate) output: Option<Output>,
}

#[derive(Args, Debug)]
pub(crate) struct RegionDnssec {
    /// Begin to replace a key. The ZSK is replaced within hours by itself; the KSK waits until its DS is in the parent zone.
    #[arg(long, value_name = "KEY")]
    pub(crate) roll: Option<Roll>,
    /// The parent zone has the new KSK's DS beside the old one's, at all of its servers.
    #[arg(long, conflicts_with = "roll")]
    pub(crate) ds_seen: bool,
    /// For how many seconds the parent's DS records may be cached [default: a day].
    #[arg(long, value_name = "SECONDS", default_value_t = 0, hide_default_value = true, requires = "ds_seen")]
    pub(crate) parent_ttl: u64,
    /// The form of the answer: json or yaml.
    #[arg(short, long)]
    pub(crate) output: Option<Output>,
}

#[derive(Args, Debug)]
pub(crate) struct RegionAcme {
    /// Order here from now on: `letsencrypt`, `letsencrypt-staging`, or the URL of an authority's directory. All else is as said beside it.
    #[arg(long, value_name = "URL")]
    pub(crate) directory: Option<String>,
    /// You agree to the authority's terms of service.
    #[arg(long, requires = "directory")]
    pub(crate) accept_terms: bool,
    /// Where the authority writes to about the account. Can be repeated.
    #[arg(long, value_name = "MAIL", requires = "directory")]
    pub(crate) contact: Vec<String>,
    /// The file with the roots (PEM) by which the directory's own TLS is verified [default: the system's].
    #[arg(long, value_name = "FILE", requires = "directory")]
    pub(crate) roots: Option<PathBuf>,
    /// The name of the external account's key, where the authority wants one.
    #[arg(long, value_name = "ID", requires_all = ["directory", "eab_key_file"])]
    pub(crate) eab_kid: Option<String>,
    /// The file with that key (HMAC, base64url).
    #[arg(long, value_name = "FILE", requires = "eab_kid")]
    pub(crate) eab_key_file: Option<PathBuf>,
    /// Certificates in a week at most, renewals not counted [default: 50, Let's Encrypt's limit for one domain].
    #[arg(long, value_name = "N", requires = "directory", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) per_week: Option<u32>,
    /// The authority's name in CAA records [default: what its directory says]. Can be repeated.
    #[arg(long, value_name = "DOMAIN", requires = "directory")]
    pub(crate) caa_issuer: Vec<String>,
    /// Publish no CAA records: any authority may issue for the zone, to whoever controls a name.
    #[arg(long, requires = "directory", conflicts_with = "caa_issuer")]
    pub(crate) no_caa: bool,
    /// A log of Certificate Transparency that is read for certificates that no device asked for: `URL` or `URL,key=KEY`. The URL is where it is
    /// read, an RFC 6962 log's `url` or a static log's `monitoring_url` in the log lists of browsers. KEY is what they have as `key`: with it, all
    /// that is read is held against what the log signs; without it, the log is believed by its TLS. Can be repeated.
    #[arg(long, value_name = "URL[,key=KEY]", requires = "directory")]
    pub(crate) ct_log: Vec<String>,
    /// Order no more. Certificates that there are stay in use until they expire.
    #[arg(long, conflicts_with = "directory")]
    pub(crate) off: bool,
    /// The form of the answer: json or yaml.
    #[arg(short, long)]
    pub(crate) output: Option<Output>,
}

/// A key of the zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Roll {
    /// The one that signs the keys, and that the parent's DS names.
    Ksk,
    /// The one that signs everything else.
    Zsk,
}

#[derive(Args, Debug)]
pub(crate) struct RegionRemove {
    /// The server's number, from `hearth region members`.
    #[arg(value_name = "ID", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) id: u64,
}

#[derive(Args, Debug)]
pub(crate) struct RegionTransfer {
    /// The server's number [default: whichever is least behind].
    #[arg(value_name = "ID", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) id: Option<u64>,
}

#[derive(Args, Debug)]
pub(crate) struct RegionBackup {
    /// Where to write it.
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Read the files of the stopped server of this directory.
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Replace a file that is there.
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Args, Debug)]
pub(crate) struct RegionRestore {
    /// The backup.
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) dir: InDataDir,
    /// The name of the region that it has to be of.
    #[arg(long, value_name = "NAME")]
    pub(crate) region: Option<String>,
    /// The zone of the region that it has to be of.
    #[arg(long)]
    pub(crate) zone: Option<String>,
    /// Also where a region is: it is moved aside, and nothing is deleted.
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Args, Debug)]
pub(crate) struct RegionRecoveryKey {
    /// Where to write the key; the file must not be there.
    #[arg(long, value_name = "FILE", default_value = "recovery.key")]
    pub(crate) out: PathBuf,
    /// The file of the region's present recovery key: the new one is its successor, and is believed by whoever pinned it.
    #[arg(long, value_name = "FILE")]
    pub(crate) rotate: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct RegionRecover {
    /// The file of the recovery key.
    #[arg(long, value_name = "FILE", required_unless_present = "finish")]
    pub(crate) recovery_key: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) dir: InDataDir,
    /// The name of the region that is lost.
    #[arg(long, value_name = "NAME", required_unless_present = "finish")]
    pub(crate) region: Option<String>,
    /// Its zone.
    #[arg(long, required_unless_present = "finish")]
    pub(crate) zone: Option<String>,
    /// A number higher than at any recovery before [default: the time in seconds].
    #[arg(long, value_name = "N")]
    pub(crate) generation: Option<u64>,
    /// For how many days devices may hand in what they have.
    #[arg(long, value_name = "DAYS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=92))]
    pub(crate) accept_days: u32,
    /// End that time now, in the running region: from then on nothing that was lost comes back.
    #[arg(long, conflicts_with_all = ["recovery_key", "region", "zone", "generation"])]
    pub(crate) finish: bool,
}

#[derive(Args, Debug)]
pub(crate) struct RegionInspect {
    /// The backup.
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// The form of the answer: json or yaml.
    #[arg(short, long)]
    pub(crate) output: Option<Output>,
}
