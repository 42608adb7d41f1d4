//! The hours in which this device lends: by its own clock, and without a region. Outside of them guests are held: stopped with their grace, their
//! claims kept, and started again in the next hours if they are still placed here.
//!
//! # The clock
//! A device whose time may be wrong lends nothing in hours, since it cannot know that they are its owner's. It goes by its clock once that was seen to
//! be right since the machine started: kept right over the network, or by a battery, or while there is a session with the region, which
//! ends guests by its own clock then. A machine without any of it (a Raspberry Pi after a power cut, offline) waits for one of them.

use std::path::PathBuf;

use hearth_pod::Failure;
use hearth_types::{
    Timestamp,
    hours::Hours,
    kinds::{Device, LENDING_HOURS_OVER, Lend},
};
use tokio::sync::watch;

use super::Service;
use crate::{
    facts,
    files::{Format, chain},
    fitness::{SURELY_PAST, has_hardware_clock},
};

/// Names the time since the machine started.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// In which start of the machine its clock was right.
const FORMAT: Format = Format { magic: "hearth-agent-clock", version: 1, max_bytes: 4096 };

/// Whether the clock was seen to be right since the machine started. From then on it runs on: also where an agent starts again meanwhile, so
/// that an update of it ends no guest.
pub(super) struct TrustedClock {
    path: PathBuf,
    connected: watch::Receiver<bool>,
    trusted: bool,
}

impl TrustedClock {
    /// What an agent before found out. Blocks.
    pub(super) fn load(path: PathBuf, connected: watch::Receiver<bool>) -> Self {
        let known = match FORMAT.read::<String>(&path) {
            Ok(known) => known,
            Err(error) => {
                tracing::warn!(error = chain(&error), "it is found out anew whether the clock is right");
                None
            }
        };
        let boot = facts::read(BOOT_ID);
        let trusted = !boot.trim().is_empty() && known.as_deref() == Some(boot.trim());
        Self { path, connected, trusted }
    }

    /// Whether the time `now` may be gone by.
    fn is_right(&mut self, now: Timestamp) -> bool {
        if now < Timestamp(SURELY_PAST * 1000) {
            return false;
        }
        if !self.trusted && (hearth_runtime::clock_synchronised() || has_hardware_clock() || *self.connected.borrow()) {
            self.trusted = true;
            let boot = facts::read(BOOT_ID);
            if let Err(error) = FORMAT.write(&self.path, &boot.trim(), false) {
                tracing::warn!(error = chain(&error), "the next agent finds out anew whether the clock is right");
            }
        }
        self.trusted
    }
}

/// What the device says of its hours, read when it changes.
#[derive(Default)]
pub(super) struct Lending {
    said: Option<Lend>,
    hours: Option<Hours>,
    /// Of a newer release: it lends nothing rather than always.
    unreadable: bool,
}

impl Lending {
    fn learn(&mut self, lend: Option<&Lend>) {
        if self.said.as_ref() == lend {
            return;
        }
        self.said = lend.cloned();
        let read = lend.map_or(Ok(None), Hours::read);
        self.unreadable = read.is_err();
        self.hours = read.ok().flatten();
    }

    /// Why guests do not run at this time; `None` where they may.
    fn held(&self, now: Timestamp, is_right: impl FnOnce(Timestamp) -> bool) -> Option<Failure> {
        let hold = |why: String| Some(Failure::new(LENDING_HOURS_OVER, why));
        if self.unreadable {
            return hold("the device's hours of lending cannot be read: update its agent".into());
        }
        let hours = self.hours.as_ref()?;
        if !is_right(now) {
            return hold(
                "the device lends in some hours only and cannot trust its clock: it waits for a time service or its region".into(),
            );
        }
        match hours.is_open(now) {
            (true, _) => None,
            (false, Some(opens)) => hold(format!("the device lends in other hours: again from {opens}")),
            (false, None) => hold("the device lends in other hours".into()),
        }
    }
}

impl Service {
    /// Why a pod of this namespace does not run at this time; `None` where it may.
    pub(super) fn held_in(&self, namespace: &str) -> Option<Failure> {
        self.held.clone().filter(|_| namespace != self.shared.owner)
    }

    /// Looks at the clock: holds guests, or lets them go. What is not known of the device changes nothing.
    pub(super) async fn hold_guests(&mut self, device: Option<&Device>) {
        if let Some(device) = device {
            self.lending.learn(device.spec.lend.as_ref());
        }
        let clock = &mut self.clock;
        let held = self.lending.held(self.shared.now(), |now| clock.is_right(now));
        if held == self.held {
            return;
        }
        if let Some(why) = &held {
            tracing::info!(why = why.message, "apps of others do not run now");
        } else {
            tracing::info!("apps of others may run now");
        }
        self.held = held;
        self.hold_workers().await;
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::{Value, json};

    use super::*;

    fn held(lend: Value, now: &str, right: bool) -> Option<String> {
        let lend: Lend = serde_json::from_value(lend).expect("a lend");
        let mut lending = Lending::default();
        lending.learn(Some(&lend));
        let held = lending.held(Timestamp::parse(now).expect("a time"), |_| right);
        held.map(|why| {
            assert_eq!(why.reason, "LendingHoursOver");
            why.message
        })
    }

    #[test]
    fn guests_run_in_the_hours_and_only_by_a_clock_that_is_right() {
        let nights = json!({"timeZone": "Europe/Berlin", "hours": [{"from": "22:00", "to": "07:00"}]});
        let (noon, midnight) = ("2025-06-01T10:00:00Z", "2025-06-01T22:00:00Z");
        assert_eq!(held(nights.clone(), midnight, true), None);
        let again = "the device lends in other hours: again from 2025-06-01T20:00:00Z";
        assert_eq!(held(nights.clone(), noon, true).as_deref(), Some(again));
        assert!(held(nights, midnight, false).is_some_and(|why| why.contains("cannot trust its clock")));
        assert_eq!(held(json!({"pods": 1}), midnight, false), None, "who lends always needs no clock");
        let newer = json!({"timeZone": "Mars/Olympus", "hours": [{"from": "00:00", "to": "24:00"}]});
        assert!(held(newer, midnight, true).is_some_and(|why| why.contains("cannot be read")));
    }

    #[test]
    fn a_clock_is_right_once_there_was_a_session_until_the_machine_starts_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("clock.json");
        let (sender, connected) = watch::channel(false);
        let now = Timestamp::parse("2025-06-01T10:00:00Z").expect("a time");
        let alone = hearth_runtime::clock_synchronised() || has_hardware_clock();
        let mut clock = TrustedClock::load(path.clone(), connected.clone());
        assert_eq!(clock.is_right(now), alone);
        sender.send_replace(true);
        assert!(clock.is_right(now) && !clock.is_right(Timestamp(5000)), "1970 is never right");
        sender.send_replace(false);
        assert!(clock.is_right(now), "it runs on");
        assert!(TrustedClock::load(path.clone(), connected.clone()).is_right(now), "also for the next agent");
        FORMAT.write(&path, &"another start", false).expect("written");
        assert_eq!(TrustedClock::load(path.clone(), connected.clone()).is_right(now), alone);
        fs::write(&path, "{").expect("written");
        assert_eq!(TrustedClock::load(path, connected).is_right(now), alone);
    }
}
