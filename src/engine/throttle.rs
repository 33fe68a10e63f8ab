//! How fast resync may go: a rate limit that can be changed at any time and, without one, manners:
//! while the volume is used, resync takes at most about half of the legs' time.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// How long after the last request the volume still counts as in use.
const IN_USE: Duration = Duration::from_millis(100);

/// The limit, set from any thread.
#[derive(Default)]
pub(super) struct Throttle {
    /// Bytes per second; 0 is none.
    limit: AtomicU64,
}

impl Throttle {
    pub(super) fn new(limit: Option<u64>) -> Throttle {
        Throttle { limit: AtomicU64::new(limit.unwrap_or(0)) }
    }

    pub(super) fn set(&self, limit: Option<u64>) {
        self.limit.store(limit.unwrap_or(0), Relaxed);
    }

    pub(super) fn limit(&self) -> Option<u64> {
        Some(self.limit.load(Relaxed)).filter(|&limit| limit > 0)
    }
}

/// When the next window may start. Used by the background worker's thread alone.
pub(super) struct Pacer {
    /// The earliest time for the next window.
    next: Instant,
    /// Requests that were answered when last looked.
    requests: u64,
    last_use: Option<Instant>,
    /// How long a window took lately, from its start to its end.
    window_time: Duration,
}

impl Pacer {
    pub(super) fn new(now: Instant) -> Pacer {
        Pacer { next: now, requests: 0, last_use: None, window_time: Duration::ZERO }
    }

    /// When a window of `bytes` may start, given the requests answered so far.
    pub(super) fn start_at(
        &mut self,
        now: Instant,
        bytes: u64,
        limit: Option<u64>,
        requests: u64,
    ) -> Instant {
        if requests != self.requests {
            self.requests = requests;
            self.last_use = Some(now);
        }
        let in_use = self.last_use.is_some_and(|last| now.duration_since(last) < IN_USE);
        let start = self.next.max(now);
        let gap = match limit {
            Some(limit) => Duration::from_secs_f64(bytes as f64 / limit as f64),
            // One window at a time, and as long a rest after it.
            None if in_use => 2 * self.window_time,
            None => Duration::ZERO,
        };
        self.next = start + gap;
        start
    }

    /// The limit changed: what was reserved under the old one does not count.
    pub(super) fn forget(&mut self, now: Instant) {
        self.next = now;
    }

    /// A window took this long.
    pub(super) fn took(&mut self, time: Duration) {
        self.window_time = (self.window_time * 3 + time) / 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_spaces_windows_out() {
        let now = Instant::now();
        let mut pacer = Pacer::new(now);
        let second = Duration::from_secs(1);
        for n in 0..5 {
            assert_eq!(pacer.start_at(now, 1 << 20, Some(1 << 20), 0), now + n * second);
        }
    }

    #[test]
    fn without_a_limit_an_unused_volume_is_resynced_at_full_speed_and_a_used_one_at_half() {
        let now = Instant::now();
        let mut pacer = Pacer::new(now);
        let ms = Duration::from_millis(1);
        (0..50).for_each(|_| pacer.took(4 * ms));
        assert_eq!(pacer.start_at(now, 1 << 20, None, 0), now);
        assert_eq!(pacer.start_at(now, 1 << 20, None, 0), now);
        assert_eq!(pacer.start_at(now, 1 << 20, None, 9), now);
        let second = pacer.start_at(now, 1 << 20, None, 9) - now;
        assert!(second > 7 * ms && second <= 8 * ms, "{second:?}");
        let later = now + Duration::from_secs(1);
        assert_eq!(pacer.start_at(later, 1 << 20, None, 9), later);
        assert_eq!(pacer.start_at(later, 1 << 20, None, 9), later, "nobody used it for a second");
    }
}
