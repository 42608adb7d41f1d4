//! Where a log is read: by the static API (<https://c2sp.org/static-ct-api>) or by RFC 6962 section 4.

use std::{collections::BTreeMap, io::Read as _};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use flate2::read::GzDecoder;
use hearth_types::transparency::Log;
use instant_acme::Error;
use serde::{Deserialize, de::DeserializeOwned};

use super::{
    head::{self, Head, HeadError},
    merkle::{self, Hash, Prefix},
    tile::{self, Tile, TileError},
};
use crate::{
    http::{Found, Http, HttpError},
    order::chain,
};

/// Entries of an RFC 6962 log that are asked for at once; it may send fewer.
const BATCH: u64 = 256;
/// The largest checkpoint in bytes: many signatures of kinds to come have some 7 KB each.
const MAX_CHECKPOINT: usize = 256 << 10;
/// The largest tile in bytes: 256 entries of 128 KiB, the most that static logs take as a chain.
const MAX_TILE: usize = 32 << 20;

/// Why a log is not read any further.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    #[error(transparent)]
    Http(HttpError),
    #[error("{url} cannot be fetched")]
    Fetch {
        url: String,
        #[source]
        error: Error,
    },
    #[error("{url} has more than {most} bytes")]
    TooLarge { url: String, most: usize },
    #[error("{url} is not there")]
    Absent { url: String },
    #[error("{url} is compressed by {by:?}, and gzip alone is known")]
    Encoding { url: String, by: String },
    #[error("{url} is no gzip of at most {MAX_TILE} bytes")]
    Gzip { url: String },
    #[error("{url} cannot be read: {why}")]
    Json { url: String, why: String },
    #[error("{url} cannot be read")]
    Tile {
        url: String,
        #[source]
        error: TileError,
    },
    #[error("{url} is refused")]
    Head {
        url: String,
        #[source]
        error: HeadError,
    },
    #[error(
        "it is read neither by the static API ({tiled}) nor by RFC 6962 ({dynamic}): give a log's URL, of a static log the monitoring prefix"
    )]
    Neither { tiled: String, dynamic: String, failure: Failure },
    #[error("it does not give entry {entry}, though it has {size}")]
    Missing { entry: u64, size: u64 },
    #[error("it has {size} entries now, and had {had}: a log never gets shorter")]
    Shorter { size: u64, had: u64 },
    #[error(
        "its first {read} entries, as they were read, are not those of the tree of {size} entries that it says to have: it shows something \
         else than it commits to, or another past than before"
    )]
    Inconsistent { read: u64, size: u64 },
    #[error(
        "its newest tree head is {days} days old: it is shown an old state, or takes nothing any more; where it was shut down, watch another"
    )]
    Stale { days: u64 },
}

impl LogError {
    fn neither(tiled: &Self, dynamic: &Self) -> Self {
        let failure = match tiled.label() {
            Failure::Unreachable => dynamic.label(),
            other => other,
        };
        Self::Neither { tiled: chain(tiled), dynamic: chain(dynamic), failure }
    }

    /// Its label among the metrics.
    pub(crate) fn label(&self) -> Failure {
        match self {
            Self::Http(_) | Self::Fetch { .. } | Self::Absent { .. } | Self::Missing { .. } => Failure::Unreachable,
            Self::Neither { failure, .. } => *failure,
            Self::Head { error, .. } if error.is_of_signature() => Failure::Signature,
            Self::Shorter { .. } | Self::Inconsistent { .. } => Failure::Inconsistent,
            Self::Stale { .. } => Failure::Stale,
            _ => Failure::Malformed,
        }
    }
}

/// What is wrong with a log, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// It does not answer, or not with what it has.
    Unreachable,
    /// What it sends cannot be read.
    Malformed,
    /// Its tree head is not signed by its key.
    Signature,
    /// What was read is not what its tree head commits to.
    Inconsistent,
    /// Its tree head is old.
    Stale,
}

impl Failure {
    pub(crate) const ALL: [Self; 5] =
        [Self::Unreachable, Self::Malformed, Self::Signature, Self::Inconsistent, Self::Stale];

    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Malformed => "malformed",
            Self::Signature => "signature",
            Self::Inconsistent => "inconsistent",
            Self::Stale => "stale",
        }
    }
}

/// How a log is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Api {
    /// Tiles below a monitoring prefix.
    Static,
    /// Questions.
    Rfc6962,
}

#[derive(Deserialize)]
struct Entries {
    entries: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    leaf_input: String,
}

