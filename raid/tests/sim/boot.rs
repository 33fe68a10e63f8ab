//! The end of one life and the start of the next: crashes, what they leave, and the start as the
//! real daemon makes it, from superblocks and logs.

use std::collections::VecDeque;
use std::sync::Arc;

use mirrord_log::{DirtyLog, Flush, InternalLog, SyncMode};
use mirrord_raid::{
    AssembleError, AssembleOptions, Assembly, Background, Geometry, Leg, LegRecord, LegSet, LegState,
    LogWorker, MAX_LEGS, Mirror, MirrorQueue, QueueId, Region, assemble,
};

use crate::beside::Beside;
use crate::blocks::{self, PAGE_SECTORS};
use crate::coverage::Saw;
use crate::daemon::{BUFFERS, Daemon, MetaKind, Phase, SLOTS};
use crate::faults::Kind;
use crate::sim::{Recovery, Sim, trace};

/// The log is on the legs; legs that were in use have to be there.
pub(crate) const PLAIN: AssembleOptions =
    AssembleOptions { degraded: false, source: None, log_is_core: false, log_on_legs: true, leave_out: true };

impl Sim {
    /// The daemon is killed, or the power fails.
    pub(crate) fn crash(&mut self, how: Recovery) {
        let mut daemon = self.daemon.take().expect("the daemon lives");
        let in_start = matches!(daemon.phase, Phase::Filling | Phase::Recording);
        self.saw.saw_if(Saw::CrashInStart, in_start);
        let states = daemon.mirror.legs.states();
        // A start that comes to nothing records nothing: what was not recorded before is not now.
        let came_to_nothing = in_start || daemon.phase == Phase::Failed;
        let before = if came_to_nothing { self.unrecorded } else { LegSet::EMPTY };
        self.unrecorded = states.all().iter().filter(|&leg| !states.recorded(leg)).collect();
        self.unrecorded = self.unrecorded.union(before);
        let jobs: Vec<_> = daemon.jobs_on_legs().copied().collect();
        let meta = daemon.meta.take();
        let late = std::mem::take(&mut daemon.late);
        self.daemon = Some(daemon);
        for mut job in jobs {
            let some = self.rng.next() as u32;
            if !matches!(job.io.op, mirrord_raid::LegOp::Read | mirrord_raid::LegOp::Flush) {
                self.move_sectors(&mut job, some);
            }
        }
        if let Some(meta) = meta {
            self.drop_meta(meta);
        }
        self.drop_late(late);
        self.crash_place();
        self.daemon = None;
        // A flush failed: what it lost may be gone as after a power cut, and a start sees to it that it is.
        let loses = self.disks.iter().any(|disk| disk.has_lost());
        self.saw.saw_if(Saw::KillAfterFailedFlush, loses && how == Recovery::Process);
        self.saw.crashes += 1;
        trace!(self, "=== crash: {how:?}");
        let now = self.moment();
        if how == Recovery::Power {
            self.saw.saw(Saw::PowerCut);
            self.loses_what_was_not_flushed(now);
        } else if loses {
            self.saw.saw(Saw::Kill);
            self.loses_what_was_not_flushed(now);
        } else {
            self.saw.saw(Saw::Kill);
            let failing = !self.unrecorded.minus(states.in_use()).is_empty();
            self.history.killed(now, failing);
        }
        for leg in self.all_legs().iter() {
            let disk = &mut self.disks[leg.index()];
            if how == Recovery::Power {
                disk.power_cut(&mut self.rng);
            } else {
                disk.kill(now);
            }
            self.look_at_marks(leg);
        }
        // Here, and not in each of the starts that the survey tries.
        self.all_legs().iter().for_each(|leg| self.drop_cache(leg));
    }

    fn loses_what_was_not_flushed(&mut self, now: u64) {
        self.history.power_cut(now);
        self.recovery = Recovery::Power;
    }

