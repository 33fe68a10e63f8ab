//! Where a record comes from: what it takes to tell, of any two records of a volume, whether one has
//! all that was ever answered under the other.
//!
//! Every start of a volume begins a *session*, whose id is drawn outside. Within a session one log
//! worker writes one record after the other, so two records of it are older and newer, no more. A record
//! names the sessions that it comes from, each with the newest event count that was found of it when it
//! was left. So any two records tell up to which event they have one history, and whether one is part of
//! the other's. If neither is, each belongs to somebody who went on without the other.
//!
//! But for records that never counted. A record is complete when every leg in use under it has it; until
//! then nothing is answered that the record before it would not have allowed. A leg that lacks every
//! record of some history behind an event, and that was in use under each of them, is the proof that
//! none of them was ever complete. For that a record has the event at which each leg was last out, and what each leg held:
//! an older image of a leg lacks what the leg had.

use crate::assemble::LegRecord;
use crate::types::{Leg, LegSet, LegState, MAX_LEGS};

/// Most sessions that a record names besides its own. A volume whose legs are all there needs none; a
/// leg that is out, one or two; one more is needed for each start in a row that ended before its first
/// record was complete. Those that it does not need are kept for legs that are older images of themselves. What is older
/// than the newest few is unknown, and refused.
pub const MAX_PAST: usize = 32;

/// A session that another one went on from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Past {
    /// Its id.
    pub session: u64,
    /// The highest event count of it that was found by the start that went on from it.
    pub event_count: u64,
    /// Legs whose newest record may be one of this session.
    pub held_by: LegSet,
}

/// See the module's documentation. The default says nothing, as a mirrord that kept no lineage.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Lineage {
    /// Id of the session; 0 if unknown.
    pub session: u64,
    /// Legs that records of the session went to, or were about to.
    pub written: LegSet,
    /// By leg: the event count of the newest record, of this session or one before it, that has the leg
    /// neither in sync nor syncing.
    pub last_out: [u64; MAX_LEGS],
    /// The sessions before, newest first, at most [`MAX_PAST`].
    pub past: Vec<Past>,
}

impl Lineage {
    /// Of a new volume with these legs. `session`: the id of its making, not 0.
    pub fn new(session: u64, legs: usize) -> Lineage {
        Lineage { session, written: LegSet::first(legs), ..Lineage::default() }
    }

    /// Of a session that goes on from the record at `authority`; every record that is `found` is known
    /// then, also one that was overruled. If that was by hand (`forced`), so is all that it came from: no leg but the one
    /// that was named is believed then, so older images of legs may be known. Without an id yet.
    pub(crate) fn after(found: &[LegRecord], authority: usize, forced: bool) -> Lineage {
        let from = &found[authority];
        let mut lineage = Lineage { session: 0, written: LegSet::EMPTY, ..from.lineage.clone() };
        if from.lineage.session == 0 {
            for (leg, _) in from.legs.iter().filter(|(_, (_, state))| *state != LegState::InSync) {
                lineage.last_out[leg.index()] = from.event_count;
            }
        }
        let left = |record: &LegRecord| {
            let session = record.lineage.session;
            let held_by = if session == 0 { record.legs.legs().collect() } else { record.lineage.written };
            Past { session, event_count: record.event_count, held_by }
        };
        lineage.leave(left(from));
        for overruled in found.iter().filter(|record| !is_part_of(record, from)) {
            lineage.leave(left(overruled));
            if forced {
                overruled.lineage.past.iter().for_each(|&past| lineage.leave(past));
            }
        }
        // Sessions that no leg can hold a record of are named as long as there is room: an older image of one can.
        let newest = |past: &Past| std::cmp::Reverse(past.event_count);
        lineage.past.sort_by_key(|past| (past.held_by.is_empty(), newest(past)));
        lineage.past.truncate(MAX_PAST);
        lineage.past.sort_by_key(newest);
        lineage
    }

