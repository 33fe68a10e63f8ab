//! Leg states: who is failed for what, and the records that make it durable.

use super::durable::RECORD_IO;
use super::{Doing, HOLD_OFF_TICKS, LogWorker, Record, Stopping, WorkerAction};
use crate::geometry::Region;
use crate::mirror::{Counters, LegErrors, QueueNote};
use crate::ranges::Owner;
use crate::types::{Errno, FailReason, Leg, LegSet, LegState, MAX_LEGS};

/// Whether a flush that failed on all of these legs may have lost something on each.
pub(super) fn is_lost(legs: LegSet, errors: &LegErrors) -> bool {
    !legs.iter().any(|leg| errors[leg.index()].is_some_and(Errno::is_given_up))
}

impl LogWorker {
    pub(super) fn in_sync(&self) -> LegSet {
        self.states.iter().filter(|&(_, &s)| s == LegState::InSync).map(|(leg, _)| leg).collect()
    }

    pub(super) fn in_use(&self) -> LegSet {
        self.states.iter().filter(|(_, s)| s.is_in_use()).map(|(leg, _)| leg).collect()
    }

    /// Legs in sync that are recorded so: the others among the legs in sync are on their way there, and
    /// may turn out not to get there.
    pub(super) fn surely_in_sync(&self) -> LegSet {
        self.in_sync().intersect(self.mirror.legs.states().in_sync())
    }

    /// Takes a leg out of use, at once for the queues and soon for the superblocks.
    pub(super) fn fail(&mut self, leg: Leg, errno: Errno) {
        if self.states[leg].is_in_use() {
            let reason = if errno.is_no_space() { FailReason::NoSpace } else { FailReason::Io };
            self.states[leg] = LegState::Failed(reason);
            self.mirror.legs.set(leg, self.states[leg]);
            self.record_wanted = true;
        }
    }

    /// Takes a leg out because the administrator says so, unless none in sync would be left.
    pub(super) fn fail_by_hand(&mut self, leg: Leg) {
        if self.states[leg].is_in_use() && !self.surely_in_sync().minus(LegSet::one(leg)).is_empty() {
            self.states[leg] = LegState::Failed(FailReason::Admin);
            self.mirror.legs.set(leg, self.states[leg]);
            self.record_wanted = true;
        }
    }

    /// Fails the legs with errors if the operation worked on another leg in sync; `false` if it did not.
    pub(super) fn fail_legs(&mut self, ok: LegSet, errors: &LegErrors) -> bool {
        if ok.intersect(self.surely_in_sync()).is_empty() {
            return false;
        }
        for leg in self.mirror.all_legs().collect::<LegSet>().iter() {
            if let Some(errno) = errors[leg.index()] {
                self.fail(leg, errno);
            }
        }
        true
    }

    /// Metadata counts like data: whoever sees that a leg failed looks here for why.
    pub(super) fn count_failed_writes(&self, legs: LegSet) {
        for leg in legs.iter() {
            Counters::add(&self.mirror.legs.counters[leg].write_errors, 1);
        }
    }

    pub(super) fn set_stale(&mut self, leg: Leg, region: Region) {
        self.is_stale_in(leg, region);
        self.mirror.legs.set_stale(leg, region);
        for copy in self.copies.iter_mut().filter(|copy| copy.region == region) {
            copy.again.insert(leg);
        }
    }

    pub(super) fn missed(
        &mut self,
        region: Option<Region>,
        ok: LegSet,
        mut errors: LegErrors,
        durable: bool,
        from: Owner,
    ) {
        let in_sync = self.surely_in_sync();
        let source = in_sync.lowest();
        let result = if ok.intersect(in_sync).is_empty() {
            // No leg in sync has it: the request fails and no leg does. Whatever reached a leg, the
            // source's bytes are the volume's from here on.
            let errno = in_sync.iter().find_map(|leg| errors[leg.index()]).unwrap_or(Errno::EIO);
            let lost = is_lost(in_sync, &errors);
            if durable && lost && (region.is_none() || !errno.is_no_space()) {
                self.mirror.legs.break_flush();
            }
            if let Some(region) = region {
                self.mirror.undo_write();
                for leg in self.in_use().iter().filter(|&leg| Some(leg) != source) {
                    self.set_stale(leg, region);
                    if self.states[leg] == LegState::InSync {
                        self.states[leg] = LegState::Syncing;
                        self.mirror.legs.set(leg, LegState::Syncing);
                        self.record_wanted = true;
                    }
                }
            }
            Err(errno)
        } else {
            for leg in self.mirror.all_legs().collect::<LegSet>().iter() {
                // A leg that is syncing and has no room stays; it is stale here, that is all.
                if let (Some(region), LegState::Syncing, Some(errno)) =
                    (region, self.states[leg], errors[leg.index()])
                    && errno.is_no_space()
                {
                    self.set_stale(leg, region);
                    self.hold_off[leg.index()] = HOLD_OFF_TICKS;
                    errors[leg.index()] = None;
                }
            }
            self.fail_legs(ok, &errors);
            if durable && self.mirror.legs.flush_broken() { Err(Errno::EIO) } else { Ok(()) }
        };
        if self.everything_is_recorded() {
            self.tell(from.queue, QueueNote::Settled { io: from.io, result });
        } else {
            self.settle.push((from, result));
        }
    }

    pub(super) fn everything_is_recorded(&self) -> bool {
        !self.record_wanted && self.mirror.legs.states().all_recorded()
    }

