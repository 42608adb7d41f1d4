//! Copying both ways between a caller and a device, with back-pressure and deadlines.

use std::{
    future::poll_fn,
    io,
    mem::MaybeUninit,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};

use prometheus::IntCounter;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep},
};

use crate::{
    limits::{COPIES_PER_TURN, COPY_BYTES, Limits},
    metrics::{Metrics, Outcome},
    records::Records,
};

/// How the copying ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct End {
    /// What became of the connection.
    pub(crate) outcome: Outcome,
    /// Whether the caller may still send: then what it sends must be read before its socket is closed, or the reset
    /// would overtake the device's last bytes.
    pub(crate) caller_open: bool,
}

/// Copies both ways until both directions have ended, one breaks, or a deadline passes.
///
/// `first` are the device's first bytes, which the caller has not seen; `sent` are the bytes of the caller that the
/// device has, `None` where it is not known to be TLS. `stop` ends when the gateway is told to stop.
///
/// Flow: each direction reads into a buffer that lives for one poll, and writes it out at once. Only what the writer
/// does not take is kept, and nothing more is read until that is gone: so there is back-pressure, at most
/// [`COPY_BYTES`] a direction, and no buffer at all while nothing moves.
///
/// Guarantees: an end of file is passed on as a half close, after all bytes before it. Deadlines: `handshake` until
/// the caller's first protected record after the device's answer, `idle` or `half_closed` without a byte, `stall`
/// while a writer takes nothing, `drain_quiet` without a byte once told to stop.
///
/// Caveats: a TLS 1.2 handshake counts as over with the caller's first data, since its end cannot be told from
/// outside; a connection that a browser opened ahead of need over TLS 1.2 ends with the handshake's deadline.
pub(crate) async fn pump<C, D>(
    caller: &mut C,
    device: &mut D,
    (sent, first): (Option<&[u8]>, Vec<u8>),
    stop: impl Future<Output = ()>,
    limits: &Limits,
    metrics: &Metrics,
) -> End
where
    C: AsyncRead + AsyncWrite + Unpin,
    D: AsyncRead + AsyncWrite + Unpin,
{
    let now = Instant::now();
    let handshake = sent.map(|sent| {
        let mut records = Records::default();
        records.feed(sent);
        records
    });
    let mut up = Direction::new(now, Vec::new());
    let mut down = Direction::new(now, first);
    let mut clock = Clock { begun: now, handshake, draining: false };
    let mut stop = pin!(stop);
    let mut alarm = pin!(tokio::time::sleep_until(clock.deadline(&up, &down, limits).0));
    poll_fn(|cx| {
        if !clock.draining && stop.as_mut().poll(cx).is_ready() {
            clock.draining = true;
        }
        if !up.over()
            && let Poll::Ready(Err(broken)) =
                up.poll(cx, caller, device, &metrics.to_device, &mut |bytes| clock.sees(bytes))
        {
            match broken {
                Broken::Reader => {
                    // A caller that has everything may leave without a good-bye.
                    let outcome = if down.over() { Outcome::Passed } else { Outcome::CallerLost };
                    return Poll::Ready(End { outcome, caller_open: false });
                }
                // The device takes no more, but may have said its last words.
                Broken::Writer => up.give_up(),
            }
        }
        if !down.over()
            && let Poll::Ready(Err(broken)) = down.poll(cx, device, caller, &metrics.to_caller, &mut |_| {})
        {
            let outcome = match broken {
                Broken::Reader => Outcome::DeviceLost,
                Broken::Writer => Outcome::CallerLost,
            };
            return Poll::Ready(End { outcome, caller_open: false });
        }
        if up.over() && down.over() {
            return Poll::Ready(End { outcome: Outcome::Passed, caller_open: up.broken });
        }
        poll_alarm(cx, alarm.as_mut(), || clock.deadline(&up, &down, limits))
            .map(|outcome| End { outcome, caller_open: false })
    })
    .await
}

/// Ready when the deadline has passed. The timer is moved only when it is too late or has gone off too early, so
/// that traffic costs no timer.
fn poll_alarm(
    cx: &mut Context<'_>,
    mut alarm: Pin<&mut Sleep>,
    deadline: impl Fn() -> (Instant, Outcome),
) -> Poll<Outcome> {
    loop {
        let (due, outcome) = deadline();
        if due < alarm.deadline() {
            alarm.as_mut().reset(due);
        }
        ready!(alarm.as_mut().poll(cx));
        if due <= Instant::now() {
            return Poll::Ready(outcome);
        }
        alarm.as_mut().reset(due);
    }
}

/// What the deadlines depend on, but for the directions.
struct Clock {
    begun: Instant,
    /// The caller's records, until the handshake is over.
    handshake: Option<Records>,
    draining: bool,
}

impl Clock {
    /// Takes note of the caller's bytes.
    fn sees(&mut self, bytes: &[u8]) {
        if self.handshake.as_mut().is_some_and(|records| records.feed(bytes)) {
            self.handshake = None;
        }
    }

