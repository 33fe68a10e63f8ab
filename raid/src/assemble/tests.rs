//! The rules of assembly, case by case.

use super::*;
use crate::lineage::Past;
use LegState::{InSync, Syncing};

const OUT: LegState = LegState::Failed(FailReason::Io);
const SPLIT: AssembleError = AssembleError::SplitBrain { one: 0, other: 1 };

fn uuid(n: usize) -> Uuid {
    [n as u8 + 1; 16]
}

fn record(index: usize, event_count: u64, states: &[LegState]) -> LegRecord {
    LegRecord {
        volume: uuid(99),
        leg: uuid(index),
        index: Leg::new(index),
        size: 1 << 20,
        region_size: 4096,
        event_count,
        legs: LegMap::from_fn(states.len(), |leg| (uuid(leg.index()), states[leg.index()])),
        clean: false,
        equal: false,
        log_failed: false,
        held: Held::default(),
        recent: None,
        log_generation: 0,
        other_file: false,
        replaces: Replaces::default(),
        lineage: in_session(1, &[], states.iter().map(|&state| (state == OUT, event_count))),
    }
}

/// Legs that are out, with the event at which they last were.
fn in_session(session: u64, past: &[(u64, u64)], out: impl Iterator<Item = (bool, u64)>) -> Lineage {
    let mut lineage = Lineage::new(session, MAX_LEGS);
    for (last, (is_out, event)) in lineage.last_out.iter_mut().zip(out) {
        *last = if is_out { event } else { 0 };
    }
    let past = past.iter().map(|&(session, event_count)| Past {
        session,
        event_count,
        held_by: LegSet::first(MAX_LEGS),
    });
    lineage.past = past.collect();
    lineage
}

/// A record of a later session than the first, which all others are of. `past`: the sessions that it
/// comes from, newest first, and how far each had come.
fn later(
    session: u64,
    past: &[(u64, u64)],
    index: usize,
    event_count: u64,
    states: &[LegState],
) -> LegRecord {
    let out = states.iter().map(|&state| (state == OUT, event_count));
    let lineage = in_session(session, past, out);
    LegRecord { lineage, ..record(index, event_count, states) }
}

/// The record, and this leg was last out at that event.
fn was_out(mut record: LegRecord, index: usize, event: u64) -> LegRecord {
    record.lineage.last_out[index] = event;
    record
}

/// The record as a mirrord wrote it that kept no lineage.
fn old(record: LegRecord) -> LegRecord {
    LegRecord { lineage: Lineage::default(), ..record }
}

fn internal() -> AssembleOptions {
    AssembleOptions { log_on_legs: true, ..AssembleOptions::default() }
}

fn leg(index: usize) -> Leg {
    Leg::new(index)
}

#[test]
fn equal_records_start_in_sync_and_dirty_ones_resync_from_the_lowest() {
    let found = [record(1, 7, &[InSync, InSync]), record(0, 7, &[InSync, InSync])];
    let a = assemble(&found, internal()).unwrap();
    assert_eq!((a.source, a.event_count, a.trusted), (leg(0), 7, LegSet::first(2)));
    assert_eq!(a.at[leg(0)], Some(1));
    assert_eq!(a.states(&[]), LegMap::from(vec![InSync, InSync]));
    assert_eq!(a.states(&[Region(0)]), LegMap::from(vec![InSync, Syncing]));
}

#[test]
fn the_newest_wins_against_the_many() {
    let old = [InSync, InSync, InSync];
    let found = [record(0, 5, &old), record(1, 5, &old), record(2, 6, &[OUT, OUT, InSync])];
    let a = assemble(&found, internal()).unwrap();
    assert_eq!(a.source, leg(2));
    assert_eq!(
        a.trusted,
        LegSet::first(3),
        "leg 2 may be an older image, with a log that lacks what the others have"
    );
    assert_eq!(a.states(&[Region(0)]), LegMap::from(vec![Syncing, Syncing, InSync]));
    assert_eq!(a.returned, LegSet::first(2));
}