    /// `clean`, `equal`: as the last record of a stop says.
    pub(super) fn start_record(&mut self, clean: bool, equal: bool, actions: &mut Vec<WorkerAction>) {
        self.is_beat = !self.record_wanted && self.stopping != Stopping::Recording;
        (self.record_wanted, self.beats.wanted) = (false, false);
        self.event_count += 1;
        let recent = self.tell_recent();
        self.lineage.record(self.event_count, self.in_use(), LegSet::first(MAX_LEGS));
        let record = Box::new(Record {
            // A leg that is split off takes it with it.
            legs: self.in_use().union(self.being_recorded_as_split()),
            size: self.size,
            states: self.states.clone(),
            replaces: self.replaces,
            event_count: self.event_count,
            clean,
            equal,
            log_failed: self.log_failed,
            lineage: self.lineage.clone(),
            held: self.held,
            recent,
        });
        self.doing = Doing::Record(record.clone());
        self.begin_metadata(RECORD_IO, record.legs);
        actions.push(WorkerAction::Record(record));
    }

    pub(super) fn recorded(&mut self, errors: LegErrors, actions: &mut Vec<WorkerAction>) {
        let Doing::Record(record) = std::mem::replace(&mut self.doing, Doing::Nothing) else {
            unreachable!("no record is under way")
        };
        let failed: LegSet = record.legs.iter().filter(|leg| errors[leg.index()].is_some()).collect();
        let ok = record.legs.minus(failed);
        self.count_failed_writes(failed);
        self.lineage.taken(ok);
        self.held.took(ok, record.event_count);
        // Without the record a leg that is split off is one that was in sync, and behind.
        let failed = failed.minus(
            record.states.iter().filter(|&(_, &s)| s == LegState::Tracked).map(|(leg, _)| leg).collect(),
        );
        // A leg that took the record that it is in sync is, whatever became of the others.
        let promoted = ok.intersect(self.in_sync()).minus(self.surely_in_sync());
        for leg in promoted.iter().filter(|&leg| record.states[leg] == LegState::InSync) {
            self.mirror.legs.set(leg, LegState::InSync);
            // A scrub may wait for it.
            self.wake.push(self.mirror.background());
        }
        if !failed.is_empty() {
            // A record counts once every leg that is in use under it has it: the next one may.
            if !self.fail_legs(ok, &errors) {
                self.record_failed(actions);
            }
            return;
        }
        for (leg, &state) in record.states.iter() {
            self.mirror.legs.set_recorded(leg, state);
        }
        self.beats.complete = record.event_count;
        self.recent_is_told(record.recent);
        if self.record_wanted {
            return;
        }
        self.all_is_recorded();
        if self.stopping == Stopping::Recording {
            self.stopping = Stopping::Done;
            actions.push(WorkerAction::Stopped);
        }
    }

    /// Whoever waited for that goes on.
    fn all_is_recorded(&mut self) {
        for (region, from) in std::mem::take(&mut self.marks_committed) {
            self.marked_in_log(region, from);
        }
        for (from, result) in std::mem::take(&mut self.settle) {
            self.tell(from.queue, QueueNote::Settled { io: from.io, result });
        }
    }

    /// No leg in sync took the record: what waits for it fails, and it is tried again later.
    pub(super) fn record_failed(&mut self, actions: &mut Vec<WorkerAction>) {
        self.record_held_off = true;
        self.clear_nothing();
        self.end_split_without_metadata();
        if self.is_beat && self.everything_is_recorded() {
            // The last record but this one says all that there is to say.
            self.beats.wanted = true;
            self.all_is_recorded();
            // Those that it was to tell of.
            let untold = std::mem::take(&mut self.marks_committed);
            return self.marks_failed(untold, Errno::EIO, actions);
        }
        self.record_wanted = true;
        let marks = std::mem::take(&mut self.marks_committed);
        self.marks_failed(marks, Errno::EIO, actions);
        for (from, result) in std::mem::take(&mut self.settle) {
            let result = result.and(Err(Errno::EIO));
            self.tell(from.queue, QueueNote::Settled { io: from.io, result });
        }
        if self.stopping == Stopping::Recording {
            self.stopping = Stopping::Done;
            actions.push(WorkerAction::Stopped);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::geometry::Geometry;
    use crate::lineage::Lineage;
    use crate::mirror::Mirror;
    use crate::types::LegMap;
    use crate::worker::WorkerEvent;

    #[test]
    fn metadata_that_a_leg_does_not_take_is_a_write_error() {
        let states = LegMap::from(vec![LegState::InSync; 2]);
        let geometry = Geometry::new(16 * 8192, 8192).unwrap();
        let mirror = Arc::new(Mirror::new(geometry, &states, [], 1));
        let lineage = Lineage::new(1, states.len());
        let mut worker = LogWorker::new(Arc::clone(&mirror), states, 1, lineage, true);
        let mut actions = Vec::new();
        worker.handle(WorkerEvent::Start, &mut actions);
        assert!(actions.iter().any(|action| matches!(action, WorkerAction::Record { .. })), "{actions:?}");
        let mut errors = [None; MAX_LEGS];
        errors[0] = Some(Errno::EIO);
        worker.handle(WorkerEvent::Recorded { errors }, &mut actions);
        assert_eq!(mirror.legs.states().of(Leg::new(0)), LegState::Failed(FailReason::Io));
        let counted =
            [0, 1].map(|leg| mirror.legs.counters[Leg::new(leg)].write_errors.load(Ordering::Relaxed));
        assert_eq!(counted, [1, 0]);
    }
}
