//! Datagrams that come to a port of a Route.
//!
//! What one caller sends from one of its ports is a flow. It has a stream of the device's tunnel, in which datagrams travel each behind
//! its length; the device sends them on from a socket of the flow's own, so that answers find their way back.
//!
//! Guarantees: what there is of state is bounded, for each caller, port and owner and in all, whoever makes up senders; who sends datagrams takes no
//! connection's place. A caller that is silent is sent nothing after [`FLOW_IDLE`](crate::limits::FLOW_IDLE). A datagram arrives whole, once, or
//! not at all.
//!
//! Caveats: what is lost in the tunnel is sent again, so that loss there is seen as delay, by this flow alone.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use hearth_types::{
    routes::{RouteEntry, Transport},
    tunnel::{
        Dialer,
        datagram::{self, Datagrams},
    },
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::{
    admission::{OwnerPermit, Permit},
    connect::{Call, NoDevice, connect},
    connection::Shared,
    limits::{
        ACCEPT_PAUSE, COPY_BYTES, Limits, MAX_UNCONFIRMED_BYTES, MAX_WAITING, MAX_WAITING_BYTES,
        MAX_WAITING_BYTES_IN_ALL,
    },
    metrics::{Dropped, Outcome},
    socket::{RECEIVE_BYTES, Socket},
};

/// The first port that RFC 4787 takes for no well-known one.
const FIRST_REGISTERED_PORT: u16 = 1024;

/// Who sends to which of this machine's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Ends {
    caller: SocketAddr,
    called: Option<IpAddr>,
}

/// What is known of a flow, for its task and for who receives.
#[derive(Debug)]
struct Seen {
    begin: Instant,
    /// When the caller sent last, in milliseconds since the begin.
    heard: AtomicU64,
    /// The caller was sent something.
    answered: AtomicBool,
    /// And has sent again since.
    confirmed: AtomicBool,
    /// Bytes that wait for the device.
    waiting: AtomicUsize,
}

impl Seen {
    fn new() -> Self {
        Self {
            begin: Instant::now(),
            heard: AtomicU64::new(0),
            answered: AtomicBool::new(false),
            confirmed: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
        }
    }

    fn hear(&self) {
        self.heard.store(self.begin.elapsed().as_millis() as u64, Ordering::Relaxed);
        if self.answered.load(Ordering::Relaxed) {
            self.confirmed.store(true, Ordering::Relaxed);
        }
    }

    fn last_heard(&self) -> Instant {
        self.begin + Duration::from_millis(self.heard.load(Ordering::Relaxed))
    }

    fn is_confirmed(&self) -> bool {
        self.confirmed.load(Ordering::Relaxed)
    }
}

/// A flow, as who receives knows it.
struct Flow {
    seen: Arc<Seen>,
    /// Closed when the flow has ended.
    queue: mpsc::Sender<Waiting>,
    /// Ends the flow when dropped.
    _end: oneshot::Sender<()>,
}

impl Flow {
    /// Puts a datagram where its task finds it, if there is room.
    fn push(&self, datagram: &[u8], all: &Arc<AtomicUsize>) -> Result<(), Dropped> {
        self.seen.hear();
        let waiting = Waiting::new(datagram, &self.seen, all).ok_or(Dropped::Waiting)?;
        self.queue.try_send(waiting).map_err(|_| Dropped::Waiting)
    }
}

/// A datagram on its way to its device, counted among those that wait until it is dropped.
struct Waiting {
    datagram: Box<[u8]>,
    seen: Arc<Seen>,
    all: Arc<AtomicUsize>,
}

impl Waiting {
    fn new(datagram: &[u8], seen: &Arc<Seen>, all: &Arc<AtomicUsize>) -> Option<Self> {
        let bytes = datagram.len();
        let own = seen.waiting.load(Ordering::Relaxed) + bytes <= MAX_WAITING_BYTES;
        let fits = own && all.load(Ordering::Relaxed) + bytes <= MAX_WAITING_BYTES_IN_ALL;
        fits.then(|| {
            seen.waiting.fetch_add(bytes, Ordering::Relaxed);
            all.fetch_add(bytes, Ordering::Relaxed);
            Self { datagram: datagram.into(), seen: Arc::clone(seen), all: Arc::clone(all) }
        })
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.seen.waiting.fetch_sub(self.datagram.len(), Ordering::Relaxed);
        self.all.fetch_sub(self.datagram.len(), Ordering::Relaxed);
    }
}

/// Counts a flow as there, and when it ends what became of it.
struct Counted<D> {
    shared: Arc<Shared<D>>,
    outcome: Outcome,
    _permits: (Permit, OwnerPermit),
}

