//! Metadata on its way to the legs and back: the log and the superblocks, in their real formats.
//!
//! One operation is under way at a time, as the log worker promises. On each leg its sectors land in
//! any order and are then flushed; each leg ends on its own.

use mirrord_log::{DirtyLog, Flush, InternalLog, LegEntry, LogPlace, SlotError, Superblock, SyncMode, pick};
use mirrord_raid::{Errno, Held, Leg, LegRecord, LegSet, LegState, Lineage, MAX_LEGS, Record, WorkerEvent};
use uuid::Uuid;

use crate::blocks::{self, PAGE_SECTORS};
use crate::coverage::Saw;
use crate::daemon::{Meta, MetaKind, MetaLeg, Pending, Phase};
use crate::disk::META_FILE;
use crate::faults::Kind;
use crate::sim::{Sim, trace};

/// Durable operations on the legs that a stop takes, at most: what was under way, the commit of the last clears, and a
/// record, which each leg that fails asks for anew.
const MOST_STOP_OPERATIONS: u32 = 30;

impl Sim {
    /// Writes the metadata of a new volume, durable from the beginning of time.
    pub(crate) fn format(&mut self, volume: Uuid) {
        let legs = (0..self.config.legs as u64)
            .map(|i| LegEntry::new(Uuid::from_u64_pair(2, i), LegState::InSync))
            .collect();
        let mut superblock = Superblock {
            volume,
            name: "sim".to_owned(),
            leg: Leg::new(0),
            legs,
            size: self.config.size(),
            region_size: self.config.region_size(),
            log: if self.place.is_none() { LogPlace::Internal } else { LogPlace::Remote("sim".to_owned()) },
            log_identity: None,
            leg_file: None,
            event_count: 1,
            lineage: Lineage::new(1, self.config.legs),
            held: Held::default(),
            recent: None,
            clean: true,
            equal: true,
            log_failed: false,
            created: 0,
            updated: 0,
        };
        for leg in self.all_legs().iter() {
            superblock.leg = leg;
            self.durable.push(superblock.clone());
            self.write_new(leg, &superblock);
        }
    }

    /// Makes a leg, durable from then on: its superblock, and a log that is clean.
    pub(crate) fn write_new(&mut self, leg: Leg, superblock: &Superblock) {
        let (region_size, regions) = (self.config.region_size(), self.geometry.regions());
        let log = InternalLog::new(superblock.volume, region_size, regions, SyncMode::NoSync);
        let mut writes = Vec::new();
        for generation in [0, 1] {
            self.superblock_writes(superblock, generation, &mut writes);
        }
        self.log_writes(&log.all_pages(), &mut writes);
        for (sector, block) in writes.drain(..) {
            self.disks[leg.index()].overwrite(sector as usize, block);
        }
        self.generations[leg.index()] = 1;
        self.durable[leg.index()] = superblock.clone();
        self.look_at_marks(leg);
    }

    fn superblock_writes(&mut self, superblock: &Superblock, generation: u64, writes: &mut Vec<(u32, u64)>) {
        let first = blocks::slot(self.config.sectors, generation);
        self.blocks.add_page(&superblock.encode(generation), first, writes);
    }

    fn log_writes(&mut self, flush: &Flush, writes: &mut Vec<(u32, u64)>) {
        for page in &flush.writes {
            self.blocks.add_log_page(page, blocks::log(self.config.sectors), writes);
        }
    }

    /// The newest superblock of a leg as a start would read it (`stable`: as it would after a power cut
    /// that keeps nothing).
    pub(crate) fn read_superblock(&self, leg: Leg, stable: bool) -> (Superblock, u64) {
        let slots = self.slots(leg, stable);
        match pick(&slots[0], &slots[1]) {
            Ok(found) => found,
            Err(error) => panic!("invariant 10: {leg:?} has no superblock left: {error}"),
        }
    }

    /// Whether one of the leg's superblocks was torn.
    pub(crate) fn is_torn(&self, leg: Leg) -> bool {
        let torn = |slot: &Vec<u8>| matches!(Superblock::decode(slot), Err(SlotError::Checksum));
        self.slots(leg, false).iter().any(torn)
    }

