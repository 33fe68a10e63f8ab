//! Read repair: a range that one leg could not read and another could is written anew on the first.
//!
//! One bad block must not cost a leg: the drive puts a block that is written anew elsewhere. The log
//! worker decides, the background worker does it, with the range held and the region marked. A leg
//! whose reads keep failing would be repaired for ever, so there are limits, in the spirit of md:
//!
//! | what | then |
//! |---|---|
//! | the device is gone ([`Errno::is_gone`]), and the leg in sync | the leg is failed at once |
//! | more than [`MOST_REPAIRS`] repairs, of which one is forgotten every [`FORGET_TICKS`] | the leg is failed |
//! | the write failed | the leg is failed, as for any write; one that is syncing and has no room stays |
//!
//! All of this only while another leg is in sync. Otherwise the error is counted and that is all.

use super::{LogWorker, Repair, Stopping};
use crate::mirror::{Counters, LegErrors, QueueNote};
use crate::types::{Errno, Leg, LegSet, LegState};

/// Repairs that a leg may need before it is failed: md's default (`max_read_errors`).
const MOST_REPAIRS: u32 = 20;

/// Ticks after which a leg is forgiven one repair: all of them in an hour. (md halves them every hour.)
const FORGET_TICKS: u32 = 180;

/// Repairs are multiples of this, in bytes: the page of the page cache and the block of most drives. To
/// write a part of a bad one, both would have to read the rest.
const BLOCK: u64 = 4096;

impl LogWorker {
    /// A read failed on `leg` and another leg gave the data.
    pub(super) fn unreadable(&mut self, leg: Leg, offset: u64, len: u64, errno: Errno) {
        let others = self.surely_in_sync().minus(LegSet::one(leg));
        // What did not answer is not known to be bad.
        let in_vain = errno.is_given_up() || self.stopping != Stopping::No;
        if in_vain || !self.in_use().contains(leg) || others.is_empty() {
            return;
        }
        // A leg that is syncing may be back since, and that was the old device: a repair finds out.
        if errno.is_gone() && self.states[leg] == LegState::InSync {
            return self.fail(leg, errno);
        }
        if self.splitting.is_some() || len == 0 {
            // Nobody writes for a moment; who reads it again finds it again.
            return;
        }
        let start = offset / BLOCK * BLOCK;
        // No further than the region, and with that the volume.
        let geometry = self.mirror.geometry();
        let region = geometry.region_at(offset);
        let region_end = geometry.region_start(region) + geometry.region_len(region);
        let end = (offset + len).next_multiple_of(BLOCK).min(region_end);
        let covers = |r: &Repair| r.leg == leg && r.offset <= start && end <= r.offset + r.len;
        if self.repairs.iter().any(covers) {
            return;
        }
        let lately = &mut self.repaired_lately[leg.index()];
        *lately += 1;
        if *lately > MOST_REPAIRS {
            return self.fail(leg, errno);
        }
        let repair = Repair { leg, offset: start, len: end - start };
        self.repairs.push_back(repair);
        self.tell_background(QueueNote::Repair { leg, offset: repair.offset, len: repair.len });
    }

    /// The background worker is done with the oldest repair.
    pub(super) fn repaired(&mut self, ok: LegSet, errors: &LegErrors) {
        let Repair { leg, .. } = self.repairs.pop_front().expect("a repair was handed out");
        if ok.contains(leg) {
            Counters::add(&self.mirror.legs.counters[leg].repaired, 1);
        } else if let Some(errno) = errors[leg.index()]
            && !(errno.is_no_space() && self.states[leg] == LegState::Syncing)
        {
            self.fail_legs(self.in_sync().minus(LegSet::one(leg)), errors);
        }
    }