impl<D> Drop for Counted<D> {
    fn drop(&mut self) {
        self.shared.metrics.flows_open.dec();
        self.shared.metrics.flow_ended(self.outcome);
    }
}

/// The flows of one port.
pub(crate) struct Flows<D> {
    shared: Arc<Shared<D>>,
    socket: Arc<Socket>,
    port: u16,
    /// Whose datagrams they are now.
    current: Arc<RwLock<Arc<RouteEntry>>>,
    /// Whose flows those in the table are.
    served: Arc<RouteEntry>,
    table: HashMap<Ends, Flow>,
    tasks: JoinSet<()>,
}

impl<D: Dialer> Flows<D>
where
    D::Stream: AsyncRead + AsyncWrite,
{
    pub(crate) fn new(
        shared: Arc<Shared<D>>,
        socket: Socket,
        port: u16,
        current: Arc<RwLock<Arc<RouteEntry>>>,
    ) -> Self {
        let served = Arc::clone(&current.read().unwrap_or_else(PoisonError::into_inner));
        Self { shared, socket: Arc::new(socket), port, current, served, table: HashMap::new(), tasks: JoinSet::new() }
    }

    /// Takes datagrams until told to stop; all flows end with it.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut buffer = vec![0; RECEIVE_BYTES];
        let mut failing = false;
        loop {
            let received = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Some(_) = self.tasks.join_next(), if !self.tasks.is_empty() => {
                    self.table.retain(|_, flow| !flow.queue.is_closed());
                    continue;
                }
                received = self.socket.receive(&mut buffer) => received,
            };
            match received {
                Ok(received) => {
                    failing = false;
                    let ends = Ends { caller: received.from, called: received.to };
                    let bytes = &buffer[..received.length.min(RECEIVE_BYTES)];
                    if bytes.is_empty() {
                        // An empty datagram is one, too.
                        self.take(ends, bytes);
                    }
                    for datagram in bytes.chunks(received.stride) {
                        self.take(ends, datagram);
                    }
                }
                Err(error) => {
                    // Once for a row of failures.
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(port = self.port, %error, "cannot receive datagrams of callers; trying on");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn take(&mut self, ends: Ends, datagram: &[u8]) {
        let route = Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner));
        if (&route.owner, &route.hostname) != (&self.served.owner, &self.served.hostname) {
            // The port is another Route's now: nothing more goes to the one before.
            self.table.clear();
        }
        self.served = route;
        let there = self.table.get(&ends).filter(|flow| !flow.queue.is_closed());
        let taken = match there {
            Some(flow) => flow.push(datagram, &self.shared.waiting),
            None => self.begin(ends).and_then(|flow| {
                let pushed = flow.push(datagram, &self.shared.waiting);
                self.table.insert(ends, flow);
                pushed
            }),
        };
        if let Err(why) = taken {
            self.shared.metrics.dropped(why);
        }
    }

    /// A new flow, if there is a place for it.
    fn begin(&mut self, ends: Ends) -> Result<Flow, Dropped> {
        let (shared, route) = (Arc::clone(&self.shared), Arc::clone(&self.served));
        if shared.all_away(&route) {
            return Err(Dropped::NoFlow(Outcome::Away));
        }
        let caller = SocketAddr::new(ends.caller.ip().to_canonical(), ends.caller.port());
        let permit = shared.flows.admit(caller.ip()).map_err(Dropped::NoFlow)?;
        let owner = shared.flows.admit_to(&route.owner).ok_or(Dropped::NoFlow(Outcome::RefusedOwner))?;
        if self.table.len() >= shared.limits.flows_per_port {
            self.make_room()?;
        }
        let (queue, waiting) = mpsc::channel(MAX_WAITING);
        let (end, ended) = oneshot::channel();
        let seen = Arc::new(Seen::new());
        shared.metrics.flows_open.inc();
        let mut counted = Counted { shared, outcome: Outcome::Drained, _permits: (permit, owner) };
        let called = SocketAddr::new(ends.called.unwrap_or_else(|| unspecified(&caller)).to_canonical(), self.port);
        let span = tracing::debug_span!("flow", %caller, port = self.port);
        let carrier =
            Carrier { route, socket: Arc::clone(&self.socket), ends, caller, called, seen: Arc::clone(&seen) };
        let task = async move {
            let shared = Arc::clone(&counted.shared);
            counted.outcome = tokio::select! {
                biased;
                _ = ended => Outcome::Evicted,
                outcome = carrier.carry(&shared, waiting) => outcome,
            };
            tracing::debug!(outcome = counted.outcome.label(), "a flow of datagrams ended");
        };
        self.tasks.spawn(task.instrument(span));
        Ok(Flow { seen, queue, _end: end })
    }

    /// Ends the unconfirmed flow that was silent the longest.
    fn make_room(&mut self) -> Result<(), Dropped> {
        let unconfirmed = self.table.iter().filter(|(_, flow)| !flow.seen.is_confirmed());
        let oldest = unconfirmed.min_by_key(|(_, flow)| flow.seen.last_heard()).map(|(ends, _)| *ends);
        oldest.and_then(|ends| self.table.remove(&ends)).map(drop).ok_or(Dropped::RefusedPort)
    }
}

