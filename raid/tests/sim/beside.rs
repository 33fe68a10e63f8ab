//! A log beside the legs, on a log server that can be out of reach for long: a commit of it takes as long as it likes, and
//! so does a start. [`Place`] is the way there and back; this is what the simulator makes of it.

use mirrord_log::remote::asked_for;
use mirrord_log::{DirtyLog, RemoteLog, SyncMode};
use mirrord_raid::{AssembleOptions, Assembly, Errno, Geometry, MAX_LEGS, Region, WorkerEvent};

use crate::boot::PLAIN;
use crate::config::Config;
use crate::coverage::Saw;
use crate::daemon::{LegJob, Pending, Phase};
use crate::place::{BUSY_PATIENCE, Came, PATIENCE, Place};
use crate::rng::Rng;
use crate::sim::{Sim, trace};

/// Ticks for which writes may wait for a split that waits for a commit only.
const MOST_FROZEN_TICKS: u32 = 7;

/// Moves after which a log that can be had is had.
const ENDLESS: u32 = 200_000;

/// How a life is with its log.
#[derive(Default)]
pub(crate) struct Beside {
    /// It is waited for, or moves on.
    is_pending: bool,
    /// The first commit is under way.
    is_beginning: bool,
    /// A leg was failed since the last commit began.
    leg_failed: bool,
    /// Ticks for which writes wait for a split while nothing but a commit is under way.
    frozen_ticks: u32,
}

