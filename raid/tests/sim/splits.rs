//! Legs split off: the volume as it was at one moment, durable, and left alone until it is merged; and of what is
//! merged no more is stale than was written to since.

use mirrord_raid::{Leg, LegState};

use crate::config::SECTOR;
use crate::coverage::Saw;
use crate::disk::ZERO;
use crate::sim::Sim;

/// What was split off.
pub(crate) struct Split {
    /// Its sectors.
    stamps: Vec<u64>,
    /// Regions that were written to since, as bits.
    changed: u64,
}

impl Sim {
    /// The leg is tracked from now on.
    pub(crate) fn split_off(&mut self, leg: Leg) {
        self.saw.saw(Saw::Split);
        self.d().given_back.remove(leg);
        let disk = &self.disks[leg.index()];
        let lost = disk.first_unflushed(0..self.sectors());
        assert!(lost.is_none(), "split: sector {lost:?} of {leg:?} is not flushed");
        let stamps: Vec<u64> = (0..self.sectors()).map(|sector| disk.read(sector)).collect();
        for other in self.live().mirror.legs.states().in_sync().iter() {
            let other_disk = &self.disks[other.index()];
            let is_good = |s: usize| !disk.is_bad(s) && !other_disk.is_bad(s);
            let differs = (0..self.sectors()).find(|&s| is_good(s) && other_disk.read(s) != stamps[s]);
            assert!(differs.is_none(), "split: {leg:?} and {other:?} differ in sector {differs:?}");
        }
        // Requests that wait for the end of the split, whole or the rest of them.
        let waiting = self.live().clients.iter().flatten().flatten();
        let changed = waiting
            .filter(|client| !client.changes.is_empty())
            .fold(0, |all, client| all | self.regions_of(&(client.first..client.first + client.count)));
        self.splits[leg.index()] = Some(Split { stamps, changed });
    }

    /// Regions with one of these sectors, as bits.
    fn regions_of(&self, sectors: &std::ops::Range<usize>) -> u64 {
        let region = |sector: usize| self.geometry.region_at(sector as u64 * SECTOR).0;
        sectors.clone().fold(0, |all, sector| all | 1 << region(sector))
    }

    /// A write begins.
    pub(crate) fn changes_since_splits(&mut self, sectors: &std::ops::Range<usize>) {
        let regions = self.regions_of(sectors);
        self.splits.iter_mut().flatten().for_each(|split| split.changed |= regions);
    }

    /// Somebody writes to a leg that is split off, behind the daemon's back.
    pub(crate) fn scribble(&mut self, leg: Leg) {
        for _ in 0..self.rng.between(1, 4) {
            let sector = self.rng.below(self.sectors() as u64) as usize;
            self.disks[leg.index()].format(sector, ZERO - 2);
        }
        self.scribbled.insert(leg);
        self.splits[leg.index()] = None;
    }

    /// The leg is given back.
    pub(crate) fn merge(&mut self, leg: Leg) {
        self.saw.saw(Saw::Merge);
        self.check_split(leg);
        let split = self.splits[leg.index()].take();
        if self.full.contains(leg) {
            return self.full.remove(leg);
        }
        let Some(split) = split else { return };
        let mirror = &self.live().mirror;
        for region in (0..self.geometry.regions()).map(mirrord_raid::Region) {
            // Where another leg is copied to, it looks like a write under way.
            let may = split.changed & 1 << region.0 != 0 || mirror.regions.writes(region) > 0;
            let stale = mirror.legs.is_stale(leg, region);
            assert!(may || !stale, "split: {region:?} is copied to {leg:?}, and is as it was");
        }
    }

    /// What was split off is as it was.
    pub(crate) fn check_split(&self, leg: Leg) {
        let Some(split) = &self.splits[leg.index()] else { return };
        let disk = &self.disks[leg.index()];
        let changed = (0..split.stamps.len()).find(|&s| !disk.is_bad(s) && disk.read(s) != split.stamps[s]);
        assert!(changed.is_none(), "split: sector {changed:?} of {leg:?} was changed");
    }

    /// The volume is started with legs in these states.
    pub(crate) fn check_splits(&mut self, states: &mirrord_raid::LegMap<LegState>) {
        for (leg, &state) in states.iter() {
            if state == LegState::Tracked {
                self.saw.saw_if(Saw::SplitSurvived, self.splits[leg.index()].is_some());
                self.check_split(leg);
                // More is stale than was changed: the log knows one moment of a split.
                if let Some(split) = &mut self.splits[leg.index()] {
                    split.changed = u64::MAX;
                }
            } else {
                self.splits[leg.index()] = None;
            }
        }
    }
}
