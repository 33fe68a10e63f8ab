//! Assembly: what a set of legs, found on disk, amounts to. A pure function.
//!
//! The newest record decides, never a vote: the one that all others are *behind* ([`crate::Lineage`]),
//! each one that it comes from, or one that never was complete. Event counts alone do not tell: a record
//! can have a high one and have reached one leg only before a crash, and two legs that went on apart
//! count alike. The rules, in order:
//!
//! | found | then |
//! |---|---|
//! | legs of two volumes, the same leg twice, region sizes that differ | refuse |
//! | a leg that the deciding record does not name | refuse: it was removed, or never came to be one |
//! | no record that all others are behind | split brain: refuse, unless a source is named |
//! | a leg in use by the deciding record is missing | refuse, unless degraded is allowed |
//! | no present leg was in sync in the deciding record | refuse, unless a source is named |
//! | otherwise | the source is the lowest present leg that was in sync |
//!
//! Which regions are dirty is the union of the logs of [`Assembly::trusted`]. A leg that the newest
//! record has as failed is back: it is syncing, stale in the dirty regions. If any region is dirty,
//! every leg but the source is syncing until it is resynced, so that reads do not depend on the leg.
//! A spare is a spare, whether it is there or not.
//!
//! Records differ in size if the volume was being resized. The deciding one's counts; what a leg's log did not cover
//! ([`Assembly::covered`]) is dirty.

use crate::geometry::{Geometry, Region};
use crate::lineage::{Lineage, is_behind};
use crate::types::{FailReason, Leg, LegMap, LegSet, LegState, MAX_LEGS};

/// A 16-byte UUID.
type Uuid = [u8; 16];

/// What one leg's superblock says, as far as assembly needs it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LegRecord {
    /// UUID of the volume.
    pub volume: Uuid,
    /// UUID of this leg.
    pub leg: Uuid,
    /// Its place in the volume.
    pub index: Leg,
    /// Size of the volume, in bytes.
    pub size: u64,
    /// Region size, in bytes.
    pub region_size: u64,
    /// Event count of the record.
    pub event_count: u64,
    /// UUID and state of every leg; beyond the last, all are vacant.
    pub legs: LegMap<(Uuid, LegState)>,
    /// By leg: the leg whose place it takes once it is in sync.
    pub replaces: Replaces,
    /// The volume was stopped with a clean log.
    pub clean: bool,
    /// The log lost a mark.
    pub log_failed: bool,
    /// Where the record comes from.
    pub lineage: Lineage,
}

/// By leg: the leg whose place it takes once it is in sync.
pub type Replaces = [Option<Leg>; MAX_LEGS];

impl LegRecord {
    /// What the record says of a leg.
    pub fn state_of(&self, leg: Leg) -> LegState {
        self.legs.get(leg).map_or(LegState::Vacant, |&(_, state)| state)
    }

    /// Whether it names the leg that the other record is on.
    fn names(&self, other: &LegRecord) -> bool {
        let named = self.legs.get(other.index).filter(|&&(_, state)| state != LegState::Vacant);
        named.is_some_and(|&(leg, _)| leg == other.leg)
    }
}

/// What the user allows.
#[derive(Clone, Copy, Default, Debug)]
pub struct AssembleOptions {
    /// Start without a leg that was in use.
    pub degraded: bool,
    /// Take this leg's data, whatever the others say.
    pub source: Option<Leg>,
    /// The log is not durable (core): after an unclean stop every region is dirty.
    pub log_is_core: bool,
    /// The log is on the legs (internal), so each leg's own log tells what it wrote.
    pub log_on_legs: bool,
}

/// Why the legs make no volume. Numbers in the variants are positions in the list that was given.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AssembleError {
    /// No leg.
    #[error("no leg was given")]
    NoLeg,
    /// They belong to different volumes.
    #[error("legs of different volumes")]
    OtherVolume {
        /// A leg of one volume.
        one: usize,
        /// A leg of another.
        other: usize,
    },
    /// One leg, or a copy of it, is there twice.
    #[error("the same leg, or a copy of it, was given twice")]
    SameLeg {
        /// It.
        one: usize,
        /// It again.
        other: usize,
    },
    /// The newest record knows no such leg.
    #[error("no longer a leg of this volume")]
    Stranger {
        /// Which.
        at: usize,
    },
    /// Region sizes differ.
    #[error("the legs disagree on the volume's region size")]
    Mismatch {
        /// A leg.
        one: usize,
        /// One that says otherwise.
        other: usize,
    },
    /// Each went on without the other.
    #[error("split brain: each of two legs went on without the other")]
    SplitBrain {
        /// A leg.
        one: usize,
        /// The other.
        other: usize,
    },
    /// Legs that were in use are missing.
    #[error("legs that were in use are missing")]
    Missing {
        /// Which.
        legs: LegSet,
    },
    /// No leg that is there was in sync.
    #[error("no leg that is there was in sync")]
    NoSource {
        /// Legs that were.
        in_sync: LegSet,
    },
    /// The leg named as source is a spare.
    #[error("the leg named as source is a spare: it holds nothing of the volume")]
    SourceIsSpare,
    /// The leg named as source is not there.
    #[error("the leg named as source was not given")]
    SourceMissing,
}