#[test]
fn a_record_cut_short_counts_the_leg_it_did_not_reach() {
    let found = [record(0, 6, &[InSync, InSync, OUT]), record(1, 5, &[InSync, InSync, InSync])];
    let degraded = AssembleOptions { degraded: true, ..internal() };
    let a = assemble(&found, degraded).unwrap();
    assert_eq!(a.trusted, LegSet::first(2));
    assert_eq!(a.states(&[]), LegMap::from(vec![InSync, InSync, OUT]));
    // Nobody waited for that record: the leg that it has out may have gone on.
    assert_eq!(assemble(&found, internal()), Err(AssembleError::Missing { legs: LegSet::one(leg(2)) }));
    let there = [found[0].clone(), found[1].clone(), record(2, 5, &[InSync; 3])];
    assert_eq!(assemble(&there, internal()).unwrap().returned, LegSet::one(leg(2)));
}

/// Leg 1 was started alone, and so a record that it lacks was taken for one that never was complete. If leg 1 is an older
/// image, that record was complete, and the remaining legs do not tell what was written under it.
#[test]
fn what_a_leg_has_of_another_history_is_not_believed() {
    let both = [InSync, InSync];
    let alone = later(3, &[(1, 6)], 1, 9, &[OUT, InSync]);
    let a = assemble(&[record(0, 6, &both), alone.clone()], internal()).unwrap();
    assert_eq!((a.source, a.disbelieved, a.copy_whole), (leg(1), LegSet::EMPTY, LegSet::EMPTY));
    let apart = later(2, &[(1, 6)], 0, 7, &both);
    let a = assemble(&[apart.clone(), alone], internal()).unwrap();
    assert_eq!((a.source, a.returned), (leg(1), LegSet::one(leg(0))));
    assert_eq!((a.disbelieved, a.copy_whole, a.older), (a.returned, a.returned, LegSet::EMPTY));
    assert_eq!(a.trusted, LegSet::one(leg(1)));
    // The start that recorded leg 1 as in use had that leg, so leg 1 did not go on alone since.
    let found = [apart, later(3, &[(1, 6)], 1, 9, &[InSync, Syncing])];
    assert_eq!(assemble(&found, internal()).unwrap().disbelieved, LegSet::EMPTY);
}

/// The start's records list the session of each record that was found as past: nothing else would tell afterwards that the
/// leg is of another history.
#[test]
fn a_leg_of_another_history_that_stays_out_is_not_believed_later() {
    let out = LegState::Failed(FailReason::Admin);
    let apart = later(2, &[(1, 6)], 0, 7, &[InSync, InSync]);
    let a = assemble(&[apart.clone(), later(3, &[(1, 6)], 1, 9, &[out, InSync])], internal()).unwrap();
    assert_eq!((a.states(&[])[leg(0)], a.disbelieved), (out, LegSet::one(leg(0))));
    let mut next = record(1, 10, &[out, InSync]);
    (next.lineage, next.held) = (a.lineage(4), a.held);
    let a = assemble(&[apart, next], internal()).unwrap();
    assert_eq!(a.disbelieved, LegSet::one(leg(0)));
}

/// The same of a leg that is away at that start, if the record of another leg says that it was with that one.
#[test]
fn a_leg_that_was_with_one_of_another_history_is_not_believed_later() {
    let out = LegState::Failed(FailReason::Admin);
    let image = || {
        let mut image = later(3, &[(2, 6)], 2, 9, &[out, out, InSync]);
        image.held = [leg(0), leg(1)].into_iter().fold(Held::default(), |mut held, leg| {
            held.set(leg, 5);
            held
        });
        image
    };
    // In use under the record of leg 1; or out again, and it held one that the image lacks.
    let in_use = later(2, &[], 1, 7, &[InSync; 3]);
    let mut was_in_use = later(2, &[], 1, 8, &[out, InSync, InSync]);
    was_in_use.held.set(leg(0), 7);
    let alone = later(2, &[], 1, 7, &[out, InSync, InSync]);
    for (with, event, is_believed) in [(in_use, 7, false), (was_in_use, 7, false), (alone, 6, true)] {
        let a = assemble(&[with, image()], internal()).unwrap();
        assert_eq!((a.source, a.disbelieved), (leg(2), LegSet::one(leg(1))));
        let mut next = record(2, 10, &[out, out, InSync]);
        (next.lineage, next.held) = (a.lineage(4), a.held);
        let a = assemble(&[later(2, &[], 0, event, &[InSync; 3]), next], internal()).unwrap();
        assert_eq!(a.disbelieved.contains(leg(0)), !is_believed);
    }
}