    /// It does not go on from there any more, but knows of it.
    fn leave(&mut self, mut left: Past) {
        if let Some(at) = self.past.iter().position(|past| past.session == left.session) {
            let known = self.past.swap_remove(at);
            left.event_count = left.event_count.max(known.event_count);
            left.held_by = left.held_by.union(known.held_by);
        }
        self.past.push(left);
    }

    /// A record with this event count goes out, in which only `in_use` of `all` legs are in use.
    pub(crate) fn record(&mut self, event_count: u64, in_use: LegSet, all: LegSet) {
        self.written = self.written.union(in_use);
        for leg in all.minus(in_use).iter() {
            self.last_out[leg.index()] = event_count;
        }
    }

    /// These legs hold a record of this session now, and none of another.
    pub(crate) fn taken(&mut self, legs: LegSet) {
        for past in &mut self.past {
            past.held_by = past.held_by.minus(legs);
        }
    }
}

/// Whether `other` has all that was ever answered under `record`, as far as all that was `found` tells.
pub(crate) fn is_behind(record: &LegRecord, other: &LegRecord, found: &[LegRecord]) -> bool {
    if record.lineage.session == 0 {
        // It does not say where it comes from: the other leg was in sync under it, that is all.
        return record == other || record.state_of(other.index) == LegState::InSync;
    }
    let Some(parted) = parted(record, other) else { return false };
    let lacks_the_rest = |leg: &LegRecord| self::parted(record, leg).is_some_and(|event| event <= parted);
    let was_in_use_since = |leg: &LegRecord| record.lineage.last_out[leg.index.index()] <= parted;
    // An older image of a leg that had them proves nothing.
    let never_had_them = |leg: &LegRecord| record.held.of(leg.index) <= parted;
    parted == record.event_count
        || found.iter().any(|leg| lacks_the_rest(leg) && was_in_use_since(leg) && never_had_them(leg))
}

/// The event up to which two records have one history.
fn parted(one: &LegRecord, other: &LegRecord) -> Option<u64> {
    let sessions = |record: &LegRecord| {
        let own = (record.lineage.session, record.event_count);
        let past: Vec<_> = record.lineage.past.iter().map(|past| (past.session, past.event_count)).collect();
        std::iter::once(own).chain(past)
    };
    let in_common = |(session, event): (u64, u64)| {
        let (_, other) = sessions(other).find(|&(of, _)| of == session)?;
        Some(event.min(other))
    };
    // Not the first session in common: one that was overruled may be newer than those that the record went on from. A leg
    // that was just made names the volume's session and past, and has no event of them.
    let last = sessions(one).filter_map(in_common).max()?;
    Some(last.min(one.event_count).min(other.event_count))
}

/// Whether `other` is of a history that `record` belongs to. If not, and it is behind all the same, it belongs to one that never
/// counted.
pub(crate) fn is_part_of(record: &LegRecord, other: &LegRecord) -> bool {
    parted(record, other) == Some(record.event_count)
}

