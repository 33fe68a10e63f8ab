//! What goes wrong and for how long: single errors, periods of errors on some legs or all, also periods that outlast
//! a stop and the next start, sectors that go bad, legs that are slow or hang, threads
//! that do not get to run.

use mirrord_raid::{Errno, Leg, LegSet};

use crate::config::{Config, HOT};
use crate::rng::Rng;

/// What is asked of a leg, as far as errors tell it apart.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Read = 1,
    Write = 2,
    Flush = 4,
    Meta = 8,
}

struct Period {
    legs: LegSet,
    kinds: u8,
    errno: Errno,
    /// Times in 8 that it strikes.
    chance: u64,
    until: u64,
}

pub(crate) struct Faults {
    periods: Vec<Period>,
    /// Begins only in some runs, and ends between two lives.
    lasting: Option<Period>,
    /// Steps in 10,000 in which that begins.
    lastings: u64,
    /// What is drawn for it moves nothing else of the run.
    rng: Rng,
    slow: LegSet,
    slow_until: u64,
    hung: LegSet,
    hung_until: u64,
    /// Rings that do not get to run, as bits.
    stalled: u8,
    stalled_until: u64,
    /// Nothing goes wrong any more.
    over: bool,
}

/// A set of legs: mostly one, now and then all or any.
fn some_legs(rng: &mut Rng, count: usize) -> LegSet {
    let all = LegSet::first(count);
    match rng.below(8) {
        0 | 1 => all,
        2 => LegSet::from_bits(rng.next() as u8).intersect(all),
        _ => LegSet::one(Leg::new(rng.below(count as u64) as usize)),
    }
}

impl Faults {
    pub(crate) fn new(seed: u64) -> Faults {
        let mut rng = Rng::new(seed ^ 0x1a57_1265_0000_0001);
        Faults {
            periods: Vec::new(),
            lasting: None,
            lastings: rng.pick(&[0, 0, 0, 0, 10, 100]),
            rng,
            slow: LegSet::EMPTY,
            slow_until: 0,
            hung: LegSet::EMPTY,
            hung_until: 0,
            stalled: 0,
            stalled_until: 0,
            over: false,
        }
    }

    /// Any leg, half of all times.
    pub(crate) fn one_leg(&mut self, legs: usize) -> Option<Leg> {
        let leg = Leg::new(self.rng.below(legs as u64) as usize);
        self.rng.coin().then_some(leg)
    }

    /// A leg whose metadata cannot be read at a start, all of it or the log, if there is one.
    pub(crate) fn unreadable(&mut self, legs: usize) -> Option<(Leg, bool)> {
        let strikes = self.lastings > 0 && self.rng.chance(1, 4);
        strikes.then(|| (Leg::new(self.rng.below(legs as u64) as usize), self.rng.coin()))
    }

    /// Between two lives: what lasts may end here only.
    pub(crate) fn between_lives(&mut self) {
        if self.rng.coin() {
            self.lasting = None;
        }
    }

