//! After a crash: what any set of legs that assembly accepts would amount to, not only the one that
//! is started (invariants 3, 9 and 10).

use std::sync::Arc;

use mirrord_raid::{
    AssembleError, Assembly, Geometry, Leg, LegRecord, LegSet, LegState, LogWorker, Mirror, Record, Region,
    WorkerAction, WorkerEvent, assemble,
};

use crate::blocks;
use crate::boot::dirty;
use crate::coverage::Saw;
use crate::sim::{Recovery, Sim};

/// As bits.
fn regions(bits: u64) -> impl Iterator<Item = Region> {
    (0..64).filter(move |region| bits & 1 << region != 0).map(Region)
}

impl Sim {
    /// Whether the volume may hold `stamp` now.
    pub(crate) fn is_legal(&self, sector: usize, stamp: u64) -> bool {
        if self.is_foreign(sector, stamp) || self.images.may_hold(sector, stamp) {
            return true;
        }
        match self.recovery {
            Recovery::Process => self.history.survives_kill(sector, stamp, self.now),
            Recovery::Power => self.history.survives_power_cut(sector, stamp),
        }
    }

    /// A sector in which the leg holds what the volume may not, if any.
    fn illegal_sector(&self, leg: Leg) -> Option<usize> {
        let disk = &self.disks[leg.index()];
        (0..self.sectors()).find(|&sector| !self.is_legal(sector, disk.read(sector)))
    }

    /// Regions of a volume of so many sectors in which two legs differ.
    fn differences(&self, one: Leg, other: Leg, sectors: usize) -> u64 {
        let [one, other] = [one, other].map(|leg| &self.disks[leg.index()]);
        let sector_differs = |sector: usize| {
            sector < sectors && one.read(sector) != other.read(sector) && !self.is_planted(sector)
        };
        let differs = |region: u32| self.config.region(region).any(sector_differs);
        (0..self.config.regions).filter(|&region| differs(region)).fold(0, |all, region| all | 1 << region)
    }

    /// What the log on the leg says is dirty; all, if it says nothing.
    pub(crate) fn logged(&self, leg: Leg) -> u64 {
        self.blocks.dirty(self.disks[leg.index()].read(blocks::log(self.config.sectors)))
    }

    /// A leg that is not copied to as a whole when it is given back differs in dirty regions only.
    pub(crate) fn check_given_back(&self, leg: Leg) {
        let Some(source) = self.live().mirror.legs.states().in_sync().lowest() else { return };
        let hidden = self.differences(source, leg, self.sectors()) & !dirty(self.live().log.as_ref());
        assert!(
            hidden == 0,
            "invariant 10: {leg:?} is given back, differs in {hidden:#x} and is not copied to"
        );
    }

    /// What assembly takes: the source holds nothing illegal, legs differ in dirty regions only.
    /// `found`: what a log beside the legs said, if it was read.
    pub(crate) fn check_source(&self, assembly: &Assembly, found: Option<u64>) {
        if let Some(sector) = self.illegal_sector(assembly.source) {
            let stamp = self.disks[assembly.source.index()].read(sector);
            panic!("invariant 3: after a crash sector {sector} holds {stamp:#x}: {assembly:?}");
        }
        let sectors = self.check_size(assembly);
        let on_legs = || match assembly.all_dirty {
            true => u64::MAX,
            false => assembly.trusted.iter().fold(0, |all, leg| all | self.logged(leg)),
        };
        let found = found.or_else(|| self.dirty_in_place(assembly)).filter(|_| !assembly.all_dirty);
        let dirty = found.unwrap_or_else(on_legs);
        let geometry = Geometry::new(assembly.size, self.config.region_size()).expect("it was recorded");
        let dirty = assembly.uncovered(geometry).fold(dirty, |all, region| all | 1 << region.0);
        for (leg, at) in assembly.at.iter() {
            // What is split off is looked at when it is merged.
            let state = assembly.states(&[])[leg];
            let is_split = state == LegState::Tracked;
            if at.is_some() && state.is_copy() && !(is_split && self.scribbled.contains(leg)) {
                let differs = self.differences(assembly.source, leg, sectors);
                let stale = regions(dirty).filter(|&region| assembly.may_be_stale(leg, region));
                let hidden = stale.fold(differs, |hidden, region| hidden & !(1 << region.0));
                let is_stale = assembly.copy_whole.union(assembly.disbelieved).contains(leg);
                assert!(
                    hidden == 0 || is_stale,
                    "invariant 10: {leg:?} differs in {hidden:#x}, not dirty or not recent: {assembly:?}"
                );
                let in_sync = assembly.states(&regions(dirty).collect::<Vec<_>>())[leg] == LegState::InSync;
                assert!(
                    differs == 0 || !in_sync,
                    "invariant 5: {leg:?} is to be in sync and differs in {differs:#x}: {assembly:?}"
                );
            }
        }
    }

