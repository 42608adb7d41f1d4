//! The vote on disk: a small file, replaced as a whole.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::files::LogError;
use crate::{
    disk::{self, Disk},
    sealed,
    types::Vote,
};

const NAME: &str = "vote";
const MAGIC: [u8; 8] = *b"HEARTHVT";

/// The file of the vote.
pub(crate) struct VoteFile {
    disk: Arc<dyn Disk>,
    path: PathBuf,
}

impl VoteFile {
    /// Opens the file of a directory and reads the vote, if one was cast.
    pub(crate) fn open(disk: Arc<dyn Disk>, dir: &Path) -> Result<(Self, Option<Vote>), LogError> {
        let path = dir.join(NAME);
        let bytes = match disk.read(&path) {
            Ok(bytes) => Some(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(LogError::Io { what: "read", path, source }),
        };
        let damaged = |why: String| LogError::Damaged { path: path.clone(), offset: 0, why };
        let vote = match bytes {
            Some(bytes) => {
                let json = sealed::open(MAGIC, &bytes).map_err(|error| damaged(error.to_string()))?;
                Some(serde_json::from_slice(json).map_err(|error| damaged(error.to_string()))?)
            }
            None => None,
        };
        Ok((Self { disk, path }, vote))
    }

    /// Saves a vote; durable on return.
    pub(crate) fn save(&self, vote: &Vote) -> io::Result<()> {
        let json = serde_json::to_vec(vote).map_err(io::Error::other)?;
        disk::replace(&*self.disk, &self.path, &sealed::seal(MAGIC, &json))
    }
}
