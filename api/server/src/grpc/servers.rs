//! The servers of the region: how one joins, and what an operator does with them.

use std::sync::Arc;

use hearth_proto::v1;
use hearth_types::{
    Reason, Status,
    group::{Member, MemberRole, Server},
};
use tonic::{Request, Response};

use super::{convert::grpc, join_rate, joining_key, peers::caller};
use crate::{door::Rate, servers::Servers, tokens::Tokens};

pub(crate) struct ServersDoor {
    servers: Arc<Servers>,
    tokens: Arc<Tokens>,
    rate: Rate,
}

impl ServersDoor {
    pub(crate) fn new(servers: Arc<Servers>, tokens: Arc<Tokens>) -> Self {
        Self { servers, tokens, rate: join_rate() }
    }

    async fn remove_server(&self, id: u64) -> Result<(), Status> {
        let members = self.servers.group().members().await?;
        if members.iter().any(|member| member.server.id == id) {
            self.servers.group().remove(id).await?;
            // Should this fail, asking again does only this.
            return self.servers.note(id, true).await;
        }
        let (_, numbers) = self.servers.stored().await?;
        // It joined and was never admitted, or what is noted of its removal got lost.
        if numbers.is_given(id) && !numbers.is_removed(id) {
            return self.servers.note(id, true).await;
        }
        let there: Vec<_> = members.iter().map(|member| member.server.id.to_string()).collect();
        let text = format!("server {id} does not belong to the region; there are: {}", there.join(", "));
        Err(Status::new(Reason::NotFound, text))
    }
}

#[tonic::async_trait]
impl v1::members_server::Members for ServersDoor {
    async fn join(
        &self,
        request: Request<v1::JoinServerRequest>,
    ) -> Result<Response<v1::JoinServerResponse>, tonic::Status> {
        let key = joining_key(&request, &self.rate, "server").map_err(grpc)?;
        let answer = self.tokens.join_server(request.get_ref(), key, &self.servers).await.map_err(grpc)?;
        Ok(Response::new(answer))
    }

    async fn admit(&self, request: Request<v1::AdmitRequest>) -> Result<Response<v1::AdmitResponse>, tonic::Status> {
        let id = caller(&request, &self.servers).map_err(grpc)?;
        let address = request.into_inner().address;
        self.servers.check_address(&address, Some(id)).await.map_err(grpc)?;
        self.servers.group().admit(Server { id, address }).await.map_err(grpc)?;
        Ok(Response::new(v1::AdmitResponse {}))
    }

    async fn list(
        &self,
        _: Request<v1::ListMembersRequest>,
    ) -> Result<Response<v1::ListMembersResponse>, tonic::Status> {
        let members = self.servers.group().members().await.map_err(grpc)?;
        Ok(Response::new(v1::ListMembersResponse { members: members.into_iter().map(shown).collect() }))
    }

    async fn remove(
        &self,
        request: Request<v1::RemoveServerRequest>,
    ) -> Result<Response<v1::RemoveServerResponse>, tonic::Status> {
        self.remove_server(request.get_ref().id).await.map_err(grpc)?;
        Ok(Response::new(v1::RemoveServerResponse {}))
    }

    async fn transfer_leadership(
        &self,
        request: Request<v1::TransferLeadershipRequest>,
    ) -> Result<Response<v1::TransferLeadershipResponse>, tonic::Status> {
        let to = Some(request.get_ref().id).filter(|id| *id != 0);
        let leader = self.servers.group().transfer_leader(to).await.map_err(grpc)?;
        Ok(Response::new(v1::TransferLeadershipResponse { leader: Some(reference(leader)) }))
    }
}

fn reference(Server { id, address }: Server) -> v1::ServerRef {
    v1::ServerRef { id, address }
}

fn shown(member: Member) -> v1::Member {
    v1::Member {
        server: Some(reference(member.server)),
        voter: member.role == MemberRole::Voter,
        leads: member.leads,
        behind: member.behind,
        silent_millis: member.silent.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
    }
}
