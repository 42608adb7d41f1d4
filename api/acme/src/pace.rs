//! When an order may be made, and how long to wait after one that failed. Pure: times and chance are inputs.
//!
//! The limits are those that Let's Encrypt publishes (<https://letsencrypt.org/docs/rate-limits/>), which are the strictest of the large
//! authorities; theirs are buckets that fill up again bit by bit, these are windows that slide, so that what is allowed here is allowed
//! there.

use std::{collections::BTreeSet, time::Duration};

use hearth_types::{Timestamp, acme::CERTIFICATES_PER_WEEK};

const WEEK: Duration = Duration::from_hours(7 * 24);
/// The longest pause that an authority may ask for: a week, as its longest limit, and a day.
const MAX_ASKED: Duration = Duration::from_hours(8 * 24);

/// How many of what in which time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// "New Certificates per Registered Domain": the zone's, renewals not counted.
    pub per_week: u32,
    /// "New Certificates per Exact Set of Identifiers", renewals counted, unless they are as the authority suggested (RFC 9773).
    pub same_names_per_week: u32,
    /// "New Orders per Account" in three hours.
    pub orders: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { per_week: CERTIFICATES_PER_WEEK, same_names_per_week: 5, orders: 300 }
    }
}

impl Limits {
    /// The same limits for a certificate whose last one lives so long: an authority that issues for hours lets them be renewed as often as
    /// that takes, and twice.
    #[must_use]
    pub fn for_life(self, life: Duration) -> Self {
        let renewals = WEEK.as_millis() * 2 / (life.as_millis() * 2 / 3).max(1);
        let renewals = u32::try_from(renewals).unwrap_or(u32::MAX);
        let orders = u32::try_from(u128::from(renewals) * ORDERS_WINDOW.as_millis() / WEEK.as_millis());
        Self {
            same_names_per_week: self.same_names_per_week.max(renewals),
            orders: self.orders.max(orders.unwrap_or(u32::MAX)),
            ..self
        }
    }
}

/// The window of [`Limits::orders`].
pub const ORDERS_WINDOW: Duration = Duration::from_hours(3);

/// A certificate that was issued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issue {
    /// When.
    pub at: Timestamp,
    /// For which names.
    pub names: BTreeSet<String>,
    /// Whether it took the place of one for the same names.
    pub renewal: bool,
}

/// What is to be ordered.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// For which names.
    pub names: &'a BTreeSet<String>,
    /// Whether it takes the place of one for the same names.
    pub renewal: bool,
    /// Whether it is said to the authority which one it replaces: such are outside of its limits on certificates.
    pub replaces: bool,
}

/// When a wish may be ordered at the earliest, and which limit says so where that is later than `now`.
pub fn earliest(
    limits: &Limits,
    issues: &[Issue],
    orders: &[Timestamp],
    wish: Wish<'_>,
    now: Timestamp,
) -> (Timestamp, &'static str) {
    let mut found = (now, "");
    let mut hold = |times: Vec<Timestamp>, most: u32, window: Duration, why: &'static str| {
        let free = free_at(times, most, window, now);
        if free > found.0 {
            found = (free, why);
        }
    };
    hold(orders.to_vec(), limits.orders, ORDERS_WINDOW, "orders of one account in three hours");
    if !wish.replaces {
        let same = issues.iter().filter(|issue| issue.names == *wish.names).map(|issue| issue.at).collect();
        hold(same, limits.same_names_per_week, WEEK, "certificates for the same names in a week");
        if !wish.renewal {
            let new = issues.iter().filter(|issue| !issue.renewal).map(|issue| issue.at).collect();
            hold(new, limits.per_week, WEEK, "new certificates of the zone in a week");
        }
    }
    found
}

/// When one more fits into a sliding window.
fn free_at(mut times: Vec<Timestamp>, most: u32, window: Duration, now: Timestamp) -> Timestamp {
    times.retain(|at| at.plus(window) > now);
    times.sort_unstable();
    let most = usize::try_from(most).unwrap_or(usize::MAX).max(1);
    match times.len().checked_sub(most) {
        None => now,
        Some(at) => times[at].plus(window),
    }
}

/// Why an order failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The authority does not answer, or says that the fault is its own.
    Unreachable,
    /// It says that there were too many.
    RateLimited,
    /// It refuses the names, or could not see the proof: five of these for one name in an hour are counted as abuse.
    Refused,
    /// It refuses the account.
    Account,
}

