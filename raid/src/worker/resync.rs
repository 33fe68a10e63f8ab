//! Stale regions handed out for copying; legs that come back and legs that are in sync again.

use super::{Copy, Doing, FOR_COPIES, Flushing, HOLD_OFF_TICKS, LogWorker, TURN_REGIONS};
use crate::background::REGIONS_AT_ONCE;
use crate::geometry::Region;
use crate::mirror::{Counters, LegErrors, QueueNote};
use crate::region::RegionState;
use crate::types::{Errno, Leg, LegSet, LegState, MAX_LEGS};

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
        self.is_copied_to(leg);
        self.mirror.legs.track_exactly(leg, false);
        self.mirror.legs.forget_failed_flush(leg);
        self.states[leg] = LegState::Syncing;
        self.mirror.legs.set(leg, LegState::Syncing);
        self.record_wanted = true;
        if tracked {
            self.settling[leg.index()] = None;
            self.set_stale_beside_writes(leg);
        } else {
            // All of one that is copied whole is marked, and stays stale.
            self.settling[leg.index()] = (!full).then_some(0);
        }
        for copy in &mut self.copies {
            copy.again.insert(leg);
        }
        self.hold_off[leg.index()] = 0;
        self.repaired_lately[leg.index()] = 0;
    }

    /// Writes under way may have looked at the states before.
    fn set_stale_beside_writes(&mut self, leg: Leg) {
        let (mut unclean, table) = (Vec::new(), &self.mirror.regions);
        let mut next = Some(0);
        while let Some(from) = next {
            next = table.find_unclean(from, TURN_REGIONS, &mut unclean);
            for region in unclean.drain(..).filter(|&region| table.writes(region) > 0) {
                self.mirror.legs.set_stale(leg, region);
            }
        }
    }

    /// Legs that came back are not stale where the log is clean. Until that is known everywhere they are not copied to: a
    /// copy is made only where the log is dirty.
    pub(super) fn settle_legs(&mut self) {
        let (len, table) = (self.mirror.regions.len(), &self.mirror.regions);
        for leg in LegSet::first(MAX_LEGS).iter() {
            let Some(from) = self.settling[leg.index()] else { continue };
            if self.states[leg] != LegState::Syncing {
                self.settling[leg.index()] = None;
                continue;
            }
            let until = from.saturating_add(self.may_look_at()).min(len);
            for region in (from..until).map(Region) {
                if table.state(region) == RegionState::Clean {
                    self.mirror.legs.clear_stale(leg, region);
                }
            }
            self.looked_at += until - from;
            self.settling[leg.index()] = (until < len).then_some(until);
            self.has_more |= until < len;
        }
    }

    pub(super) fn is_settling(&self) -> bool {
        self.settling.iter().any(Option::is_some)
    }

    /// The next leg to be taken back. One that is copied whole waits until every region is marked: were it in use
    /// before, a crash would leave it stale where nobody knows.
    pub(super) fn take_returning(&mut self) -> Option<Leg> {
        let all_marked = self.returning_full.is_empty() || self.marked_until >= self.mirror.regions.len();
        let at = self.returning.iter().position(|&leg| all_marked || !self.returning_full.contains(leg))?;
        Some(self.returning.swap_remove(at))
    }

    /// Has regions marked for legs that are to be copied whole, some with each commit: whoever waits for a mark gets it
    /// with the next one. Nothing is cleared meanwhile.
    pub(super) fn mark_for_full(&mut self) {
        if self.full_held_off || !self.returning.iter().any(|&leg| self.returning_full.contains(leg)) {
            return;
        }
        let (len, table) = (self.mirror.regions.len(), &self.mirror.regions);
        let from = self.marked_until;
        let until = from.saturating_add(self.may_look_at()).min(len);
        for region in (from..until).map(Region) {
            let is_marked = table.state(region).is_durable();
            if is_marked && self.marked_until == region.0 {
                self.marked_until += 1;
            } else if table.state(region) == RegionState::Clean && table.want_mark(region) {
                self.marks.push((region, FOR_COPIES));
            }
        }
        self.looked_at += until - from;
        // The others wait for the commit of these.
        self.has_more |= self.marked_until == until && from < len;
    }

    /// Only once it is recorded as syncing: the legs in sync know then that they cannot go on without it.
    pub(super) fn can_promote(&self, leg: Leg) -> bool {
        self.states[leg] == LegState::Syncing
            && self.mirror.legs.states().recorded(leg)
            && self.settling[leg.index()].is_none()
            && self.mirror.legs.next_stale(leg, 0).is_none()
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
        let states = legs.states();
        // A record that has it in sync may decide until the one that has it syncing is complete.
        let is_ready = |leg: &Leg| {
            self.hold_off[leg.index()] == 0 && self.settling[leg.index()].is_none() && states.recorded(*leg)
        };
        let ready: LegSet = states.syncing().iter().filter(is_ready).collect();
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
