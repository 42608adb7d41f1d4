//! When something counts as short.

use std::{collections::BTreeMap, time::Duration};

use hearth_types::quantity;

use super::{Observation, Shortage, Signal};

/// Thousandths of a percent in the whole.
const WHOLE: u128 = 100_000;

/// Room on a disk, in bytes, with which none counts as short however large it is.
pub const ENOUGH: u64 = 5 << 30;

/// An amount, of itself or as a part of what there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// So many bytes or inodes.
    Quantity(u64),
    /// So many thousandths of a percent.
    Percent(u32),
    /// So many thousandths of a percent, and at most so much.
    AtMost(u32, u64),
}

/// Why a setting cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSetting {
    /// There is no such signal.
    #[error("{0:?} is no eviction signal of this device; must be one of {1}")]
    Signal(String, String),
    /// It is no amount.
    #[error("{0:?}: {1:?} is no amount; must be a quantity such as 500Mi, or a part such as 10%, from 0% to 100%")]
    Amount(String, String),
    /// It is no duration.
    #[error("{0:?} is no duration; must be as 5m, 1h30m or 45s")]
    Duration(String),
}

/// When something counts as short, in the kubelet's terms (`KubeletConfiguration`): all thresholds are hard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    thresholds: BTreeMap<Signal, Amount>,
    minimum_reclaim: BTreeMap<Signal, Amount>,
    pub(super) transition_period: Duration,
}

impl Default for Settings {
    /// The kubelet's own, but for large disks: a tenth of one would stop everything with room for years.
    fn default() -> Self {
        let percent = |percent: u32| Amount::Percent(percent * 1000);
        Self {
            thresholds: BTreeMap::from([
                (Signal::MemoryAvailable, Amount::Quantity(100 << 20)),
                (Signal::NodefsAvailable, Amount::AtMost(10_000, ENOUGH)),
                (Signal::NodefsInodesFree, percent(5)),
                (Signal::ImagefsAvailable, Amount::AtMost(15_000, ENOUGH)),
                (Signal::ImagefsInodesFree, percent(5)),
            ]),
            minimum_reclaim: BTreeMap::new(),
            transition_period: Duration::from_mins(5),
        }
    }
}

impl Amount {
    /// Reads `500Mi` or `10%`.
    pub fn parse(text: &str) -> Option<Self> {
        let Some(percent) = text.strip_suffix('%') else { return quantity::bytes(text).ok().map(Self::Quantity) };
        let plain = percent.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        let thousandths = quantity::millis(percent).ok().filter(|_| plain)?;
        u32::try_from(thousandths).ok().filter(|part| u128::from(*part) <= WHOLE).map(Self::Percent)
    }

    /// What it comes to.
    pub fn of(self, capacity: u64) -> u64 {
        match self {
            Self::Quantity(amount) => amount,
            // No more than the capacity, so it fits.
            Self::AtMost(part, most) => Self::Percent(part).of(capacity).min(most),
            Self::Percent(part) => u64::try_from(u128::from(capacity) * u128::from(part) / WHOLE).unwrap_or(capacity),
        }
    }
}

fn amounts(said: &BTreeMap<String, String>) -> Result<BTreeMap<Signal, Amount>, BadSetting> {
    let read = |(name, text): (&String, &String)| {
        let signal = Signal::ALL.into_iter().find(|signal| signal.as_str() == name);
        let all = || Signal::ALL.map(Signal::as_str).join(", ");
        let signal = signal.ok_or_else(|| BadSetting::Signal(name.clone(), all()))?;
        let amount = Amount::parse(text).ok_or_else(|| BadSetting::Amount(name.clone(), text.clone()))?;
        Ok((signal, amount))
    };
    said.iter().map(read).collect()
}

/// Reads a duration as Go writes it, down to milliseconds.
fn duration(text: &str) -> Option<Duration> {
    let (mut rest, mut total) = (text, Duration::ZERO);
    while !rest.is_empty() {
        let digits = rest.find(|one: char| !one.is_ascii_digit())?;
        let (number, after) = rest.split_at(digits);
        let unit = after.find(|one: char| one.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit);
        let millis = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return None,
        };
        let more = number.parse::<u64>().ok()?.checked_mul(millis)?;
        total = total.checked_add(Duration::from_millis(more))?;
        rest = after;
    }
    (!text.is_empty()).then_some(total)
}

impl Settings {
    /// [`Settings::default`], with what is said in their place (`evictionHard`, `evictionMinimumReclaim`,
    /// `evictionPressureTransitionPeriod`). A threshold of nothing is none.
    pub fn with(
        mut self,
        hard: &BTreeMap<String, String>,
        minimum_reclaim: &BTreeMap<String, String>,
        transition_period: Option<&str>,
    ) -> Result<Self, BadSetting> {
        self.thresholds.extend(amounts(hard)?);
        self.minimum_reclaim.extend(amounts(minimum_reclaim)?);
        if let Some(text) = transition_period {
            self.transition_period = duration(text).ok_or_else(|| BadSetting::Duration(text.to_owned()))?;
        }
        Ok(self)
    }

    /// The least of something that is to be left.
    pub fn threshold(&self, signal: Signal, capacity: u64) -> u64 {
        self.thresholds.get(&signal).map_or(0, |amount| amount.of(capacity))
    }

    /// Whether it is short of what is seen; `met` where it was before, so that the minimum reclaim counts too.
    pub(super) fn shortage(&self, seen: Observation, met: bool) -> Option<Shortage> {
        let Observation { signal, available, capacity } = seen;
        let threshold = self.threshold(signal, capacity);
        let reclaim = self.minimum_reclaim.get(&signal).map_or(0, |amount| amount.of(capacity));
        let goal = threshold.saturating_add(reclaim);
        let missing = goal.saturating_sub(available);
        let short = threshold > 0 && (available < threshold || (met && available < goal));
        short.then_some(Shortage { signal, threshold, available, missing })
    }
}