    /// The first deadline, and what has happened when it passes.
    fn deadline(&self, up: &Direction, down: &Direction, limits: &Limits) -> (Instant, Outcome) {
        let moved = up.moved.max(down.moved);
        let half_closed = up.over() || down.over();
        let silence = if half_closed { limits.half_closed.min(limits.idle) } else { limits.idle };
        let stalls = |direction: &Direction, bound: Duration| {
            direction.waits_for_writer().then_some((direction.moved + bound, Outcome::Stalled))
        };
        [
            Some((moved + silence, Outcome::Idle)),
            self.handshake.is_some().then_some((self.begun + limits.handshake, Outcome::HandshakeTimeout)),
            self.draining.then_some((moved + limits.drain_quiet, Outcome::Drained)),
            stalls(up, limits.stall),
            stalls(down, limits.stall),
        ]
        .into_iter()
        .flatten()
        .min_by_key(|(due, _)| *due)
        .expect("one is always there")
    }
}

/// Which side of a direction broke.
#[derive(Clone, Copy, Debug)]
enum Broken {
    Reader,
    Writer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Copying,
    /// The reader has ended; the writer is being told.
    Closing,
    Over,
}

/// One direction.
struct Direction {
    phase: Phase,
    /// Whether it ended since its writer broke.
    broken: bool,
    /// What the writer has not taken yet, from `taken` on.
    kept: Vec<u8>,
    taken: usize,
    unflushed: bool,
    /// When a byte was last read or written, or this direction last changed its phase.
    moved: Instant,
}

impl Direction {
    fn new(now: Instant, kept: Vec<u8>) -> Self {
        Self { phase: Phase::Copying, broken: false, kept, taken: 0, unflushed: false, moved: now }
    }

    fn over(&self) -> bool {
        self.phase == Phase::Over
    }

    fn waits_for_writer(&self) -> bool {
        self.phase == Phase::Closing || !self.kept.is_empty()
    }

    fn give_up(&mut self) {
        self.kept = Vec::new();
        self.phase = Phase::Over;
        self.broken = true;
        self.moved = Instant::now();
    }

    /// Copies until neither side goes on, or until others should have their turn. Ready when the direction is over.
    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
        bytes: &IntCounter,
        sees: &mut dyn FnMut(&[u8]),
    ) -> Poll<Result<(), Broken>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        ready!(self.poll_kept(cx, writer, bytes))?;
        #[expect(clippy::large_stack_arrays, reason = "not initialized, and gone with this poll: a worker has 2 MiB")]
        let mut scratch = [MaybeUninit::uninit(); COPY_BYTES];
        let mut turns = 0;
        while self.phase == Phase::Copying {
            if turns == COPIES_PER_TURN {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            turns += 1;
            let mut buffer = ReadBuf::uninit(&mut scratch);
            match Pin::new(&mut *reader).poll_read(cx, &mut buffer) {
                Poll::Ready(result) => result.map_err(|_| Broken::Reader)?,
                Poll::Pending => {
                    // An error will show again with the next write.
                    if self.unflushed && Pin::new(&mut *writer).poll_flush(cx).is_ready() {
                        self.unflushed = false;
                    }
                    return Poll::Pending;
                }
            }
            self.moved = Instant::now();
            let read = buffer.filled();
            if read.is_empty() {
                self.phase = Phase::Closing;
                break;
            }
            sees(read);
            let mut written = 0;
            while written < read.len() {
                match poll_write(cx, writer, &read[written..]) {
                    Poll::Ready(result) => {
                        let count = result.map_err(|_| Broken::Writer)?;
                        bytes.inc_by(count as u64);
                        written += count;
                        self.unflushed = true;
                    }
                    Poll::Pending => {
                        self.kept.extend_from_slice(&read[written..]);
                        return Poll::Pending;
                    }
                }
            }
        }
        if self.phase == Phase::Closing {
            ready!(Pin::new(writer).poll_shutdown(cx)).map_err(|_| Broken::Writer)?;
            self.phase = Phase::Over;
            self.moved = Instant::now();
        }
        Poll::Ready(Ok(()))
    }

    /// Writes what was kept, and gives its memory back.
    fn poll_kept<W>(&mut self, cx: &mut Context<'_>, writer: &mut W, bytes: &IntCounter) -> Poll<Result<(), Broken>>
    where
        W: AsyncWrite + Unpin,
    {
        while self.taken < self.kept.len() {
            let count = ready!(poll_write(cx, writer, &self.kept[self.taken..])).map_err(|_| Broken::Writer)?;
            bytes.inc_by(count as u64);
            self.taken += count;
            self.unflushed = true;
            self.moved = Instant::now();
        }
        self.kept = Vec::new();
        self.taken = 0;
        Poll::Ready(Ok(()))
    }
}

/// Writes at least a byte.
fn poll_write<W: AsyncWrite + Unpin>(cx: &mut Context<'_>, writer: &mut W, bytes: &[u8]) -> Poll<io::Result<usize>> {
    match ready!(Pin::new(writer).poll_write(cx, bytes)) {
        Ok(0) => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
        other => Poll::Ready(other),
    }
}

#[cfg(test)]
mod tests;
