//! The command lines of `region`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

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
    /// Remove a server from the region, for good; its number is never given again.
    ///
    /// Refused where the servers that would be left, and that answer, are no majority: the region could not be written to. A server that is
    /// gone is removed before another one takes its place.
    Remove(RegionRemove),
    /// Have another server lead, as before the one that leads is stopped.
    TransferLeader(RegionTransfer),
}

#[derive(Args, Debug)]
pub(crate) struct RegionMembers {
    /// The form of the answer: json or yaml.
    #[arg(short, long)]
    pub(crate) output: Option<Output>,
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
pub(crate) struct RegionInspect {
    /// The backup.
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// The form of the answer: json or yaml.
    #[arg(short, long)]
    pub(crate) output: Option<Output>,
}
