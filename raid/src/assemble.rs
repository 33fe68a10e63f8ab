//! Assembly: what a set of legs, found on disk, amounts to. A pure function.
//!
//! The record with the highest event count decides (newest wins, never a vote), but for records left
//! behind: one that counts a leg as in sync which itself, in sync, has the record's leg as failed. That
//! leg has all that was ever answered under the record and went on without it; such a record can have a
//! high event count all the same, when it reached its leg and no other before a crash. The rules, in
//! order:
//!
//! | found | then |
//! |---|---|
//! | legs of two volumes, the same leg twice, sizes that differ | refuse |
//! | the deciding record and another that is not left behind: each has the other's leg as failed, and no leg in sync vouches for both; or the same event count with different states | split brain: refuse, unless a source is named |
//! | a leg in use by the deciding record is missing | refuse, unless degraded is allowed |
//! | no present leg was in sync in the deciding record | refuse, unless a source is named |
//! | otherwise | the source is the lowest present leg that was in sync |
//!
//! Which regions are dirty is the union of the logs of [`Assembly::trusted`]. A leg that the newest
//! record has as failed is back: it is syncing, stale in the dirty regions. If any region is dirty,
//! every leg but the source is syncing until it is resynced, so that reads do not depend on the leg.

use crate::types::{FailReason, Leg, LegMap, LegSet, LegState};

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
    /// UUID and state of every leg.
    pub legs: LegMap<(Uuid, LegState)>,
    /// The volume was stopped with a clean log.
    pub clean: bool,
    /// The log lost a mark.
    pub log_failed: bool,
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
    /// Sizes or number of legs differ.
    #[error("the legs disagree on the volume's size, region size or number of legs")]
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
    /// The highest event count found.
    pub event_count: u64,
    /// Legs whose logs, united, tell which regions are dirty.
    pub trusted: LegSet,
    /// The log cannot be trusted: every region is dirty.
    pub all_dirty: bool,
    /// Legs that were failed and are back.
    pub returned: LegSet,
    states: LegMap<LegState>,
}

impl Assembly {
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
        None => {
            let newest =
                (0..found.len()).max_by_key(|&i| (!is_left_behind(found, &found[i]), found[i].event_count));
            let newest = newest.ok_or(AssembleError::NoLeg)?;
            check_split_brain(found, newest)?;
            newest
        }
    };
    let authority = &found[newest];
    for (at, record) in found.iter().enumerate() {
        if authority.legs[record.index].0 != record.leg {
            return Err(AssembleError::Stranger { at });
        }
    }
    let at = LegMap::from_fn(authority.legs.len(), |leg| found.iter().position(|r| r.index == leg));
    let left_behind: LegSet = match options.source {
        Some(_) => LegSet::EMPTY,
        None => {
            found.iter().filter(|record| is_left_behind(found, record)).map(|record| record.index).collect()
        }
    };
    let recorded = |leg: Leg| match authority.legs[leg].1 {
        LegState::InSync | LegState::Syncing if left_behind.contains(leg) => {
            LegState::Failed(FailReason::Missing)
        }
        state => state,
    };
    let in_use = |leg: Leg| is_in_use(recorded(leg));

    let missing: LegSet = at.legs().filter(|&leg| at[leg].is_none() && in_use(leg)).collect();
    if !missing.is_empty() && !options.degraded {
        return Err(AssembleError::Missing { legs: missing });
    }
    let in_sync: LegSet = at.legs().filter(|&leg| recorded(leg) == LegState::InSync).collect();
    let source = match options.source {
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
            (LegState::Tracked, _) => LegState::Tracked,
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
    let trusted = if forced { present } else { present.iter().filter(|&leg| in_use(leg)).collect() };
    let unclean_core = options.log_is_core && trusted.iter().any(|l| !found[at[l].unwrap_or(newest)].clean);
    let all_dirty =
        found.iter().any(|record| record.log_failed) || unclean_core || (forced && !options.log_on_legs);
    let event_count = found.iter().map(|record| record.event_count).max().unwrap_or(0);
    Ok(Assembly { at, source, event_count, trusted, all_dirty, returned, states })
}

fn check_same_volume(found: &[LegRecord]) -> Result<(), AssembleError> {
    for other in 1..found.len() {
        for one in 0..other {
            let (a, b) = (&found[one], &found[other]);
            if a.volume != b.volume {
                return Err(AssembleError::OtherVolume { one, other });
            }
            if a.leg == b.leg || a.index == b.index {
                return Err(AssembleError::SameLeg { one, other });
            }
            if (a.size, a.region_size, a.legs.len()) != (b.size, b.region_size, b.legs.len()) {
                return Err(AssembleError::Mismatch { one, other });
            }
        }
    }
    Ok(())
}

fn is_in_use(state: LegState) -> bool {
    matches!(state, LegState::InSync | LegState::Syncing)
}