impl Failure {
    /// A word for conditions and events.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Unreachable => "AuthorityUnreachable",
            Self::RateLimited => "RateLimited",
            Self::Refused => "Refused",
            Self::Account => "AccountRefused",
        }
    }

    /// The first pause and the longest.
    fn pauses(self) -> (Duration, Duration) {
        match self {
            Self::Unreachable => (Duration::from_secs(10), Duration::from_hours(1)),
            Self::RateLimited => (Duration::from_hours(1), Duration::from_hours(24)),
            Self::Refused => (Duration::from_mins(15), Duration::from_hours(24)),
            Self::Account => (Duration::from_mins(1), Duration::from_hours(6)),
        }
    }
}

/// How long to wait after so many failures in a row, at least one; `asked` is what the authority's `Retry-After` says, which is never
/// undercut, and
/// `chance` is 0 to 1: a part that keeps regions from coming all at once.
pub fn pause(failure: Failure, failures: u32, asked: Option<Duration>, chance: f64) -> Duration {
    let (first, longest) = failure.pauses();
    let doubled = first.saturating_mul(1_u32 << failures.saturating_sub(1).min(16)).min(longest);
    let own = match (failure, asked) {
        // The authority knows how long.
        (Failure::RateLimited, Some(_)) => Duration::ZERO,
        _ => doubled,
    };
    own.max(asked.unwrap_or_default().min(MAX_ASKED)).mul_f64(1.0 + chance.clamp(0.0, 1.0) / 4.0)
}

/// When a certificate is to be renewed unless the authority suggests a time: after two thirds of its life, and up to a twentieth later by
/// chance.
pub fn renewal(not_before: Timestamp, not_after: Timestamp, chance: f64) -> Timestamp {
    not_before.plus(not_after.since(not_before).mul_f64(2.0 / 3.0 + chance.clamp(0.0, 1.0) / 20.0))
}

