//! What a leg that is out, or copied to, costs the others at a crash: no more than what was written to lately.
//!
//! That too little is stale on a leg, the survey finds ([`crate::survey`]): legs differ where they are not to be copied to.
//! Here it is checked that not too much is.

use mirrord_raid::{Assembly, Leg, LegSet, LegState, Op, Record, Region, WorkerEvent};

use crate::coverage::Saw;
use crate::daemon::Phase;
use crate::disk::Disk;
use crate::sim::{Recovery, Sim, trace};

/// Regions of the volume, as bits.
#[derive(Default)]
pub(crate) struct Recents {
    /// In which legs that were in sync may differ: those of requests since the last start, those in which something was to be
    /// repaired, what was recent then, and what was when records began to tell.
    written: u64,
    /// What was recent when the volume was started that is not served yet.
    at_start: u64,
    /// The newest complete record says what is recent.
    is_told: bool,
}

impl Sim {
    /// Something is about to write there, or may be.
    pub(crate) fn is_written(&mut self, sectors: &std::ops::Range<usize>) {
        let region = |sector: usize| self.config.region_of(sector);
        if !sectors.is_empty() {
            let (first, last) = (region(sectors.start), region(sectors.end - 1));
            (first..=last).for_each(|region| self.recents.written |= 1 << region);
        }
    }

    /// The volume is started: of legs that the record tells of nothing is to be copied that was not written to.
    pub(crate) fn check_stale(&mut self, assembly: &Assembly, dirty: &[Region]) {
        let legs = &self.live().mirror.legs;
        let syncing = legs.states().syncing().intersect(assembly.bounded);
        let is_told = assembly.recent().is_some();
        // Ahead of writers regions are marked that nobody wrote to.
        let may_be =
            if self.mark_ahead > 0 { u64::MAX } else { self.recents.written | self.told_by_others(assembly) };
        for leg in syncing.iter().filter(|_| is_told) {
            let stale = dirty.iter().filter(|&&region| legs.is_stale(leg, region));
            let stale = stale.fold(0u64, |all, region| all | 1 << region.0);
            assert!(
                stale & !may_be == 0,
                "recent: {leg:?} was in sync and is stale in {stale:#x}, only {may_be:#x} was written: {assembly:?}"
            );
        }
        let recent = dirty.iter().filter(|&&region| assembly.is_recent(region));
        self.recents.is_told = false;
        self.recents.at_start = recent.fold(0, |all, region| all | 1 << region.0);
        self.recents.written |= self.recents.at_start;
        self.saw.saw_if(Saw::RecentStart, is_told && dirty.iter().any(|&region| !assembly.is_recent(region)));
        self.saw.saw_if(Saw::RecentStale, is_told && !syncing.is_empty());
    }

    /// What is recent by records that are newer than the one that decides, and never counted: it may come from earlier.
    fn told_by_others(&self, assembly: &Assembly) -> u64 {
        let records = self.records(self.attached);
        let Some(authority) = records.get(assembly.authority) else { return 0 };
        let newer = records.iter().filter(|record| record.event_count > authority.event_count);
        let told = newer.filter_map(|record| record.recent.as_ref());
        let set = |region: &u32| told.clone().any(|recent| recent.contains(Region(*region)));
        (0..self.geometry.regions()).filter(set).fold(0, |all, region| all | 1 << region)
    }

    /// The volume is served from now on.
    pub(crate) fn recents_are_settled(&mut self) {
        self.recents.written = self.recents.at_start;
    }

    /// A record is begun. Until one that tells is complete, all that is dirty is recent, also what was marked for a copy: no
    /// group is unset before. If it never is, because a leg does not take it, a start may go by one that was begun.
    pub(crate) fn record_begins(&mut self, record: &Record) {
        if let (false, Some(recent)) = (self.recents.is_told, &record.recent) {
            let set = (0..self.geometry.regions()).filter(|&region| recent.contains(Region(region)));
            self.recents.written |= set.fold(0, |all, region| all | 1 << region);
        }
    }

    /// A record is complete: while a leg is out it tells of two that are in sync.
    pub(crate) fn check_record(&mut self, record: &Record) {
        let of = |is: fn(&LegState) -> bool| -> LegSet {
            record.states.iter().filter(|&(_, state)| is(state)).map(|(leg, _)| leg).collect()
        };
        let in_sync = of(|&state| state == LegState::InSync);
        let out = of(|&state| matches!(state, LegState::Failed(_) | LegState::Tracked));
        let was_told = std::mem::replace(&mut self.recents.is_told, record.recent.is_some());
        self.saw.saw_if(Saw::RecentRecord, !was_told && self.recents.is_told);
        if in_sync.len() > 1 && !out.is_empty() {
            assert!(
                record.recent.is_some(),
                "recent: {out:?} is out, nothing is told of {in_sync:?}: {record:?}"
            );
        }
    }

    /// A leg is out for long, regions are written to, and some time later one more, and a crash comes: the others are stale
    /// in that one at the most. Nothing else goes wrong.
    pub(crate) fn leave_a_leg_out(&mut self) {
        self.until("the volume is served", |sim| sim.live().phase == Phase::Serving);
        self.disks.iter_mut().for_each(Disk::heal);
        self.d().phase = Phase::Draining;
        let in_sync = self.live().mirror.legs.states().in_sync();
        if in_sync.len() < 3 || in_sync != self.live().mirror.legs.states().all() {
            return;
        }
        let leg =
            in_sync.iter().nth(self.rng.below(in_sync.len() as u64) as usize).expect("it is one of them");
        trace!(self, "=== {leg:?} is left out");
        self.by_hand = LegSet::one(leg);
        self.worker_event(WorkerEvent::Fail { leg });
        self.by_hand = LegSet::EMPTY;
        for region in 0..self.geometry.regions() {
            self.write_to(region);
        }
        let left = in_sync.minus(LegSet::one(leg));
        let witness = left.lowest().expect("two are left");
        self.until("what was written is not recent any more", |sim| {
            let recent = &sim.durable[witness.index()].recent;
            recent.as_ref().is_some_and(|recent| recent.legs == left && recent.count() == 0)
        });
        let last = self.rng.below(u64::from(self.geometry.regions())) as u32;
        self.write_to(last);
        let how = if self.rng.coin() { Recovery::Power } else { Recovery::Process };
        self.crash(how);
        self.boot();
        self.until("the volume is served", |sim| sim.live().phase == Phase::Serving);
        self.saw.saw(Saw::LeftOutForLong);
        let legs = &self.live().mirror.legs;
        let is_stale = |leg: Leg, region: u32| {
            legs.states().of(leg) != LegState::InSync && legs.is_stale(leg, Region(region))
        };
        for leg in left.iter() {
            assert!(legs.states().in_use().contains(leg), "recent: {leg:?} is {:?}", legs.states().of(leg));
            let stale = (0..self.geometry.regions()).find(|&region| region != last && is_stale(leg, region));
            assert!(
                stale.is_none(),
                "recent: {leg:?} is stale in {stale:?}, {last} was the last one written to"
            );
        }
    }

    fn write_to(&mut self, region: u32) {
        let sectors = self.region(region);
        self.send(0, 0, Op::Write, sectors);
        self.until("requests end", |sim| sim.live().in_flight == 0);
    }
}
