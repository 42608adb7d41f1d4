//! One caller's connection, from its first byte to its last.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, atomic::AtomicUsize},
};

use hearth_types::{
    routes::{RouteEntry, RouteLookup, Transport},
    tunnel::Dialer,
};
use jiff::Timestamp;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    admission::Admission,
    alert::Alert,
    client_hello,
    connect::{Call, NoDevice, connect},
    limits::{KEEP_ALIVE_IDLE, KEEP_ALIVE_INTERVAL, KEEP_ALIVE_PROBES, Limits, MAX_DRAINED_BYTES},
    metrics::{Metrics, Outcome},
    opening::{Opening, inspect},
    own::{Handed, OwnDoors, hand_over},
    pump::pump,
    request::{Answer, Request},
};

/// How much is read at a time until it is clear what a connection is: most hellos fit.
const OPENING_READ: usize = 2048;

/// Read at a time of what a caller sends that nobody will see.
const DRAIN_READ: usize = 4096;

/// What all connections share.
pub(crate) struct Shared<D> {
    pub(crate) routes: Arc<dyn RouteLookup>,
    pub(crate) dialer: Arc<D>,
    /// Names of this server itself.
    pub(crate) own: OwnDoors,
    /// Not cancelled: only those are served yet.
    pub(crate) open: Option<CancellationToken>,
    pub(crate) admission: Arc<Admission>,
    /// The same for flows of datagrams.
    pub(crate) flows: Arc<Admission>,
    /// Bytes of flows that wait for their devices.
    pub(crate) waiting: Arc<AtomicUsize>,
    pub(crate) limits: Limits,
    pub(crate) metrics: Metrics,
    /// The port of HTTPS, for redirects.
    pub(crate) port: u16,
    /// Cancelled when the gateway is told to stop.
    pub(crate) draining: CancellationToken,
}

/// Serves a connection, and says what became of it.
pub(crate) async fn serve<D>(shared: &Shared<D>, socket: TcpStream, caller: SocketAddr) -> Outcome
where
    D: Dialer,
    D::Stream: AsyncRead + AsyncWrite,
{
    if !prepare(&socket) {
        return Outcome::HungUp;
    }
    let mut bytes = Vec::new();
    let read = read_opening(&socket, &mut bytes, &shared.draining);
    let opening = timeout(shared.limits.opening, read).await;
    if let Ok(Ok(Opening::Tls(name))) = &opening
        && let Some(door) = shared.own.get(name)
    {
        return hand_over(door, Handed { socket, caller, hello: bytes }, &shared.limits).await;
    }
    if let Some(open) = &shared.open
        && !open.is_cancelled()
        && matches!(opening, Ok(Ok(Opening::Tls(_) | Opening::Http(_))))
        && let Err(outcome) = opens(shared, &socket, open).await
    {
        return outcome;
    }
    match opening {
        Ok(Ok(Opening::Tls(name))) => serve_tls(shared, socket, caller, &name, bytes).await,
        Ok(Ok(Opening::Refuse(alert, outcome))) => {
            tracing::debug!(?alert, "refused a hello");
            farewell(socket, &alert.record(), &shared.limits).await;
            outcome
        }
        Ok(Ok(Opening::Http(request))) => {
            let (answer, outcome) = answer(shared, &request);
            farewell(socket, &answer.render(request.head_only, Timestamp::now()), &shared.limits).await;
            outcome
        }
        Ok(Ok(Opening::BadHttp(answer))) => {
            farewell(socket, &answer.render(false, Timestamp::now()), &shared.limits).await;
            Outcome::Malformed
        }
        Ok(Err(outcome)) => outcome,
        Err(_) => {
            // A TLS caller in the middle of its hello would not understand a page, and one that said nothing waits
            // for a protocol that is not spoken here.
            if bytes.first().is_some_and(|byte| *byte != client_hello::FIRST_BYTE) {
                farewell(socket, &Answer::Timeout.render(false, Timestamp::now()), &shared.limits).await;
            }
            Outcome::OpeningTimeout
        }
    }
}

/// Small writes are a handshake's and must not wait for one another; a caller whose network vanished shall not keep
/// its place until the idle timeout. `false` where the caller has gone.
fn prepare(socket: &TcpStream) -> bool {
    let set = || -> io::Result<()> {
        socket.set_nodelay(true)?;
        rustix::net::sockopt::set_socket_keepalive(socket, true)?;
        rustix::net::sockopt::set_tcp_keepidle(socket, KEEP_ALIVE_IDLE)?;
        rustix::net::sockopt::set_tcp_keepintvl(socket, KEEP_ALIVE_INTERVAL)?;
        rustix::net::sockopt::set_tcp_keepcnt(socket, KEEP_ALIVE_PROBES)?;
        Ok(())
    };
    set().inspect_err(|error| tracing::debug!(%error, "cannot set a socket's options: the caller has gone")).is_ok()
}