/// When a certificate is to be renewed by the authority's suggestion (RFC 9773 section 4.2): a time in its window by chance, which is kept
/// as long as it lies in the window.
pub fn suggested(start: Timestamp, end: Timestamp, known: Option<Timestamp>, chance: f64) -> Timestamp {
    if let Some(known) = known.filter(|known| start <= *known && *known <= end) {
        return known;
    }
    start.plus(end.since(start).mul_f64(chance.clamp(0.0, 1.0)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: i64 = 3_600_000;
    const NOW: Timestamp = Timestamp(1_800_000_000_000);

    fn ago(hours: i64) -> Timestamp {
        Timestamp(NOW.0 - hours * HOUR)
    }

    fn names(one: &str) -> BTreeSet<String> {
        std::iter::once(one.to_owned()).collect()
    }

    fn issue(hours: i64, name: &str, renewal: bool) -> Issue {
        Issue { at: ago(hours), names: names(name), renewal }
    }

    #[test]
    fn a_limit_that_is_used_up_names_when_it_is_free_again() {
        let limits = Limits { per_week: 2, same_names_per_week: 2, orders: 3 };
        let a = names("a");
        let new = Wish { names: &a, renewal: false, replaces: false };
        let at = |issues: &[Issue], orders: &[Timestamp], wish| earliest(&limits, issues, orders, wish, NOW);
        assert_eq!(at(&[], &[], new), (NOW, ""));
        let two = [issue(100, "b", false), issue(10, "c", false)];
        assert_eq!(at(&two, &[], new).0, ago(100).plus(WEEK));
        assert!(at(&two, &[], new).1.contains("of the zone"));
        assert_eq!(at(&two, &[], Wish { renewal: true, ..new }), (NOW, ""), "renewals are not new");
        let old = [issue(169, "b", false), issue(10, "c", false)];
        assert_eq!(at(&old, &[], new), (NOW, ""), "a week is over");
        let renewed = [issue(100, "b", true), issue(10, "c", false)];
        assert_eq!(at(&renewed, &[], new), (NOW, ""));
        let same = [issue(50, "a", true), issue(20, "a", true)];
        let renew = Wish { renewal: true, ..new };
        assert_eq!(at(&same, &[], renew), (ago(50).plus(WEEK), "certificates for the same names in a week"));
        assert_eq!(at(&same, &[], Wish { replaces: true, ..renew }), (NOW, ""), "as the authority suggested");
        let orders = [ago(2), ago(1), ago(1)];
        assert_eq!(at(&[], &orders, Wish { replaces: true, ..renew }).0, ago(2).plus(ORDERS_WINDOW));
    }

    #[test]
    fn certificates_of_hours_may_be_renewed_as_often_as_they_end() {
        let of = |hours| Limits::default().for_life(Duration::from_hours(hours));
        assert_eq!(of(90 * 24), Limits::default());
        assert_eq!(of(6 * 24).same_names_per_week, 5);
        assert_eq!(of(12), Limits { same_names_per_week: 42, ..Limits::default() });
        assert!(Limits::default().for_life(Duration::ZERO).same_names_per_week > 1_000_000);
    }

    #[test]
    fn pauses_grow_and_never_undercut_what_the_authority_asks() {
        let minutes = |failure, failures| pause(failure, failures, None, 0.0).as_secs() / 60;
        assert_eq!(pause(Failure::Unreachable, 1, None, 0.0), Duration::from_secs(10));
        assert_eq!(minutes(Failure::Unreachable, 40), 60);
        assert_eq!((minutes(Failure::Refused, 1), minutes(Failure::Refused, 2)), (15, 30));
        assert_eq!(minutes(Failure::Refused, 20), 24 * 60);
        let asked = Some(Duration::from_secs(40));
        assert_eq!(pause(Failure::RateLimited, 9, asked, 0.0), Duration::from_secs(40));
        assert_eq!(pause(Failure::RateLimited, 1, None, 0.0), Duration::from_hours(1));
        assert_eq!(pause(Failure::Unreachable, 1, asked, 0.0), Duration::from_secs(40));
        assert_eq!(pause(Failure::RateLimited, 1, Some(Duration::MAX), 0.0), MAX_ASKED);
        assert_eq!(pause(Failure::Unreachable, 1, asked, 1.0), Duration::from_secs(50));
    }

    #[test]
    fn renewal_is_after_two_thirds_or_when_the_authority_says() {
        let (begin, end) = (ago(60), ago(0));
        assert_eq!(renewal(begin, end, 0.0), ago(20));
        assert_eq!(renewal(begin, end, 1.0), ago(17));
        assert_eq!(suggested(begin, end, None, 0.5), ago(30));
        assert_eq!(suggested(begin, end, Some(ago(7)), 0.5), ago(7), "a time that was chosen stays");
        assert_eq!(
            suggested(begin, ago(50), Some(ago(7)), 1.0),
            ago(50),
            "a window that moved ahead brings it forward"
        );
    }

    proptest! {
        /// Whoever waits as told never breaks a limit, in whatever order wishes come.
        #[test]
        fn no_window_ever_holds_more_than_its_limit(steps in proptest::collection::vec((0..40_i64, 0..3_usize, any::<bool>()), 1..80)) {
            let limits = Limits { per_week: 4, same_names_per_week: 2, orders: 300 };
            let (mut now, mut issues) = (NOW, Vec::<Issue>::new());
            for (wait, which, renewal) in steps {
                now = Timestamp(now.0 + wait * HOUR);
                let names = names(["a", "b", "c"][which]);
                let (at, _) = earliest(&limits, &issues, &[], Wish { names: &names, renewal, replaces: false }, now);
                prop_assert!(at >= now);
                now = at;
                issues.push(Issue { at, names, renewal });
                let within = |issue: &&Issue| issue.at.plus(WEEK) > now;
                prop_assert!(issues.iter().filter(within).filter(|one| !one.renewal).count() <= 4 || renewal);
                let names = &issues.last().expect("one").names;
                prop_assert!(issues.iter().filter(within).filter(|one| one.names == *names).count() <= 2);
            }
        }

        #[test]
        fn a_pause_lies_between_what_was_asked_and_a_bound(failures in 1..u32::MAX, asked in 0..2_000_000_u64, chance in 0.0..1.0) {
            for failure in [Failure::Unreachable, Failure::RateLimited, Failure::Refused, Failure::Account] {
                let pause = pause(failure, failures, Some(Duration::from_secs(asked)), chance);
                prop_assert!(pause >= Duration::from_secs(asked).min(MAX_ASKED));
                prop_assert!(pause <= MAX_ASKED * 5 / 4);
            }
        }
    }
}
