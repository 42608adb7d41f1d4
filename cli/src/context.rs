//! What every client verb has: the region's client and the namespace, made when first needed.

use std::{path::PathBuf, sync::OnceLock, time::Duration};

use anyhow::{Result, anyhow};
use hearth_client::{Client, Config};
use hearth_types::{Clock as _, Object, ObjectKey, Reason, Revision, Status, Timestamp, names, registry::KindInfo};

use crate::{args::DEFAULT_DATA_DIR, follow::Remote, roles::SystemClock};

/// The namespace of who names none.
const DEFAULT_NAMESPACE: &str = "default";

/// After how long without a change the configuration's list of servers is looked at anew.
const SERVERS_ARE_OLD: Duration = Duration::from_secs(86_400);
/// How long a command waits for that when it is done.
const SERVERS_PATIENCE: Duration = Duration::from_secs(1);

/// Which objects of a kind.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Selection<'a> {
    pub(crate) all_namespaces: bool,
    pub(crate) labels: &'a str,
    pub(crate) fields: &'a str,
}

/// The region and the namespace that a command line is about.
pub(crate) struct Context {
    config: PathBuf,
    namespace: Option<String>,
    connected: OnceLock<(Client, Option<String>)>,
}

/// The time now, for ages.
pub(crate) fn now() -> Timestamp {
    SystemClock.now()
}

/// A region's refusal as kubectl words it.
pub(crate) fn refusal(status: &Status) -> anyhow::Error {
    anyhow!("from server ({:?}): {status}", status.reason)
}

impl Context {
    /// The context of `--config` and `--namespace`.
    pub(crate) fn new(config: Option<PathBuf>, namespace: Option<String>) -> Self {
        let config = config.unwrap_or_else(|| PathBuf::from(DEFAULT_DATA_DIR).join("client.yaml"));
        Self { config, namespace, connected: OnceLock::new() }
    }

    fn connected(&self) -> Result<&(Client, Option<String>)> {
        if let Some(connected) = self.connected.get() {
            return Ok(connected);
        }
        let config = Config::load(&self.config)?;
        let resolved = config.resolve()?;
        let client = Client::from_resolved(&resolved)?;
        Ok(self.connected.get_or_init(|| (client, resolved.namespace)))
    }

    /// The client.
    pub(crate) fn client(&self) -> Result<&Client> {
        Ok(&self.connected()?.0)
    }

    /// Keeps in the configuration which servers the region has, the one that answered first first, so that the next command finds one also
    /// where the server that the configuration names is gone. Asks only where this command had to go to another server than the first, or
    /// the configuration is old; and should it fail, the command has not.
    pub(crate) async fn keep_servers(&self) {
        let Some((client, _)) = self.connected.get() else { return };
        let saved = std::fs::metadata(&self.config).and_then(|file| file.modified());
        let old = saved.is_ok_and(|saved| saved.elapsed().is_ok_and(|age| age > SERVERS_ARE_OLD));
        let answered = client.addresses();
        let known = Config::load(&self.config).and_then(|config| config.resolve());
        let moved = known.is_ok_and(|known| known.addresses.first() != answered.first());
        if !old && !moved {
            return;
        }
        let Ok(Ok(info)) = tokio::time::timeout(SERVERS_PATIENCE, client.info()).await else { return };
        let mut servers = names::addresses(&info.servers);
        // The one that answered, then the others.
        if let Some(index) = client.addresses().first().and_then(|first| servers.iter().position(|one| one == first)) {
            servers.rotate_left(index);
        }
        if servers.is_empty() {
            return;
        }
        if let Err(error) = Config::save_servers(&self.config, &servers) {
            tracing::debug!(%error, "the region's servers cannot be kept");
        } else if old {
            // It was looked at. One that cannot be marked so is looked at with the next command again.
            let _ = std::fs::File::open(&self.config).and_then(|file| file.set_modified(std::time::SystemTime::now()));
        }
    }

    /// The region's CA by the configuration, PEM.
    pub(crate) fn region_ca(&self) -> Option<Vec<u8>> {
        Some(Config::load(&self.config).ok()?.resolve().ok()?.ca_pem)
    }

    /// The namespace of the command line, else of the config, else `default`.
    pub(crate) fn namespace(&self) -> &str {
        if let Some(namespace) = &self.namespace {
            return namespace;
        }
        self.connected().ok().and_then(|(_, namespace)| namespace.as_deref()).unwrap_or(DEFAULT_NAMESPACE)
    }

    /// The key of a named object in the namespace.
    pub(crate) fn key(&self, info: &KindInfo, name: &str) -> ObjectKey {
        ObjectKey::new(info.group_kind(), if info.is_namespaced() { self.namespace() } else { "" }, name)
    }

    /// The namespace of the command line, which objects of manifests must be in.
    pub(crate) fn asked_namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// One object, if there is one.
    pub(crate) async fn find(&self, key: &ObjectKey) -> Result<Option<Object>> {
        match self.client()?.get(key).await {
            Ok(object) => Ok(Some(object)),
            Err(status) if status.reason == Reason::NotFound => Ok(None),
            Err(status) => Err(refusal(&status)),
        }
    }

    /// Where the objects of a namespace (or all, as the selection says) come from, to be followed.
    pub(crate) fn source(&self, info: &KindInfo, namespace: &str, selection: &Selection<'_>) -> Result<Remote> {
        Ok(Remote { client: self.client()?.clone(), selection: Self::selection(info, namespace, selection) })
    }

    /// One object.
    pub(crate) async fn get(&self, info: &KindInfo, name: &str) -> Result<Object> {
        self.client()?.get(&self.key(info, name)).await.map_err(|status| refusal(&status))
    }

    fn selection(info: &KindInfo, namespace: &str, selection: &Selection<'_>) -> hearth_client::Selection {
        hearth_client::Selection {
            namespace: (info.is_namespaced() && !selection.all_namespaces).then(|| namespace.to_owned()),
            labels: selection.labels.to_owned(),
            fields: selection.fields.to_owned(),
            ..hearth_client::Selection::all(info.group_kind())
        }
    }

    /// Objects in the namespace or in all.
    pub(crate) async fn list(&self, info: &KindInfo, selection: &Selection<'_>) -> Result<(Vec<Object>, Revision)> {
        self.list_in(info, self.namespace(), selection).await
    }

    /// Objects in a given namespace.
    pub(crate) async fn list_in(
        &self,
        info: &KindInfo,
        namespace: &str,
        selection: &Selection<'_>,
    ) -> Result<(Vec<Object>, Revision)> {
        self.client()?.list(&Self::selection(info, namespace, selection)).await.map_err(|status| refusal(&status))
    }
}
