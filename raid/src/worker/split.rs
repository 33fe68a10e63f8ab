//! A leg split off at one moment: new writes wait, those under way end, everything is flushed, the log is cleared
//! as far as it can be, the superblocks say that the leg is tracked, and writes go on without it.
//!
//! The leg is then the volume as it was between two writes, durable, and every region that is written to from
//! then on is dirty in the log until the leg is back.

use super::{Flushing, LogWorker, Stopping};
use crate::types::{Leg, LegSet, LegState, QueueId};

/// Ticks for which writes may wait for those under way to end, or for a log that is not on the legs: users must not
/// take the volume for dead.
const MOST_TICKS: u32 = 5;

/// A leg being split off.
#[derive(Clone, Copy, Debug)]
pub(super) struct Splitting {
    leg: Leg,
    step: Step,
    ticks: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// Writes under way are to end.
    Quiesce,
    /// What is to be cleared is proven by records, and legs are being flushed.
    Flush,
    /// What was cleared is to be committed.
    Commit,
    /// The superblocks are to say so.
    Record,
}

impl LogWorker {
    pub(super) fn split(&mut self, leg: Leg) {
        let others = self.surely_in_sync().minus(LegSet::one(leg));
        let may = self.surely_in_sync().contains(leg)
            && !others.is_empty()
            && self.splitting.is_none()
            && !self.is_being_replaced(leg)
            && self.growing.is_none()
            && self.stopping == Stopping::No
            && !self.mirror.legs.flush_broken();
        if may {
            self.splitting = Some(Splitting { leg, step: Step::Quiesce, ticks: MOST_TICKS });
            self.mirror.freeze(true);
        }
    }

    pub(super) fn is_splitting(&self, leg: Leg) -> bool {
        self.splitting.is_some_and(|splitting| splitting.leg == leg)
    }

    /// The leg that the next record takes out, if it is for that.
    pub(super) fn being_recorded_as_split(&self) -> LegSet {
        let splitting = self.splitting.filter(|splitting| splitting.step == Step::Record);
        splitting.map_or(LegSet::EMPTY, |splitting| LegSet::one(splitting.leg))
    }

    /// Whether a step was done: the next one may be possible.
    pub(super) fn go_on_splitting(&mut self) -> bool {
        let Some(Splitting { leg, step, .. }) = self.splitting else { return false };
        let is_possible = self.states[leg] == LegState::InSync
            && !self.surely_in_sync().minus(LegSet::one(leg)).is_empty()
            && self.stopping == Stopping::No;
        if step != Step::Record && !is_possible {
            self.end_split();
            return false;
        }
        let is_idle = self.nothing_is_under_way()
            && matches!(self.flushing, Flushing::Nothing)
            && self.beats.clearing.is_none();
        match step {
            Step::Quiesce if is_idle && self.repairs.is_empty() && !self.mirror.writes_are_under_way() => {
                self.start_clear(true);
                self.step_split(Step::Flush)
            }
            Step::Flush if is_idle => {
                self.clears_due = self.clears;
                self.step_split(Step::Commit)
            }
            Step::Commit if is_idle && !self.clears && !self.record_wanted => {
                self.mirror.legs.set_all_stale(leg, false);
                self.mirror.legs.track_exactly(leg, true);
                self.states[leg] = LegState::Tracked;
                self.mirror.legs.set(leg, LegState::Tracked);
                self.record_wanted = true;
                self.step_split(Step::Record)
            }
            Step::Record if self.everything_is_recorded() => {
                self.end_split();
                false
            }
            _ => false,
        }
    }

    fn step_split(&mut self, step: Step) -> bool {
        if let Some(splitting) = &mut self.splitting {
            splitting.step = step;
        }
        true
    }

    /// Writes go on.
    fn end_split(&mut self) {
        self.splitting = None;
        self.mirror.freeze(false);
        self.wake.extend((0..=self.mirror.background().0).map(QueueId));
    }

    pub(super) fn tick_split(&mut self) {
        let Some(splitting) = &mut self.splitting else { return };
        splitting.ticks = splitting.ticks.saturating_sub(1);
        // What is on the legs is flushed and committed, or they fail; a log elsewhere may not answer, also to what was
        // asked before the flush. What was cleared is clean all the same.
        let may_take_long = match splitting.step {
            Step::Quiesce => true,
            Step::Flush | Step::Commit => !self.log_on_legs,
            Step::Record => false,
        };
        if splitting.ticks == 0 && may_take_long {
            self.end_split();
        }
    }

    /// What a leg did not flush may not be split off with it.
    pub(super) fn flush_failed_in_split(&mut self) {
        if self.splitting.is_some_and(|splitting| splitting.step == Step::Flush) {
            self.end_split();
        }
    }

    /// No leg in sync took the commit, or the record, or so it seems, and perhaps none ever does: writes do not wait for
    /// that. If the record said that the leg is out, it is, and whoever writes without it waits for the next one. Were
    /// it taken back instead and alone left to go on, the others could still start without it.
    pub(super) fn end_split_without_metadata(&mut self) {
        if self
            .splitting
            .is_some_and(|splitting| matches!(splitting.step, Step::Flush | Step::Commit | Step::Record))
        {
            self.end_split();
        }
    }
}
