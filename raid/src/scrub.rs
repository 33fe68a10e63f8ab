//! Scrub: compares the legs in sync, window by window from one end of the volume to the other, and, if it is to,
//! writes what differs anew on the legs that are wrong. A part of the background worker, with its thread and ring.
//!
//! A window is held exclusively from before it is read until it is compared and repaired, so a write in flight
//! never looks like a difference. Which legs are compared is decided once it is held; a leg that leaves meanwhile is
//! left out. Bytes are compared by the driver ([`BackgroundAction::Compare`]). A repair is a write like those of
//! users: it counts as one in the region and for a split, waits for the region's mark, and marks legs that are
//! split off as changed there. It is durable when it is done: the region is dirty, and after a crash the
//! source decides what it holds.
//!
//! No window begins while regions are being copied (resync goes first), while a split has writes wait, or with
//! fewer than two legs in sync. What it waits for wakes it: nothing is polled.
//!
//! A window in which a leg cannot read something is compared again block by block, so that no more than the bad
//! block is left out, and is written anew by read repair.

use std::sync::Arc;

use crate::background::{BackgroundAction, COPY_SLOTS, release_range};
use crate::durable::Ticket;
use crate::geometry::{Region, SECTOR};
use crate::mirror::{Counters, LegErrors, Mirror, WorkerNote};
use crate::ranges::{Hold, Owner};
use crate::region::Begin;
use crate::request::Action;
use crate::types::{Errno, Leg, LegIo, LegOp, LegSet, MAX_LEGS};

/// The buffer of a scrub for leg n has the tag `SCRUB_TAGS + n`.
pub const SCRUB_TAGS: u32 = COPY_SLOTS;

/// The `io` of a scrub: behind the copies and the flush.
pub const SCRUB_IO: u32 = COPY_SLOTS + 1;

/// Bytes compared at once where something cannot be read: what read repair writes at the least.
const BLOCK: u64 = 4096;

/// Which of the compared legs have the same bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Groups {
    /// For each leg the lowest one that has the same.
    same_as: [u8; MAX_LEGS],
}

impl Groups {
    /// `same` says whether two of `legs` have the same bytes.
    fn new(legs: LegSet, same: impl Fn(Leg, Leg) -> bool) -> Groups {
        let mut same_as = [u8::MAX; MAX_LEGS];
        for leg in legs.iter() {
            let first = legs.iter().find(|&other| other == leg || same(other, leg)).unwrap_or(leg);
            same_as[leg.index()] = first.index() as u8;
        }
        Groups { same_as }
    }

    /// Those of `legs` that have the same as `leg`.
    pub fn alike(&self, leg: Leg, legs: LegSet) -> LegSet {
        legs.iter().filter(|other| self.same_as[other.index()] == self.same_as[leg.index()]).collect()
    }

    /// Those of `legs` that have the same, if they are more than half of them.
    pub fn majority(&self, legs: LegSet) -> Option<LegSet> {
        legs.iter().map(|leg| self.alike(leg, legs)).find(|alike| 2 * alike.len() > legs.len())
    }

    fn differ(&self, legs: LegSet) -> bool {
        legs.lowest().is_some_and(|leg| self.alike(leg, legs) != legs)
    }
}

/// A range in which legs differ, in bytes of the volume: whole sectors, all alike in how the legs differ.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Difference {
    /// Where.
    pub offset: u64,
    /// How much.
    pub len: u64,
    /// Who has what.
    pub groups: Groups,
}

/// The ranges of `len` bytes at `offset` in which `legs` differ; `same` says whether two of them have the same in a
/// sector, counted from `offset`.
pub fn differences(
    legs: LegSet,
    offset: u64,
    len: u64,
    same: impl Fn(Leg, Leg, u64) -> bool,
) -> Vec<Difference> {
    let mut found: Vec<Difference> = Vec::new();
    for sector in 0..len / SECTOR {
        let groups = Groups::new(legs, |one, other| same(one, other, sector));
        if !groups.differ(legs) {
            continue;
        }
        let at = offset + sector * SECTOR;
        match found.last_mut() {
            Some(last) if last.offset + last.len == at && last.groups == groups => last.len += SECTOR,
            _ => found.push(Difference { offset: at, len: SECTOR, groups }),
        }
    }
    found
}

