//! Commits of a log that is not on the legs, which may take long, and of one that is.

use std::sync::Arc;

use super::*;
use crate::geometry::Geometry;
use crate::lineage::Lineage;
use crate::mirror::QueueNote;
use crate::mirror::{Mirror, WorkerNote};
use crate::types::{FailReason, Leg, LegMap, MAX_LEGS, QueueId};
use crate::worker::{Record, WorkerEvent};

const NONE: LegErrors = [None; MAX_LEGS];
const REGION: u64 = 8192;
const TICKS: u32 = 40;

/// Two legs in sync that are recorded so, one queue, and 16 regions that are clean.
fn served(log_on_legs: bool) -> (Arc<Mirror>, LogWorker) {
    let states = LegMap::from(vec![LegState::InSync; 2]);
    let mirror = Arc::new(Mirror::new(Geometry::new(16 * REGION, REGION).unwrap(), &states, [], 1));
    let lineage = Lineage::new(1, states.len());
    (Arc::clone(&mirror), LogWorker::new(mirror, states, 1, lineage, log_on_legs))
}

fn step(worker: &mut LogWorker, event: WorkerEvent) -> Vec<WorkerAction> {
    let mut actions = Vec::new();
    worker.handle(event, &mut actions);
    actions.retain(|action| !matches!(action, WorkerAction::Wake(_)));
    actions
}

/// A write begins in a region, or another one: the mark is asked for.
fn ask(worker: &mut LogWorker, region: u32, io: u32) -> Vec<WorkerAction> {
    let region = Region(region);
    let _ = worker.mirror.regions.begin_write(region);
    let from = Owner { queue: QueueId(0), io };
    worker.mirror.tell_worker(WorkerNote::Mark { region, from });
    step(worker, WorkerEvent::Woken)
}

/// What queue 0 was told of its marks since it last looked.
fn told(mirror: &Mirror) -> Vec<(u32, bool)> {
    let mut notes = Vec::new();
    mirror.take_queue_notes(QueueId(0), &mut notes);
    let marked = |note| match note {
        QueueNote::Marked { io, result } => Some((io, result.is_ok())),
        _ => None,
    };
    notes.into_iter().filter_map(marked).collect()
}

fn committed(worker: &mut LogWorker, log_error: Option<Errno>) -> Vec<WorkerAction> {
    step(worker, WorkerEvent::Committed { errors: NONE, log_error })
}

fn recorded(worker: &mut LogWorker) -> Vec<WorkerAction> {
    step(worker, WorkerEvent::Recorded { errors: NONE })
}

/// What was cleared is proven: no image of a leg from before it was written to is taken for the leg.
fn prove(worker: &mut LogWorker) {
    for _ in 0..2 {
        let _ = recorded(worker);
    }
}

fn fail_leg_1(worker: &mut LogWorker) -> Vec<WorkerAction> {
    step(worker, WorkerEvent::Fail { leg: Leg::new(1) })
}

/// The one record among these actions.
fn record(actions: &[WorkerAction]) -> &Record {
    let records = actions.iter().filter_map(|action| match action {
        WorkerAction::Record(record) => Some(&**record),
        _ => None,
    });
    let records: Vec<&Record> = records.collect();
    let [record] = records[..] else { panic!("not one record: {actions:?}") };
    record
}

fn commits(actions: &[WorkerAction]) -> usize {
    actions.iter().filter(|action| matches!(action, WorkerAction::Commit { .. })).count()
}

fn marks(actions: &[WorkerAction]) -> Vec<u32> {
    let mark = |action: &WorkerAction| match action {
        WorkerAction::LogMark(regions) => Some(regions.iter().map(|region| region.0)),
        _ => None,
    };
    actions.iter().filter_map(mark).flatten().collect()
}