    /// A start opens the leg: before anything is read it is synced, and the system forgets what it cached of the leg. What an
    /// earlier flush could not write would else be read as if it were there.
    fn drop_cache(&mut self, leg: Leg) {
        let synced = self.faults.strike(&mut self.rng, &self.config, leg, Kind::Flush).is_ok();
        if self.disks[leg.index()].drop_cache(synced) {
            trace!(self, "{leg:?}: what was cached is dropped");
            self.saw.saw(Saw::DroppedCache);
            let now = self.moment();
            self.loses_what_was_not_flushed(now);
        }
        self.look_at_marks(leg);
    }

    /// Some legs are pulled, others given back; some log is damaged.
    pub(crate) fn meddle(&mut self, all_well: bool) {
        self.strangers(all_well);
        for leg in self.members().minus(self.attached).iter() {
            if all_well || self.rng.coin() {
                self.attached.insert(leg);
            }
        }
        self.blind = LegSet::EMPTY;
        if all_well {
            return;
        }
        self.faults.between_lives();
        self.go_blind();
        if self.rng.chance(self.config.pulls, 100) && !self.images.is_open() {
            let leg = Leg::new(self.rng.below(self.config.legs as u64) as usize);
            // Pulled as a whole: what its cache holds goes nowhere.
            let is_stable = self.disks[leg.index()].first_unflushed(0..usize::MAX).is_none();
            let left = self.attached.minus(LegSet::one(leg)).intersect(self.current);
            if is_stable && !left.is_empty() {
                trace!(self, "{leg:?} is pulled");
                self.attached.remove(leg);
            }
        }
        if self.rng.chance(self.config.rot, 1000) {
            let leg = Leg::new(self.rng.below(self.config.legs as u64) as usize);
            trace!(self, "the log of {leg:?} is damaged");
            let garbage = self.blocks.add_garbage();
            self.disks[leg.index()].format(blocks::log(self.config.sectors), garbage);
            self.saw.saw(Saw::BadLogSector);
            self.stopped_clean = false;
        }
        self.put_images_back();
    }

    /// Metadata of a leg cannot be read, all of it or its log, or that ends.
    fn go_blind(&mut self) {
        let Some((leg, whole)) = self.faults.unreadable(self.config.legs) else { return };
        let left = self.attached.minus(LegSet::one(leg)).intersect(self.current);
        if !whole {
            self.blind = LegSet::one(leg);
            self.stopped_clean = false;
        } else if !left.is_empty() && !self.images.is_open() {
            trace!(self, "{leg:?} cannot be read");
            self.saw.saw(Saw::UnreadableLeg);
            self.attached.remove(leg);
        }
    }

    /// After a start that came to nothing because some legs did not take the log: starts without them, if a leg that was in
    /// sync is left. Whether it did.
    pub(crate) fn boot_without(&mut self) -> bool {
        let failed = std::mem::take(&mut self.start_failed);
        let left = self.startable.minus(failed);
        if failed.is_empty() || left.intersect(self.current).is_empty() {
            return false;
        }
        self.saw.saw(Saw::StartWithoutBadLeg);
        self.attached = self.attached.minus(failed);
        self.boot();
        true
    }

