//! Marks committed in groups, clears in two steps, and the last of both when the volume stops.

use super::durable::COMMIT_IO;
use super::states::is_lost;
use super::{AHEAD, Committing, Doing, Flushing, LogWorker, NOBODY, Stopping, WorkerAction};
use crate::geometry::{Region, Regions};
use crate::mirror::{Counters, LegErrors};
use crate::ranges::Owner;
use crate::region::RegionState;
use crate::types::{Errno, LegSet, LegState};

/// A look for what to clear, which comes once in a while, is as long as so many others: after a resync of a volume with
/// 4 million regions it takes minutes until all are clean.
const CLEAR_TURNS: u32 = 4;

/// Has a region marked in the log's memory.
fn log_mark(region: Region, actions: &mut Vec<WorkerAction>) {
    if let Some(WorkerAction::LogMark(regions)) = actions.last_mut()
        && regions.grow(region)
    {
        return;
    }
    actions.push(WorkerAction::LogMark(Regions::one(region)));
}

/// Has a region cleared there.
fn log_clear(region: Region, actions: &mut Vec<WorkerAction>) {
    if let Some(WorkerAction::LogClear(regions)) = actions.last_mut()
        && regions.grow(region)
    {
        return;
    }
    actions.push(WorkerAction::LogClear(Regions::one(region)));
}

impl LogWorker {
    pub(super) fn may_commit(&self) -> bool {
        let is_over = matches!(self.stopping, Stopping::Unclear | Stopping::Recording | Stopping::Done);
        !is_over && self.committing.is_none() && (!self.log_on_legs || matches!(self.doing, Doing::Nothing))
    }

    pub(super) fn start_commit(&mut self, actions: &mut Vec<WorkerAction>) {
        let marks = std::mem::take(&mut self.marks);
        for &(region, _) in &marks {
            // A commit that failed may have left it clean since the mark was asked for.
            self.mirror.regions.want_mark(region);
            log_mark(region, actions);
        }
        let legs = self.in_use();
        Counters::add(&self.mirror.counters.commits, 1);
        self.clears = false;
        self.clears_due = false;
        self.committing = Some(Committing { legs, marks });
        if self.log_on_legs {
            self.begin_metadata(COMMIT_IO, legs);
        }
        actions.push(WorkerAction::Commit { legs });
    }

    pub(super) fn committed(
        &mut self,
        errors: LegErrors,
        log_error: Option<Errno>,
        actions: &mut Vec<WorkerAction>,
    ) {
        let Committing { legs, marks } = self.committing.take().expect("a commit is under way");
        if log_error.is_some() && !self.log_failed {
            // The log's own place is broken. Once the superblocks say so, every mark is as good as
            // durable: the next start takes the whole volume for dirty.
            self.log_failed = true;
            self.record_wanted = true;
        }
        let failed: LegSet = legs.iter().filter(|leg| errors[leg.index()].is_some()).collect();
        self.count_failed_writes(failed);
        if self.log_on_legs && !failed.is_empty() && !self.fail_legs(legs.minus(failed), &errors) {
            let errno = self.in_sync().iter().find_map(|leg| errors[leg.index()]).unwrap_or(Errno::EIO);
            self.clears = true;
            self.end_split_without_metadata();
            if self.stopping == Stopping::Cleared {
                // The legs have a log that says more than is so. Trying again at once may go on for ever.
                self.stopping = Stopping::Unclear;
            }
            self.marks_failed(marks, errno, actions);
            return;
        }
        // A record under way may have begun before this failed.
        if self.record_wanted || matches!(self.doing, Doing::Record(_)) {
            self.marks_committed.extend(marks);
        } else {
            for (region, from) in marks {
                self.marked_in_log(region, from);
            }
        }
    }

    /// What was committed in vain is durable after all.
    pub(super) fn log_is_back(&mut self) {
        if self.log_failed {
            self.log_failed = false;
            self.record_wanted = true;
        }
    }

    /// Marks what whoever writes one region after the other writes next, in the same commit.
    pub(super) fn mark_ahead(&mut self, region: Region) {
        let is_quiet = self.stopping == Stopping::No && self.splitting.is_none() && self.growing.is_none();
        // Nobody waits for a log that is lost.
        if !is_quiet || self.log_failed {
            return;
        }
        for region in self.ahead.of(region, self.mirror.regions.len()) {
            if self.mirror.regions.mark_ahead(region) {
                self.marks.push((region, AHEAD));
            }
        }
    }

    pub(super) fn marks_failed(
        &mut self,
        marks: Vec<(Region, Owner)>,
        errno: Errno,
        actions: &mut Vec<WorkerAction>,
    ) {
        // Also by a commit under way, of which it is not known yet.
        let under_way = self.committing.iter().flat_map(|commit| &commit.marks);
        let committed = self.marks_committed.iter().chain(under_way).map(|&(region, _)| region);
        let mut committed: Vec<Region> = committed.collect();
        committed.sort_unstable();
        for (region, from) in marks {
            let is_committed = committed.binary_search(&region).is_ok();
            let state = self.mirror.regions.state(region);
            if !is_committed && matches!(state, RegionState::Marking | RegionState::Renewing) {
                self.mirror.regions.mark_failed(region);
                if state == RegionState::Marking {
                    log_clear(region, actions);
                    self.clears = true;
                }
            }
            self.full_held_off |= from.queue == NOBODY;
            self.answer_mark(from, Err(errno));
        }
    }