#[derive(Deserialize)]
struct Consistency {
    consistency: Vec<String>,
}

/// A log, with one of its tree heads.
pub(crate) struct Source<'a> {
    http: &'a Http,
    log: &'a Log,
    pub(crate) api: Api,
    pub(crate) head: Head,
    /// Tiles of hashes that were fetched: some on each level.
    tiles: BTreeMap<Tile, Vec<Hash>>,
}

impl<'a> Source<'a> {
    /// Fetches a log's newest tree head. A log whose kind is not known is of the one by which it answers; who answers by both is static.
    pub(crate) async fn open(http: &'a Http, log: &'a Log, known: Option<Api>) -> Result<Self, LogError> {
        let source = |api, head| Self { http, log, api, head, tiles: BTreeMap::new() };
        match known {
            Some(Api::Static) => checkpoint(http, log).await.map(|head| source(Api::Static, head)),
            Some(Api::Rfc6962) => signed_tree_head(http, log).await.map(|head| source(Api::Rfc6962, head)),
            None => match checkpoint(http, log).await {
                Ok(head) => Ok(source(Api::Static, head)),
                // It has one, which is not signed by the key: nothing else of it is of use.
                Err(error) if error.label() == Failure::Signature => Err(error),
                Err(tiled) => match signed_tree_head(http, log).await {
                    Ok(head) => Ok(source(Api::Rfc6962, head)),
                    Err(dynamic) => Err(LogError::neither(&tiled, &dynamic)),
                },
            },
        }
    }

    /// The tree's first leaves as the log tells their hashes, `near` of them: what is read later is added to it, and held against the
    /// head. It may be some leaves shorter, where a log does not tell it for that number.
    pub(crate) async fn begin(&mut self, near: u64) -> Result<Prefix, LogError> {
        match self.api {
            Api::Static => {
                let mut prefix = Prefix::default();
                self.go_on(&mut prefix, near).await?;
                Ok(prefix)
            }
            Api::Rfc6962 => {
                let near = near.min(self.head.size.saturating_sub(1));
                // What a proof does not have is a perfect tree's root.
                match if near.is_power_of_two() { near - 1 } else { near } {
                    0 | 1 => Ok(Prefix::default()),
                    near => self.proof(near, None).await,
                }
            }
        }
    }

    /// Whether the head's tree begins with these leaves.
    pub(crate) async fn holds(&mut self, prefix: &Prefix) -> Result<(), LogError> {
        let wrong = LogError::Inconsistent { read: prefix.size(), size: self.head.size };
        // Every tree begins with the empty one.
        if prefix.size() == 0 && self.head.size > 0 {
            return Ok(());
        }
        if prefix.size() < self.head.size && self.api == Api::Rfc6962 {
            return self.proof(prefix.size(), Some(prefix)).await.map(drop);
        }
        let mut whole = prefix.clone();
        self.go_on(&mut whole, self.head.size).await?;
        if whole.root() == self.head.root { Ok(()) } else { Err(wrong) }
    }

    /// Leaves from one on: some, in order.
    pub(crate) async fn leaves(&self, from: u64) -> Result<Vec<Vec<u8>>, LogError> {
        match self.api {
            Api::Static => {
                let tile = Tile::of_entry(from, self.head.size);
                let (url, found, bytes) = self.tile(tile).await?;
                let mut leaves = found.leaves(&bytes).map_err(|error| LogError::Tile { url, error })?;
                leaves.truncate(tile.width as usize);
                leaves.drain(..(from - tile.first()) as usize);
                Ok(leaves)
            }
            Api::Rfc6962 => {
                let last = self.head.size.min(from + BATCH) - 1;
                let url = format!("{}/ct/v1/get-entries?start={from}&end={last}", self.log.base());
                let page: Entries = json(self.http, &url).await?;
                if page.entries.is_empty() {
                    return Err(LogError::Missing { entry: from, size: self.head.size });
                }
                let entries = page.entries.iter().take((last + 1 - from) as usize);
                let leaves = entries.map(|entry| STANDARD.decode(&entry.leaf_input)).collect::<Result<_, _>>();
                leaves.map_err(|error| LogError::Json { url, why: format!("a leaf is not base64: {error}") })
            }
        }
    }

