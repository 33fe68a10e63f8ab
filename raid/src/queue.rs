//! One queue of the front end as a state machine: requests and completions in, leg IO and answers out.
//!
//! A request is split at region borders into *parts*. Life of a part:
//!
//! ```text
//! write: Range -> Mark -> (Fetch -> overlay ->) Write -> (Join ->) (Settle ->) done
//! read:  (Range ->) Read -> done                  flush: Flush -> (Join ->) (Settle ->) done
//! ```
//!
//! - `Range`: waits for its range lock. Writes always take one; reads only where writes are in
//!   flight in their region, so that a byte once read is not older at the next read. A read that a
//!   write overtook is done again behind that write: should the write fail, nobody may have seen it.
//! - `Mark`: waits until the region's bit is durable. The write is counted in the region from here on.
//! - `Fetch`: reads the blocks around an unaligned write.
//! - `Join`: a flush, or a write that has to be durable, waits until each one that began before is handled, whichever
//!   thread's it is ([`crate::durable`]).
//! - `Settle`: a leg was missed; the log worker records that and says how the request ends.
//!
//! Runs on the queue's thread, which alone owns it. Nothing here blocks or allocates once the
//! tables have grown to the working size.

use std::sync::Arc;

use crate::durable::Ticket;
use crate::mirror::{Counters, LegErrors, Mirror, QueueNote, WorkerNote};
use crate::ranges::{Hold, Owner};
use crate::region::Begin;
use crate::request::{Action, Event, Op, Request};
use crate::types::{Errno, Leg, LegIo, LegOp, LegSet, MAX_LEGS, QueueId};
use crate::{Region, legs::LegStates};

/// Parts of one request under way at once. Bounds the memory of a discard over the whole volume; many
/// enough that one log commit marks a good number of its regions.
const PARTS_AT_ONCE: u32 = 128;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Free,
    Range,
    Mark,
    Fetch,
    Write,
    Read,
    Flush,
    Join,
    Settle,
}

#[derive(Clone, Copy, Debug)]
struct Part {
    step: Step,
    tag: u32,
    op: Op,
    region: Region,
    offset: u64,
    len: u64,
    /// Holds its range.
    locked: bool,
    /// Counted as a write under way.
    begun: bool,
    /// Counted in its region as a write in flight.
    counted: bool,
    /// Legs the current step was sent to.
    targets: LegSet,
    /// Of these, not back yet.
    pending: LegSet,
    /// Of these, back and well.
    ok: LegSet,
    errors: LegErrors,
    /// Of a step that has to be durable.
    ticket: Option<Ticket>,
    /// Of a read: [`Mirror::undone_writes`] when it began.
    undone: u32,
}

#[derive(Clone, Copy, Debug)]
struct InFlight {
    request: Request,
    /// Where the next part starts, in bytes of the volume.
    cursor: u64,
    parts: u32,
    error: Option<Errno>,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct MirrorQueue {
    mirror: Arc<Mirror>,
    id: QueueId,
    parts: Vec<Part>,
    free: Vec<u32>,
    requests: Vec<Option<InFlight>>,
    /// Writes that wait for the end of a split.
    held: Vec<u32>,
    /// Parts of this queue that were granted their range while another part was handled.
    granted: Vec<u32>,
    /// The same, of those that waited for durable IO to be handled.
    joined: Vec<u32>,
    released: Vec<Owner>,
    notes: Vec<QueueNote>,
    /// Breaks ties between equally busy legs.
    turn: usize,
}

impl MirrorQueue {
    /// Queue `id` of `mirror`.
    pub fn new(mirror: Arc<Mirror>, id: QueueId) -> MirrorQueue {
        MirrorQueue {
            mirror,
            id,
            parts: Vec::new(),
            free: Vec::new(),
            requests: Vec::new(),
            held: Vec::new(),
            granted: Vec::new(),
            joined: Vec::new(),
            released: Vec::new(),
            notes: Vec::new(),
            turn: 0,
        }
    }