/// What the legs amount to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Assembly {
    /// Where each leg of the volume stands in the list that was given.
    pub at: LegMap<Option<usize>>,
    /// The leg whose data is the volume's.
    pub source: Leg,
    /// Size of the volume, in bytes: what the deciding record says.
    pub size: u64,
    /// How much of it every record that was found covers, in bytes: no log vouches for what is behind.
    pub covered: u64,
    /// The highest event count found.
    pub event_count: u64,
    /// Legs whose logs, united, tell which regions are dirty.
    pub trusted: LegSet,
    /// The log cannot be trusted: every region is dirty.
    pub all_dirty: bool,
    /// Legs that were failed and are back.
    pub returned: LegSet,
    /// By leg: the leg whose place it takes once it is in sync.
    pub replaces: Replaces,
    states: LegMap<LegState>,
    lineage: Lineage,
}

impl Assembly {
    /// What the records of a session that starts from this say of where they come from. `session`: its id,
    /// not 0 and unlike any other of the volume.
    pub fn lineage(&self, session: u64) -> Lineage {
        Lineage { session, ..self.lineage.clone() }
    }

    /// Regions of a volume of these sizes that some log does not cover: dirty, whatever the others say.
    pub fn uncovered(&self, geometry: Geometry) -> impl Iterator<Item = Region> + use<> {
        let first =
            if self.covered < self.size { geometry.region_at(self.covered).0 } else { geometry.regions() };
        (first..geometry.regions()).map(Region)
    }

    /// The states to start with, given whether any region is dirty.
    pub fn states(&self, any_dirty: bool) -> LegMap<LegState> {
        LegMap::from_fn(self.states.len(), |leg| match self.states[leg] {
            LegState::InSync if any_dirty && leg != self.source => LegState::Syncing,
            state => state,
        })
    }
}

/// Decides what `found` amounts to.
///
/// # Errors
/// See [`AssembleError`].
pub fn assemble(found: &[LegRecord], options: AssembleOptions) -> Result<Assembly, AssembleError> {
    check_same_volume(found)?;
    let newest = match options.source {
        Some(source) => found.iter().position(|r| r.index == source).ok_or(AssembleError::SourceMissing)?,
        None => deciding(found).map_err(|error| stranger(found).unwrap_or(error))?,
    };
    let authority = &found[newest];
    for (at, record) in found.iter().enumerate() {
        if !authority.names(record) {
            return Err(AssembleError::Stranger { at });
        }
    }
    let at = LegMap::from_fn(authority.legs.len(), |leg| found.iter().position(|r| r.index == leg));
    let recorded = |leg: Leg| authority.legs[leg].1;
    let in_use = |leg: Leg| recorded(leg).is_in_use();

    let missing: LegSet = at.legs().filter(|&leg| at[leg].is_none() && in_use(leg)).collect();
    if !missing.is_empty() && !options.degraded {
        return Err(AssembleError::Missing { legs: missing });
    }
    let in_sync: LegSet = at.legs().filter(|&leg| recorded(leg) == LegState::InSync).collect();
    let source = match options.source {
        Some(source) if !recorded(source).is_copy() => return Err(AssembleError::SourceIsSpare),
        Some(source) => source,
        None => {
            let present = in_sync.iter().find(|&leg| at[leg].is_some());
            present.ok_or(AssembleError::NoSource { in_sync })?
        }
    };
    let mut returned = LegSet::EMPTY;
    let states = LegMap::from_fn(at.len(), |leg| {
        if leg == source {
            return LegState::InSync;
        }
        match (recorded(leg), at[leg]) {
            (LegState::Failed(FailReason::Admin), _) => LegState::Failed(FailReason::Admin),
            (out @ (LegState::Tracked | LegState::Spare | LegState::Vacant), _) => out,
            (LegState::Failed(reason), None) => LegState::Failed(reason),
            (_, None) => LegState::Failed(FailReason::Missing),
            (LegState::Failed(_), Some(_)) => {
                returned.insert(leg);
                LegState::Syncing
            }
            // A source named by hand makes every other leg one to be resynced.
            (LegState::InSync, Some(_)) if options.source.is_none() => LegState::InSync,
            (LegState::InSync | LegState::Syncing, Some(_)) => LegState::Syncing,
        }
    });
    let present: LegSet = at.legs().filter(|&leg| at[leg].is_some()).collect();
    let forced = options.source.is_some();
    let copies: LegSet = present.iter().filter(|&leg| recorded(leg).is_copy()).collect();
    let trusted = if forced { copies } else { present.iter().filter(|&leg| in_use(leg)).collect() };
    let unclean_core = options.log_is_core && trusted.iter().any(|l| !found[at[l].unwrap_or(newest)].clean);
    let all_dirty =
        found.iter().any(|record| record.log_failed) || unclean_core || (forced && !options.log_on_legs);
    let event_count = found.iter().map(|record| record.event_count).max().unwrap_or(0);
    let lineage = Lineage::after(found, newest);
    // One that is back is not to be replaced.
    let replaces = authority.replaces.map(|replaced| replaced.filter(|&leg| !returned.contains(leg)));
    let size = authority.size;
    let copies = found.iter().filter(|record| authority.state_of(record.index).is_copy());
    let covered = copies.map(|record| record.size).fold(size, u64::min);
    Ok(Assembly {
        at,
        source,
        size,
        covered,
        event_count,
        trusted,
        all_dirty,
        returned,
        replaces,
        states,
        lineage,
    })
}

