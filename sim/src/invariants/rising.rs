//! Revisions and terms only rise in one life of a server.

use std::collections::BTreeMap;

use crate::observed::Observed;

/// Whether no server went back.
pub fn check(observed: &Observed) -> Result<(), String> {
    let mut last = BTreeMap::new();
    for progress in &observed.progress {
        let before = last.insert((progress.server, progress.life), progress);
        if let Some(before) = before
            && (before.revision > progress.revision || before.term > progress.term)
        {
            return Err(format!(
                "server {} went from revision {} in term {} to revision {} in term {}",
                progress.server, before.revision, before.term, progress.revision, progress.term
            ));
        }
    }
    Ok(())
}
