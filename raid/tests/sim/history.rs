//! What reads may return: every sector is a register, checked as an atomic one (invariant 6), and
//! what a crash may take back (invariants 3 and 7).
//!
//! Every write leaves a stamp that is unique, so the check of Gibbons and Korach applies: the *zone*
//! of a value spans from the first end of an operation on it to the last start of one. If the first
//! end comes before the last start, the value was the register's throughout (a forward zone);
//! otherwise it was at some moment between the two (a backward zone). The history is that of one
//! register if no two forward zones overlap and no forward zone holds a backward one. Zones are
//! compared whenever one grows, so that the first illegal answer is caught.
//!
//! A write that failed, or was in flight at a crash, happened only if somebody read it. One that failed
//! may be read and be gone after a crash all the same: it is answered with an error also when a leg
//! missed it and no leg could record that. No flush works then before such a record does. And one that
//! nobody read may happen at a crash, unless another was written since: the leg that has it was out, which no leg
//! could record, and is in again. A flush that
//! worked makes values *dead* that a read could no longer have returned when it was submitted: no
//! crash may bring them back. Values of writes still in flight then are left out of that account:
//! no disk owes them anything.

/// The end of an operation that has not ended.
const OPEN: u64 = u64::MAX;

#[derive(Clone, Copy)]
struct Value {
    stamp: u64,
    /// When its write began.
    started: u64,
    /// When its write ended, well or not.
    written: u64,
    /// It did happen: its write ended well, or somebody read it.
    real: bool,
    /// Its write was answered with an error.
    failed: bool,
    /// No crash may bring it back.
    dead: bool,
    first_end: u64,
    last_start: u64,
}

impl Value {
    /// The zone: its borders, and whether it is a forward one.
    fn zone(&self) -> (u64, u64, bool) {
        if self.first_end < self.last_start {
            (self.first_end, self.last_start, true)
        } else {
            (self.last_start, self.first_end, false)
        }
    }

    /// Whether one register cannot have held both.
    fn excludes(&self, other: &Value) -> bool {
        let ((a, b, forward), (c, d, other_forward)) = (self.zone(), other.zone());
        match (forward, other_forward) {
            (true, true) => a.max(c) < b.min(d),
            (true, false) => a < c && d < b,
            (false, true) => c < a && b < d,
            (false, false) => false,
        }
    }

    /// Whether its write failed and may yet take place at a crash, among these of its sector.
    fn happens_late(&self, values: &[Value]) -> bool {
        let is_later = |v: &Value| v.real && !v.failed && v.started > self.written;
        self.failed && !self.real && !values.iter().any(is_later)
    }

    /// The value as if a read that started at `start` had returned it.
    fn read_from(mut self, start: u64) -> Value {
        self.last_start = self.last_start.max(start);
        self
    }
}

/// Why a read is illegal.
#[derive(Clone, Copy)]
pub(crate) enum Illegal {
    /// Nobody wrote it, or it was superseded long ago.
    Unknown,
    /// This other value was current, for certain, when it was read.
    Superseded(u64),
}

impl std::fmt::Display for Illegal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Illegal::Unknown => write!(f, "superseded long ago, or never written"),
            Illegal::Superseded(by) => write!(f, "superseded by {by:#x}"),
        }
    }
}

pub(crate) struct History {
    sectors: Vec<Vec<Value>>,
    /// Sectors with more than one value.
    open: Vec<u32>,
}

impl History {
    /// Every sector holds `stamp`.
    pub(crate) fn new(sectors: usize, stamp: u64) -> History {
        let value = Value {
            stamp,
            started: 0,
            written: 0,
            real: true,
            failed: false,
            dead: false,
            first_end: 0,
            last_start: 0,
        };
        History { sectors: vec![vec![value]; sectors], open: Vec::new() }
    }

    pub(crate) fn write_starts(&mut self, sector: usize, stamp: u64, now: u64) {
        let values = &mut self.sectors[sector];
        values.push(Value {
            stamp,
            started: now,
            written: OPEN,
            real: false,
            failed: false,
            dead: false,
            first_end: OPEN,
            last_start: now,
        });
        if values.len() == 2 {
            self.open.push(sector as u32);
        }
    }

