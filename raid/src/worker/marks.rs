//! Marks committed in groups, clears in two steps, and the last of both when the volume stops.

use super::durable::COMMIT_IO;
use super::states::is_lost;
use super::{Committing, Doing, Flushing, LogWorker, NOBODY, Stopping, WorkerAction};
use crate::geometry::Region;
use crate::mirror::{Counters, LegErrors, QueueNote};
use crate::ranges::Owner;
use crate::region::RegionState;
use crate::types::{Errno, LegSet, LegState};

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
            actions.push(WorkerAction::LogMark(region));
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
            for (region, from) in marks {
                self.mark_failed(region, from, errno, actions);
            }
            return;
        }
        // A record under way may have begun before this failed.
        if self.record_wanted || matches!(self.doing, Doing::Record(_)) {
            self.marks_committed.extend(marks);
        } else {
            for (region, from) in marks {
                self.marked(region, from);
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
                self.marks.push((region, NOBODY));
            }
        }
    }

    pub(super) fn marked(&mut self, region: Region, from: Owner) {
        self.mirror.regions.marked(region);
        self.answer_mark(from, Ok(()));
    }

    pub(super) fn mark_failed(
        &mut self,
        region: Region,
        from: Owner,
        errno: Errno,
        actions: &mut Vec<WorkerAction>,
    ) {
        // Also by a commit under way, of which it is not known yet.
        let under_way = self.committing.iter().flat_map(|commit| &commit.marks);
        let is_committed = self.marks_committed.iter().chain(under_way).any(|&(other, _)| other == region);
        if !is_committed && self.mirror.regions.state(region) == RegionState::Marking {
            self.mirror.regions.mark_failed(region);
            actions.push(WorkerAction::LogClear(region));
            self.clears = true;
        }
        self.answer_mark(from, Err(errno));
    }

    /// First step of a clear: flushes the legs if there is a region to clear. When stopping, legs are
    /// flushed in any case, and a region need not have been left alone for a while.
    pub(super) fn start_clear(&mut self, stopping: bool) {
        if !matches!(self.flushing, Flushing::Nothing) {
            return;
        }
        let regions = self.clearable(stopping);
        if stopping || !regions.is_empty() {
            self.flushing = Flushing::Clear(regions);
            self.tell_background(QueueNote::Flush { legs: self.in_use() });
        }
    }

    /// Regions that are cleaning now. None while a leg is out, or on its way in to be copied whole: it is stale
    /// wherever the log is dirty.
    pub(super) fn clearable(&self, at_once: bool) -> Vec<Region> {
        let legs = &self.mirror.legs;
        let every_leg = legs.states().all();
        let is_one_out = self.in_use() != every_leg || !self.returning_full.is_empty();
        if is_one_out || legs.flush_broken() || self.mirror.regions.unclean() == 0 {
            return Vec::new();
        }
        let table = &self.mirror.regions;
        let in_sync = table.unclean_regions().filter(|&region| legs.readable(region) == every_leg);
        in_sync.filter(|&region| table.start_cleaning(region, at_once)).collect()
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
        match std::mem::replace(&mut self.flushing, Flushing::Nothing) {
            Flushing::Nothing => unreachable!("no flush is under way"),
            Flushing::Promote(leg) => {
                if failed.is_empty() && self.can_promote(leg) {
                    self.states[leg] = LegState::InSync;
                    self.record_wanted = true;
                } else if let Some(errno) = errors[leg.index()] {
                    self.fail(leg, errno);
                }
            }
            Flushing::Clear(regions) => {
                let every_leg = self.mirror.legs.states().all();
                let is_one_out = self.in_use() != every_leg || !self.returning_full.is_empty();
                let flushed = failed.is_empty() && !is_one_out;
                for region in regions {
                    let in_sync = self.mirror.legs.readable(region) == every_leg;
                    if !(flushed && in_sync) {
                        self.mirror.regions.stop_cleaning(region);
                    } else if self.mirror.regions.finish_cleaning(region) {
                        actions.push(WorkerAction::LogClear(region));
                        self.clears = true;
                    }
                }
            }
        }
    }

    pub(super) fn go_on_stopping(&mut self, actions: &mut Vec<WorkerAction>) {
        let busy = !self.nothing_is_under_way()
            || !matches!(self.flushing, Flushing::Nothing)
            || !self.copies.is_empty()
            || !self.repairs.is_empty();
        if busy {
            return;
        }
        if self.stopping == Stopping::Asked {
            self.stopping = Stopping::Cleared;
            return self.start_clear(true);
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
        self.start_record(clean, actions);
    }
}

#[cfg(test)]
mod tests;
