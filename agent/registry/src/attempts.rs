//! What comes after a failure: the same again after a while, the next mirror, or the end.

use std::time::Duration;

use rand::Rng as _;

use crate::PullError;
use crate::config::PullLimits;
use crate::door::Door;

/// The tries of one request.
pub(crate) struct Attempts<'a> {
    doors: &'a [Door<'a>],
    limits: &'a PullLimits,
    at: usize,
    /// In a row, at this door.
    failures: u32,
}

/// What a failed try allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failed {
    /// As its error says.
    Plainly,
    /// It brought the download on: the count of failures begins anew.
    WithProgress,
    /// It was asked for the image itself: a mirror that has it not or gives it wrongly is not asked for its parts.
    OfTheImage,
    /// What failed may have been what was there before it: the same once more, whatever the error is.
    OnOldBytes,
}

impl<'a> Attempts<'a> {
    /// `doors`: mirrors in order, last the registry itself. Begins with the first that has not failed in this pull.
    pub(crate) fn new(doors: &'a [Door<'a>], limits: &'a PullLimits) -> Self {
        Self { doors, limits, at: next(doors, 0), failures: 0 }
    }

    pub(crate) fn door(&self) -> &'a Door<'a> {
        &self.doors[self.at]
    }

    /// Waits where the same door may be asked again, or goes on to the next.
    ///
    /// # Errors
    /// The error itself, where there is nothing more to try: the registry's own, if there were mirrors.
    pub(crate) async fn after(&mut self, error: PullError, failed: Failed) -> Result<(), PullError> {
        if error.is_local() {
            return Err(error);
        }
        if failed == Failed::WithProgress {
            self.failures = 0;
        }
        self.failures += 1;
        let is_last = self.at + 1 == self.doors.len();
        let tries = if is_last { self.limits.tries } else { 1 };
        let wait = match failed {
            Failed::OnOldBytes => Some(Duration::ZERO),
            _ => self.wait(&error).filter(|_| self.failures < tries || failed == Failed::WithProgress),
        };
        let host = self.door().host();
        if let Some(wait) = wait {
            tracing::debug!(host, %error, ?wait, "asking again");
            tokio::time::sleep(wait).await;
            return Ok(());
        }
        if is_last {
            return Err(error);
        }
        tracing::info!(host, %error, "a mirror was passed over");
        let is_down = matches!(error, PullError::Unreachable { .. } | PullError::TooManyRequests { .. });
        if is_down || failed == Failed::OfTheImage {
            self.door().pass_over();
        }
        self.at = next(self.doors, self.at + 1);
        self.failures = 0;
        Ok(())
    }

    /// How long to wait before the same again; `None` where that would not help.
    fn wait(&self, error: &PullError) -> Option<Duration> {
        match error {
            PullError::Unreachable { .. } | PullError::TooManyRequests { retry_after: None, .. } => {
                Some(self.backoff())
            }
            PullError::TooManyRequests { retry_after: Some(asked), .. } => {
                (*asked <= self.limits.max_retry_after).then(|| self.backoff().max(*asked))
            }
            _ => None,
        }
    }

    /// Doubles with each failure; up to half of it is by chance, so that devices that failed together do not come back together.
    fn backoff(&self) -> Duration {
        let exponent = self.failures.saturating_sub(1).min(16);
        let full = self.limits.backoff.saturating_mul(1 << exponent).min(self.limits.max_backoff);
        full.mul_f64(rand::rng().random_range(0.5..=1.0))
    }
}

/// The first door from `at` on that has not failed in this pull; otherwise the registry itself.
fn next(doors: &[Door<'_>], at: usize) -> usize {
    let last = doors.len() - 1;
    (at..last).find(|at| !doors[*at].is_passed_over()).unwrap_or(last)
}
