//! The simulated network between servers: messages are late, overtake each other, come twice or not at all, and links break, also in one
//! direction and again and again.
//!
//! A request and its answer are two messages. What is on its way when a server dies is lost, also where the server is back by then:
//! every life of a server has a number.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::pending,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use hearth_types::{
    BoxFuture,
    group::{CallError, Lane, PeerService, PeerTransport, Server},
};
use tokio::{sync::oneshot, time::sleep};

use super::{dice::Dice, trace::Trace};

/// How long it takes to learn that nobody listens at an address.
const REFUSED: Duration = Duration::from_millis(1);

/// How long it takes to learn that a connection is lost: what was on its way may have arrived.
const LOST: Duration = Duration::from_secs(4);

/// How the network is.
#[derive(Clone, Debug)]
pub struct Weather {
    /// How long a message takes.
    pub delay: Range<Duration>,
    /// In a thousand messages, how many take ten times as long.
    pub late: u64,
    /// In a thousand messages, how many are lost.
    pub lost: u64,
    /// In a thousand requests, how many come twice, the second time later.
    pub doubled: u64,
}

impl Weather {
    /// Everything arrives at once.
    pub fn fair() -> Self {
        let delay = Duration::from_micros(200)..Duration::from_micros(900);
        Self { delay, late: 0, lost: 0, doubled: 0 }
    }
}

/// A link that breaks and mends again and again.
#[derive(Clone, Copy, Debug)]
struct Flapping {
    period: Duration,
    /// The part of each period in which it is broken.
    broken: Duration,
}

struct Port {
    life: u64,
    address: String,
    service: Arc<dyn PeerService>,
}

struct Inner {
    dice: Dice,
    weather: Weather,
    ports: BTreeMap<u64, Port>,
    /// `(from, to)`, one direction each.
    broken: BTreeSet<(u64, u64)>,
    flapping: BTreeMap<(u64, u64), Flapping>,
}

/// The network; clones are the same one.
#[derive(Clone)]
pub struct Network {
    inner: Arc<Mutex<Inner>>,
    trace: Trace,
}

/// One life of a server, as the network tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    /// Which server.
    pub id: u64,
    /// Its how manyth life.
    pub number: u64,
}

type Answer = oneshot::Sender<Result<Bytes, CallError>>;

/// What befalls a message.
enum Fate {
    Arrives(Duration),
    Lost,
}

impl Network {
    /// A network without servers.
    pub fn new(dice: Dice, weather: Weather, trace: Trace) -> Self {
        let (ports, broken, flapping) = (BTreeMap::new(), BTreeSet::new(), BTreeMap::new());
        Self { inner: Arc::new(Mutex::new(Inner { dice, weather, ports, broken, flapping })), trace }
    }

    /// A server answers from now on.
    pub fn attach(&self, life: Life, address: &str, service: Arc<dyn PeerService>) {
        let port = Port { life: life.number, address: address.to_owned(), service };
        self.inner().ports.insert(life.id, port);
    }

    /// A server is gone.
    pub fn detach(&self, id: u64) {
        self.inner().ports.remove(&id);
    }

    /// How one life of a server calls the others.
    pub fn port(&self, life: Life) -> Arc<dyn PeerTransport> {
        Arc::new(Transport { network: self.clone(), from: life })
    }

    /// Breaks a link in one direction.
    pub fn cut(&self, from: u64, to: u64) {
        self.inner().broken.insert((from, to));
    }

    /// Breaks the links between two groups of servers in both directions.
    pub fn split(&self, one: &[u64], other: &[u64]) {
        for (a, b) in one.iter().flat_map(|a| other.iter().map(move |b| (*a, *b))) {
            self.cut(a, b);
            self.cut(b, a);
        }
    }

    /// Breaks and mends a link in one direction, until all are healed.
    pub fn flap(&self, from: u64, to: u64, period: Duration, broken: Duration) {
        self.inner().flapping.insert((from, to), Flapping { period, broken });
    }

    /// Mends all links.
    pub fn heal(&self) {
        let mut inner = self.inner();
        inner.broken.clear();
        inner.flapping.clear();
    }

    /// The weather changes.
    pub fn set_weather(&self, weather: Weather) {
        self.inner().weather = weather;
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fate(&self) -> Fate {
        let mut inner = self.inner();
        let Inner { dice, weather, .. } = &mut *inner;
        if dice.chance(weather.lost) {
            return Fate::Lost;
        }
        let delay = dice.between(weather.delay.clone());
        Fate::Arrives(if dice.chance(weather.late) { delay * 10 } else { delay })
    }

    fn is_up(&self, from: u64, to: u64) -> bool {
        let inner = self.inner();
        if inner.broken.contains(&(from, to)) {
            return false;
        }
        let up = |flapping: &Flapping| {
            let at = self.trace.now() % (flapping.period.as_nanos() as u64).max(1);
            at >= flapping.broken.as_nanos() as u64
        };
        inner.flapping.get(&(from, to)).is_none_or(up)
    }

    /// The server at an address, and which life of it.
    fn listener(&self, to: &Server) -> Option<(u64, Arc<dyn PeerService>)> {
        let inner = self.inner();
        let port = inner.ports.get(&to.id).filter(|port| port.address == to.address)?;
        Some((port.life, Arc::clone(&port.service)))
    }

    fn lives(&self, life: Life) -> bool {
        self.inner().ports.get(&life.id).is_some_and(|port| port.life == life.number)
    }

    /// Takes a request to its server after a time, and sends the answer back where somebody waits for it.
    async fn deliver(self, from: Life, to: Server, delay: Duration, request: Bytes, answer: Option<Answer>) {
        sleep(delay).await;
        if !self.is_up(from.id, to.id) {
            return;
        }
        let Some((life, service)) = self.listener(&to) else { return };
        self.trace.count(&[1, from.id, to.id, request.len() as u64]);
        let answered = service.answer(from.id, request).await;
        let Some(answer) = answer else { return };
        let answered = answered.map_err(|status| CallError(status.to_string()));
        if let Fate::Arrives(delay) = self.fate()
            && self.lives(Life { id: to.id, number: life })
            && self.is_up(to.id, from.id)
        {
            sleep(delay).await;
            if self.is_up(to.id, from.id) && self.lives(from) {
                // Where nobody waits any more, it is lost.
                let _ = answer.send(answered);
            }
        }
    }
}

struct Transport {
    network: Network,
    from: Life,
}

impl PeerTransport for Transport {
    fn call(&self, to: &Server, _: Lane, request: Bytes) -> BoxFuture<'static, Result<Bytes, CallError>> {
        let (network, from, to) = (self.network.clone(), self.from, to.clone());
        Box::pin(async move {
            if !network.lives(from) {
                return pending().await;
            }
            if network.is_up(from.id, to.id) && network.is_up(to.id, from.id) && network.listener(&to).is_none() {
                sleep(REFUSED).await;
                return Err(CallError(format!("{to} refuses the connection")));
            }
            let (sender, receiver) = oneshot::channel();
            let twice = {
                let mut inner = network.inner();
                let doubled = inner.weather.doubled;
                inner.dice.chance(doubled)
            };
            if twice && let Fate::Arrives(delay) = network.fate() {
                tokio::spawn(network.clone().deliver(from, to.clone(), delay * 3, request.clone(), None));
            }
            if let Fate::Arrives(delay) = network.fate() {
                tokio::spawn(network.clone().deliver(from, to, delay, request, Some(sender)));
            }
            if let Ok(answered) = receiver.await {
                return answered;
            }
            sleep(LOST).await;
            Err(CallError("the connection is lost".into()))
        })
    }
}
