//! Which regions the next record says were written to lately ([`crate::recent`]), and which writes wait for it to say so.

use super::{FOR_COPIES, LogWorker};
use crate::geometry::Region;
use crate::mirror::Mirror;
use crate::ranges::Owner;
use crate::recent::{RECENT_GROUPS, Recent};
use crate::region::RegionState;
use crate::types::{Leg, LegSet, MAX_LEGS};

#[derive(Debug)]
pub(super) struct Recents {
    /// Binary logarithm of the number of regions in a group.
    shift: u8,
    /// Regions of each group that are dirty or cleaning.
    groups: Box<[u32; RECENT_GROUPS]>,
    /// Regions that are kept or renewing.
    kept: u32,
    /// Legs in use that are stale in regions which are dirty or cleaning, and nowhere else.
    bounded: LegSet,
    /// By leg: a record may tell of it once the leg has this record, or a later one.
    since: [u64; MAX_LEGS],
    /// Groups that each record has by which a later start may go; `None`: all.
    told: Option<Recent>,
    /// A write waits for a record.
    pub(super) wanted: bool,
    /// The group at which the next look for regions to keep begins.
    cursor: usize,
}

impl Recents {
    /// `bounded`: legs in use that are stale in no region but dirty ones.
    pub(super) fn new(mirror: &Mirror, bounded: LegSet) -> Recents {
        let mut recents = Recents {
            shift: Recent::shift_for(mirror.regions.len()),
            groups: Box::new([0; RECENT_GROUPS]),
            kept: 0,
            bounded,
            since: [0; MAX_LEGS],
            told: None,
            wanted: false,
            cursor: 0,
        };
        let mut unclean = Vec::new();
        let _ = mirror.regions.find_unclean(0, u32::MAX, &mut unclean);
        for region in unclean {
            recents.counts(region, RegionState::Clean, mirror.regions.state(region));
        }
        recents
    }

    fn group(&mut self, region: Region) -> &mut u32 {
        &mut self.groups[region.index() >> self.shift]
    }

    /// A region went from one state to another.
    fn counts(&mut self, region: Region, from: RegionState, to: RegionState) {
        let is_kept = |state| matches!(state, RegionState::Kept | RegionState::Renewing);
        *self.group(region) -= u32::from(from.is_recent());
        *self.group(region) += u32::from(to.is_recent());
        self.kept -= u32::from(is_kept(from));
        self.kept += u32::from(is_kept(to));
    }

    fn is_told(&self, region: Region) -> bool {
        self.told.as_ref().is_none_or(|told| told.contains(region))
    }
}

impl LogWorker {
    /// Legs in use that are equal to each other but in regions that are dirty or cleaning.
    fn bounded(&self) -> LegSet {
        self.recents.bounded.intersect(self.in_use())
    }

    /// Whether the log has, or soon will have, more than is dirty for several legs that are equal.
    pub(super) fn has_more_than_recent(&self) -> bool {
        let others = self.mirror.legs.states().all().minus(self.bounded());
        let is_needed = self.recents.kept > 0 || !self.returning_full.is_empty() || !others.is_empty();
        is_needed && self.bounded().len() > 1
    }

    /// What the record that is begun now says.
    pub(super) fn tell_recent(&mut self) -> Option<Recent> {
        self.recents.wanted = false;
        let recent = self.has_more_than_recent().then(|| self.recent());
        self.recents.told = match (self.recents.told.take(), &recent) {
            (Some(told), Some(recent)) => Some(told.common(recent)),
            (told, recent) => told.or_else(|| recent.clone()),
        };
        recent
    }

    fn recent(&self) -> Recent {
        let recents = &self.recents;
        let is_proven = |leg: &Leg| self.held.of(*leg) >= recents.since[leg.index()];
        let mut recent = Recent::new(self.bounded().iter().filter(is_proven).collect(), recents.shift);
        let set = recents.groups.iter().enumerate().filter(|&(_, &count)| count > 0);
        set.for_each(|(group, _)| recent.insert_group(group));
        // And those whose marks are under way: no write waits twice.
        let committing = self.committing.iter().flat_map(|commit| &commit.marks);
        let marks = self.marks.iter().chain(&self.marks_committed).chain(committing);
        marks.filter(|&&(_, from)| from != FOR_COPIES).for_each(|&(region, _)| recent.insert(region));
        recent
    }

    /// The record that says this is complete.
    pub(super) fn recent_is_told(&mut self, recent: Option<Recent>) {
        self.recents.told = recent;
    }

