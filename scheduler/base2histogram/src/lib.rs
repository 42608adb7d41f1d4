//! Histograms of whole numbers, in the place of the crate of this name: openraft counts how large its batches are in them, and shows them
//! where its `runtime-stats` are on, which Hearth's are not.
//!
//! That crate computes tables for all its precisions at first use, 27 MiB that stay, which is as much as all else that an idle server has.
//! This one has the part of its interface that openraft uses, at one precision, and no tables.

use std::{fmt, marker::PhantomData};

/// Bits behind the highest one that tell values apart: a bucket is at most a quarter of its value wide.
const BITS: u32 = 2;
/// Values below this have a bucket each.
const SMALL: u64 = 1 << BITS;
const BUCKETS: usize = ((u64::BITS - BITS + 1) << BITS) as usize;

/// How often values came, by their size. 2 KiB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram<T = ()> {
    counts: Vec<u64>,
    data: PhantomData<T>,
}

/// Below which values the given parts of all are, to the precision of the histogram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the names say it: `p99_9` is 99.9 %
pub struct PercentileStats {
    /// How many values there were.
    pub samples: u64,
    pub p0_1: u64,
    pub p1: u64,
    pub p5: u64,
    pub p10: u64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p99_9: u64,
}

fn bucket(value: u64) -> usize {
    if value < SMALL {
        return value as usize;
    }
    let shift = value.ilog2() - BITS;
    (u64::from(shift) * SMALL + (value >> shift)) as usize
}

/// The least value of a bucket.
fn least(bucket: usize) -> u64 {
    let (shift, rest) = (bucket as u64 / SMALL, bucket as u64 % SMALL);
    if shift == 0 { rest } else { (SMALL + rest) << (shift - 1) }
}

impl<T> Histogram<T> {
    /// One without values.
    pub fn new() -> Self {
        Self { counts: vec![0; BUCKETS], data: PhantomData }
    }

    /// Counts a value.
    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    /// Counts a value as often as it came.
    pub fn record_n(&mut self, value: u64, count: u64) {
        let counter = &mut self.counts[bucket(value)];
        *counter = counter.saturating_add(count);
    }

    /// What it shows; all zero where there are no values.
    pub fn percentile_stats(&self) -> PercentileStats {
        let samples = self.counts.iter().fold(0, |sum: u64, count| sum.saturating_add(*count));
        let at = |permille: u64| {
            let wanted = (u128::from(samples) * u128::from(permille)).div_ceil(1_000).max(1);
            let mut sum = 0;
            let place = self.counts.iter().position(|count| {
                sum += u128::from(*count);
                sum >= wanted
            });
            place.map_or(0, least)
        };
        PercentileStats {
            samples,
            p0_1: at(1),
            p1: at(10),
            p5: at(50),
            p10: at(100),
            p50: at(500),
            p90: at(900),
            p99: at(990),
            p99_9: at(999),
        }
    }
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { samples, p50, p90, p99, .. } = self;
        write!(f, "{samples} values, half below {p50}, 90 % below {p90}, 99 % below {p99}")
    }
}

impl<T> Default for Histogram<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// Histograms with their names, a line each.
#[derive(Debug, Default)]
pub struct AsciiChart(Vec<(String, Histogram)>);

impl AsciiChart {
    /// One without histograms.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one.
    #[must_use]
    pub fn add(mut self, name: impl Into<String>, histogram: Histogram) -> Self {
        self.0.push((name.into(), histogram));
        self
    }
}

impl fmt::Display for AsciiChart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, histogram) in &self.0 {
            writeln!(f, "{name}: {}", histogram.percentile_stats())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_in_a_bucket_that_begins_at_most_a_quarter_below_it() {
        let values = (0..64).flat_map(|bit| [1_u64 << bit, (1 << bit) + 1, (1 << bit) - 1, u64::MAX >> bit]);
        for value in values.chain(0..10_000) {
            let least = least(bucket(value));
            assert!(bucket(value) < BUCKETS && least <= value && value - least <= value / 4, "{value}: {least}");
            assert_eq!(bucket(least), bucket(value));
            assert!(least == 0 || bucket(least - 1) < bucket(least));
        }
    }

    #[test]
    fn percentiles_are_those_of_the_values() {
        let mut histogram = Histogram::<()>::new();
        assert_eq!(histogram.percentile_stats().p99_9, 0);
        (0..900).for_each(|_| histogram.record(2));
        histogram.record_n(64, 90);
        histogram.record_n(4_096, 10);
        let PercentileStats { samples, p0_1, p50, p90, p99, p99_9, .. } = histogram.percentile_stats();
        assert_eq!((samples, p0_1, p50, p90, p99, p99_9), (1_000, 2, 2, 2, 64, 4_096));
    }
}