    /// One step went by.
    pub(crate) fn step(&mut self, rng: &mut Rng, config: &Config, now: u64) {
        self.periods.retain(|period| period.until > now);
        if self.over {
            return;
        }
        if self.lasting.is_none() && self.rng.chance(self.lastings, 10_000) {
            let metadata = Kind::Meta as u8;
            let writes = Kind::Write as u8 | metadata;
            let all = Kind::Read as u8 | Kind::Flush as u8 | writes;
            let errno = self.rng.pick(&[Errno::EIO, Errno::ENXIO]);
            let (legs, kinds) =
                (some_legs(&mut self.rng, config.legs), self.rng.pick(&[metadata, writes, all]));
            self.lasting = Some(Period { legs, kinds, errno, chance: 8, until: u64::MAX });
        }
        if self.periods.len() < 2 && rng.chance(config.error_periods, 10_000) {
            let all = Kind::Read as u8 | Kind::Write as u8 | Kind::Flush as u8 | Kind::Meta as u8;
            let (errno, kinds) = match rng.below(11) {
                0..=2 => (Errno::ENOSPC, Kind::Write as u8),
                3 => (Errno::ENOSPC, Kind::Write as u8 | Kind::Flush as u8 | Kind::Meta as u8),
                4 => (Errno::EIO, Kind::Write as u8),
                5 => (Errno::EIO, Kind::Flush as u8),
                6 => (Errno::EIO, Kind::Meta as u8),
                7 => (Errno::EIO, Kind::Read as u8),
                8 => (Errno::EIO, all),
                9 => (Errno::ENODEV, all),
                _ => (Errno::EIO, rng.next() as u8 & all),
            };
            self.periods.push(Period {
                legs: some_legs(rng, config.legs),
                kinds,
                errno,
                chance: rng.pick(&[2, 8, 8]),
                until: now + rng.pick(&[5, 30, 200]),
            });
        }
        if rng.chance(config.slow_periods, 10_000) {
            let (legs, until) = (some_legs(rng, config.legs), now + rng.pick(&[50, 300]));
            if rng.coin() {
                (self.slow, self.slow_until) = (legs, until);
            } else {
                (self.hung, self.hung_until) = (legs, until);
            }
        }
        if rng.chance(config.stalls, 10_000) {
            (self.stalled, self.stalled_until) = (rng.next() as u8, now + rng.pick(&[20, 100, 400]));
        }
    }

    /// The leg and sector that goes bad in this step, if one does.
    pub(crate) fn bad_sector(&self, rng: &mut Rng, config: &Config) -> Option<(Leg, usize)> {
        let strikes = !self.over && rng.chance(config.bad_sectors, 10_000);
        strikes.then(|| {
            let legs = if config.dying { 1 } else { config.legs };
            let leg = Leg::new(rng.below(legs as u64) as usize);
            let span = if rng.coin() { HOT.min(config.sectors) } else { config.sectors };
            (leg, rng.below(span as u64) as usize)
        })
    }

    /// How an operation on `leg` that ends now ends.
    pub(crate) fn strike(&self, rng: &mut Rng, config: &Config, leg: Leg, kind: Kind) -> Result<(), Errno> {
        if self.over {
            return Ok(());
        }
        if rng.chance(config.lone_errors, 10_000) {
            return Err(Errno::EIO);
        }
        let hit = |period: &&Period| period.legs.contains(leg) && period.kinds & kind as u8 != 0;
        match self.lasting.iter().chain(&self.periods).find(hit) {
            Some(period) if rng.chance(period.chance, 8) => Err(period.errno),
            _ => Ok(()),
        }
    }

    /// Whether what is under way on `leg` stays so for now.
    pub(crate) fn holds_up(&self, rng: &mut Rng, leg: Leg, now: u64) -> bool {
        !self.over
            && (self.hung.contains(leg) && now < self.hung_until
                || self.slow.contains(leg) && now < self.slow_until && !rng.chance(1, 16))
    }

    /// Whether the thread of a ring does not get to run for now.
    pub(crate) fn stalls(&self, queue: u16, now: u64) -> bool {
        !self.over && now < self.stalled_until && self.stalled & (1 << queue) != 0
    }

    /// Whether a period of errors is under way.
    pub(crate) fn errors(&self) -> bool {
        !self.periods.is_empty() || self.lasts()
    }

    /// Whether errors are under way that do not end with this life.
    pub(crate) fn lasts(&self) -> bool {
        self.lasting.is_some()
    }

    /// Whether any leg hangs.
    pub(crate) fn hang(&self, now: u64) -> bool {
        !self.over && !self.hung.is_empty() && now < self.hung_until
    }

    /// Whether anything may still go wrong.
    pub(crate) fn may_come(&self) -> bool {
        !self.over
    }

    /// From here on all goes well.
    pub(crate) fn end(&mut self) {
        self.over = true;
        self.periods.clear();
        self.lasting = None;
    }
}