/// The record that all others are behind.
fn deciding(found: &[LegRecord]) -> Result<usize, AssembleError> {
    let mut newest_first: Vec<usize> = (0..found.len()).collect();
    newest_first.sort_by_key(|&at| (std::cmp::Reverse(found[at].event_count), found[at].index));
    let behind_which = |one: &LegRecord| found.iter().map(|other| is_behind(one, other, found)).collect();
    let mut behind: Vec<Vec<bool>> = found.iter().map(behind_which).collect();
    // What is behind one that is behind another is behind that.
    for between in 0..found.len() {
        for one in 0..found.len() {
            for other in 0..found.len() {
                behind[one][other] |= behind[one][between] && behind[between][other];
            }
        }
    }
    let beside = |at: usize| (0..found.len()).find(|&one| !behind[one][at]);
    if let Some(&at) = newest_first.iter().find(|&&at| beside(at).is_none()) {
        return Ok(at);
    }
    let newest = *newest_first.first().ok_or(AssembleError::NoLeg)?;
    let other = beside(newest).unwrap_or(newest);
    Err(AssembleError::SplitBrain { one: newest.min(other), other: newest.max(other) })
}

/// A record that the one with the most events does not name: its leg was removed, and that explains it.
fn stranger(found: &[LegRecord]) -> Option<AssembleError> {
    let newest = found.iter().max_by_key(|record| record.event_count)?;
    found.iter().position(|record| !newest.names(record)).map(|at| AssembleError::Stranger { at })
}