#[test]
fn split_brain_is_refused_and_a_named_source_settles_it() {
    for b_events in [6, 9] {
        let found =
            [later(2, &[(1, 5)], 0, 6, &[InSync, OUT]), later(3, &[(1, 5)], 1, b_events, &[OUT, InSync])];
        assert_eq!(assemble(&found, internal()), Err(SPLIT));
        let named = AssembleOptions { source: Some(0), ..internal() };
        let a = assemble(&found, named).unwrap();
        assert_eq!(a.source, leg(0));
        assert_eq!(a.trusted, LegSet::first(2), "both wrote: both logs count");
        assert_eq!(a.event_count, b_events);
        assert_eq!(a.states(&[Region(0)]), LegMap::from(vec![InSync, Syncing]));
        // It stays settled if the next record reaches leg 0 alone.
        let mut settled = record(0, b_events + 1, &[InSync, Syncing]);
        settled.lineage = a.lineage(4);
        let found = [settled, found[1].clone()];
        assert_eq!(assemble(&found, internal()).unwrap().source, leg(0));
    }
}

#[test]
fn records_of_one_session_are_older_and_newer_whatever_they_say() {
    // Leg 0 failed and came back, leg 1 failed then, leg 0 failed again; leg 2 was there throughout.
    let found = [
        record(0, 4, &[Syncing, OUT, InSync]),
        record(1, 3, &[OUT, InSync, InSync]),
        record(2, 5, &[OUT, OUT, InSync]),
    ];
    let a = assemble(&found, internal()).unwrap();
    assert_eq!((a.source, a.returned), (leg(2), LegSet::first(2)));
    // The newest record is on a leg that was only just coming back, and on no other.
    let found = [
        record(0, 3, &[InSync, InSync, OUT]),
        record(1, 3, &[InSync, InSync, OUT]),
        record(2, 4, &[InSync, OUT, Syncing]),
    ];
    assert_eq!(assemble(&found, internal()).unwrap().source, leg(0));
    // Leg 2 failed while leg 1 was out, leg 1 came back by leg 0, leg 0 failed.
    let found = [record(2, 5, &[InSync, OUT, InSync]), record(1, 9, &[OUT, InSync, OUT])];
    assert_eq!(assemble(&found, internal()).unwrap().source, leg(1));
}

#[test]
fn of_two_legs_the_one_that_went_on_wins_unless_both_did() {
    let both = [InSync, InSync];
    let returning = || was_out(record(0, 6, &[InSync, Syncing]), 1, 5);
    let alone = |events| later(3, &[(1, 4)], 1, events, &[OUT, InSync]);
    for (what, one, other, source) in [
        ("leg 1 failed and is taken back, which it does not know", returning(), record(1, 4, &both), Some(0)),
        ("and was started alone then", returning(), alone(5), None),
        ("with as many events", returning(), alone(6), None),
        ("with more", returning(), alone(7), None),
        ("and taken back before it went on", returning(), later(3, &[(1, 6)], 1, 7, &[OUT, InSync]), Some(1)),
        ("leg 1 was started alone, leg 0 has a record more", record(0, 60, &both), alone(6), Some(1)),
        ("one in which leg 1 is syncing", record(0, 60, &[InSync, Syncing]), alone(6), Some(1)),
        ("one in which it is out", record(0, 60, &[InSync, OUT]), alone(6), None),
        (
            "a start with both reached leg 0 alone, then leg 1 was started alone",
            later(2, &[(1, 4)], 0, 5, &[InSync, Syncing]),
            alone(5),
            Some(1),
        ),
        (
            "the same, and leg 0 was started alone again",
            later(4, &[(2, 5), (1, 4)], 0, 6, &[InSync, OUT]),
            alone(5),
            None,
        ),
        ("nothing in common", later(2, &[(7, 4)], 0, 5, &[InSync, Syncing]), alone(5), None),
        ("no lineage: leg 0 went on", old(record(0, 6, &[InSync, OUT])), old(record(1, 7, &both)), Some(0)),
        ("no lineage: leg 1 comes back", old(returning()), old(record(1, 4, &both)), Some(0)),
        ("no lineage: both went on", old(returning()), old(alone(7)), None),
        (
            "no lineage in one: started alone since",
            old(record(0, 4, &both)),
            later(3, &[(0, 4)], 1, 5, &[OUT, InSync]),
            Some(1),
        ),
        (
            "no lineage in one: it had gone on",
            old(returning()),
            later(3, &[(0, 4)], 1, 7, &[OUT, InSync]),
            None,
        ),
    ] {
        let found = [one, other];
        let result = assemble(&found, internal()).map(|assembly| assembly.source);
        assert_eq!(result, source.map(leg).ok_or(SPLIT), "{what}");
    }
}