    /// Starts the daemon on the legs that are there, as the operator would.
    pub(crate) fn boot(&mut self) {
        let mut all_tried = false;
        self.images.forget_source();
        let assembly = loop {
            let legs = self.attached;
            let found: Vec<LegRecord> = legs.iter().map(|leg| self.record_of(leg)).collect();
            if let Some(leg) = self.any_source()
                && let Some(assembly) = self.force_any(&found, leg)
            {
                break assembly;
            }
            let source = legs.intersect(self.current).lowest();
            if source.is_some() && self.faults.may_come() && self.rng.chance(self.config.forced, 100) {
                break self.force(&found, source);
            }
            match assemble(&found, self.options()) {
                Ok(assembly) => break assembly,
                Err(AssembleError::Missing { .. }) if !legs.intersect(self.current).is_empty() => {
                    if let Ok(assembly) = assemble(&found, self.degraded()) {
                        self.saw.saw(Saw::DegradedStart);
                        break assembly;
                    }
                }
                Err(AssembleError::Missing { .. }) => {}
                // An image of a leg that was removed: whoever is told so leaves it out.
                Err(AssembleError::Stranger { at }) if self.images.is_open() => {
                    let leg = self.leave_out(&found[at]);
                    self.attached.remove(leg);
                    continue;
                }
                Err(error) => trace!(self, "refused: {error}"),
            }
            let may_be_refused = self.roster.proof_is_gone || self.images.is_open();
            if all_tried && may_be_refused && source.is_some() {
                break self.force(&found, source);
            }
            assert!(!all_tried, "invariant 9: {legs:?} refused: {:?}", assemble(&found, self.options()));
            // Whoever starts it looks for more legs.
            (self.attached, all_tried) = (self.members(), true);
        };
        let found: Vec<LegRecord> = self.attached.iter().map(|leg| self.record_of(leg)).collect();
        for &at in &assembly.strangers {
            let leg = self.leave_out(&found[at]);
            self.attached.remove(leg);
        }
        trace!(self, "=== start on {:?}: {assembly:?}", self.attached);
        // The driver takes from this one what it is not told of the volume.
        let template = &found[assembly.authority];
        let says = (template.lineage.session, template.size);
        let is_template = says == (assembly.session, assembly.size);
        assert!(is_template, "invariant 9: another record is the template: {assembly:?}");
        let beside = self.place.is_some().then(|| self.open_place(&assembly));
        self.check_source(&assembly, beside.as_deref().map(dirty));
        self.size_found(assembly.size);
        self.start(&assembly, beside);
    }

    /// A source is named. Every log counts then, also that of a leg which was out.
    fn force(&mut self, found: &[LegRecord], source: Option<Leg>) -> Assembly {
        self.saw.saw(Saw::ForcedStart);
        self.stopped_clean = false;
        let source = found.iter().position(|record| Some(record.index) == source);
        assemble(found, AssembleOptions { source, ..self.degraded() }).expect("a source was named")
    }

    pub(crate) fn record_of(&self, leg: Leg) -> LegRecord {
        let log_generation = match self.place {
            Some(_) => 0,
            None => self.blocks.generation(self.disks[leg.index()].read(blocks::log(self.config.sectors))),
        };
        LegRecord { log_generation, ..Sim::leg_record(&self.read_superblock(leg, false).0) }
    }

