//! How a server redeems its token.

use hearth_proto::v1;
use hearth_types::{
    DeviceKey, Reason, Status,
    group::{MAX_SERVERS, Server},
    store::{Consistency, OpError, Txn},
};

use super::{MAX_ATTEMPTS, Purpose, Stored, Tokens, forbidden, fresh_id};
use crate::servers::Servers;

impl Tokens {
    /// Redeems a server's token: one transaction gives it a number that no server had, and marks the token as used by its key. The same
    /// token with the same key again is answered the same, for as long as the server was not removed.
    ///
    /// The server does not belong to the group by this: it asks for that once it runs.
    pub(crate) async fn join_server(
        &self,
        request: &v1::JoinServerRequest,
        key: DeviceKey,
        servers: &Servers,
    ) -> Result<v1::JoinServerResponse, Status> {
        for _ in 0..MAX_ATTEMPTS {
            let token = self.presented(&request.token, Consistency::Linearizable).await?;
            if token.purpose != Purpose::Server {
                return Err(forbidden(
                    "the join token is for a device or a relay: use it with `hearth join` or `hearth relay --join`, or make one for a server with `hearth token create --server`",
                ));
            }
            match token.used_by {
                Some(used) if used == key => {
                    servers.check(token.server)?;
                    let members = servers.check_address(&request.address, Some(token.server)).await?;
                    return Ok(self.server_answer(token.server, members));
                }
                Some(_) => {
                    return Err(forbidden(
                        "the join token was used already, by another server: make a new one with `hearth token create --server`",
                    ));
                }
                None => {}
            }
            self.still_good(&token)?;
            let members = servers.check_address(&request.address, None).await?;
            if members.len() >= MAX_SERVERS {
                let text = format!(
                    "the region has {MAX_SERVERS} servers already, and more make it no safer; remove one first with `hearth region remove`"
                );
                return Err(Status::new(Reason::Conflict, text));
            }
            if let Some(id) = self.give_number(&token, key, servers, &members).await? {
                tracing::info!(server = id, address = request.address, "a server joined");
                return Ok(self.server_answer(id, members));
            }
        }
        Err(Status::new(Reason::Conflict, "the region's servers kept changing while this one joined; try again"))
    }

    /// The transaction; `None` where something changed meanwhile.
    async fn give_number(
        &self,
        token: &Stored,
        key: DeviceKey,
        servers: &Servers,
        members: &[Server],
    ) -> Result<Option<u64>, Status> {
        let (old, mut numbers) = servers.stored().await?;
        let id = numbers.give(members.iter().map(|member| member.id), self.now()).ok_or_else(|| {
            Status::new(Reason::Conflict, "the region has had too many servers; no number is left for another one")
        })?;
        let ops =
            vec![self.mark_used(token, "used-by-server", &id.to_string(), key)?, servers.op(old.as_ref(), &numbers)?];
        let txn = Txn { request_id: fresh_id(), atomic: true, ops, now: self.now() };
        for outcome in self.resources.store().write(txn).await?.outcomes {
            match outcome {
                Ok(_) => {}
                Err(OpError::Conflict { .. } | OpError::AlreadyExists(_) | OpError::NotFound(_) | OpError::Aborted) => {
                    return Ok(None);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Some(id))
    }

    fn server_answer(&self, id: u64, members: Vec<Server>) -> v1::JoinServerResponse {
        v1::JoinServerResponse {
            id,
            region: self.region.clone(),
            zone: self.resources.zone().to_owned(),
            ca_pem: self.ca.pem().to_owned().into(),
            ca_key_pem: self.ca.key_pem(),
            incarnation: self.resources.store().incarnation().to_string(),
            servers: members.into_iter().map(|Server { id, address }| v1::ServerRef { id, address }).collect(),
        }
    }
}