    /// A tick went by.
    pub(super) fn forget_repairs(&mut self) {
        if self.ticks.is_multiple_of(FORGET_TICKS) {
            self.repaired_lately.iter_mut().for_each(|n| *n = n.saturating_sub(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::geometry::{Geometry, Region};
    use crate::lineage::Lineage;
    use crate::mirror::{Mirror, WorkerNote};
    use crate::types::{FailReason, LegMap, MAX_LEGS};
    use crate::worker::HOLD_OFF_TICKS;
    use crate::worker::WorkerEvent;

    const A: Leg = Leg::new(0);
    const B: Leg = Leg::new(1);
    const IN_SYNC: LegState = LegState::InSync;
    const SYNCING: LegState = LegState::Syncing;
    const FAILED: LegState = LegState::Failed(FailReason::Io);
    const NO_SPACE: LegState = LegState::Failed(FailReason::NoSpace);

    /// Offset and length, in bytes.
    type Range = (u64, u64);

    /// A volume of ten regions and a bit, its legs in these states.
    fn worker(states: [LegState; 2]) -> LogWorker {
        let states = LegMap::from(states.to_vec());
        let geometry = Geometry::new(10 * 8192 + 512, 8192).unwrap();
        let mirror = Arc::new(Mirror::new(geometry, &states, [], 1));
        let lineage = Lineage::new(1, states.len());
        LogWorker::new(mirror, states, 1, lineage, true)
    }

    /// Tells the worker; the repairs that it hands out.
    fn tell(worker: &mut LogWorker, note: WorkerNote) -> Vec<Range> {
        worker.mirror.tell_worker(note);
        worker.handle(WorkerEvent::Woken, &mut Vec::new());
        let mut notes = Vec::new();
        worker.mirror.take_queue_notes(worker.mirror.background(), &mut notes);
        let repair = |note| match note {
            QueueNote::Repair { leg: A, offset, len } => Some((offset, len)),
            _ => None,
        };
        notes.into_iter().filter_map(repair).collect()
    }

    fn unreadable(worker: &mut LogWorker, offset: u64, len: u64, errno: Errno) -> Vec<Range> {
        tell(worker, WorkerNote::Unreadable { leg: A, offset, len, errno })
    }

    #[test]
    fn what_a_failed_read_leads_to() {
        /// The legs, the error, where; leg 0 then, and what is repaired.
        type Row = (&'static str, [LegState; 2], Errno, Range, LegState, &'static [Range]);
        let end = 10 * 8192;
        #[rustfmt::skip]
        let rows: [Row; 11] = [
            ("no answer",       [IN_SYNC, IN_SYNC], Errno::GIVEN_UP,  (8192, 4096), IN_SYNC, &[]),
            ("a block",         [IN_SYNC, IN_SYNC], Errno::EIO,       (8192, 4096), IN_SYNC, &[(8192, 4096)]),
            ("parts of blocks", [IN_SYNC, IN_SYNC], Errno::EIO,       (3584, 1024), IN_SYNC, &[(0, 8192)]),
            ("end of volume",   [IN_SYNC, IN_SYNC], Errno::EIO,       (end, 512),   IN_SYNC, &[(10 * 8192, 512)]),
            ("syncing",         [SYNCING, IN_SYNC], Errno::EIO,       (0, 4096),    SYNCING, &[(0, 4096)]),
            ("device gone",     [IN_SYNC, IN_SYNC], Errno::ENODEV,    (0, 4096),    FAILED,  &[]),
            ("transport gone",  [IN_SYNC, IN_SYNC], Errno::ESHUTDOWN, (0, 4096),    FAILED,  &[]),
            ("perhaps gone",    [SYNCING, IN_SYNC], Errno::ENXIO,     (0, 4096),    SYNCING, &[(0, 4096)]),
            ("last in sync",    [IN_SYNC, SYNCING], Errno::EIO,       (0, 4096),    IN_SYNC, &[]),
            ("last one, gone",  [IN_SYNC, FAILED],  Errno::ENXIO,     (0, 4096),    IN_SYNC, &[]),
            ("out already",     [FAILED, IN_SYNC],  Errno::EIO,       (0, 4096),    FAILED,  &[]),
        ];
        for (name, states, errno, (offset, len), state, repairs) in rows {
            let mut worker = worker(states);
            assert_eq!(unreadable(&mut worker, offset, len, errno), repairs, "{name}");
            assert_eq!(worker.mirror.legs.states().of(A), state, "{name}");
        }
    }

    #[test]
    fn how_a_repair_ends() {
        /// Whether it was done at all.
        type End = Result<bool, Errno>;
        let (done, given_up) = (Ok(true), Ok(false));
        #[rustfmt::skip]
        let rows: [(&str, [LegState; 2], End, LegState, u64); 7] = [
            ("written",            [IN_SYNC, IN_SYNC], done,               IN_SYNC,  1),
            ("given up",           [IN_SYNC, IN_SYNC], given_up,           IN_SYNC,  0),
            ("write failed",       [IN_SYNC, IN_SYNC], Err(Errno::EIO),    FAILED,   0),
            ("no room",            [IN_SYNC, IN_SYNC], Err(Errno::ENOSPC), NO_SPACE, 0),
            ("no room, syncing",   [SYNCING, IN_SYNC], Err(Errno::ENOSPC), SYNCING,  0),
            ("failed, syncing",    [SYNCING, IN_SYNC], Err(Errno::EIO),    FAILED,   0),
            ("failed, now alone",  [IN_SYNC, FAILED],  Err(Errno::EIO),    IN_SYNC,  0),
        ];
        for (name, [a, b], result, state, repaired) in rows {
            let mut worker = worker([a, IN_SYNC]);
            assert_eq!(unreadable(&mut worker, 0, 4096, Errno::EIO), [(0, 4096)], "{name}");
            if b != IN_SYNC {
                worker.fail(B, Errno::EIO);
            }
            let ok = if result == done { LegSet::one(A) } else { LegSet::EMPTY };
            let mut errors = [None; MAX_LEGS];
            errors[A.index()] = result.err();
            let _ = tell(&mut worker, WorkerNote::Repaired { ok, errors });
            let legs = &worker.mirror.legs;
            assert_eq!(legs.states().of(A), state, "{name}");
            let counted = legs.counters[A].repaired.load(std::sync::atomic::Ordering::Relaxed);
            assert_eq!(counted, repaired, "{name}");
        }
    }

    #[test]
    fn a_leg_that_needs_too_many_repairs_is_failed() {
        for (name, ticks, state) in [("at once", 0, FAILED), ("one forgotten", FORGET_TICKS, IN_SYNC)] {
            let mut worker = worker([IN_SYNC, IN_SYNC]);
            let bad = |n: u32| u64::from(n) * 4096;
            for n in 0..MOST_REPAIRS {
                assert_eq!(unreadable(&mut worker, bad(n), 4096, Errno::EIO).len(), 1, "{name}");
                let under_way = unreadable(&mut worker, bad(n), 4096, Errno::EIO);
                assert!(under_way.is_empty(), "{name}: one repair is enough");
            }
            for _ in 0..ticks {
                assert!(worker.wants_tick());
                worker.handle(WorkerEvent::Tick, &mut Vec::new());
            }
            let _ = unreadable(&mut worker, bad(MOST_REPAIRS), 512, Errno::EIO);
            assert_eq!(worker.mirror.legs.states().of(A), state, "{name}");
        }
    }

    #[test]
    fn a_region_that_no_leg_can_give_does_not_hold_up_the_others() {
        let mut worker = worker([IN_SYNC, SYNCING]);
        for region in (0..10).map(Region) {
            worker.mirror.regions.assume_dirty(region);
            worker.mirror.legs.set_stale(B, region);
        }
        let (mut tried, mut ticks) = (0, 0);
        while worker.mirror.legs.stale_count(B) > 1 {
            worker.handle(WorkerEvent::Tick, &mut Vec::new());
            ticks += 1;
            let mut notes = Vec::new();
            worker.mirror.take_queue_notes(worker.mirror.background(), &mut notes);
            for note in notes {
                let QueueNote::Copy { region, targets } = note else { continue };
                let bad = region == Region(0);
                tried += u32::from(bad);
                let ok = if bad { LegSet::EMPTY } else { targets };
                let errors = [None; MAX_LEGS];
                worker.mirror.tell_worker(WorkerNote::Copied { region, ok, errors });
            }
        }
        assert!(worker.mirror.legs.is_stale(B, Region(0)));
        assert!(tried <= 1 + ticks / HOLD_OFF_TICKS, "tried {tried} times in {ticks} ticks");
    }
}
