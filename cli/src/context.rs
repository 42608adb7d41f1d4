//! What every client verb has: the region's client and the namespace, made when first needed.

use std::{path::PathBuf, sync::OnceLock};

use anyhow::{Result, anyhow};
use hearth_client::{Client, Config};
use hearth_types::{Clock as _, Object, ObjectKey, Reason, Revision, Status, Timestamp, registry::KindInfo};

use crate::{args::DEFAULT_DATA_DIR, follow::Remote, roles::SystemClock};

/// The namespace of who names none.
const DEFAULT_NAMESPACE: &str = "default";

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
