//! The course of a run: lives of the daemon, each ended by a crash or a stop, and at last one in which
//! nothing goes wrong and all has to be well in the end.

use std::sync::atomic::Ordering::Relaxed;

use mirrord_raid::{BackgroundEvent, Event, FailReason, Leg, LegSet, LegState, Op, ScrubRepair, WorkerEvent};

use crate::coverage::{Coverage, Saw};
use crate::daemon::{Pending, Phase};
use crate::disk::Disk;
use crate::sim::{Recovery, Sim, trace};

/// Steps after which something that should end does not. A few thousand is usual at the most.
const ENDLESS: u64 = 200_000;

/// One run from its seed; what it saw.
pub(crate) fn run(seed: u64, tracing: bool) -> Coverage {
    let mut sim = Sim::new(seed, tracing);
    for _ in 0..sim.config.lives {
        sim.meddle(false);
        sim.boot();
        sim.live_on();
        sim.survey();
    }
    sim.faults.end();
    sim.last_lives();
    sim.saw.steps = sim.now;
    sim.saw
}

impl Sim {
    /// A life with troubles, to its end.
    fn live_on(&mut self) {
        let steps = self.rng.between(1, self.config.steps);
        let stops = self.rng.chance(1, 4);
        for _ in 0..steps {
            self.step();
            if self.live().phase == Phase::Failed {
                self.crash(Recovery::Process);
                if !self.boot_without() {
                    return;
                }
            }
        }
        if stops && self.live().phase == Phase::Serving {
            match self.crashes_in_stop() {
                Some(steps) => self.stop_for(steps),
                None => self.stop(),
            }
        }
        let how = if self.rng.chance(2, 3) { Recovery::Power } else { Recovery::Process };
        self.crash(how);
    }

    /// Something happens.
    pub(crate) fn step(&mut self) {
        self.now += 1;
        let now = self.now;
        self.faults.step(&mut self.rng, &self.config, now);
        self.saw.saw_if(Saw::HungLeg, self.faults.hang(now));
        self.pass_in_place();
        if let Some((leg, sector)) = self.faults.bad_sector(&mut self.rng, &self.config)
            && self.disks[leg.index()].go_bad(sector)
        {
            trace!(self, "{leg:?}: sector {sector} goes bad");
        }
        if self.live().phase == Phase::Serving {
            if self.rng.chance(self.config.load, 100) {
                return self.issue();
            }
            if self.rng.chance(1, 40) {
                return self.give_back_a_leg();
            }
            if self.rng.chance(1, 300) {
                return self.pause_resync(None);
            }
            if self.faults.may_come() && self.growth.rng.chance(self.config.growths, 1000) {
                return self.ask_to_grow();
            }
            if self.rng.chance(self.config.scrubs, 1000) {
                return self.change_scrub();
            }
            if self.faults.may_come() && self.rng.chance(self.config.take_outs, 1000) {
                return self.take_out_a_leg();
            }
        }
        if self.live().phase == Phase::Serving {
            self.take_image();
            self.change_roster();
        }
        let tick = self.live().phase > Phase::Filling && self.rng.chance(self.config.ticks, 1000);
        let pending = self.live().pending.len() as u64;
        if (tick || pending == 0) && self.live().worker.wants_tick() {
            self.d().ticked = true;
            self.worker_event(WorkerEvent::Tick);
            self.tick_beside();
        } else if pending > 0 {
            let at = self.rng.below(pending) as usize;
            self.deliver(at);
        }
        self.look_if_idle();
    }

    fn look_if_idle(&mut self) {
        if self.live().in_flight == 0 && self.live().pending.is_empty() {
            self.check_equal();
        }
        let broken = self.live().mirror.legs.flush_broken();
        self.saw.saw_if(Saw::FlushBroken, broken);
    }

