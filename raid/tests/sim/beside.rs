//! A log beside the legs, in a place of its own that can be out of reach for long: a commit of it takes as long as it
//! likes, and so does a start.
//!
//! [`Place`] is where it is, with the driver's part in bringing it there; whatever has its calls can stand here instead.
//! It is told to begin ([`Place::begin`], [`Place::commit`]), moved on ([`Place::step`]), cut off ([`Place::crash`]) and
//! read at a start ([`Place::read`]). What has come there is durable. The rest is what follows for the simulator.

use mirrord_log::{DirtyLog, DiskLog, Flush, SyncMode};
use mirrord_raid::{AssembleOptions, Assembly, Errno, Geometry, MAX_LEGS, Region, WorkerEvent};

use crate::boot::PLAIN;
use crate::coverage::Saw;
use crate::daemon::{LegJob, Pending, Phase};
use crate::rng::Rng;
use crate::sim::{Sim, trace};

/// Bytes that come there whole or not at all: also the logical block of the log.
const BLOCK: u32 = 512;

/// Ticks for which writes may wait for a split that waits for a commit only.
const MOST_FROZEN_TICKS: u32 = 7;

/// What became of what was begun.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Came {
    /// The log is in its place, and the volume may be served.
    Ready,
    /// A commit is done, or not.
    Committed(Result<(), Errno>),
    /// The log is in its place again.
    Back,
}

/// What is on its way, block by block: where, and what.
type Blocks = Vec<(usize, Vec<u8>)>;

pub(crate) struct Place {
    /// Of its own, so that runs without it stay what they were.
    rng: Rng,
    /// What is there.
    image: Vec<u8>,
    /// Nothing gets there before that.
    away_until: u64,
    /// Steps in 10,000 in which such a time begins.
    outages: u64,
    /// Whoever waits too long is told that it failed.
    pub(crate) fallback: bool,
    /// A commit failed, so what is there is not the log.
    lost: bool,
    /// The whole log on its way: before the volume is served, or because it is lost.
    whole: Option<Blocks>,
    beginning: bool,
    commit: Option<Blocks>,
}

fn blocks(flush: Flush) -> Blocks {
    let split = |at: u64, bytes: Vec<u8>| {
        let offsets = (at as usize..).step_by(BLOCK as usize);
        offsets.zip(bytes.chunks(BLOCK as usize).map(<[u8]>::to_vec).collect::<Vec<_>>())
    };
    flush.writes.into_iter().flat_map(|write| split(write.offset, write.bytes)).collect()
}

impl Place {
    /// Where the log is that a volume is made with.
    fn new(rng: Rng, outages: u64, fallback: bool) -> Place {
        Place {
            rng,
            outages,
            fallback,
            image: Vec::new(),
            away_until: 0,
            lost: false,
            whole: None,
            beginning: false,
            commit: None,
        }
    }

    /// Time goes by; `well`: and nothing goes wrong any more.
    fn pass(&mut self, now: u64, well: bool) {
        if well {
            self.away_until = 0;
        } else if self.is_there(now) && self.rng.chance(self.outages, 10_000) {
            self.away_until = now + self.rng.pick(&[20, 200, 1000, 3000]);
        }
    }

    fn is_there(&self, now: u64) -> bool {
        now >= self.away_until
    }

    /// The log that is there, for a start; none if it cannot be reached, and the start does not wait.
    fn read(&self, now: u64) -> Option<&[u8]> {
        (self.is_there(now) || !self.fallback).then_some(&self.image)
    }

    /// A life begins with this log, which is to be there before it is served; `lost`: or later.
    fn begin(&mut self, log: &dyn DirtyLog, lost: bool) {
        (self.lost, self.beginning, self.commit) = (lost, !lost, None);
        self.whole = (!lost).then(|| blocks(log.all_pages()));
    }