    /// Whether some leg is stale wherever the log is dirty: it is out, or on its way in to be copied whole.
    fn is_one_out(&self) -> bool {
        self.in_use() != self.mirror.legs.states().all() || !self.returning_full.is_empty()
    }

    /// Regions that are cleaning now, or kept, to be cleared; and those that are to be kept, since a leg is stale there that
    /// is out or copied to. Each look goes on where the last one stopped. A stop looks everywhere for what to clear,
    /// since it is the last one: nobody waits for it.
    pub(super) fn clearable(&mut self, at_once: bool) -> Vec<Region> {
        let is_one_out = self.is_one_out();
        if self.mirror.legs.flush_broken() || self.mirror.regions.unclean() == 0 || is_one_out && at_once {
            return Vec::new();
        }
        let is_last = self.stopping != Stopping::No;
        let (from, most) =
            if is_last { (0, u32::MAX) } else { (self.clear_cursor, CLEAR_TURNS * self.turn_regions) };
        let mut regions = Vec::new();
        if !is_one_out {
            let table = &self.mirror.regions;
            let mut next = table.find_unclean(from, most, &mut regions);
            if next.is_none() && from > 0 {
                next = table.find_unclean(0, most.saturating_sub(regions.len() as u32), &mut regions);
                next = next.filter(|&next| next < from);
            }
            self.clear_cursor = next.unwrap_or(0);
        }
        if !at_once && self.has_more_than_recent() {
            self.find_recent(most, &mut regions);
            regions.sort_unstable();
            regions.dedup();
        }
        self.looked_at = self.looked_at.saturating_add(regions.len() as u32 / CLEAR_TURNS);
        let (legs, table) = (&self.mirror.legs, &self.mirror.regions);
        let every_leg = legs.states().all();
        regions.retain(|&region| {
            let may_clear = !is_one_out && legs.readable(region) == every_leg;
            let may_keep = || !at_once && table.state(region) == RegionState::Dirty && self.may_keep(region);
            (may_clear || may_keep()) && table.start_cleaning(region, at_once)
        });
        regions
    }

    pub(super) fn flushed(&mut self, legs: LegSet, errors: LegErrors, actions: &mut Vec<WorkerAction>) {
        let failed: LegSet = legs.iter().filter(|leg| errors[leg.index()].is_some()).collect();
        let was_in_sync = self.in_sync();
        if !failed.is_empty() {
            self.flush_failed_in_split();
        }
        if !failed.is_empty()
            && !self.fail_legs(legs.minus(failed), &errors)
            && !failed.intersect(was_in_sync).is_empty()
            && is_lost(was_in_sync, &errors)
        {
            self.mirror.legs.break_flush();
        }
        if self.stopping != Stopping::No {
            self.flushed_to_stop = self.in_sync().intersect(failed).is_empty();
        }
        match std::mem::replace(&mut self.flushing, Flushing::Nothing) {
            Flushing::Nothing => unreachable!("no flush is under way"),
            Flushing::Promote(leg) => {
                if failed.is_empty() && self.can_promote(leg) {
                    self.states[leg] = LegState::InSync;
                    self.is_copied(leg);
                    self.record_wanted = true;
                } else if let Some(errno) = errors[leg.index()] {
                    self.fail(leg, errno);
                }
            }
            Flushing::Clear(regions) => {
                let every_leg = self.mirror.legs.states().all();
                let is_one_out = self.is_one_out();
                for region in regions {
                    if !failed.is_empty() {
                        self.mirror.regions.stop_cleaning(region);
                    } else if !is_one_out && self.mirror.legs.readable(region) == every_leg {
                        if self.finish_cleaning(region) {
                            log_clear(region, actions);
                            self.clears = true;
                        }
                    } else if self.may_keep(region) {
                        self.keep(region);
                    } else {
                        self.mirror.regions.stop_cleaning(region);
                    }
                }
            }
        }
    }

    pub(super) fn go_on_stopping(&mut self, actions: &mut Vec<WorkerAction>) {
        let busy = !self.nothing_is_under_way()
            || !matches!(self.flushing, Flushing::Nothing)
            || self.beats.clearing.is_some()
            || !self.copies.is_empty()
            || !self.repairs.is_empty();
        if busy {
            return;
        }
        if self.stopping == Stopping::Asked {
            self.stopping = Stopping::Cleared;
            self.flushed_to_stop = false;
            self.start_clear(true);
            return self.next(actions);
        }
        match self.stopping {
            Stopping::Cleared if self.clears => self.start_commit(actions),
            Stopping::Cleared => self.record_stop(self.mirror.regions.unclean() == 0, actions),
            Stopping::Unclear => self.record_stop(false, actions),
            Stopping::No | Stopping::Asked | Stopping::Recording | Stopping::Done => {}
        }
    }

    fn record_stop(&mut self, clean: bool, actions: &mut Vec<WorkerAction>) {
        self.stopping = Stopping::Recording;
        let equal = self.flushed_to_stop && !self.mirror.legs.flush_broken();
        self.start_record(clean, equal, actions);
    }
}

#[cfg(test)]
mod tests;