/// Whether `leg` may hold a record that belongs to the history of `overruled`, and not to that of `record`, which decides.
pub(crate) fn may_be_apart(leg: Leg, overruled: &LegRecord, record: &LegRecord) -> bool {
    let parted = parted(overruled, record).unwrap_or(0);
    let may_have_more = overruled.state_of(leg).is_in_use() || overruled.held.of(leg) > parted;
    parted < overruled.event_count && may_have_more
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::held::Held;
    use crate::types::LegMap;

    fn legs(bits: u8) -> LegSet {
        LegSet::from_bits(bits)
    }

    fn record(index: usize, event_count: u64, lineage: Lineage) -> LegRecord {
        LegRecord {
            volume: [9; 16],
            leg: [index as u8; 16],
            index: Leg::new(index),
            size: 4096,
            region_size: 4096,
            event_count,
            legs: LegMap::from_fn(3, |leg| ([leg.index() as u8; 16], LegState::InSync)),
            replaces: Default::default(),
            clean: false,
            equal: false,
            log_failed: false,
            lineage,
            held: Held::default(),
            recent: None,
            log_generation: 0,
            other_file: false,
        }
    }

    #[test]
    fn a_session_is_named_until_no_leg_can_hold_a_record_of_it() {
        let found = [record(0, 4, Lineage::new(1, 3)), record(2, 3, Lineage::new(1, 3))];
        let mut lineage = Lineage::after(&found, 0, false);
        let past = |held_by| vec![Past { session: 1, event_count: 4, held_by: legs(held_by) }];
        assert_eq!(lineage.past, past(0b111));
        lineage.record(5, legs(0b101), legs(0b111));
        assert_eq!((lineage.written, lineage.last_out[..3].to_vec()), (legs(0b101), vec![0, 5, 0]));
        lineage.taken(legs(0b101));
        assert_eq!(lineage.past, past(0b010));
        lineage.record(6, legs(0b111), legs(0b111));
        lineage.taken(legs(0b010));
        assert_eq!((&lineage.past, lineage.last_out[1]), (&past(0), 5));
        // It is kept for an older image of a leg, until there is no room.
        let next = |session, past| {
            let lineage = Lineage { session, past, ..Lineage::new(session, 3) };
            let mut next = Lineage {
                session: session + 1,
                ..Lineage::after(&[record(0, session + 6, lineage)], 0, false)
            };
            next.taken(legs(0b111));
            next.past
        };
        let full = (2..MAX_PAST as u64 + 1).fold(lineage.past, |past, session| next(session, past));
        assert_eq!((full.len(), full[MAX_PAST - 1].session), (MAX_PAST, 1));
        let full = next(MAX_PAST as u64 + 1, full);
        assert_eq!((full.len(), full[MAX_PAST - 1].session), (MAX_PAST, 2));
    }

    #[test]
    fn what_was_overruled_by_hand_is_known_from_then_on() {
        let fork = |session| Lineage {
            last_out: [7, 7, 7, 0, 0, 0, 0, 0],
            past: vec![Past { session: 1, event_count: 2, held_by: legs(0b100) }],
            ..Lineage::new(session, 2)
        };
        let found = [record(0, 7, fork(2)), record(1, 9, fork(3)), record(2, 2, Lineage::new(1, 3))];
        let after = Lineage::after(&found, 0, false);
        let named: Vec<_> = after.past.iter().map(|past| (past.session, past.event_count)).collect();
        assert_eq!(named, [(3, 9), (2, 7), (1, 2)]);
        assert_eq!(after.past[2].held_by, legs(0b100));
        let next = record(0, 10, Lineage { session: 4, ..after });
        assert!(found.iter().all(|record| is_behind(record, &next, &found)));
    }

    #[test]
    fn a_session_that_was_overruled_does_not_hide_a_later_one_in_common() {
        let past = |sessions: &[(u64, u64)]| {
            let past = |&(session, event_count)| Past { session, event_count, held_by: legs(0) };
            sessions.iter().map(past).collect()
        };
        // Session 6 went on from event 3 of session 3, and what came of it later was overruled.
        let one = record(1, 12, Lineage { past: past(&[(3, 6), (6, 5)]), ..Lineage::new(7, 2) });
        let other = record(0, 6, Lineage { past: past(&[(6, 5), (3, 3)]), ..Lineage::new(8, 2) });
        assert_eq!([parted(&one, &other), parted(&other, &one)], [Some(5), Some(5)]);
    }

    #[test]
    fn starts_that_never_end_forget_the_oldest() {
        let mut newest = record(0, 1, Lineage::new(1, 2));
        for session in 2..100 {
            let lineage = Lineage { session, ..Lineage::after(&[newest.clone()], 0, false) };
            newest = record(0, session, lineage);
            newest.lineage.record(session, legs(0b11), legs(0b11));
        }
        let past = &newest.lineage.past;
        assert_eq!(
            (past.len(), past[0].session, past[MAX_PAST - 1].session),
            (MAX_PAST, 98, 99 - MAX_PAST as u64)
        );
    }
}
