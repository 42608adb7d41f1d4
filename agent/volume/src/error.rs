//! What can go wrong with a volume.

use std::io;
use std::path::{Path, PathBuf};

use crate::NameError;

/// Why a volume was not made, found or removed. Data of a claim is never touched by a call that fails with anything but `Io` on its removal.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// A system call failed.
    #[error("cannot {action} {path:?}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The disk is full, or its quota used up.
    #[error("the disk is full: no space left to {action} {path:?}")]
    DiskFull {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
    },
    /// A name that becomes part of a path is not fit for it.
    #[error("{what} {name:?} cannot be used: {problem}")]
    Name {
        /// Which name.
        what: &'static str,
        /// The name, shortened.
        name: String,
        /// What is wrong with it.
        problem: NameError,
    },
    /// The directory holds something else, or a store of a later version.
    #[error("{path:?} is not a volume store that this version can use: {reason}")]
    Format {
        /// The file that says so.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// A file of the store cannot be understood.
    #[error("the volume store is damaged: {path:?}: {reason}")]
    Damaged {
        /// The damaged file.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// The ledger says that the claim is here, and its directory is not.
    #[error(
        "the data of claim {claim} is missing from {path:?}: is its disk mounted? No empty volume is made in its place"
    )]
    MissingData {
        /// Namespace, name and uid.
        claim: String,
        /// Where it should be.
        path: PathBuf,
    },
    /// A directory is in the claim's place that is not known to be the claim's.
    #[error(
        "{path:?} is in the place of claim {claim} and is not its data: {reason}; mount the right disk, or move that directory away"
    )]
    ForeignData {
        /// Namespace, name and uid.
        claim: String,
        /// What was found.
        path: PathBuf,
        /// Why it is not the claim's.
        reason: String,
    },
    /// Nothing can be written to the claim.
    #[error(
        "the data of claim {claim} in {path:?} is on a file system that is read-only: look for errors of its disk, then mount it writable again"
    )]
    ReadOnly {
        /// Namespace, name and uid.
        claim: String,
        /// Its data.
        path: PathBuf,
    },
    /// The claim is on its way out, and is not made anew under its uid.
    #[error(
        "claim {claim} is being deleted and its deletion is not finished: nothing can use it, and no empty volume is made in its place"
    )]
    BeingDeleted {
        /// Namespace, name and uid.
        claim: String,
    },
    /// A writer that was superseded.
    #[error(
        "claim {claim} is here for the writer of epoch {has}: the one of epoch {asked} is over, and gets it no more"
    )]
    OldEpoch {
        /// Namespace, name and uid.
        claim: String,
        /// The epoch on the disk.
        has: u64,
        /// The epoch asked for.
        asked: u64,
    },
    /// One uid with two names.
    #[error("claim {claim} is on this device as {had}: a uid cannot change its name")]
    OtherName {
        /// Namespace, name and uid asked for.
        claim: String,
        /// Namespace, name and uid on the disk.
        had: String,
    },
    /// More or larger files than a projected volume may have.
    #[error("volume {volume:?} has {had} {unit} of files: the limit is {limit}")]
    TooLarge {
        /// The volume.
        volume: String,
        /// What was asked for.
        had: usize,
        /// The limit.
        limit: usize,
        /// Of what: `bytes` or a count.
        unit: &'static str,
    },
    /// Two files of a projected volume cannot both be there.
    #[error("volume {volume:?}: file {path:?} is in the way of another one below it")]
    FileInTheWay {
        /// The volume.
        volume: String,
        /// The shorter path.
        path: String,
    },
}

impl VolumeError {
    pub(crate) fn io(action: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            Self::DiskFull { action, path: path.to_owned() }
        } else {
            Self::Io { action, path: path.to_owned(), source }
        }
    }
}
