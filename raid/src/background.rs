//! The background worker's leg IO: copies stale regions (resync) and flushes legs, both as the log
//! worker asks. Runs on a thread and ring of its own, like a queue.
//!
//! A region is copied window by window. A window's range is held exclusively while it is read from
//! a leg in sync and written to the stale legs: writers to it wait, and it is small. The region is
//! counted as being written to meanwhile, so that it cannot be cleared before the copy is flushed.
//! Before each window the driver is asked ([`BackgroundAction::Pace`]) and answers when the throttle lets it.

use std::sync::Arc;

use crate::geometry::Region;
use crate::mirror::{Counters, LegErrors, Mirror, QueueNote, WorkerNote};
use crate::queue::Action;
use crate::ranges::{Hold, Owner};
use crate::region::Begin;
use crate::types::{Errno, Leg, LegIo, LegOp, LegSet, MAX_LEGS};

/// Regions copied at once. More than one, so that a leg is read while another is written.
pub const COPY_SLOTS: u32 = 4;

/// Largest window, in bytes: what a writer may have to wait for, and the size of a slot's buffer.
pub const WINDOW: u64 = 1 << 20;

/// The `io` of a flush.
const FLUSH_IO: u32 = COPY_SLOTS;

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BackgroundEvent {
    /// The log worker or a queue emitted a wake.
    Woken,
    /// The throttle lets the slot go on.
    Proceed {
        /// The slot.
        io: u32,
    },
    /// A leg IO is done.
    LegDone {
        /// As in [`LegIo::io`].
        io: u32,
        /// Which leg.
        leg: Leg,
        /// How it went.
        result: Result<(), Errno>,
        /// Of a read: all bytes are zero, so the copy can be a hole.
        zeroes: bool,
    },
}

/// What to do, in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BackgroundAction {
    /// As for a queue; a slot's buffer is the one with its number as tag.
    Queue(Action),
    /// Send [`BackgroundEvent::Proceed`] as soon as the throttle allows these bytes.
    Pace {
        /// The slot.
        io: u32,
        /// The window's length, in bytes.
        bytes: u64,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Pace,
    Range,
    Read,
    Write,
}

#[derive(Clone, Copy, Debug)]
struct Job {
    region: Region,
    step: Step,
    /// Legs that have all windows so far.
    targets: LegSet,
    /// Errors of legs that had to be given up.
    errors: LegErrors,
    /// Legs the present window could not be read from.
    unreadable: LegSet,
    /// The window, in bytes of the volume.
    offset: u64,
    len: u64,
    pending: LegSet,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Background {
    mirror: Arc<Mirror>,
    window: u64,
    jobs: [Option<Job>; COPY_SLOTS as usize],
    waiting: Vec<(Region, LegSet)>,
    flush: Option<(LegSet, LegSet, LegErrors)>,
    granted: Vec<u32>,
}

impl Background {
    /// The background worker of `mirror`, copying at most `window` bytes at once.
    pub fn new(mirror: Arc<Mirror>, window: u64) -> Background {
        let jobs = [None; COPY_SLOTS as usize];
        Background { mirror, window, jobs, waiting: Vec::new(), flush: None, granted: Vec::new() }
    }

    /// Takes one event and adds what is to be done to `actions`.
    pub fn handle(&mut self, event: BackgroundEvent, actions: &mut Vec<BackgroundAction>) {
        match event {
            BackgroundEvent::Woken => self.woken(actions),
            BackgroundEvent::Proceed { io } => self.lock_window(io, actions),
            BackgroundEvent::LegDone { io: FLUSH_IO, leg, result, .. } => {
                self.flushed(leg, result, actions);
            }
            BackgroundEvent::LegDone { io, leg, result, zeroes } => {
                self.leg_done(io, leg, result, zeroes, actions);
            }
        }
        loop {
            if let Some(io) = self.granted.pop() {
                self.read_window(io, actions);
            } else if !self.start_next(actions) {
                return;
            }
        }
    }

    /// Whether nothing is under way.
    pub fn is_idle(&self) -> bool {
        self.jobs.iter().all(Option::is_none) && self.waiting.is_empty() && self.flush.is_none()
    }

