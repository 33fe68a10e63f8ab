//! A volume that grows: what is asked of the daemon, and what has to be true of the size and of what is new.
//!
//! Metadata has its place behind the largest volume from the beginning: that it moves is looked at by the tests of
//! `mirrord-log`. What lies between the volume and that place is litter, other on each leg, until the driver
//! zeroes it, as the real one does before it asks for more.

use mirrord_raid::{Assembly, Geometry, WorkerEvent};

use crate::config::SECTOR;
use crate::coverage::Saw;
use crate::daemon::Phase;
use crate::disk::ZERO;
use crate::rng::Rng;
use crate::sim::{Sim, trace};

pub(crate) struct Growth {
    /// Of its own, so that what else a seed does is the same with and without.
    pub(crate) rng: Rng,
    /// Sizes that were asked for and may be on some leg, in bytes.
    asked: Vec<u64>,
}

impl Growth {
    pub(crate) fn new(seed: u64) -> Growth {
        Growth { rng: Rng::new(!seed), asked: Vec::new() }
    }
}

impl Sim {
    /// Fills what is not the volume yet.
    pub(crate) fn litter(&mut self) {
        for leg in self.all_legs().iter() {
            for sector in self.sectors()..self.config.sectors {
                self.disks[leg.index()].format(sector, ZERO - 10 - leg.index() as u64);
            }
        }
    }

    /// What the driver does to make the volume larger, if it may.
    pub(crate) fn ask_to_grow(&mut self) {
        let mirror = &self.live().mirror;
        let states = mirror.legs.states();
        let more = self.config.sectors - self.sectors();
        let all_well =
            states.in_sync() == self.all_legs() && states.all().iter().all(|leg| states.recorded(leg));
        // A log on a server does not grow: the volume is stopped for that.
        let may_grow = all_well && self.place.is_none();
        if !may_grow || more == 0 || mirror.growing_to().is_some() {
            return;
        }
        let more =
            if self.growth.rng.chance(1, 4) { more as u64 } else { self.growth.rng.between(1, more as u64) };
        for leg in self.all_legs().iter() {
            for sector in self.sectors()..self.config.sectors {
                self.disks[leg.index()].format_well(sector, ZERO);
            }
        }
        let size = self.geometry.size() + more * SECTOR;
        trace!(self, "=== grow to {size}");
        self.growth.asked.push(size);
        self.worker_event(WorkerEvent::Grow { size });
    }

    /// After an event of the log worker: the volume is larger only once every leg in use says so, and has the log.
    pub(crate) fn look_at_size(&mut self) {
        let mirror = &self.live().mirror;
        let size = mirror.geometry().size();
        if size == self.geometry.size() || self.live().phase < Phase::Serving {
            return;
        }
        assert!(self.growth.asked.contains(&size), "growth: to {size}, which nobody asked for");
        for leg in mirror.legs.states().in_use().iter() {
            let recorded = self.durable[leg.index()].size;
            assert_eq!(recorded, size, "growth: to {size}, {leg:?} says {recorded}");
            let disk = &self.disks[leg.index()];
            let full = (self.sectors()..(size / SECTOR) as usize)
                .find(|&s| disk.read(s) != ZERO || disk.stable(s) != ZERO);
            assert_eq!(full, None, "growth: {leg:?} has something in a sector that is new");
        }
        let new = mirror.geometry().regions() - 1;
        let regions = self.geometry.regions()..=new;
        let marked = regions.fold(0, |all, region| all | 1u64 << region) & self.live().ever_dirty;
        assert_eq!(marked, 0, "growth: a region that is new was marked before");
        self.saw.saw(Saw::Growth);
        self.size_is(size);
    }

    /// The volume has this size, for good.
    pub(crate) fn size_is(&mut self, size: u64) {
        trace!(self, "=== {size} bytes");
        self.growth.asked.retain(|&asked| asked > size);
        self.geometry = Geometry::new(size, self.config.region_size()).expect("it was asked for");
    }

    /// What assembly takes: the volume has the size that it had, or one that it was about to have, and what is new
    /// then is zero. Its sectors.
    pub(crate) fn check_size(&self, assembly: &Assembly) -> usize {
        let (size, known) = (assembly.size, self.geometry.size());
        let may = size == known || self.growth.asked.contains(&size);
        assert!(may, "growth: {known} bytes after a crash became {size}: {assembly:?}");
        let sectors = (size / SECTOR) as usize;
        let disk = &self.disks[assembly.source.index()];
        let full = (self.sectors()..sectors).find(|&sector| disk.read(sector) != ZERO);
        assert_eq!(full, None, "growth: something is in a sector that is new: {assembly:?}");
        sectors
    }

    /// The volume is started with this size, which is for good once it is served.
    pub(crate) fn size_found(&mut self, size: u64) {
        let sizes: Vec<u64> =
            self.all_legs().iter().map(|leg| self.read_superblock(leg, false).0.size).collect();
        self.saw.saw_if(Saw::GrowthFoundLater, size > self.geometry.size());
        self.saw.saw_if(Saw::GrowthCutShort, sizes.iter().any(|&other| other > size));
    }
}
