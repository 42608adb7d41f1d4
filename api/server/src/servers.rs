//! The servers of the region as this one knows them: the group, and which numbers were given and taken away.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use futures_util::StreamExt as _;
use hearth_types::{
    Object, Reason, RequestId, Status,
    group::{Group, Server},
    names,
    servers::{self, Numbers},
    store::{Consistency, Op, WatchEvent, write_one},
};

use crate::{
    own_object,
    resources::{ResourceService, shown},
};

/// Tries of a change of the numbers that others changed meanwhile.
const MAX_ATTEMPTS: usize = 16;
/// The pause before the watch is begun again after it broke.
const RETRY: Duration = Duration::from_millis(500);
/// The longest address in bytes: a hostname (RFC 1035) with its port.
const MAX_ADDRESS_BYTES: usize = 255 + 6;

/// See the module.
pub(crate) struct Servers {
    resources: Arc<ResourceService>,
    group: Arc<dyn Group>,
    numbers: RwLock<Numbers>,
}

impl Servers {
    pub(crate) fn new(resources: Arc<ResourceService>, group: Arc<dyn Group>) -> Self {
        Self { resources, group, numbers: RwLock::default() }
    }

    pub(crate) fn group(&self) -> &Arc<dyn Group> {
        &self.group
    }

    /// Refuses a server that was removed from the region. The refusal names the object that says so, by which the caller tells it from
    /// others.
    pub(crate) fn check(&self, id: u64) -> Result<(), Status> {
        if self.numbers.read().unwrap_or_else(PoisonError::into_inner).is_removed(id) {
            return Err(removed(id));
        }
        Ok(())
    }

    /// Refuses an address that is none or that another member has.
    pub(crate) async fn check_address(&self, address: &str, own: Option<u64>) -> Result<Vec<Server>, Status> {
        if address.len() > MAX_ADDRESS_BYTES || !names::is_address(address) {
            let text = format!("address {}: must be host:port", shown(address));
            return Err(Status::new(Reason::BadRequest, text));
        }
        let members: Vec<_> = self.group.members().await?.into_iter().map(|member| member.server).collect();
        match members.iter().find(|member| member.address == address && Some(member.id) != own) {
            Some(other) => {
                let text = format!(
                    "address {address:?}: it is that of server {} of the region; let this one listen at an address of its own (--listen-api, --advertise)",
                    other.id
                );
                Err(Status::new(Reason::Conflict, text))
            }
            None => Ok(members),
        }
    }

    /// Notes what became of a server.
    pub(crate) async fn note(&self, id: u64, removed: bool) -> Result<(), Status> {
        for _ in 0..MAX_ATTEMPTS {
            let (old, mut numbers) = self.stored().await?;
            if !numbers.note(id, removed, self.resources.clock().now()) {
                return Ok(());
            }
            let op = self.op(old.as_ref(), &numbers)?;
            let request_id = RequestId::from(uuid::Uuid::new_v4().to_string());
            match write_one(self.resources.store().as_ref(), request_id, op, self.resources.clock().now()).await {
                Ok(object) => {
                    self.take(&object);
                    return Ok(());
                }
                // Another one was faster: look again.
                Err(status) if matches!(status.reason, Reason::Conflict | Reason::AlreadyExists | Reason::NotFound) => {
                }
                Err(status) => return Err(status),
            }
        }
        Err(Status::new(Reason::Conflict, "the list of the region's servers kept changing; try again"))
    }

    /// The numbers as they are stored, with the object that they are in.
    pub(crate) async fn stored(&self) -> Result<(Option<Object>, Numbers), Status> {
        let object = self.resources.store().get(&servers::key(), Consistency::Linearizable).await?;
        let numbers = object.as_ref().map(|object| Numbers::read(&object.value())).unwrap_or_default();
        Ok((object, numbers))
    }

    /// The operation that stores the numbers, unless somebody else was faster.
    pub(crate) fn op(&self, old: Option<&Object>, numbers: &Numbers) -> Result<Op, Status> {
        own_object::put(&self.resources, &servers::key(), old, numbers.write(old.map(Object::value).as_ref()))
    }

    fn take(&self, object: &Object) {
        *self.numbers.write().unwrap_or_else(PoisonError::into_inner) = Numbers::read(&object.value());
    }

    /// Keeps the numbers up to date for as long as it runs. While the store does not answer, what was known last stands.
    pub(crate) async fn follow(&self) {
        loop {
            let error = match self.follow_once().await {
                Ok(()) => "the stream ended".to_owned(),
                Err(status) => status.message,
            };
            tracing::warn!(%error, "the watch of the region's servers broke; it is begun again");
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn follow_once(&self) -> Result<(), Status> {
        let (object, mut events) = own_object::follow(&self.resources, &servers::key()).await?;
        if let Some(object) = &object {
            self.take(object);
        }
        self.correct().await;
        while let Some(event) = events.next().await {
            if let WatchEvent::Added(object) | WatchEvent::Modified(object) = event? {
                self.take(&object);
                self.correct().await;
            }
        }
        Ok(())
    }

    /// Who leads belongs to the group, whatever is noted: a region that was restored begins anew with its first server.
    async fn correct(&self) {
        let id = self.group.id();
        if self.check(id).is_err()
            && self.group.leadership().here
            && let Err(error) = self.note(id, false).await
        {
            tracing::warn!(%error, "cannot note that this server belongs to the region");
        }
    }
}

fn removed(id: u64) -> Status {
    let text = format!(
        "server {id} was removed from the region for good; to add this machine again give it an empty --data-dir and a new token (`hearth token create --server`)"
    );
    Status { object: Some(Box::new(servers::key())), ..Status::new(Reason::Forbidden, text) }
}

/// Whether a refusal says that this server was removed.
pub(crate) fn says_removed(status: &Status) -> bool {
    status.reason == Reason::Forbidden && status.object.as_deref() == Some(&servers::key())
}
