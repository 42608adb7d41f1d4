//! A group of servers in memory, for tests of what is in front of it: one state that every server sees, and calls that are echoed.

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use futures_util::{Stream, stream};
use hearth_types::{
    BoxFuture, Reason, Status,
    group::{Group, Leadership, Member, MemberRole, PeerService, Server},
};
use tokio::sync::Notify;

/// Who belongs, which all servers of a test share. The first one leads.
#[derive(Clone, Default)]
pub(crate) struct Membership(Arc<Mutex<Vec<Server>>>);

impl Membership {
    pub(crate) fn servers(&self) -> Vec<Server> {
        self.0.lock().unwrap().clone()
    }
}

/// The group as one server sees it.
pub(crate) struct FakeGroup {
    pub(crate) id: u64,
    pub(crate) membership: Membership,
}

fn ready<T: Send + 'static>(value: T) -> BoxFuture<'static, T> {
    Box::pin(std::future::ready(value))
}

impl Group for FakeGroup {
    fn id(&self) -> u64 {
        self.id
    }

    fn members(&self) -> BoxFuture<'_, Result<Vec<Member>, Status>> {
        let member = |(index, server): (usize, Server)| Member {
            server,
            role: if index < 3 { MemberRole::Voter } else { MemberRole::Learner },
            leads: index == 0,
            behind: (index < 2).then_some(index as u64),
            silent: (index < 2).then(|| std::time::Duration::from_millis(index as u64)),
        };
        ready(Ok(self.membership.servers().into_iter().enumerate().map(member).collect()))
    }

    fn admit(&self, server: Server) -> BoxFuture<'_, Result<(), Status>> {
        let mut all = self.membership.0.lock().unwrap();
        all.retain(|one| one.id != server.id);
        all.push(server);
        all.sort();
        ready(Ok(()))
    }

    fn remove(&self, id: u64) -> BoxFuture<'_, Result<(), Status>> {
        let mut all = self.membership.0.lock().unwrap();
        if all.len() == 1 {
            return ready(Err(Status::new(Reason::Conflict, "the last server")));
        }
        all.retain(|one| one.id != id);
        ready(Ok(()))
    }

    fn transfer_leader(&self, to: Option<u64>) -> BoxFuture<'_, Result<Server, Status>> {
        let all = self.membership.servers();
        let found = all.iter().find(|one| to.is_none_or(|id| one.id == id)).cloned();
        ready(found.ok_or_else(|| Status::new(Reason::Conflict, "no such voter")))
    }

    fn leadership(&self) -> Leadership {
        let leader = self.membership.servers().first().cloned();
        let here = leader.as_ref().is_some_and(|leader| leader.id == self.id);
        Leadership { term: 1, leader, here }
    }

    fn watch_leadership(&self) -> Pin<Box<dyn Stream<Item = Leadership> + Send>> {
        Box::pin(stream::iter([self.leadership()]))
    }
}

/// Answers who asked and what: to `slow` once it is released, and to `bad` with an error.
pub(crate) struct Echo {
    pub(crate) id: u64,
    pub(crate) release: Arc<Notify>,
}

impl PeerService for Echo {
    fn answer(&self, from: u64, request: Bytes) -> BoxFuture<'_, Result<Bytes, Status>> {
        Box::pin(async move {
            match &request[..] {
                b"bad" => return Err(Status::new(Reason::BadRequest, "not a request")),
                b"slow" => self.release.notified().await,
                _ => {}
            }
            let answer = format!("{from}->{}: ", self.id).into_bytes();
            Ok([&answer, &request[..]].concat().into())
        })
    }
}