    /// Tries every set of legs.
    pub(crate) fn survey(&mut self) {
        self.check_strangers();
        let members = self.members();
        let illegal: Vec<Option<usize>> =
            self.all_legs().iter().map(|leg| self.illegal_sector(leg)).collect();
        if !self.images.is_open() {
            self.survey_forks(members, &illegal);
        }
        for bits in 1..1u8 << self.config.legs {
            let legs = LegSet::from_bits(bits);
            // Nothing tells that one leg alone is an image of itself, or one beside legs that were left behind.
            let is_untold =
                !legs.intersect(self.images.in_place).is_empty() && legs.intersect(self.current).is_empty();
            if !legs.minus(members).is_empty() || is_untold {
                continue;
            }
            let found = self.records(legs);
            // Legs that were all left behind are the operator's own risk.
            let may_miss = !legs.intersect(self.current).is_empty();
            for options in [self.options(), self.degraded()].into_iter().take(1 + usize::from(may_miss)) {
                match assemble(&found, options) {
                    // Nothing on a leg that is started alone tells that another one was named as source.
                    Ok(assembly) if !may_miss && self.images.overruled.contains(assembly.source) => {}
                    Ok(assembly) => {
                        if let Some(sector) = illegal[assembly.source.index()] {
                            panic!("invariant 3: {legs:?} would bring back sector {sector}: {assembly:?}");
                        }
                        self.check_source(&assembly, None);
                    }
                    Err(
                        AssembleError::Missing { .. }
                        | AssembleError::NoSource { .. }
                        | AssembleError::OnlyOlder { .. },
                    ) => {
                        // The only leg that was in sync may be an image.
                        let may_be = legs != members || self.images.is_open();
                        assert!(may_be, "invariant 9: all legs are there and refused");
                    }
                    // A leg that is not there may be the proof that a record was never complete, or that was an image.
                    Err(error) => {
                        let proof_is_gone = self.roster.proof_is_gone || self.images.is_open();
                        assert!(legs != members || proof_is_gone, "invariant 9: {legs:?} refused: {error}");
                    }
                }
            }
        }
    }

    pub(crate) fn records(&self, legs: LegSet) -> Vec<LegRecord> {
        legs.iter().map(|leg| self.record_of(leg)).collect()
    }

    /// Legs that came and were not recorded, or went and were not wiped, are no legs: whoever starts the volume
    /// is told so.
    fn check_strangers(&mut self) {
        let found = self.records(self.members());
        let strangers = assemble(&found, self.degraded()).map_or(Vec::new(), |assembly| assembly.strangers);
        for at in strangers {
            self.leave_out(&found[at]);
        }
    }

    /// Only of legs that were coming or going may be said that they are none.
    pub(crate) fn leave_out(&mut self, record: &LegRecord) -> Leg {
        let leg = record.index;
        self.saw.saw(Saw::LeftOut);
        let legs: Vec<_> = self.members().iter().map(|leg| self.record_of(leg)).collect();
        assert!(
            self.roster.unsure.contains(leg) || self.roster.is_rewritten,
            "roster: {leg:?} is said to be no leg of the volume: {legs:#?}"
        );
        leg
    }

