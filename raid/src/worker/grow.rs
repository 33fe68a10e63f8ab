//! A volume that grows while it is served. The driver has made room on every leg before, metadata and all, and what
//! lies behind the old size is zero there, so the legs are equal in it and its regions are clean.
//!
//! The order is what makes it safe to crash in: first the longer log is on every leg in use, then every record says
//! the new size, then the tables say it and writes come. So a size that a record has is one that the log of every
//! leg in use under it covers; and in what is new nothing was written before all of them had the record.
//!
//! A record with the new size that was sent is not taken back: it may be on a leg. Before, it comes to nothing if the
//! volume is stopped, or if a log that is not on the legs does not answer: a log in its place that is longer than the
//! volume's says the same of all regions that there are.

use super::{Doing, LogWorker, Stopping, WorkerAction};

/// Ticks for which a log that is not on the legs may take to become longer. No write waits for it, but legs that come
/// do, and whoever asked.
const MOST_TICKS: u32 = 30;

/// A volume on its way to a new size.
#[derive(Clone, Copy, Debug)]
pub(super) struct Growing {
    /// In bytes.
    size: u64,
    step: Step,
    ticks: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// The log is to be made longer.
    Log,
    /// All of it is to be committed.
    Commit,
    /// The superblocks are to say so.
    Record,
}

impl LogWorker {
    pub(super) fn grow(&mut self, size: u64) {
        let regions = self.mirror.geometry().with_size(size).regions();
        let may = size > self.size
            && regions <= self.mirror.regions.room()
            && self.every_leg_is_in_sync()
            && self.everything_is_recorded()
            && self.splitting.is_none()
            && self.growing.is_none()
            && self.returning.is_empty()
            && self.stopping == Stopping::No
            && !self.mirror.legs.flush_broken();
        if may {
            self.growing = Some(Growing { size, step: Step::Log, ticks: MOST_TICKS });
            self.mirror.set_growing_to(Some(size));
        }
    }

    fn every_leg_is_in_sync(&self) -> bool {
        self.surely_in_sync() == self.mirror.legs.states().all()
    }

    /// Takes the next step if the one before is done.
    pub(super) fn go_on_growing(&mut self, actions: &mut Vec<WorkerAction>) {
        let Some(Growing { size, step, ticks }) = self.growing else { return };
        let is_idle = matches!(self.doing, Doing::Nothing) && !self.record_wanted;
        let is_committed = self.committing.is_none();
        let is_late = ticks == 0 && !self.log_on_legs;
        match step {
            Step::Log | Step::Commit if self.stopping != Stopping::No || is_late => {
                if step == Step::Commit {
                    actions.push(WorkerAction::SizeLog(self.mirror.regions.len()));
                    self.clears = true;
                }
                self.end_growth();
            }
            // Before the log is longer nothing has happened. A leg that fails later has the room and the zeroes.
            Step::Log if !self.every_leg_is_in_sync() => self.end_growth(),
            Step::Log if is_idle && is_committed => {
                let regions = self.mirror.geometry().with_size(size).regions();
                actions.push(WorkerAction::SizeLog(regions));
                (self.clears, self.clears_due) = (true, true);
                self.growing = Some(Growing { size, step: Step::Commit, ticks });
            }
            // What no leg in sync took is tried again at the next tick.
            Step::Commit if is_idle && is_committed && !self.clears => {
                self.size = size;
                self.record_wanted = true;
                self.growing = Some(Growing { size, step: Step::Record, ticks });
            }
            Step::Record if is_idle && self.everything_is_recorded() => {
                self.mirror.grow(size);
                self.grow_recents(self.mirror.regions.len());
                self.end_growth();
            }
            Step::Log | Step::Commit | Step::Record => {}
        }
    }

    pub(super) fn tick_growth(&mut self) {
        if let Some(growing) = &mut self.growing {
            growing.ticks = growing.ticks.saturating_sub(1);
        }
    }

