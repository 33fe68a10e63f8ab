//! Scrubs: at any moment, beside everything else, none may find a difference. At the end of some runs a few sectors
//! of some legs are changed behind the daemon's back, where nobody writes: a scrub has to find each of them and
//! nothing else, name the leg that is outvoted, and leave no difference if it repairs; also if the daemon dies
//! meanwhile, but then a leg that was wrong may have been the one to go by.

use mirrord_raid::{
    BackgroundEvent, Difference, Leg, LegSet, Op, SCRUB_TAGS, ScrubCommand, ScrubRepair, ScrubReport,
    differences,
};

use crate::config::SECTOR;
use crate::coverage::Saw;
use crate::daemon::Phase;
use crate::disk::{Disk, ZERO};
use crate::sim::{Recovery, Sim, trace};

/// What planted sectors hold.
const PLANTED: u64 = ZERO - 3;

/// A sector that was changed behind the daemon's back.
#[derive(Clone, Copy)]
pub(crate) struct Planted {
    leg: Leg,
    /// What the others hold.
    good: u64,
    found: bool,
}

impl Sim {
    /// Begins a scrub, or does something to the one under way.
    pub(crate) fn change_scrub(&mut self) {
        if !self.live().scrubbing {
            let repair = match self.rng.below(3) {
                0 => ScrubRepair::No,
                1 => ScrubRepair::FromMost,
                _ => ScrubRepair::From(Leg::new(self.rng.below(self.config.legs as u64) as usize)),
            };
            let sector = if self.rng.coin() { 0 } else { self.rng.below(self.sectors() as u64) };
            return self.start_scrub(sector * SECTOR, repair);
        }
        let command = match self.rng.below(4) {
            0 => ScrubCommand::Cancel,
            pause => ScrubCommand::Pause(pause == 1),
        };
        self.saw.saw_if(Saw::PausedScrub, command == ScrubCommand::Pause(true));
        self.background_event(BackgroundEvent::Scrub(command));
    }

    pub(crate) fn start_scrub(&mut self, from: u64, repair: ScrubRepair) {
        self.d().scrubbing = true;
        self.saw.saw(Saw::Scrub);
        self.background_event(BackgroundEvent::Scrub(ScrubCommand::Pause(false)));
        self.background_event(BackgroundEvent::Scrub(ScrubCommand::Start { from, repair }));
    }

    /// No window is compared any more when this returns.
    pub(crate) fn end_scrub(&mut self) {
        self.background_event(BackgroundEvent::Scrub(ScrubCommand::Cancel));
        self.until("the scrub ends", |sim| sim.live().background.scrub_is_idle());
    }

    /// As the driver does: what was read is in a buffer for each leg.
    pub(crate) fn compare(&mut self, legs: LegSet, offset: u64, len: u64) {
        let buffers = self.live().buffers.last().expect("the background worker has buffers");
        let stamp = |leg: Leg, sector: u64| buffers[SCRUB_TAGS as usize + leg.index()][sector as usize];
        let same = |one: Leg, other: Leg, sector: u64| stamp(one, sector) == stamp(other, sector);
        let found = differences(legs, offset, len, same);
        if !found.is_empty() {
            // It may be repaired.
            let first = (offset / SECTOR) as usize;
            self.is_written(&(first..first + (len / SECTOR) as usize));
        }
        self.background_event(BackgroundEvent::Compared(found));
    }

    /// As the driver does.
    pub(crate) fn patch(&mut self, from: Leg, to: Leg, at: u64, len: u64) {
        let buffers = self.d().buffers.last_mut().expect("the background worker has buffers");
        let [from, to] = [from, to].map(|leg| SCRUB_TAGS as usize + leg.index());
        let sectors = (at / SECTOR) as usize..((at + len) / SECTOR) as usize;
        let stamps = buffers[from][sectors.clone()].to_vec();
        buffers[to][sectors].copy_from_slice(&stamps);
    }

    pub(crate) fn scrub_report(&mut self, report: ScrubReport) {
        match report {
            ScrubReport::Differs { difference, legs, repaired } => self.differs(&difference, legs, repaired),
            ScrubReport::Ended { complete } => {
                self.d().scrubbing = false;
                self.saw.saw_if(Saw::CompleteScrub, complete);
            }
            ScrubReport::Unreadable { .. } => self.saw.saw(Saw::UnreadableInScrub),
            ScrubReport::Waits { wait } => self.saw.saw_if(Saw::WaitingScrub, wait.is_some()),
            ScrubReport::Reached { .. } => {}
        }
    }

    /// Legs differ, says the scrub: somebody must have seen to that.
    fn differs(&mut self, difference: &Difference, legs: LegSet, repaired: LegSet) {
        let outvoted = difference.groups.majority(legs).map(|most| legs.minus(most));
        let first = (difference.offset / SECTOR) as usize;
        for sector in first..first + (difference.len / SECTOR) as usize {
            let Some(planted) = self.planted.get_mut(sector).and_then(Option::as_mut) else {
                panic!("scrub: {legs:?} differ in sector {sector}: {difference:?}");
            };
            assert!(legs.contains(planted.leg), "scrub: sector {sector} differs between {legs:?}");
            if legs.len() > 2 {
                let leg = LegSet::one(planted.leg);
                assert_eq!(outvoted, Some(leg), "scrub: sector {sector}: the wrong leg is outvoted");
            }
            planted.found = true;
            self.saw.saw(Saw::FoundDifference);
            self.saw.saw_if(Saw::RepairedDifference, !repaired.is_empty());
        }
    }

