//! A watch is a prefix of the history: no event is lost, doubled or out of order, whatever servers it moves between, and no bookmark is ahead.

use super::changes::Changes;
use crate::observed::{Observed, Sight, Watched};

/// Whether each watcher saw all changes between its beginning and its end that it asked for, once each and in order.
pub fn check(observed: &Observed) -> Result<(), String> {
    let changes = Changes::of(observed)?;
    let mut each = observed.watches.iter().enumerate();
    each.try_for_each(|(number, watched)| follow(watched, &changes).map_err(|why| format!("watcher {number}: {why}")))
}

fn follow(watched: &Watched, changes: &Changes) -> Result<(), String> {
    // Everything up to here was told.
    let mut position: Option<u64> = None;
    for sight in &watched.sights {
        match sight {
            Sight::Began { server, from } => match position {
                Some(position) if position != *from => {
                    return Err(format!("it went on at server {server} from {from}, having seen up to {position}"));
                }
                _ => position = Some(*from),
            },
            Sight::Listed { revision } => position = Some(*revision),
            Sight::Event { revision, .. } => {
                let before = position.ok_or("it was told before it began")?;
                if *revision <= before {
                    return Err(format!("it was told of revision {revision} after {before}"));
                }
                nothing_between(watched, changes, before, *revision)?;
                position = Some(*revision);
            }
            Sight::Bookmark { revision } => {
                let before = position.ok_or("it was told before it began")?;
                if *revision < before {
                    return Err(format!("a bookmark of {revision} came after {before}"));
                }
                nothing_between(watched, changes, before, revision + 1)?;
                position = Some(*revision);
            }
        }
    }
    Ok(())
}

/// Whether it was to be told of nothing between two revisions.
fn nothing_between(watched: &Watched, changes: &Changes, after: u64, before: u64) -> Result<(), String> {
    if watched.prefix.is_empty() && after + 1 < before {
        // Every revision changes an object, and it asked for all of them.
        return Err(format!("it was told of nothing between {after} and {before}"));
    }
    let mut between = changes.by_revision.range(after + 1..before);
    match between.find(|(_, change)| change.key.starts_with(&watched.prefix)) {
        Some((revision, change)) => Err(format!("it was not told of {change:?} at {revision}")),
        None => Ok(()),
    }
}
