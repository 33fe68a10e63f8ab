//! Which legs the volume has: legs that come anew, spares, legs that take the place of others, legs that leave.
//!
//! A leg comes in by the way of one that returns (`resync.rs`), copied whole. One that takes the place of another
//! is a leg beside it until it is in sync, and only then is the other removed. Who replaces whom is recorded: a
//! replacement goes on after a restart.

use super::{Doing, LogWorker, Stopping};
use crate::types::{FailReason, Leg, LegSet, LegState};

impl LogWorker {
    /// A leg that is out is there again, or for the first time.
    pub(super) fn take_back(&mut self, leg: Leg, full: bool, replaces: Option<Leg>) {
        let is_under_way = self.is_coming(leg);
        let is_late = self.stopping != Stopping::No;
        if self.states[leg].is_in_use() || is_under_way || is_late || self.is_splitting(leg) {
            return;
        }
        self.returning.push(leg);
        self.nothing_replaces(leg);
        if full || !self.states[leg].is_copy() {
            if self.returning_full.is_empty() {
                self.marked_until = 0;
            }
            self.returning_full.insert(leg);
        }
        if replaces.is_some() || !self.states[leg].is_copy() {
            self.record_wanted |= self.replaces[leg.index()] != replaces;
            self.replaces[leg.index()] = replaces;
        }
        self.may_hold_a_record(leg);
    }

    pub(super) fn add_spare(&mut self, leg: Leg) {
        let is_under_way = self.is_coming(leg);
        if self.states[leg] == LegState::Vacant && !is_under_way {
            self.set_state(leg, LegState::Spare);
            self.may_hold_a_record(leg);
        }
    }

    /// The volume is about to stop: who is not back by now comes back with the next start, or is given back then.
    pub(super) fn give_up_returns(&mut self) {
        self.returning.clear();
        let filled = self.returning_full.iter().filter(|&leg| self.is_being_filled(leg)).collect();
        self.returning_full = filled;
    }

    /// The others know that it may have a record of this session before it gets one.
    fn may_hold_a_record(&mut self, leg: Leg) {
        self.record_wanted |= !self.lineage.written.contains(leg);
        self.lineage.written.insert(leg);
    }

    fn set_state(&mut self, leg: Leg, state: LegState) {
        self.states[leg] = state;
        self.mirror.legs.set(leg, state);
        self.record_wanted = true;
    }

    fn is_being_filled(&self, leg: Leg) -> bool {
        matches!(self.doing, Doing::Fill(now) if now == leg)
    }

    /// Whether another leg is to take its place.
    pub(super) fn is_being_replaced(&self, leg: Leg) -> bool {
        self.replaces.contains(&Some(leg))
    }

    /// Whether a leg is on its way in.
    pub fn is_coming(&self, leg: Leg) -> bool {
        self.returning.contains(&leg) || self.is_being_filled(leg)
    }

    /// What can be done now about legs that come and go.
    pub(super) fn change_roster(&mut self) {
        self.retire_replaced();
        for leg in self.removals.iter() {
            if !self.is_being_filled(leg) && !self.is_splitting(leg) {
                self.removals.remove(leg);
                self.remove(leg);
            }
        }
        if self.stopping == Stopping::No {
            self.use_spares();
        }
    }

    /// The last leg in sync stays.
    fn remove(&mut self, leg: Leg) {
        let others = self.surely_in_sync().minus(LegSet::one(leg));
        if others.is_empty() || self.states[leg] == LegState::Vacant && !self.returning.contains(&leg) {
            return;
        }
        self.returning.retain(|&other| other != leg);
        self.returning_full.remove(leg);
        self.mirror.legs.track_exactly(leg, false);
        self.replaces[leg.index()] = None;
        self.nothing_replaces(leg);
        self.held.set(leg, 0);
        self.set_state(leg, LegState::Vacant);
    }

    fn nothing_replaces(&mut self, leg: Leg) {
        for replaced in self.replaces.iter_mut().filter(|replaced| **replaced == Some(leg)) {
            *replaced = None;
            self.record_wanted = true;
        }
    }

    /// Removes those whose place another leg in sync has taken, and who tried that before and failed.
    fn retire_replaced(&mut self) {
        let states = self.mirror.legs.states();
        for leg in self.surely_in_sync().iter().filter(|&leg| states.recorded(leg)) {
            let Some(old) = self.replaces[leg.index()].take() else { continue };
            self.record_wanted = true;
            // What was split off belongs to whoever reads it.
            if self.states[old] != LegState::Tracked && !self.is_splitting(old) {
                self.removals.insert(old);
            }
            for other in self.states.legs() {
                let tried = self.replaces[other.index()] == Some(old);
                if tried && matches!(self.states[other], LegState::Failed(_)) {
                    self.removals.insert(other);
                }
            }
        }
    }

    /// A leg that failed and that nothing takes the place of yet is replaced by a spare.
    fn use_spares(&mut self) {
        let replaced_by =
            |by: Leg| self.replaces[by.index()].filter(|_| self.states[by].is_in_use() || self.is_coming(by));
        let replaced: LegSet = self.states.legs().filter_map(replaced_by).collect();
        let is_lost = |&leg: &Leg| {
            let reason = matches!(
                self.states[leg],
                LegState::Failed(FailReason::Io | FailReason::Missing | FailReason::Admin)
            );
            // One that failed on its way in leaves the place to the leg it was to replace.
            reason && !self.returning.contains(&leg) && self.replaces[leg.index()].is_none()
        };
        let lost = self.states.legs().find(|leg| is_lost(leg) && !replaced.contains(*leg));
        let is_free = |leg: Leg| self.states[leg] == LegState::Spare && !self.is_coming(leg);
        let spare = self.ready_spares.iter().find(|&leg| is_free(leg));
        if let (Some(lost), Some(spare)) = (lost, spare)
            && !self.surely_in_sync().is_empty()
        {
            self.ready_spares.remove(spare);
            self.take_back(spare, true, Some(lost));
        }
    }
}
