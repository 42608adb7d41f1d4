//! What clients were told is linearizable: registers, compare-and-set, and lists.

use crate::{history::objects, observed::Observed};

/// Whether it is.
pub fn check(observed: &Observed) -> Result<(), String> {
    objects::check(&observed.history).map_err(|violation| violation.to_string())
}
