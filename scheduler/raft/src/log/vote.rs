//! The vote on disk: a small file, replaced as a whole.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::files::LogError;
use crate::{
    disk::{self, Disk},
    sealed,
    types::Vote,
};

const NAME: &str = "vote";
pub(crate) const MAGIC: [u8; 8] = *b"HEARTHVT";

/// What the file says, as JSON.
#[derive(Serialize, Deserialize)]
struct Ballot {
    leader_id: Candidate,
    /// Whether the candidate was elected.
    committed: bool,
}

#[derive(Serialize, Deserialize)]
struct Candidate {
    term: u64,
    node_id: u64,
}

impl From<&Vote> for Ballot {
    fn from(vote: &Vote) -> Self {
        let candidate = Candidate { term: vote.leader_id.term, node_id: vote.leader_id.voted_for };
        Self { leader_id: candidate, committed: vote.committed }
    }
}

impl From<Ballot> for Vote {
    fn from(ballot: Ballot) -> Self {
        let Candidate { term, node_id } = ballot.leader_id;
        if ballot.committed { Self::new_committed(term, node_id) } else { Self::new(term, node_id) }
    }
}

/// The vote that the bytes of a file say.
pub(crate) fn decode(bytes: &[u8]) -> Result<Vote, String> {
    let json = sealed::open(MAGIC, bytes).map_err(|error| error.to_string())?;
    let ballot: Ballot = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    Ok(ballot.into())
}

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
        let vote = bytes.map(|bytes| decode(&bytes)).transpose().map_err(damaged)?;
        Ok((Self { disk, path }, vote))
    }

    /// Saves a vote; durable on return.
    pub(crate) fn save(&self, vote: &Vote) -> io::Result<()> {
        let json = serde_json::to_vec(&Ballot::from(vote)).map_err(io::Error::other)?;
        disk::replace(&*self.disk, &self.path, &sealed::seal(MAGIC, &json))
    }
}
