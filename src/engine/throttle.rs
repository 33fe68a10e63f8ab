//! How fast background work (resync, a scrub) may go: limits that can be changed at any time and, without one,
//! manners: while the volume is used, windows are small and rests between them as long as it takes for users not
//! to notice much.
//!
//! How users fare is told from two counters that are there anyway, requests in flight and requests answered: by
//! Little's law their latency is the one divided by the rate of the other. No request is timed for it. The pacer
//! compares latency and rate while a window is under way with those while it rests, both within the same tenth of
//! a second: whatever else changes, changes both. Users who wait for answers before they ask on get slower; those
//! who do not have more in flight: either is a slowdown.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// How long after the last request the volume still counts as in use.
const IN_USE: Duration = Duration::from_millis(100);

/// The window while the volume is in use: what a request may have to wait for, in bytes.
const POLITE_WINDOW: u64 = 128 << 10;

/// Between two looks at what is in flight, while the volume is in use and something is to be paced.
const LOOK: Duration = Duration::from_millis(1);

/// Rests are judged over so long ...
const PERIOD: Duration = Duration::from_millis(100);

/// ... and so many requests, or a longer time.
const ENOUGH: u64 = 16;

/// A period that has not got enough requests ends all the same.
const LONGEST_PERIOD: Duration = Duration::from_secs(1);

/// Users this much slower beside a window make rests longer, at most twice as long ...
const TOO_SLOW: f64 = 1.5;

/// ... and others make them this much shorter.
const SHORTER: f64 = 0.85;

/// Shortest and longest rest, in windows: background work gets a fortieth of the time at the least.
const RESTS: std::ops::RangeInclusive<f64> = 0.25..=39.0;

/// Rests are this long at the least when somebody begins to use the volume: users are to notice nothing while it
/// is found out what they notice.
const CAUTIOUS: f64 = 8.0;

/// Longest rest: it goes on, also where a window takes seconds.
const LONGEST_REST: Duration = Duration::from_secs(2);

/// The limits, set from any thread: bytes per second, 0 is none.
#[derive(Default)]
pub(super) struct Throttle {
    resync: AtomicU64,
    scrub: AtomicU64,
}

impl Throttle {
    pub(super) fn new(limit: Option<u64>) -> Throttle {
        Throttle { resync: AtomicU64::new(limit.unwrap_or(0)), scrub: AtomicU64::new(0) }
    }

    pub(super) fn set(&self, limit: Option<u64>) {
        self.resync.store(limit.unwrap_or(0), Relaxed);
    }

    pub(super) fn set_scrub(&self, limit: Option<u64>) {
        self.scrub.store(limit.unwrap_or(0), Relaxed);
    }

    pub(super) fn limit(&self) -> Option<u64> {
        Some(self.resync.load(Relaxed)).filter(|&limit| limit > 0)
    }

    pub(super) fn scrub_limit(&self) -> Option<u64> {
        Some(self.scrub.load(Relaxed)).filter(|&limit| limit > 0)
    }
}

/// What users do, at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Load {
    pub(super) in_flight: u64,
    /// Requests answered since start.
    pub(super) answered: u64,
}

/// How users fared in one kind of time.
#[derive(Clone, Copy, Debug, Default)]
struct Fared {
    /// Seconds.
    time: f64,
    /// Seconds, once for each request in flight.
    waited: f64,
    answered: u64,
}

impl Fared {
    /// Seconds a request; at least what was waited in vain.
    fn latency(&self) -> f64 {
        self.waited / self.answered.max(1) as f64
    }

    fn rate(&self) -> f64 {
        self.answered.max(1) as f64 / self.time
    }
}

/// When the next window may start. Used by the background worker's thread alone.
pub(super) struct Pacer {
    /// The earliest time for the next window.
    next: Instant,
    seen: Option<(Instant, Load)>,
    last_use: Option<Instant>,
    /// Windows under way.
    windows: u32,
    /// With a window under way, and with none.
    beside: Fared,
    alone: Fared,
    /// How long a rest is, in windows.
    rest: f64,
    /// How long a window took lately, from its start to its end.
    window_time: Duration,
}

impl Pacer {
    pub(super) fn new(now: Instant) -> Pacer {
        Pacer {
            next: now,
            seen: None,
            last_use: None,
            windows: 0,
            beside: Fared::default(),
            alone: Fared::default(),
            rest: CAUTIOUS,
            window_time: Duration::ZERO,
        }
    }

