//! The gRPC door of recovery.

use std::sync::Arc;

use hearth_controllers::Action;
use hearth_proto::v1::{
    DescribeRecoveryRequest, DescribeRecoveryResponse, FinishRequest, FinishResponse, HandInMessage, HandInResponse,
    SetKeyRequest, SetKeyResponse, StatementRequest, StatementResponse, recovery_server::Recovery,
};
use hearth_types::{
    DeviceKey, Object, Timestamp,
    identity::Identity,
    recovery::{Record, Trust, record_key},
    store::Consistency,
};
use serde_json::Value;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status, Streaming};

use super::hand_in;
use crate::{hub::Hub, lead::Lead, writer};

/// Hand-ins that are taken at once: each has some megabytes in memory. Who comes beyond that comes again.
const HAND_INS: usize = 4;
/// Tries to change the region's record against others.
const TRIES: usize = 8;

/// The gRPC service `hearth.v1.Recovery`. The door must put the caller's [`Identity`] into the request's extensions, and let only
/// admins call what is theirs.
pub struct RecoveryService {
    hub: Arc<Hub>,
    hand_ins: Semaphore,
}

impl RecoveryService {
    pub(crate) fn new(hub: Arc<Hub>) -> Self {
        Self { hub, hand_ins: Semaphore::new(HAND_INS) }
    }

    fn ready(&self) -> Result<(), Status> {
        if self.hub.is_ready() {
            return Ok(());
        }
        Err(Status::unavailable(format!("region {} is starting; try again", self.hub.config.region)))
    }

    /// The time of leading of this server. What devices hand in is taken by the one that leads, as their sessions are: its caches have all
    /// that former leaders took, and it alone bounds how many hand in at once.
    fn lead(&self) -> Result<Lead, Status> {
        self.hub.lead().ok_or_else(|| {
            Status::unavailable("no server of the region is known to lead now; hand in again in a moment")
        })
    }

    async fn record(&self) -> Result<(Option<Object>, Option<Record>), Status> {
        let read = self.hub.config.store.get(&record_key(), Consistency::Linearizable).await;
        let object = read.map_err(|error| Status::unavailable(error.message))?;
        let record = object.as_ref().and_then(|object| Record::read(&object.value()));
        Ok((object, record))
    }

    /// Changes the region's record, against whoever else does. At any of the region's servers.
    async fn change(&self, change: impl Fn(Option<Record>) -> Result<Record, Status>) -> Result<(), Status> {
        for _ in 0..TRIES {
            let (object, record) = self.record().await?;
            let new = change(record)?.write(object.as_ref().map(Object::value).as_ref());
            let action = match object {
                Some(base) => Action::Update { base, value: new },
                None => Action::Create { object: new },
            };
            let refused = |error: hearth_types::Status| Status::unavailable(error.message);
            let op = writer::to_op(&self.hub, &action).map_err(|error| Status::internal(error.message))?;
            let Some(op) = op else { return Ok(()) };
            let outcome = writer::write_anywhere(&self.hub, vec![op]).await.map_err(refused)?;
            if outcome.outcomes.iter().all(Result::is_ok) {
                return Ok(());
            }
        }
        Err(Status::aborted("the region's recovery key is changed by others all the time; try again"))
    }
}

/// The admin that a request must be of.
fn admin<T>(request: &Request<T>) -> Result<(), Status> {
    match request.extensions().get::<Identity>() {
        Some(identity) if identity.is_admin() => Ok(()),
        _ => Err(Status::permission_denied("this is for members of the group system:masters")),
    }
}

#[tonic::async_trait]
impl Recovery for RecoveryService {
    async fn statement(&self, _: Request<StatementRequest>) -> Result<Response<StatementResponse>, Status> {
        self.ready()?;
        // As it is stored: whoever asks checks it, and strangers are not to make this server work.
        let object = self.hub.cache().get(&record_key()).map(|entry| entry.object.clone());
        let value = object.map(|object| object.value()).unwrap_or_default();
        let text = |field: &str| {
            let text = value.get("data").and_then(|data| data.get(field)).and_then(Value::as_str);
            text.unwrap_or_default().to_owned().into()
        };
        let answer =
            StatementResponse { statement_json: text("statement"), trust_json: text("trust"), ca_pem: text("ca.pem") };
        Ok(Response::new(answer))
    }