#[test]
fn a_third_leg_can_prove_that_a_record_was_never_complete() {
    // Leg 0 failed leg 1, which it alone recorded; legs 1 and 2 were started without it.
    let found = [
        record(0, 5, &[InSync, OUT, InSync]),
        later(2, &[(1, 4)], 1, 5, &[OUT, InSync, InSync]),
        later(2, &[(1, 4)], 2, 5, &[OUT, InSync, InSync]),
    ];
    let a = assemble(&found, internal()).unwrap();
    assert_eq!((a.source, a.trusted, a.returned), (leg(1), LegSet::from_bits(6), LegSet::one(leg(0))));
    // Neither was complete: either may decide.
    let neither = [found[1].clone(), found[0].clone(), record(2, 4, &[InSync, InSync, InSync])];
    assert_eq!(assemble(&neither, internal()).unwrap().source, leg(0));
    // It may have been complete on a leg that is not there.
    let degraded = AssembleOptions { degraded: true, ..internal() };
    assert_eq!(assemble(&found[..2], degraded), Err(SPLIT));
    // One leg proves it of one record, another of the next.
    let found = [
        record(0, 6, &[InSync, InSync, OUT]),
        record(1, 5, &[InSync, InSync, InSync]),
        later(2, &[(1, 4)], 2, 5, &[OUT, OUT, InSync]),
    ];
    assert_eq!(assemble(&found, internal()).unwrap().source, leg(2));
    // It was, and leg 1 went on alone.
    let found = [
        record(0, 5, &[InSync, OUT, InSync]),
        later(2, &[(1, 4)], 1, 5, &[OUT, InSync, OUT]),
        record(2, 5, &[InSync, OUT, InSync]),
    ];
    assert_eq!(assemble(&found, internal()), Err(SPLIT));
}

#[test]
fn the_deciding_records_size_counts_and_only_what_all_logs_cover_is_trusted() {
    let both = [InSync, InSync];
    let sized = |index, event_count, size| LegRecord { size, ..record(index, event_count, &both) };
    let geometry = Geometry::new(1 << 20, 4096).unwrap();
    // Cut short: one leg has the record of the new size.
    let a = assemble(&[sized(0, 4, 9 << 12), sized(1, 5, 1 << 20)], internal()).unwrap();
    assert_eq!((a.size, a.covered, a.trusted), (1 << 20, 9 << 12, LegSet::first(2)));
    assert_eq!(a.uncovered(geometry).collect::<Vec<_>>(), (9..256).map(Region).collect::<Vec<_>>());
    // The region that the smaller volume ended in is not covered either.
    let a = assemble(&[sized(0, 4, (9 << 12) + 512), sized(1, 5, 1 << 20)], internal()).unwrap();
    assert_eq!(a.uncovered(geometry).next(), Some(Region(9)));
    // Made smaller: all of it is covered.
    let a = assemble(&[sized(0, 5, 1 << 20), sized(1, 4, 2 << 20)], internal()).unwrap();
    assert_eq!((a.size, a.covered, a.uncovered(geometry).count()), (1 << 20, 1 << 20, 0));
}

#[test]
fn missing_legs_need_a_word() {
    let both = [InSync, InSync];
    let missing = AssembleError::Missing { legs: LegSet::one(leg(1)) };
    assert_eq!(assemble(&[record(0, 3, &both)], internal()), Err(missing));
    let degraded = AssembleOptions { degraded: true, ..internal() };
    let a = assemble(&[record(0, 3, &both)], degraded).unwrap();
    assert_eq!(a.states(&[Region(0)]), LegMap::from(vec![InSync, LegState::Failed(FailReason::Missing)]));
    // Known to be out: nothing new is lost by starting without it.
    assert!(assemble(&[record(0, 3, &[InSync, OUT])], internal()).is_ok());
}

