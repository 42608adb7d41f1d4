//! The group of the tests: who leads is what the test says.

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
};

use futures_util::{Stream, StreamExt as _};
use hearth_region::ServerChannels;
use hearth_types::{
    BoxFuture, Reason, Status,
    group::{CallError, Group, Leadership, Member, MemberRole, Server},
};
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tonic::transport::{Channel, Endpoint};

/// Who belongs to a region and who leads it.
pub(crate) struct Cluster {
    servers: Mutex<Vec<Server>>,
    /// The term, and the number of its leader.
    leads: watch::Sender<(u64, Option<u64>)>,
}

impl Cluster {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { servers: Mutex::default(), leads: watch::Sender::new((0, None)) })
    }

    pub(crate) fn add(&self, server: Server) {
        self.servers.lock().expect("not poisoned").push(server);
        // Who leads is the same; everybody looks again.
        self.leads.send_modify(|_| {});
    }

    pub(crate) fn address(&self, id: u64) -> String {
        self.server(id).expect("it was added").address
    }

    fn server(&self, id: u64) -> Option<Server> {
        self.servers.lock().expect("not poisoned").iter().find(|server| server.id == id).cloned()
    }

    /// Another term begins.
    pub(crate) fn elect(&self, leader: Option<u64>) {
        self.leads.send_modify(|(term, leads)| {
            *term += 1;
            *leads = leader;
        });
    }

    fn leadership(&self, here: u64, (term, leader): (u64, Option<u64>)) -> Leadership {
        Leadership { term, leader: leader.and_then(|id| self.server(id)), here: leader == Some(here) }
    }
}

/// One server's view of it.
pub(crate) struct View(pub(crate) u64, pub(crate) Arc<Cluster>);

impl Group for View {
    fn id(&self) -> u64 {
        self.0
    }

    fn members(&self) -> BoxFuture<'_, Result<Vec<Member>, Status>> {
        let leader = self.leadership().leader;
        let servers = self.1.servers.lock().expect("not poisoned").clone();
        let member = move |server: Server| Member {
            leads: leader.as_ref() == Some(&server),
            server,
            role: MemberRole::Voter,
            behind: None,
            silent: None,
        };
        Box::pin(async move { Ok(servers.into_iter().map(member).collect()) })
    }

    fn admit(&self, _: Server) -> BoxFuture<'_, Result<(), Status>> {
        Box::pin(async { Err(refused()) })
    }

    fn remove(&self, _: u64) -> BoxFuture<'_, Result<(), Status>> {
        Box::pin(async { Err(refused()) })
    }

    fn transfer_leader(&self, _: Option<u64>) -> BoxFuture<'_, Result<Server, Status>> {
        Box::pin(async { Err(refused()) })
    }

    fn leadership(&self) -> Leadership {
        let now = *self.1.leads.borrow();
        self.1.leadership(self.0, now)
    }

    fn watch_leadership(&self) -> Pin<Box<dyn Stream<Item = Leadership> + Send>> {
        let (id, cluster) = (self.0, Arc::clone(&self.1));
        Box::pin(WatchStream::new(self.1.leads.subscribe()).map(move |now| cluster.leadership(id, now)))
    }
}

fn refused() -> Status {
    Status::new(Reason::Conflict, "the test says who leads")
}

/// Calls without TLS.
pub(crate) struct Plain;

impl ServerChannels for Plain {
    fn channel(&self, to: &Server) -> Result<Channel, CallError> {
        let endpoint = Endpoint::from_shared(format!("http://{}", to.address));
        Ok(endpoint.map_err(|error| CallError(error.to_string()))?.connect_lazy())
    }
}
