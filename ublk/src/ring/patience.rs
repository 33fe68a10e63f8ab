//! Leg IO that takes too long is given up: who waits for it is told `ETIMEDOUT` at once, and its real end is
//! swallowed whenever it comes.
//!
//! (Only a flush that ends badly is remembered: the next one on that leg fails.) Until then the kernel may still read or write its buffer. So the request gets another one with the same
//! bytes in it, and the old one is parked here. A leg with a change that was given up is given nothing more by
//! any ring until that change has ended, well or not: it can neither overtake nor undo what comes later. (A
//! read that was given up keeps only other reads away.)
//!
//! Age is counted in ticks that the ring saw go by, one at most each time it looks. A process that was stopped
//! or did not get to run has not waited for its legs.

use std::mem;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use mirrord_raid::{Errno, LegIo, LegOp};
use rustix::time::{ClockId, clock_gettime};

use super::flight::{FENCED, Slot};
use super::{Engine, LegDone, Ring};
use crate::buffer::Buffer;
use crate::leg_file::LegFile;

/// Ticks in a time-out: how exactly it is kept.
const TICKS: u32 = 16;

/// How long leg IO may take, and the clock for that.
pub(super) struct Patience {
    tick: Duration,
    /// Ticks so far.
    now: u32,
    /// When the next is due.
    due: Duration,
}

impl Patience {
    pub(super) fn new(limit: Duration) -> Patience {
        Patience { tick: limit / TICKS, now: 0, due: Duration::ZERO }
    }

    /// Whether it is over no later than another one would be.
    fn is_within(&self, limit: Duration) -> bool {
        self.tick <= limit / TICKS
    }

    /// The present tick.
    pub(super) fn now(&self) -> u32 {
        self.now
    }

    /// Lets so many ticks go by; the present one.
    #[cfg(test)]
    pub(super) fn age(&mut self, ticks: u32) -> u32 {
        self.now += ticks;
        self.now
    }

    /// Time left until the next tick.
    fn left(&self) -> Duration {
        self.due.saturating_sub(clock())
    }

    /// Whether a tick went by.
    fn ticks(&mut self) -> bool {
        let clock = clock();
        let ticks = clock >= self.due;
        if ticks {
            self.due = clock + self.tick;
            self.now = self.now.wrapping_add(1);
        }
        ticks
    }

    fn is_over(&self, born: u32) -> bool {
        self.now.wrapping_sub(born) > TICKS
    }
}

