use prometheus::Registry;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    sync::oneshot,
    task::JoinHandle,
};

use super::*;

const HANDSHAKE_RECORD: [u8; 8] = [22, 3, 3, 0, 3, 1, 2, 3];
const DATA_RECORD: [u8; 8] = [23, 3, 3, 0, 3, 1, 2, 3];

/// A pump under way; the far ends of its two sides are in the test's hands.
struct Run {
    caller: DuplexStream,
    device: DuplexStream,
    stop: oneshot::Sender<()>,
    begun: Instant,
    end: JoinHandle<End>,
}

fn start(pipe: usize, first: &[u8]) -> Run {
    let (caller, mut near_caller) = duplex(pipe);
    let (device, mut near_device) = duplex(pipe);
    let (stop, stopped) = oneshot::channel();
    let first = first.to_vec();
    let end = tokio::spawn(async move {
        let metrics = Metrics::register(&Registry::new()).expect("metrics");
        let stop = async {
            if stopped.await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let limits = Limits::default();
        let end = pump(&mut near_caller, &mut near_device, (Some(&[]), first), stop, &limits, &metrics).await;
        (end, near_caller, near_device).0
    });
    Run { caller, device, stop, begun: Instant::now(), end }
}

impl Run {
    /// Waits for the end, and returns how long after the start it came.
    async fn ended(self) -> (Outcome, Duration) {
        let Self { caller, device, stop, begun, end } = self;
        let end = end.await.expect("no panic");
        drop((caller, device, stop));
        (end.outcome, begun.elapsed())
    }

    /// Sends a record from the caller to the device.
    async fn record(&mut self, record: [u8; 8]) {
        self.caller.write_all(&record).await.expect("taken");
        let mut got = [0; 8];
        self.device.read_exact(&mut got).await.expect("passed on");
        assert_eq!(got, record);
    }
}

/// Whether a time is what was asked for, give or take the timer's granularity.
fn about(took: Duration, expected: Duration) -> bool {
    took >= expected && took < expected + Duration::from_millis(50)
}

fn pattern(length: usize, seed: usize) -> Vec<u8> {
    (0..length).map(|at| ((at * 31 + at / 251 + seed) % 256) as u8).collect()
}

#[tokio::test]
async fn bytes_arrive_complete_and_in_order_through_pipes_of_any_size() {
    for pipe in [1, 7, 1000, COPY_BYTES - 1, 3 * COPY_BYTES] {
        let length = if pipe == 1 { 20_000 } else { 500_000 };
        let (up, down) = (pattern(length, 1), pattern(length, 2));
        let run = start(pipe, &down[..100]);
        let (mut caller_reads, mut caller_writes) = tokio::io::split(run.caller);
        let (mut device_reads, mut device_writes) = tokio::io::split(run.device);
        let (mut got_up, mut got_down) = (Vec::new(), Vec::new());
        let send_up = async {
            caller_writes.write_all(&up).await.expect("taken");
            caller_writes.shutdown().await.expect("ended");
        };
        let send_down = async {
            device_writes.write_all(&down[100..]).await.expect("taken");
            device_writes.shutdown().await.expect("ended");
        };
        let receive_up = async { device_reads.read_to_end(&mut got_up).await.expect("passed on") };
        let receive_down = async { caller_reads.read_to_end(&mut got_down).await.expect("passed on") };
        tokio::join!(send_up, send_down, receive_up, receive_down);
        assert!(got_up == up && got_down == down, "pipes of {pipe}");
        assert_eq!(run.end.await.expect("no panic").outcome, Outcome::Passed);
    }
}

#[tokio::test(start_paused = true)]
async fn a_device_that_does_not_read_stops_the_reading_of_the_caller() {
    let mut run = start(1000, b"");
    let mut taken = 0;
    // Virtual time: this ends as soon as nothing moves any more.
    while let Ok(written) = tokio::time::timeout(Duration::from_secs(1), run.caller.write(&[0; 500])).await {
        taken += written.expect("open");
    }
    assert!(taken <= COPY_BYTES + 2 * 1000, "{taken} bytes are on their way");
}

#[tokio::test]
async fn a_half_close_leaves_the_other_direction_open() {
    let mut run = start(1000, b"");
    run.caller.shutdown().await.expect("ended");
    assert_eq!(run.device.read(&mut [0; 9]).await.expect("read"), 0, "the device reads the end");
    run.device.write_all(b"an answer").await.expect("still open");
    run.device.shutdown().await.expect("ended");
    let mut got = Vec::new();
    run.caller.read_to_end(&mut got).await.expect("passed on");
    assert_eq!(got, b"an answer");
    assert_eq!(run.ended().await.0, Outcome::Passed);
}

#[tokio::test(start_paused = true)]
async fn without_protected_data_the_handshake_deadline_ends_it_however_much_moves() {
    let mut run = start(1000, b"hello");
    for _ in 0..14 {
        run.record(HANDSHAKE_RECORD).await;
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    let (outcome, took) = run.ended().await;
    assert_eq!(outcome, Outcome::HandshakeTimeout);
    assert!(about(took, Limits::default().handshake), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn after_the_handshake_only_long_silence_ends_it() {
    let mut run = start(1000, b"hello");
    run.record(HANDSHAKE_RECORD).await;
    run.record(DATA_RECORD).await;
    for _ in 0..3 {
        tokio::time::advance(Duration::from_mins(50)).await;
        run.device.write_all(b"x").await.expect("open after silence");
        assert!(run.caller.read(&mut [0; 9]).await.expect("passed on") > 0);
    }
    let silent_since = run.begun.elapsed();
    let (outcome, took) = run.ended().await;
    assert_eq!(outcome, Outcome::Idle);
    assert!(about(took, silent_since + Limits::default().idle), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn half_closed_silence_ends_sooner() {
    let mut run = start(1000, b"");
    run.record(DATA_RECORD).await;
    run.device.shutdown().await.expect("ended");
    let (outcome, took) = run.ended().await;
    assert_eq!(outcome, Outcome::Idle);
    assert!(about(took, Limits::default().half_closed), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_takes_nothing_is_ended_though_it_sends() {
    let mut run = start(100, b"");
    run.record(DATA_RECORD).await;
    // The caller's pipe, what is kept, and the device's pipe: when the last is full, the writing has stalled.
    run.device.write_all(&[0; 300]).await.expect("taken");
    // Traffic the other way does not count: it is the writing that stalls.
    for _ in 0..5 {
        tokio::time::advance(Duration::from_secs(10)).await;
        run.record(DATA_RECORD).await;
    }
    let (outcome, took) = run.ended().await;
    assert_eq!(outcome, Outcome::Stalled);
    assert!(about(took, Limits::default().stall), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn once_told_to_stop_it_ends_when_it_is_silent_for_a_moment() {
    let mut run = start(1000, b"");
    run.record(DATA_RECORD).await;
    let (never, _keep) = oneshot::channel();
    std::mem::replace(&mut run.stop, never).send(()).expect("listening");
    for _ in 0..4 {
        tokio::time::advance(Limits::default().drain_quiet / 2).await;
        run.record(DATA_RECORD).await;
    }
    let busy = run.begun.elapsed();
    let (outcome, took) = run.ended().await;
    assert_eq!(outcome, Outcome::Drained);
    assert!(about(took, busy + Limits::default().drain_quiet), "{took:?}");
}

#[tokio::test]
async fn a_caller_that_breaks_ends_it() {
    let run = start(100, b"");
    drop(run.caller);
    let mut device = run.device;
    device.write_all(b"nobody listens").await.expect("taken");
    assert_eq!(run.end.await.expect("no panic").outcome, Outcome::CallerLost);
}

/// A device that takes nothing any more, and whose last words are still to be read.
struct Deaf(io::Cursor<&'static [u8]>);

impl AsyncRead for Deaf {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Deaf {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
    }
}

#[tokio::test]
async fn the_last_words_of_a_device_that_takes_no_more_arrive() {
    let (mut caller, mut near) = duplex(1000);
    caller.write_all(b"an upload that is not wanted").await.expect("taken");
    let metrics = Metrics::register(&Registry::new()).expect("metrics");
    let mut device = Deaf(io::Cursor::new(b"413"));
    let end =
        pump(&mut near, &mut device, (Some(&[]), Vec::new()), std::future::pending(), &Limits::default(), &metrics)
            .await;
    assert_eq!(end, End { outcome: Outcome::Passed, caller_open: true });
    let mut got = [0; 3];
    caller.read_exact(&mut got).await.expect("last words");
    assert_eq!(&got, b"413");
}