    fn slots(&self, leg: Leg, stable: bool) -> [Vec<u8>; 2] {
        let disk = &self.disks[leg.index()];
        [0, 1].map(|slot| {
            let first = blocks::slot(self.config.sectors, slot);
            let sectors = first..first + PAGE_SECTORS;
            let mut page = Vec::with_capacity(mirrord_log::PAGE as usize);
            if stable {
                self.blocks.page(sectors.map(|sector| disk.stable(sector)), &mut page);
            } else {
                self.blocks.page(sectors.map(|sector| disk.read(sector)), &mut page);
            }
            page
        })
    }

    /// A superblock as assembly sees it.
    pub(crate) fn leg_record(superblock: &Superblock) -> LegRecord {
        LegRecord {
            volume: *superblock.volume.as_bytes(),
            leg: *superblock.leg_uuid().as_bytes(),
            index: superblock.leg,
            size: superblock.size,
            region_size: superblock.region_size,
            event_count: superblock.event_count,
            legs: superblock
                .legs
                .iter()
                .map(|entry| (*entry.uuid.as_bytes(), entry.state))
                .collect::<Vec<_>>()
                .into(),
            replaces: superblock.replaces(),
            clean: superblock.clean,
            equal: superblock.equal,
            log_failed: superblock.log_failed,
            lineage: superblock.lineage.clone(),
            held: superblock.held,
            recent: superblock.recent.clone(),
            log_generation: 0,
            other_file: false,
        }
    }

    // ---- durable operations

    /// Starts the one durable operation: `flush` goes to all `legs`, or a superblock does.
    pub(crate) fn start_meta(&mut self, kind: MetaKind, legs: LegSet, flush: Option<Flush>) {
        assert!(self.live().meta.is_none(), "two durable operations at once");
        // What a leg did not take is tried again with each tick, as long as the stop waits for a log or for copies.
        if self.live().phase == Phase::Stopping && !std::mem::take(&mut self.d().ticked) {
            self.d().stop_operations += 1;
            let operations = self.live().stop_operations;
            assert!(
                operations <= MOST_STOP_OPERATIONS,
                "progress: a stop goes on after {operations} operations"
            );
        }
        let mut writes = Vec::new();
        if let Some(flush) = &flush {
            self.log_writes(flush, &mut writes);
        }
        let mut meta = Meta { kind, to: legs, pending: legs, errors: [None; MAX_LEGS], legs: Vec::new() };
        meta.legs.resize_with(self.config.legs, MetaLeg::default);
        for leg in legs.iter() {
            let to = &mut meta.legs[leg.index()];
            to.writes.clone_from(&writes);
            if let MetaKind::Record(record) = &meta.kind {
                let superblock = self.superblock_of(leg, record);
                self.superblock_writes(&superblock, self.generations[leg.index()] + 1, &mut to.writes);
            }
            if self.metadata_hangs(leg) {
                self.saw.saw(Saw::Refused);
                to.writes.clear();
                to.refused = true;
            } else {
                to.ticket = self.disks[leg.index()].begin();
            }
            self.d().pending.push(Pending::Meta(leg));
        }
        self.d().meta = Some(meta);
        if legs.is_empty() {
            self.meta_ended();
        }
    }

    fn superblock_of(&self, leg: Leg, record: &Record) -> Superblock {
        let mut superblock = self.durable[leg.index()].clone();
        superblock.leg = leg;
        for (entry, (leg, &state)) in superblock.legs.iter_mut().zip(record.states.iter()) {
            *entry = self.roster.entry(leg, state, record.replaces[leg.index()]);
        }
        superblock.size = record.size;
        superblock.event_count = record.event_count;
        superblock.lineage.clone_from(&record.lineage);
        superblock.held = record.held;
        superblock.recent.clone_from(&record.recent);
        superblock.clean = record.clean;
        superblock.equal = record.equal;
        superblock.log_failed = record.log_failed;
        superblock
    }