    /// What changed since the last commit is to be there.
    fn commit(&mut self, flush: Flush) {
        assert!(self.commit.is_none(), "two commits at once");
        self.commit = Some(blocks(flush));
    }

    pub(crate) fn is_committing(&self) -> bool {
        self.commit.is_some()
    }

    /// Whether there is anything to be done.
    fn is_busy(&self) -> bool {
        self.commit.is_some() || self.whole.is_some() || self.lost
    }

    /// What was begun moves on.
    fn step(&mut self, log: &mut dyn DirtyLog, now: u64) -> Option<Came> {
        if !self.is_there(now) {
            // Once it is back it gets all there is, and until then nothing is.
            let gives_up = self.fallback && !self.beginning && self.rng.chance(1, 8);
            return (gives_up && self.commit.is_some()).then(|| self.fail(log));
        }
        if self.lost && self.whole.is_none() {
            if self.commit.is_some() && self.rng.coin() {
                return Some(self.fail(log));
            }
            self.whole = self.rng.chance(1, 4).then(|| blocks(log.all_pages()));
            return None;
        }
        let is_whole = self.whole.is_some();
        let on_its_way = self.whole.as_mut().or(self.commit.as_mut())?;
        let some = self.rng.below(on_its_way.len() as u64 + 1) as usize;
        let done = self.rng.coin();
        let some = if done { on_its_way.len() } else { some };
        let landing: Blocks = on_its_way.drain(..some).collect();
        self.land(landing);
        if !done {
            return None;
        }
        Some(if !is_whole {
            self.commit = None;
            Came::Committed(Ok(()))
        } else {
            self.whole = None;
            self.lost = false;
            if std::mem::take(&mut self.beginning) { Came::Ready } else { Came::Back }
        })
    }

    /// A commit is given up. Some of it came.
    fn fail(&mut self, log: &mut dyn DirtyLog) -> Came {
        let mut commit = self.commit.take().expect("a commit is under way");
        // Behind the whole log, of which this is a part: it was not sent before all of that was there.
        if self.whole.take().is_none() && !self.lost {
            commit.truncate(self.rng.below(commit.len() as u64 + 1) as usize);
            self.land(commit);
        }
        log.flush_failed();
        self.lost = true;
        Came::Committed(Err(Errno::EIO))
    }

    fn land(&mut self, blocks: Blocks) {
        for (at, bytes) in blocks {
            self.image.resize(self.image.len().max(at + bytes.len()), 0);
            self.image[at..at + bytes.len()].copy_from_slice(&bytes);
        }
    }

    /// The daemon is gone. Some of what was on its way came.
    fn crash(&mut self) {
        let mut left: Blocks = self.whole.take().or_else(|| self.commit.take()).unwrap_or_default();
        left.truncate(self.rng.below(left.len() as u64 + 1) as usize);
        self.land(left);
        (self.commit, self.lost, self.beginning) = (None, false, false);
    }

    /// Regions that are dirty there, whatever of what is on its way comes.
    fn surely_dirty(&self) -> u64 {
        let mut dirty = dirty(&self.image);
        for (at, bytes) in self.whole.iter().chain(&self.commit).flatten() {
            let mut image = self.image.clone();
            image.resize(image.len().max(at + bytes.len()), 0);
            image[*at..at + bytes.len()].copy_from_slice(bytes);
            dirty &= self::dirty(&image);
        }
        dirty
    }
}

/// Regions that a log read by a start says are dirty, of a volume of as many as there can be.
fn dirty(image: &[u8]) -> u64 {
    let mut log = DiskLog::new(1, u64::BITS, BLOCK, SyncMode::Default);
    let _ = log.resume(&[Some(image)]);
    log.dirty().fold(0, |all, region| all | 1u64 << region.0)
}

/// How a life is with its log.
#[derive(Default)]
pub(crate) struct Life {
    /// It is waited for, or moves on.
    is_pending: bool,
    /// A leg was failed since the last commit began.
    leg_failed: bool,
    /// Ticks for which writes wait for a split while nothing but a commit is under way.
    frozen_ticks: u32,
}

