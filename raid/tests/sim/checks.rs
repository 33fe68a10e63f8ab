//! The invariants of ARCHITECTURE.md that can be seen from outside, each at the moment at which it
//! could be broken. A violation panics and names the invariant.

use mirrord_raid::{Errno, FailReason, Leg, LegIo, LegOp, LegSet, LegState, LegStates, Region, SCRUB_IO};

use crate::config::SECTOR;
use crate::coverage::Saw;
use crate::daemon::{Client, LegJob, Phase};
use crate::sim::Sim;

/// Reads that may fail on a leg before it is failed for that.
const MOST_REPAIRS: u32 = 20;

fn overlap(a: (u64, u64), b: (u64, u64)) -> bool {
    a.0 < b.1 && b.0 < a.1
}

fn is_write(op: LegOp) -> bool {
    matches!(op, LegOp::Write { .. } | LegOp::Zero { .. })
}

fn range(io: &LegIo) -> (u64, u64) {
    (io.offset, io.offset + io.len)
}

impl Sim {
    /// A leg IO is submitted: 5, no other write to the range is in flight on the leg; 8, resync is
    /// not copying it.
    pub(crate) fn check_submit(&self, queue: u16, io: LegIo) {
        if io.op == LegOp::Flush {
            return;
        }
        let d = self.live();
        let by_resync = queue == self.config.queues;
        for other in d.leg_jobs().filter(|job| job.io.leg == io.leg && overlap(range(&job.io), range(&io))) {
            if is_write(io.op) && is_write(other.io.op) {
                panic!("invariant 5: {io:?} while {:?} is in flight", other.io);
            }
        }
        if is_write(io.op) && !by_resync {
            for window in d.windows.iter().flatten() {
                assert!(
                    !overlap(*window, range(&io)),
                    "invariant 8: {io:?} in a window being copied {window:?}"
                );
            }
        }
    }

    /// Resync or a scrub reads a window: 8, nobody is writing there; 9, it has to be copied at all.
    pub(crate) fn window_opens(&mut self, io: LegIo) {
        let scrubs = io.io == SCRUB_IO;
        self.saw.saw_if(Saw::Copy, !scrubs);
        let queues = self.config.queues;
        let d = self.d();
        d.windows[io.io as usize] = Some(range(&io));
        let writer = d
            .leg_jobs()
            .find(|job| job.queue != queues && is_write(job.io.op) && overlap(range(&job.io), range(&io)));
        if let Some(writer) = writer {
            panic!("invariant 8: resync reads {io:?} while {:?} is in flight", writer.io);
        }
        let region = self.geometry.region_at(io.offset);
        let ever_dirty = self.live().ever_dirty & (1u64 << region.0) != 0;
        assert!(ever_dirty || scrubs, "invariant 9: {region:?} is copied and was never dirty");
    }

    /// After an event of the background worker: windows whose IO is done are open no longer.
    pub(crate) fn close_windows(&mut self) {
        let d = self.d();
        let outcomes = d.outcomes.last().expect("the background worker has slots");
        for (window, outcome) in d.windows.iter_mut().zip(outcomes) {
            if outcome.pending == 0 {
                *window = None;
            }
        }
    }

    /// A data write lands: 1, the region's mark is durable on every leg that could be asked for it.
    pub(crate) fn check_landing(&self, job: &LegJob) {
        let region = self.geometry.region_at(job.io.offset);
        let states = self.live().mirror.legs.states();
        assert!(states.of(job.io.leg) != LegState::Tracked, "split: {:?} lands on it", job.io);
        if self.place.is_some() {
            return self.check_landing_beside(job, region);
        }
        let asked = match self.live().phase {
            // Resync may begin before a leg that is missing is recorded so: it writes to a leg whose
            // own log has the region.
            Phase::Filling | Phase::Recording => states.in_use(),
            _ => states.all().minus(states.out_and_recorded()),
        };
        // A leg that is removed was out before, perhaps, and recorded so.
        let was_out = |leg: Leg| {
            let is_out = |on: Leg| !self.durable[on.index()].legs[leg.index()].state.is_in_use();
            states.of(leg) == LegState::Vacant && states.in_sync().iter().all(is_out)
        };
        for leg in asked.iter().filter(|&leg| !was_out(leg)) {
            let marked = self.marks[leg.index()] & (1u64 << region.0) != 0;
            assert!(marked, "invariant 1: {:?} lands, {region:?} is not marked on {leg:?}", job.io);
        }
    }