    /// What is pending at `at` happens, or a bit of it.
    fn deliver(&mut self, at: usize) {
        match self.live().pending[at] {
            Pending::Leg(job) => {
                let now = self.now;
                if job.refused.is_some() || !self.faults.holds_up(&mut self.rng, job.io.leg, now) {
                    self.step_leg(at, job);
                } else if self.rng.chance(self.config.give_ups, 100) {
                    self.give_up(at, job);
                }
            }
            Pending::Ended(queue) => {
                let now = self.now;
                if !self.faults.stalls(queue, now) {
                    self.d().pending.swap_remove(at);
                    self.handle_end(queue);
                }
            }
            Pending::Meta(leg) => {
                let now = self.now;
                let refused = self.live().meta.as_ref().is_some_and(|meta| meta.legs[leg.index()].refused);
                if refused || !self.faults.holds_up(&mut self.rng, leg, now) {
                    self.d().pending.swap_remove(at);
                    self.step_meta(leg);
                } else if self.rng.chance(self.config.give_ups, 100) {
                    self.d().pending.swap_remove(at);
                    self.give_up_meta(leg);
                }
            }
            Pending::Log => {
                self.d().pending.swap_remove(at);
                self.step_place();
            }
            Pending::Late(id) => {
                let (now, leg) = (self.now, self.late_leg(id));
                if !self.faults.holds_up(&mut self.rng, leg, now) {
                    self.step_late(at, id);
                }
            }
            Pending::Wake(queue) if self.faults.stalls(queue, self.now) => {}
            Pending::Wake(queue) => {
                self.d().pending.swap_remove(at);
                self.d().woken(queue);
                if queue == self.config.queues {
                    self.background_event(BackgroundEvent::Woken);
                } else {
                    self.queue_event(queue, Event::Woken);
                }
            }
            Pending::WakeWorker => {
                self.d().pending.swap_remove(at);
                self.d().worker_woken();
                self.worker_event(WorkerEvent::Woken);
            }
            Pending::Proceed(io) => {
                self.d().pending.swap_remove(at);
                self.background_event(BackgroundEvent::Proceed { io });
            }
        }
    }

    /// A failed leg that is there, or could be, is given back to the running daemon.
    fn give_back_a_leg(&mut self) {
        self.find_room();
        let states = self.live().mirror.legs.states();
        let out = states.all().minus(states.in_use()).minus(states.vacant()).minus(states.spare());
        let Some(leg) = out.iter().nth(self.rng.below(4) as usize) else { return };
        if self.has_late(leg) {
            return;
        }
        if states.of(leg) == LegState::Failed(FailReason::Missing) {
            self.saw.saw(Saw::ReturnOfPulled);
        }
        self.give_back(leg);
    }

    /// Somebody looked for room for a leg that was out of space, and finds some, whatever became of the leg meanwhile.
    fn find_room(&mut self) {
        let Some(leg) = self.faults.one_leg(self.config.legs) else { return };
        if self.live().mirror.legs.states().of(leg) == LegState::Failed(FailReason::NoSpace) {
            if self.has_late(leg) || !self.attached.contains(leg) {
                return;
            }
            self.saw.saw(Saw::RoomAgain);
            self.d().given_back.insert(leg);
        }
        self.worker_event(WorkerEvent::Room { leg });
    }

    /// A leg is failed by hand, or split off.
    fn take_out_a_leg(&mut self) {
        let leg = Leg::new(self.rng.below(self.config.legs as u64) as usize);
        let event =
            if self.rng.chance(1, 4) { WorkerEvent::Fail { leg } } else { WorkerEvent::Split { leg } };
        self.by_hand = LegSet::one(leg);
        self.worker_event(event);
        self.by_hand = LegSet::EMPTY;
    }

