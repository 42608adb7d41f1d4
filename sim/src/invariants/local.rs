//! What a server has is the state of one revision, also where it is behind.

use super::changes::Changes;
use crate::observed::Observed;

/// Whether each list of what one server had is the state of the history at the list's revision.
pub fn check(observed: &Observed) -> Result<(), String> {
    let changes = Changes::of(observed)?;
    for list in observed.local.iter().filter(|list| list.revision <= changes.complete) {
        let expected = changes.state(list.revision, &list.prefix);
        if list.items != expected {
            return Err(format!(
                "server {} had {:?} at revision {}; it was {expected:?}",
                list.server, list.items, list.revision
            ));
        }
    }
    Ok(())
}
