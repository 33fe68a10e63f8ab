//! The background worker's leg IO: copies stale regions (resync), repairs ranges that could not be
//! read, and flushes legs, all as the log worker asks. Runs on a thread and ring of its own, like a queue.
//!
//! A region is copied window by window. A window's range is held exclusively while it is read from
//! a leg in sync and written to the stale legs: writers to it wait, and it is small. The region is
//! counted as being written to meanwhile, so that it cannot be cleared before the copy is flushed.
//! Before each window the driver is asked ([`BackgroundAction::Pace`]) and answers when the throttle lets it.
//!
//! A repair is a copy to one leg of the range that it could not read. Its region may be clean, so it
//! waits for the mark first, as a write does. The throttle does not hold it, and it writes zeroes as
//! such: a hole need not touch the medium.
//!
//! A scrub ([`crate::scrub`]) has a slot of its own and a buffer for each leg.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::durable::Ticket;
use crate::geometry::Region;
use crate::mirror::{Counters, LegErrors, Mirror, QueueNote, WorkerNote};
use crate::ranges::{Hold, Owner};
use crate::region::Begin;
use crate::request::Action;
use crate::scrub::{Difference, Out, SCRUB_IO, Scrub, ScrubCommand, ScrubReport};
use crate::types::{Errno, Leg, LegIo, LegOp, LegSet, MAX_LEGS};

/// Slots, each with a buffer: one for repairs, the others for copies.
pub const COPY_SLOTS: u32 = REGIONS_AT_ONCE + 1;

/// Regions copied at once. More than one, so that a leg is read while another is written.
pub(crate) const REGIONS_AT_ONCE: u32 = 4;

/// The slot of repairs. Its own: the throttle may hold the copies for long.
const REPAIR: u32 = REGIONS_AT_ONCE;

/// Largest window, in bytes: what a writer may have to wait for, and the size of a slot's buffer.
pub const WINDOW: u64 = 1 << 20;

/// The `io` of a flush.
const FLUSH_IO: u32 = COPY_SLOTS;

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug)]
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
    /// What to scrub, or no longer.
    Scrub(ScrubCommand),
    /// A window was compared: [`BackgroundAction::Compare`].
    Compared(Vec<Difference>),
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
    /// Do not send it any more.
    Unpace {
        /// The slot.
        io: u32,
    },
    /// Compare what these legs were read to say, then send [`BackgroundEvent::Compared`].
    Compare {
        /// Which; their buffers are those with the tags from [`crate::SCRUB_TAGS`] on.
        legs: LegSet,
        /// Where, in bytes of the volume; the buffers begin there.
        offset: u64,
        /// How much, in bytes.
        len: u64,
    },
    /// Copy bytes between two buffers of the scrub.
    Patch {
        /// Of which leg.
        from: Leg,
        /// To the one of which.
        to: Leg,
        /// Where in both, in bytes.
        at: u64,
        /// How much, in bytes.
        len: u64,
    },
    /// What the scrub has to say.
    Scrub(ScrubReport),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Mark,
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
    /// Errors of legs that the present window could not be read from.
    unreadable: LegErrors,
    /// The window, in bytes of the volume.
    offset: u64,
    len: u64,
    /// End of the last window.
    end: u64,
    pending: LegSet,
}

impl Job {
    /// A copy of `len` bytes at `offset` to `targets`, before its first window.
    fn new(region: Region, offset: u64, len: u64, targets: LegSet) -> Job {
        Job {
            region,
            step: Step::Mark,
            targets,
            errors: [None; MAX_LEGS],
            unreadable: [None; MAX_LEGS],
            offset,
            len: 0,
            end: offset + len,
            pending: LegSet::EMPTY,
        }
    }
}