    /// Metadata on its way to `leg` moves on: a few sectors land, or all, or the flush ends.
    pub(crate) fn step_meta(&mut self, leg: Leg) {
        let mut meta = self.d().meta.take().expect("a durable operation is under way");
        let to = &mut meta.legs[leg.index()];
        let result = if to.refused {
            Some(Err(Errno::GIVEN_UP))
        } else if let Some(submitted) = to.flush {
            // Whatever a sync says, it says of more than what was written just now.
            Some(self.flush_leg(leg, META_FILE, submitted).map_err(|_| Errno::EIO))
        } else if !to.writes.is_empty() && self.rng.chance(1, 4) {
            let some = self.rng.between(1, to.writes.len() as u64);
            self.land_meta(leg, to, some);
            None
        } else {
            let struck = self.faults.strike(&mut self.rng, &self.config, leg, Kind::Meta);
            let some = if struck.is_ok() { u64::MAX } else { self.rng.below(PAGE_SECTORS as u64) };
            self.land_meta(leg, to, some);
            let now = self.moment();
            self.disks[leg.index()].complete(to.ticket, now);
            to.flush = Some(self.moment());
            struck.err().map(Err)
        };
        if let Some(result) = result {
            self.d().meta = Some(meta);
            self.end_meta_leg(leg, result);
        } else {
            self.d().meta = Some(meta);
            self.d().pending.push(Pending::Meta(leg));
        }
    }

    /// Metadata on its way to `leg` has ended so.
    pub(crate) fn end_meta_leg(&mut self, leg: Leg, result: Result<(), Errno>) {
        trace!(self, "{leg:?}: metadata {result:?}");
        let mut meta = self.d().meta.take().expect("a durable operation is under way");
        meta.pending.remove(leg);
        meta.errors[leg.index()] = result.err();
        if let (Ok(()), MetaKind::Record(_)) = (result, &meta.kind) {
            let (superblock, generation) = self.read_superblock(leg, true);
            self.generations[leg.index()] = generation;
            self.durable[leg.index()] = superblock;
            self.images.overruled.remove(leg);
        }
        let all = meta.pending.is_empty();
        self.d().meta = Some(meta);
        if all {
            self.meta_ended();
        }
    }

    pub(crate) fn land_meta(&mut self, leg: Leg, to: &mut MetaLeg, some: u64) {
        let log = blocks::log(self.config.sectors);
        let mut left = some;
        while left > 0 && !to.writes.is_empty() {
            let at = self.rng.below(to.writes.len() as u64) as usize;
            let (sector, block) = to.writes.swap_remove(at);
            self.disks[leg.index()].land(to.ticket, sector as usize, block);
            if sector as usize == log {
                self.look_at_marks(leg);
            }
            left -= 1;
        }
    }

    /// At a crash: some of what was on its way may have landed.
    pub(crate) fn drop_meta(&mut self, mut meta: Meta) {
        for leg in meta.pending.iter() {
            let to = &mut meta.legs[leg.index()];
            let some = self.rng.below(to.writes.len() as u64 + 1);
            self.land_meta(leg, to, some);
        }
    }

    fn meta_ended(&mut self) {
        let meta = self.d().meta.take().expect("a durable operation is under way");
        let failed: LegSet =
            self.all_legs().iter().filter(|leg| meta.errors[leg.index()].is_some()).collect();
        let errors = meta.errors;
        let ok = meta.to.minus(failed);
        if !failed.is_empty() {
            self.d().troubles.push((ok, failed, false));
            let lost = |leg: &Leg| {
                errors[leg.index()].is_some_and(|errno| !errno.is_given_up() && !errno.is_no_space())
            };
            let lost = failed.iter().filter(lost).collect();
            self.d().unflushed = self.live().unflushed.union(lost);
        }
        match meta.kind {
            MetaKind::StartFill => {
                let phase = if failed.is_empty() { Phase::Recording } else { Phase::Failed };
                self.d().phase = phase;
                self.start_failed = failed;
                if phase == Phase::Recording && !self.begin_in_place() {
                    self.worker_event(WorkerEvent::Start);
                }
            }
            MetaKind::Commit => {
                if !failed.is_empty() {
                    self.saw.saw(Saw::FailedCommit);
                    self.saw.saw_if(Saw::RefusedMark, ok.is_empty());
                    self.d().log.flush_failed();
                }
                self.worker_event(WorkerEvent::Committed { errors, log_error: None });
            }
            MetaKind::Record(record) => {
                if failed.is_empty() {
                    self.check_record(&record);
                    self.images.recorded(&record);
                }
                self.saw.saw_if(Saw::FailedRecord, !failed.is_empty());
                self.recorded_beside();
                self.worker_event(WorkerEvent::Recorded { errors });
            }
            MetaKind::Fill => {
                self.saw.saw_if(Saw::FailedFill, !failed.is_empty());
                let result =
                    failed.lowest().map_or(Ok(()), |leg| Err(errors[leg.index()].expect("it failed")));
                self.worker_event(WorkerEvent::LogFilled { result });
            }
        }
    }
}