fn check_same_volume(found: &[LegRecord]) -> Result<(), AssembleError> {
    for other in 1..found.len() {
        for one in 0..other {
            let (a, b) = (&found[one], &found[other]);
            if a.volume != b.volume {
                return Err(AssembleError::OtherVolume { one, other });
            }
            if a.leg == b.leg {
                return Err(AssembleError::SameLeg { one, other });
            }
            if a.region_size != b.region_size {
                return Err(AssembleError::Mismatch { one, other });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
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
            log_failed: false,
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
        assert_eq!(a.states(false), LegMap::from(vec![InSync, InSync]));
        assert_eq!(a.states(true), LegMap::from(vec![InSync, Syncing]));
    }

    #[test]
    fn the_newest_wins_against_the_many() {
        let old = [InSync, InSync, InSync];
        let found = [record(0, 5, &old), record(1, 5, &old), record(2, 6, &[OUT, OUT, InSync])];
        let a = assemble(&found, internal()).unwrap();
        assert_eq!(a.source, leg(2));
        assert_eq!(a.trusted, LegSet::one(leg(2)), "the others' logs are old");
        assert_eq!(a.states(true), LegMap::from(vec![Syncing, Syncing, InSync]));
        assert_eq!(a.returned, LegSet::first(2));
    }

    #[test]
    fn a_record_cut_short_counts_the_leg_it_did_not_reach() {
        let found = [record(0, 6, &[InSync, InSync, OUT]), record(1, 5, &[InSync, InSync, InSync])];
        let a = assemble(&found, internal()).unwrap();
        assert_eq!(a.trusted, LegSet::first(2));
        assert_eq!(a.states(false), LegMap::from(vec![InSync, InSync, OUT]));
    }

    #[test]
    fn split_brain_is_refused_and_a_named_source_settles_it() {
        for b_events in [6, 9] {
            let found =
                [later(2, &[(1, 5)], 0, 6, &[InSync, OUT]), later(3, &[(1, 5)], 1, b_events, &[OUT, InSync])];
            assert_eq!(assemble(&found, internal()), Err(SPLIT));
            let named = AssembleOptions { source: Some(leg(0)), ..internal() };
            let a = assemble(&found, named).unwrap();
            assert_eq!(a.source, leg(0));
            assert_eq!(a.trusted, LegSet::first(2), "both wrote: both logs count");
            assert_eq!(a.event_count, b_events);
            assert_eq!(a.states(true), LegMap::from(vec![InSync, Syncing]));
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
            (
                "leg 1 failed and is taken back, which it does not know",
                returning(),
                record(1, 4, &both),
                Some(0),
            ),
            ("and was started alone then", returning(), alone(5), None),
            ("with as many events", returning(), alone(6), None),
            ("with more", returning(), alone(7), None),
            (
                "and taken back before it went on",
                returning(),
                later(3, &[(1, 6)], 1, 7, &[OUT, InSync]),
                Some(1),
            ),
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
            (
                "no lineage: leg 0 went on",
                old(record(0, 6, &[InSync, OUT])),
                old(record(1, 7, &both)),
                Some(0),
            ),
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
        assert_eq!(a.states(true), LegMap::from(vec![InSync, LegState::Failed(FailReason::Missing)]));
        // Known to be out: nothing new is lost by starting without it.
        assert!(assemble(&[record(0, 3, &[InSync, OUT])], internal()).is_ok());
    }

    #[test]
    fn a_leg_that_was_not_in_sync_is_no_source() {
        let degraded = AssembleOptions { degraded: true, ..internal() };
        let found = [record(1, 3, &[InSync, Syncing])];
        let none = AssembleError::NoSource { in_sync: LegSet::one(leg(0)) };
        assert_eq!(assemble(&found, degraded), Err(none));
        let named = AssembleOptions { source: Some(leg(1)), ..degraded };
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
        assert_eq!(assemble(&found, internal()).unwrap().states(false), LegMap::from(vec![InSync; 3]));
        // One whose adding never was recorded, and one that was removed and whose index is free.
        let found = [record(0, 9, &[InSync, InSync]), record(2, 8, &[InSync, InSync, OUT])];
        assert_eq!(assemble(&found, internal()), Err(AssembleError::Stranger { at: 1 }));
        let found = [record(0, 9, &[InSync, Vacant, InSync]), record(1, 8, &[InSync, InSync, InSync])];
        let degraded = AssembleOptions { degraded: true, ..internal() };
        assert_eq!(assemble(&found, degraded), Err(AssembleError::Stranger { at: 1 }));
        // One that was removed sessions ago: nobody knows its record any more.
        let found = [later(9, &[], 0, 9, &[InSync, Vacant]), record(1, 8, &[InSync, InSync])];
        assert_eq!(assemble(&found, degraded), Err(AssembleError::Stranger { at: 1 }));
        let found = [later(9, &[], 0, 9, &[InSync, OUT]), later(8, &[], 1, 8, &[Vacant, InSync])];
        assert_eq!(assemble(&found, degraded), Err(SPLIT));
        // A spare stays one, there or not, and its log says nothing, even if a source is named.
        for (found, source) in [
            (vec![record(0, 9, &[InSync, Spare])], None),
            (vec![record(0, 9, &[InSync, Spare]), record(1, 4, &[InSync, Spare])], None),
            (vec![record(0, 9, &[InSync, Spare]), record(1, 4, &[InSync, Spare])], Some(leg(0))),
        ] {
            let a = assemble(&found, AssembleOptions { source, ..internal() }).unwrap();
            assert_eq!(a.states(true), LegMap::from(vec![InSync, Spare]));
            assert_eq!(a.trusted, LegSet::one(leg(0)));
        }
        let spare = AssembleOptions { source: Some(leg(1)), ..internal() };
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
        assert!(assemble(&found, core).unwrap().all_dirty);
    }
}