    /// Takes one event and adds what is to be done to `actions`.
    ///
    /// # Panics
    /// If the driver breaks the contract: a tag in use, a range outside the volume, a completion
    /// that nothing waits for.
    pub fn handle(&mut self, event: Event, actions: &mut Vec<Action>) {
        match event {
            Event::Request(request) => self.request(request, actions),
            Event::LegDone { io, leg, result } => self.leg_done(io, leg, result, actions),
            Event::Woken => {
                let mut notes = std::mem::take(&mut self.notes);
                self.mirror.take_queue_notes(self.id, &mut notes);
                for note in &notes {
                    self.note(*note, actions);
                }
                self.notes = notes;
                for io in std::mem::take(&mut self.held) {
                    self.begin_write(io, actions);
                }
            }
        }
        loop {
            if let Some(io) = self.granted.pop() {
                self.range_granted(io, actions);
            } else if let Some(io) = self.joined.pop() {
                self.joined(io, actions);
            } else {
                return;
            }
        }
    }

    /// Requests under way.
    pub fn in_flight(&self) -> usize {
        self.requests.iter().flatten().count()
    }

    fn owner(&self, io: u32) -> Owner {
        Owner { queue: self.id, io }
    }

    fn tell_worker(&self, note: WorkerNote, actions: &mut Vec<Action>) {
        self.mirror.tell_worker(note);
        actions.push(Action::WakeWorker);
    }

    fn note(&mut self, note: QueueNote, actions: &mut Vec<Action>) {
        match note {
            QueueNote::Granted { io } => self.range_granted(io, actions),
            QueueNote::Marked { io, result } => {
                assert_eq!(self.parts[io as usize].step, Step::Mark);
                match result {
                    Ok(()) => self.marked(io, actions),
                    Err(errno) => self.finish_part(io, Err(errno), actions),
                }
            }
            QueueNote::Joined { io } => self.joined(io, actions),
            QueueNote::Settled { io, result } => {
                assert_eq!(self.parts[io as usize].step, Step::Settle);
                self.finish_part(io, result, actions);
            }
            QueueNote::Copy { .. } | QueueNote::Repair { .. } | QueueNote::Flush { .. } => {
                unreachable!("a note for the background worker came to a queue")
            }
        }
    }

    // ---- requests and their parts

    fn request(&mut self, request: Request, actions: &mut Vec<Action>) {
        let slot = request.tag as usize;
        if self.requests.len() <= slot {
            self.requests.resize(slot + 1, None);
        }
        assert!(self.requests[slot].is_none(), "tag {slot} is in use");
        assert!(self.mirror.geometry().contains(request.offset, request.len), "beyond the volume");
        let cursor = request.offset;
        self.requests[slot] = Some(InFlight { request, cursor, parts: 0, error: None });
        if request.op == Op::Flush {
            self.flush(request, actions);
        } else {
            self.start_parts(request.tag, actions);
            self.complete_if_done(request.tag, actions);
        }
    }

    fn start_parts(&mut self, tag: u32, actions: &mut Vec<Action>) {
        loop {
            let entry = self.requests[tag as usize].as_mut().expect("a request under way");
            let request = entry.request;
            let rest = request.offset + request.len - entry.cursor;
            // The parts of an unaligned write share a buffer that each reads, changes and writes.
            let at_once = if request.patch { 1 } else { PARTS_AT_ONCE };
            if entry.error.is_some() || rest == 0 || entry.parts == at_once {
                return;
            }
            let (region, offset, len) =
                self.mirror.geometry().parts(entry.cursor, rest).next().expect("rest is not 0");
            entry.cursor += len;
            entry.parts += 1;
            let io = self.new_part(request, region, offset, len);
            if request.op == Op::Read {
                self.read(io, actions);
            } else {
                self.begin_write(io, actions);
            }
        }
    }

    fn begin_write(&mut self, io: u32, actions: &mut Vec<Action>) {
        if !self.mirror.write_begins(self.id) {
            self.held.push(io);
            return actions.push(Action::WakeWorker);
        }
        self.parts[io as usize].begun = true;
        if self.lock(io, Hold::Exclusive) {
            self.range_granted(io, actions);
        }
    }

    fn new_part(&mut self, request: Request, region: Region, offset: u64, len: u64) -> u32 {
        let part = Part {
            step: Step::Range,
            tag: request.tag,
            op: request.op,
            region,
            offset,
            len,
            locked: false,
            begun: false,
            counted: false,
            targets: LegSet::EMPTY,
            pending: LegSet::EMPTY,
            ok: LegSet::EMPTY,
            errors: [None; MAX_LEGS],
            ticket: None,
            undone: 0,
        };
        if let Some(io) = self.free.pop() {
            self.parts[io as usize] = part;
            io
        } else {
            self.parts.push(part);
            self.parts.len() as u32 - 1
        }
    }

