//! Tokens that show an owner's status page: good as often as they are shown, until they expire or are deleted.

use std::time::Duration;

use hearth_types::{Status, store::Consistency};

use super::{Purpose, Tokens, forbidden};

/// How long one is good for unless asked otherwise: a season.
pub(super) const DEFAULT_VALIDITY: Duration = Duration::from_hours(90 * 24);
/// The longest that can be asked for: about a year, as browsers keep what they are told to keep.
pub(super) const MAX_VALIDITY: Duration = Duration::from_hours(400 * 24);

impl Tokens {
    /// Whose status page a token shows, and for how long still, by what this server knows.
    pub(crate) async fn status_of(&self, shown: &str) -> Result<(String, Duration), Status> {
        let token = self.presented(shown, Consistency::Local).await?;
        if token.purpose != Purpose::Status {
            return Err(forbidden("the token is one to join by, and shows no status page"));
        }
        self.still_good(&token)?;
        let left = token.expires.0.saturating_sub(self.now().0);
        Ok((token.owner, Duration::from_millis(left.max(0).unsigned_abs())))
    }
}
