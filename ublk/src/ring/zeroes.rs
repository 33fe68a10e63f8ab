//! Zeroes wait in the ring, not on the leg. A request over a whole volume is many zeroes at once, each as long as a
//! region; where a leg writes them, all of them together take minutes, and whatever else the leg is asked
//! waits behind them as if it hung. So a ring has a few at a time under way on each leg, in calls that end soon, and
//! the time-out of a zero begins with its first call.

use mirrord_raid::{Errno, Leg, LegOp};

use super::patience::{Fate, Patience};
use super::{LegDone, Ring};

/// Zeroes under way on a leg. Two keep a device busy; with more it starts none earlier.
const AT_ONCE: u32 = 4;

impl Ring {
    /// Starts a zero, or has it wait for its turn; other IO is started at once.
    pub(super) fn start(&mut self, index: u32) {
        let io = self.slots[index as usize].step.io;
        let leg = &mut self.legs[io.leg];
        if matches!(io.op, LegOp::Zero { .. }) {
            if leg.zeroes == AT_ONCE {
                self.slots[index as usize].fate = Fate::Waiting;
                return leg.waiting.push_back(index);
            }
            leg.zeroes += 1;
        }
        self.issue(index);
    }

    /// An IO that was under way has ended, or was given up: the next zero has its turn.
    pub(super) fn start_next(&mut self, leg: Leg, op: LegOp, generation: u32) {
        if !matches!(op, LegOp::Zero { .. }) || generation != self.legs[leg].generation {
            return;
        }
        self.legs[leg].zeroes -= 1;
        while self.legs[leg].zeroes < AT_ONCE
            && let Some(index) = self.legs[leg].waiting.pop_front()
        {
            let io = self.slots[index as usize].step.io;
            match self.refusal(&io) {
                Some(errno) => self.refuse_waiting(index, errno),
                None => {
                    let born = self.patience.as_ref().map_or(0, Patience::now);
                    let slot = &mut self.slots[index as usize];
                    (slot.fate, slot.born) = (Fate::Told, born);
                    self.legs[leg].zeroes += 1;
                    self.issue(index);
                }
            }
        }
    }

    /// A zero that waited never gets to its leg.
    pub(super) fn refuse_waiting(&mut self, index: u32, errno: Errno) {
        let slot = &mut self.slots[index as usize];
        slot.fate = Fate::Free;
        let io = slot.step.io;
        self.free.push(index);
        self.ready.push(LegDone { io: io.io, leg: io.leg, result: Err(errno) });
    }
}

#[cfg(test)]
mod tests;