/// Whether the log is beside the legs, as for a third of all seeds; and how far ahead is marked then.
pub(crate) fn draw(seed: u64, config: &Config, tracing: bool) -> (Option<Place>, u32) {
    let mut rng = Rng::new(seed ^ 0xbe51_de00_0000_0001);
    if !rng.chance(1, 3) {
        return (None, 0);
    }
    let ahead = rng.pick(&[0, 1, 4, 16]);
    (Some(Place::new(rng, config.size(), config.region_size(), tracing)), ahead)
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

    /// The log that a start finds beside the legs. A start that comes to nothing is tried again.
    pub(crate) fn open_place(&mut self, assembly: &Assembly) -> Box<dyn DirtyLog> {
        loop {
            if let Some(log) = self.try_to_open_place(assembly) {
                return log;
            }
        }
    }

    fn try_to_open_place(&mut self, assembly: &Assembly) -> Option<Box<dyn DirtyLog>> {
        let mut place = self.place.take()?;
        self.sessions += 1;
        place.open(self.sessions, asked_for(assembly));
        let mut deadline = Some(place.ticks + PATIENCE);
        let mut moves = 0;
        let is_had = loop {
            (self.now, moves) = (self.now + 1, moves + 1);
            assert!(moves < ENDLESS, "progress: a start waits for its log for ever");
            place.pass(self.now, !self.faults.may_come());
            match place.came.pop_front() {
                Some(Came::Ready) => break true,
                Some(Came::Busy) => deadline = Some(place.ticks + BUSY_PATIENCE + PATIENCE),
                Some(Came::Refused(error)) => {
                    trace!(self, "the log: {error}");
                    break false;
                }
                Some(came) => panic!("the log: {came:?} at a start"),
                None => {}
            }
            // A server that is well is only slow, by chance.
            if self.faults.may_come() && deadline.is_some_and(|deadline| place.ticks >= deadline) {
                if place.fallback {
                    place.go_on_without();
                    break true;
                }
                break false;
            }
            if self.faults.may_come() && place.rng.chance(1, 500) {
                self.saw.saw(Saw::CrashInOpen);
                break false;
            }
        };
        let dirty: Vec<Region> = place.life().session.dirty().collect();
        trace!(self, "the log: had {is_had}, dirty {dirty:?}");
        if !is_had {
            place.crash();
            place.had_by_others = true;
            self.place = Some(place);
            return None;
        }
        self.place = Some(place);
        let geometry = Geometry::new(assembly.size, self.config.region_size()).expect("it was recorded");
        Some(Box::new(RemoteLog::new(geometry.region_size(), geometry.regions(), dirty)))
    }

    /// While the volume is stopped or dead, its log is somebody else's, perhaps. So is that of a volume whose start came to
    /// nothing.
    pub(crate) fn strangers(&mut self, well: bool) {
        let Some(mut place) = self.place.take() else { return };
        if place.rng.chance(1, 6) {
            self.sessions += 1;
            let was_had = place.stranger(self.sessions, self.now, well);
            trace!(self, "the log: a stranger had it: {was_had}");
            self.saw.saw_if(Saw::Stranger, was_had);
        }
        self.place = Some(place);
    }

    /// Whether the life that begins goes on without its log.
    pub(crate) fn is_without_place(&self) -> bool {
        self.place.as_ref().and_then(|place| place.life.as_ref()).is_some_and(|life| life.failed)
    }

    /// Regions that are dirty if a start comes to this and finds its log; none if the log is on the legs.
    pub(crate) fn dirty_in_place(&self, assembly: &Assembly) -> Option<u64> {
        let place = self.place.as_ref()?;
        Some(match asked_for(assembly) {
            (_, Some(last)) if place.far.owner() == Some(last) => place.far.surely_dirty(),
            (SyncMode::Sync, _) => u64::MAX,
            (SyncMode::NoSync, _) => 0,
            (SyncMode::Default, _) => place.far.surely_dirty(),
        })
    }

    /// A life begins: what the start marked gets to the log; `false`: it is on the legs.
    pub(crate) fn begin_in_place(&mut self) -> bool {
        if self.place.is_none() {
            return false;
        }
        let changes = self.d().log.take_changes();
        let is_without = self.is_without_place();
        self.saw.saw_if(Saw::StartWithoutLog, is_without);
        if changes.is_empty() {
            self.worker_event(WorkerEvent::Start);
        } else {
            self.d().phase = Phase::Filling;
            self.d().beside.is_beginning = true;
            let place = self.place.as_mut().expect("it is there");
            place.hurry();
            place.commit(&changes);
        }
        self.hear_place();
        true
    }

    pub(crate) fn crash_place(&mut self) {
        let committing = self.is_committing();
        if let Some(place) = &mut self.place {
            self.saw.saw_if(Saw::CrashInCommit, committing);
            place.crash();
        }
    }

    /// The log worker wants a commit; `false`: it is one on the legs.
    pub(crate) fn commit_in_place(&mut self) -> bool {
        if self.place.is_none() {
            return false;
        }
        let changes = self.d().log.take_changes();
        self.d().beside.leg_failed = false;
        let place = self.place.as_mut().expect("it is there");
        if changes.is_empty() {
            place.came.push_back(Came::Committed(Ok(())));
        } else {
            place.commit(&changes);
        }
        self.await_place();
        true
    }

    fn await_place(&mut self) {
        let is_busy = self.place.as_ref().is_some_and(|place| place.is_busy() || !place.came.is_empty());
        let d = self.d();
        if is_busy && !d.beside.is_pending {
            d.beside.is_pending = true;
            d.pending.push(Pending::Log);
        }
    }

    /// What is waited for moves on.
    pub(crate) fn step_place(&mut self) {
        self.d().beside.is_pending = false;
        let place = self.place.as_mut().expect("the log is beside the legs");
        if place.came.is_empty() {
            place.step();
        }
        self.hear_place();
    }

    /// What came of it is told, and before the volume is about to be served only of its first commit.
    fn hear_place(&mut self) {
        if self.live().phase == Phase::Filling && !self.live().beside.is_beginning {
            return;
        }
        while let Some(came) = self.place.as_mut().and_then(|place| place.came.pop_front()) {
            trace!(self, "the log: {came:?}");
            match came {
                Came::Committed(result) if self.live().beside.is_beginning => self.begun(result),
                Came::Committed(result) => {
                    self.saw.saw_if(Saw::LostCommit, result.is_err());
                    let (errors, log_error) = ([None; MAX_LEGS], result.err());
                    self.worker_event(WorkerEvent::Committed { errors, log_error });
                }
                Came::Back => {
                    self.saw.saw(Saw::LogBack);
                    self.worker_event(WorkerEvent::LogBack);
                }
                // This may come behind a start that went on without.
                Came::Busy => {}
                Came::Ready => panic!("the log: had twice"),
                Came::Refused(error) => panic!("the log: {error}, and nobody else is there"),
            }
        }
        self.await_place();
    }

    /// What the start marked got to the log, or did not.
    fn begun(&mut self, result: Result<(), Errno>) {
        self.d().beside.is_beginning = false;
        self.place.as_mut().expect("it is there").life().hurry = None;
        self.d().phase = if result.is_ok() { Phase::Recording } else { Phase::Failed };
        if result.is_ok() {
            self.worker_event(WorkerEvent::Start);
        }
    }

    /// Time goes by.
    pub(crate) fn pass_in_place(&mut self) {
        let (now, well) = (self.now, !self.faults.may_come());
        if let Some(place) = &mut self.place {
            place.pass(now, well);
            self.hear_place();
        }
        if !self.live().mirror.is_frozen() {
            self.d().beside.frozen_ticks = 0;
        }
    }

    /// The daemon is asked to stop: the log is not waited for for long.
    pub(crate) fn stop_place(&mut self) {
        if let Some(place) = &mut self.place {
            place.hurry();
        }
    }

    /// The daemon stopped: goodbye is said, and heard perhaps. Whether the log says what the volume knew.
    pub(crate) fn leave_place(&mut self) -> bool {
        let Some(place) = &mut self.place else { return true };
        let is_exact = !place.life().is_inexact;
        place.stop();
        for _ in 0..place.rng.below(16) {
            place.step();
        }
        let is_over = place.life().over;
        self.saw.saw_if(Saw::Goodbye, is_over);
        is_exact
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
        if self.live().phase < Phase::Serving && self.is_without_place() {
            // What was dirty at the last start is copied before it is recorded that the log is not there.
            return;
        }
        let marked = place.far.surely_dirty() & (1u64 << region.0) != 0;
        let mut in_sync = self.live().mirror.legs.states().in_sync().iter();
        let known = in_sync.all(|leg| self.durable[leg.index()].log_failed);
        assert!(marked || known, "invariant 1: {:?} lands, {region:?} is not marked in the log", job.io);
    }
}