    /// What users do. To be told whenever something begins or ends, and every millisecond while
    /// [`Pacer::looks`].
    pub(super) fn look(&mut self, now: Instant, load: Load) {
        let Some((then, before)) = self.seen.replace((now, load)) else { return };
        if load.answered != before.answered || load.in_flight > 0 {
            if !self.is_in_use(now) {
                self.rest = self.rest.max(CAUTIOUS);
            }
            self.last_use = Some(now);
        }
        let time = now.duration_since(then).as_secs_f64();
        let fared = if self.windows > 0 { &mut self.beside } else { &mut self.alone };
        fared.time += time;
        fared.waited += time * (before.in_flight + load.in_flight) as f64 / 2.0;
        fared.answered += load.answered - before.answered;
        self.judge();
    }

    /// Nothing is to be paced any more: what comes to pass until the next window says nothing.
    pub(super) fn forget_load(&mut self) {
        self.seen = None;
        (self.beside, self.alone) = Default::default();
    }

    /// When to look again, beside the windows.
    pub(super) fn looks(&self, now: Instant) -> Option<Duration> {
        (self.seen.is_some() && self.is_in_use(now)).then_some(LOOK)
    }

    fn judge(&mut self) {
        let time = self.beside.time + self.alone.time;
        let answered = self.beside.answered.min(self.alone.answered);
        let over = time >= PERIOD.as_secs_f64() && answered >= ENOUGH || time >= LONGEST_PERIOD.as_secs_f64();
        if !over {
            return;
        }
        let [beside, alone] = [&mut self.beside, &mut self.alone].map(std::mem::take);
        if beside.time == 0.0 || alone.time == 0.0 || beside.answered + alone.answered < ENOUGH {
            return;
        }
        // Without a request in one of the two there is nothing to divide by.
        let latency = if alone.waited > 0.0 { beside.latency() / alone.latency() } else { 1.0 };
        let slowdown = latency.max(alone.rate() / beside.rate());
        if slowdown > TOO_SLOW {
            self.rest *= slowdown.min(2.0);
        } else {
            self.rest *= SHORTER;
        }
        self.rest = self.rest.clamp(*RESTS.start(), *RESTS.end());
    }

    fn is_in_use(&self, now: Instant) -> bool {
        self.last_use.is_some_and(|last| now.duration_since(last) < IN_USE)
    }

    /// How large windows are to be, at most `most` bytes.
    pub(super) fn window(&self, now: Instant, limit: Option<u64>, most: u64) -> u64 {
        if self.is_in_use(now) && limit.is_none() { most.min(POLITE_WINDOW) } else { most }
    }

    /// When a window of `bytes` may start.
    pub(super) fn start_at(&mut self, now: Instant, bytes: u64, limit: Option<u64>) -> Instant {
        let start = self.next.max(now);
        let gap = match limit {
            Some(limit) => Duration::from_secs_f64(bytes as f64 / limit as f64),
            // One window at a time, and a rest after it.
            None if self.is_in_use(now) => {
                self.window_time + self.window_time.mul_f64(self.rest).min(LONGEST_REST)
            }
            None => Duration::ZERO,
        };
        self.next = start + gap;
        start
    }

    /// The limit changed: what was reserved under the old one does not count.
    pub(super) fn forget(&mut self, now: Instant) {
        self.next = now;
    }

    /// A window begins.
    pub(super) fn begins(&mut self) {
        self.windows += 1;
    }