    /// Opens the leg's files anew. The generation is read only if it was not known: after a write that
    /// failed, the cache may show a superblock that the disk has not.
    fn give_back(&mut self, leg: mirrord_raid::Leg) {
        if self.live().meta.as_ref().is_some_and(|meta| meta.pending.contains(leg)) {
            // The thread that opens a leg's files anew is the one that writes metadata there.
            return;
        }
        self.return_as_image(leg);
        self.disks[leg.index()].reopen();
        if !self.attached.contains(leg) {
            self.attached.insert(leg);
            self.generations[leg.index()] = self.read_superblock(leg, false).1;
        }
        let is_split = self.live().mirror.legs.states().of(leg) == LegState::Tracked;
        // The daemon lets go of a leg only when its own reads there have ended.
        let is_free = !self.live().leg_jobs().any(|job| job.io.leg == leg);
        // Who splits a leg off is told that it is once the superblocks say so.
        let is_told = self.live().mirror.legs.states().recorded(leg);
        let is_theirs = is_split && is_told && is_free && !self.live().given_back.contains(leg);
        if is_theirs && self.rng.chance(1, 10) {
            self.scribble(leg);
        }
        self.d().given_back.insert(leg);
        let full = is_split && self.scribbled.contains(leg) || self.rng.chance(1, 20);
        let Some(older) = self.is_older(leg) else { return self.remove_refused(leg) };
        let full = older || full;
        if !full {
            self.check_given_back(leg);
        }
        self.saw.saw_if(Saw::FullReturn, full);
        if full {
            self.full.insert(leg);
        }
        self.worker_event(WorkerEvent::Return { leg, full, replaces: None });
    }

    fn pause_resync(&mut self, pause: Option<bool>) {
        let pause = pause.unwrap_or(!self.live().paused);
        self.d().paused = pause;
        self.saw.saw_if(Saw::PausedResync, pause);
        self.worker_event(WorkerEvent::PauseResync(pause));
    }

    /// Stops the daemon in good order.
    fn stop(&mut self) {
        trace!(self, "=== stop");
        self.saw.saw_if(Saw::StopUnderErrors, self.faults.errors());
        self.saw.saw_if(Saw::StopUnderLastingErrors, self.faults.lasts());
        self.drain();
        self.until("requests end", |sim| sim.live().in_flight == 0);
        self.stop_worker();
        self.until("the daemon stops", |sim| sim.live().phase == Phase::Stopped);
    }

    /// A stop begins: no request comes any more.
    fn drain(&mut self) {
        self.d().phase = Phase::Draining;
        self.stop_place();
    }

    /// It goes on once no request is in flight.
    fn stop_worker(&mut self) {
        self.end_scrub();
        self.d().phase = Phase::Stopping;
        self.worker_event(WorkerEvent::Stop);
    }

    /// Steps of a stop after which a crash comes.
    fn crashes_in_stop(&mut self) -> Option<u64> {
        let rng = &mut self.images.rng;
        rng.chance(1, 2).then(|| rng.pick(&[10, 40, 150])).map(|most| rng.below(most))
    }

    /// Stops the daemon, and does not come to the end of it.
    fn stop_for(&mut self, mut steps: u64) {
        trace!(self, "=== stop, for {steps} steps");
        let mut wait = |sim: &mut Sim, so: fn(&Sim) -> bool| {
            while !so(sim) && steps > 0 {
                sim.step();
                steps -= 1;
            }
            so(sim)
        };
        self.drain();
        if wait(self, |sim| sim.live().in_flight == 0) {
            self.stop_worker();
            wait(self, |sim| sim.live().phase == Phase::Stopped);
        }
    }

    /// Goes on until it is so.
    pub(crate) fn until(&mut self, what: &str, mut so: impl FnMut(&mut Sim) -> bool) {
        let mut steps = 0;
        while !so(self) {
            self.step();
            steps += 1;
            assert!(steps < ENDLESS, "progress: {what}: not after {steps} steps");
        }
    }