    pub(crate) fn is_planted(&self, sector: usize) -> bool {
        self.planted.get(sector).is_some_and(Option::is_some)
    }

    /// Whether it is what somebody put there.
    pub(crate) fn is_foreign(&self, sector: usize, stamp: u64) -> bool {
        stamp == PLANTED && self.is_planted(sector)
    }

    /// The volume was started after a clean stop, and nothing else goes wrong.
    pub(crate) fn plant_and_scrub(&mut self) {
        self.until("the volume is served", |sim| sim.live().phase == Phase::Serving);
        self.disks.iter_mut().for_each(Disk::heal);
        self.d().phase = Phase::Draining;
        let legs = self.live().mirror.legs.states().in_sync();
        if legs.len() < 2 {
            return;
        }
        self.plant(legs);
        let repair = match self.rng.below(3) {
            0 => ScrubRepair::FromMost,
            1 => ScrubRepair::From(self.one_of(legs)),
            _ => ScrubRepair::No,
        };
        trace!(self, "=== scrub {repair:?}");
        self.start_scrub(0, repair);
        let crashes = self.rng.coin();
        if crashes {
            for _ in 0..self.rng.between(1, 300) {
                self.step_beside_scrub();
            }
            self.saw.saw_if(Saw::CrashInScrub, self.live().scrubbing);
            let how = if self.rng.coin() { Recovery::Power } else { Recovery::Process };
            self.crash(how);
            self.boot();
            self.until("the volume is served", |sim| sim.live().phase == Phase::Serving);
            self.d().phase = Phase::Draining;
            self.until_in_sync();
            self.start_scrub(0, repair);
        }
        self.until_scrubbed();
        if !crashes {
            let missed = self.planted.iter().position(|it| it.is_some_and(|it| !it.found));
            assert!(missed.is_none(), "scrub: nothing was said of sector {missed:?}");
        }
        if repair == ScrubRepair::No {
            self.start_scrub(0, ScrubRepair::FromMost);
            self.until_scrubbed();
        }
        self.check_repaired(legs, repair, crashes);
        self.until_in_sync();
        self.check_equal();
        self.start_scrub(0, ScrubRepair::No);
        self.until_scrubbed();
    }

    /// Changes some sectors on one leg each, in up to half of the regions.
    fn plant(&mut self, legs: LegSet) {
        self.planted = vec![None; self.sectors()];
        for region in (0..self.geometry.regions()).step_by(2) {
            let sectors = self.region(region);
            for _ in 0..self.rng.below(4) {
                let sector = self.rng.between(sectors.start as u64, sectors.end as u64 - 1) as usize;
                let leg = self.one_of(legs);
                if self.planted[sector].is_none() {
                    let disk = &mut self.disks[leg.index()];
                    self.planted[sector] = Some(Planted { leg, good: disk.read(sector), found: false });
                    disk.format(sector, PLANTED);
                    trace!(self, "{leg:?}: sector {sector} is changed");
                }
            }
        }
    }

    fn one_of(&mut self, legs: LegSet) -> Leg {
        let nth = self.rng.below(legs.len() as u64) as usize;
        legs.iter().nth(nth).expect("a leg is in sync")
    }

    /// Something happens, and users write where nothing was planted.
    fn step_beside_scrub(&mut self) {
        if self.live().in_flight == 0 && self.geometry.regions() > 1 && self.rng.chance(1, 4) {
            let region = self.rng.below(u64::from(self.geometry.regions()) / 2) as u32 * 2 + 1;
            let op = if self.rng.coin() { Op::Write } else { Op::Read };
            let sectors = self.region(region);
            self.send(0, 0, op, sectors);
        }
        self.step();
    }

    fn until_scrubbed(&mut self) {
        self.until("the scrub ends", |sim| {
            sim.step_beside_scrub();
            !sim.live().scrubbing
        });
    }

    fn until_in_sync(&mut self) {
        self.until("legs are in sync", |sim| {
            let states = sim.live().mirror.legs.states();
            let quiet = sim.live().in_flight == 0 && sim.live().pending.is_empty();
            quiet && states.in_sync() == states.in_use() && sim.live().mirror.regions.unclean() == 0
        });
    }

    /// What was planted is gone, or everywhere.
    fn check_repaired(&mut self, legs: LegSet, repair: ScrubRepair, crashed: bool) {
        let planted = std::mem::take(&mut self.planted);
        for (sector, planted) in planted.iter().enumerate() {
            let Some(planted) = planted else { continue };
            let from = match repair {
                ScrubRepair::From(leg) => Some(leg),
                // Without a majority, from the lowest.
                ScrubRepair::FromMost | ScrubRepair::No => legs.lowest().filter(|_| legs.len() == 2),
            };
            let wrong = from == Some(planted.leg);
            let want = if wrong { PLANTED } else { planted.good };
            for leg in legs.iter() {
                let holds = self.disks[leg.index()].read(sector);
                let is_good = holds == want || crashed && (holds == planted.good || holds == PLANTED);
                assert!(is_good, "scrub: {repair:?} left {holds:#x} in sector {sector} of {leg:?}");
            }
        }
    }
}