    /// A window has ended and took this long.
    pub(super) fn took(&mut self, time: Duration) {
        self.windows -= 1;
        self.window_time = (self.window_time * 3 + time) / 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_limit_spaces_windows_out() {
        let now = Instant::now();
        let mut pacer = Pacer::new(now);
        let second = Duration::from_secs(1);
        for n in 0..5 {
            assert_eq!(pacer.start_at(now, 1 << 20, Some(1 << 20)), now + n * second);
        }
    }

    /// A volume on which a window takes 4 ms and requests 0.2 ms each, `slower` times as much beside a window.
    struct Model {
        slower: f64,
        /// Requests that users have in flight all the time; they ask on when they are answered.
        busy: u64,
        /// Requests that users send in a second whatever becomes of those before.
        sent: f64,
        now: Instant,
        pacer: Pacer,
        /// Requests in flight, and answered so far.
        queue: f64,
        answered: f64,
        /// When the present window ends.
        window: Option<Instant>,
        start: Instant,
        worked: Duration,
    }

    impl Model {
        fn new(slower: f64, busy: u64, sent: f64) -> Model {
            let now = Instant::now();
            let pacer = Pacer::new(now);
            Model {
                slower,
                busy,
                sent,
                now,
                pacer,
                queue: 0.0,
                answered: 0.0,
                window: None,
                start: now,
                worked: Duration::ZERO,
            }
        }

        /// The part of the time that goes into windows in the last of `seconds`.
        fn run(&mut self, seconds: u32) -> f64 {
            let step = Duration::from_micros(100);
            let end = self.now + seconds * Duration::from_secs(1);
            while self.now < end {
                if end - self.now == Duration::from_secs(1) {
                    self.worked = Duration::ZERO;
                }
                self.now += step;
                let service = 0.0002 * if self.window.is_some() { self.slower } else { 1.0 };
                if self.busy > 0 {
                    self.queue = self.busy as f64;
                    self.answered += self.queue * step.as_secs_f64() / service;
                } else {
                    // As many servers as it takes.
                    self.queue += self.sent * step.as_secs_f64();
                    let done = self.queue * (step.as_secs_f64() / service).min(1.0);
                    self.queue -= done;
                    self.answered += done;
                }
                let load = Load { in_flight: self.queue.round() as u64, answered: self.answered as u64 };
                self.pacer.look(self.now, load);
                self.work(step);
            }
            self.worked.as_secs_f64()
        }

        fn work(&mut self, step: Duration) {
            if let Some(end) = self.window {
                self.worked += step;
                if self.now >= end {
                    self.window = None;
                    self.pacer.took(4 * MS);
                    self.start = self.pacer.start_at(self.now, 1 << 17, None);
                }
            } else if self.now >= self.start {
                self.window = Some(self.now + 4 * MS);
                self.pacer.begins();
            }
        }
    }

    #[test]
    fn rests_are_as_long_as_users_need() {
        /// How much slower users are, how many wait, or how many requests come; least and most of the time.
        type Row = (&'static str, f64, u64, f64, f64, f64);
        #[rustfmt::skip]
        let rows: [Row; 7] = [
            ("nobody there",           5.0,  0,     0.0, 0.95, 1.0),
            ("nobody notices",         1.0,  4,     0.0, 0.6,  0.9),
            ("a little slower",        1.4,  4,     0.0, 0.6,  0.9),
            ("much slower",            5.0,  4,     0.0, 0.01, 0.06),
            ("one at a time",          8.0,  1,     0.0, 0.01, 0.06),
            ("standing still",      1000.0,  4,     0.0, 0.01, 0.06),
            ("whoever does not wait",  8.0,  0, 20000.0, 0.01, 0.06),
        ];
        for (name, slower, busy, sent, least, most) in rows {
            let part = Model::new(slower, busy, sent).run(8);
            assert!((least..=most).contains(&part), "{name}: {part}");
        }
    }

    #[test]
    fn rests_get_shorter_again() {
        let mut model = Model::new(6.0, 4, 0.0);
        assert!(model.run(8) < 0.1);
        model.slower = 1.0;
        assert!(model.run(4) > 0.5, "nobody notices any more");
        model.slower = 6.0;
        assert!(model.run(4) < 0.1);
        model.busy = 0;
        assert!(model.run(2) > 0.9, "nobody is there any more");
    }

    #[test]
    fn windows_are_small_while_the_volume_is_in_use() {
        let now = Instant::now();
        let mut pacer = Pacer::new(now);
        let load = |answered| Load { in_flight: 1, answered };
        assert_eq!((pacer.window(now, None, 1 << 20), pacer.looks(now)), (1 << 20, None));
        pacer.look(now, load(1));
        pacer.look(now + MS, load(2));
        assert_eq!((pacer.window(now + MS, None, 1 << 20), pacer.looks(now)), (POLITE_WINDOW, Some(LOOK)));
        assert_eq!(pacer.window(now + MS, None, 4096), 4096);
        assert_eq!(pacer.window(now + MS, Some(1), 1 << 20), 1 << 20, "whoever sets a limit knows");
        let later = now + 2 * IN_USE;
        assert_eq!((pacer.window(later, None, 1 << 20), pacer.looks(later)), (1 << 20, None));
    }

    #[test]
    fn whoever_begins_to_use_the_volume_is_given_way_to_at_once() {
        let mut model = Model::new(1.0, 4, 0.0);
        assert!(model.run(5) > 0.6, "nobody notices");
        model.busy = 0;
        model.run(1);
        (model.busy, model.slower) = (4, 8.0);
        assert!(model.run(1) < 0.2, "and now they would");
    }

    #[test]
    fn what_came_between_two_resyncs_does_not_count() {
        let now = Instant::now();
        let mut pacer = Pacer::new(now);
        pacer.look(now, Load::default());
        pacer.forget_load();
        let later = now + Duration::from_secs(3600);
        pacer.look(later, Load { in_flight: 0, answered: 1_000_000 });
        assert_eq!(pacer.looks(later), None);
        assert_eq!(pacer.start_at(later, 1 << 20, None), later);
        assert_eq!(pacer.start_at(later, 1 << 20, None), later);
    }
}
