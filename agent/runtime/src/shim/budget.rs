//! How fast a container may log. Its output is formatted and written by its shim, which no limit of the container
//! counts, onto the owner's flash, which wears out: so it is limited here. What is over the rate waits in the pipe, and
//! the program with it; nothing is lost, and the log says so.

use std::time::{Duration, Instant};

/// Bytes that a container may write to its log for long, times and tags included: 5.6 GB a day, which the worst card
/// bears for years.
pub(super) const BYTES_PER_SECOND: u64 = 64 << 10;
/// Bytes that it may write at once after a silence: a start that tells a lot, or a long trace.
pub(super) const BYTE_BURST: u64 = 4 << 20;
/// Lines for long: each costs the shim about 2 µs, so that is 0.2 % of a core.
pub(super) const LINES_PER_SECOND: u64 = 1000;
/// Lines at once: 40 ms of a core.
pub(super) const LINE_BURST: u64 = 20_000;
/// Part of a second that has to be saved up before a container that is over its rate is read again: ten times a second
/// is often enough for who reads along, and each time costs a turn of the loop and a write.
const TURNS_PER_SECOND: u64 = 10;
/// A read of fewer bytes is followed by a pause, so that a program that writes word by word is read in pieces worth a
/// write. A larger read is not: the program waits for room in its pipe.
const WORTH_BYTES: usize = 4 << 10;
/// That pause.
const PAUSE: Duration = Duration::from_millis(20);

/// How often a log says again that its program waits for it.
const TOLD_EVERY: Duration = Duration::from_hours(1);

/// A bucket of tokens that fills with time. In thousandths, so that short times count.
#[derive(Debug)]
struct Bucket {
    milli: i64,
    rate: u64,
    burst: u64,
}

impl Bucket {
    fn new(rate: u64, burst: u64) -> Self {
        Self { milli: (burst * 1000) as i64, rate, burst }
    }

    fn fill(&mut self, passed_ms: u64) {
        let more = passed_ms.saturating_mul(self.rate).min(self.burst * 1000) as i64;
        self.milli = (self.milli + more).min((self.burst * 1000) as i64);
    }

    fn tokens(&self) -> u64 {
        (self.milli.max(0) / 1000) as u64
    }

    fn spend(&mut self, tokens: u64) {
        self.milli -= (tokens * 1000) as i64;
    }

    /// How many a turn takes.
    fn turn(&self) -> u64 {
        self.rate / TURNS_PER_SECOND
    }

    /// Until a turn is saved up.
    fn wait(&self) -> Duration {
        let missing = (self.turn() * 1000) as i64 - self.milli;
        Duration::from_millis((missing.max(0) as u64).div_ceil(self.rate))
    }
}

/// What one container may still log.
#[derive(Debug)]
pub(super) struct Budget {
    bytes: Bucket,
    lines: Bucket,
    /// Until then the buckets are filled.
    filled: Instant,
    not_before: Instant,
    /// When it was told last that the program waits.
    told: Option<Instant>,
}