    async fn hand_in(&self, request: Request<Streaming<HandInMessage>>) -> Result<Response<HandInResponse>, Status> {
        let Some(key) = request.extensions().get::<Identity>().and_then(key_of) else {
            return Err(Status::unauthenticated("copies are handed in by a device that proves its key"));
        };
        self.ready()?;
        let lead = match self.lead() {
            Ok(lead) => lead,
            Err(nobody) => {
                let leader = self.hub.goodbye("").leader;
                let elsewhere = HandInResponse { leader, ..HandInResponse::default() };
                return if elsewhere.leader.is_empty() { Err(nobody) } else { Ok(Response::new(elsewhere)) };
            }
        };
        let record = super::record(&self.hub).filter(|record| record.accepts(self.hub.now()));
        let record = record.ok_or_else(|| {
            Status::failed_precondition(
                "the region takes no copies: it was not recovered, or the time for that is over",
            )
        })?;
        let _one = self
            .hand_ins
            .try_acquire()
            .map_err(|_| Status::unavailable(format!("{HAND_INS} devices are handing in; try again in a moment")))?;
        let taking = hand_in::take(&self.hub, &record, key, request.into_inner());
        tokio::select! {
            answer = taking => Ok(Response::new(answer?)),
            // A write that is under way is done whole or not at all; handed in again, what it did is known.
            () = lead.over.cancelled() => {
                Err(Status::unavailable("another server of the region leads now; hand in there"))
            }
        }
    }

    async fn describe(
        &self,
        request: Request<DescribeRecoveryRequest>,
    ) -> Result<Response<DescribeRecoveryResponse>, Status> {
        admin(&request)?;
        self.ready()?;
        let (_, record) = self.record().await?;
        let config = &self.hub.config;
        let accepts = record.as_ref().filter(|record| record.accepts(self.hub.now()));
        Ok(Response::new(DescribeRecoveryResponse {
            region: config.region.clone(),
            zone: config.zone.clone(),
            signing_key: config.signing.public().0.to_vec().into(),
            generation: record.as_ref().map_or(0, Record::generation),
            accept_until_millis: accepts.map_or(0, |record| record.accept_until.0),
            trust_json: record.map(|record| record.trust.to_json()).unwrap_or_default().into(),
        }))
    }

    async fn set_key(&self, request: Request<SetKeyRequest>) -> Result<Response<SetKeyResponse>, Status> {
        admin(&request)?;
        self.ready()?;
        let refused = |why: String| Status::invalid_argument(format!("the recovery key is not taken: {why}"));
        let trust = Trust::from_json(&request.get_ref().trust_json).map_err(|error| refused(error.to_string()))?;
        let (config, endorsed) = (&self.hub.config, &trust.endorsement);
        if (endorsed.region.as_str(), endorsed.zone.as_str()) != (config.region.as_str(), config.zone.as_str())
            || endorsed.signing_key != config.signing.public()
        {
            return Err(refused(format!("it endorses another region, {}, or another signing key", trust.region())));
        }
        self.change(|old| {
            let Some(old) = old else {
                return Ok(Record { trust: trust.clone(), recovered: None, accept_until: Timestamp(0) });
            };
            trust.follows(old.trust.key).map_err(|error| refused(error.to_string()))?;
            Ok(Record { trust: trust.clone(), ..old })
        })
        .await?;
        tracing::warn!(key = %trust.key, "the region has a new recovery key; devices are told as they connect");
        Ok(Response::new(SetKeyResponse {}))
    }

    async fn finish(&self, request: Request<FinishRequest>) -> Result<Response<FinishResponse>, Status> {
        admin(&request)?;
        self.ready()?;
        let now = self.hub.now();
        self.change(|old| {
            let old = old.filter(|old| old.accepts(now));
            let old = old.ok_or_else(|| {
                Status::failed_precondition("the region takes no copies now; there is nothing to finish")
            })?;
            Ok(Record { accept_until: now, ..old })
        })
        .await?;
        tracing::warn!("devices can hand in no more: the region's recovery was finished");
        Ok(Response::new(FinishResponse {}))
    }
}

/// The key that somebody proved.
fn key_of(identity: &Identity) -> Option<DeviceKey> {
    match identity {
        Identity::Device { key, .. } | Identity::Stranger { key: Some(key) } => Some(*key),
        _ => None,
    }
}