/// Whether a scrub repairs, and from where.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ScrubRepair {
    /// It does not.
    No,
    /// From the majority of the compared legs if there is one, else from the lowest.
    FromMost,
    /// From this leg, as long as it is in sync.
    From(Leg),
}

/// What a scrub is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ScrubCommand {
    /// Begin. Nothing happens if one is under way.
    Start {
        /// Where, in bytes.
        from: u64,
        /// What to do about differences.
        repair: ScrubRepair,
    },
    /// Hold after the present window, or go on.
    Pause(bool),
    /// End after the present window.
    Cancel,
}

/// Why a scrub does not go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ScrubWait {
    /// Regions are being copied.
    Resync,
    /// A leg is being split off.
    Split,
    /// Fewer than two legs are in sync.
    Legs,
}

/// What a scrub has to say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ScrubReport {
    /// Everything before this byte is done.
    Reached {
        /// The byte.
        next: u64,
    },
    /// Legs differ. Said once for each range, before it is reached.
    Differs {
        /// Where and how.
        difference: Difference,
        /// The legs that were compared.
        legs: LegSet,
        /// Those that were written anew.
        repaired: LegSet,
    },
    /// A leg could not read its part.
    Unreadable {
        /// The leg.
        leg: Leg,
    },
    /// It waits, or no longer.
    Waits {
        /// For what.
        wait: Option<ScrubWait>,
    },
    /// It is over.
    Ended {
        /// It went through to the end.
        complete: bool,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// No window is under way.
    Idle,
    Pace,
    Range,
    Read,
    Compare,
    Mark,
    Write,
    /// As for a write of users that has to be durable.
    Join,
}

#[derive(Clone, Copy, Debug)]
struct Order {
    /// First byte that is not done.
    next: u64,
    repair: ScrubRepair,
    canceled: bool,
    waits: Option<ScrubWait>,
}

/// What a step adds to.
pub(crate) struct Out<'a> {
    pub(crate) actions: &'a mut Vec<BackgroundAction>,
    /// Slots of the background worker that hold their range now.
    pub(crate) granted: &'a mut Vec<u32>,
    /// Slots whose durable IO waits for that of others no longer.
    pub(crate) joined: &'a mut Vec<u32>,
}

