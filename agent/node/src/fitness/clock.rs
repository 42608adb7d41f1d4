//! The machine's time.

use std::{path::Path, time::SystemTime};

use super::{Area, Finding};

/// Before this, a clock is surely wrong: 1 January 2025, in seconds since 1970.
pub(crate) const SURELY_PAST: i64 = 1_735_689_600;

/// What was seen of the clock.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    /// Seconds since 1970.
    now: i64,
    /// Whether something keeps it right (adjtimex(2)).
    synchronised: bool,
    /// Whether there is one that runs on a battery.
    hardware: bool,
}

pub(super) fn look() -> Seen {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = since_1970.map_or(0, |since| since.as_secs() as i64);
    Seen { now, synchronised: hearth_runtime::clock_synchronised(), hardware: has_hardware() }
}

/// Whether there is a clock that runs on a battery.
pub(crate) fn has_hardware() -> bool {
    Path::new("/sys/class/rtc").read_dir().is_ok_and(|mut clocks| clocks.next().is_some())
}

pub(super) fn judge(seen: &Seen) -> Vec<Finding> {
    let mut findings = Vec::new();
    let sync = "install a time service, such as systemd-timesyncd or chrony";
    findings.push(if seen.now < SURELY_PAST {
        let what = "its time is years behind: the region's certificates are not valid yet for it, so it runs its apps and does not connect";
        Finding::lacks(Area::Clock, what, sync)
    } else if seen.synchronised {
        Finding::fine(Area::Clock, "its time is kept right over the network")
    } else {
        let what = "nothing keeps its time right: after some weeks, certificates may seem invalid to it";
        Finding::poor(Area::Clock, what, sync)
    });
    if !seen.hardware {
        let what = "it has no clock that runs on while it is off: after a power cut it has a wrong time until a time service is reached";
        let advice = "nothing, where a time service runs: apps start all the same, but for those of others where it lends in some hours only";
        findings.push(Finding::poor(Area::Clock, what, advice));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::{super::Verdict, *};

    #[test]
    fn clocks_are_judged_by_what_goes_wrong_with_them() {
        for (now, synchronised, hardware, expected) in [
            (SURELY_PAST + 1, true, true, &[Verdict::Fine][..]),
            (SURELY_PAST + 1, false, true, &[Verdict::Poor]),
            (SURELY_PAST + 1, true, false, &[Verdict::Fine, Verdict::Poor]),
            (0, true, true, &[Verdict::Lacks]),
            (0, false, false, &[Verdict::Lacks, Verdict::Poor]),
        ] {
            let findings = judge(&Seen { now, synchronised, hardware });
            let verdicts: Vec<_> = findings.iter().map(|finding| finding.verdict).collect();
            assert_eq!(verdicts, expected, "{findings:?}");
        }
    }
}
