//! Numbers that are measured more than once: medians, spreads, and a histogram of latencies.

use std::time::Duration;

/// What one run of a workload showed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sample {
    /// Requests answered per second.
    pub(crate) per_second: f64,
    /// Mean time from a request to its answer, in microseconds.
    pub(crate) mean_us: f64,
    /// 99 of 100 requests were answered within so many microseconds.
    pub(crate) p99_us: f64,
    /// Processor time of all processes that took part, in microseconds per request.
    pub(crate) cpu_us: f64,
}

/// The middle value; the mean of the two middle ones of an even number.
///
/// # Panics
/// If there are none.
pub(crate) fn median(values: &[f64]) -> f64 {
    assert!(!values.is_empty(), "nothing was measured");
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}

/// A value as several rounds showed it.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Spread {
    /// The middle one.
    pub(crate) median: f64,
    /// The least.
    pub(crate) least: f64,
    /// The greatest.
    pub(crate) most: f64,
}

impl Spread {
    /// Of these values, at least one.
    pub(crate) fn of(values: &[f64]) -> Spread {
        Spread {
            median: median(values),
            least: values.iter().copied().fold(f64::INFINITY, f64::min),
            most: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        }
    }

    /// Of the quotients of two values measured in the same round.
    pub(crate) fn of_ratios(ours: &[f64], theirs: &[f64]) -> Spread {
        let ratios: Vec<f64> = ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect();
        Spread::of(&ratios)
    }
}

/// Steps of the histogram per doubling.
const STEPS: usize = 16;

/// Latencies, counted in steps of at most 6 %. Adding one allocates nothing.
#[derive(Clone, Debug)]
pub(crate) struct Histogram {
    counts: Box<[u64]>,
    count: u64,
    sum_ns: u64,
}

impl Histogram {
    /// An empty one.
    pub(crate) fn new() -> Histogram {
        Histogram { counts: vec![0; 64 * STEPS].into(), count: 0, sum_ns: 0 }
    }

    /// Counts `latency`.
    pub(crate) fn add(&mut self, latency: Duration) {
        let ns = (latency.as_nanos() as u64).max(1);
        self.counts[step_of(ns)] += 1;
        self.count += 1;
        self.sum_ns += ns;
    }

    /// Adds all of `other`.
    pub(crate) fn merge(&mut self, other: &Histogram) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(count, other)| *count += other);
        self.count += other.count;
        self.sum_ns += other.sum_ns;
    }

    /// How many were counted.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Mean, in microseconds.
    pub(crate) fn mean_us(&self) -> f64 {
        self.sum_ns as f64 / 1000.0 / self.count.max(1) as f64
    }

    /// The upper border of the step that holds this part of all counted, in microseconds.
    pub(crate) fn quantile_us(&self, part: f64) -> f64 {
        let wanted = (self.count as f64 * part).ceil() as u64;
        let mut seen = 0;
        let step = self.counts.iter().position(|count| {
            seen += count;
            seen >= wanted
        });
        border_ns(step.unwrap_or(0) + 1) / 1000.0
    }
}

/// The step that a latency falls into: its highest bit and the four bits below.
fn step_of(ns: u64) -> usize {
    let doubling = ns.ilog2() as usize;
    let below = if doubling < 4 { ns << (4 - doubling) } else { ns >> (doubling - 4) };
    doubling * STEPS + below as usize % STEPS
}

/// The least latency that falls into a step.
fn border_ns(step: usize) -> f64 {
    let part = 1.0 + (step % STEPS) as f64 / STEPS as f64;
    part * 2f64.powi((step / STEPS) as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_and_even_numbers() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), 2.5);
        let spread = Spread::of_ratios(&[9.0, 10.0, 30.0], &[10.0, 10.0, 10.0]);
        assert_eq!(spread, Spread { median: 1.0, least: 0.9, most: 3.0 });
    }

    #[test]
    fn quantiles_are_within_a_step() {
        let mut histogram = Histogram::new();
        (1..=1000).for_each(|us| histogram.add(Duration::from_micros(us)));
        assert_eq!(histogram.count(), 1000);
        for (part, us) in [(0.5, 500.0), (0.99, 990.0)] {
            let found = histogram.quantile_us(part);
            assert!((us..us * 1.07).contains(&found), "{part}: {found}");
        }
        assert!((histogram.mean_us() - 500.5).abs() < 0.01);
        let mut both = Histogram::new();
        both.merge(&histogram);
        both.add(Duration::ZERO);
        assert_eq!(both.count(), 1001);
    }
}