    /// A mark is durable in the log: a write may go out once the superblocks say so, too.
    pub(super) fn marked_in_log(&mut self, region: Region, from: Owner) {
        let region_is_told = self.recents.is_told(region);
        if from == FOR_COPIES && self.bounded().len() > 1 {
            // Somebody may have written there meanwhile.
            if self.mirror.regions.state(region) == RegionState::Marking {
                self.keep(region);
            }
        } else if region_is_told {
            let before = self.mirror.regions.marked(region);
            if before.is_recent() {
                return self.answer_mark(from, Ok(()));
            }
            self.recents.counts(region, before, RegionState::Dirty);
            self.answer_mark(from, Ok(()));
        } else {
            self.recents.wanted = true;
            self.marks_committed.push((region, from));
        }
    }

    /// A mark is asked for: if a record has to say so first, it may as well go out before the commit.
    pub(super) fn want_told(&mut self, region: Region) {
        self.recents.wanted |= !self.recents.is_told(region);
    }

    /// Regions of groups that are set, some of them: those that are dirty may be kept, perhaps.
    pub(super) fn find_recent(&mut self, most: u32, found: &mut Vec<Region>) {
        let (shift, regions) = (self.recents.shift, &self.mirror.regions);
        let mut looked = 0;
        for at in 0..RECENT_GROUPS {
            let group = (self.recents.cursor + at) % RECENT_GROUPS;
            if self.recents.groups[group] == 0 {
                continue;
            }
            if looked >= most {
                self.recents.cursor = group;
                return;
            }
            let first = (group as u32) << shift;
            let all = first..(first + (1 << shift)).min(regions.len());
            looked += all.len() as u32;
            found.extend(all.map(Region).filter(|&region| regions.state(region) == RegionState::Dirty));
        }
        self.recents.cursor = 0;
    }

    /// Whether legs that are equal here, once flushed, may be said to be so while another one is stale.
    pub(super) fn may_keep(&self, region: Region) -> bool {
        let bounded = self.bounded();
        bounded.len() > 1 && bounded.minus(self.mirror.legs.readable(region)).is_empty()
    }

    /// A region that was cleaning is kept, if nothing was written there meanwhile; one that was marking is for a copy.
    pub(super) fn keep(&mut self, region: Region) {
        let before = self.mirror.regions.keep(region);
        if matches!(before, RegionState::Cleaning | RegionState::Marking) {
            self.recents.counts(region, before, RegionState::Kept);
        }
    }

    /// A region that was cleaning, or kept, is clean, if nothing was written there meanwhile; whether it is.
    pub(super) fn finish_cleaning(&mut self, region: Region) -> bool {
        let before = self.mirror.regions.finish_cleaning(region);
        if let Some(before) = before {
            self.recents.counts(region, before, RegionState::Clean);
        }
        before.is_some()
    }

    /// A leg is to be copied to: what is dirty does not tell where it is stale.
    pub(super) fn is_copied_to(&mut self, leg: Leg) {
        self.recents.bounded.remove(leg);
    }

    /// A leg is in sync: records tell of it once it has one that is begun from now on.
    pub(super) fn is_copied(&mut self, leg: Leg) {
        self.recents.bounded.insert(leg);
        self.recents.since[leg.index()] = self.event_count + 1;
    }

    /// A leg is stale in a region.
    pub(super) fn is_stale_in(&mut self, leg: Leg, region: Region) {
        if !self.mirror.regions.state(region).is_recent() {
            self.recents.bounded.remove(leg);
        }
    }

    /// A look for what to clear comes to its end: the next record says what is not recent any more, or that the log is enough.
    pub(super) fn tell_what_fell(&mut self) {
        let is_late = match &self.recents.told {
            None => self.has_more_than_recent(),
            Some(told) => !self.has_more_than_recent() || told.count() > self.recent().count(),
        };
        self.beats.wanted |= is_late;
    }

    /// The volume has so many regions from now on.
    pub(super) fn grow_recents(&mut self, regions: u32) {
        let recents = &mut self.recents;
        let larger = Recent::shift_for(regions).saturating_sub(recents.shift);
        let mut groups = Box::new([0; RECENT_GROUPS]);
        recents.groups.iter().enumerate().for_each(|(group, count)| groups[group >> larger] += count);
        (recents.groups, recents.shift) = (groups, recents.shift + larger);
        recents.cursor = 0;
    }
}

#[cfg(test)]
mod tests;