    fn request_of(&self, io: u32) -> Request {
        let tag = self.parts[io as usize].tag;
        self.requests[tag as usize].as_ref().expect("a request under way").request
    }

    fn finish_part(&mut self, io: u32, result: Result<(), Errno>, actions: &mut Vec<Action>) {
        let part = self.parts[io as usize];
        if part.counted {
            self.mirror.regions.end_write(part.region);
        }
        if part.locked {
            self.mirror.ranges.release(self.owner(io), part.region, &mut self.released);
            for owner in self.released.drain(..) {
                if owner.queue == self.id {
                    self.granted.push(owner.io);
                } else {
                    self.mirror.tell_queue(owner.queue, QueueNote::Granted { io: owner.io });
                    actions.push(Action::Wake(owner.queue));
                }
            }
        }
        if part.begun && self.mirror.write_ends(self.id) {
            actions.push(Action::WakeWorker);
        }
        self.parts[io as usize].step = Step::Free;
        self.free.push(io);
        let entry = self.requests[part.tag as usize].as_mut().expect("a request under way");
        entry.parts -= 1;
        if let Err(errno) = result {
            entry.error.get_or_insert(errno);
        }
        if part.op != Op::Flush {
            self.start_parts(part.tag, actions);
        }
        self.complete_if_done(part.tag, actions);
    }

    fn complete_if_done(&mut self, tag: u32, actions: &mut Vec<Action>) {
        let slot = &mut self.requests[tag as usize];
        let Some(InFlight { request, error, .. }) = slot.take_if(|entry| entry.parts == 0) else {
            return;
        };
        let counters = &self.mirror.counters;
        Counters::add(
            match request.op {
                Op::Read => &counters.reads,
                Op::Write | Op::Zero { .. } => &counters.writes,
                Op::Flush => &counters.flushes,
            },
            1,
        );
        Counters::add(&counters.errors, u64::from(error.is_some()));
        actions.push(Action::Complete { tag, result: error.map_or(Ok(()), Err) });
    }

    // ---- ranges and marks

    /// Whether the part holds its range now.
    fn lock(&mut self, io: u32, hold: Hold) -> bool {
        let part = self.parts[io as usize];
        let granted = self.mirror.ranges.acquire(self.owner(io), part.region, part.offset, part.len, hold);
        self.parts[io as usize].locked = granted;
        granted
    }

    fn range_granted(&mut self, io: u32, actions: &mut Vec<Action>) {
        let part = &mut self.parts[io as usize];
        assert_eq!(part.step, Step::Range);
        part.locked = true;
        if part.op == Op::Read {
            return self.read(io, actions);
        }
        part.counted = true;
        part.step = Step::Mark;
        let region = part.region;
        match self.mirror.regions.begin_write(region) {
            Begin::Write => self.marked(io, actions),
            Begin::Mark => {
                let from = self.owner(io);
                self.tell_worker(WorkerNote::Mark { region, from }, actions);
            }
        }
    }

    fn marked(&mut self, io: u32, actions: &mut Vec<Action>) {
        if self.request_of(io).patch {
            self.fetch(io, actions);
        } else {
            self.write(io, actions);
        }
    }

    // ---- leg IO

    fn submit(&mut self, io: u32, step: Step, targets: LegSet, op: LegOp, actions: &mut Vec<Action>) {
        let request = self.request_of(io);
        let part = &mut self.parts[io as usize];
        part.step = step;
        part.targets = targets;
        part.pending = targets;
        part.ok = LegSet::EMPTY;
        part.ticket = op.is_durable().then(|| self.mirror.durable.begin(targets));
        let buf_offset = if op == LegOp::Flush { 0 } else { (part.offset - request.offset) as u32 };
        let (tag, offset, len) = (part.tag, part.offset, part.len);
        for leg in targets.iter() {
            actions.push(Action::Submit(LegIo { io, tag, leg, op, offset, len, buf_offset }));
        }
    }

