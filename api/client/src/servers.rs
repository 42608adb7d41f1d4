//! The servers of a region as a client sees them: each is as good as the other, so that what one cannot do now is asked of the next.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hearth_types::{Reason, Status};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::time::{Instant, sleep};
use tonic::transport::Channel;

use crate::{
    client::timed,
    connect::{self, Target},
    convert,
};

/// How long a request is asked for anew, of one server after the other: longer than a region is ever without leader when one fails.
const PATIENCE: Duration = Duration::from_secs(15);
/// The pause after all servers were asked in vain; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause: a new leader is noticed soon enough.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Whether a request may be made again where it is not known what became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Again {
    /// It changes nothing, or carries a request id, by which it is done once.
    Safe,
    /// Only where it was surely never sent.
    Never,
}

/// One server.
#[derive(Clone, Debug)]
struct Server {
    address: String,
    channel: Channel,
}

/// All of them. Connections are made when first needed and again whenever they are lost.
#[derive(Debug)]
pub(crate) struct Servers {
    servers: Vec<Server>,
    /// Which one answered last: it is asked first.
    preferred: AtomicUsize,
}

impl Servers {
    /// The servers at these addresses, of which there is at least one.
    pub(crate) fn new(
        addresses: Vec<String>,
        server_name: &ServerName<'static>,
        tls: &Arc<ClientConfig>,
    ) -> Result<Self, tonic::transport::Error> {
        let has_others = addresses.len() > 1;
        let server = |address: String| {
            let mut target = Target::new(vec![address.clone()], server_name.clone(), tls.clone());
            target.has_others = has_others;
            Ok(Server { address, channel: connect::channel(target)? })
        };
        let servers = addresses.into_iter().map(server).collect::<Result<_, _>>()?;
        Ok(Self { servers, preferred: AtomicUsize::new(0) })
    }

    /// One server, over a channel that is there already.
    pub(crate) fn one(channel: Channel) -> Self {
        Self { servers: vec![Server { address: String::new(), channel }], preferred: AtomicUsize::new(0) }
    }

    pub(crate) fn has_others(&self) -> bool {
        self.servers.len() > 1
    }

    /// The channel to the server that answered last.
    pub(crate) fn channel(&self) -> Channel {
        self.servers[self.first()].channel.clone()
    }

    /// The addresses, that of the server that answered last first.
    pub(crate) fn addresses(&self) -> Vec<String> {
        let (before, from) = self.servers.split_at(self.first());
        from.iter().chain(before).map(|server| server.address.clone()).collect()
    }

    fn first(&self) -> usize {
        self.preferred.load(Ordering::Relaxed) % self.servers.len()
    }

    /// Makes a request of the server that answered last, and of the others in turn where that cannot be reached or cannot do it now; again
    /// and again as long as any of them is there, within [`PATIENCE`]. With one server it is asked once.
    pub(crate) async fn call<T, R, F>(
        &self,
        again: Again,
        message: T,
        call: impl Fn(Channel, tonic::Request<T>) -> F,
    ) -> Result<R, Status>
    where
        T: Clone,
        F: Future<Output = Result<tonic::Response<R>, tonic::Status>>,
    {
        let deadline = Instant::now() + PATIENCE;
        let mut pause = FIRST_PAUSE;
        loop {
            let first = self.first();
            // Of several errors, one that a server gave says more than that another cannot be reached.
            let (mut answered, mut unreachable) = (None, None);
            for step in 0..self.servers.len() {
                let index = (first + step) % self.servers.len();
                let error = match call(self.servers[index].channel.clone(), timed(message.clone())).await {
                    Ok(answer) => {
                        self.preferred.store(index, Ordering::Relaxed);
                        return Ok(answer.into_inner());
                    }
                    Err(error) => error,
                };
                let status = convert::status(&error);
                if convert::was_never_sent(&error) {
                    unreachable = Some(status);
                    continue;
                }
                let passing = matches!(status.reason, Reason::ServiceUnavailable | Reason::Timeout);
                if again == Again::Never || !passing {
                    return Err(status);
                }
                answered = Some(status);
            }
            let is_there = answered.is_some();
            let last = answered.or(unreachable).unwrap_or_else(|| Status::unavailable("no server is known"));
            if !self.has_others() || !is_there || Instant::now() + pause >= deadline {
                return Err(last);
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}