    fn woken(&mut self, actions: &mut Vec<BackgroundAction>) {
        let mut notes = Vec::new();
        self.mirror.take_queue_notes(self.mirror.background(), &mut notes);
        for note in notes {
            match note {
                QueueNote::Granted { io } => self.granted.push(io),
                QueueNote::Copy { region, targets } => self.waiting.push((region, targets)),
                QueueNote::Flush { legs } => self.start_flush(legs, actions),
                QueueNote::Marked { .. } | QueueNote::Settled { .. } => {
                    unreachable!("a note for a queue came to the background worker")
                }
            }
        }
    }

    fn tell_worker(&self, note: WorkerNote, actions: &mut Vec<BackgroundAction>) {
        self.mirror.tell_worker(note);
        actions.push(BackgroundAction::Queue(Action::WakeWorker));
    }

    // ---- flush

    fn start_flush(&mut self, legs: LegSet, actions: &mut Vec<BackgroundAction>) {
        assert!(self.flush.is_none(), "one flush at a time");
        self.flush = Some((legs, legs, [None; MAX_LEGS]));
        for leg in legs.iter() {
            let io = LegIo { io: FLUSH_IO, tag: 0, leg, op: LegOp::Flush, offset: 0, len: 0, buf_offset: 0 };
            actions.push(BackgroundAction::Queue(Action::Submit(io)));
        }
    }

    fn flushed(&mut self, leg: Leg, result: Result<(), Errno>, actions: &mut Vec<BackgroundAction>) {
        let (legs, pending, errors) = self.flush.as_mut().expect("a flush is under way");
        pending.remove(leg);
        if let Err(errno) = result {
            if !errno.is_given_up() {
                self.mirror.legs.flush_failed(leg);
            }
            errors[leg.index()] = Some(errno);
            Counters::add(&self.mirror.legs.counters[leg].flush_errors, 1);
        }
        if pending.is_empty() {
            for leg in legs.intersect(self.mirror.legs.unflushed()).iter() {
                errors[leg.index()].get_or_insert(Errno::EIO);
            }
            let note = WorkerNote::Flushed { legs: *legs, errors: *errors };
            self.flush = None;
            self.tell_worker(note, actions);
        }
    }

    // ---- copy

    /// Puts a waiting region into a free slot; `false` if there is none of either.
    fn start_next(&mut self, actions: &mut Vec<BackgroundAction>) -> bool {
        let Some(slot) = self.jobs.iter().position(Option::is_none) else { return false };
        let Some((region, targets)) = self.waiting.pop() else { return false };
        let errors = [None; MAX_LEGS];
        if self.mirror.regions.begin_write(region) == Begin::Mark {
            // Not dirty after all: nothing may be written here. The log worker asks again if it must.
            self.mirror.regions.end_write(region);
            self.tell_worker(WorkerNote::Copied { region, ok: LegSet::EMPTY, errors }, actions);
            return true;
        }
        self.jobs[slot] = Some(Job {
            region,
            step: Step::Pace,
            targets,
            errors,
            unreadable: LegSet::EMPTY,
            offset: self.mirror.geometry.region_start(region),
            len: 0,
            pending: LegSet::EMPTY,
        });
        self.next_window(slot as u32, actions);
        true
    }

    fn job(&mut self, io: u32) -> &mut Job {
        self.jobs[io as usize].as_mut().expect("a copy under way")
    }

    /// Goes on behind the present window, or ends the job.
    fn next_window(&mut self, io: u32, actions: &mut Vec<BackgroundAction>) {
        let (geometry, window) = (self.mirror.geometry, self.window);
        let in_use = self.mirror.legs.states().in_use();
        let job = self.job(io);
        job.targets = job.targets.intersect(in_use);
        job.offset += job.len;
        let end = geometry.region_start(job.region) + geometry.region_len(job.region);
        job.len = window.min(end - job.offset);
        job.unreadable = LegSet::EMPTY;
        if job.len == 0 || job.targets.is_empty() {
            return self.finish(io, actions);
        }
        job.step = Step::Pace;
        let bytes = job.len;
        actions.push(BackgroundAction::Pace { io, bytes });
    }