/// Reads until it is clear what the connection is.
async fn read_opening(
    socket: &TcpStream,
    bytes: &mut Vec<u8>,
    draining: &CancellationToken,
) -> Result<Opening, Outcome> {
    loop {
        if let Some(opening) = inspect(bytes) {
            return Ok(opening);
        }
        tokio::select! {
            // One that has begun to speak may go on.
            () = draining.cancelled(), if bytes.is_empty() => return Err(Outcome::Drained),
            readable = socket.readable() => readable.map_err(|_| Outcome::HungUp)?,
        }
        // Only now: a caller that says nothing needs no buffer.
        bytes.reserve(OPENING_READ);
        match socket.try_read_buf(bytes) {
            Ok(1..) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(0) | Err(_) => return Err(Outcome::HungUp),
        }
    }
}

/// The answer to a plain HTTP request.
fn answer<D: Dialer>(shared: &Shared<D>, request: &Request) -> (Answer, Outcome) {
    let route = request.host.as_deref().and_then(|host| shared.https(host));
    match (route, &request.host) {
        (Some(route), Some(host)) if !shared.all_away(&route) => {
            let (host, target) = (host.clone(), request.target.clone());
            (Answer::Redirect { host, port: shared.port, target }, Outcome::Redirected)
        }
        (Some(_), _) => (Answer::NotServed, Outcome::Away),
        (None, _) if !shared.routes.primed() => (Answer::Starting, Outcome::Starting),
        (None, _) => (Answer::NotServed, Outcome::UnknownName),
    }
}

impl<D: Dialer> Shared<D> {
    /// The Route of a name for HTTPS.
    fn https(&self, name: &str) -> Option<Arc<RouteEntry>> {
        self.routes.lookup(name).filter(|route| route.port.is_none())
    }

    /// Whether it is known, without asking, that no device of a Route can be reached.
    pub(crate) fn all_away(&self, route: &RouteEntry) -> bool {
        route.devices.iter().all(|device| self.dialer.is_away(device))
    }
}

/// Passes a TLS connection on.
async fn serve_tls<D>(shared: &Shared<D>, socket: TcpStream, caller: SocketAddr, name: &str, hello: Vec<u8>) -> Outcome
where
    D: Dialer,
    D::Stream: AsyncRead + AsyncWrite,
{
    let Some(route) = shared.https(name) else {
        if !shared.routes.primed() {
            // Closed without a word: an alert would say for good what is not known yet.
            return Outcome::Starting;
        }
        tracing::debug!(name, "nobody has this name");
        farewell(socket, &Alert::NotServed.record(), &shared.limits).await;
        return Outcome::UnknownName;
    };
    pass_on(shared, socket, caller, &route, &hello).await
}

/// Passes a connection on that came to a port of a Route.
pub(crate) async fn serve_port<D>(
    shared: &Shared<D>,
    socket: TcpStream,
    caller: SocketAddr,
    route: &RouteEntry,
) -> Outcome
where
    D: Dialer,
    D::Stream: AsyncRead + AsyncWrite,
{
    if !prepare(&socket) {
        return Outcome::HungUp;
    }
    pass_on(shared, socket, caller, route, &[]).await
}