impl Out<'_> {
    fn report(&mut self, report: ScrubReport) {
        self.actions.push(BackgroundAction::Scrub(report));
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Scrub {
    mirror: Arc<Mirror>,
    order: Option<Order>,
    paused: bool,
    step: Step,
    /// The window.
    region: Region,
    offset: u64,
    len: u64,
    /// Up to here windows are blocks.
    blocks_until: u64,
    /// Legs that are compared.
    legs: LegSet,
    pending: LegSet,
    errors: LegErrors,
    /// What differs in the window, and which is being repaired.
    found: Vec<Difference>,
    repairing: usize,
    /// Where that was written.
    written: LegSet,
    ticket: Ticket,
    /// The repair of the window counts as a write.
    counted: bool,
}

impl Scrub {
    pub(crate) fn new(mirror: Arc<Mirror>) -> Scrub {
        Scrub {
            mirror,
            order: None,
            paused: false,
            step: Step::Idle,
            region: Region(0),
            offset: 0,
            len: 0,
            blocks_until: 0,
            legs: LegSet::EMPTY,
            pending: LegSet::EMPTY,
            errors: [None; MAX_LEGS],
            found: Vec::new(),
            repairing: 0,
            written: LegSet::EMPTY,
            ticket: Ticket::default(),
            counted: false,
        }
    }

    /// Whether no window is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.step == Step::Idle
    }

    pub(crate) fn command(&mut self, command: ScrubCommand, out: &mut Out<'_>) {
        match command {
            ScrubCommand::Start { from, repair } if self.order.is_none() => {
                self.order = Some(Order { next: from, repair, canceled: false, waits: None });
                self.blocks_until = 0;
            }
            ScrubCommand::Start { .. } => {}
            ScrubCommand::Pause(paused) => self.paused = paused,
            ScrubCommand::Cancel => {
                if let Some(order) = &mut self.order {
                    order.canceled = true;
                }
            }
        }
        let canceled = self.order.is_some_and(|order| order.canceled);
        if self.step == Step::Pace && (self.paused || canceled) {
            // The throttle may hold it for long.
            out.actions.push(BackgroundAction::Unpace { io: SCRUB_IO });
            self.step = Step::Idle;
        }
    }

    /// Begins the next window of at most `window` bytes if there is one; `false` if nothing was begun.
    pub(crate) fn start_window(&mut self, window: u64, copying: bool, out: &mut Out<'_>) -> bool {
        let Some(order) = &mut self.order else { return false };
        if self.step != Step::Idle {
            return false;
        }
        let geometry = self.mirror.geometry();
        let complete = order.next >= geometry.size();
        if complete || order.canceled {
            self.order = None;
            out.report(ScrubReport::Ended { complete });
            return false;
        }
        let wait = if self.paused { None } else { obstacle(&self.mirror, copying) };
        if wait != order.waits {
            order.waits = wait;
            out.report(ScrubReport::Waits { wait });
        }
        if self.paused || wait.is_some() {
            return false;
        }
        self.region = geometry.region_at(order.next);
        let end = geometry.region_start(self.region) + geometry.region_len(self.region);
        let most = if order.next < self.blocks_until { BLOCK.min(window) } else { window };
        self.offset = order.next;
        self.len = most.min(end - order.next);
        self.step = Step::Pace;
        out.actions.push(BackgroundAction::Pace { io: SCRUB_IO, bytes: self.len });
        true
    }

    /// The throttle lets the window go on.
    pub(crate) fn proceed(&mut self, copying: bool, out: &mut Out<'_>) {
        assert_eq!(self.step, Step::Pace);
        if obstacle(&self.mirror, copying).is_some() {
            self.step = Step::Idle;
            return;
        }
        self.step = Step::Range;
        if self.mirror.ranges.acquire(self.owner(), self.region, self.offset, self.len, Hold::Exclusive) {
            self.read(out);
        }
    }

    /// The window is held: reads it from every leg in sync.
    pub(crate) fn read(&mut self, out: &mut Out<'_>) {
        assert_eq!(self.step, Step::Range);
        // What was true when it began need not be now.
        if obstacle(&self.mirror, false).is_some() {
            return self.leave(out);
        }
        self.legs = self.mirror.legs.states().in_sync();
        (self.errors, self.written) = ([None; MAX_LEGS], LegSet::EMPTY);
        self.step = Step::Read;
        self.pending = self.legs;
        for leg in self.legs.iter() {
            let tag = SCRUB_TAGS + leg.index() as u32;
            let (offset, len) = (self.offset, self.len);
            let io = LegIo { io: SCRUB_IO, tag, leg, op: LegOp::Read, offset, len, buf_offset: 0 };
            out.actions.push(BackgroundAction::Queue(Action::Submit(io)));
        }
    }

    pub(crate) fn leg_done(&mut self, leg: Leg, result: Result<(), Errno>, out: &mut Out<'_>) {
        self.pending.remove(leg);
        match self.step {
            Step::Read => {
                if let Err(errno) = result {
                    self.errors[leg.index()] = Some(errno);
                    Counters::add(&self.mirror.legs.counters[leg].read_errors, 1);
                }
                if self.pending.is_empty() {
                    self.compare(out);
                }
            }
            Step::Write => {
                if let Err(errno) = result {
                    if !errno.is_given_up() && !errno.is_no_space() {
                        self.mirror.legs.flush_failed(leg);
                    }
                    self.failed_to_write(leg, errno);
                }
                let act = |action| out.actions.push(BackgroundAction::Queue(action));
                self.mirror.durable_handled(self.mirror.background(), self.ticket, leg, out.joined, act);
                if self.pending.is_empty() {
                    self.step = Step::Join;
                    if self.mirror.durable.join(self.owner(), self.written.minus(self.failed())) {
                        self.joined(out);
                    }
                }
            }
            step => unreachable!("leg IO of a scrub in step {step:?}"),
        }
    }

    fn failed_to_write(&mut self, leg: Leg, errno: Errno) {
        self.errors[leg.index()] = Some(errno);
        Counters::add(&self.mirror.legs.counters[leg].write_errors, 1);
    }

    /// The present range was written, and no durable IO that began before is left to be handled.
    pub(crate) fn joined(&mut self, out: &mut Out<'_>) {
        assert_eq!(self.step, Step::Join);
        // A leg that failed a flush has forgotten: what it says of a durable write need not count.
        let forgotten = self.written.intersect(self.mirror.legs.unflushed()).minus(self.failed());
        forgotten.iter().for_each(|leg| self.failed_to_write(leg, Errno::EIO));
        self.report_difference(out);
        self.write_next(out);
    }

    /// Whether a window is under way and not waiting for the throttle.
    pub(crate) fn has_window(&self) -> bool {
        !matches!(self.step, Step::Idle | Step::Pace)
    }

    fn owner(&self) -> Owner {
        Owner { queue: self.mirror.background(), io: SCRUB_IO }
    }

    /// Legs that failed the present step.
    fn failed(&self) -> LegSet {
        self.legs.iter().filter(|leg| self.errors[leg.index()].is_some()).collect()
    }

    /// The legs were read.
    fn compare(&mut self, out: &mut Out<'_>) {
        let in_sync = self.legs.intersect(self.mirror.legs.states().in_sync());
        let failed = self.failed();
        let answered = |leg: &Leg| !self.errors[leg.index()].is_some_and(Errno::is_given_up);
        if self.len > BLOCK && failed.iter().any(|leg| answered(&leg)) {
            self.blocks_until = self.offset + self.len;
            return self.leave(out);
        }
        if in_sync.len() < 2 {
            // It is compared when there are two again.
            return self.leave(out);
        }
        for leg in failed.intersect(in_sync).iter() {
            out.report(ScrubReport::Unreadable { leg });
        }
        self.legs = in_sync.minus(failed);
        if !self.legs.is_empty() && self.mirror.tell_unreadable(&self.errors, self.offset, self.len) {
            out.actions.push(BackgroundAction::Queue(Action::WakeWorker));
        }
        self.errors = [None; MAX_LEGS];
        if self.legs.len() < 2 {
            return self.finish(out);
        }
        self.step = Step::Compare;
        let (legs, offset, len) = (self.legs, self.offset, self.len);
        out.actions.push(BackgroundAction::Compare { legs, offset, len });
    }

    /// The driver compared the window.
    pub(crate) fn compared(&mut self, found: Vec<Difference>, out: &mut Out<'_>) {
        assert_eq!(self.step, Step::Compare);
        // A leg that left since then says nothing.
        self.legs = self.legs.intersect(self.mirror.legs.states().in_sync());
        self.found = found;
        self.found.retain(|difference| difference.groups.differ(self.legs));
        self.repairing = 0;
        if !self.found.iter().any(|difference| self.good(difference).is_some()) {
            return self.write_next(out);
        }
        if !self.mirror.write_begins(self.mirror.background()) {
            // It differs still when the split is done.
            return self.leave(out);
        }
        self.counted = true;
        self.step = Step::Mark;
        match self.mirror.regions.begin_write(self.region) {
            Begin::Write => self.marked(Ok(()), out),
            Begin::Mark => {
                self.tell_worker(WorkerNote::Mark { region: self.region, from: self.owner() }, out);
            }
        }
    }

    /// The region's mark is durable, or could not be made so: then nothing may be written.
    pub(crate) fn marked(&mut self, result: Result<(), Errno>, out: &mut Out<'_>) {
        assert_eq!(self.step, Step::Mark);
        if result.is_ok() {
            let tracked = self.mirror.legs.states().tracked();
            tracked.iter().for_each(|leg| self.mirror.legs.set_stale(leg, self.region));
            return self.write_next(out);
        }
        self.step = Step::Compare;
        self.write_next(out);
    }

    /// The legs that are right about a range, if it is to be repaired and that can be told.
    fn good(&self, difference: &Difference) -> Option<LegSet> {
        let groups = difference.groups;
        match self.order.as_ref()?.repair {
            ScrubRepair::No => None,
            ScrubRepair::From(leg) => self.legs.contains(leg).then(|| groups.alike(leg, self.legs)),
            ScrubRepair::FromMost => {
                let lowest = || self.legs.lowest().map(|leg| groups.alike(leg, self.legs));
                groups.majority(self.legs).or_else(lowest)
            }
        }
    }

    /// Writes the next range that differs to the legs that are wrong; ends the window behind the last.
    fn write_next(&mut self, out: &mut Out<'_>) {
        let may_write = matches!(self.step, Step::Mark | Step::Join);
        while let Some(&difference) = self.found.get(self.repairing) {
            let good = self.good(&difference).filter(|_| may_write);
            let source = good.and_then(LegSet::lowest);
            let in_use = self.legs.intersect(self.mirror.legs.states().in_use());
            let targets = in_use.minus(good.unwrap_or(LegSet::EMPTY)).minus(self.failed());
            if let Some(source) = source.filter(|_| !targets.is_empty()) {
                return self.write(&difference, source, targets, out);
            }
            self.report(difference, LegSet::EMPTY, out);
            self.repairing += 1;
        }
        self.finish(out);
    }

    fn write(&mut self, difference: &Difference, source: Leg, targets: LegSet, out: &mut Out<'_>) {
        self.step = Step::Write;
        (self.pending, self.written) = (targets, targets);
        self.ticket = self.mirror.durable.begin(targets);
        let Difference { offset, len, .. } = *difference;
        // Whole blocks, each leg's own but for what is wrong there: nobody can write less to some drives.
        let start = (offset / BLOCK * BLOCK).max(self.offset);
        let end = (offset + len).next_multiple_of(BLOCK).min(self.offset + self.len);
        let buf_offset = (start - self.offset) as u32;
        for leg in targets.iter() {
            let tag = SCRUB_TAGS + leg.index() as u32;
            out.actions.push(BackgroundAction::Patch {
                from: source,
                to: leg,
                at: offset - self.offset,
                len,
            });
            let (offset, len) = (start, end - start);
            let op = LegOp::Write { fua: true };
            let io = LegIo { io: SCRUB_IO, tag, leg, op, offset, len, buf_offset };
            out.actions.push(BackgroundAction::Queue(Action::Submit(io)));
        }
    }

    /// The present range was written.
    fn report_difference(&mut self, out: &mut Out<'_>) {
        let difference = self.found[self.repairing];
        let repaired = self.legs.intersect(self.written).minus(self.failed());
        self.report(difference, repaired, out);
        self.repairing += 1;
    }

    fn report(&self, difference: Difference, repaired: LegSet, out: &mut Out<'_>) {
        out.report(ScrubReport::Differs { difference, legs: self.legs, repaired });
    }

    /// The window is done.
    fn finish(&mut self, out: &mut Out<'_>) {
        let next = self.offset + self.len;
        if let Some(order) = &mut self.order {
            order.next = next;
        }
        out.report(ScrubReport::Reached { next });
        self.leave(out);
    }

    /// Lets go of the window.
    fn leave(&mut self, out: &mut Out<'_>) {
        self.step = Step::Idle;
        self.found.clear();
        release_range(&self.mirror, SCRUB_IO, self.region, out.granted, out.actions);
        if !std::mem::take(&mut self.counted) {
            return;
        }
        if !self.written.is_empty() {
            // Before the region can be cleared.
            self.tell_worker(WorkerNote::Scrubbed { region: self.region, errors: self.errors }, out);
        }
        self.mirror.regions.end_write(self.region);
        if self.mirror.write_ends(self.mirror.background()) {
            out.actions.push(BackgroundAction::Queue(Action::WakeWorker));
        }
    }

    fn tell_worker(&self, note: WorkerNote, out: &mut Out<'_>) {
        self.mirror.tell_worker(note);
        out.actions.push(BackgroundAction::Queue(Action::WakeWorker));
    }
}

/// What is in the way of a window.
fn obstacle(mirror: &Mirror, copying: bool) -> Option<ScrubWait> {
    if copying {
        Some(ScrubWait::Resync)
    } else if mirror.is_frozen() {
        Some(ScrubWait::Split)
    } else {
        (mirror.legs.states().in_sync().len() < 2).then_some(ScrubWait::Legs)
    }
}

#[cfg(test)]
mod tests;
