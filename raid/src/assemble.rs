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
//! | a leg that the deciding record does not name | refuse, unless it may be left out: it was removed, or never came to be one |
//! | no record that all others are behind | split brain: refuse, unless a source is named |
//! | a leg in use by the deciding record is missing, or by one that a leg has instead of it | refuse, unless degraded is allowed |
//! | a leg holds less than the deciding record says that it held ([`crate::Held`]) | it is an older image of itself, which is not believed |
//! | a leg is on another file than it was, made before its record was written, and a leg in sync is not | it is a copy whose beginning may be older than its end, which is not believed either |
//! | a record is behind only because it was never complete, and the deciding one has its leg out | the leg is not believed: if the proof is on an older image, that record was complete |
//! | no present leg that is believed was in sync in the deciding record | refuse, unless a source is named |
//! | a source is named | that leg |
//! | otherwise | of the legs that were in sync and are believed the one with the highest event count, then with the newest log, then the lowest |
//!
//! Which regions are dirty is the union of the logs of [`Assembly::trusted`]. A leg that the newest
//! record has as failed is back: it is syncing, stale in the dirty regions. Its own log counts, too, and that of a leg that is
//! split off: the leg that went on without it may be an older image of itself, whose log lacks what both were written to. If any region is dirty,
//! every leg but the source is syncing until it is resynced, so that reads do not depend on the leg; unless the
//! deciding record says that the legs in sync are equal: then only legs that were not in sync are stale there. Of legs that
//! it says are equal to each other but in regions written to lately ([`crate::Recent`]), only those count.
//! A spare is a spare, whether it is there or not.
//!
//! A leg that is not believed is copied whole ([`Assembly::copy_whole`]), and so is every leg but the source if one is
//! named: what the others hold, and what their logs say, is of another history. Legs that are not there then are not believed
//! when they come. The whole log is dirty before such a leg is used, so a copy that is cut short goes on.
//!
//! A log that lost a mark is not trusted, and every region is dirty, unless the volume was stopped with all regions clean:
//! in memory, where the log was whole. A region is clean there only when every leg was in use, was equal, and
//! was flushed since the last write to it, and nothing was written after the record that says so, so the legs
//! are equal whatever the log says ([`Assembly::log_lost`]). Records are looked at one by one: a leg that was not
//! there at that stop was out, hence nothing written since was cleared; and one that has the record of it and not what
//! came later was equal then, so the log that began anew has all that it lacks.
//!
//! Records differ in size if the volume was being resized. The deciding one's counts; what a leg's log did not cover
//! ([`Assembly::covered`]) is dirty.

use crate::geometry::{Geometry, Region};
use crate::held::Held;
use crate::lineage::{Lineage, is_behind, is_part_of, may_be_apart};
use crate::recent::Recent;
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
    /// The volume was stopped in good order: the legs in sync are equal, whatever the log says.
    pub equal: bool,
    /// The log lost a mark.
    pub log_failed: bool,
    /// Where the record comes from.
    pub lineage: Lineage,
    /// What each leg held when it was begun.
    pub held: Held,
    /// Where legs may differ that are equal elsewhere, if that is less than what is dirty.
    pub recent: Option<Recent>,
    /// The newest generation of the log on this leg; 0 if it is elsewhere.
    pub log_generation: u64,
    /// This leg is on another file than the one that was served, which was made before this record was written: if it was
    /// copied, what was read first may be older than the record.
    pub other_file: bool,
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
    /// Take the data of the leg at this position in the list that is given, whatever the others say.
    pub source: Option<usize>,
    /// The log is not durable (core): after an unclean stop every region is dirty.
    pub log_is_core: bool,
    /// The log is on the legs (internal), so each leg's own log tells what it wrote.
    pub log_on_legs: bool,
    /// Leave out legs that are none of the volume's any more; what they say of others counts all the same.
    pub leave_out: bool,
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
    /// The only legs that were in sync are older images of themselves.
    #[error("an older copy of itself, and no other leg that was in sync is there")]
    OnlyOlder {
        /// One of them.
        at: usize,
    },
    /// The leg named as source is a spare.
    #[error("the leg named as source is a spare: it holds nothing of the volume")]
    SourceIsSpare,
}

