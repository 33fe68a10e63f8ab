//! Stale regions handed out for copying; legs that come back and legs that are in sync again.

use super::{Copy, Doing, Flushing, HOLD_OFF_TICKS, LogWorker, NOBODY};
use crate::background::REGIONS_AT_ONCE;
use crate::geometry::Region;
use crate::mirror::{Counters, LegErrors, QueueNote};
use crate::region::RegionState;
use crate::types::{Errno, Leg, LegSet, LegState};

impl LogWorker {
    pub(super) fn log_filled(&mut self, result: Result<(), Errno>) {
        let Doing::Fill(leg) = std::mem::replace(&mut self.doing, Doing::Nothing) else {
            unreachable!("no leg is being filled")
        };
        let full = self.returning_full.contains(leg);
        self.returning_full.remove(leg);
        if result.is_err() {
            return;
        }
        // Stale everywhere first, then in use, then not stale where the log is clean: a write that
        // begins in a clean region after that look sees the leg in use. Of a leg that was tracked it is known
        // where it is stale, but for writes under way.
        let tracked = self.mirror.legs.tracked_exactly().contains(leg) && !full;
        if !tracked {
            self.mirror.legs.set_all_stale(leg, true);
        }
        self.mirror.legs.track_exactly(leg, false);
        self.mirror.legs.forget_failed_flush(leg);
        self.states[leg] = LegState::Syncing;
        self.mirror.legs.set(leg, LegState::Syncing);
        self.record_wanted = true;
        for region in (0..self.mirror.regions.len()).map(Region) {
            if full {
                assert_ne!(self.mirror.regions.state(region), RegionState::Clean, "it was marked before");
            } else if tracked && self.mirror.regions.writes(region) > 0 {
                self.mirror.legs.set_stale(leg, region);
            } else if !tracked && self.mirror.regions.state(region) == RegionState::Clean {
                self.mirror.legs.clear_stale(leg, region);
            }
        }
        for copy in &mut self.copies {
            copy.again.insert(leg);
        }
        self.hold_off[leg.index()] = 0;
        self.repaired_lately[leg.index()] = 0;
    }

    /// The next leg to be taken back. One that is copied whole waits until every region is marked: were it in use
    /// before, a crash would leave it stale where nobody knows.
    pub(super) fn take_returning(&mut self) -> Option<Leg> {
        let table = &self.mirror.regions;
        let is_marked = |region| matches!(table.state(region), RegionState::Dirty | RegionState::Cleaning);
        let all_marked = self.returning_full.is_empty() || (0..table.len()).map(Region).all(is_marked);
        let at = self.returning.iter().position(|&leg| all_marked || !self.returning_full.contains(leg))?;
        Some(self.returning.swap_remove(at))
    }

    /// Has all regions marked for legs that are to be copied whole.
    pub(super) fn mark_for_full(&mut self) {
        if self.returning.iter().any(|&leg| self.returning_full.contains(leg)) {
            (0..self.mirror.regions.len()).for_each(|region| self.mark_for_copy(Region(region)));
        }
    }

    /// Has a clean region marked, for a copy.
    fn mark_for_copy(&mut self, region: Region) {
        if self.mirror.regions.state(region) == RegionState::Clean && self.mirror.regions.want_mark(region) {
            self.marks.push((region, NOBODY));
        }
    }

    /// Only once it is recorded as syncing: the legs in sync know then that they cannot go on without it.
    pub(super) fn can_promote(&self, leg: Leg) -> bool {
        self.states[leg] == LegState::Syncing
            && self.mirror.legs.states().recorded(leg)
            && self.mirror.legs.stale_count(leg) == 0
            && self.copies.iter().all(|copy| !copy.targets.contains(leg))
    }

    pub(super) fn promote(&mut self) {
        let ready = self.states.legs().find(|&leg| self.can_promote(leg));
        if let (Flushing::Nothing, Some(leg)) = (&self.flushing, ready) {
            self.flushing = Flushing::Promote(leg);
            self.tell_background(QueueNote::Flush { legs: LegSet::one(leg) });
        }
    }

    pub(super) fn hand_out_copies(&mut self) {
        while !self.paused && self.copies.len() < REGIONS_AT_ONCE as usize {
            let Some((region, targets)) = self.resync_work() else { return };
            self.copy_cursor = region.0 + 1;
            self.copies.push(Copy { region, targets, again: LegSet::EMPTY });
            self.tell_background(QueueNote::Copy { region, targets });
        }
    }

    /// The next stale region at or behind the cursor, around the end, with the legs that are stale there.
    pub(super) fn resync_work(&self) -> Option<(Region, LegSet)> {
        let legs = &self.mirror.legs;
        let ready: LegSet =
            legs.states().syncing().iter().filter(|leg| self.hold_off[leg.index()] == 0).collect();
        let regions = self.mirror.regions.len();
        let find = |from: u32| ready.iter().filter_map(|leg| legs.next_stale(leg, from)).min();
        let mut from = self.copy_cursor % regions;
        let mut wrapped = false;
        loop {
            let Some(region) = find(from) else {
                if wrapped {
                    return None;
                }
                (wrapped, from) = (true, 0);
                continue;
            };
            if self.copies.iter().any(|copy| copy.region == region) {
                from = region.0 + 1;
                if from < regions {
                    continue;
                }
                if wrapped {
                    return None;
                }
                (wrapped, from) = (true, 0);
                continue;
            }
            return Some((region, ready.iter().filter(|&leg| legs.is_stale(leg, region)).collect()));
        }
    }

    pub(super) fn copied(&mut self, region: Region, ok: LegSet, errors: LegErrors) {
        let at = self.copies.iter().position(|copy| copy.region == region).expect("a copy was handed out");
        let copy = self.copies.swap_remove(at);
        for leg in copy.targets.iter() {
            if self.states[leg] != LegState::Syncing {
                continue;
            }
            if ok.contains(leg) {
                if !copy.again.contains(leg) {
                    self.mirror.legs.clear_stale(leg, region);
                    Counters::add(&self.mirror.counters.resynced_regions, 1);
                }
            } else if let Some(errno) = errors[leg.index()].filter(|errno| !errno.is_no_space()) {
                self.fail(leg, errno);
            } else {
                // No room, or no leg in sync could read it: the cursor is past this region by then.
                self.hold_off[leg.index()] = HOLD_OFF_TICKS;
            }
        }
    }
}
