//! Progress of resync: how much of the present one is done, how fast it goes, how long it will take.

use std::time::Instant;

/// How much a new sample counts against the rate so far.
const NEW: f64 = 0.3;

/// Figures of the present or last resync.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Progress {
    pub(super) done: u64,
    pub(super) total: u64,
    pub(super) bytes_per_second: f64,
}

/// Watches two counters that only the engine moves.
#[derive(Debug, Default)]
pub(super) struct Meter {
    /// Regions copied when the present resync began.
    base: u64,
    active: bool,
    last: Option<(Instant, u64)>,
    progress: Progress,
}

impl Meter {
    /// Takes a sample: regions copied since start, bytes copied since start, regions still stale (summed
    /// over legs).
    pub(super) fn sample(&mut self, now: Instant, copied: u64, bytes: u64, stale: u64) -> Progress {
        if stale > 0 && !self.active {
            self.base = copied;
            self.progress = Progress::default();
            self.last = None;
        }
        self.active = stale > 0;
        if self.active || copied > self.base + self.progress.done {
            self.progress.done = copied - self.base;
            self.progress.total = self.progress.done + stale;
        }
        match self.last {
            Some((then, before)) if now > then => {
                let rate = (bytes - before) as f64 / (now - then).as_secs_f64();
                let old = self.progress.bytes_per_second;
                self.progress.bytes_per_second = if old == 0.0 { rate } else { old + NEW * (rate - old) };
                self.last = Some((now, bytes));
            }
            Some(_) => {}
            None => self.last = Some((now, bytes)),
        }
        if !self.active {
            self.progress.bytes_per_second = 0.0;
            self.last = None;
        }
        self.progress
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_resync_is_counted_from_its_own_start() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut meter = Meter::default();
        let p = meter.sample(at(0), 5, 500, 0);
        assert_eq!((p.done, p.total), (5, 5), "over before anybody looked");
        let p = meter.sample(at(1), 5, 500, 10);
        assert_eq!((p.done, p.total), (0, 10));
        let p = meter.sample(at(2), 9, 900, 6);
        assert_eq!((p.done, p.total, p.bytes_per_second), (4, 10, 400.0));
        let p = meter.sample(at(3), 15, 1500, 0);
        assert_eq!((p.done, p.total), (10, 10), "the last one stays to be seen");
        let p = meter.sample(at(9), 15, 1500, 1);
        assert_eq!((p.done, p.total), (0, 1));
    }
}