    /// A bit is unset: 2, all legs are equal in the region and will be after any power cut.
    pub(crate) fn check_clear(&mut self, region: Region) {
        self.saw.saw(Saw::Clear);
        let sectors = self.region_sectors(region);
        let states = self.live().mirror.legs.states();
        let copies = states.all().minus(states.vacant());
        for leg in copies.iter() {
            if let Some(sector) = self.disks[leg.index()].first_unflushed(sectors.clone()) {
                panic!("invariant 2: {region:?} is cleared, sector {sector} is not flushed on {leg:?}");
            }
        }
        // A mark that could not be made durable is undone, also where others wrote to a leg that is out.
        let foreign = self.scribbled.intersect(states.tracked());
        let foreign = foreign.union(self.images.in_place).union(self.images.ahead).minus(states.in_use());
        let legs = copies.minus(foreign);
        // What nobody wrote through the mirror it cannot know of.
        for sector in sectors.filter(|&sector| !self.is_planted(sector)) {
            let stable = |leg: Leg| self.disks[leg.index()].stable(sector);
            let first = legs.lowest().map(stable);
            if let Some(leg) = legs.iter().find(|&leg| Some(stable(leg)) != first) {
                panic!("invariant 2: {region:?} is cleared, {leg:?} differs in sector {sector}");
            }
        }
        let jobs = self.live().leg_jobs().filter(|job| is_write(job.io.op));
        for job in jobs {
            let written = self.geometry.region_at(job.io.offset);
            assert!(written != region, "invariant 2: {region:?} is cleared, {:?} is in flight", job.io);
        }
    }

    /// After an event of the log worker: 4, a leg in sync is left, and a leg was failed only for an
    /// error that another leg in sync did not have.
    pub(crate) fn check_leg_states(&mut self, before: LegStates) {
        let now = self.live().mirror.legs.states();
        assert!(!now.in_sync().is_empty(), "invariant 4: no leg in sync is left, before: {before:?}");
        if before == now {
            return;
        }
        self.check_roster(before, now);
        let in_sync = before.in_sync().union(now.in_sync());
        for leg in self.all_legs().iter() {
            match (before.of(leg), now.of(leg)) {
                (LegState::InSync | LegState::Syncing, LegState::Failed(FailReason::Admin)) => {
                    assert!(self.by_hand.contains(leg), "invariant 4: {leg:?} was failed by no hand");
                    self.saw.saw(Saw::FailedByHand);
                }
                (_, LegState::Tracked) if before.of(leg) != LegState::Tracked => self.split_off(leg),
                (LegState::Tracked, LegState::Syncing) => {
                    self.d().unflushed.remove(leg);
                    self.merge(leg);
                }
                (LegState::InSync | LegState::Syncing, LegState::Failed(_)) => {
                    let syncing = before.of(leg) == LegState::Syncing;
                    let cause = self.live().troubles.iter().any(|&(ok, failed, own)| {
                        failed.contains(leg) && (own && syncing || !ok.intersect(in_sync).is_empty())
                    });
                    let worn_out = self.live().failed_reads[leg.index()] > MOST_REPAIRS;
                    let unreadable = worn_out || self.live().gone.contains(leg);
                    // A leg that failed a flush has forgotten: what it says of others need not count.
                    let bad = unreadable || self.live().unflushed.contains(leg);
                    let cause = cause || bad && !in_sync.minus(LegSet::one(leg)).is_empty();
                    self.saw.saw_if(Saw::WornOutLeg, worn_out);
                    self.leg_failed_beside();
                    assert!(cause, "invariant 4: {leg:?} was failed, no other leg was better: {now:?}");
                    self.saw.saw(Saw::FailedLeg);
                }
                (LegState::Syncing, LegState::InSync) => {
                    self.images.in_place.remove(leg);
                    self.images.ahead.remove(leg);
                    self.scribbled.remove(leg);
                    self.saw.saw(Saw::Promote);
                }
                (LegState::Failed(_) | LegState::Spare | LegState::Vacant, LegState::Syncing) => {
                    self.full.remove(leg);
                    self.d().unflushed.remove(leg);
                    self.saw.saw(Saw::Return);
                }
                _ => {}
            }
        }
        self.saw.saw_if(Saw::Degraded, now.in_sync() != now.all());
        self.current = now.in_sync();
        for client in self.d().clients.iter_mut().flatten().flatten() {
            client.steady = client.steady.intersect(now.in_sync());
        }
    }

