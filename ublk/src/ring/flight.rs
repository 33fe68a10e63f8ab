//! A leg IO from its submission to its completion, which may take several calls.

use std::sync::atomic::Ordering::SeqCst;

use mirrord_raid::{Errno, LegIo, LegOp};

use super::own::LegSlot;
use super::patience::{Fate, Patience, uses_buffer};
use super::step::{Call, Step};
use super::threads::perform;
use super::uring::{Memory, SMALL};
use super::{Engine, LegDone, Ring};

/// How a change ends that the fence keeps from its leg.
pub(super) const FENCED: Errno = Errno::EIO;

pub(super) struct Slot {
    pub(super) step: Step,
    /// [`LegSlot::generation`] at submission.
    pub(super) generation: u32,
    /// [`Patience::now`] at submission.
    pub(super) born: u32,
    /// Where its buffer is: 0 with the tag, else the number of a parked one.
    pub(super) parked: u32,
    pub(super) fate: Fate,
}

impl LegSlot {
    /// Whether a call is made at once: a leg in memory has nothing to wait for, and io_uring, which does not
    /// know that, would hand the call to another thread. That costs more than the copy.
    fn is_instant(&self, call: Call) -> bool {
        let moves = matches!(call, Call::Read { .. } | Call::Write { .. } | Call::Sync);
        moves && self.own.as_ref().is_some_and(|own| own.leg_file().is_in_memory())
    }
}

impl Ring {
    /// Queues a leg IO; the next [`wait`](Ring::wait) hands it to the kernel. On a leg that is not
    /// there it completes with `ENODEV`, on one with IO that was given up and has not ended with `ETIMEDOUT`.
    ///
    /// # Panics
    /// If a read or write does not lie inside the buffer of its tag, or the leg is not the volume's.
    pub fn submit(&mut self, io: &LegIo) {
        let leg = &self.legs[io.leg];
        let Some(own) = &leg.own else {
            self.ready.push(LegDone { io: io.io, leg: io.leg, result: Err(Errno(libc::ENODEV)) });
            return;
        };
        let step = Step::new(*io, own.leg_file().direct());
        let generation = leg.generation;
        if let Some(errno) = self.refusal(io) {
            self.ready.push(LegDone { io: io.io, leg: io.leg, result: Err(errno) });
            return;
        }
        if uses_buffer(io.op) {
            let tag = &mut self.tags[io.tag as usize];
            let room = tag.buffer.as_ref().map_or(0, |b| b.len() as u64);
            let end = u64::from(io.buf_offset).checked_add(io.len);
            assert!(io.len > 0 && end.is_some_and(|end| end <= room), "{io:?} outside {room} bytes");
            tag.using += 1;
            tag.filling += u32::from(io.op == LegOp::Read);
        }
        let born = self.patience.as_ref().map_or(0, Patience::now);
        let slot = Slot { step, generation, born, parked: 0, fate: Fate::Told };
        let index = match self.free.pop() {
            Some(index) => {
                self.slots[index as usize] = slot;
                index
            }
            None => {
                self.slots.push(slot);
                self.slots.len() as u32 - 1
            }
        };
        self.start(index);
    }

    /// Moves every completion that is there to `out`.
    pub(super) fn collect(&mut self, out: &mut Vec<LegDone>) {
        out.append(&mut self.ready);
        loop {
            let next = self.instant.pop_front().or_else(|| match &mut self.engine {
                Engine::Uring(uring) => uring.reap(),
                Engine::Threads(threads) => threads.reap(),
            });
            let Some((index, result)) = next else { return };
            out.extend(self.complete(index, result));
        }
    }

    /// Takes in the result of a call; makes the next one, if there is one.
    fn complete(&mut self, index: u32, result: i32) -> Option<LegDone> {
        let slot = &mut self.slots[index as usize];
        if let Fate::Swallowed(_) = slot.fate {
            self.swallow(index, result);
            return None;
        }
        let io = slot.step.io;
        let result = match slot.step.advance(result) {
            Some(result) => result,
            None if slot.generation != self.legs[io.leg].generation => Err(Errno(libc::ENODEV)),
            // Of a leg that is not to be changed any more the rest is left as it is.
            None if self.is_fenced(io.op) => Err(FENCED),
            None => {
                self.issue(index);
                return None;
            }
        };
        let result = result.and_then(|()| self.believe(&io));
        let slot = &mut self.slots[index as usize];
        slot.fate = Fate::Free;
        let generation = slot.generation;
        self.leave(io.leg, generation);
        if uses_buffer(io.op) {
            if self.slots[index as usize].parked != 0 {
                self.unpark(index, result.is_ok());
            }
            self.tags[io.tag as usize].let_go(io.op);
        }
        self.free.push(index);
        self.start_next(io.leg, io.op, generation);
        Some(LegDone { io: io.io, leg: io.leg, result })
    }

    /// Whether an IO would change a leg that is not to be changed any more.
    pub(super) fn is_fenced(&self, op: LegOp) -> bool {
        let changes = matches!(op, LegOp::Write { .. } | LegOp::Zero { .. });
        changes && self.fence.as_ref().is_some_and(|fence| fence.load(SeqCst))
    }

    pub(super) fn issue(&mut self, index: u32) {
        let slot = &self.slots[index as usize];
        let step = &slot.step;
        let (leg, call) = (step.io.leg, step.call());
        let memory = match call {
            Call::Read { buf_offset, len, .. } | Call::Write { buf_offset, len, .. } => {
                let own = self.tags[step.io.tag as usize].buffer.as_ref();
                let buffer = if slot.parked == 0 { own } else { self.parked_buffer(slot) };
                let buffer = buffer.expect("a buffer in use stays attached");
                // The offset lies inside the buffer: `submit` checked the whole range.
                let ptr = buffer.as_raw().wrapping_add(buf_offset as usize);
                let small = (buffer.is_small() && buffer.is_of(&self.pool)).then_some(SMALL);
                let in_head = buf_offset as usize + len as usize <= self.pool.small_len();
                Memory { ptr, registered: small.or(buffer.head().filter(|_| in_head)) }
            }
            Call::WriteZeroes { .. } => Memory { ptr: self.pool.zeroes().cast_mut(), registered: None },
            _ => Memory { ptr: std::ptr::null_mut(), registered: None },
        };
        match &mut self.engine {
            Engine::Uring(_) if self.legs[leg].is_instant(call) => {
                let own = self.legs[leg].own.as_ref().expect("an IO is issued on a leg that is there");
                // SAFETY: `submit` checked that the memory is as long as the call says; as for any IO in flight
                // nobody else may touch it until the completion is given out.
                let result = unsafe { perform(own, call, memory.ptr) };
                self.instant.push_back((index, result));
            }
            Engine::Uring(uring) => uring.issue(index, leg, call, memory),
            Engine::Threads(threads) => {
                let own = self.legs[leg].own.as_ref().expect("an IO is issued on a leg that is there");
                threads.issue(index, leg, own, call, memory);
            }
        }
    }
}