/// What the legs amount to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Assembly {
    /// Where each leg of the volume stands in the list that was given.
    pub at: LegMap<Option<usize>>,
    /// Where the record that decided stands in the list that was given: what it says of the volume counts.
    pub authority: usize,
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
    /// The log in its place, if it has one of its own, is not the volume's newest: it is to begin anew, before the start
    /// is recorded, with every region dirty if `all_dirty`, clean otherwise.
    pub log_lost: bool,
    /// The session that the deciding record is of; 0 if unknown.
    pub session: u64,
    /// Every region is dirty if nothing is known of the log: no stop with every region clean was recorded on each copy, or
    /// the source was named by hand.
    pub dirty_without_log: bool,
    /// Legs that were failed and are back.
    pub returned: LegSet,
    /// Legs that are there and older images of themselves, in part at least.
    pub older: LegSet,
    /// Legs that are there and not believed: these, and legs that were out whose record is no part of the deciding one's
    /// history.
    pub disbelieved: LegSet,
    /// Legs in use whose content counts for nothing: all of each is to be copied. All regions have to be dirty in the log
    /// before the start is recorded.
    pub copy_whole: LegSet,
    /// What the first record of the session is to say that the legs hold.
    pub held: Held,
    /// Legs in use that are stale in no region but dirty ones, and of these only in recent ones.
    pub bounded: LegSet,
    /// Dirty regions in which these may be stale; `None`: all.
    recent: Option<Recent>,
    /// Where legs that were left out stand in the list that was given.
    pub strangers: Vec<usize>,
    /// By leg: the leg whose place it takes once it is in sync.
    pub replaces: Replaces,
    states: LegMap<LegState>,
    lineage: Lineage,
    /// The legs in sync are equal, also where regions are dirty.
    equal: bool,
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

    /// Whether a dirty region may differ on the leg from what the source has; unless the leg is to be copied whole.
    pub fn may_be_stale(&self, leg: Leg, region: Region) -> bool {
        !self.bounded.contains(leg) || self.is_recent(region)
    }

    /// Whether the legs that are [`Assembly::bounded`] may differ in a dirty region.
    pub fn is_recent(&self, region: Region) -> bool {
        self.recent.as_ref().is_none_or(|recent| recent.contains(region))
    }

    /// What the record that decides, and newer ones, tell of recent regions.
    pub fn recent(&self) -> Option<&Recent> {
        self.recent.as_ref()
    }

    /// The states to start with, given the regions that are dirty not only because of [`Assembly::copy_whole`].
    pub fn states(&self, dirty: &[Region]) -> LegMap<LegState> {
        let may_differ = |leg| !self.equal && dirty.iter().any(|&region| self.may_be_stale(leg, region));
        LegMap::from_fn(self.states.len(), |leg| match self.states[leg] {
            LegState::InSync if leg != self.source && may_differ(leg) => LegState::Syncing,
            state => state,
        })
    }
}

/// Where the record that decides stands among those `found`: the one that all others are behind, or the `source`'s if one
/// is named.
///
/// # Errors
/// See [`AssembleError`]: they are of two volumes, or none decides.
pub fn authority(found: &[LegRecord], source: Option<usize>) -> Result<usize, AssembleError> {
    check_same_volume(found)?;
    match source {
        Some(source) => Ok(source),
        None => deciding(found).map_err(|error| stranger(found).unwrap_or(error)),
    }
}

