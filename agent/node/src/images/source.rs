//! What the owner says of registries, read anew when the file changes.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use hearth_registry::{ConfigError, Credentials, FileError, Puller, Registries};
use tokio::sync::Mutex;

use crate::{
    files::{Stamp, stamp},
    shared::blocking,
};

type IsPublic = Arc<dyn Fn(IpAddr) -> bool + Send + Sync>;

/// Why no registry can be asked.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The file is not valid.
    #[error(transparent)]
    File(#[from] FileError),
    /// What it says cannot be used.
    #[error("{path:?} cannot be used: {error}")]
    Config {
        /// The file.
        path: PathBuf,
        /// Why.
        error: ConfigError,
    },
}

/// How registries are asked now.
#[derive(Debug)]
pub(super) struct Origin {
    pub(super) puller: Puller,
    /// The owner's own logins.
    pub(super) credentials: Credentials,
}

/// The file, and what was made of it.
pub(super) struct Source {
    file: PathBuf,
    is_public: Option<IsPublic>,
    made: Mutex<Option<(Stamp, Arc<Origin>)>>,
}

impl Source {
    pub(super) fn new(file: PathBuf, is_public: Option<IsPublic>) -> Self {
        Self { file, is_public, made: Mutex::default() }
    }

    pub(super) async fn get(&self) -> Result<Arc<Origin>, SourceError> {
        let mut made = self.made.lock().await;
        let file = self.file.clone();
        let stamp = blocking(move || stamp(&file)).await;
        if let Some((had, origin)) = &*made
            && *had == stamp
        {
            return Ok(Arc::clone(origin));
        }
        let (file, is_public) = (self.file.clone(), self.is_public.clone());
        let origin = Arc::new(blocking(move || make(&file, is_public)).await?);
        *made = Some((stamp, Arc::clone(&origin)));
        Ok(origin)
    }
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").field("file", &self.file).finish_non_exhaustive()
    }
}

fn make(file: &Path, is_public: Option<IsPublic>) -> Result<Origin, SourceError> {
    let Registries { mut config, credentials } = Registries::read(file)?;
    config.reach.is_public = is_public;
    let puller = Puller::new(config).map_err(|error| SourceError::Config { path: file.to_owned(), error })?;
    Ok(Origin { puller, credentials })
}
