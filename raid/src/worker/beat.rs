//! Records for no other reason than that they tell an older image of a leg ([`crate::held`]).
//!
//! While the volume is written to one goes out each time the log worker looks for what to clear, and two after the last
//! write; an idle volume has none. What is to be cleared waits for two that were begun after it was last written to. If no leg in sync takes
//! such a record, nothing is lost but that.

use super::{Flushing, LogWorker, Stopping};
use crate::geometry::Region;
use crate::mirror::QueueNote;

use std::sync::atomic::Ordering::Relaxed;

/// Records begun after the last write, until an image from before it is told.
const PROOF: u64 = 2;

/// Regions that are cleaning, until records prove that they may be cleared.
#[derive(Debug)]
pub(super) struct Clearing {
    regions: Vec<Region>,
    /// The record that has to be complete first, or a later one.
    after: u64,
}

#[derive(Debug)]
pub(super) struct Beats {
    /// The newest record that is complete.
    pub(super) complete: u64,
    /// The newest record when regions were last looked through: those that were not written to since can be cleaned.
    looked_at: u64,
    /// The next record need have no other reason.
    pub(super) wanted: bool,
    /// Looks at which one is still due.
    due: u64,
    /// Writes that had been answered when one was last due.
    written: u64,
    pub(super) clearing: Option<Clearing>,
}

impl Beats {
    pub(super) fn new(event_count: u64) -> Beats {
        Beats {
            complete: event_count,
            looked_at: event_count,
            wanted: false,
            due: 0,
            written: 0,
            clearing: None,
        }
    }

    /// Whether a tick is needed.
    pub(super) fn are_due(&self) -> bool {
        self.wanted || self.due > 0 || self.clearing.is_some()
    }
}

impl LogWorker {
    /// What was written since the last beat is told by the next ones.
    pub(super) fn beat(&mut self) {
        let written = self.mirror.counters.writes.load(Relaxed);
        if written != self.beats.written || self.mirror.writes_are_under_way() {
            (self.beats.written, self.beats.due) = (written, PROOF);
        }
        if self.beats.due > 0 {
            self.beats.due -= 1;
            self.beats.wanted = true;
        }
    }

    /// First step of a clear: looks for regions to clear. When the volume stops, or a leg is split off, legs are
    /// flushed in any case, and a region need not have been left alone for a while.
    pub(super) fn start_clear(&mut self, at_once: bool) {
        if self.beats.clearing.is_some() || !matches!(self.flushing, Flushing::Nothing) {
            return;
        }
        let regions = self.clearable(at_once);
        let last_written = if at_once {
            self.event_count
        } else {
            std::mem::replace(&mut self.beats.looked_at, self.event_count)
        };
        if at_once || !regions.is_empty() {
            self.beats.clearing = Some(Clearing { regions, after: last_written + PROOF });
        }
    }

    /// Second step: the records that it takes, and a flush of the legs.
    pub(super) fn go_on_clearing(&mut self) {
        let Some(clearing) = &self.beats.clearing else { return };
        if self.beats.complete < clearing.after {
            self.beats.wanted |= self.event_count < clearing.after;
        } else if matches!(self.flushing, Flushing::Nothing)
            && let Some(Clearing { regions, .. }) = self.beats.clearing.take()
        {
            self.flushing = Flushing::Clear(regions);
            self.tell_background(QueueNote::Flush { legs: self.in_use() });
        }
    }

    /// No leg in sync takes a record: a volume that stops is flushed all the same, and nothing is cleared.
    pub(super) fn clear_nothing(&mut self) {
        if let Some(clearing) = self.beats.clearing.as_mut().filter(|_| self.stopping != Stopping::No) {
            clearing.after = 0;
            for region in std::mem::take(&mut clearing.regions) {
                self.mirror.regions.stop_cleaning(region);
            }
        }
    }
}