#[test]
fn a_commit_that_hangs_holds_up_a_record_only_if_the_log_is_on_the_legs() {
    for log_on_legs in [true, false] {
        let (mirror, mut worker) = served(log_on_legs);
        assert_eq!(commits(&ask(&mut worker, 3, 0)), 1);
        let actions = fail_leg_1(&mut worker);
        if log_on_legs {
            assert_eq!(actions, []);
            continue;
        }
        assert_eq!(record(&actions).states[Leg::new(1)], LegState::Failed(FailReason::Admin));
        assert!(!worker.is_settled());
        assert_eq!(recorded(&mut worker), []);
        assert_eq!(told(&mirror), [], "its commit is under way");
        assert_eq!(ask(&mut worker, 4, 1), [], "one commit at a time");
        assert_eq!(marks(&committed(&mut worker, None)), [4]);
        assert_eq!(told(&mirror), [(0, true)]);
    }
}

#[test]
fn a_commit_begins_beside_a_record_only_if_the_log_is_not_on_the_legs() {
    for log_on_legs in [true, false] {
        let (mirror, mut worker) = served(log_on_legs);
        let _ = record(&fail_leg_1(&mut worker));
        assert_eq!(commits(&ask(&mut worker, 3, 0)), usize::from(!log_on_legs));
        if !log_on_legs {
            assert_eq!(committed(&mut worker, None), []);
            assert_eq!(told(&mirror), [], "a record is under way");
            assert_eq!(recorded(&mut worker), []);
            assert_eq!(told(&mirror), [(0, true)]);
        }
    }
}

#[test]
fn a_mark_that_failed_beside_a_record_waits_for_one_that_says_so() {
    let (mirror, mut worker) = served(false);
    let _ = ask(&mut worker, 3, 0);
    assert!(!record(&fail_leg_1(&mut worker)).log_failed);
    assert_eq!(committed(&mut worker, Some(Errno::EIO)), []);
    let actions = recorded(&mut worker);
    assert!(record(&actions).log_failed);
    assert_eq!(told(&mirror), []);
    // The next one fails, too, while that is being recorded.
    assert_eq!(marks(&ask(&mut worker, 4, 1)), [4]);
    assert_eq!(committed(&mut worker, Some(Errno::EIO)), []);
    assert_eq!(told(&mirror), []);
    assert_eq!(recorded(&mut worker), []);
    assert_eq!(told(&mirror), [(0, true), (1, true)]);
    // From then on a mark waits for nothing but its commit.
    assert_eq!(marks(&ask(&mut worker, 5, 2)), [5]);
    assert_eq!(committed(&mut worker, Some(Errno::EIO)), []);
    assert_eq!(told(&mirror), [(2, true)]);
}

#[test]
fn a_mark_that_fails_leaves_one_that_is_under_way() {
    let (mirror, mut worker) = served(false);
    let _ = ask(&mut worker, 3, 0);
    let _ = committed(&mut worker, Some(Errno::EIO));
    assert_eq!(marks(&ask(&mut worker, 3, 1)), [3], "beside the record that the first waits for");
    let mut errors = NONE;
    (errors[0], errors[1]) = (Some(Errno::EIO), Some(Errno::EIO));
    let actions = step(&mut worker, WorkerEvent::Recorded { errors });
    assert_eq!(actions, [], "the region stays marked");
    assert_eq!(told(&mirror), [(0, false)]);
    let _ = committed(&mut worker, None);
    assert!(record(&step(&mut worker, WorkerEvent::Tick)).log_failed);
    let _ = recorded(&mut worker);
    assert_eq!(told(&mirror), [(1, true)]);
    assert_eq!(mirror.regions.state(Region(3)), RegionState::Dirty);
}

#[test]
fn a_log_that_is_back_is_recorded_so_until_a_commit_fails_again() {
    let (mirror, mut worker) = served(false);
    assert_eq!(step(&mut worker, WorkerEvent::LogBack), [], "it was not lost");
    let _ = ask(&mut worker, 3, 0);
    assert!(record(&committed(&mut worker, Some(Errno::EIO))).log_failed);
    assert_eq!(recorded(&mut worker), []);
    assert_eq!(told(&mirror), [(0, true)]);
    let _ = ask(&mut worker, 4, 1);
    assert!(!record(&step(&mut worker, WorkerEvent::LogBack)).log_failed);
    assert!(!worker.log_failed());
    // What was under way when it came back fails after all.
    assert_eq!(committed(&mut worker, Some(Errno::EIO)), []);
    assert!(record(&recorded(&mut worker)).log_failed);
    assert_eq!(told(&mirror), []);
    assert_eq!(recorded(&mut worker), []);
    assert_eq!(told(&mirror), [(1, true)]);
    assert!(worker.log_failed());
}

