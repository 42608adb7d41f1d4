//! A term has one leader at most.

use std::collections::BTreeMap;

use crate::observed::Observed;

/// Whether no two servers were said to lead in one term.
pub fn check(observed: &Observed) -> Result<(), String> {
    let mut leaders = BTreeMap::new();
    for claim in &observed.claims {
        let first = leaders.entry(claim.term).or_insert(claim);
        if first.leader != claim.leader {
            let (one, other) = (first.leader, claim.leader);
            return Err(format!(
                "in term {} server {} said that server {one} leads, and server {} that server {other} does",
                claim.term, first.by, claim.by
            ));
        }
    }
    Ok(())
}