fn is_out(record: &LegRecord, leg: Leg) -> bool {
    matches!(record.legs[leg].1, LegState::Failed(_))
}

/// Whether the record says so of its own leg.
fn is_in_sync(record: &LegRecord) -> bool {
    record.legs[record.index].1 == LegState::InSync
}

/// Whether a leg that the record never went on without, and that has what was written under it, went on
/// without the record's leg. A leg that was only syncing then has it if its own record is newer.
fn is_left_behind(found: &[LegRecord], record: &LegRecord) -> bool {
    found.iter().filter(|other| is_in_sync(other) && is_out(other, record.index)).any(|other| {
        match record.legs[other.index].1 {
            LegState::InSync => true,
            LegState::Syncing => other.event_count > record.event_count,
            LegState::Failed(_) | LegState::Tracked => false,
        }
    })
}

/// Refuses if the deciding record may leave out what another leg went on to write.
fn check_split_brain(found: &[LegRecord], newest: usize) -> Result<(), AssembleError> {
    let a = &found[newest];
    for (other, b) in found.iter().enumerate().filter(|&(other, _)| other != newest) {
        let vouches = |witness: &LegRecord| {
            let trusted_by = |record: &LegRecord| record.legs[witness.index].1 == LegState::InSync;
            let is_fair = !is_out(witness, a.index) && !is_out(witness, b.index);
            is_in_sync(witness) && is_fair && trusted_by(a) && trusted_by(b)
        };
        let each_without_the_other = is_out(a, b.index) && is_out(b, a.index) && !found.iter().any(vouches);
        let tie = a.event_count == b.event_count && a.legs != b.legs;
        if (each_without_the_other || tie) && !is_left_behind(found, b) {
            return Err(AssembleError::SplitBrain { one: newest.min(other), other: newest.max(other) });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use LegState::{InSync, Syncing};

    const OUT: LegState = LegState::Failed(FailReason::Io);

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
        }
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
            let found = [record(0, 6, &[InSync, OUT]), record(1, b_events, &[OUT, InSync])];
            let split = AssembleError::SplitBrain { one: 0, other: 1 };
            assert_eq!(assemble(&found, internal()), Err(split));
            let named = AssembleOptions { source: Some(leg(0)), ..internal() };
            let a = assemble(&found, named).unwrap();
            assert_eq!(a.source, leg(0));
            assert_eq!(a.trusted, LegSet::first(2), "both wrote: both logs count");
            assert_eq!(a.event_count, b_events);
            assert_eq!(a.states(true), LegMap::from(vec![InSync, Syncing]));
        }
    }

    #[test]
    fn older_records_that_leave_each_other_out_are_no_split_brain() {
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
        let found = [
            record(0, 5, &[InSync, Syncing, Syncing]),
            record(1, 6, &[InSync, Syncing, OUT]),
            record(2, 4, &[InSync, OUT, Syncing]),
        ];
        assert_eq!(assemble(&found, internal()).unwrap().source, leg(0));
    }

    #[test]
    fn a_leg_in_between_tells_a_succession_from_a_split_brain() {
        // Leg 2 failed while leg 1 was out, leg 1 came back by leg 0, leg 0 failed.
        let found = [
            record(2, 5, &[InSync, OUT, InSync]),
            record(1, 9, &[OUT, InSync, OUT]),
            record(0, 8, &[InSync, InSync, OUT]),
        ];
        assert_eq!(assemble(&found, internal()).unwrap().source, leg(1));
        let split = AssembleError::SplitBrain { one: 0, other: 1 };
        assert_eq!(assemble(&found[..2], internal()), Err(split));
    }

    #[test]
    fn the_same_event_count_with_different_states_is_a_tie() {
        let found = [record(0, 6, &[InSync, Syncing]), record(1, 6, &[Syncing, InSync])];
        assert_eq!(assemble(&found, internal()), Err(AssembleError::SplitBrain { one: 0, other: 1 }));
    }

    #[test]
    fn a_record_left_behind_neither_decides_nor_ties() {
        // It reached leg 1 alone, any number of times, before leg 0 was started without leg 1.
        for events in [6, 7, 60] {
            let found = [record(1, events, &[InSync, InSync]), record(0, 6, &[InSync, OUT])];
            let a = assemble(&found, internal()).unwrap();
            assert_eq!((a.source, a.trusted, a.returned), (leg(0), LegSet::one(leg(0)), LegSet::one(leg(1))));
            assert_eq!(a.event_count, events);
        }
        // The leg that went on without it is not there to say so, and the others cannot.
        let found =
            [record(2, 9, &[InSync, InSync, InSync, OUT]), record(3, 7, &[InSync, InSync, OUT, InSync])];
        let split = AssembleError::SplitBrain { one: 0, other: 1 };
        assert_eq!(assemble(&found, AssembleOptions { degraded: true, ..internal() }), Err(split));
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
