//! From `hearth up` to an app that answers by its name.

use std::time::Instant;

use anyhow::Result;
use hearth_e2e::instance::Instance;

use crate::report::{Better, Report, median};

/// Instances, one after the other.
const ROUNDS: usize = 5;

pub(crate) fn run(report: &mut Report) -> Result<()> {
    let (mut first, mut again) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let instance = Instance::empty()?;
        for times in [&mut first, &mut again] {
            let begun = Instant::now();
            instance.start("notes")?;
            times.push(begun.elapsed().as_secs_f64());
            instance.down()?;
        }
    }
    report.figure("first time, until the example answers", median(&mut first), "s", Better::Lower, None)?;
    report.figure("again, with its data", median(&mut again), "s", Better::Lower, None)
}
