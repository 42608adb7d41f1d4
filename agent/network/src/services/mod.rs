//! Services: names and addresses under which the pods of this device reach each other.
//!
//! # How
//! The instance has a second range of addresses, beside that of its pods, which is routable nowhere. In its lower half each pod has an
//! alias (the number is the pod's own), in its upper half each Service has an address. The host's firewall translates both ends of a
//! permitted connection: the Service's address becomes that of a pod, and the caller's its alias. So neither pod ever sees another one's
//! real address, and the firewall inside of a pod, which keeps no connections, lets the range pass and nothing else; a pod that calls its
//! own Service is no special case.
//!
//! # Guarantees
//! Without the host's rules the range leads nowhere (it is claimed by an `unreachable` route), so whoever flushes them opens nothing.
//! Only the pods that a Service names as its clients reach it, and only at its ports; every packet is judged anew, so that a connection
//! ends with the permission. Connections to a pod that is not ready any more go on while the Service selects it. What is refused is
//! refused audibly.
//!
//! # Caveats
//! A Service leads to pods of this device. UDP of one caller's port to one Service stays with one pod while that is ready, and then goes to
//! another (`flows.rs`; not on a kernel without `CONFIG_NF_CT_NETLINK`, where the caller has to fall silent first, for two minutes).

mod flows;
pub(crate) mod names;
mod plan;
mod range;
pub(crate) mod rules;

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

pub(crate) use names::SharedBook;
pub(crate) use plan::Plan;
pub(crate) use range::{Numbers, Range, claim};

use crate::{Network, NetworkError};

/// A Service of this device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// What it keeps its address by.
    pub uid: String,
    /// Its owner.
    pub namespace: String,
    /// Its name, in lower case.
    pub name: String,
    /// Without an address of its own: its name leads to the aliases of its pods.
    pub headless: bool,
    /// Its ports. Of a headless one the port counts in answers to questions for `SRV` records alone.
    pub ports: Vec<ServicePort>,
    /// The pods that it selects.
    pub pods: Vec<ServicePod>,
    /// The uids of the pods that may use it.
    pub clients: BTreeSet<String>,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name, in lower case.
    pub name: Option<String>,
    /// TCP or UDP.
    pub protocol: ServiceProtocol,
    /// The port at the Service's address.
    pub port: u16,
}

/// What a port of a Service speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServiceProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A pod that a Service selects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServicePod {
    /// Its uid.
    pub uid: String,
    /// Whether new connections go to it.
    pub ready: bool,
    /// The pod's port for each of the Service's, in their order; `None` where it has none of that name.
    pub targets: Vec<Option<u16>>,
}

/// What is known of Services, changed by one at a time.
#[derive(Debug)]
pub(crate) struct Services {
    range: Range,
    turn: tokio::sync::Mutex<State>,
    book: SharedBook,
}

#[derive(Debug)]
struct State {
    services: Vec<Service>,
    numbers: Numbers,
    /// Pods that are being detached: no rule may name them when their numbers are free.
    leaving: HashSet<String>,
}

impl Services {
    pub(crate) fn new(range: Range, numbers: Numbers, book: SharedBook) -> Self {
        let state = State { services: Vec::new(), numbers, leaving: HashSet::new() };
        Self { range, turn: tokio::sync::Mutex::new(state), book }
    }

    pub(crate) fn range(&self) -> Range {
        self.range
    }
}

impl State {
    fn concerns(&self, uid: &str) -> bool {
        self.services.iter().any(|one| one.clients.contains(uid) || one.pods.iter().any(|pod| pod.uid == uid))
    }
}

impl Network {
    /// These are the Services of this device, in the place of those before. Pods that are attached later count from then on.
    ///
    /// # Guarantees
    /// A Service has the same address as long as it is named here, also across restarts of the agent. When this returns, rules and names
    /// are in effect.
    ///
    /// # Errors
    /// The rules are then those of before, or none; what is not in effect is tried again with the next call.
    pub async fn set_services(&self, services: Vec<Service>) -> Result<(), NetworkError> {
        let mut state = self.services().turn.lock().await;
        state.services = services;
        if state.services.len() > plan::MAX_SERVICES {
            tracing::error!(services = state.services.len(), most = plan::MAX_SERVICES, "some Services are not served");
            state.services.truncate(plan::MAX_SERVICES);
        }
        let named: Vec<String> = state.services.iter().filter(|one| !one.headless).map(|one| one.uid.clone()).collect();
        if state.numbers.keep(&named)? {
            let (numbers, store) = (state.numbers.clone(), self.store().clone());
            let range = self.services().range;
            self.host().run("keep the addresses of Services", move || store.save_services(range, &numbers)).await?;
        }
        self.put_services(&state).await
    }

    /// A pod has a number now.
    pub(crate) async fn service_pod_came(&self, uid: &str) -> Result<(), NetworkError> {
        let mut state = self.services().turn.lock().await;
        state.leaving.remove(uid);
        if state.concerns(uid) { self.put_services(&state).await } else { Ok(()) }
    }

    /// A pod's number will be free. No rule names it when this returns.
    pub(crate) async fn service_pod_goes(&self, uid: &str) -> Result<(), NetworkError> {
        let mut state = self.services().turn.lock().await;
        if !state.concerns(uid) {
            return Ok(());
        }
        state.leaving.insert(uid.to_owned());
        self.put_services(&state).await
    }

    async fn put_services(&self, state: &State) -> Result<(), NetworkError> {
        let pods = self.numbers_of_pods();
        let number = |uid: &str| pods.get(uid).copied().filter(|_| !state.leaving.contains(uid));
        let plan = Plan::new(&state.services, &state.numbers, number);
        let book = names::Book::new(&state.services, &state.numbers, self.services().range, number);
        let plan = Arc::new(plan);
        let before = self.guard().serve(self.host(), Arc::clone(&plan)).await?;
        self.services().book.set(book);
        if before != plan && (flows::has_datagrams(&before) || flows::has_datagrams(&plan)) {
            let (range, pods) = (self.services().range, self.prefixes_of_pods());
            let forget = move || flows::forget_stale(&plan, range, &pods);
            if let Err(error) = self.host().run("forget flows of Services", forget).await {
                tracing::warn!(%error, "datagrams of those who called a pod before still go there");
            }
        }
        Ok(())
    }
}