    fn start(&mut self, assembly: &Assembly, beside: Option<Box<dyn DirtyLog>>) {
        let volume = self.durable[0].volume;
        let mut images = Vec::new();
        for leg in assembly.trusted.iter() {
            let (disk, first) = (&self.disks[leg.index()], blocks::log(self.config.sectors));
            let mut page = Vec::new();
            self.blocks.page((first..first + PAGE_SECTORS).map(|s| disk.read(s)), &mut page);
            if self.blind.contains(leg) {
                self.saw.saw(Saw::UnreadableLog);
                page.fill(0);
            }
            images.push(page);
        }
        let images: Vec<Option<&[u8]>> = images.iter().map(|page| Some(page.as_slice())).collect();
        let geometry = Geometry::new(assembly.size, self.config.region_size()).expect("it was recorded");
        let on_legs = || {
            let mut log =
                InternalLog::new(volume, self.config.region_size(), geometry.regions(), SyncMode::Default);
            let _ = log.resume(&images);
            Box::new(log) as Box<dyn DirtyLog>
        };
        let mut log = beside.unwrap_or_else(on_legs);
        let logged = dirty(log.as_ref());
        assembly.uncovered(geometry).for_each(|region| log.mark(region));
        self.saw.saw_if(Saw::UncoveredLog, assembly.covered < assembly.size);
        if assembly.all_dirty {
            log.mark_all();
        }
        let found: Vec<Region> = log.dirty().collect();
        let states = assembly.states(&found);
        if !assembly.copy_whole.is_empty() {
            log.mark_all();
        }
        let dirty = dirty(log.as_ref());
        let was_clean = std::mem::take(&mut self.stopped_clean) && !self.is_without_place();
        // What others did to the log costs a whole resync, unless every leg says that all was clean.
        let had_by_others = self.place.as_mut().is_some_and(|place| std::mem::take(&mut place.had_by_others));
        let was_clean = was_clean && !(had_by_others && assembly.dirty_without_log);
        // A leg that was out may lack the commit of the last clears.
        let was_out =
            |leg: Leg| assembly.returned.contains(leg) || assembly.states(&[])[leg] == LegState::Tracked;
        let was_clean = was_clean && (self.place.is_some() || !assembly.trusted.iter().any(was_out));
        assert!(!was_clean || logged == 0, "invariant 10: {logged:#x} is dirty after a clean stop");
        self.check_splits(&states);
        self.found_apart(assembly);
        let before = assembly.states(&[]);
        let was_in_sync = |&leg: &Leg| before[leg] == LegState::InSync && assembly.at[leg].is_some();
        self.startable = before.legs().filter(was_in_sync).collect();
        self.start_failed = LegSet::EMPTY;
        let in_sync = states.iter().all(|(_, &state)| state == LegState::InSync);
        self.saw.saw_if(Saw::StartInSync, in_sync && dirty == 0);
        self.saw.saw_if(Saw::StartUnderLastingErrors, self.faults.lasts());
        for leg in self.members().iter() {
            if self.attached.contains(leg) {
                let torn = self.is_torn(leg);
                self.saw.saw_if(Saw::TornSuperblock, torn);
                self.disks[leg.index()].reopen();
                self.generations[leg.index()] = self.read_superblock(leg, false).1;
            }
            self.durable[leg.index()] = self.read_superblock(leg, true).0;
            self.look_at_marks(leg);
        }
        let queues = self.config.queues;
        if self.place.is_none() {
            self.sessions += 1;
        }
        let lineage = assembly.lineage(self.sessions);
        let mirror = Arc::new(Mirror::assembled(assembly, geometry, &states, &found, queues));
        let mut buffers = vec![vec![Vec::new(); self.config.depth]; usize::from(queues)];
        buffers.push(vec![vec![0; (self.config.window / 512) as usize]; BUFFERS]);
        let in_use = mirror.legs.states().in_use();
        let pages = log.all_pages();
        let on_legs = self.place.is_none();
        self.daemon = Some(Box::new(Daemon {
            queues: (0..queues).map(|id| MirrorQueue::new(mirror.clone(), QueueId(id))).collect(),
            background: Background::new(mirror.clone(), self.config.window),
            worker: LogWorker::new(mirror.clone(), states, assembly.event_count, lineage, on_legs)
                .with_replaces(assembly.replaces)
                .with_held(assembly.held)
                .with_bounded(assembly.bounded)
                .with_log_failed(self.is_without_place())
                .with_mark_ahead(self.mark_ahead)
                .with_turn_regions(self.turn_regions),
            mirror,
            log,
            beside: Beside::default(),
            phase: Phase::Filling,
            pending: Vec::new(),
            awake: 0,
            ended: vec![VecDeque::new(); usize::from(queues) + 1],
            meta: None,
            clients: vec![vec![None; self.config.depth]; usize::from(queues)],
            in_flight: 0,
            buffers,
            outcomes: vec![vec![Default::default(); SLOTS]; usize::from(queues) + 1],
            windows: [None; SLOTS],
            troubles: Vec::new(),
            failed_reads: [0; MAX_LEGS],
            gone: LegSet::EMPTY,
            unflushed: LegSet::EMPTY,
            forgetful: LegSet::EMPTY,
            given_back: LegSet::EMPTY,
            late: Vec::new(),
            last_late: 0,
            stop_operations: 0,
            ticked: false,
            ever_dirty: dirty,
            paused: false,
            scrubbing: false,
            queue_actions: Vec::new(),
            worker_actions: Vec::new(),
            background_actions: Vec::new(),
        }));
        self.check_stale(assembly, &found);
        // Where the log is not written, what was found there is flushed all the same: the slot that is written next is the
        // other one.
        self.start_meta(MetaKind::StartFill, in_use, Some(if on_legs { pages } else { Flush::default() }));
    }
}

pub(crate) fn dirty(log: &dyn DirtyLog) -> u64 {
    log.dirty().fold(0, |all, region| all | 1u64 << region.0)
}
