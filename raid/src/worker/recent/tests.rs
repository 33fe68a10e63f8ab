//! What a leg that is out costs those who write, and how it comes to an end.

use std::collections::VecDeque;
use std::sync::Arc;

use super::*;
use crate::geometry::Geometry;
use crate::lineage::Lineage;
use crate::mirror::{QueueNote, WorkerNote};
use crate::types::{Errno, FailReason, LegMap, LegState, QueueId};
use crate::worker::{CLEAR_TICKS, WorkerAction, WorkerEvent};

const REGION: u64 = 8192;
const OUT: LegState = LegState::Failed(FailReason::Admin);
const IN_SYNC: LegState = LegState::InSync;

/// What a driver has: all that the worker asks for is done at once and well, unless no leg takes a record.
struct Driver {
    mirror: Arc<Mirror>,
    worker: LogWorker,
    records: Vec<Option<Recent>>,
    commits: usize,
    takes_records: bool,
}

impl Driver {
    fn new(states: &[LegState]) -> Driver {
        let states = LegMap::from(states.to_vec());
        let mirror = Arc::new(Mirror::new(Geometry::new(64 * REGION, REGION).unwrap(), &states, [], 1));
        let lineage = Lineage::new(1, states.len());
        let worker = LogWorker::new(Arc::clone(&mirror), states, 1, lineage, true);
        let mut driver = Driver { mirror, worker, records: Vec::new(), commits: 0, takes_records: true };
        driver.does(WorkerEvent::Start);
        driver
    }

    fn does(&mut self, event: WorkerEvent) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let mut actions = Vec::new();
            self.worker.handle(event, &mut actions);
            for action in actions {
                match action {
                    WorkerAction::Commit { .. } => {
                        self.commits += 1;
                        let errors = [None; MAX_LEGS];
                        events.push_back(WorkerEvent::Committed { errors, log_error: None });
                    }
                    WorkerAction::Record(record) => {
                        let errno = (!self.takes_records).then_some(Errno::EIO);
                        let errors =
                            std::array::from_fn(|leg| errno.filter(|_| record.legs.contains(Leg::new(leg))));
                        self.records.push(record.recent);
                        events.push_back(WorkerEvent::Recorded { errors });
                    }
                    WorkerAction::FillLog { .. } => {
                        events.push_back(WorkerEvent::LogFilled { result: Ok(()) });
                    }
                    WorkerAction::Again => events.push_back(WorkerEvent::Woken),
                    _ => {}
                }
            }
            let mut notes = Vec::new();
            self.mirror.take_queue_notes(self.mirror.background(), &mut notes);
            for note in notes {
                if let QueueNote::Flush { legs } = note {
                    self.mirror.tell_worker(WorkerNote::Flushed { legs, errors: [None; MAX_LEGS] });
                    events.push_back(WorkerEvent::Woken);
                }
            }
        }
    }

    /// Writes that begin at once, one in each of these regions, and end: how many did, and how many records and commits
    /// that took.
    fn write(&mut self, regions: impl IntoIterator<Item = u32>) -> (usize, usize, usize) {
        let (records, commits) = (self.records.len(), self.commits);
        let regions: Vec<Region> = regions.into_iter().map(Region).collect();
        let mut begun = 0;
        for &region in &regions {
            if self.mirror.regions.begin_write(region) == crate::region::Begin::Mark {
                let from = Owner { queue: QueueId(0), io: region.0 };
                self.mirror.tell_worker(WorkerNote::Mark { region, from });
            } else {
                begun += 1;
            }
        }
        self.does(WorkerEvent::Woken);
        let mut notes = Vec::new();
        self.mirror.take_queue_notes(QueueId(0), &mut notes);
        begun += notes.iter().filter(|note| matches!(note, QueueNote::Marked { result: Ok(()), .. })).count();
        regions.iter().for_each(|&region| self.mirror.regions.end_write(region));
        (begun, self.records.len() - records, self.commits - commits)
    }

    /// Nobody writes for a while.
    fn rest(&mut self) {
        (0..6 * CLEAR_TICKS).for_each(|_| self.does(WorkerEvent::Tick));
    }

    /// Groups in the newest record.
    fn told(&self) -> Option<u32> {
        self.records.last().unwrap().as_ref().map(Recent::count)
    }
}