    fn write(&mut self, io: u32, actions: &mut Vec<Action>) {
        let request = self.request_of(io);
        self.parts[io as usize].errors = [None; MAX_LEGS];
        let op = match request.op {
            Op::Write => LegOp::Write { fua: request.fua },
            Op::Zero { keep } => LegOp::Zero { fua: request.fua, keep },
            Op::Read | Op::Flush => unreachable!("only writes get here"),
        };
        let states = self.mirror.legs.states();
        let targets = states.in_use();
        if targets != states.all() {
            // Counted in the region, the write is seen by whoever takes such a leg back now.
            let region = self.parts[io as usize].region;
            states.tracked().iter().for_each(|leg| self.mirror.legs.set_stale(leg, region));
        }
        self.submit(io, Step::Write, targets, op, actions);
    }

    fn flush(&mut self, request: Request, actions: &mut Vec<Action>) {
        let io = self.new_part(request, Region(0), 0, 0);
        self.requests[request.tag as usize].as_mut().expect("just put there").parts = 1;
        if self.mirror.legs.flush_broken() {
            return self.finish_part(io, Err(Errno::EIO), actions);
        }
        let targets = self.mirror.legs.states().in_use();
        self.submit(io, Step::Flush, targets, LegOp::Flush, actions);
    }

    fn read(&mut self, io: u32, actions: &mut Vec<Action>) {
        let part = self.parts[io as usize];
        if !part.locked && self.mirror.regions.writes(part.region) > 0 {
            self.parts[io as usize].step = Step::Range;
            if !self.lock(io, Hold::Shared) {
                return;
            }
        }
        self.read_from_a_leg(io, Step::Read, actions);
    }

    /// A read without a lock came back: good unless a write is in flight in its range, or failed there
    /// meanwhile. The writes are looked at first: one that fails is counted before it ends.
    fn read_done(&mut self, io: u32, actions: &mut Vec<Action>) {
        let part = self.parts[io as usize];
        let beside_writes = self.mirror.regions.writes(part.region) > 0;
        let undone = self.mirror.undone_writes() != part.undone;
        if part.locked || !(beside_writes || undone) {
            return self.finish_part(io, Ok(()), actions);
        }
        self.parts[io as usize].step = Step::Range;
        if self.lock(io, Hold::Shared) {
            if undone { self.read(io, actions) } else { self.finish_part(io, Ok(()), actions) }
        }
    }

    fn fetch(&mut self, io: u32, actions: &mut Vec<Action>) {
        self.read_from_a_leg(io, Step::Fetch, actions);
    }

    /// Reads from the least busy leg that did not fail yet; fails the part when there is none.
    fn read_from_a_leg(&mut self, io: u32, step: Step, actions: &mut Vec<Action>) {
        let part = self.parts[io as usize];
        let tried: LegSet = self.mirror.all_legs().filter(|l| part.errors[l.index()].is_some()).collect();
        let left = self.mirror.legs.readable(part.region).minus(tried);
        let counters = &self.mirror.legs.counters;
        let turn = self.turn;
        let busy = |leg: Leg| {
            let reads = counters[leg].reads_in_flight.load(std::sync::atomic::Ordering::Relaxed);
            (reads, (leg.index() + turn) % MAX_LEGS)
        };
        let Some(leg) = left.iter().min_by_key(|&leg| busy(leg)) else {
            let errno = part.errors.iter().flatten().next().copied().unwrap_or(Errno::EIO);
            return self.finish_part(io, Err(errno), actions);
        };
        self.parts[io as usize].undone = self.mirror.undone_writes();
        self.turn = self.turn.wrapping_add(1);
        counters[leg].reads_in_flight.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.submit(io, step, LegSet::one(leg), LegOp::Read, actions);
    }

    fn leg_done(&mut self, io: u32, leg: Leg, result: Result<(), Errno>, actions: &mut Vec<Action>) {
        let part = &mut self.parts[io as usize];
        assert!(part.pending.contains(leg), "a completion that nothing waits for");
        part.pending.remove(leg);
        match result {
            Ok(()) => part.ok.insert(leg),
            Err(errno) => part.errors[leg.index()] = Some(errno),
        }
        let part = *part;
        self.count(&part, leg, result.is_ok());
        if let Err(errno) = result
            && !errno.is_given_up()
            && (part.step == Step::Flush
                || part.step == Step::Write && self.request_of(io).fua && !errno.is_no_space())
        {
            self.mirror.legs.flush_failed(leg);
        }
        if let Some(ticket) = part.ticket {
            let act = |action| actions.push(action);
            self.mirror.durable_handled(self.id, ticket, leg, &mut self.joined, act);
        }
        if !part.pending.is_empty() {
            return;
        }
        if matches!(part.step, Step::Read | Step::Fetch) && result.is_ok() {
            self.tell_unreadable(io, actions);
        }
        match (part.step, result) {
            (Step::Read, Ok(())) => self.read_done(io, actions),
            (Step::Read, Err(_)) => self.read(io, actions),
            (Step::Fetch, Ok(())) => {
                actions.push(Action::Overlay { tag: part.tag, offset: part.offset, len: part.len });
                self.write(io, actions);
            }
            (Step::Fetch, Err(_)) => self.fetch(io, actions),
            (Step::Write | Step::Flush, _) => self.all_legs_done(io, actions),
            (step, _) => unreachable!("leg IO in step {step:?}"),
        }
    }

