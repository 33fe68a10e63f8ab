//! A leg as one ring has it: in an open file of the ring's own.
//!
//! Linux reports a lost write once to each open file: rings that shared one would learn of it by turns. The lock of a leg,
//! and the claim on a device, belong to the file that the [`LegFile`] opened, and must outlive all IO on the leg, also
//! if the process is killed. So a ring that does its IO through another file holds that one, too: the
//! io_uring has it in its table, which the kernel keeps until the last IO has ended, and threads that are in a call keep
//! every descriptor of the process. A file that was replaced is held until its last IO here has ended.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use mirrord_raid::{Errno, Leg};

use super::flight::Slot;
use super::patience::Fate;
use super::{Engine, Ring};
use crate::leg_file::LegFile;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct OwnLeg {
    leg_file: Arc<LegFile>,
    /// `None`: it could not be opened once more, and the ring shares the file with others.
    own: Option<File>,
}

impl OwnLeg {
    pub(super) fn open(leg_file: Arc<LegFile>) -> OwnLeg {
        let own = leg_file.open_again().inspect_err(|error| {
            tracing::warn!(leg = %leg_file.path().display(), %error, "it cannot be opened once more: rings share it");
        });
        OwnLeg { own: own.ok(), leg_file }
    }

    /// What all rings share of the leg.
    pub(super) fn leg_file(&self) -> &Arc<LegFile> {
        &self.leg_file
    }

    /// The file that IO goes through.
    pub(super) fn raw_fd(&self) -> RawFd {
        self.own.as_ref().map_or_else(|| self.leg_file.raw_fd(), File::as_raw_fd)
    }

    /// The file with the lock, if that is another one.
    fn locked(&self) -> Option<RawFd> {
        self.own.as_ref().map(|_| self.leg_file.raw_fd())
    }
}

/// A leg of a ring.
#[derive(Default)]
pub(super) struct LegSlot {
    pub(super) own: Option<Arc<OwnLeg>>,
    /// Counts replacements, so that an IO is not continued on another file.
    pub(super) generation: u32,
    /// Zeroes under way, and slots of those that wait for their turn.
    pub(super) zeroes: u32,
    pub(super) waiting: VecDeque<u32>,
    /// Where the io_uring holds the file with the lock.
    held: Option<u32>,
}

/// A file that was replaced and has IO under way.
pub(super) struct Leaving {
    leg: Leg,
    generation: u32,
    /// Open, and so locked, until the last IO has ended.
    _own: Option<Arc<OwnLeg>>,
    held: Option<u32>,
    under_way: u32,
}

impl Ring {
    /// Puts an open file in the place of a leg. IO under way on an earlier one ends there.
    pub(super) fn put_leg(&mut self, leg: Leg, leg_file: Option<Arc<LegFile>>) -> io::Result<()> {
        let own = leg_file.map(|file| Arc::new(OwnLeg::open(file)));
        let mut held = None;
        if let Engine::Uring(uring) = &mut self.engine {
            if let Some(fd) = own.as_ref().and_then(|own| own.locked()) {
                held = Some(uring.hold(fd)?);
            }
            uring.set_leg(leg, own.as_ref().map_or(-1, |own| own.raw_fd()))?;
        }
        let generation = self.legs[leg].generation;
        let new = LegSlot { own, generation: generation.wrapping_add(1), held, ..LegSlot::default() };
        let LegSlot { own, held, waiting, .. } = std::mem::replace(&mut self.legs[leg], new);
        waiting.into_iter().for_each(|index| self.refuse_waiting(index, Errno(libc::ENODEV)));
        let is_under_way = |slot: &&Slot| {
            let busy = !matches!(slot.fate, Fate::Free);
            busy && slot.step.io.leg == leg && slot.generation == generation
        };
        let under_way = self.slots.iter().filter(is_under_way).count() as u32;
        if under_way > 0 {
            self.leaving.push(Leaving { leg, generation, _own: own, held, under_way });
            Ok(())
        } else {
            self.let_go(held)
        }
    }

    fn let_go(&mut self, held: Option<u32>) -> io::Result<()> {
        match (&mut self.engine, held) {
            (Engine::Uring(uring), Some(number)) => uring.let_go(number),
            _ => Ok(()),
        }
    }

    /// An IO has ended: the file that it was on is held no longer if it was replaced and this was its last.
    pub(super) fn leave(&mut self, leg: Leg, generation: u32) {
        if generation == self.legs[leg].generation {
            return;
        }
        let is_it = |leaving: &Leaving| leaving.leg == leg && leaving.generation == generation;
        let at = self.leaving.iter().position(is_it).expect("a file is held while IO is under way on it");
        self.leaving[at].under_way -= 1;
        if self.leaving[at].under_way == 0 {
            let held = self.leaving.swap_remove(at).held;
            if let Err(error) = self.let_go(held) {
                tracing::warn!(leg = leg.index(), %error, "the ring keeps a leg that it is done with");
            }
        }
    }
}

#[cfg(test)]
mod tests;