    /// Adds what the log's tiles of hashes have up to a size.
    async fn go_on(&mut self, prefix: &mut Prefix, size: u64) -> Result<(), LogError> {
        for (level, number) in merkle::subtrees(prefix.size(), size) {
            let (tile, at) = Tile::of_subtree(level, number, self.head.size);
            if !self.tiles.contains_key(&tile) {
                let (url, found, bytes) = self.tile(tile).await?;
                let hashes = found.hashes(&bytes).map_err(|error| LogError::Tile { url, error })?;
                self.tiles.insert(tile, hashes);
            }
            let hash = self.tiles.get(&tile).and_then(|hashes| tile::subtree(hashes, at));
            if !hash.is_some_and(|hash| prefix.push(level, hash)) {
                return Err(LogError::Inconsistent { read: prefix.size(), size: self.head.size });
            }
        }
        Ok(())
    }

    /// Fetches a tile, or the full one where the partial one is gone: logs delete those once there is more.
    async fn tile(&self, tile: Tile) -> Result<(String, Tile, Bytes), LogError> {
        let get = async |tile: Tile| {
            let url = format!("{}/{}", self.log.base(), tile.path());
            match fetch(self.http, &url, MAX_TILE).await {
                Ok(bytes) => Ok((url, tile, bytes)),
                Err(error) => Err(error),
            }
        };
        match (get(tile).await, tile.full()) {
            (Err(LogError::Absent { .. }), Some(full)) => get(full).await,
            (answer, _) => answer,
        }
    }

    /// What a consistency proof says of the head's first leaves; a proof that does not come to the head's root is none.
    async fn proof(&self, from: u64, known: Option<&Prefix>) -> Result<Prefix, LogError> {
        let size = self.head.size;
        let url = format!("{}/ct/v1/get-sth-consistency?first={from}&second={size}", self.log.base());
        let answer: Consistency = json(self.http, &url).await?;
        let hash = |text: &String| STANDARD.decode(text).ok()?.try_into().ok();
        let proof: Option<Vec<Hash>> = answer.consistency.iter().take(merkle::MAX_PROOF + 1).map(hash).collect();
        let proof = proof.ok_or_else(|| LogError::Json { url, why: "it has what is no hash".into() })?;
        match merkle::consistency(from, size, known, &proof) {
            Some((prefix, root)) if root == self.head.root => Ok(prefix),
            _ => Err(LogError::Inconsistent { read: from, size }),
        }
    }
}

async fn checkpoint(http: &Http, log: &Log) -> Result<Head, LogError> {
    let url = format!("{}/checkpoint", log.base());
    let bytes = fetch(http, &url, MAX_CHECKPOINT).await?;
    head::checkpoint(&bytes, log.key.as_ref()).map_err(|error| LogError::Head { url, error })
}

async fn signed_tree_head(http: &Http, log: &Log) -> Result<Head, LogError> {
    let url = format!("{}/ct/v1/get-sth", log.base());
    let bytes = fetch(http, &url, MAX_CHECKPOINT).await?;
    head::signed_tree_head(&bytes, log.key.as_ref()).map_err(|error| LogError::Head { url, error })
}

async fn json<T: DeserializeOwned>(http: &Http, url: &str) -> Result<T, LogError> {
    let body = fetch(http, url, MAX_TILE).await?;
    serde_json::from_slice(&body).map_err(|error| LogError::Json { url: url.to_owned(), why: error.to_string() })
}

/// What a URL has, of at most so many bytes, decompressed: a log may use gzip unasked.
async fn fetch(http: &Http, url: &str, most: usize) -> Result<Bytes, LogError> {
    let at = || url.to_owned();
    let Found { body, encoding } = match http.find(url, most).await {
        Ok(Some(found)) => found,
        Ok(None) => return Err(LogError::Absent { url: at() }),
        Err(Error::Other(why)) if matches!(why.downcast_ref(), Some(HttpError::TooLarge(_))) => {
            return Err(LogError::TooLarge { url: at(), most });
        }
        Err(error) => return Err(LogError::Fetch { url: at(), error }),
    };
    match encoding.as_deref() {
        None | Some("identity") => Ok(body),
        Some("gzip" | "x-gzip") => inflate(&body, most).ok_or_else(|| LogError::Gzip { url: at() }),
        Some(by) => Err(LogError::Encoding { url: at(), by: by.chars().take(40).collect() }),
    }
}

/// `None`: it is no gzip, or too large.
fn inflate(bytes: &[u8], most: usize) -> Option<Bytes> {
    let mut plain = Vec::new();
    GzDecoder::new(bytes).take(most as u64 + 1).read_to_end(&mut plain).ok()?;
    (plain.len() <= most).then(|| plain.into())
}

#[cfg(test)]
mod tests;
