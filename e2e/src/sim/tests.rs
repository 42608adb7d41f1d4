//! Runs of the simulation: some hundred seeds, the same twice, and bugs that were put back.

#![allow(clippy::unwrap_used)] // a test may panic

use super::run;

/// How to see a failure again.
fn judge(seed: u64) {
    let report = run(seed).unwrap();
    assert!(
        report.violations.is_empty(),
        "seed {seed}, see it again with `make sim SEED={seed}`:\n{}",
        report.violations.join("\n")
    );
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in [1, 2, 3] {
        let (one, other) = (run(seed).unwrap(), run(seed).unwrap());
        for (line, again) in one.trace.iter().zip(&other.trace) {
            assert_eq!(line, again, "seed {seed}");
        }
        assert_eq!(one.hash, other.hash, "seed {seed}");
    }
}

#[test]
fn seeds_0_to_9_hold() {
    (0..10).for_each(judge);
}
