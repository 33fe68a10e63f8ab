//! How a log worker is set up before its first event, and what can be asked of it at any time.

use super::LogWorker;
use super::ahead::Ahead;
use super::recent::Recents;
use crate::assemble::Replaces;
use crate::held::Held;
use crate::types::LegSet;

impl LogWorker {
    /// The same, of which some legs are to take the place of others ([`crate::Assembly::replaces`]).
    #[must_use]
    pub fn with_replaces(mut self, replaces: Replaces) -> LogWorker {
        self.replaces = replaces;
        self
    }

    /// The same, whose legs hold this ([`crate::Assembly::held`]).
    #[must_use]
    pub fn with_held(mut self, held: Held) -> LogWorker {
        self.held = held;
        self
    }

    /// The same, where these legs are stale in dirty regions only, and in none that are kept ([`crate::Assembly::bounded`]).
    #[must_use]
    pub fn with_bounded(mut self, legs: LegSet) -> LogWorker {
        self.recents = Recents::new(&self.mirror, legs);
        // In sync at a start at which nothing was stale: as good as copied.
        self.in_sync().minus(legs).iter().for_each(|leg| self.is_copied(leg));
        self
    }

    /// The same, but marks up to so many regions ahead of a sequential writer: for a log whose commits take long.
    /// 0: none.
    #[must_use]
    pub fn with_mark_ahead(mut self, cap: u32) -> LogWorker {
        self.ahead = Ahead::new(cap);
        self
    }

    /// The same, one turn of which looks at so many regions at most, one by one: for tests of small volumes.
    #[must_use]
    pub fn with_turn_regions(mut self, regions: u32) -> LogWorker {
        self.turn_regions = regions;
        self
    }

    /// The same, whose log is not in its place as it starts ([`crate::WorkerEvent::LogBack`] says when it is): what is dirty is
    /// known in memory only, and the first record says so.
    #[must_use]
    pub fn with_log_failed(mut self, failed: bool) -> LogWorker {
        self.log_failed = failed;
        self
    }

    /// Whether resync is held.
    pub fn paused(&self) -> bool {
        self.paused
    }

    /// The event count of the newest record.
    pub fn event_count(&self) -> u64 {
        self.event_count
    }

    /// By leg: the leg whose place it takes once it is in sync.
    pub fn replaces(&self) -> Replaces {
        self.replaces
    }

    /// Whether the log lost a mark since the volume was started, and is not back since.
    pub fn log_failed(&self) -> bool {
        self.log_failed
    }
}