#[test]
fn a_start_without_the_log_says_so() {
    let (_, worker) = served(false);
    let mut worker = worker.with_log_failed(true);
    assert!(record(&step(&mut worker, WorkerEvent::Start)).log_failed);
    assert_eq!(recorded(&mut worker), []);
    assert!(!record(&step(&mut worker, WorkerEvent::LogBack)).log_failed);
}

#[test]
fn a_stop_waits_for_the_commit_under_way() {
    let (mirror, mut worker) = served(false);
    let _ = ask(&mut worker, 3, 0);
    mirror.regions.end_write(Region(3));
    assert_eq!(step(&mut worker, WorkerEvent::Stop), []);
    let actions = committed(&mut worker, Some(Errno::EIO));
    assert!(record(&actions).log_failed && !record(&actions).clean);
    let plain = recorded(&mut worker);
    assert!(!record(&plain).clean && !record(&plain).equal);
    prove(&mut worker);
    let flushed = |worker: &mut LogWorker| {
        mirror.tell_worker(WorkerNote::Flushed { legs: LegSet::first(2), errors: NONE });
        step(worker, WorkerEvent::Woken)
    };
    assert_eq!(commits(&flushed(&mut worker)), 1, "of what was cleared");
    let last = committed(&mut worker, Some(Errno::EIO));
    let (last, event_count) = (record(&last), worker.event_count());
    assert!(last.log_failed && last.clean && last.equal);
    assert_eq!(last.held.recorded()[..2], [event_count - 1; 2]);
    assert_eq!(recorded(&mut worker), [WorkerAction::Stopped]);
}

/// A split that waits for the commit of what it cleared.
fn splitting(log_on_legs: bool) -> (Arc<Mirror>, LogWorker) {
    let (mirror, mut worker) = served(log_on_legs);
    let _ = ask(&mut worker, 3, 0);
    let _ = committed(&mut worker, None);
    mirror.regions.end_write(Region(3));
    let _ = step(&mut worker, WorkerEvent::Split { leg: Leg::new(1) });
    prove(&mut worker);
    mirror.tell_worker(WorkerNote::Flushed { legs: LegSet::first(2), errors: NONE });
    assert_eq!(commits(&step(&mut worker, WorkerEvent::Woken)), 1, "of what was cleared");
    (mirror, worker)
}

#[test]
fn a_split_gives_up_on_a_commit_that_does_not_end() {
    let (mirror, mut worker) = splitting(false);
    let ticks = (0..TICKS).take_while(|_| {
        let is_frozen = mirror.is_frozen();
        assert_eq!(step(&mut worker, WorkerEvent::Tick), []);
        is_frozen
    });
    assert_eq!(ticks.count(), 5);
    assert_eq!(mirror.regions.state(Region(3)), RegionState::Clean);
    assert_eq!(committed(&mut worker, None), []);
    assert_eq!(mirror.legs.states().of(Leg::new(1)), LegState::InSync);
}

#[test]
fn a_growth_gives_up_on_a_commit_that_does_not_end() {
    let (mirror, mut worker) = served(false);
    let actions = step(&mut worker, WorkerEvent::Grow { size: 20 * REGION });
    assert!(matches!(actions[..], [WorkerAction::SizeLog(20), WorkerAction::Commit { .. }]), "{actions:?}");
    let actions: Vec<_> = (0..TICKS).flat_map(|_| step(&mut worker, WorkerEvent::Tick)).collect();
    assert_eq!(actions, [WorkerAction::SizeLog(16)]);
    assert_eq!(mirror.growing_to(), None);
    assert_eq!(commits(&committed(&mut worker, None)), 1, "of the log as long as it was");
}

