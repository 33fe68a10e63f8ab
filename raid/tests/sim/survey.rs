//! After a crash: what any set of legs that assembly accepts would amount to, not only the one that
//! is started (invariants 3, 9 and 10).

use mirrord_raid::{AssembleError, Assembly, Leg, LegRecord, LegSet, assemble};

use crate::blocks;
use crate::boot::{DEGRADED, PLAIN};
use crate::sim::{Recovery, Sim};

impl Sim {
    /// Whether the volume may hold `stamp` now.
    fn is_legal(&self, sector: usize, stamp: u64) -> bool {
        match self.recovery {
            Recovery::Process => self.history.survives_kill(sector, stamp, self.now),
            Recovery::Power => self.history.survives_power_cut(sector, stamp),
        }
    }

    /// A sector in which the leg holds what the volume may not, if any.
    fn illegal_sector(&self, leg: Leg) -> Option<usize> {
        let disk = &self.disks[leg.index()];
        (0..self.config.sectors).find(|&sector| !self.is_legal(sector, disk.read(sector)))
    }

    /// Regions in which two legs differ.
    fn differences(&self, one: Leg, other: Leg) -> u64 {
        let [one, other] = [one, other].map(|leg| &self.disks[leg.index()]);
        let differs =
            |region: u32| self.config.region(region).any(|sector| one.read(sector) != other.read(sector));
        (0..self.config.regions).filter(|&region| differs(region)).fold(0, |all, region| all | 1 << region)
    }

    /// What the log on the leg says is dirty; all, if it says nothing.
    fn logged(&self, leg: Leg) -> u64 {
        self.blocks.dirty(self.disks[leg.index()].read(blocks::log(self.config.sectors)))
    }

    /// What assembly takes: the source holds nothing illegal, legs differ in dirty regions only.
    pub(crate) fn check_source(&self, assembly: &Assembly) {
        if let Some(sector) = self.illegal_sector(assembly.source) {
            let stamp = self.disks[assembly.source.index()].read(sector);
            panic!("invariant 3: after a crash sector {sector} holds {stamp:#x}: {assembly:?}");
        }
        let dirty = assembly.trusted.iter().fold(0, |all, leg| all | self.logged(leg));
        for (leg, at) in assembly.at.iter() {
            if at.is_some() && !assembly.all_dirty {
                let hidden = self.differences(assembly.source, leg) & !dirty;
                assert!(hidden == 0, "invariant 10: {leg:?} differs in {hidden:#x}, not dirty: {assembly:?}");
            }
        }
    }

    /// Tries every set of legs.
    pub(crate) fn survey(&self) {
        let records: Vec<LegRecord> = self.all_legs().iter().map(|leg| self.record_of(leg)).collect();
        let illegal: Vec<Option<usize>> =
            self.all_legs().iter().map(|leg| self.illegal_sector(leg)).collect();
        for bits in 1..1u8 << self.config.legs {
            let legs = LegSet::from_bits(bits);
            let found: Vec<LegRecord> = legs.iter().map(|leg| records[leg.index()].clone()).collect();
            // Legs that were all left behind are the operator's own risk.
            let may_miss = !legs.intersect(self.current).is_empty();
            for options in [PLAIN, DEGRADED].into_iter().take(1 + usize::from(may_miss)) {
                match assemble(&found, options) {
                    Ok(assembly) => {
                        if let Some(sector) = illegal[assembly.source.index()] {
                            panic!("invariant 3: {legs:?} would bring back sector {sector}: {assembly:?}");
                        }
                        self.check_source(&assembly);
                    }
                    Err(AssembleError::Missing { .. } | AssembleError::NoSource { .. }) => {
                        assert!(legs != self.all_legs(), "invariant 9: all legs are there and refused");
                    }
                    // Without the leg that carried on from one to the other, two records may look as if
                    // each had gone on without the other.
                    Err(error) => {
                        let ambiguous = self.is_ambiguous() || legs != self.all_legs();
                        assert!(ambiguous, "invariant 9: {legs:?} refused: {error}");
                    }
                }
            }
        }
    }

    /// Whether the superblocks may be refused though no leg went on without another.
    pub(crate) fn is_ambiguous(&self) -> bool {
        self.forked || self.failures >= 3
    }

    /// The volume is served, from this leg: nothing takes back what it holds.
    pub(crate) fn recovered(&mut self, source: Leg) {
        let (disk, now) = (&self.disks[source.index()], self.now);
        match self.recovery {
            Recovery::Power => self.history.adopt(|sector| disk.read(sector)),
            Recovery::Process => {
                for sector in self.history.open() {
                    let stamp = disk.read(sector as usize);
                    if let Err(illegal) = self.history.found_after_kill(sector as usize, stamp, now) {
                        panic!("invariant 6: sector {sector} was recovered as {stamp:#x}: {illegal}");
                    }
                }
            }
        }
        self.recovery = Recovery::Process;
    }
}