/// A place, for a third of all seeds; and how far ahead is marked.
pub(crate) fn draw(seed: u64) -> (Option<Place>, u32) {
    let mut rng = Rng::new(seed ^ 0xbe51_de00_0000_0001);
    if !rng.chance(1, 3) {
        return (None, 0);
    }
    let (outages, fallback, ahead) = (rng.pick(&[0, 20, 100, 400]), rng.coin(), rng.pick(&[0, 1, 4, 16]));
    (Some(Place::new(rng, outages, fallback)), ahead)
}

impl Sim {
    /// What a start allows that is not forced.
    pub(crate) fn options(&self) -> AssembleOptions {
        AssembleOptions { log_on_legs: self.place.is_none(), ..PLAIN }
    }

    /// The same, and legs that were in use may be missing.
    pub(crate) fn degraded(&self) -> AssembleOptions {
        AssembleOptions { degraded: true, ..self.options() }
    }

    /// What the start that is made now allows: a log that cannot be reached is as good as none.
    pub(crate) fn options_now(&self) -> AssembleOptions {
        let is_there = self.place.as_ref().is_none_or(|place| place.read(self.now).is_some());
        AssembleOptions { log_is_core: !is_there, ..self.options() }
    }

    /// Makes the log of a new volume, clean.
    pub(crate) fn format_place(&mut self) {
        let (region_size, regions) = (self.config.region_size(), self.geometry.regions());
        if let Some(place) = &mut self.place {
            let mut log = DiskLog::new(region_size, regions, BLOCK, SyncMode::NoSync);
            place.land(blocks(log.resume(&[Some(&[])])));
        }
    }

    /// The log that a start finds, if it is beside the legs, and what it says is dirty.
    pub(crate) fn read_place(&self, assembly: &Assembly, geometry: Geometry) -> Option<Box<dyn DirtyLog>> {
        let place = self.place.as_ref()?;
        let image = place.read(self.now);
        let mode = match (assembly.all_dirty, assembly.log_lost || image.is_none()) {
            (true, _) => SyncMode::Sync,
            (false, true) => SyncMode::NoSync,
            (false, false) => SyncMode::Default,
        };
        let mut log = DiskLog::new(self.config.region_size(), geometry.regions(), BLOCK, mode);
        let _ = log.resume(&[Some(image.unwrap_or(&[]))]);
        Some(Box::new(log))
    }

    /// Regions that are dirty if a start comes to this, which finds the log; none if the log is on the legs.
    pub(crate) fn dirty_in_place(&self, assembly: &Assembly, is_there: bool) -> Option<u64> {
        let place = self.place.as_ref()?;
        let is_known = !assembly.log_lost && is_there;
        Some(if assembly.all_dirty { u64::MAX } else { u64::from(is_known) * dirty(&place.image) })
    }

    /// Whether the start that is made now begins without it.
    pub(crate) fn place_is_away(&self) -> bool {
        self.place.as_ref().is_some_and(|place| place.read(self.now).is_none())
    }

    /// A life begins: the log gets to its place; `false`: it is on the legs.
    pub(crate) fn begin_in_place(&mut self) -> bool {
        let Some(mut place) = self.place.take() else { return false };
        let lost = self.live().worker.log_failed();
        place.begin(self.live().log.as_ref(), lost);
        self.place = Some(place);
        self.await_place();
        if lost {
            self.saw.saw(Saw::StartWithoutLog);
            self.worker_event(WorkerEvent::Start);
        } else {
            self.d().phase = Phase::Filling;
        }
        true
    }

    pub(crate) fn crash_place(&mut self) {
        if let Some(place) = &mut self.place {
            self.saw.saw_if(Saw::CrashInCommit, place.is_committing());
            place.crash();
        }
    }