/// Decides what `found` amounts to.
///
/// # Errors
/// See [`AssembleError`].
pub fn assemble(found: &[LegRecord], options: AssembleOptions) -> Result<Assembly, AssembleError> {
    let newest = authority(found, options.source)?;
    let authority = &found[newest];
    let strangers: Vec<usize> = (0..found.len()).filter(|&at| !authority.names(&found[at])).collect();
    if let (Some(&at), false) = (strangers.first(), options.leave_out) {
        return Err(AssembleError::Stranger { at });
    }
    let is_it = |leg: Leg| move |record: &LegRecord| record.index == leg && authority.names(record);
    let at = LegMap::from_fn(authority.legs.len(), |leg| found.iter().position(is_it(leg)));
    let recorded = |leg: Leg| authority.legs[leg].1;
    let in_use = |leg: Leg| recorded(leg).is_in_use();

    let missing: LegSet = at.legs().filter(|&leg| at[leg].is_none() && in_use(leg)).collect();
    let missing = missing.union(perhaps_in_use(found, authority));
    if !missing.is_empty() && !options.degraded {
        return Err(AssembleError::Missing { legs: missing });
    }
    let in_sync: LegSet = at.legs().filter(|&leg| recorded(leg) == LegState::InSync).collect();
    let there = |leg: Leg| at[leg].map(|at| &found[at]);
    let is_older = |leg: &Leg| there(*leg).is_some_and(|record| authority.held.is_older(record));
    let may_tell = || at.legs().filter(|&leg| recorded(leg).is_copy());
    let mut older: LegSet = may_tell().filter(is_older).collect();
    let is_own = |leg: Leg| there(leg).is_some_and(|record| !record.other_file);
    if in_sync.minus(older).iter().any(is_own) {
        older = older.union(may_tell().filter(|&leg| at[leg].is_some() && !is_own(leg)).collect());
    }
    let forced = options.source.is_some();
    if forced {
        // Who names it believes it, whatever was recorded when another was named.
        older.remove(authority.index);
    }
    let is_apart = |leg: &Leg| {
        !forced && !in_use(*leg) && there(*leg).is_some_and(|record| !is_part_of(record, authority))
    };
    let disbelieved = older.union(may_tell().filter(is_apart).collect());
    let source = match options.source {
        Some(_) if !recorded(authority.index).is_copy() => return Err(AssembleError::SourceIsSpare),
        Some(_) => authority.index,
        None => {
            let newness = |leg: &Leg| {
                let record = there(*leg)?;
                Some((record.event_count, record.log_generation, std::cmp::Reverse(*leg)))
            };
            let believed = in_sync.minus(disbelieved).iter().filter(|&leg| at[leg].is_some());
            let only_older = in_sync.intersect(older).iter().find_map(|leg| at[leg]);
            let refused =
                only_older.map_or(AssembleError::NoSource { in_sync }, |at| AssembleError::OnlyOlder { at });
            believed.max_by_key(newness).ok_or(refused)?
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
            (LegState::InSync, Some(_)) if !forced && !disbelieved.contains(leg) => LegState::InSync,
            (LegState::InSync | LegState::Syncing, Some(_)) => LegState::Syncing,
        }
    });
    let present: LegSet = at.legs().filter(|&leg| at[leg].is_some()).collect();
    let present = present.minus(disbelieved);
    let copies: LegSet = present.iter().filter(|&leg| recorded(leg).is_copy()).collect();
    let is_trusted = |leg: &Leg| states[*leg].is_in_use() || !forced && recorded(*leg) == LegState::Tracked;
    let trusted: LegSet = present.iter().filter(is_trusted).collect();
    // Others were out when the log was last written.
    let mut wrote = trusted.iter().filter(|&leg| forced || in_use(leg));
    let unclean_core = options.log_is_core && wrote.any(|l| !found[at[l].unwrap_or(newest)].clean);
    // What others say that are no copies is from when they were made or removed, or was never complete.
    let is_copy = |r: &LegRecord| authority.names(r) && copies.contains(r.index);
    let lost_mark = found.iter().any(|record| record.log_failed && !record.clean && is_copy(record));
    let all_dirty = lost_mark || unclean_core || forced;
    let is_unclean = found.iter().any(|record| !record.clean && is_copy(record));
    let dirty_without_log = all_dirty || is_unclean;
    let untold = |leg: Leg| leg != source && (forced || disbelieved.contains(leg));
    let copy_whole = states.iter().filter(|&(leg, state)| state.is_in_use() && untold(leg));
    let copy_whole = copy_whole.map(|(leg, _)| leg).collect();
    let mut held = Held::default();
    for (leg, state) in states.iter().filter(|(_, state)| state.is_copy()) {
        match there(leg) {
            _ if forced && leg != source => held.never_believe(leg),
            // The driver makes it durable before the first record.
            Some(record) if state.is_in_use() && !older.contains(leg) => held.set(leg, record.event_count),
            // From this start on the lineage lists the leg's session as past: nothing else tells any more that the leg is
            // of another history.
            Some(_) if disbelieved.contains(leg) && !older.contains(leg) => held.never_believe(leg),
            // The same of a leg that is away and may be of that history, too.
            None if !in_use(leg) && found.iter().any(|other| may_be_apart(leg, other, authority)) => {
                held.never_believe(leg);
            }
            _ => held.set(leg, authority.held.of(leg)),
        }
    }
    let recent = recent(found, authority).filter(|recent| recent.legs.contains(source) && !forced);
    let is_told = |leg: Leg| recent.as_ref().is_some_and(|recent| recent.legs.contains(leg));
    // Without a record that tells more, a leg that was in sync is stale where the log is dirty, and nowhere else.
    let is_bounded = |leg: Leg| match (&recent, recorded(leg)) {
        (None, state) => state == LegState::InSync,
        (Some(_), _) => is_told(leg),
    };
    let bounded = states.iter().filter(|&(leg, state)| {
        let may_be = !forced && !older.contains(leg) && !returned.contains(leg);
        state.is_in_use() && (leg == source || may_be && is_bounded(leg))
    });
    let bounded = bounded.map(|(leg, _)| leg).collect();
    // Who was behind when the log began anew does not tell of that one.
    let log_lost = all_dirty || authority.log_failed;
    let event_count = found.iter().map(|record| record.event_count).max().unwrap_or(0);
    let lineage = Lineage::after(found, newest, forced);
    // One that is back is not to be replaced.
    let replaces = authority.replaces.map(|replaced| replaced.filter(|&leg| !returned.contains(leg)));
    let size = authority.size;
    let covered =
        found.iter().filter(|record| is_copy(record)).map(|record| record.size).fold(size, u64::min);
    Ok(Assembly {
        at,
        authority: newest,
        source,
        size,
        covered,
        event_count,
        trusted,
        all_dirty,
        log_lost,
        session: authority.lineage.session,
        dirty_without_log,
        returned,
        older,
        disbelieved,
        copy_whole,
        held,
        bounded,
        recent,
        strangers,
        replaces,
        states,
        lineage,
        equal: authority.equal && !forced,
    })
}