/// What it takes to carry a flow's datagrams.
struct Carrier {
    route: Arc<RouteEntry>,
    socket: Arc<Socket>,
    ends: Ends,
    /// As the device is told.
    caller: SocketAddr,
    called: SocketAddr,
    seen: Arc<Seen>,
}

impl Carrier {
    async fn carry<D: Dialer>(&self, shared: &Shared<D>, mut waiting: mpsc::Receiver<Waiting>) -> Outcome
    where
        D::Stream: AsyncRead + AsyncWrite,
    {
        let call = Call {
            transport: Transport::Udp,
            caller: self.caller,
            called: self.called,
            name: &self.route.hostname,
            hello: &[],
        };
        let Shared { limits, metrics, .. } = shared;
        let stream = match connect(&*shared.dialer, &self.route.devices, &call, limits, metrics).await {
            Ok(answered) => answered.stream,
            Err(NoDevice::Away) => return Outcome::Away,
            Err(NoDevice::Unreachable) => return Outcome::Unreachable,
        };
        let (mut reads, mut writes) = tokio::io::split(stream);
        tokio::select! {
            outcome = self.to_device(shared, &mut waiting, &mut writes) => outcome,
            outcome = self.to_caller(shared, &mut reads) => outcome,
            () = self.silence(&shared.limits) => Outcome::Idle,
        }
    }

    /// Returns when the caller was silent for too long.
    async fn silence(&self, limits: &Limits) {
        let unconfirmed =
            if self.called.port() < FIRST_REGISTERED_PORT { limits.flow_well_known } else { limits.flow_unconfirmed };
        loop {
            let bound = if self.seen.is_confirmed() { limits.flow_idle } else { unconfirmed };
            let end = self.seen.last_heard() + bound;
            if Instant::now() >= end {
                return;
            }
            sleep_until(end).await;
        }
    }

    async fn to_device<D>(
        &self,
        shared: &Shared<D>,
        waiting: &mut mpsc::Receiver<Waiting>,
        writes: &mut (impl AsyncWrite + Unpin),
    ) -> Outcome {
        let mut out = Vec::new();
        while let Some(next) = waiting.recv().await {
            let (mut count, mut next) = (0, Some(next));
            // Those that are there travel together.
            while let Some(one) = next {
                count += u64::from(datagram::push(&mut out, &one.datagram));
                next = if out.len() < COPY_BYTES { waiting.try_recv().ok() } else { None };
            }
            match timeout(shared.limits.stall, writes.write_all(&out)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Outcome::DeviceLost,
                Err(_) => return Outcome::Stalled,
            }
            shared.metrics.datagrams_to_device.inc_by(count);
            shared.metrics.to_device.inc_by(out.len() as u64);
            // A quiet flow holds no buffer.
            out = Vec::new();
        }
        // Who receives has let go of the flow.
        Outcome::Evicted
    }

    async fn to_caller<D>(&self, shared: &Shared<D>, reads: &mut (impl AsyncRead + Unpin)) -> Outcome {
        let Shared { metrics, .. } = shared;
        let (mut datagrams, mut sent) = (Datagrams::default(), 0_usize);
        loop {
            match reads.read_buf(datagrams.buffer()).await {
                Ok(1..) => {}
                Ok(0) | Err(_) => return Outcome::DeviceLost,
            }
            while let Some(datagram) = datagrams.next() {
                if !self.seen.is_confirmed() {
                    if sent + datagram.len() > MAX_UNCONFIRMED_BYTES {
                        metrics.dropped(Dropped::Unconfirmed);
                        continue;
                    }
                    sent += datagram.len();
                }
                match self.socket.send(self.ends.caller, self.ends.called, datagram).await {
                    Ok(()) => {
                        self.seen.answered.store(true, Ordering::Relaxed);
                        metrics.datagrams_to_caller.inc();
                        metrics.to_caller.inc_by(datagram.len() as u64);
                    }
                    Err(error) => {
                        tracing::debug!(%error, "the kernel does not send a datagram to a caller");
                        metrics.dropped(Dropped::Send);
                    }
                }
            }
        }
    }
}

/// The wildcard of an address' family.
fn unspecified(address: &SocketAddr) -> IpAddr {
    if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}
