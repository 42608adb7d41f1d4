//! No acknowledged write is lost: each is in the history at the revision that its client was told.

use super::changes::Changes;
use crate::{
    history::objects::{Answer, Call},
    observed::{Observed, What},
};

/// Whether each acknowledged write is there, and nothing that surely did not happen.
pub fn check(observed: &Observed) -> Result<(), String> {
    let changes = Changes::of(observed)?;
    for one in &observed.history {
        let (revision, fits): (u64, &dyn Fn(What) -> bool) = match (&one.call, one.answer()) {
            (Call::Create { .. }, Some(Answer::Written { revision })) => (*revision, &|what| what == What::Added),
            (Call::Put { .. }, Some(Answer::Written { revision })) => (*revision, &|what| what == What::Modified),
            (Call::Delete { .. }, Some(Answer::Deleted { revision })) => (*revision, &|what| what == What::Deleted),
            _ => continue,
        };
        let end = observed.finals.iter().map(|last| last.revision).min();
        if let Some(end) = end.filter(|end| *end < revision) {
            return Err(format!("{} was acknowledged at revision {revision}; the region ended at {end}", one.call));
        }
        let Some(change) = changes.by_revision.get(&revision) else {
            if revision <= changes.complete {
                return Err(format!("{} was acknowledged at revision {revision}, where nothing changed", one.call));
            }
            continue;
        };
        let same_value = one.call.writes().is_none_or(|(_, value)| value == change.value);
        if Some(&change.key) != one.call.key() || !same_value || !fits(change.what) {
            return Err(format!("{} was acknowledged at revision {revision}, where {change:?} happened", one.call));
        }
    }
    Ok(())
}