impl Budget {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            bytes: Bucket::new(BYTES_PER_SECOND, BYTE_BURST),
            lines: Bucket::new(LINES_PER_SECOND, LINE_BURST),
            filled: now,
            not_before: now,
            told: None,
        }
    }

    /// What the log is to say where its program now has to wait for it: the first time, and each hour.
    pub(super) fn notice(&mut self, now: Instant) -> Option<String> {
        if self.wait().is_zero() || self.told.is_some_and(|told| now.saturating_duration_since(told) < TOLD_EVERY) {
            return None;
        }
        self.told = Some(now);
        let kib = BYTES_PER_SECOND >> 10;
        Some(format!(
            "hearth: this container writes more than {kib} KiB or {LINES_PER_SECOND} lines a second to its log, and waits for it; nothing is lost"
        ))
    }

    /// Until a turn of both is saved up.
    fn wait(&self) -> Duration {
        self.bytes.wait().max(self.lines.wait())
    }

    /// When its pipes may be read again.
    pub(super) fn ready_at(&self) -> Instant {
        let wait = self.wait();
        if wait.is_zero() { self.not_before } else { self.not_before.max(self.filled + wait) }
    }

    /// How many bytes may be read now; none if it is too early. Each may turn out to be a line.
    pub(super) fn allowed(&mut self, now: Instant) -> usize {
        let passed_ms = now.saturating_duration_since(self.filled).as_millis() as u64;
        // Only whole ones, so that none is lost to rounding.
        self.filled += Duration::from_millis(passed_ms);
        self.bytes.fill(passed_ms);
        self.lines.fill(passed_ms);
        if now < self.ready_at() {
            return 0;
        }
        self.bytes.tokens().min(self.lines.tokens()) as usize
    }

    /// What was read, and what was written for it.
    pub(super) fn spend(&mut self, read: usize, written: usize, lines: usize, now: Instant) {
        self.bytes.spend(written as u64);
        self.lines.spend(lines as u64);
        if read < WORTH_BYTES {
            self.not_before = now + PAUSE;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A container that always has output, of lines this long; what it has logged after so long, and in how many reads.
    fn flood(line: usize, overhead: usize, seconds: u64) -> (u64, u64, u64) {
        let begun = Instant::now();
        let mut budget = Budget::new(begun);
        let (mut now, mut bytes, mut lines, mut reads) = (begun, 0, 0, 0);
        while now < begun + Duration::from_secs(seconds) {
            let allowed = budget.allowed(now).min(16 << 10);
            if allowed == 0 {
                let next = budget.ready_at();
                assert!(next > now, "the loop would turn in vain");
                now = next;
                continue;
            }
            let ended = allowed / line;
            let written = allowed + ended * overhead;
            budget.spend(allowed, written, ended, now);
            (bytes, lines, reads) = (bytes + written as u64, lines + ended as u64, reads + 1);
        }
        (bytes, lines, reads)
    }

    #[test]
    fn a_flood_is_bounded_in_bytes_and_lines_and_turns() {
        const SECONDS: u64 = 60;
        for line in [1, 2, 80, 500, 16 << 10] {
            let (bytes, lines, reads) = flood(line, 47, SECONDS);
            // What one read may be over.
            let slack = 16 << 10;
            assert!(bytes <= BYTE_BURST + BYTES_PER_SECOND * SECONDS + 48 * slack, "{line}: {bytes}");
            assert!(lines <= LINE_BURST + LINES_PER_SECOND * SECONDS + slack, "{line}: {lines}");
            let used = (bytes * 10 / (BYTES_PER_SECOND * SECONDS)).max(lines * 10 / (LINES_PER_SECOND * SECONDS));
            assert!(used >= 9, "{line}: the rate is there to be used: {bytes} bytes, {lines} lines");
            assert!(reads <= 400 + 4 * TURNS_PER_SECOND * SECONDS, "{line}: {reads}");
        }
    }

    #[test]
    fn that_a_program_waits_is_told_once_an_hour() {
        let begun = Instant::now();
        let mut budget = Budget::new(begun);
        budget.spend(WORTH_BYTES, WORTH_BYTES, 1, begun);
        assert_eq!(budget.notice(begun), None, "a burst makes nobody wait");
        let mut told = 0;
        for second in 0..=2 * 3600 {
            let now = begun + Duration::from_secs(second);
            let allowed = budget.allowed(now);
            budget.spend(allowed, allowed, allowed, now);
            told += u32::from(budget.notice(now).is_some());
        }
        assert_eq!(told, 3);
    }

    #[test]
    fn output_in_small_pieces_is_read_in_larger_ones() {
        let begun = Instant::now();
        let mut budget = Budget::new(begun);
        assert!(budget.allowed(begun) > WORTH_BYTES, "at once after a silence");
        budget.spend(10, 57, 1, begun);
        assert_eq!(budget.allowed(begun + PAUSE / 2), 0);
        assert!(budget.allowed(begun + PAUSE) > 0);
        budget.spend(WORTH_BYTES, WORTH_BYTES, 1, begun + PAUSE);
        assert!(budget.allowed(begun + PAUSE) > 0, "a program that waits for room is not made to wait longer");
    }
}
