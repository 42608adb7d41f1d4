//! Runs of the simulation: some hundred seeds, the same twice, and bugs that were put back.

use std::ops::Range;

use hearth_sim::{CI_RUNS, Report, run};

/// Seeds of one test; the tests run beside each other.
const SEEDS: u64 = CI_RUNS / 4;

fn judge(seeds: Range<u64>) {
    for seed in seeds {
        let report = run(seed).unwrap();
        let violations = report.violations.join("\n");
        assert!(violations.is_empty(), "see it again with `make sim SEED={seed}`:\n{violations}");
    }
}

#[test]
fn the_first_quarter_of_seeds_holds() {
    judge(0..SEEDS);
}

#[test]
fn the_second_quarter_of_seeds_holds() {
    judge(SEEDS..2 * SEEDS);
}

#[test]
fn the_third_quarter_of_seeds_holds() {
    judge(2 * SEEDS..3 * SEEDS);
}

#[test]
fn the_last_quarter_of_seeds_holds() {
    judge(3 * SEEDS..4 * SEEDS);
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 0..6 {
        let (one, other) = (run(seed).unwrap(), run(seed).unwrap());
        for (line, again) in one.trace.iter().zip(&other.trace) {
            assert_eq!(line, again, "seed {seed}");
        }
        assert_eq!(one.hash, other.hash, "seed {seed}");
        assert_eq!(one.observed.history, other.observed.history, "seed {seed}");
    }
}

#[test]
fn runs_meet_what_they_are_for() {
    let reports: Vec<_> = (0..30).map(|seed| run(seed).unwrap()).collect();
    let met = |what: &str| reports.iter().any(|report| report.trace.iter().any(|line| line.contains(what)));
    for what in [
        "loses power (LoseAll)",
        "loses power (Some",
        "stops",
        "is cut off",
        "is not heard",
        "hears nothing",
        "flap",
        "are apart",
        "the clock of server",
        "is to take a snapshot",
        "was asked to admit 4: Some(Ok(()))",
        "was asked to remove",
        "lead: Some(Ok(",
        "the disk of server",
        "a sync of server",
        "had failed, and its disk is mended",
        "the weather changes",
        "all power fails",
    ] {
        assert!(met(what), "no run of these meets {what:?}");
    }
    let answered = |report: &Report| report.observed.history.iter().filter(|one| one.answer().is_some()).count();
    let operations: usize = reports.iter().map(|report| report.observed.history.len()).sum();
    let answers: usize = reports.iter().map(answered).sum();
    assert!(
        answers * 10 > operations * 8 && answers < operations,
        "{answers} of {operations} operations were answered"
    );
    assert!(reports.iter().all(|report| report.observed.finals.len() > 1));
}