/// What is told of recent regions by the deciding record and by those that are newer. One that is was never complete, as
/// far as is known; but if a leg is an older image of itself, it was.
fn recent(found: &[LegRecord], authority: &LegRecord) -> Option<Recent> {
    let is_newer =
        |record: &&LegRecord| record.event_count > authority.event_count && authority.names(record);
    let mut newer = found.iter().filter(is_newer);
    newer.try_fold(authority.recent.clone()?, |all, record| all.united(record.recent.as_ref()?))
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

/// Legs out by the deciding record that are not there, and in use by the record that another leg has instead. Where a
/// leg in sync lacks it, the deciding record was not complete, perhaps, and they may have gone on. (One that is syncing
/// may have been out for long.)
fn perhaps_in_use(found: &[LegRecord], authority: &LegRecord) -> LegSet {
    let is_deciding = |record: &LegRecord| {
        (record.lineage.session, record.event_count) == (authority.lineage.session, authority.event_count)
    };
    let lacks_it = |record: &&LegRecord| {
        authority.names(record)
            && authority.state_of(record.index) == LegState::InSync
            && !is_deciding(record)
    };
    let in_use = |record: &LegRecord| -> LegSet {
        LegSet::first(MAX_LEGS).iter().filter(|&leg| record.state_of(leg).is_in_use()).collect()
    };
    let then = found.iter().filter(lacks_it).fold(LegSet::EMPTY, |all, record| all.union(in_use(record)));
    let there: LegSet = found.iter().map(|record| record.index).collect();
    then.minus(in_use(authority)).minus(there)
}

/// A record that the newest does not name, which it has in use: its leg was removed, and that explains the refusal if the
/// others agree. (A leg that is new is of an event before all others: older ones do not tell of it.)
fn stranger(found: &[LegRecord]) -> Option<AssembleError> {
    let newest = found.iter().max_by_key(|record| record.event_count)?;
    let was_removed = |record: &&LegRecord| {
        record.event_count < newest.event_count
            && record.names(newest)
            && record.state_of(newest.index).is_in_use()
            && !newest.names(record)
    };
    let (removed, rest): (Vec<_>, Vec<_>) = found.iter().cloned().partition(|record| was_removed(&record));
    let removed = removed.first()?;
    let at = found.iter().position(|record| record == removed)?;
    deciding(&rest).is_ok().then_some(AssembleError::Stranger { at })
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
mod tests;
