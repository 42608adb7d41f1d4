//! The servers of a region: how one joins, and what an operator does with them.

use std::{sync::Arc, time::Duration};

use hearth_proto::v1;
use hearth_types::{
    Status,
    group::{Member, MemberRole, Server},
    token::JoinToken,
};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use tonic::transport::Channel;

use crate::{
    Client,
    client::{region, timed},
    convert,
    device::{self, DeviceIdentity},
    failover::Again,
    verify::{Pin, PinnedVerifier, spki_hash},
};

/// Redeems a server's token: the answer has the number of this server, and the region's CA with its key. `identity` is the key of this
/// server's tunnels, and `address` is where its API answers. The CA is pinned by the token's hash: a server of another region is refused
/// before anything is said to it.
///
/// Joining again with the same token and key is harmless and answers the same.
pub async fn join(
    token: &JoinToken,
    identity: &DeviceIdentity,
    address: &str,
) -> Result<v1::JoinServerResponse, Status> {
    let verifier = Arc::new(PinnedVerifier::new(Pin::Hash(token.ca_hash), false));
    let channel = device::channel(token.addresses.clone(), &token.server_name, verifier.clone(), identity, false)?;
    let request = v1::JoinServerRequest { token: token.secret.clone(), address: address.to_owned() };
    let mut servers = v1::members_client::MembersClient::new(channel);
    let answer = servers.join(timed(request)).await.map_err(|error| convert::status(&error))?.into_inner();
    device::same_ca(&verifier, &answer.ca_pem)?;
    Ok(answer)
}

impl Client {
    /// Makes a one-time token by which a server joins the region: whoever has it gets the key of the region's CA. `valid` zero: the
    /// region's default.
    pub async fn create_server_token(&self, valid: Duration) -> Result<v1::CreateTokenResponse, Status> {
        let request = v1::CreateTokenRequest {
            owner: String::new(),
            valid_seconds: valid.as_secs(),
            any_owner: false,
            server: true,
            relay: false,
            status: false,
        };
        let create = async |channel, request| region(channel).create_token(request).await;
        self.servers.call(Again::Never, request, create).await
    }

    /// The servers of the region as its leader sees them, in the order of their numbers.
    pub async fn members(&self) -> Result<Vec<Member>, Status> {
        let list = async |channel, request| servers(channel).list(request).await;
        let answer = self.servers.call(Again::Safe, v1::ListMembersRequest {}, list).await?;
        answer.members.into_iter().map(member).collect()
    }

    /// Removes a server for good. Refused where the region would stop.
    pub async fn remove_server(&self, id: u64) -> Result<(), Status> {
        let remove = async |channel, request| servers(channel).remove(request).await;
        self.servers.call(Again::Never, v1::RemoveServerRequest { id }, remove).await.map(drop)
    }

    /// Has another server lead: this one, or whichever is least behind. Returns which one does.
    pub async fn transfer_leader(&self, to: Option<u64>) -> Result<Server, Status> {
        let request = v1::TransferLeadershipRequest { id: to.unwrap_or_default() };
        let transfer = async |channel, request| servers(channel).transfer_leadership(request).await;
        server(self.servers.call(Again::Never, request, transfer).await?.leader)
    }
}

fn servers(channel: Channel) -> v1::members_client::MembersClient<Channel> {
    v1::members_client::MembersClient::new(channel)
}

fn server(reference: Option<v1::ServerRef>) -> Result<Server, Status> {
    let v1::ServerRef { id, address } = reference.ok_or_else(|| Status::internal("an answer without a server"))?;
    Ok(Server { id, address })
}

fn member(member: v1::Member) -> Result<Member, Status> {
    Ok(Member {
        server: server(member.server)?,
        role: if member.voter { MemberRole::Voter } else { MemberRole::Learner },
        leads: member.leads,
        behind: member.behind,
        silent: member.silent_millis.map(Duration::from_millis),
    })
}

/// SHA-256 of the SubjectPublicKeyInfo of a CA, as join tokens carry it; `None` where the PEM text holds no certificate.
pub fn ca_hash(ca_pem: &[u8]) -> Option<[u8; 32]> {
    CertificateDer::from_pem_slice(ca_pem).ok().as_ref().and_then(spki_hash)
}