    /// A write ended. `ok`: it took place; `durable`: and no crash may bring back what was before.
    pub(crate) fn write_ends(
        &mut self,
        sector: usize,
        stamp: u64,
        ok: bool,
        durable: bool,
        now: u64,
    ) -> Result<(), Illegal> {
        let values = &mut self.sectors[sector];
        // A request can be superseded in this sector long before it ends in others.
        let Some(at) = values.iter().position(|v| v.stamp == stamp) else { return Ok(()) };
        values[at].written = now;
        values[at].first_end = values[at].first_end.min(now);
        values[at].real |= ok;
        values[at].failed = !ok;
        if ok && durable {
            let floor = values[at];
            for value in values.iter_mut().filter(|v| v.stamp != stamp) {
                value.dead |= value.read_from(now).excludes(&floor);
            }
        }
        if ok { self.check(sector, at) } else { Ok(()) }
    }

    /// A read that began at `start` and ends `now` returned `stamp`.
    pub(crate) fn read(&mut self, sector: usize, stamp: u64, start: u64, now: u64) -> Result<(), Illegal> {
        let values = &mut self.sectors[sector];
        let at = values.iter().position(|v| v.stamp == stamp).ok_or(Illegal::Unknown)?;
        values[at].real = true;
        values[at].first_end = values[at].first_end.min(now);
        values[at].last_start = values[at].last_start.max(start);
        self.check(sector, at)
    }

    fn check(&self, sector: usize, at: usize) -> Result<(), Illegal> {
        let values = &self.sectors[sector];
        let other = values.iter().find(|v| v.real && v.stamp != values[at].stamp && v.excludes(&values[at]));
        other.map_or(Ok(()), |other| Err(Illegal::Superseded(other.stamp)))
    }

    /// A flush that was submitted at `submitted` ended well; no read under way began before `oldest`.
    pub(crate) fn flushed(&mut self, submitted: u64, oldest: u64) {
        let sectors = &mut self.sectors;
        self.open.retain(|&sector| {
            let values = &mut sectors[sector as usize];
            for at in 0..values.len() {
                let then = values[at].read_from(submitted);
                values[at].dead |= values.iter().any(|by| {
                    by.real && by.written < submitted && by.stamp != then.stamp && then.excludes(by)
                });
            }
            forget(values, oldest);
            values.len() > 1
        });
    }

    /// Whether the volume may hold `stamp` after the process was killed at `now`.
    pub(crate) fn survives_kill(&self, sector: usize, stamp: u64, now: u64) -> bool {
        let values = &self.sectors[sector];
        let Some(value) = values.iter().find(|v| v.stamp == stamp) else { return false };
        if value.happens_late(values) {
            return true;
        }
        let then = value.read_from(now);
        !values.iter().any(|v| v.real && !v.failed && v.stamp != stamp && then.excludes(v))
    }

    /// The volume is served again after the process was killed at `now` and holds `stamp`.
    pub(crate) fn found_after_kill(&mut self, sector: usize, stamp: u64, now: u64) -> Result<(), Illegal> {
        let values = &mut self.sectors[sector];
        let late = values.iter().position(|v| v.stamp == stamp && v.happens_late(values));
        if let Some(at) = late {
            values[at].first_end = OPEN;
        }
        for value in values.iter_mut().filter(|v| v.failed && v.stamp != stamp) {
            value.real = false;
        }
        self.read(sector, stamp, now, now)
    }

    /// Whether the volume may hold `stamp` after a power cut.
    pub(crate) fn survives_power_cut(&self, sector: usize, stamp: u64) -> bool {
        self.sectors[sector].iter().any(|v| v.stamp == stamp && !v.dead)
    }

    /// The process was killed: what was in flight has ended, one way or the other. `failing`: a leg was
    /// failed and that was not recorded, so what was in flight may have failed in part already.
    pub(crate) fn killed(&mut self, now: u64, failing: bool) {
        for &sector in &self.open {
            for value in self.sectors[sector as usize].iter_mut().filter(|v| v.written == OPEN) {
                value.written = now;
                value.failed = failing;
                value.first_end = value.first_end.min(now);
            }
        }
    }