#[test]
fn who_writes_one_region_after_the_other_finds_them_marked() {
    let (mirror, worker) = served(false);
    let mut worker = worker.with_mark_ahead(4);
    assert_eq!(marks(&ask(&mut worker, 0, 0)), [0]);
    let _ = committed(&mut worker, None);
    assert_eq!(marks(&ask(&mut worker, 1, 1)), [1, 2]);
    let _ = committed(&mut worker, None);
    assert_eq!(mirror.regions.state(Region(2)), RegionState::Dirty);
    assert_eq!(marks(&ask(&mut worker, 3, 2)), [3, 4, 5]);
    let _ = committed(&mut worker, None);
    assert_eq!(told(&mirror), [(0, true), (1, true), (2, true)]);
    // Nothing more once the volume stops.
    let _ = step(&mut worker, WorkerEvent::Stop);
    assert_eq!(marks(&ask(&mut worker, 6, 3)), [6]);
}

#[test]
fn what_is_marked_ahead_in_vain_is_cleared_as_what_was_written_to() {
    let (mirror, worker) = served(false);
    let mut worker = worker.with_mark_ahead(1);
    for region in [0, 1] {
        let _ = ask(&mut worker, region, region);
        let _ = committed(&mut worker, None);
        mirror.regions.end_write(Region(region));
    }
    assert_eq!(mirror.regions.unclean(), 3);
    assert!(worker.clearable(false).is_empty(), "touched a moment ago");
    assert_eq!(worker.clearable(false), [0, 1, 2].map(Region));
}

/// No leg takes metadata any more, whatever is asked of it: a stop ends all the same, and does not say that all is clean.
#[test]
fn a_stop_ends_when_no_leg_takes_metadata() {
    for log_on_legs in [true, false] {
        let (mirror, mut worker) = served(log_on_legs);
        let _ = ask(&mut worker, 3, 0);
        let _ = committed(&mut worker, None);
        mirror.regions.end_write(Region(3));
        let mut errors = NONE;
        (errors[0], errors[1]) = (Some(Errno::EIO), Some(Errno::EIO));
        let mut events = vec![WorkerEvent::Stop];
        let (mut turns, mut records) = (0, Vec::new());
        while let Some(event) = events.pop() {
            turns += 1;
            assert!(turns < 20, "it goes on and on");
            for action in step(&mut worker, event) {
                match action {
                    WorkerAction::Commit { .. } if log_on_legs => {
                        events.push(WorkerEvent::Committed { errors, log_error: None });
                    }
                    WorkerAction::Commit { .. } => {
                        events.push(WorkerEvent::Committed { errors: NONE, log_error: Some(Errno::EIO) });
                    }
                    WorkerAction::Record(record) => {
                        records.push(record.clean);
                        events.push(WorkerEvent::Recorded { errors });
                    }
                    _ => {}
                }
            }
            let mut notes = Vec::new();
            mirror.take_queue_notes(mirror.background(), &mut notes);
            if notes.iter().any(|note| matches!(note, QueueNote::Flush { .. })) {
                mirror.tell_worker(WorkerNote::Flushed { legs: LegSet::first(2), errors: NONE });
                events.push(WorkerEvent::Woken);
            }
        }
        assert_eq!(worker.stopping, Stopping::Done);
        // Nothing is cleared without records that prove that it may be.
        assert_eq!(records.last(), Some(&false));
    }
}

#[test]
fn a_split_gives_up_when_no_leg_takes_its_commit() {
    let (mirror, mut worker) = splitting(true);
    assert!(mirror.is_frozen());
    let mut errors = NONE;
    (errors[0], errors[1]) = (Some(Errno::EIO), Some(Errno::EIO));
    let _ = step(&mut worker, WorkerEvent::Committed { errors, log_error: None });
    assert!(!mirror.is_frozen(), "writes wait for a commit that may never be taken");
    assert_eq!(mirror.legs.states().of(Leg::new(1)), LegState::InSync);
}