/// Exact to some milliseconds, and cheap.
fn clock() -> Duration {
    let time = clock_gettime(ClockId::MonotonicCoarse);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

/// What becomes of a slot's completion.
pub(super) enum Fate {
    /// There is nothing under way in it.
    Free,
    /// It waits in the ring for its turn.
    Waiting,
    /// It is told.
    Told,
    /// It was given up: swallowed. The leg, which then may be given something again.
    Swallowed(Option<Arc<LegFile>>),
}

/// A buffer that its tag had to let go of.
pub(super) struct Parked {
    /// Slots know it by this, which is not 0.
    number: u32,
    buffer: Buffer,
    /// IO under way in it, given up or not.
    pub(super) using: u32,
}

impl Ring {
    /// Has every leg IO given up that takes longer from now on, also what is under way, whose time begins now. A ring with
    /// a shorter time-out keeps that.
    pub fn limit_legs(&mut self, limit: Duration) {
        if self.patience.as_ref().is_some_and(|patience| patience.is_within(limit)) {
            return;
        }
        let patience = Patience::new(limit);
        self.slots.iter_mut().for_each(|slot| slot.born = patience.now());
        self.patience = Some(patience);
        if let Engine::Uring(uring) = &self.engine {
            uring.let_legs_block(self.slots.capacity() as u32);
        }
    }

    /// How long the ring may sleep: until the next tick, while something is under way that may grow old.
    pub(super) fn sleep_at_most(&self, timeout: Option<Duration>) -> Option<Duration> {
        match &self.patience {
            Some(patience) if self.inflight() > 0 => {
                let tick = patience.left();
                Some(timeout.map_or(tick, |timeout| timeout.min(tick)))
            }
            _ => timeout,
        }
    }

    /// Why an IO is refused, if it is: its leg became shorter, hangs, or forgot what it should have flushed.
    pub(super) fn refusal(&self, io: &LegIo) -> Option<Errno> {
        if self.is_fenced(io.op) {
            return Some(FENCED);
        }
        let file = self.legs[io.leg].own.as_ref()?.leg_file();
        if io.op != LegOp::Flush && io.offset.saturating_add(io.len) > file.end() {
            return Some(Errno::ENXIO);
        }
        self.patience.as_ref()?;
        if file.hangs(io.op == LegOp::Read) {
            return Some(Errno::GIVEN_UP);
        }
        (io.op.is_durable() && file.is_forgetful()).then_some(Errno::EIO)
    }

    /// Whether an IO that went well has: not if it was to make things durable and would be refused now. What was
    /// given up may have been told in its place that data was lost.
    pub(super) fn believe(&self, io: &LegIo) -> Result<(), Errno> {
        if io.op.is_durable() { self.refusal(io).map_or(Ok(()), Err) } else { Ok(()) }
    }

    /// Gives up what is too old. To be called when every completion that is there was taken in.
    pub(super) fn give_up_old(&mut self, out: &mut Vec<LegDone>) {
        let busy = self.inflight() > 0;
        let Some(patience) = self.patience.as_mut().filter(|_| busy) else { return };
        if !patience.ticks() {
            return;
        }
        for index in 0..self.slots.len() {
            let slot = &self.slots[index];
            let told = matches!(slot.fate, Fate::Told);
            if told && self.patience.as_ref().is_some_and(|patience| patience.is_over(slot.born)) {
                out.push(self.give_up(index));
            }
        }
    }

    pub(super) fn give_up(&mut self, index: usize) -> LegDone {
        let slot = &mut self.slots[index];
        let io = slot.step.io;
        let leg = &self.legs[io.leg];
        let own = leg.own.as_ref().filter(|_| slot.generation == leg.generation);
        let file = own.map(|own| Arc::clone(own.leg_file()));
        if let Some(file) = &file {
            file.hang(io.op == LegOp::Read);
        }
        slot.fate = Fate::Swallowed(file);
        self.hung += 1;
        if uses_buffer(io.op) {
            if self.slots[index].parked == 0 {
                self.park(io.tag, index);
            }
            self.tags[io.tag as usize].let_go(io.op);
        }
        tracing::warn!(leg = io.leg.index(), op = ?io.op, offset = io.offset, len = io.len, "leg IO is given up");
        let generation = self.slots[index].generation;
        self.start_next(io.leg, io.op, generation);
        LegDone { io: io.io, leg: io.leg, result: Err(Errno::GIVEN_UP) }
    }

    /// Gives `tag` another buffer, with all its bytes but those that are being read just now. IO under way
    /// stays with the old one; what was `given_up` is among it.
    fn park(&mut self, tag: u32, given_up: usize) {
        self.last_parked = self.last_parked.checked_add(1).unwrap_or(1);
        let number = self.last_parked;
        let mut using = 0;
        let mut filling: Vec<Range<usize>> = Vec::new();
        for (index, slot) in self.slots.iter_mut().enumerate() {
            let io = slot.step.io;
            let under_way = matches!(slot.fate, Fate::Told) || index == given_up;
            if under_way && io.tag == tag && slot.parked == 0 && uses_buffer(io.op) {
                slot.parked = number;
                using += 1;
                if io.op == LegOp::Read {
                    filling.push(range_of(&io));
                }
            }
        }
        let own = &mut self.tags[tag as usize].buffer;
        let old = own.as_ref().expect("a buffer in use stays attached");
        let mut fresh = self.pool.take(old.room());
        fresh.set_len(old.len());
        filling.sort_by_key(|range| range.start);
        let mut from = 0;
        for range in filling {
            old.copy_to(&mut fresh, from..range.start.max(from));
            from = from.max(range.end);
        }
        old.copy_to(&mut fresh, from..old.len());
        let buffer = own.replace(fresh).expect("looked at above");
        self.parked.push(Parked { number, buffer, using });
    }

    /// The parked buffer that a slot's IO uses.
    pub(super) fn parked_buffer(&self, slot: &Slot) -> Option<&Buffer> {
        self.parked.iter().find(|parked| parked.number == slot.parked).map(|parked| &parked.buffer)
    }

    /// An IO in a parked buffer has ended. What it read, and is waited for, goes where the tag's bytes are by now.
    pub(super) fn unpark(&mut self, index: u32, wanted: bool) {
        let slot = &mut self.slots[index as usize];
        let (io, number) = (slot.step.io, mem::take(&mut slot.parked));
        let at = self.parked.iter().position(|parked| parked.number == number);
        let at = at.expect("a buffer is parked while IO is under way in it");
        let parked = &mut self.parked[at];
        parked.using -= 1;
        if wanted && io.op == LegOp::Read {
            let own = self.tags[io.tag as usize].buffer.as_mut().expect("a buffer in use stays attached");
            parked.buffer.copy_to(own, range_of(&io));
        }
        if parked.using == 0 {
            self.parked.swap_remove(at);
        }
    }

    /// What was given up has ended, one way or another. What is left to do of it is not done.
    pub(super) fn swallow(&mut self, index: u32, result: i32) {
        let slot = &mut self.slots[index as usize];
        let io = slot.step.io;
        let generation = slot.generation;
        let Fate::Swallowed(file) = mem::replace(&mut slot.fate, Fate::Free) else {
            unreachable!("only what was given up is swallowed")
        };
        if slot.parked != 0 {
            self.unpark(index, false);
        }
        if let Some(file) = file {
            if result < 0 && io.op.is_durable() {
                file.forget();
            }
            file.unhang(io.op == LegOp::Read);
        }
        self.hung -= 1;
        self.free.push(index);
        self.leave(io.leg, generation);
        tracing::info!(leg = io.leg.index(), op = ?io.op, result, "leg IO that was given up has ended");
    }
}

pub(super) fn uses_buffer(op: LegOp) -> bool {
    matches!(op, LegOp::Read | LegOp::Write { .. })
}

fn range_of(io: &LegIo) -> Range<usize> {
    io.buf_offset as usize..io.buf_offset as usize + io.len as usize
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn who_did_not_run_has_not_waited() {
        let mut patience = Patience::new(Duration::from_millis(160));
        let born = patience.now();
        thread::sleep(Duration::from_millis(400));
        assert!(patience.ticks() && !patience.ticks() && !patience.is_over(born));
        for _ in 0..TICKS {
            assert!(!patience.is_over(born));
            thread::sleep(patience.left() + Duration::from_millis(10));
            assert!(patience.ticks());
        }
        assert!(patience.is_over(born));
    }
}
