//! How long requests take: a histogram for each kind, counted by each queue for itself.
//!
//! Only if somebody asked for it: a queue without a [`Stopwatch`] asks no clock. A queue's counters have one
//! writer, its thread, so counting is a load and a store; whoever reads adds the queues up.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use mirrord_ublk::Op;

/// Buckets with an upper limit: 1 us, 2 us, 4 us, ... 16.8 s. One more has what took longer.
pub(crate) const BUCKETS: usize = 25;

/// What is told apart.
pub(crate) const KINDS: [&str; 3] = ["read", "write", "flush"];

fn kind(op: Op) -> usize {
    match op {
        Op::Read => 0,
        Op::Write | Op::Zero { .. } => 1,
        Op::Flush => 2,
    }
}

/// The first bucket that is wide enough.
fn bucket(nanoseconds: u64) -> usize {
    let microseconds = nanoseconds.div_ceil(1000).clamp(1, 1 << BUCKETS);
    (microseconds.next_power_of_two().trailing_zeros() as usize).min(BUCKETS)
}

/// Counters of one queue, in cache lines of their own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Latencies([Counters; KINDS.len()]);

#[derive(Debug, Default)]
struct Counters {
    buckets: [AtomicU64; BUCKETS + 1],
    nanoseconds: AtomicU64,
}

/// What the requests of one kind took.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Histogram {
    /// Requests by the narrowest bucket that they fall into.
    pub(crate) buckets: [u64; BUCKETS + 1],
    /// What all took together.
    pub(crate) nanoseconds: u64,
}

/// The sum over queues, in the order of [`KINDS`].
pub(super) fn sum(queues: &[Arc<Latencies>]) -> [Histogram; KINDS.len()] {
    std::array::from_fn(|kind| {
        let mut sum = Histogram::default();
        for counters in queues.iter().map(|queue| &queue.0[kind]) {
            for (bucket, count) in sum.buckets.iter_mut().zip(&counters.buckets) {
                *bucket += count.load(Relaxed);
            }
            sum.nanoseconds += counters.nanoseconds.load(Relaxed);
        }
        sum
    })
}

/// Takes the time of a queue's requests. For its thread alone.
pub(super) struct Stopwatch {
    begun: Box<[Instant]>,
    latencies: Arc<Latencies>,
}

impl Stopwatch {
    /// For a queue of so many tags.
    pub(super) fn new(tags: u32, latencies: Arc<Latencies>) -> Stopwatch {
        Stopwatch { begun: vec![Instant::now(); tags as usize].into(), latencies }
    }

    /// The request with this tag begins.
    #[inline]
    pub(super) fn begin(&mut self, tag: u32) {
        self.begun[tag as usize] = Instant::now();
    }

    /// It is answered.
    #[inline]
    pub(super) fn end(&self, tag: u32, op: Op) {
        // Enough for centuries.
        let took = self.begun[tag as usize].elapsed().as_nanos() as u64;
        let counters = &self.latencies.0[kind(op)];
        add(&counters.buckets[bucket(took)], 1);
        add(&counters.nanoseconds, took);
    }
}

/// Nobody else writes it.
fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Relaxed) + n, Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_powers_of_two() {
        for (nanoseconds, at) in [
            (0, 0),
            (1000, 0),
            (1001, 1),
            (2000, 1),
            (2001, 2),
            (4000, 2),
            (1_000_000, 10),
            (16_777_216_000, 24),
            (16_777_217_000, 25),
            (u64::MAX, 25),
        ] {
            assert_eq!(bucket(nanoseconds), at, "{nanoseconds}");
        }
    }

    #[test]
    fn queues_are_added_up() {
        let queues = [Arc::<Latencies>::default(), Arc::default()];
        for (queue, op) in [(0, Op::Read), (1, Op::Read), (1, Op::Zero { keep: true })] {
            let mut stopwatch = Stopwatch::new(4, Arc::clone(&queues[queue]));
            stopwatch.begin(3);
            stopwatch.end(3, op);
        }
        let counts = sum(&queues).map(|histogram| histogram.buckets.iter().sum::<u64>());
        assert_eq!(counts, [2, 1, 0]);
        assert!(sum(&queues)[0].nanoseconds > 0 && sum(&queues)[2] == Histogram::default());
    }
}