    /// What if a set of legs were started and written to, and then all legs? 9: nothing is dropped in
    /// silence, neither what was written then nor what the others have, and nothing is refused that
    /// nobody went on without.
    fn survey_forks(&self, all: LegSet, illegal: &[Option<usize>]) {
        let records = self.records(all);
        let starts: Vec<Option<Record>> = (0..1 << self.config.legs)
            .map(LegSet::from_bits)
            .map(|legs| legs.minus(all).is_empty().then(|| self.first_record(legs)).flatten())
            .collect();
        // Of a leg that was failed and not recorded so only reads told that it lacks something.
        let is_legal = |leg: Leg| illegal[leg.index()].is_none() || self.unrecorded.contains(leg);
        for (bits, record) in (0..).zip(&starts) {
            let (legs, Some(record)) = (LegSet::from_bits(bits), record) else { continue };
            let forked = legs.intersect(self.current).is_empty();
            let met = self.written(record, record.legs, records.clone());
            match self.meet(&met, record.legs) {
                Ok(Assembly { source, .. }) => {
                    let kept = legs.contains(source) && is_legal(source);
                    assert!(kept, "invariant 9: {legs:?} went on, {source:?} wins: {met:#?}");
                }
                Err(AssembleError::SplitBrain { .. }) if self.roster.proof_is_gone => {}
                // That is explained by a leg that was removed.
                Err(AssembleError::Stranger { at })
                    if self.roster.proof_is_gone && self.roster.unsure.contains(met[at].index) => {}
                Err(error) => assert!(forked, "invariant 9: {legs:?} went on, then: {error}: {met:#?}"),
            }
            // Killed before the record was complete: nothing was written to.
            for leg in record.legs.iter().filter(|_| record.legs.len() > 1) {
                let met = self.written(record, LegSet::one(leg), records.clone());
                let result = self.meet(&met, LegSet::EMPTY);
                let may_refuse = forked || self.roster.proof_is_gone;
                let fair = result.as_ref().map_or(may_refuse, |assembly| is_legal(assembly.source));
                assert!(fair, "invariant 9: {legs:?} began to go on, then: {result:?}: {met:#?}");
            }
            // The others go on as well.
            if let Some(apart) = &starts[usize::from(all.minus(legs).bits())] {
                let met = self.written(apart, apart.legs, met);
                let result = assemble(&met, self.options());
                assert!(
                    result.is_err(),
                    "invariant 9: {legs:?} and the others went on: {result:?}: {met:#?}"
                );
            }
        }
    }

    /// All legs are started together: those that were coming or going are left out, unless they `went_on`.
    fn meet(&self, met: &[LegRecord], went_on: LegSet) -> Result<Assembly, AssembleError> {
        let assembly = assemble(met, self.options())?;
        let wrong =
            |&&at: &&usize| went_on.contains(met[at].index) || !self.roster.unsure.contains(met[at].index);
        match assembly.strangers.iter().find(wrong).filter(|_| !self.roster.is_rewritten) {
            Some(&at) => Err(AssembleError::Stranger { at }),
            None => Ok(assembly),
        }
    }

    /// The records of all legs after this one reached some of them.
    fn written(&self, record: &Record, legs: LegSet, mut all: Vec<LegRecord>) -> Vec<LegRecord> {
        for leg in legs.iter() {
            let Some(found) = all.iter_mut().find(|found| found.index == leg) else { continue };
            found.size = record.size;
            found.event_count = record.event_count;
            found.lineage.clone_from(&record.lineage);
            found.held = record.held;
            found.recent.clone_from(&record.recent);
            found.clean = record.clean;
            found.equal = record.equal;
            found.log_failed = record.log_failed;
            found.replaces = record.replaces;
            for (leg, entry) in found.legs.iter_mut() {
                let named = self.roster.entry(leg, record.states[leg], None);
                *entry = (*named.uuid.as_bytes(), named.state);
            }
        }
        all
    }

    /// What is recorded if these legs alone are started, if they can be.
    fn first_record(&self, legs: LegSet) -> Option<Record> {
        let found = self.records(legs);
        let assembly = assemble(&found, self.degraded()).ok()?;
        let states = assembly.states(&[Region(0)]);
        let mirror = Arc::new(Mirror::new(self.geometry, &states, [], 0));
        let lineage = assembly.lineage(u64::MAX - u64::from(legs.bits()));
        let mut actions = Vec::new();
        LogWorker::new(mirror, states, assembly.event_count, lineage, self.place.is_none())
            .with_replaces(assembly.replaces)
            .with_held(assembly.held)
            .with_bounded(assembly.bounded)
            .handle(WorkerEvent::Start, &mut actions);
        actions.into_iter().find_map(|action| match action {
            WorkerAction::Record(record) => Some(*record),
            _ => None,
        })
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