    /// The power failed: any value that is not dead may be there, none is known to be.
    pub(crate) fn power_cut(&mut self, now: u64) {
        for &sector in &self.open {
            let values = &mut self.sectors[sector as usize];
            values.retain(|v| !v.dead);
            let alone = values.len() == 1;
            for value in values.iter_mut() {
                *value = Value {
                    written: now,
                    real: alone,
                    failed: false,
                    first_end: now,
                    last_start: now,
                    ..*value
                };
            }
        }
        let sectors = &self.sectors;
        self.open.retain(|&sector| sectors[sector as usize].len() > 1);
    }

    /// The volume is served again after a power cut and is what `holds` says, stable on its source:
    /// from here on that is what was flushed.
    pub(crate) fn adopt(&mut self, holds: impl Fn(usize) -> u64) {
        for sector in self.open.drain(..) {
            let (values, stamp) = (&mut self.sectors[sector as usize], holds(sector as usize));
            values.retain(|v| v.stamp == stamp);
            assert_eq!(values.len(), 1, "an adopted value was looked at before");
            values[0].real = true;
        }
    }

    /// The sector holds this from now on, whatever it held.
    pub(crate) fn roll_back(&mut self, sector: usize, stamp: u64, now: u64) {
        let value = Value {
            stamp,
            started: now,
            written: now,
            real: true,
            failed: false,
            dead: false,
            first_end: now,
            last_start: now,
        };
        self.sectors[sector] = vec![value];
        self.open.retain(|&open| open as usize != sector);
    }

    /// Sectors that may hold more than one value.
    pub(crate) fn open(&self) -> Vec<u32> {
        self.open.clone()
    }
}

/// Drops values that are dead and that no read under way or to come may return.
fn forget(values: &mut Vec<Value>, oldest: u64) {
    let mut at = 0;
    while at < values.len() {
        let then = values[at].read_from(oldest);
        let gone = then.dead && values.iter().any(|v| v.real && v.stamp != then.stamp && then.excludes(v));
        if gone {
            values.remove(at);
        } else {
            at += 1;
        }
    }
}

/// Sector 0 holds 1; a write of 2 starts at 10.
#[cfg(test)]
fn one_write_under_way() -> History {
    let mut history = History::new(1, 1);
    history.write_starts(0, 2, 10);
    history
}

#[test]
fn beside_a_write_reads_see_either_and_do_not_go_back() {
    let mut history = one_write_under_way();
    assert!(history.read(0, 1, 11, 12).is_ok());
    assert!(history.read(0, 2, 13, 14).is_ok());
    assert!(history.read(0, 1, 13, 20).is_ok(), "began before the new value was seen");
    assert!(history.read(0, 1, 15, 16).is_err());
}

#[test]
fn after_a_write_that_failed_the_first_read_decides() {
    let mut history = one_write_under_way();
    assert!(history.write_ends(0, 2, false, false, 20).is_ok());
    assert!(history.read(0, 1, 21, 22).is_ok());
    assert!(history.read(0, 2, 23, 24).is_err());
}

#[test]
fn a_write_that_failed_may_happen_at_a_kill_but_not_after_a_later_one() {
    let mut history = one_write_under_way();
    assert!(history.write_ends(0, 2, false, false, 20).is_ok());
    assert!(history.read(0, 1, 21, 22).is_ok());
    assert!(history.survives_kill(0, 2, 30));
    assert!(history.found_after_kill(0, 2, 30).is_ok());
    assert!(history.read(0, 1, 31, 32).is_err(), "it is the volume's now");
    let mut history = one_write_under_way();
    assert!(history.write_ends(0, 2, false, false, 20).is_ok());
    history.write_starts(0, 3, 25);
    assert!(history.write_ends(0, 3, true, false, 28).is_ok());
    assert!(!history.survives_kill(0, 2, 30) && history.survives_kill(0, 3, 30));
}

#[test]
fn a_power_cut_takes_back_what_was_not_flushed_and_no_more() {
    let mut history = one_write_under_way();
    history.write_ends(0, 2, true, false, 20).unwrap_or_else(|illegal| panic!("{illegal}"));
    history.write_starts(0, 3, 30);
    assert!(history.survives_power_cut(0, 1) && history.survives_power_cut(0, 2));
    assert!(!history.survives_kill(0, 1, 31) && history.survives_kill(0, 3, 31));
    history.flushed(31, 31);
    assert!(!history.survives_power_cut(0, 1), "its successor was flushed");
    assert!(history.survives_power_cut(0, 2) && history.survives_power_cut(0, 3));
}
