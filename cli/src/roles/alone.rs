//! The only server of a region: it leads for as long as it runs, and there is no other to call.

use std::pin::Pin;

use futures_util::{Stream, StreamExt as _, stream};
use hearth_region::ServerChannels;
use hearth_types::{
    BoxFuture, Reason, Status,
    group::{CallError, Group, Leadership, Member, MemberRole, Server},
};
use tonic::transport::Channel;

/// See the module.
pub(super) struct Alone(pub(super) Server);

fn refused() -> Status {
    Status::new(Reason::Conflict, "this region has one server")
}

impl Group for Alone {
    fn id(&self) -> u64 {
        self.0.id
    }

    fn members(&self) -> BoxFuture<'_, Result<Vec<Member>, Status>> {
        let server = self.0.clone();
        let member = Member { server, role: MemberRole::Voter, leads: true, behind: Some(0), silent: None };
        Box::pin(std::future::ready(Ok(vec![member])))
    }

    fn admit(&self, _: Server) -> BoxFuture<'_, Result<(), Status>> {
        Box::pin(std::future::ready(Err(refused())))
    }

    fn remove(&self, _: u64) -> BoxFuture<'_, Result<(), Status>> {
        Box::pin(std::future::ready(Err(refused())))
    }

    fn transfer_leader(&self, _: Option<u64>) -> BoxFuture<'_, Result<Server, Status>> {
        Box::pin(std::future::ready(Err(refused())))
    }

    fn leadership(&self) -> Leadership {
        Leadership { term: 1, leader: Some(self.0.clone()), here: true }
    }

    fn watch_leadership(&self) -> Pin<Box<dyn Stream<Item = Leadership> + Send>> {
        Box::pin(stream::iter([self.leadership()]).chain(stream::pending()))
    }
}

impl ServerChannels for Alone {
    fn channel(&self, to: &Server) -> Result<Channel, CallError> {
        Err(CallError(format!("this region has one server, not {to}")))
    }
}