#[test]
fn a_leg_that_was_not_in_sync_is_no_source() {
    let degraded = AssembleOptions { degraded: true, ..internal() };
    let found = [record(1, 3, &[InSync, Syncing])];
    let none = AssembleError::NoSource { in_sync: LegSet::one(leg(0)) };
    assert_eq!(assemble(&found, degraded), Err(none));
    let named = AssembleOptions { source: Some(0), ..degraded };
    assert_eq!(assemble(&found, named).unwrap().source, leg(1));
}

#[test]
fn foreign_and_doubled_legs_are_refused() {
    let both = [InSync, InSync];
    let mut other = record(1, 3, &both);
    other.volume = uuid(50);
    let found = [record(0, 3, &both), other];
    assert_eq!(assemble(&found, internal()), Err(AssembleError::OtherVolume { one: 0, other: 1 }));
    let found = [record(0, 3, &both), record(0, 3, &both)];
    assert_eq!(assemble(&found, internal()), Err(AssembleError::SameLeg { one: 0, other: 1 }));
    let mut stranger = record(1, 2, &both);
    stranger.leg = uuid(77);
    let found = [record(0, 3, &both), stranger];
    assert_eq!(assemble(&found, internal()), Err(AssembleError::Stranger { at: 1 }));
}

#[test]
fn legs_that_came_and_went() {
    use LegState::{Spare, Vacant};
    // Leg 1 was removed and another took its index; leg 2 was added since: leg 0 alone knows all.
    let mut newest = record(0, 9, &[InSync, InSync, InSync]);
    newest.legs[leg(1)].0 = uuid(70);
    let removed = record(1, 5, &[InSync, InSync]);
    assert_eq!(assemble(&[newest.clone(), removed], internal()), Err(AssembleError::Stranger { at: 1 }));
    let mut taken = record(1, 8, &[InSync, Syncing]);
    (taken.leg, taken.legs[leg(1)].0) = (uuid(70), uuid(70));
    let found = [newest, taken, record(2, 9, &[InSync, InSync, InSync])];
    assert_eq!(assemble(&found, internal()).unwrap().states(&[]), LegMap::from(vec![InSync; 3]));
    // One whose adding never was recorded, and one that was removed and whose index is free.
    let found = [record(0, 9, &[InSync, InSync]), record(2, 8, &[InSync, InSync, OUT])];
    assert_eq!(assemble(&found, internal()), Err(AssembleError::Stranger { at: 1 }));
    let found = [record(0, 9, &[InSync, Vacant, InSync]), record(1, 8, &[InSync, InSync, InSync])];
    let degraded = AssembleOptions { degraded: true, ..internal() };
    assert_eq!(assemble(&found, degraded), Err(AssembleError::Stranger { at: 1 }));
    // One that was removed sessions ago: nobody knows its record any more.
    let found = [later(9, &[], 0, 9, &[InSync, Vacant]), record(1, 8, &[InSync, InSync])];
    assert_eq!(assemble(&found, degraded), Err(AssembleError::Stranger { at: 1 }));
    let found = [later(9, &[], 0, 9, &[InSync, Vacant]), later(8, &[], 1, 8, &[Vacant, InSync])];
    assert_eq!(assemble(&found, degraded), Err(SPLIT), "each without the other");
    // What is left out still proves that a record was never complete.
    let removing = record(0, 3, &[InSync, Vacant, InSync]);
    let going_on = later(2, &[(1, 2)], 2, 3, &[OUT, InSync, Syncing]);
    let found = [removing, record(1, 2, &[InSync; 3]), going_on];
    let by_name = AssembleOptions { leave_out: true, ..internal() };
    let a = assemble(&found, by_name).unwrap();
    assert_eq!((a.strangers, a.source), (vec![1], leg(0)));
    // A spare stays one, there or not, and its log says nothing, even if a source is named.
    for (found, source) in [
        (vec![record(0, 9, &[InSync, Spare])], None),
        (vec![record(0, 9, &[InSync, Spare]), record(1, 4, &[InSync, Spare])], None),
        (vec![record(0, 9, &[InSync, Spare]), record(1, 4, &[InSync, Spare])], Some(0)),
    ] {
        let a = assemble(&found, AssembleOptions { source, ..internal() }).unwrap();
        assert_eq!(a.states(&[Region(0)]), LegMap::from(vec![InSync, Spare]));
        assert_eq!(a.trusted, LegSet::one(leg(0)));
    }
    let spare = AssembleOptions { source: Some(1), ..internal() };
    let found = [record(0, 9, &[InSync, Spare]), record(1, 4, &[InSync, Spare])];
    assert_eq!(assemble(&found, spare), Err(AssembleError::SourceIsSpare));
}

