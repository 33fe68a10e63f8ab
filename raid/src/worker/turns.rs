//! How much a turn of the log worker does, in the largest volume that there can be: whoever writes waits for it.

use std::sync::Arc;

use super::*;
use crate::geometry::{Geometry, MAX_REGIONS};
use crate::mirror::LegErrors;
use crate::region::RegionState;

const NONE: LegErrors = [None; MAX_LEGS];
const REGION: u64 = 4096;
const NEW: Leg = Leg::new(2);

/// The largest volume, two legs in sync, and an index that is vacant.
fn served() -> (Arc<Mirror>, LogWorker) {
    let states = LegMap::from(vec![LegState::InSync, LegState::InSync, LegState::Vacant]);
    let geometry = Geometry::new(MAX_REGIONS * REGION, REGION).unwrap();
    let mirror = Arc::new(Mirror::new(geometry, &states, [], 1));
    let lineage = Lineage::new(1, states.len());
    (Arc::clone(&mirror), LogWorker::new(mirror, states, 1, lineage, true))
}

/// What a driver has: what the worker asked for is done at once and well.
struct Driver {
    worker: LogWorker,
    actions: Vec<WorkerAction>,
    marked: u32,
    cleared: u32,
}

impl Driver {
    fn new(worker: LogWorker) -> Driver {
        Driver { worker, actions: Vec::new(), marked: 0, cleared: 0 }
    }

    /// One turn, of which more follow; each does no more than a turn may.
    fn turn(&mut self, event: WorkerEvent) -> Vec<WorkerEvent> {
        self.worker.handle(event, &mut self.actions);
        let most = TURN_REGIONS + 64;
        assert!(self.worker.looked_at <= most, "{event:?}: {} regions in a turn", self.worker.looked_at);
        assert!(self.worker.marks.len() <= most as usize, "{event:?}");
        assert!(
            self.actions.capacity() <= 2 * most as usize,
            "{event:?}: {} actions",
            self.actions.capacity()
        );
        let mut events = Vec::new();
        for action in self.actions.drain(..) {
            match action {
                WorkerAction::LogMark(regions) => self.marked += regions.count,
                WorkerAction::LogClear(regions) => self.cleared += regions.count,
                WorkerAction::Commit { .. } => {
                    events.push(WorkerEvent::Committed { errors: NONE, log_error: None });
                }
                WorkerAction::Record(_) => events.push(WorkerEvent::Recorded { errors: NONE }),
                WorkerAction::FillLog { .. } => events.push(WorkerEvent::LogFilled { result: Ok(()) }),
                WorkerAction::Again => events.push(WorkerEvent::Woken),
                _ => {}
            }
        }
        let mut notes = Vec::new();
        let mirror = Arc::clone(&self.worker.mirror);
        mirror.take_queue_notes(mirror.background(), &mut notes);
        for note in notes {
            if let QueueNote::Flush { legs } = note {
                mirror.tell_worker(WorkerNote::Flushed { legs, errors: NONE });
                events.push(WorkerEvent::Woken);
            }
        }
        events
    }

    /// Until nothing more follows; how many turns that took.
    fn turns(&mut self, event: WorkerEvent) -> u32 {
        let mut events = std::collections::VecDeque::from([event]);
        let mut turns = 0;
        while let Some(event) = events.pop_front() {
            events.extend(self.turn(event));
            turns += 1;
            assert!(turns < 10_000, "it goes on and on");
        }
        turns
    }
}

#[test]
fn a_new_leg_is_taken_in_by_many_small_turns_and_users_marks_come_between() {
    let (mirror, mut worker) = served();
    worker.paused = true;
    let mut driver = Driver::new(worker);
    let mut events = driver.turn(WorkerEvent::Return { leg: NEW, full: true, replaces: None });
    // A write to the last region asks for its mark meanwhile.
    let last = Region(MAX_REGIONS as u32 - 1);
    let _ = mirror.regions.begin_write(last);
    mirror.tell_worker(WorkerNote::Mark { region: last, from: Owner { queue: QueueId(0), io: 0 } });
    let mut turns = 0;
    while mirror.regions.state(last) != RegionState::Dirty {
        let next = std::mem::take(&mut events).into_iter().chain([WorkerEvent::Woken]);
        for event in next.collect::<Vec<_>>() {
            events.extend(driver.turn(event));
            turns += 1;
        }
    }
    assert!(turns <= 8, "the mark waited for {turns} turns");
    mirror.regions.end_write(last);
    for event in events {
        driver.turns(event);
    }
    assert_eq!(driver.marked, MAX_REGIONS as u32);
    let states = mirror.legs.states();
    assert!(states.syncing().contains(NEW) && states.recorded(NEW));
    assert_eq!(mirror.legs.stale_count(NEW), MAX_REGIONS as u32);
}

#[test]
fn a_leg_that_returns_is_stale_where_the_log_is_dirty_and_copied_to_only_once_that_is_known() {
    let (mirror, mut worker) = served();
    worker.states[NEW] = LegState::Failed(FailReason::Io);
    mirror.legs.set(NEW, worker.states[NEW]);
    let dirty = [5, TURN_REGIONS, MAX_REGIONS as u32 - 1].map(Region);
    dirty.iter().for_each(|&region| mirror.regions.assume_dirty(region));
    let mut driver = Driver::new(worker);
    let turns = driver.turns(WorkerEvent::Return { leg: NEW, full: false, replaces: None });
    assert!(turns >= MAX_REGIONS as u32 / TURN_REGIONS);
    assert_eq!(mirror.legs.stale_count(NEW), dirty.len() as u32);
    let copied: Vec<Region> = driver.worker.copies.iter().map(|copy| copy.region).collect();
    assert!(!copied.is_empty() && copied.iter().all(|region| dirty.contains(region)), "{copied:?}");
}

#[test]
fn all_that_is_dirty_is_cleared_in_the_end_a_part_at_a_time() {
    let (mirror, worker) = served();
    (0..MAX_REGIONS as u32).for_each(|region| mirror.regions.assume_dirty(Region(region)));
    // It has not seen them yet.
    let worker = worker.with_bounded(mirror.legs.states().in_sync());
    let mut driver = Driver::new(worker);
    let mut ticks = 0;
    while mirror.regions.unclean() > 0 {
        driver.turns(WorkerEvent::Tick);
        ticks += 1;
        assert!(ticks < 1000, "{} regions are never cleared", mirror.regions.unclean());
    }
    assert_eq!(driver.cleared, MAX_REGIONS as u32);
}