    /// A write is answered well: 3, a leg that missed it is recorded as not in sync by every leg in
    /// sync; 7, a durable one is stable on every leg in sync.
    pub(crate) fn check_written(&self, client: &Client) {
        let in_sync = self.live().mirror.legs.states().in_sync();
        for leg in self.members().iter() {
            let landed = || client.landed.iter().filter(|&&(on, _)| on == leg);
            let count: usize = landed().map(|(_, sectors)| sectors.len()).sum();
            if count == client.count || self.holds(leg, client, in_sync) {
                continue;
            }
            for witness in in_sync.iter().filter(|&witness| witness != leg) {
                let says = self.durable[witness.index()].legs[leg.index()].state;
                assert!(
                    says != LegState::InSync,
                    "invariant 3: {leg:?} missed the write at sector {}, {witness:?} does not say so",
                    client.first
                );
            }
        }
        if client.fua {
            for leg in in_sync.iter() {
                for sector in client.changes.clone() {
                    let stamp = client.stamp + sector as u64;
                    let disk = &self.disks[leg.index()];
                    let volatile =
                        disk.stable(sector) != stamp && disk.unflushed(sector).any(|value| value == stamp);
                    assert!(!volatile, "invariant 7: durable write not stable on {leg:?}, sector {sector}");
                }
            }
        }
    }

    /// Whether a leg that missed a write has its bytes all the same: it was copied to meanwhile. Where
    /// the next write is in flight already, nobody can tell.
    fn holds(&self, leg: Leg, client: &Client, in_sync: LegSet) -> bool {
        let there = &self.disks[leg.index()];
        let is_written = |sector: usize| {
            let sector = (sector as u64 * SECTOR, (sector as u64 + 1) * SECTOR);
            self.live().leg_jobs().any(|job| is_write(job.io.op) && overlap(range(&job.io), sector))
        };
        let same = |other: Leg| {
            let other = &self.disks[other.index()];
            let mut sectors = client.first..client.first + client.count;
            sectors.all(|sector| {
                client.landed.iter().any(|(on, sectors)| *on == leg && sectors.contains(&sector))
                    || there.read(sector) == other.read(sector)
                    || is_written(sector)
            })
        };
        in_sync.minus(LegSet::one(leg)).iter().all(same)
    }

    /// A flush is answered well: 7, on every leg in sync all that was written before it is stable.
    pub(crate) fn check_flushed(&self, client: &Client) {
        for leg in self.live().mirror.legs.states().in_sync().iter() {
            let left = self.disks[leg.index()].unflushed_since(client.start, self.sectors());
            if let Some(sector) = left {
                panic!("invariant 7: a flush was answered, sector {sector} is not stable on {leg:?}");
            }
        }
    }

    /// A read is answered well: 6.
    pub(crate) fn check_read(&mut self, queue: u16, tag: u32, client: &Client, now: u64) {
        let buffer = std::mem::take(&mut self.d().buffers[usize::from(queue)][tag as usize]);
        for (i, &stamp) in buffer.iter().enumerate() {
            let sector = client.first + i;
            if let Err(illegal) = self.history.read(sector, stamp, client.start, now) {
                panic!("invariant 6: sector {sector} was read as {stamp:#x}: {illegal}");
            }
        }
        self.d().buffers[usize::from(queue)][tag as usize] = buffer;
    }

    /// A read is answered with an error: no leg had it.
    pub(crate) fn check_unreadable(client: &Client, errno: Errno) {
        let untried = client.steady.minus(client.unreadable);
        assert!(
            untried.is_empty(),
            "read repair: sector {} was not read, {errno:?}, and {untried:?} not tried",
            client.first
        );
    }

    /// Nothing is under way: 5, legs in sync are equal, and others where they are not stale.
    pub(crate) fn check_equal(&self) {
        let legs = &self.live().mirror.legs;
        let states = legs.states();
        let source = states.in_sync().lowest().expect("invariant 4: no leg in sync");
        for leg in states.in_use().iter() {
            for sector in 0..self.sectors() {
                let region = self.geometry.region_at(sector as u64 * SECTOR);
                let stale = states.of(leg) == LegState::Syncing && legs.is_stale(leg, region);
                let [one, other] = [source, leg].map(|leg| self.disks[leg.index()].read(sector));
                assert!(
                    stale || one == other || self.is_planted(sector),
                    "invariant 5: {source:?} and {leg:?} differ in sector {sector}: {states:?} {:?}",
                    self.live().mirror.regions.state(region)
                );
            }
        }
    }

    /// The daemon stopped: a leg that says that the log is clean is right.
    pub(crate) fn check_stopped(&mut self) {
        let d = self.live();
        assert!(d.in_flight == 0 && d.leg_jobs().next().is_none(), "stopped with IO under way");
        let clean = d.mirror.legs.states().in_sync().iter().any(|leg| self.durable[leg.index()].clean);
        let dirty = d.log.dirty_count();
        assert!(!clean || dirty == 0, "invariant 10: recorded as clean with {dirty} dirty regions");
        self.stopped_clean = clean && self.leave_place();
        self.saw.saw(if clean { Saw::CleanStop } else { Saw::UncleanStop });
        self.saw.saw_if(Saw::CleanStopWithoutLog, clean && self.live().worker.log_failed());
    }
}
