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

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, collections::VecDeque};

    use hearth_types::ObjectKey;

    use super::*;
    use crate::connect::ConnectError;

    /// Three servers that nobody listens at: what they answer is a script.
    fn three() -> Servers {
        let server = |address: &str| Server {
            address: address.to_owned(),
            channel: tonic::transport::Endpoint::from_static("http://127.0.0.1:1").connect_lazy(),
        };
        Servers { servers: ["a", "b", "c"].map(server).into(), preferred: AtomicUsize::new(0) }
    }

    fn unreachable() -> tonic::Status {
        tonic::Status::from_error(Box::new(ConnectError::Tcp { address: "a".into(), why: "refused".into() }))
    }

    /// Makes a request whose tries are answered as the script says; returns how it ended and how many tries are left.
    async fn made(
        servers: &Servers,
        again: Again,
        script: impl IntoIterator<Item = Result<&'static str, tonic::Status>>,
    ) -> (Result<&'static str, Status>, usize) {
        let script: RefCell<VecDeque<_>> = RefCell::new(script.into_iter().collect());
        let call = async |_: Channel, request: tonic::Request<&'static str>| {
            assert_eq!(request.into_inner(), "the same request id");
            script.borrow_mut().pop_front().expect("no more tries").map(tonic::Response::new)
        };
        let ended = servers.call(again, "the same request id", call).await;
        (ended, script.into_inner().len())
    }

    #[tokio::test(start_paused = true)]
    async fn the_others_are_asked_in_turn_and_the_one_that_answered_first_from_then_on() {
        let servers = three();
        assert_eq!(servers.addresses(), ["a", "b", "c"]);
        let (ended, left) =
            made(&servers, Again::Safe, [Err(unreachable()), Err(tonic::Status::unavailable("no leader")), Ok("c")])
                .await;
        assert_eq!((ended, left), (Ok("c"), 0));
        assert_eq!(servers.addresses(), ["c", "a", "b"]);
        assert_eq!(made(&servers, Again::Safe, [Ok("c")]).await, (Ok("c"), 0));
    }

    #[tokio::test(start_paused = true)]
    async fn an_election_is_waited_for_and_a_region_that_is_not_there_is_not() {
        let servers = three();
        let election = (0..20).map(|_| Err(tonic::Status::unavailable("no leader"))).chain([Ok("led")]);
        assert_eq!(made(&servers, Again::Safe, election).await, (Ok("led"), 0));
        let begin = Instant::now();
        let (ended, left) = made(&servers, Again::Safe, (0..3).map(|_| Err(unreachable()))).await;
        assert_eq!((ended.expect_err("nobody is there").reason, left), (Reason::ServiceUnavailable, 0));
        assert_eq!(begin.elapsed(), Duration::ZERO);
        // For ever it is not waited either.
        let never = (0..1000).map(|_| Err(tonic::Status::unavailable("no leader")));
        made(&servers, Again::Safe, never).await.0.expect_err("in the end");
        assert!(begin.elapsed() <= PATIENCE, "{:?}", begin.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn what_may_have_happened_is_asked_again_only_by_its_request_id() {
        let servers = three();
        let broke = || Err(tonic::Status::unavailable("the connection broke"));
        let (ended, left) = made(&servers, Again::Never, [broke(), Ok("twice")]).await;
        assert_eq!((ended.expect_err("it may have happened").reason, left), (Reason::ServiceUnavailable, 1));
        assert_eq!(made(&servers, Again::Never, [Err(unreachable()), Ok("once")]).await, (Ok("once"), 0));
        // What a server refuses, all refuse.
        let refusal = Status::not_found(&ObjectKey::new(hearth_types::GroupKind::POD, "a", "b"));
        let details = serde_json::to_vec(&refusal).expect("JSON");
        let refused = tonic::Status::with_details(tonic::Code::NotFound, "none", details.into());
        let (ended, left) = made(&servers, Again::Safe, [Err(refused), Ok("found")]).await;
        assert_eq!((ended, left), (Err(refusal), 1));
    }

    #[tokio::test(start_paused = true)]
    async fn the_only_server_is_asked_once() {
        let servers = Servers::one(three().channel());
        let (ended, left) =
            made(&servers, Again::Safe, [Err(tonic::Status::unavailable("starting")), Ok("later")]).await;
        assert_eq!((ended.expect_err("as it was").reason, left), (Reason::ServiceUnavailable, 1));
    }
}