#[test]
fn a_core_log_is_trusted_after_a_clean_stop_only() {
    let core = AssembleOptions { log_is_core: true, ..AssembleOptions::default() };
    let mut found = [record(0, 3, &[InSync, InSync]), record(1, 3, &[InSync, InSync])];
    assert!(assemble(&found, core).unwrap().all_dirty);
    for r in &mut found {
        r.clean = true;
    }
    assert!(!assemble(&found, core).unwrap().all_dirty);
    found[1].log_failed = true;
    assert!(!assemble(&found, core).unwrap().all_dirty);
    found[1].clean = false;
    assert!(assemble(&found, core).unwrap().all_dirty);
}

#[test]
fn a_log_that_lost_a_mark_counts_as_long_as_something_was_dirty() {
    let spare = LegState::Spare;
    let beside = AssembleOptions { leave_out: true, ..AssembleOptions::default() };
    /// Clean and lost, by leg; the third is a spare, a fourth was removed. All dirty, and begun anew.
    type Row = (&'static str, [(bool, bool); 4], (bool, bool));
    let (whole, lost, clean, both) = ((false, false), (false, true), (true, false), (true, true));
    #[rustfmt::skip]
    let rows: [Row; 8] = [
        ("whole",                       [whole, whole, whole, whole], (false, false)),
        ("lost",                        [lost,  lost,  whole, whole], (true,  true)),
        ("lost says one",               [whole, lost,  whole, whole], (true,  true)),
        ("lost and stopped clean",      [both,  both,  whole, whole], (false, true)),
        ("stopped clean",               [clean, clean, whole, whole], (false, false)),
        ("that record is on one only",  [both,  lost,  whole, whole], (true,  true)),
        ("lost says a spare",           [whole, whole, lost,  whole], (false, false)),
        ("lost says one that was removed", [whole, whole, whole, lost], (false, false)),
    ];
    for (name, flags, expected) in rows {
        let mut found: Vec<LegRecord> = (0..3).map(|leg| record(leg, 9, &[InSync, InSync, spare])).collect();
        found.push(record(3, 4, &[InSync, InSync, spare, InSync]));
        for (record, (clean, lost)) in found.iter_mut().zip(flags) {
            (record.clean, record.log_failed) = (clean, lost);
        }
        let a = assemble(&found, beside).unwrap();
        assert_eq!((a.all_dirty, a.log_lost), expected, "{name}");
    }
    // It began anew when one of the legs was away.
    let mut found = [later(2, &[(1, 9)], 0, 12, &[InSync, OUT]), record(1, 9, &[InSync, InSync])];
    (found[1].clean, found[1].log_failed) = both;
    let a = assemble(&found, beside).unwrap();
    assert_eq!((a.source, a.all_dirty, a.log_lost), (leg(0), false, false));
}

#[test]
fn an_older_image_of_a_leg_is_copied_whole() {
    let holds = |record: LegRecord, held: [u64; 2]| {
        let mut counts = [0; MAX_LEGS];
        counts[..2].copy_from_slice(&held);
        LegRecord { held: Held::from_recorded(counts), ..record }
    };
    let at_event = |index, event, held| holds(record(index, event, &[InSync, InSync]), held);
    let both = |held| [InSync; 2].map(|_| held);
    #[rustfmt::skip]
    let rows = [
        // what                                   records                                         source, copied whole
        ("both as they were last",                at_event(0, 9, both(8)), at_event(1, 9, both(8)), Some((0, 0b00))),
        ("the last record reached one only",      at_event(0, 9, both(8)), at_event(1, 8, both(7)), Some((0, 0b00))),
        ("it reached the other only",             at_event(0, 8, both(7)), at_event(1, 9, both(8)), Some((1, 0b00))),
        ("leg 1 is older",                        at_event(0, 9, both(8)), at_event(1, 7, both(6)), Some((0, 0b10))),
        ("leg 0 is older",                        at_event(0, 2, both(1)), at_event(1, 9, both(8)), Some((1, 0b01))),
        ("both are: the older from the newer",    at_event(0, 5, both(4)), at_event(1, 7, both(6)), Some((1, 0b01))),
        ("from before it was recorded",           at_event(0, 9, both(0)), at_event(1, 2, both(0)), Some((0, 0b00))),
        ("whatever it holds",                     at_event(0, 9, [8, u64::MAX]), at_event(1, 9, both(8)), Some((0, 0b10))),
        ("the newer one was syncing",             holds(record(0, 9, &[Syncing, InSync]), both(8)), at_event(1, 7, both(6)), None),
    ];
    for (what, one, other, expected) in rows {
        let found = [one, other];
        match (assemble(&found, internal()), expected) {
            (Ok(a), Some((source, whole))) => {
                assert_eq!((a.source, a.copy_whole), (leg(source), LegSet::from_bits(whole)), "{what}");
                assert_eq!(a.trusted, LegSet::first(2).minus(a.copy_whole), "{what}");
                let expected = if whole == 0 { InSync } else { Syncing };
                assert_eq!(a.states(&[])[leg(1 - source)], expected, "{what}");
                // Told again, whatever comes of this start.
                let newest = &found[a.authority];
                for other in a.copy_whole.iter() {
                    assert_eq!(a.held.of(other), newest.held.of(other), "{what}");
                }
            }
            (result, expected) => {
                assert_eq!((result, expected), (Err(AssembleError::OnlyOlder { at: 1 }), None), "{what}");
            }
        }
    }
}

#[test]
fn an_older_image_that_went_on_alone_proves_nothing() {
    // Leg 0 was put back as it was at event 4, when both were in use, and started alone; leg 1 was at event 9.
    let alone = later(2, &[(1, 4)], 0, 5, &[InSync, OUT]);
    let mut other = record(1, 9, &[InSync, InSync]);
    assert_eq!(
        assemble(&[alone.clone(), other.clone()], internal()).unwrap().source,
        leg(0),
        "never complete"
    );
    other.held = Held::from_recorded([8, 8, 0, 0, 0, 0, 0, 0]);
    assert_eq!(assemble(&[alone, other], internal()), Err(SPLIT));
}

#[test]
fn a_source_is_the_newest_that_is_believed() {
    let found = |log: [u64; 3], other: [bool; 3]| {
        (0..3)
            .map(|index| LegRecord {
                log_generation: log[index],
                other_file: other[index],
                ..record(index, 5, &[InSync; 3])
            })
            .collect::<Vec<_>>()
    };
    for (log, other, source) in [
        ([4, 4, 4], [false; 3], 0),
        ([4, 5, 5], [false; 3], 1),
        ([4, 4, 4], [true, false, false], 1),
        ([5, 4, 4], [true, false, false], 1),
        ([4, 4, 5], [true, true, false], 2),
        ([4, 5, 4], [true, true, true], 1),
    ] {
        let a = assemble(&found(log, other), internal()).unwrap();
        let copies = (0..3).filter(|&at| other[at] && other != [true; 3]).map(leg).collect();
        assert_eq!((a.source, a.older, a.copy_whole), (leg(source), copies, copies), "{log:?} {other:?}");
    }
}

#[test]
fn a_named_source_is_copied_whole_to_all_others() {
    // Leg 1 was removed by leg 0, which went on; leg 2 is not there.
    let removed = record(1, 5, &[InSync; 3]);
    let mut found = [record(0, 9, &[InSync, LegState::Vacant, OUT]), removed];
    found.iter_mut().for_each(|record| record.equal = true);
    for log_on_legs in [true, false] {
        let named = AssembleOptions { source: Some(1), degraded: true, log_on_legs, ..internal() };
        let a = assemble(&found, named).unwrap();
        assert_eq!((a.source, a.authority, a.all_dirty), (leg(1), 1, true));
        assert_eq!((a.copy_whole, a.states(&[])[leg(0)]), (LegSet::one(leg(0)), Syncing));
        assert_eq!(a.held.recorded()[..3], [u64::MAX, 5, u64::MAX]);
    }
    // One that was overruled before, when the other was named.
    let mut overruled = record(1, 6, &[InSync, Syncing]);
    overruled.held = Held::from_recorded([5, u64::MAX, 0, 0, 0, 0, 0, 0]);
    let found = [record(0, 6, &[InSync, Syncing]), overruled];
    let a = assemble(&found, AssembleOptions { source: Some(1), ..internal() }).unwrap();
    assert_eq!((a.older, a.held.recorded()[..2].to_vec()), (LegSet::EMPTY, vec![u64::MAX, 6]));
}

/// Who named the source overruled the sessions that the other leg had come from, too.
#[test]
fn an_older_image_of_what_was_overruled_by_hand_is_copied_whole() {
    let overruled = later(4, &[(3, 8), (2, 6), (1, 1)], 0, 10, &[InSync, OUT]);
    let image_of_the_source = later(2, &[(1, 1)], 1, 2, &[InSync; 2]);
    let named = AssembleOptions { source: Some(1), ..internal() };
    let a = assemble(&[overruled, image_of_the_source], named).unwrap();
    let mut next = record(1, 11, &[OUT, InSync]);
    (next.lineage, next.held) = (a.lineage(5), a.held);
    let image_of_the_other = later(3, &[(2, 6), (1, 1)], 0, 7, &[InSync, OUT]);
    let a = assemble(&[image_of_the_other, next], internal()).unwrap();
    assert_eq!((a.source, a.copy_whole), (leg(1), LegSet::one(leg(0))));
}

#[test]
fn legs_that_were_in_sync_when_the_volume_was_stopped_are() {
    let states = [InSync, InSync, OUT];
    let stopped = |index| LegRecord { equal: true, ..record(index, 9, &states) };
    let found = [stopped(0), stopped(1), record(2, 4, &[InSync; 3])];
    for options in [internal(), AssembleOptions { log_is_core: true, ..AssembleOptions::default() }] {
        let a = assemble(&found, options).unwrap();
        assert_eq!(a.states(&[Region(0)]), LegMap::from(vec![InSync, InSync, Syncing]));
        assert_eq!((a.returned, a.all_dirty), (LegSet::one(leg(2)), options.log_is_core));
    }
    // The record of that is on one leg only: the other is as it was then, too.
    let cut_short = [stopped(0), record(1, 8, &states), found[2].clone()];
    assert_eq!(assemble(&cut_short, internal()).unwrap().states(&[Region(0)])[leg(1)], InSync);
}

#[test]
fn the_record_that_decides_is_not_the_one_with_most_events() {
    // Leg 0 went on alone, and leg 1 with a new leg 2.
    let mut found = [
        was_out(later(2, &[(1, 5)], 0, 9, &[InSync, OUT]), 2, 9),
        later(3, &[(1, 5)], 1, 7, &[OUT, InSync, InSync]),
        later(3, &[(1, 5)], 2, 7, &[OUT, InSync, InSync]),
    ];
    assert_eq!(assemble(&found, internal()), Err(SPLIT));
    let a = assemble(&found, AssembleOptions { source: Some(1), ..internal() }).unwrap();
    assert_eq!((a.authority, a.source, a.at.len(), a.event_count), (1, leg(1), 3, 9));
    // Without leg 1: leg 2 is no stranger, for it went on without leg 0.
    let alone = [found[0].clone(), found[2].clone()];
    assert_eq!(assemble(&alone, AssembleOptions { degraded: true, ..internal() }), Err(SPLIT));
    // Two legs with one index: the source is the one that was named.
    found[0].legs = LegMap::from(vec![(uuid(0), InSync), (uuid(70), InSync)]);
    let other = LegRecord { leg: uuid(70), index: leg(1), ..found[0].clone() };
    let two = [found[0].clone(), found[1].clone(), other];
    let named = AssembleOptions { source: Some(1), leave_out: true, degraded: true, ..internal() };
    let a = assemble(&two, named).unwrap();
    assert_eq!((a.authority, a.strangers, a.at[leg(1)]), (1, vec![2], Some(1)));
}