/// Passes a connection on to a device of its Route. Where that cannot be, a TLS caller is told by an alert; on a port of a
/// Route, where nothing was said, there are no words for it.
async fn pass_on<D>(
    shared: &Shared<D>,
    mut socket: TcpStream,
    caller: SocketAddr,
    route: &RouteEntry,
    hello: &[u8],
) -> Outcome
where
    D: Dialer,
    D::Stream: AsyncRead + AsyncWrite,
{
    let Shared { limits, metrics, .. } = shared;
    let name = route.hostname.as_str();
    let tls = !hello.is_empty();
    let Ok(called) = socket.local_addr() else { return Outcome::HungUp };
    let Some(_permit) = shared.admission.admit_to(&route.owner) else {
        tracing::debug!(name, "refused a connection: its owner has too many, or they come too fast");
        if tls {
            farewell(socket, &Alert::Unreachable.record(), limits).await;
        }
        return Outcome::RefusedOwner;
    };
    let call = Call { transport: Transport::Tcp, caller, called, name, hello };
    let connected = tokio::select! {
        () = hung_up(&socket), if tls => return Outcome::HungUp,
        connected = connect(&*shared.dialer, &route.devices, &call, limits, metrics) => connected,
    };
    let answered = match connected {
        Ok(answered) => answered,
        Err(why) => {
            tracing::debug!(name, devices = route.devices.len(), ?why, "no device of a route can be reached");
            let (alert, outcome) = match why {
                NoDevice::Away => (Alert::NotServed, Outcome::Away),
                NoDevice::Unreachable => (Alert::Unreachable, Outcome::Unreachable),
            };
            if tls {
                farewell(socket, &alert.record(), limits).await;
            }
            return outcome;
        }
    };
    metrics.to_device.inc_by(hello.len() as u64);
    let mut stream = answered.stream;
    let stop = shared.draining.cancelled();
    let sent = tls.then_some(hello);
    let end = pump(&mut socket, &mut stream, (sent, answered.first), stop, limits, metrics).await;
    tracing::debug!(name, outcome = end.outcome.label(), "a connection ended");
    drop(stream);
    if end.caller_open {
        // An error means that the caller has gone, which is what is wanted.
        let _ = timeout(limits.farewell, discard(&mut socket)).await;
    } else if matches!(end.outcome, Outcome::Stalled | Outcome::HandshakeTimeout) {
        // The kernel shall not keep what such a caller does not take.
        let _ = socket.set_zero_linger();
    }
    end.outcome
}

/// Waits until the gateway is open, or for as long as a caller waits for a device; what cannot be told then is said to be starting.
async fn opens<D>(shared: &Shared<D>, socket: &TcpStream, open: &CancellationToken) -> Result<(), Outcome> {
    tokio::select! {
        () = hung_up(socket) => Err(Outcome::HungUp),
        () = shared.draining.cancelled() => Err(Outcome::Drained),
        _ = timeout(shared.limits.connect, open.cancelled()) => Ok(()),
    }
}

/// Returns when the caller has gone. One that sends more is there; whether it leaves later is not watched for.
async fn hung_up(socket: &TcpStream) {
    if matches!(socket.peek(&mut [0]).await, Ok(1..)) {
        std::future::pending().await
    }
}

/// Sends a last message, and gives the caller time to read it.
async fn farewell(mut socket: TcpStream, bytes: &[u8], limits: &Limits) {
    let said = async {
        socket.write_all(bytes).await?;
        socket.shutdown().await?;
        discard(&mut socket).await
    };
    // An error means that the caller has gone, which is what is wanted.
    let _ = timeout(limits.farewell, said).await;
}

/// Reads what a caller still sends, until it ends: closing a socket with unread bytes resets it, and the reset may
/// overtake the last message (RFC 9112 section 9.6).
async fn discard(socket: &mut TcpStream) -> io::Result<()> {
    // Not in the task itself, which every connection has for as long as it lives.
    let mut buffer = vec![0; DRAIN_READ];
    let mut left = MAX_DRAINED_BYTES;
    loop {
        match socket.read(&mut buffer).await? {
            0 => return Ok(()),
            read if read > left => return Ok(()),
            read => left -= read,
        }
    }
}

#[cfg(test)]
mod tests {
    use hearth_types::{
        BoxFuture, DeviceName,
        tunnel::{DialError, StreamKind},
    };
    use tokio::net::TcpListener;

    use super::*;

    struct Nothing;

    impl RouteLookup for Nothing {
        fn lookup(&self, _: &str) -> Option<Arc<RouteEntry>> {
            None
        }

        fn has_names_below(&self, _: &str) -> bool {
            false
        }

        fn serial(&self) -> u32 {
            0
        }
    }

    impl Dialer for Nothing {
        type Stream = tokio::io::DuplexStream;

        fn dial<'a>(&'a self, device: &'a DeviceName, _: StreamKind) -> BoxFuture<'a, Result<Self::Stream, DialError>> {
            Box::pin(async { Err(DialError::Away(device.clone())) })
        }
    }

    #[tokio::test]
    async fn a_connections_task_is_small() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let socket = TcpStream::connect(address).await.expect("a listener");
        let limits = Limits::default();
        let shared = Shared {
            routes: Arc::new(Nothing),
            dialer: Arc::new(Nothing),
            own: OwnDoors::default(),
            open: None,
            admission: Admission::new(1, &limits.caller, &limits.owner),
            flows: Admission::new(1, &limits.flow_caller, &limits.flow_owner),
            waiting: Arc::default(),
            limits,
            metrics: Metrics::register(&prometheus::Registry::new()).expect("metrics"),
            port: 1,
            draining: CancellationToken::new(),
        };
        let size = size_of_val(&serve(&shared, socket, address));
        assert!(size <= 3 * 1024, "{size} bytes for every connection");
    }
}