/// A flush that the log worker asked for.
#[derive(Clone, Copy, Debug)]
struct Flush {
    legs: LegSet,
    pending: LegSet,
    errors: LegErrors,
    ticket: Ticket,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Background {
    mirror: Arc<Mirror>,
    window: u64,
    jobs: [Option<Job>; COPY_SLOTS as usize],
    waiting: Vec<(Region, LegSet)>,
    repairs: VecDeque<(Leg, u64, u64)>,
    flush: Option<Flush>,
    granted: Vec<u32>,
    /// Slots whose durable IO waits for that of others no longer.
    joined: Vec<u32>,
    scrub: Scrub,
}

impl Background {
    /// The background worker of `mirror`, copying at most `window` bytes at once.
    pub fn new(mirror: Arc<Mirror>, window: u64) -> Background {
        let jobs = [None; COPY_SLOTS as usize];
        let (waiting, repairs) = (Vec::new(), VecDeque::new());
        let (granted, joined) = (Vec::new(), Vec::new());
        let scrub = Scrub::new(Arc::clone(&mirror));
        Background { mirror, window, jobs, waiting, repairs, flush: None, granted, joined, scrub }
    }

    /// Copies and compares at most `window` bytes at once from the next window on.
    pub fn set_window(&mut self, window: u64) {
        self.window = window;
    }

    /// Takes one event and adds what is to be done to `actions`.
    pub fn handle(&mut self, event: BackgroundEvent, actions: &mut Vec<BackgroundAction>) {
        match event {
            BackgroundEvent::Woken => self.woken(actions),
            BackgroundEvent::Proceed { io: SCRUB_IO } => {
                let copying = self.is_copying();
                self.scrub(actions, |scrub, out| scrub.proceed(copying, out));
            }
            BackgroundEvent::LegDone { io: SCRUB_IO, leg, result, .. } => {
                self.scrub(actions, |scrub, out| scrub.leg_done(leg, result, out));
            }
            BackgroundEvent::Scrub(command) => {
                self.scrub(actions, |scrub, out| scrub.command(command, out));
            }
            BackgroundEvent::Compared(found) => self.scrub(actions, |scrub, out| scrub.compared(found, out)),
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
                match io {
                    SCRUB_IO => self.scrub(actions, Scrub::read),
                    io => self.read_window(io, actions),
                }
            } else if let Some(io) = self.joined.pop() {
                match io {
                    SCRUB_IO => self.scrub(actions, Scrub::joined),
                    _ => self.all_flushed(actions),
                }
            } else if !self.start_repair(actions) && !self.start_copy(actions) {
                let (window, copying) = (self.window, self.is_copying());
                self.scrub(actions, |scrub, out| scrub.start_window(window, copying, out));
                return;
            }
        }
    }

