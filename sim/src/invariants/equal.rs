//! Once everything is healed, all servers hold the same, and it is what the history ends with.

use super::changes::Changes;
use crate::observed::Observed;

/// Whether all servers ended equal.
pub fn check(observed: &Observed) -> Result<(), String> {
    let changes = Changes::of(observed)?;
    let Some(first) = observed.finals.first() else { return Ok(()) };
    for other in &observed.finals {
        if other.revision != first.revision || other.items != first.items {
            return Err(format!(
                "server {} ended at revision {} with {:?}, server {} at {} with {:?}",
                first.server, first.revision, first.items, other.server, other.revision, other.items
            ));
        }
        if other.state != first.state {
            let (one, other) = (first.server, other.server);
            return Err(format!("servers {one} and {other} hold the same objects, but their states differ"));
        }
    }
    let expected = changes.state(first.revision, "");
    if first.revision == changes.complete && first.items != expected {
        return Err(format!("the servers ended with {:?}; by their history it is {expected:?}", first.items));
    }
    Ok(())
}
