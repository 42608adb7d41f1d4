//! What must hold of every run, whatever befell it. One file each.

pub mod acknowledged;
pub mod changes;
pub mod equal;
pub mod leaders;
pub mod linearizable;
pub mod local;
pub mod rising;
pub mod watches;

use super::observed::Observed;

/// Judges a run; the error says what is wrong with it.
pub type Invariant = fn(&Observed) -> Result<(), String>;

/// All of them by name.
pub const INVARIANTS: [(&str, Invariant); 8] = [
    ("nothing goes wrong that must not", no_trouble),
    ("a term has one leader", leaders::check),
    ("revisions and terms only rise", rising::check),
    ("a watch is a prefix of the history", watches::check),
    ("what a server has is one state of the history", local::check),
    ("no acknowledged write is lost", acknowledged::check),
    ("all servers end up equal", equal::check),
    ("histories are linearizable", linearizable::check),
];

/// The names of the invariants that a run violates, and how.
pub fn violations(observed: &Observed) -> Vec<String> {
    let broken = |(name, invariant): &(&str, Invariant)| Some(format!("{name}: {}", invariant(observed).err()?));
    INVARIANTS.iter().filter_map(broken).collect()
}

fn no_trouble(observed: &Observed) -> Result<(), String> {
    if observed.troubles.is_empty() { Ok(()) } else { Err(observed.troubles.join("; ")) }
}