#[test]
fn writes_at_once_share_a_record_and_later_ones_in_the_same_regions_need_none() {
    let mut driver = Driver::new(&[IN_SYNC, IN_SYNC, OUT]);
    assert_eq!(driver.told(), Some(0));
    assert_eq!(driver.write(0..40), (40, 1, 1), "regions that are clean");
    assert_eq!(driver.told(), Some(40));
    for _ in 0..100 {
        assert_eq!(driver.write(0..40), (40, 0, 0));
    }
    driver.rest();
    assert_eq!(
        (driver.told(), driver.mirror.regions.unclean()),
        (Some(0), 40),
        "they stay dirty for the leg"
    );
    assert_eq!(driver.write(10..20), (10, 1, 0), "regions that were written to before");
    assert_eq!(driver.told(), Some(10));
    let idle = driver.records.len();
    driver.rest();
    let rested = driver.records.len();
    assert_eq!(driver.told(), Some(0));
    driver.rest();
    assert_eq!(driver.records.len(), rested, "an idle volume has no records");
    assert!(rested - idle <= 6, "{} records until nothing is recent", rested - idle);
}

#[test]
fn nothing_is_told_and_no_write_waits_unless_it_is_of_use() {
    for states in [vec![IN_SYNC, IN_SYNC], vec![IN_SYNC, OUT], vec![IN_SYNC, OUT, OUT]] {
        let mut driver = Driver::new(&states);
        assert_eq!(driver.write(0..40), (40, 0, 1), "{states:?}");
        driver.rest();
        assert_eq!(driver.write(0..40).1, 0, "{states:?}");
        assert!(driver.records.iter().all(Option::is_none), "{states:?}");
    }
}

#[test]
fn a_write_that_no_record_tells_of_fails_and_another_one_waits_anew() {
    let mut driver = Driver::new(&[IN_SYNC, IN_SYNC, OUT]);
    assert_eq!(driver.write([3]).0, 1);
    driver.rest();
    driver.takes_records = false;
    assert_eq!(driver.write([3]), (0, 1, 0));
    assert_eq!(driver.mirror.regions.state(Region(3)), RegionState::Kept);
    driver.takes_records = true;
    driver.does(WorkerEvent::Tick);
    assert_eq!(driver.write([3]).0, 1);
    assert_eq!(driver.told(), Some(1));
}

#[test]
fn a_leg_that_is_copied_to_is_told_of_once_it_has_a_record_from_after_the_copy() {
    let mut driver = Driver::new(&[IN_SYNC, IN_SYNC, OUT, OUT]);
    let came = Leg::new(2);
    driver.does(WorkerEvent::Return { leg: came, full: true, replaces: None });
    assert_eq!(driver.mirror.legs.stale_count(came), 64);
    assert_eq!(
        (driver.told(), driver.mirror.regions.unclean()),
        (Some(0), 64),
        "all is marked, nothing recent"
    );
    assert_eq!(driver.write([3]), (1, 1, 0));
    driver.mirror.legs.set_all_stale(came, false);
    driver.worker.copies.clear();
    let before = driver.records.len();
    driver.does(WorkerEvent::Woken);
    assert!(driver.mirror.legs.states().in_sync().contains(came));
    driver.rest();
    let legs = |record: &Option<Recent>| record.as_ref().unwrap().legs;
    assert_eq!(legs(&driver.records[before]), LegSet::first(2), "the one that has it in sync");
    assert_eq!(legs(&driver.records[before + 1]), LegSet::first(3));
}