    fn finish(&mut self, io: u32, actions: &mut Vec<BackgroundAction>) {
        let job = self.jobs[io as usize].take().expect("a copy under way");
        self.mirror.regions.end_write(job.region);
        let note = WorkerNote::Copied { region: job.region, ok: job.targets, errors: job.errors };
        self.tell_worker(note, actions);
    }

    fn owner(&self, io: u32) -> Owner {
        Owner { queue: self.mirror.background(), io }
    }

    fn lock_window(&mut self, io: u32, actions: &mut Vec<BackgroundAction>) {
        let owner = self.owner(io);
        let job = self.job(io);
        assert_eq!(job.step, Step::Pace);
        job.step = Step::Range;
        let (region, offset, len) = (job.region, job.offset, job.len);
        if self.mirror.ranges.acquire(owner, region, offset, len, Hold::Exclusive) {
            self.read_window(io, actions);
        }
    }

    fn unlock_window(&mut self, io: u32, actions: &mut Vec<BackgroundAction>) {
        let region = self.job(io).region;
        let mut released = Vec::new();
        self.mirror.ranges.release(self.owner(io), region, &mut released);
        for owner in released {
            if owner.queue == self.mirror.background() {
                self.granted.push(owner.io);
            } else {
                self.mirror.tell_queue(owner.queue, QueueNote::Granted { io: owner.io });
                actions.push(BackgroundAction::Queue(Action::Wake(owner.queue)));
            }
        }
    }

    fn submit(&mut self, io: u32, step: Step, legs: LegSet, op: LegOp, actions: &mut Vec<BackgroundAction>) {
        let job = self.job(io);
        job.step = step;
        job.pending = legs;
        let (offset, len) = (job.offset, job.len);
        for leg in legs.iter() {
            let io = LegIo { io, tag: io, leg, op, offset, len, buf_offset: 0 };
            actions.push(BackgroundAction::Queue(Action::Submit(io)));
        }
    }

    fn read_window(&mut self, io: u32, actions: &mut Vec<BackgroundAction>) {
        let sources = self.mirror.legs.states().in_sync();
        let Some(source) = sources.minus(self.job(io).unreadable).lowest() else {
            // No leg in sync can read this window: the region stays stale.
            self.unlock_window(io, actions);
            self.job(io).targets = LegSet::EMPTY;
            return self.finish(io, actions);
        };
        self.submit(io, Step::Read, LegSet::one(source), LegOp::Read, actions);
    }

    fn leg_done(
        &mut self,
        io: u32,
        leg: Leg,
        result: Result<(), Errno>,
        zeroes: bool,
        actions: &mut Vec<BackgroundAction>,
    ) {
        let in_use = self.mirror.legs.states().in_use();
        let job = self.job(io);
        job.pending.remove(leg);
        match (job.step, result) {
            (Step::Read, Ok(())) => {
                let op = if zeroes { LegOp::Zero { fua: false } } else { LegOp::Write { fua: false } };
                // A leg that is out now has missed this window, whatever becomes of it.
                job.targets = job.targets.intersect(in_use);
                let targets = job.targets;
                if targets.is_empty() {
                    self.unlock_window(io, actions);
                    self.next_window(io, actions);
                } else {
                    self.submit(io, Step::Write, targets, op, actions);
                }
            }
            (Step::Read, Err(_)) => {
                job.unreadable.insert(leg);
                Counters::add(&self.mirror.legs.counters[leg].read_errors, 1);
                self.read_window(io, actions);
            }
            (Step::Write, result) => {
                let len = job.len;
                if let Err(errno) = result {
                    job.targets.remove(leg);
                    job.errors[leg.index()] = Some(errno);
                    Counters::add(&self.mirror.legs.counters[leg].write_errors, 1);
                } else {
                    Counters::add(&self.mirror.legs.counters[leg].resynced_bytes, len);
                }
                if self.job(io).pending.is_empty() {
                    self.unlock_window(io, actions);
                    self.next_window(io, actions);
                }
            }
            (step, _) => unreachable!("leg IO in step {step:?}"),
        }
    }
}
