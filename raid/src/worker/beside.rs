//! A log that somebody else keeps: commits may take any time, so nothing else waits for them.

use super::{LogWorker, NOBODY, Stopping};
use crate::geometry::Region;
use crate::ranges::Owner;
use crate::region::RegionState;

impl LogWorker {
    /// The same, whose log somebody else keeps: a commit may take any time, and records do not wait for it.
    #[must_use]
    pub fn with_log_beside(mut self) -> LogWorker {
        self.log_beside = true;
        self
    }

    /// The same, whose log says nothing that can be trusted: the first record says so.
    #[must_use]
    pub fn with_failed_log(mut self) -> LogWorker {
        self.log_failed = true;
        self
    }

    /// The same, which marks so many regions more with each that lies behind a dirty one: who writes one after the other
    /// waits for fewer commits.
    #[must_use]
    pub fn with_mark_ahead(mut self, regions: u32) -> LogWorker {
        self.mark_ahead = regions;
        self
    }

    /// Adds regions that are likely to be asked for next. They are cleared like any other if they are not written to.
    pub(super) fn mark_ahead(&self, marks: &mut Vec<(Region, Owner)>) {
        if self.mark_ahead == 0 || self.stopping != Stopping::No {
            return;
        }
        let table = &self.mirror.regions;
        for at in 0..marks.len() {
            let region = marks[at].0;
            let before = region.0.checked_sub(1).map(Region);
            if before.is_none_or(|before| table.state(before) == RegionState::Clean) {
                continue;
            }
            let end = (region.0 + 1 + self.mark_ahead).min(table.len());
            for ahead in (region.0 + 1..end).map(Region) {
                if table.state(ahead) == RegionState::Clean && table.want_mark(ahead) {
                    marks.push((ahead, NOBODY));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::geometry::Geometry;
    use crate::lineage::Lineage;
    use crate::mirror::{Mirror, QueueNote, WorkerNote};
    use crate::types::{Errno, Leg, LegMap, LegSet, LegState, MAX_LEGS, QueueId};
    use crate::worker::{WorkerAction, WorkerEvent};

    const QUEUE: QueueId = QueueId(0);

    struct Beside {
        mirror: Arc<Mirror>,
        worker: LogWorker,
        actions: Vec<WorkerAction>,
    }

    impl Beside {
        fn new() -> Beside {
            let states = LegMap::from(vec![LegState::InSync; 2]);
            let geometry = Geometry::new(64 * 8192, 8192).unwrap();
            let mirror = Arc::new(Mirror::new(geometry, &states, [], 1));
            let lineage = Lineage::new(1, states.len());
            let worker = LogWorker::new(Arc::clone(&mirror), states, 1, lineage, false);
            let worker = worker.with_log_beside().with_mark_ahead(3);
            let mut beside = Beside { mirror, worker, actions: Vec::new() };
            beside.handle(WorkerEvent::Start);
            beside.recorded();
            beside.actions.clear();
            beside
        }

        fn handle(&mut self, event: WorkerEvent) {
            self.worker.handle(event, &mut self.actions);
        }

        fn recorded(&mut self) {
            self.handle(WorkerEvent::Recorded { errors: [None; MAX_LEGS] });
        }

        fn committed(&mut self, log_error: Option<Errno>) {
            self.handle(WorkerEvent::Committed { errors: [None; MAX_LEGS], log_error });
        }

        fn mark(&mut self, region: u32) {
            let region = Region(region);
            let _ = self.mirror.regions.begin_write(region);
            let from = Owner { queue: QUEUE, io: region.0 };
            self.mirror.tell_worker(WorkerNote::Mark { region, from });
            self.handle(WorkerEvent::Woken);
        }

        fn is_marked(&mut self) -> bool {
            let mut notes = Vec::new();
            self.mirror.take_queue_notes(QUEUE, &mut notes);
            notes.iter().any(|note| matches!(note, QueueNote::Marked { result: Ok(()), .. }))
        }

        fn did(&mut self, what: fn(&WorkerAction) -> bool) -> usize {
            self.actions.drain(..).filter(what).count()
        }
    }

    fn is_record(action: &WorkerAction) -> bool {
        matches!(action, WorkerAction::Record(_))
    }

    #[test]
    fn a_leg_that_fails_is_recorded_while_a_commit_takes_its_time() {
        let mut beside = Beside::new();
        beside.mark(3);
        assert_eq!(beside.did(|action| matches!(action, WorkerAction::Commit { .. })), 1);
        let mut errors = [None; MAX_LEGS];
        errors[1] = Some(Errno::EIO);
        let from = Owner { queue: QUEUE, io: 9 };
        let ok = LegSet::one(Leg::new(0));
        beside.mirror.tell_worker(WorkerNote::Missed { region: None, ok, errors, durable: true, from });
        beside.handle(WorkerEvent::Woken);
        assert_eq!(beside.did(is_record), 1);
        beside.committed(None);
        assert!(!beside.is_marked(), "what the mark is for may depend on the record");
        beside.recorded();
        assert!(beside.is_marked());
    }

    #[test]
    fn a_log_that_failed_is_recorded_so_and_then_that_it_is_back() {
        let mut beside = Beside::new();
        beside.mark(3);
        beside.committed(Some(Errno::EIO));
        assert!(beside.worker.log_failed() && !beside.is_marked());
        assert_eq!(beside.did(is_record), 1);
        beside.recorded();
        assert!(beside.is_marked());
        beside.handle(WorkerEvent::LogBack);
        let says_so =
            |action: &WorkerAction| matches!(action, WorkerAction::Record(record) if !record.log_failed);
        assert_eq!(beside.did(says_so), 1);
    }

    #[test]
    fn regions_behind_dirty_ones_are_marked_before_they_are_asked_for() {
        let mut beside = Beside::new();
        beside.mark(10);
        assert_eq!(beside.did(|action| matches!(action, WorkerAction::LogMark(_))), 1);
        beside.committed(None);
        beside.mark(11);
        let marked: Vec<_> =
            beside.actions.iter().filter(|a| matches!(a, WorkerAction::LogMark(_))).collect();
        let expected: Vec<_> = (11..15).map(|region| WorkerAction::LogMark(Region(region))).collect();
        assert_eq!(marked, expected.iter().collect::<Vec<_>>());
    }
}