    fn end_growth(&mut self) {
        self.growing = None;
        self.mirror.set_growing_to(None);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::geometry::Geometry;
    use crate::lineage::Lineage;
    use crate::mirror::Mirror;
    use crate::types::{Errno, Leg, LegMap, LegState, MAX_LEGS};
    use crate::worker::WorkerEvent;

    const NONE: [Option<Errno>; MAX_LEGS] = [None; MAX_LEGS];

    /// Two legs in sync and recorded so, and what they are asked for.
    fn served(second: LegState) -> (Arc<Mirror>, LogWorker) {
        let states = LegMap::from(vec![LegState::InSync, second]);
        let geometry = Geometry::new(16 * 8192, 8192).unwrap();
        let mirror = Arc::new(Mirror::new(geometry, &states, [], 1));
        let lineage = Lineage::new(1, states.len());
        (Arc::clone(&mirror), LogWorker::new(mirror, states, 1, lineage, true))
    }

    fn step(worker: &mut LogWorker, event: WorkerEvent) -> Vec<WorkerAction> {
        let mut actions = Vec::new();
        worker.handle(event, &mut actions);
        actions
    }

    #[test]
    fn the_log_is_committed_then_the_size_recorded_then_it_counts() {
        let (mirror, mut worker) = served(LegState::InSync);
        let size = 40 * 8192 + 512;
        let actions = step(&mut worker, WorkerEvent::Grow { size });
        assert!(
            matches!(actions[..], [WorkerAction::SizeLog(41), WorkerAction::Commit { .. }]),
            "{actions:?}"
        );
        // No leg takes it: it is tried again.
        let mut errors = NONE;
        (errors[0], errors[1]) = (Some(Errno::EIO), Some(Errno::EIO));
        assert_eq!(step(&mut worker, WorkerEvent::Committed { errors, log_error: None }), []);
        let actions = step(&mut worker, WorkerEvent::Tick);
        assert!(matches!(actions[..], [WorkerAction::Commit { .. }]), "{actions:?}");
        let actions = step(&mut worker, WorkerEvent::Committed { errors: NONE, log_error: None });
        let [WorkerAction::Record(record)] = &actions[..] else { panic!("{actions:?}") };
        assert_eq!((record.size, mirror.geometry().size()), (size, 16 * 8192));
        // One leg does not take the record: the next one has to be taken by the other.
        errors[0] = None;
        let actions = step(&mut worker, WorkerEvent::Recorded { errors });
        let [WorkerAction::Record(record)] = &actions[..] else { panic!("{actions:?}") };
        assert_eq!(
            (record.size, mirror.geometry().size(), mirror.growing_to()),
            (size, 16 * 8192, Some(size))
        );
        assert_eq!(step(&mut worker, WorkerEvent::Recorded { errors: NONE }), []);
        assert_eq!((mirror.geometry().size(), mirror.regions.len(), mirror.growing_to()), (size, 41, None));
    }

    #[test]
    fn a_stop_before_the_record_leaves_the_size_as_it_was() {
        let (mirror, mut worker) = served(LegState::InSync);
        let _ = step(&mut worker, WorkerEvent::Grow { size: 17 * 8192 });
        assert_eq!(step(&mut worker, WorkerEvent::Stop), [WorkerAction::SizeLog(16)]);
        assert_eq!((mirror.growing_to(), mirror.geometry().size()), (None, 16 * 8192));
    }

    #[test]
    fn what_may_not_grow_does_not() {
        let (mirror, mut worker) = served(LegState::Syncing);
        mirror.legs.set_stale(Leg::new(1), crate::Region(3));
        let _ = step(&mut worker, WorkerEvent::Grow { size: 17 * 8192 });
        assert_eq!(mirror.growing_to(), None, "a leg is not in sync");
        let (mirror, mut worker) = served(LegState::InSync);
        let room = u64::from(mirror.regions.room());
        for size in [16 * 8192, 15 * 8192, (room + 1) * 8192] {
            assert_eq!(step(&mut worker, WorkerEvent::Grow { size }), [], "{size}");
            assert_eq!(mirror.growing_to(), None, "{size}");
        }
    }
}
