//! How a relay redeems its token, and proves later that it is one of the region.

use hearth_proto::v1;
use hearth_types::{
    DeviceKey, GroupKind, Object, ObjectKey, Reason, Status,
    admission::{Part, prepare_create, prepare_update},
    kinds, names, registry,
    relay::MAX_RELAYS,
    store::{Consistency, Expect, Op, OpError, Query, Txn, list_all, write_one},
};
use serde_json::{Value, json};

use super::{MAX_ATTEMPTS, Purpose, Stored, Tokens, forbidden, fresh_id};
use crate::resources::shown;

/// Where a relay answers.
struct Place<'a> {
    url: &'a str,
    discovery_port: u32,
}

impl Place<'_> {
    fn spec(&self, key: DeviceKey) -> Value {
        let mut spec = json!({"url": self.url, "key": key.to_string()});
        if self.discovery_port != 0 {
            spec["discoveryPort"] = json!(self.discovery_port);
        }
        spec
    }
}

impl Tokens {
    /// Redeems a relay's token: one transaction makes its Relay, and marks the token as used by its key. The same token with the same key
    /// again is harmless, for as long as the Relay is there.
    pub(crate) async fn join_relay(
        &self,
        request: &v1::JoinRelayRequest,
        key: DeviceKey,
    ) -> Result<v1::RelayAdmission, Status> {
        names::dns_label(&request.name)
            .map_err(|why| Status::new(Reason::BadRequest, format!("relay name {}: {why}", shown(&request.name))))?;
        let place = Place { url: &request.url, discovery_port: request.discovery_port };
        for _ in 0..MAX_ATTEMPTS {
            let token = self.presented(&request.token, Consistency::Linearizable).await?;
            if token.purpose != Purpose::Relay {
                return Err(forbidden(
                    "the join token is for a device or a server; make one for a relay with `hearth token create --relay`",
                ));
            }
            match token.used_by {
                Some(used) if used == key => return self.renew_relay(place.url, place.discovery_port, key).await,
                Some(_) => {
                    return Err(forbidden(
                        "the join token was used already, by another relay: make a new one with `hearth token create --relay`",
                    ));
                }
                None => {}
            }
            self.still_good(&token)?;
            if self.make_relay(&token, &request.name, &place, key).await? {
                tracing::info!(relay = request.name, url = request.url, %key, "a relay joined");
                return self.admission(&request.name, key);
            }
        }
        Err(Status::new(Reason::Conflict, "the relay's objects kept changing while it joined; try again"))
    }

    /// A relay that joined says where it is now, and gets another certificate.
    pub(crate) async fn renew_relay(
        &self,
        url: &str,
        discovery_port: u32,
        key: DeviceKey,
    ) -> Result<v1::RelayAdmission, Status> {
        let (relays, _) =
            list_all(self.resources.store().as_ref(), &Query::all(GroupKind::RELAY), Consistency::Linearizable).await?;
        let text = key.to_string();
        let own = relays.into_iter().find(|relay| relay.value().pointer("/spec/key") == Some(&json!(text)));
        let Some(own) = own else {
            return Err(forbidden(
                "no Relay of the region has this relay's key: it was deleted, or never joined; join with a new token of `hearth token create --relay`",
            ));
        };
        let mut value = own.value();
        let spec = Place { url, discovery_port }.spec(key);
        if value["spec"] != spec {
            value["spec"] = spec;
            let admitted = prepare_update(relay_kind()?, &own, value, Part::Main, &self.context())?;
            let op = Op::Update { object: admitted.object, expect: Expect::same(&own) };
            write_one(self.resources.store().as_ref(), fresh_id(), op, self.now()).await?;
        }
        self.admission(own.name(), key)
    }

    /// The transaction; `false` where something changed meanwhile.
    async fn make_relay(&self, token: &Stored, name: &str, place: &Place<'_>, key: DeviceKey) -> Result<bool, Status> {
        let (all, _) =
            list_all(self.resources.store().as_ref(), &Query::all(GroupKind::RELAY), Consistency::Linearizable).await?;
        let relay = ObjectKey::new(GroupKind::RELAY, "", name);
        if all.iter().any(|one| *one.key() == relay) {
            let text =
                format!("a relay named {name:?} is there already; choose another --name, or delete that Relay first");
            return Err(Status { object: Some(Box::new(relay)), ..Status::new(Reason::AlreadyExists, text) });
        }
        if all.len() >= MAX_RELAYS {
            let text = format!(
                "the region has {MAX_RELAYS} relays already, each of which every device measures; delete one first (`hearth get relays`)"
            );
            return Err(Status::new(Reason::Conflict, text));
        }
        let object = self.new_relay(name, place, key)?;
        let ops = vec![self.mark_used(token, "used-by-relay", name, key)?, Op::Create { object }];
        let txn = Txn { request_id: fresh_id(), atomic: true, ops, now: self.now() };
        for outcome in self.resources.store().write(txn).await?.outcomes {
            match outcome {
                Ok(_) => {}
                Err(OpError::Conflict { .. } | OpError::AlreadyExists(_) | OpError::NotFound(_) | OpError::Aborted) => {
                    return Ok(false);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }

    fn new_relay(&self, name: &str, place: &Place<'_>, key: DeviceKey) -> Result<Object, Status> {
        let value = json!({
            "apiVersion": kinds::API_VERSION, "kind": "Relay", "metadata": {"name": name}, "spec": place.spec(key),
        });
        Ok(prepare_create(relay_kind()?, value, &self.context())?.object)
    }

    fn admission(&self, name: &str, key: DeviceKey) -> Result<v1::RelayAdmission, Status> {
        Ok(v1::RelayAdmission {
            name: name.to_owned(),
            region: self.region.clone(),
            zone: self.resources.zone().to_owned(),
            ca_pem: self.ca.pem().to_owned().into(),
            certificate_pem: self.ca.issue_relay(&key)?.into(),
            pass_key: self.ca.signing_key().public().0.to_vec().into(),
            servers: Vec::new(),
        })
    }
}

fn relay_kind() -> Result<&'static registry::KindInfo, Status> {
    registry::of_kind(&GroupKind::RELAY).ok_or_else(|| Status::internal("no kind Relay"))
}