    /// No more troubles: everything ends, every leg gets back in sync and is equal, the log empties.
    fn last_lives(&mut self) {
        self.meddle(true);
        self.boot();
        self.until("the volume is served", |sim| sim.live().phase == Phase::Serving);
        self.heal();
        for _ in 0..100 {
            self.step();
        }
        self.d().phase = Phase::Draining;
        self.until("requests end", |sim| sim.live().in_flight == 0);
        self.pause_resync(Some(false));
        self.until("legs get back in sync", |sim| {
            let states = sim.live().mirror.legs.states();
            let out = states.all().minus(states.in_use()).minus(states.vacant()).minus(states.spare());
            if let Some(leg) = out.lowest()
                && !sim.has_late(leg)
            {
                sim.give_back(leg);
            }
            let clean = sim.live().mirror.regions.unclean() == 0 && !sim.live().worker.log_failed();
            states.in_sync() == states.all() && clean
        });
        self.check_equal();
        self.stop();
        let mut in_sync = self.current.iter();
        let clean = in_sync.all(|leg| self.durable[leg.index()].clean);
        assert!(clean, "progress: stopped with all legs in sync and not recorded as clean");
        // A leg that was removed, and may be an image from before that, is not named any more.
        self.attached = self.attached.minus(self.live().mirror.legs.states().vacant());
        self.crash(Recovery::Power);
        self.boot();
        let states = self.live().mirror.legs.states();
        let clean = self.live().ever_dirty == 0 && states.in_sync() == states.all();
        assert!(clean, "progress: not in sync after a clean stop");
        match self.rng.below(4) {
            0 => self.read_repair(),
            1 => self.plant_and_scrub(),
            2 => self.leave_a_leg_out(),
            _ => {}
        }
    }

    /// Bad sectors stay on one leg at the most, and only if another leg has what it cannot read:
    /// what no leg has, no resync brings back.
    fn heal(&mut self) {
        let keep = Leg::new(self.rng.below(self.config.legs as u64) as usize);
        let others = self.live().mirror.legs.states().in_sync().minus(LegSet::one(keep));
        for leg in self.all_legs().iter().filter(|&leg| leg != keep || others.is_empty()) {
            self.disks[leg.index()].heal();
        }
    }

    /// Sectors go bad, no two in one region, and nothing else goes wrong: every read is answered, reads
    /// alone make the sectors good again, or a scrub does, and no leg is failed.
    fn read_repair(&mut self) {
        self.until("the volume is served", |sim| sim.live().phase == Phase::Serving);
        self.disks.iter_mut().for_each(Disk::heal);
        self.d().phase = Phase::Draining;
        let mut bad = Vec::new();
        for region in 0..self.geometry.regions() {
            let leg = self.rng.below(self.config.legs as u64) as usize;
            let sectors = self.region(region);
            let sector = self.rng.between(sectors.start as u64, sectors.end as u64 - 1) as usize;
            let copies = self.live().mirror.legs.states().in_sync();
            let is_copy = copies.len() > 1 && copies.contains(Leg::new(leg));
            if bad.len() < 10 && self.rng.chance(1, 4) && is_copy && self.disks[leg].go_bad(sector) {
                bad.push((leg, sector));
            }
        }
        trace!(self, "=== bad sectors: {bad:?}");
        let by_scrub = self.rng.coin() && self.live().mirror.legs.states().in_sync().len() > 1;
        if by_scrub {
            self.start_scrub(0, ScrubRepair::No);
        }
        self.until("bad sectors that are read are written anew", |sim| {
            if !by_scrub && sim.live().in_flight == 0 {
                let region = sim.rng.below(u64::from(sim.geometry.regions())) as u32;
                let sectors = sim.region(region);
                sim.send(0, 0, Op::Read, sectors);
            }
            bad.iter().all(|&(leg, sector)| !sim.disks[leg].is_bad(sector))
        });
        self.until("all is quiet", |sim| {
            sim.live().in_flight == 0
                && !sim.live().scrubbing
                && sim.live().pending.is_empty()
                && sim.live().mirror.regions.unclean() == 0
        });
        self.check_equal();
        let legs = &self.live().mirror.legs;
        let in_sync = legs.states().in_sync() == legs.states().all();
        assert!(in_sync, "read repair: a leg was failed for bad sectors: {:?}", legs.states());
        let repaired: u64 = legs.counters.iter().map(|(_, leg)| leg.repaired.load(Relaxed)).sum();
        assert!(
            repaired >= bad.len() as u64,
            "read repair: {repaired} repairs counted, {} sectors were bad",
            bad.len()
        );
        self.saw.saw_if(Saw::RepairedAll, !bad.is_empty());
    }
}