    /// A leg gave the data: those that could not are repaired, which the reader need not wait for.
    fn tell_unreadable(&mut self, io: u32, actions: &mut Vec<Action>) {
        let part = &mut self.parts[io as usize];
        if self.mirror.tell_unreadable(&part.errors, part.offset, part.len) {
            part.errors = [None; MAX_LEGS];
            actions.push(Action::WakeWorker);
        }
    }

    /// Whether the step that the part is in has to be durable.
    fn is_durable(&self, part: &Part) -> bool {
        match part.step {
            Step::Flush => true,
            Step::Write => self.requests[part.tag as usize].is_some_and(|entry| entry.request.fua),
            _ => false,
        }
    }

    /// A write or flush came back from every leg it was sent to. Where it had to be durable, its success is believed
    /// once no other durable IO that began before is left to be handled.
    fn all_legs_done(&mut self, io: u32, actions: &mut Vec<Action>) {
        let part = self.parts[io as usize];
        let durable = self.is_durable(&part);
        if durable && !self.mirror.durable.join(self.owner(io), part.ok) {
            self.parts[io as usize].step = Step::Join;
            return;
        }
        self.look_at_legs(io, durable, actions);
    }

    fn joined(&mut self, io: u32, actions: &mut Vec<Action>) {
        assert_eq!(self.parts[io as usize].step, Step::Join);
        self.look_at_legs(io, true, actions);
    }

    /// A write or flush is over: done if it worked on every leg that counts.
    fn look_at_legs(&mut self, io: u32, durable: bool, actions: &mut Vec<Action>) {
        let part = &mut self.parts[io as usize];
        for leg in self.mirror.legs.unflushed().intersect(part.ok).iter().filter(|_| durable) {
            part.ok.remove(leg);
            part.errors[leg.index()] = Some(Errno::EIO);
        }
        let part = *part;
        let states = self.mirror.legs.states();
        if missed_legs_are_settled(&part, states) {
            let broken = durable && self.mirror.legs.flush_broken();
            let result = if broken { Err(Errno::EIO) } else { Ok(()) };
            return self.finish_part(io, result, actions);
        }
        self.parts[io as usize].step = Step::Settle;
        let region = (part.op != Op::Flush).then_some(part.region);
        let from = self.owner(io);
        let note = WorkerNote::Missed { region, ok: part.ok, errors: part.errors, durable, from };
        self.tell_worker(note, actions);
    }

    fn count(&self, part: &Part, leg: Leg, ok: bool) {
        let counters = &self.mirror.legs.counters[leg];
        match part.step {
            Step::Read | Step::Fetch => {
                counters.reads_in_flight.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
                Counters::add(if ok { &counters.reads } else { &counters.read_errors }, 1);
            }
            Step::Write => {
                Counters::add(if ok { &counters.writes } else { &counters.write_errors }, 1);
                Counters::add(&counters.written_bytes, if ok { part.len } else { 0 });
            }
            _ => Counters::add(&counters.flush_errors, u64::from(!ok)),
        }
    }
}

/// Whether every leg that the part did not reach may be left out of account: it is out and durably
/// recorded so, or it came back as syncing after the part was sent (then it is stale here).
fn missed_legs_are_settled(part: &Part, states: LegStates) -> bool {
    let missed = states.all().minus(part.ok);
    if part.errors.iter().any(Option::is_some) {
        return false;
    } else if missed.is_empty() {
        return true;
    }
    let came_back = missed.minus(part.targets).intersect(states.syncing());
    missed.minus(states.out_and_recorded()).minus(came_back).is_empty()
}