    /// The log worker wants a commit; `false`: it is one on the legs.
    pub(crate) fn commit_in_place(&mut self) -> bool {
        let Some(mut place) = self.place.take() else { return false };
        place.commit(self.d().log.flush());
        self.place = Some(place);
        self.d().beside.leg_failed = false;
        self.await_place();
        true
    }

    fn await_place(&mut self) {
        let is_busy = self.place.as_ref().is_some_and(Place::is_busy);
        let d = self.d();
        if is_busy && !d.beside.is_pending {
            d.beside.is_pending = true;
            d.pending.push(Pending::Log);
        }
    }

    /// What is on its way to the place moves on.
    pub(crate) fn step_place(&mut self) {
        self.d().beside.is_pending = false;
        let mut place = self.place.take().expect("the log is beside the legs");
        let now = self.now;
        let came = place.step(self.d().log.as_mut(), now);
        self.place = Some(place);
        self.await_place();
        let Some(came) = came else { return };
        trace!(self, "the log: {came:?}");
        match came {
            Came::Ready => {
                self.d().phase = Phase::Recording;
                self.worker_event(WorkerEvent::Start);
            }
            Came::Back => {
                self.saw.saw(Saw::LogBack);
                self.worker_event(WorkerEvent::LogBack);
            }
            Came::Committed(result) => {
                self.saw.saw_if(Saw::LostCommit, result.is_err());
                let (errors, log_error) = ([None; MAX_LEGS], result.err());
                self.worker_event(WorkerEvent::Committed { errors, log_error });
            }
        }
    }

    /// Time goes by.
    pub(crate) fn pass_in_place(&mut self) {
        let (now, well) = (self.now, !self.faults.may_come());
        if let Some(place) = &mut self.place {
            place.pass(now, well);
        }
    }

    /// A leg was failed.
    pub(crate) fn leg_failed_beside(&mut self) {
        self.d().beside.leg_failed = true;
    }

    /// A record is durable.
    pub(crate) fn recorded_beside(&mut self) {
        let hung = self.live().beside.leg_failed && self.is_committing();
        self.saw.saw_if(Saw::CommitHungOverFailure, hung);
    }

    pub(crate) fn is_committing(&self) -> bool {
        self.place.as_ref().is_some_and(Place::is_committing)
    }

    /// A tick went by: split: no write waits for long for a log that does not answer.
    pub(crate) fn tick_beside(&mut self) {
        let waits = self.live().mirror.is_frozen()
            && self.is_committing()
            && self.live().meta.is_none()
            && self.live().leg_jobs().next().is_none();
        let ticks = &mut self.d().beside.frozen_ticks;
        *ticks = if waits { *ticks + 1 } else { 0 };
        assert!(*ticks <= MOST_FROZEN_TICKS, "split: writes wait for a commit that does not end");
    }

    /// A mark goes into the log.
    pub(crate) fn saw_mark(&mut self, region: Region) {
        let mirror = &self.live().mirror;
        let is_coming = mirror.all_legs().any(|leg| self.live().worker.is_coming(leg));
        let ahead = self.mark_ahead > 0 && mirror.regions.writes(region) == 0 && !is_coming;
        self.saw.saw_if(Saw::MarkAhead, ahead);
    }

    /// A data write lands: 1, the region's mark is durable in the log, or legs in sync say that the log is not to be
    /// trusted.
    pub(crate) fn check_landing_beside(&self, job: &LegJob, region: Region) {
        let Some(place) = &self.place else { return };
        if self.live().phase < Phase::Serving && place.lost {
            // What was dirty at the last start is copied before it is recorded that the log is not there.
            return;
        }
        let marked = place.surely_dirty() & (1u64 << region.0) != 0;
        let mut in_sync = self.live().mirror.legs.states().in_sync().iter();
        let known = in_sync.all(|leg| self.durable[leg.index()].log_failed);
        assert!(marked || known, "invariant 1: {:?} lands, {region:?} is not marked in the log", job.io);
    }
}
