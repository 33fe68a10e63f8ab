//! Where legs in sync may differ, if less is known to be dirty for their sake than the log has.
//!
//! While a leg is out, split off or copied to, regions stay dirty in the log because that leg is stale there. The log
//! alone would make all of them stale after a crash, on each leg but the source. So each record then says which legs are equal
//! to each other everywhere but in some groups of regions: those that were written to lately. A group has 1 region in
//! a volume of up to 8192 regions, and 512 in one of 4,194,304.
//!
//! A group is as good as a mark in the log (`worker/recent.rs`):
//!
//! - It is set before the data: a write goes out only when every record that may decide a later start has its group. That
//!   is the newest complete record, and each one that was begun since.
//! - It is unset after the flush: when no write is in flight in the group, every leg of which the record tells was flushed since
//!   the last one, and two records that were begun after it are complete ([`crate::held`]): an older image of a leg either
//!   differs in groups that are set, or is told.
//! - A record tells of a leg that was copied to only after the leg held another record that was begun after the copy, so
//!   that an image from before is told, too.
//!
//! A start goes by the record that decides and by each newer one that is there: a group counts if any of them has
//! it, a leg only if all of them tell of it. A newer record was never complete as far as is known, but if a leg is an older
//! image of itself, it was, and data was written under it. A record that says nothing tells of no leg: every
//! dirty region counts. That is so also if no leg but the source is in sync, or if every leg is, so that the log says
//! the same: then no write waits for a record.
//!
//! All of this is in the superblocks, so it holds for each kind of log, also for one that was lost or is in memory: every
//! region is dirty then, and what the record tells of is copied in the recent groups only.

use std::fmt;

use crate::geometry::Region;
use crate::types::LegSet;

/// Groups that a record has room for.
pub const RECENT_GROUPS: usize = 8192;

const WORDS: usize = RECENT_GROUPS / 64;

/// See the module's documentation.
#[derive(Clone, PartialEq, Eq)]
pub struct Recent {
    /// The legs that are equal to each other in all other groups.
    pub legs: LegSet,
    /// Binary logarithm of the number of regions in a group.
    pub shift: u8,
    groups: Box<[u64; WORDS]>,
}

impl Recent {
    /// No group is set yet.
    pub fn new(legs: LegSet, shift: u8) -> Recent {
        Recent { legs, shift, groups: Box::new([0; WORDS]) }
    }

    /// As it is recorded: a bit for each group, the lowest first.
    pub fn from_recorded(legs: LegSet, shift: u8, groups: [u64; WORDS]) -> Recent {
        Recent { legs, shift, groups: Box::new(groups) }
    }

    /// As [`Recent::from_recorded`] takes it.
    pub fn recorded(&self) -> &[u64; WORDS] {
        &self.groups
    }

    /// The smallest groups with which a volume of so many regions gets along.
    pub const fn shift_for(regions: u32) -> u8 {
        let groups = regions.div_ceil(RECENT_GROUPS as u32);
        groups.next_power_of_two().trailing_zeros() as u8
    }

    /// Whether the group of this region is set; so is what lies behind the last group.
    pub fn contains(&self, region: Region) -> bool {
        self.has(region.index() >> self.shift)
    }

    fn has(&self, group: usize) -> bool {
        self.groups.get(group / 64).is_none_or(|word| word & 1 << (group % 64) != 0)
    }

    /// Sets the group of this region.
    pub fn insert(&mut self, region: Region) {
        self.insert_group(region.index() >> self.shift);
    }

    pub(crate) fn insert_group(&mut self, group: usize) {
        if let Some(word) = self.groups.get_mut(group / 64) {
            *word |= 1 << (group % 64);
        }
    }

    /// How many groups are set.
    pub fn count(&self) -> u32 {
        self.groups.iter().map(|word| word.count_ones()).sum()
    }

    /// Groups that either has, and legs that both tell of. `None` if their groups differ in size.
    pub(crate) fn united(mut self, other: &Recent) -> Option<Recent> {
        self.legs = self.legs.intersect(other.legs);
        self.groups.iter_mut().zip(other.groups.iter()).for_each(|(word, other)| *word |= other);
        (self.shift == other.shift).then_some(self)
    }

    /// Groups that both have. If their groups differ in size: in larger ones, those that are set as a whole.
    pub(crate) fn common(&self, other: &Recent) -> Recent {
        let mut common = Recent::new(self.legs.intersect(other.legs), self.shift.max(other.shift));
        let all = |recent: &Recent, group: usize| {
            let finer = common.shift - recent.shift;
            (group << finer..(group + 1) << finer).all(|group| recent.has(group))
        };
        let groups: Vec<usize> =
            (0..RECENT_GROUPS).filter(|&group| all(self, group) && all(other, group)).collect();
        groups.into_iter().for_each(|group| common.insert_group(group));
        common
    }
}

impl fmt::Debug for Recent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let groups: Vec<usize> = (0..RECENT_GROUPS).filter(|&group| self.has(group)).collect();
        write!(f, "{:?} equal but in groups {groups:?} of 2^{} regions", self.legs, self.shift)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn recent(shift: u8, groups: &[usize]) -> Recent {
        let mut recent = Recent::new(LegSet::first(2), shift);
        groups.iter().for_each(|&group| recent.insert_group(group));
        recent
    }

    #[test]
    fn groups_are_as_small_as_there_is_room_for() {
        for (regions, shift) in [(1, 0), (8192, 0), (8193, 1), (16384, 1), (16385, 2), (1 << 22, 9)] {
            assert_eq!(Recent::shift_for(regions), shift, "{regions} regions");
            assert!(((regions - 1) >> shift) < RECENT_GROUPS as u32);
        }
    }

    #[test]
    fn a_region_counts_with_its_group_and_behind_the_last_one() {
        let recent = recent(2, &[1]);
        let contained: Vec<u32> = (0..12).filter(|&region| recent.contains(Region(region))).collect();
        assert_eq!(contained, [4, 5, 6, 7]);
        assert!(!recent.contains(Region((RECENT_GROUPS << 2) as u32 - 1)));
        assert!(recent.contains(Region((RECENT_GROUPS << 2) as u32)));
        assert_eq!(recent.count(), 1);
    }

    #[test]
    fn what_any_has_counts_and_what_all_have_is_told() {
        let (one, other) = (recent(0, &[1, 2, 70]), recent(0, &[2, 3]));
        assert_eq!(one.clone().united(&other), Some(recent(0, &[1, 2, 3, 70])));
        assert_eq!(one.common(&other), recent(0, &[2]));
        let other = Recent { legs: LegSet::from_bits(0b110), ..other };
        assert_eq!(one.clone().united(&other).unwrap().legs, LegSet::from_bits(0b10));
        assert_eq!(one.united(&recent(1, &[1])), None, "groups of another size");
        // Two small groups make a large one, and it is set behind the last small one.
        let last = RECENT_GROUPS / 2..RECENT_GROUPS;
        let all: Vec<usize> = [2].into_iter().chain(last).collect();
        assert_eq!(
            recent(0, &[1, 4, 5]).common(&recent(1, &(0..RECENT_GROUPS).collect::<Vec<_>>())),
            recent(1, &all)
        );
    }
}