    fn scrub<T>(
        &mut self,
        actions: &mut Vec<BackgroundAction>,
        step: impl FnOnce(&mut Scrub, &mut Out<'_>) -> T,
    ) -> T {
        step(&mut self.scrub, &mut Out { actions, granted: &mut self.granted, joined: &mut self.joined })
    }

    /// Whether regions are being copied: repairs aside.
    fn is_copying(&self) -> bool {
        !self.waiting.is_empty() || self.jobs[..REPAIR as usize].iter().any(Option::is_some)
    }

    /// Whether a window is under way in a slot and does not wait for the throttle.
    pub fn has_window(&self, io: u32) -> bool {
        match self.jobs.get(io as usize) {
            Some(job) => job.is_some_and(|job| !matches!(job.step, Step::Mark | Step::Pace)),
            None => self.scrub.has_window(),
        }
    }

    /// Whether no window of a scrub is under way.
    pub fn scrub_is_idle(&self) -> bool {
        self.scrub.is_idle()
    }

    /// Whether nothing is under way.
    pub fn is_idle(&self) -> bool {
        let waiting = self.waiting.len() + self.repairs.len();
        self.jobs.iter().all(Option::is_none) && waiting == 0 && self.flush.is_none() && self.scrub.is_idle()
    }

    fn woken(&mut self, actions: &mut Vec<BackgroundAction>) {
        let mut notes = Vec::new();
        self.mirror.take_queue_notes(self.mirror.background(), &mut notes);
        for note in notes {
            match note {
                QueueNote::Granted { io } => self.granted.push(io),
                QueueNote::Joined { io } => self.joined.push(io),
                QueueNote::Copy { region, targets } => self.waiting.push((region, targets)),
                QueueNote::Repair { leg, offset, len } => self.repairs.push_back((leg, offset, len)),
                QueueNote::Marked { io: SCRUB_IO, result } => {
                    self.scrub(actions, |scrub, out| scrub.marked(result, out));
                }
                QueueNote::Marked { io, result } => self.marked(io, result, actions),
                QueueNote::Flush { legs } => self.start_flush(legs, actions),
                QueueNote::Settled { .. } => {
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
        let ticket = self.mirror.durable.begin(legs);
        self.flush = Some(Flush { legs, pending: legs, errors: [None; MAX_LEGS], ticket });
        for leg in legs.iter() {
            let io = LegIo { io: FLUSH_IO, tag: 0, leg, op: LegOp::Flush, offset: 0, len: 0, buf_offset: 0 };
            actions.push(BackgroundAction::Queue(Action::Submit(io)));
        }
    }

    fn flushed(&mut self, leg: Leg, result: Result<(), Errno>, actions: &mut Vec<BackgroundAction>) {
        let flush = self.flush.as_mut().expect("a flush is under way");
        flush.pending.remove(leg);
        if let Err(errno) = result {
            if !errno.is_given_up() {
                self.mirror.legs.flush_failed(leg);
            }
            flush.errors[leg.index()] = Some(errno);
            Counters::add(&self.mirror.legs.counters[leg].flush_errors, 1);
        }
        let Flush { legs, pending, errors, ticket } = *flush;
        let act = |action| actions.push(BackgroundAction::Queue(action));
        self.mirror.durable_handled(self.mirror.background(), ticket, leg, &mut self.joined, act);
        let ok = legs.iter().filter(|leg| errors[leg.index()].is_none()).collect();
        if pending.is_empty() && self.mirror.durable.join(self.owner(FLUSH_IO), ok) {
            self.all_flushed(actions);
        }
    }

    /// The flush is over, and no other one that began before is left to be handled.
    fn all_flushed(&mut self, actions: &mut Vec<BackgroundAction>) {
        let Flush { legs, mut errors, .. } = self.flush.take().expect("a flush is under way");
        for leg in legs.intersect(self.mirror.legs.unflushed()).iter() {
            errors[leg.index()].get_or_insert(Errno::EIO);
        }
        self.tell_worker(WorkerNote::Flushed { legs, errors }, actions);
    }

    // ---- repair

    /// Starts the oldest repair if none is under way; `false` if nothing was started.
    fn start_repair(&mut self, actions: &mut Vec<BackgroundAction>) -> bool {
        if self.jobs[REPAIR as usize].is_some() {
            return false;
        }
        let Some((leg, offset, len)) = self.repairs.pop_front() else { return false };
        let region = self.mirror.geometry().region_at(offset);
        self.jobs[REPAIR as usize] = Some(Job::new(region, offset, len, LegSet::one(leg)));
        match self.mirror.regions.begin_write(region) {
            Begin::Write => self.next_window(REPAIR, actions),
            Begin::Mark => {
                let from = self.owner(REPAIR);
                self.tell_worker(WorkerNote::Mark { region, from }, actions);
            }
        }
        true
    }

    fn marked(&mut self, io: u32, result: Result<(), Errno>, actions: &mut Vec<BackgroundAction>) {
        let job = self.job(io);
        assert_eq!(job.step, Step::Mark);
        if result.is_err() {
            // Nothing may be written here: given up, until the range is read again.
            job.targets = LegSet::EMPTY;
        }
        self.next_window(io, actions);
    }

    // ---- copy

    /// Puts a waiting region into a free slot; `false` if there is none of either.
    fn start_copy(&mut self, actions: &mut Vec<BackgroundAction>) -> bool {
        let free = self.jobs[..REPAIR as usize].iter().position(Option::is_none);
        let Some(slot) = free else { return false };
        let Some((region, targets)) = self.waiting.pop() else { return false };
        if !self.mirror.regions.begin_copy(region) {
            // Not dirty after all: nothing may be written here. The log worker asks again if it must.
            let errors = [None; MAX_LEGS];
            self.tell_worker(WorkerNote::Copied { region, ok: LegSet::EMPTY, errors }, actions);
            return true;
        }
        let (start, len) =
            (self.mirror.geometry().region_start(region), self.mirror.geometry().region_len(region));
        self.jobs[slot] = Some(Job::new(region, start, len, targets));
        self.mirror.set_copying(slot, Some(region));
        self.next_window(slot as u32, actions);
        true
    }

    fn job(&mut self, io: u32) -> &mut Job {
        self.jobs[io as usize].as_mut().expect("a copy under way")
    }

    /// Goes on behind the present window, or ends the job.
    fn next_window(&mut self, io: u32, actions: &mut Vec<BackgroundAction>) {
        let window = self.window;
        let in_use = self.mirror.legs.states().in_use();
        let job = self.job(io);
        job.targets = job.targets.intersect(in_use);
        job.offset += job.len;
        job.len = window.min(job.end - job.offset);
        job.unreadable = [None; MAX_LEGS];
        if job.len == 0 || job.targets.is_empty() {
            return self.finish(io, actions);
        }
        job.step = Step::Pace;
        let bytes = job.len;
        if io == REPAIR {
            return self.lock_window(io, actions);
        }
        actions.push(BackgroundAction::Pace { io, bytes });
    }

    fn finish(&mut self, io: u32, actions: &mut Vec<BackgroundAction>) {
        let job = self.jobs[io as usize].take().expect("a copy under way");
        self.mirror.regions.end_write(job.region);
        let (region, ok, errors) = (job.region, job.targets, job.errors);
        let repaired = io == REPAIR;
        if !repaired {
            self.mirror.set_copying(io as usize, None);
        }
        self.tell_worker(
            if repaired {
                WorkerNote::Repaired { ok, errors }
            } else {
                WorkerNote::Copied { region, ok, errors }
            },
            actions,
        );
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
        release_range(&self.mirror, io, region, &mut self.granted, actions);
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
        let job = self.job(io);
        let sources = sources.minus(job.targets);
        let Some(source) = sources.iter().find(|leg| job.unreadable[leg.index()].is_none()) else {
            // No leg in sync can read this window: the region stays stale, or the bad block stays.
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
                let hole = zeroes && io != REPAIR;
                let op =
                    if hole { LegOp::Zero { fua: false, keep: false } } else { LegOp::Write { fua: false } };
                // A leg that is out now has missed this window, whatever becomes of it.
                job.targets = job.targets.intersect(in_use);
                let Job { targets, unreadable, offset, len, .. } = *job;
                if self.mirror.tell_unreadable(&unreadable, offset, len) {
                    actions.push(BackgroundAction::Queue(Action::WakeWorker));
                }
                if targets.is_empty() {
                    self.unlock_window(io, actions);
                    self.next_window(io, actions);
                } else {
                    self.submit(io, Step::Write, targets, op, actions);
                }
            }
            (Step::Read, Err(errno)) => {
                job.unreadable[leg.index()] = Some(errno);
                Counters::add(&self.mirror.legs.counters[leg].read_errors, 1);
                self.read_window(io, actions);
            }
            (Step::Write, result) => {
                let len = job.len;
                if let Err(errno) = result {
                    job.targets.remove(leg);
                    job.errors[leg.index()] = Some(errno);
                    Counters::add(&self.mirror.legs.counters[leg].write_errors, 1);
                } else if io != REPAIR {
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

/// Lets go of the range of a slot; slots that hold theirs now are added to `granted`.
pub(crate) fn release_range(
    mirror: &Mirror,
    io: u32,
    region: Region,
    granted: &mut Vec<u32>,
    actions: &mut Vec<BackgroundAction>,
) {
    let mut released = Vec::new();
    mirror.ranges.release(Owner { queue: mirror.background(), io }, region, &mut released);
    for owner in released {
        if owner.queue == mirror.background() {
            granted.push(owner.io);
        } else {
            mirror.tell_queue(owner.queue, QueueNote::Granted { io: owner.io });
            actions.push(BackgroundAction::Queue(Action::Wake(owner.queue)));
        }
    }
}

#[cfg(test)]
mod tests;
